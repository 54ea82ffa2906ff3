// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/executor.hpp>
#include <mnemo/nn/fairseq.hpp>
#include <mnemo/text/hash.hpp>

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

namespace mnemo::nn {

/// How a TransformerLm is trained from scratch. The defaults suit a model of a million parameters and minutes of time.
struct TrainOptions {
    std::int64_t steps = 3000;
    std::int64_t batch = 8;     // windows a step
    std::int64_t context = 128; // tokens a window
    /// Windows begin anywhere, or the stream is cut into blocks, which are shuffled and shifted anew each time through.
    enum class Windows { anywhere, blocks } windows = Windows::anywhere;
    std::int64_t shards = 2;           // parts of a batch that threads may work on; the result depends on it
    double learning_rate = 2e-3;       // at its peak
    double final_learning_rate = 2e-4; // at the end of a half cosine
    std::int64_t warm_up = 100;        // steps until the peak
    double beta1 = 0.9, beta2 = 0.95;  // AdamW (Loshchilov and Hutter 2019)
    double epsilon = 1e-8;
    double weight_decay = 0.1; // of matrices, not of biases and norms
    double clip = 1;           // of the gradient's norm
    std::uint64_t seed = 1;    // of the windows; the model's start is torch::manual_seed's
};

/// Trains a model on one stream of tokens. A run that is saved and resumed gives the same model, bit for bit, as one
/// that was not interrupted; so do runs with different executors. Workers of an executor use LibTorch's own threads
/// too: set torch::set_num_threads(1) beside Threads{n}, which is the faster way round for small models. `tokens` must
/// outlive the trainer.
class Trainer {
  public:
    Trainer(TransformerLm model, std::span<const std::int32_t> tokens, TrainOptions options)
        : model_(std::move(model)), tokens_(tokens), options_(options), parameters_(model_->parameters()) {
        const auto positive = [](const char* name, std::int64_t n) {
            if (n < 1) fail("training, ", name, ": expected at least 1, got ", n);
        };
        positive("steps", options.steps);
        positive("batch", options.batch);
        positive("context", options.context);
        positive("shards", options.shards);
        if (options.batch % options.shards != 0)
            fail("training, batch: expected a multiple of ", options.shards, " shards, got ", options.batch);
        if (static_cast<index_t>(tokens.size()) <= 2 * options.context)
            fail("training, tokens: expected more than two windows of ", options.context, ", got ", tokens.size());
        for (const std::int32_t id : tokens)
            if (id < 0 || id >= model_->options().vocab_size())
                fail("training, tokens: expected ids from 0 to ", model_->options().vocab_size() - 1, ", got ", id);
        std::size_t size = 0;
        for (const at::Tensor& p : parameters_) {
            if (p.scalar_type() != at::kFloat || !p.device().is_cpu() || !p.is_contiguous())
                fail("training: expected contiguous Float parameters on cpu, got ", describe(p));
            size += static_cast<std::size_t>(p.numel());
        }
        mean_.resize(size), square_.resize(size), gradient_.resize(size);
    }

    /// One step; returns the loss before it (nats a token).
    template <Executor X = Serial> double step(const X& executor = {}) {
        if (done_ >= options_.steps) fail("training: all ", options_.steps, " steps are done");
        const at::AutoGradMode with_gradients(true);
        model_->train();
        const bool random = model_->options().dropout() > 0;
        if (random) at::manual_seed(options_.seed + static_cast<std::uint64_t>(done_)); // the generator is everybody's
        const at::Tensor windows = next_windows();                                      // [batch, context + 1]
        const auto shards = static_cast<std::size_t>(options_.shards);
        std::vector<torch::autograd::variable_list> gradients(shards);
        std::vector<double> losses(shards);
        const auto work = [&](index_t shard, index_t) {
            at::init_num_threads(); // a new thread does not know what the program has set
            const std::int64_t rows = options_.batch / options_.shards;
            const at::Tensor part = windows.narrow(0, shard * rows, rows);
            const at::Tensor loss = model_->loss(part.narrow(1, 0, options_.context).contiguous(),
                                                 part.narrow(1, 1, options_.context).contiguous());
            losses[static_cast<std::size_t>(shard)] = loss.item<double>();
            gradients[static_cast<std::size_t>(shard)] =
                torch::autograd::grad({loss}, parameters_, {}, false, false, true);
        };
        if (random)
            Serial{}.run(options_.shards, work);
        else
            executor.run(options_.shards, work);
        const double loss = std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(shards);
        if (!std::isfinite(loss)) fail("training, step ", done_, ": the loss is not finite; lower the learning rate");
        update(gradients);
        ++done_;
        return loss;
    }

    /// Steps until all are done or `progress(done, total, loss)` says false; true if all are done.
    template <class Progress, Executor X = Serial> bool run(const Progress& progress, const X& executor = {}) {
        bool go_on = true;
        while (done_ < options_.steps && go_on) {
            const double loss = step(executor);
            go_on = progress(done_, options_.steps, loss);
        }
        model_->eval();
        return done_ == options_.steps;
    }

    std::int64_t done() const { return done_; }
    const TransformerLm& model() const { return model_; }
    /// The learning rate of step `n`, counted from 0.
    double learning_rate(std::int64_t n) const {
        const auto& o = options_;
        if (n < o.warm_up) return o.learning_rate * static_cast<double>(n + 1) / static_cast<double>(o.warm_up);
        const double part =
            static_cast<double>(n - o.warm_up) / static_cast<double>(std::max<std::int64_t>(o.steps - o.warm_up, 1));
        return o.final_learning_rate +
               (o.learning_rate - o.final_learning_rate) * (1 + std::cos(std::numbers::pi * part)) / 2;
    }

    /// Writes model, optimizer and position to one file, at once.
    void save(const std::string& path) const {
        std::vector<Entry> entries;
        std::vector<at::Tensor> kept;
        const auto size = static_cast<index_t>(mean_.size());
        entries.push_back(tensor_entry("mean", {size}, mean_));
        entries.push_back(tensor_entry("square", {size}, square_));
        for (const auto& [name, tensor] : model_->weights()) {
            kept.push_back(tensor.detach().contiguous());
            entries.push_back(tensor_entry(
                "w." + name, tensor.sizes().vec(),
                std::span<const float>(kept.back().data_ptr<float>(), static_cast<std::size_t>(tensor.numel()))));
        }
        auto about = identity();
        about["done"] = text(done_);
        write_safetensors(path, entries, about);
    }
    /// Goes on where `save` was. Throws Error if the file is damaged or from another model, other tokens or other
    /// options; then nothing has changed.
    void resume(const std::string& path) {
        const SafeTensors file = SafeTensors::open(path);
        auto about = file.metadata();
        std::int64_t done = -1;
        const std::string& s = about["done"];
        if (std::from_chars(s.data(), s.data() + s.size(), done).ec != std::errc() || done < 0 || done > options_.steps)
            fail(path, ": done: expected 0 to ", options_.steps, " steps, got ", in_quotes(s));
        for (const auto& [field, value] : identity())
            if (about[field] != value)
                fail(path, ": ", field, ": expected ", value, " as in this run, got ", in_quotes(about[field]));
        auto mean = file.values<float>("mean"), square = file.values<float>("square");
        for (const auto* moments : {&mean, &square})
            if (moments->size() != mean_.size())
                fail(path, ": mean and square: expected ", mean_.size(), " values, got ", moments->size());
        TransformerLm loaded(model_->options()); // so that an Error leaves this run as it was
        load_weights(*loaded, file, "w.");
        const at::NoGradGuard no_grad;
        const auto values = loaded->parameters();
        for (std::size_t i = 0; i < parameters_.size(); ++i) parameters_[i].copy_(values[i]);
        mean_ = std::move(mean), square_ = std::move(square);
        done_ = done;
    }

  private:
    // splitmix64: numbers by position, so that resuming needs no generator's state.
    static std::uint64_t mix(std::uint64_t x) {
        x += 0x9e3779b97f4a7c15u;
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
        x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
        return x ^ (x >> 31);
    }
    std::int64_t below(std::int64_t limit, std::int64_t stream, std::int64_t i) const {
        const std::uint64_t key = mix(mix(options_.seed) + static_cast<std::uint64_t>(stream));
        return static_cast<std::int64_t>(mix(key + static_cast<std::uint64_t>(i)) % static_cast<std::uint64_t>(limit));
    }
    // Where window n of the run begins.
    std::int64_t window_start(std::int64_t n) {
        const auto size = static_cast<std::int64_t>(tokens_.size());
        if (options_.windows == TrainOptions::Windows::anywhere) return below(size - options_.context, 0, n);
        const std::int64_t blocks = (size - 1) / options_.context - 1, epoch = n / blocks;
        if (epoch != epoch_) {
            order_.resize(static_cast<std::size_t>(blocks));
            std::iota(order_.begin(), order_.end(), std::int64_t{0});
            for (std::int64_t i = blocks - 1; i > 0; --i)
                std::swap(order_[static_cast<std::size_t>(i)],
                          order_[static_cast<std::size_t>(below(i + 1, epoch + 1, i))]);
            epoch_ = epoch;
        }
        return order_[static_cast<std::size_t>(n % blocks)] * options_.context + below(options_.context, epoch + 1, 0);
    }
    at::Tensor next_windows() {
        const at::Tensor windows = at::empty({options_.batch, options_.context + 1}, at::kLong);
        auto* out = windows.data_ptr<std::int64_t>();
        for (std::int64_t i = 0; i < options_.batch; ++i) {
            const auto from = tokens_.begin() + window_start(done_ * options_.batch + i);
            out = std::copy_n(from, options_.context + 1, out);
        }
        return windows;
    }

    // AdamW on the mean of the shards' gradients, clipped.
    void update(const std::vector<torch::autograd::variable_list>& gradients) {
        const float share = 1.0f / static_cast<float>(gradients.size());
        double squares = 0;
        std::fill(gradient_.begin(), gradient_.end(), 0.0f);
        std::size_t first = 0;
        for (std::size_t i = 0; i < parameters_.size(); ++i) {
            const auto size = static_cast<std::size_t>(parameters_[i].numel());
            float* const sum = gradient_.data() + first;
            for (const auto& shard : gradients) {
                if (!shard[i].defined()) continue; // a band that this shard did not meet
                const at::Tensor contiguous = shard[i].contiguous();
                const float* const g = contiguous.data_ptr<float>();
                for (std::size_t j = 0; j < size; ++j) sum[j] += share * g[j];
            }
            for (std::size_t j = 0; j < size; ++j) squares += static_cast<double>(sum[j]) * sum[j];
            first += size;
        }
        const double norm = std::sqrt(squares), rate = learning_rate(done_), n = static_cast<double>(done_ + 1);
        const auto scale = static_cast<float>(norm > options_.clip ? options_.clip / norm : 1.0);
        const auto beta1 = static_cast<float>(options_.beta1), beta2 = static_cast<float>(options_.beta2);
        const auto step_size = static_cast<float>(rate / (1 - std::pow(options_.beta1, n)));
        const auto correction = static_cast<float>(1 / (1 - std::pow(options_.beta2, n)));
        const auto epsilon = static_cast<float>(options_.epsilon);
        first = 0;
        for (const at::Tensor& parameter : parameters_) {
            const auto size = static_cast<std::size_t>(parameter.numel());
            const auto keep = static_cast<float>(parameter.dim() > 1 ? 1 - rate * options_.weight_decay : 1.0);
            float* const p = parameter.data_ptr<float>();
            const float* const gradient = gradient_.data() + first;
            float *const mean = mean_.data() + first, *const square = square_.data() + first;
            for (std::size_t j = 0; j < size; ++j) {
                const float g = scale * gradient[j];
                mean[j] = beta1 * mean[j] + (1 - beta1) * g;
                square[j] = beta2 * square[j] + (1 - beta2) * g * g;
                p[j] = keep * p[j] - step_size * mean[j] / (std::sqrt(correction * square[j]) + epsilon);
            }
            first += size;
        }
    }

    // What a checkpoint must share with the run that goes on from it.
    std::map<std::string, std::string> identity() const {
        const auto& o = options_;
        std::map<std::string, std::string> out{
            {"model", fairseq_config(model_->options()).dump()},
            {"tokens", Hash64().add(std::as_bytes(tokens_)).text()},
            {"windows", o.windows == TrainOptions::Windows::anywhere ? "anywhere" : "blocks"}};
        for (const auto& [field, value] : {std::pair{"steps", static_cast<double>(o.steps)},
                                           {"batch", static_cast<double>(o.batch)},
                                           {"context", static_cast<double>(o.context)},
                                           {"shards", static_cast<double>(o.shards)},
                                           {"learning_rate", o.learning_rate},
                                           {"final_learning_rate", o.final_learning_rate},
                                           {"warm_up", static_cast<double>(o.warm_up)},
                                           {"beta1", o.beta1},
                                           {"beta2", o.beta2},
                                           {"epsilon", o.epsilon},
                                           {"weight_decay", o.weight_decay},
                                           {"clip", o.clip}})
            out[field] = text(value);
        out["seed"] = text(o.seed);
        return out;
    }

    TransformerLm model_;
    std::span<const std::int32_t> tokens_;
    TrainOptions options_;
    std::vector<at::Tensor> parameters_;
    std::vector<float> mean_, square_, gradient_; // of all parameters, one after another
    std::int64_t done_ = 0;
    std::vector<std::int64_t> order_; // of the blocks of epoch_
    std::int64_t epoch_ = -1;
};

} // namespace mnemo::nn
