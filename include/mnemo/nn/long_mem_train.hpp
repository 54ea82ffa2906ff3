// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/chunk_ring.hpp>
#include <mnemo/nn/lm_host.hpp>
#include <mnemo/nn/long_mem.hpp>
#include <mnemo/text/passages.hpp>

#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace mnemo::nn {

/// How a side network is adapted. The defaults are the published ones.
struct LongMemTraining {
    std::int64_t steps = 100'000;
    double learning_rate = 2e-4; // falls to 0 in a straight line
    std::int64_t warm_up = 0;
    double beta1 = 0.9, beta2 = 0.98, epsilon = 1e-6; // AdamW (Loshchilov and Hutter 2019)
    double weight_decay = 0.01;                       // of all parameters
    std::int32_t padding = -1;                        // a target that is not counted; -1: none
    bool clear_at_end = true;                         // of the stream: the banks forget, as the reference's do
};

/// Adapts the side network to a stream of text: segments in order, each row with its own history, memory written after
/// each backward pass. The backbone stays bit for bit. A run that is saved and resumed, anywhere in the stream, goes on
/// with its banks as one that was not interrupted. Model and passages must outlive the trainer.
template <class BanksT = LongMemBanks<>> class LongMemTrainer {
  public:
    LongMemTrainer(LongMem<BanksT>& model, const Passages& passages, LongMemTraining options, index_t worker = 0)
        : model_(&model), passages_(&passages), options_(options), worker_(worker) {
        if (options.steps < 1) fail("LongMem training, steps: expected at least 1, got ", options.steps);
        if (passages.batches(worker) < 1) fail("LongMem training: expected a text of at least one batch");
        expect_equal("LongMem training: rows of a batch", passages.options().rows, model.banks().batch());
        for (const auto& [name, weight] : model.side()->weights()) {
            mean_.push_back(at::zeros_like(weight.detach()));
            square_.push_back(at::zeros_like(weight.detach()));
        }
    }

    /// One segment of each row; returns the loss before the step, nats a token.
    double step() {
        if (done_ >= options_.steps) fail("LongMem training: all ", options_.steps, " steps are done");
        const at::AutoGradMode with_gradients(true);
        model_->side().ptr()->train();
        const auto& side = model_->side()->options();
        if (side.dropout > 0 || side.attention_dropout > 0)
            at::manual_seed(static_cast<std::uint64_t>(done_)); // a resumed run draws the same
        const index_t at = done_ % passages_->batches(worker_);
        if (at == 0 && options_.clear_at_end) model_->banks().clear();
        passages_->read(worker_, at, batch_);
        const at::Tensor targets = tensor(batch_.targets);
        at::Tensor log_p = model_->log_prob_target(model_->forward(tensor(batch_.inputs)), targets);
        std::int64_t count = targets.numel();
        if (options_.padding >= 0) {
            const at::Tensor counted = targets.ne(options_.padding);
            log_p = log_p * counted, count = std::max<std::int64_t>(counted.sum().item<std::int64_t>(), 1);
        }
        const at::Tensor loss = -log_p.sum() / static_cast<double>(count);
        const double value = loss.item<double>();
        if (!std::isfinite(value)) fail("LongMem training, step ", done_, ": the loss is not finite");
        std::vector<at::Tensor> parameters;
        for (const auto& [name, weight] : model_->side()->weights()) parameters.push_back(weight);
        // Gates have no gradient while there is no memory.
        update(parameters, torch::autograd::grad({loss}, parameters, {}, false, false, true));
        model_->remember();
        ++done_;
        return value;
    }
    /// Steps until all are done or `progress(done, total, loss)` says false; true if all are done.
    bool run(auto&& progress) {
        for (bool go_on = true; done_ < options_.steps && go_on;) {
            const double loss = step();
            go_on = progress(done_, options_.steps, loss);
        }
        return done_ == options_.steps;
    }
    std::int64_t done() const { return done_; }
    /// The learning rate of step n, counted from 0.
    double learning_rate(std::int64_t n) const {
        if (n < options_.warm_up)
            return options_.learning_rate * static_cast<double>(n + 1) / static_cast<double>(options_.warm_up);
        return options_.learning_rate * static_cast<double>(options_.steps - n) /
               static_cast<double>(options_.steps - options_.warm_up);
    }

    /// Writes side network, optimizer, position and banks to one file, at once.
    void save(const std::string& path) const {
        std::vector<Entry> tensors;
        std::map<std::string, std::string> about = identity();
        std::vector<at::Tensor> kept;
        const auto& weights = model_->side()->weights();
        for (std::size_t i = 0; i < weights.size(); ++i)
            for (const auto& [prefix, t] : {std::pair{"w.", weights[i].second.detach()}, std::pair{"mean.", mean_[i]},
                                            std::pair{"square.", square_[i]}}) {
                kept.push_back(t.contiguous());
                tensors.push_back(tensor_entry(
                    prefix + weights[i].first, t.sizes().vec(),
                    std::span<const float>(kept.back().data_ptr<float>(), static_cast<std::size_t>(t.numel()))));
            }
        for (std::size_t i = 0; i < model_->banks().rings().size(); ++i)
            add_chunk_ring(tensors, about, model_->banks().rings()[i], text("bank.", i, "."));
        about["done"] = text(done_);
        write_safetensors(path, tensors, about);
    }
    /// Goes on where `save` was. Throws Error if the file is damaged or of another backbone, text or options; then
    /// nothing has changed.
    void resume(const std::string& path) {
        const SafeTensors file = SafeTensors::open(path);
        auto about = file.metadata();
        for (const auto& [field, value] : identity())
            if (about[field] != value)
                fail(path, ": ", field, ": expected ", value, " as in this run, got ", in_quotes(about[field]));
        std::int64_t done = -1;
        const std::string& s = about["done"];
        if (std::from_chars(s.data(), s.data() + s.size(), done).ec != std::errc() || done < 0 || done > options_.steps)
            fail(path, ": done: expected 0 to ", options_.steps, " steps, got ", in_quotes(s));
        const auto& weights = model_->side()->weights();
        std::vector<std::pair<at::Tensor, at::Tensor>> copies; // read all, then change anything
        for (std::size_t i = 0; i < weights.size(); ++i)
            for (const auto& [prefix, t] : {std::pair{"w.", weights[i].second.detach()}, std::pair{"mean.", mean_[i]},
                                            std::pair{"square.", square_[i]}}) {
                const std::string name = prefix + weights[i].first;
                auto values = file.values<float>(name);
                if (file.at(name).shape != t.sizes().vec())
                    fail(path, ": ", name, ": expected shape ", shape_text(t.sizes()), ", got ",
                         shape_text(file.at(name).shape));
                copies.emplace_back(t, at::from_blob(values.data(), t.sizes(), at::kFloat).clone());
            }
        std::vector<typename BanksT::Ring> rings;
        for (std::size_t i = 0; i < model_->banks().rings().size(); ++i) {
            rings.push_back(chunk_ring_in<typename BanksT::Element>(file, path, text("bank.", i, ".")));
            if (rings.back().options() != model_->banks().rings()[i].options())
                fail(path, ": bank.", i, ": expected a bank of this run's sizes");
        }
        const at::NoGradGuard no_grad;
        for (const auto& [to, from] : copies) to.copy_(from);
        model_->banks().rings() = std::move(rings);
        done_ = done;
    }

  private:
    at::Tensor tensor(const std::vector<std::int32_t>& ids) const {
        const at::Tensor out = at::empty({batch_.rows, batch_.width}, at::kLong);
        std::copy(ids.begin(), ids.end(), out.data_ptr<std::int64_t>());
        return out;
    }
    void update(const std::vector<at::Tensor>& parameters, const torch::autograd::variable_list& gradients) {
        const at::NoGradGuard no_grad;
        const auto& o = options_;
        const double rate = learning_rate(done_), n = static_cast<double>(done_ + 1);
        const double of_mean = 1 - std::pow(o.beta1, n), of_square = std::sqrt(1 - std::pow(o.beta2, n));
        for (std::size_t i = 0; i < parameters.size(); ++i) {
            if (!gradients[i].defined()) continue;
            mean_[i].mul_(o.beta1).add_(gradients[i], 1 - o.beta1);
            square_[i].mul_(o.beta2).addcmul_(gradients[i], gradients[i], 1 - o.beta2);
            at::Tensor parameter = parameters[i];
            parameter.mul_(1 - rate * o.weight_decay);
            parameter.addcdiv_(mean_[i], square_[i].sqrt().div_(of_square).add_(o.epsilon), -rate / of_mean);
        }
    }
    // What a checkpoint must share with the run that goes on from it.
    std::map<std::string, std::string> identity() const {
        const auto& o = options_;
        const auto& p = passages_->options();
        std::map<std::string, std::string> out{{"backbone", weights_hash(*model_->backbone())},
                                               {"text", Hash64().add(std::as_bytes(passages_->tokens())).text()},
                                               {"k", text(model_->banks().options().k)}};
        for (const auto& [field, value] : {std::pair{"steps", o.steps},
                                           {"warm_up", o.warm_up},
                                           {"padding", std::int64_t{o.padding}},
                                           {"clear_at_end", std::int64_t{o.clear_at_end}},
                                           {"block", p.block},
                                           {"rows", p.rows},
                                           {"workers", p.workers},
                                           {"worker", worker_}})
            out[field] = text(value);
        for (const auto& [field, value] : {std::pair{"learning_rate", o.learning_rate},
                                           {"beta1", o.beta1},
                                           {"beta2", o.beta2},
                                           {"epsilon", o.epsilon},
                                           {"weight_decay", o.weight_decay}})
            out[field] = text(value);
        return out;
    }

    LongMem<BanksT>* model_;
    const Passages* passages_;
    LongMemTraining options_;
    index_t worker_;
    Passages::Batch batch_;
    std::vector<at::Tensor> mean_, square_; // as the side network's weights
    std::int64_t done_ = 0;
};

} // namespace mnemo::nn
