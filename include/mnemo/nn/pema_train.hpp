// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/nn/pema_adapter.hpp>

#include <ATen/ops/linalg_eigh.h>
#include <ATen/ops/linalg_solve.h>
#include <ATen/ops/native_layer_norm.h>
#include <ATen/ops/native_layer_norm_backward.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>

namespace mnemo::nn {

/// Which objective is trained; the reference's --method stands behind each.
enum class PemaPhase {
    reconstruct, // 1: A and lora_B_rct by the reconstruction
    joint,       // 3: A and lora_B by both terms; lora_B_rct stays
    predict      // 2: A and lora_B by the prediction alone
};
constexpr std::string_view name(PemaPhase p) {
    return p == PemaPhase::reconstruct ? "reconstruct" : p == PemaPhase::joint ? "joint" : "predict";
}

struct PemaTrainOptions {
    PemaPhase phase = PemaPhase::joint;
    double kappa = pema_knobs::kappa;
    std::int64_t epochs = pema_knobs::epochs;
    std::int64_t batch = pema_knobs::joint_batch; // rows a step, in the memory's order; the last batch is kept
    double learning_rate = pema_knobs::learning_rate;
    double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8; // Adam
    std::int64_t validate_every = pema_knobs::validate_every;
    /// The reference leaves the module in evaluation mode after a validation until the next epoch begins: no dropout.
    bool no_dropout_after_validation = false;
    std::uint64_t seed = 1;            // of the dropout
    std::int64_t rows_at_a_time = 256; // of a batch whose logits exist
};

/// The file name of a checkpoint as the reference has it, without ".pt": the loss is rounded to three places.
inline std::string pema_checkpoint_name(PemaPhase phase, std::int64_t step, double loss) {
    char rounded[32];
    std::snprintf(rounded, sizeof rounded, "%.3f", loss);
    std::string digits = rounded;
    while (digits.back() == '0' && digits[digits.size() - 2] != '.') digits.pop_back();
    if (phase == PemaPhase::predict) return digits + "_loss";
    return text(phase == PemaPhase::joint ? "rct_cls_" : "rct_", step, "_step_", digits, "_loss");
}

/// Losses of one batch.
struct PemaLosses {
    double reconstruction = 0, prediction = 0;
    double total(PemaPhase phase, double kappa) const {
        return phase == PemaPhase::reconstruct ? reconstruction
               : phase == PemaPhase::predict   ? prediction
                                               : kappa * reconstruction + (1 - kappa) * prediction;
    }
};

/// The rows of a memory as training wants them: float32 rows that lie in memory (mapped files, TokenStore<float>) are
/// used where they are, others are widened a batch at a time.
template <KeyedStore S> class PemaRows {
  public:
    explicit PemaRows(const S& store) : store_(&store) {}
    index_t size() const { return store_->size(); }
    /// [n, d]; valid until the next call.
    at::Tensor keys(index_t first, index_t n) {
        const KeyRows rows = store_->keys();
        if (rows.type == KeyType::float32 && rows.stride == rows.cols) {
            const float* data = static_cast<const float*>(rows.data) + first * rows.stride;
            return at::from_blob(const_cast<float*>(data), {n, rows.cols}, at::kFloat); // only read
        }
        const at::Tensor wide = at::empty({n, rows.cols}, at::kFloat);
        for (index_t i = 0; i < n; ++i) rows.read(first + i, as_mut_rows(wide)[i]);
        return wide;
    }
    std::span<const std::int32_t> values(index_t first, index_t n) {
        values_.resize(static_cast<std::size_t>(n));
        for (index_t i = 0; i < n; ++i)
            values_[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(store_->value(first + i));
        return values_;
    }

  private:
    const S* store_;
    std::vector<std::int32_t> values_;
};

/// Gradients of a step by hand: no graph, no product that nobody uses, and a piece of the batch at a time, so that
/// beyond the gradients nothing grows with the batch. Everything is Float on the CPU.
class PemaGradients {
  public:
    PemaGradients(const PemaAdapter& adapter, const FrozenHead* head)
        : adapter_(adapter), head_(head), a(at::zeros_like(adapter->lora_A)), b(at::zeros_like(adapter->lora_B)) {}

    /// What the input is multiplied with, elementwise, in rows [first, first + rows): undefined for 1. `draw` 0 is the
    /// prediction's (phase 1: the reconstruction's), 1 the reconstruction's in joint training.
    using Dropout = std::function<void(int draw, index_t first, const at::Tensor& c, at::Tensor& out)>;

    /// Losses of c [n, d] and targets [n], and with `train` the gradients of the total into `a` and `b` (lora_B_rct's
    /// in phase 1, else lora_B's).
    PemaLosses compute(const PemaTrainOptions& o, const at::Tensor& c, std::span<const std::int32_t> targets,
                       bool train, const Dropout& dropout) {
        const at::NoGradGuard no_grad;
        const double s = adapter_->options().scale(), n = static_cast<double>(c.size(0)),
                     d = static_cast<double>(c.size(1));
        if (train) a.zero_(), b.zero_();
        PemaLosses losses;
        const bool predicts = o.phase != PemaPhase::reconstruct;
        const std::int64_t step = predicts ? std::max<std::int64_t>(o.rows_at_a_time, 1) : kRows;
        for (std::int64_t first = 0; first < c.size(0); first += step) {
            const std::int64_t rows = std::min(step, c.size(0) - first);
            const at::Tensor in = c.narrow(0, first, rows);
            if (predicts)
                losses.prediction +=
                    predict(o, in, targets.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(rows)),
                            first, n, s, train, dropout);
            if (o.phase != PemaPhase::predict)
                losses.reconstruction += reconstruct(o, in, first, n * d, s, train, dropout);
        }
        losses.reconstruction /= n * d, losses.prediction /= n;
        return losses;
    }

  private:
    static constexpr std::int64_t kRows = 512;

    // A buffer of an earlier piece, or a new one.
    at::Tensor& room(std::size_t which, std::int64_t rows, std::int64_t cols) {
        at::Tensor& t = rooms_[which];
        if (!t.defined() || t.size(0) < rows || t.size(1) != cols) t = at::empty({rows, cols}, at::kFloat);
        views_[which] = t.narrow(0, 0, rows);
        return views_[which];
    }
    at::Tensor dropped(const Dropout& dropout, int draw, index_t first, const at::Tensor& c) {
        if (!dropout) return c;
        at::Tensor& out = room(0, c.size(0), c.size(1));
        dropout(draw, first, c, out);
        return out;
    }
    // Sum of squares of the reconstruction's error; its gradients are those of weight * sum / (n d).
    double reconstruct(const PemaTrainOptions& o, const at::Tensor& c, index_t first, double elements, double s,
                       bool train, const Dropout& dropout) {
        const bool alone = o.phase == PemaPhase::reconstruct;
        const double weight = (alone ? 1 : o.kappa) * 2 / elements * s;
        const at::Tensor x = dropped(dropout, alone ? 0 : 1, first, c);
        at::Tensor& u = room(1, c.size(0), adapter_->lora_A.size(0));
        at::mm_out(u, x, adapter_->lora_A.t());
        at::Tensor& error = room(2, c.size(0), c.size(1));
        at::mm_out(error, u, adapter_->lora_B_rct.t());
        const double squares = subtract(c, error, static_cast<float>(s));
        if (!train) return squares;
        if (alone) b.addmm_(error.t(), u, 1, weight);
        at::Tensor& by_u = room(3, c.size(0), u.size(1));
        at::mm_out(by_u, error, adapter_->lora_B_rct);
        a.addmm_(by_u.t(), x, 1, weight);
        return squares;
    }
    double predict(const PemaTrainOptions& o, const at::Tensor& c, std::span<const std::int32_t> targets, index_t first,
                   double n, double s, bool train, const Dropout& dropout) {
        const double weight = o.phase == PemaPhase::predict ? 1 : 1 - o.kappa;
        const at::Tensor x = dropped(dropout, 0, first, c);
        at::Tensor& u = room(1, c.size(0), adapter_->lora_A.size(0));
        at::mm_out(u, x, adapter_->lora_A.t());
        at::Tensor& y = room(2, c.size(0), c.size(1));
        at::mm_out(y, u, adapter_->lora_B.t()), y.mul_(s);
        at::Tensor h = y, mean, rstd;
        const bool normed = head_->norm_weight.defined();
        const at::IntArrayRef shape(&widths_[0], 1);
        widths_[0] = c.size(1);
        if (normed)
            std::tie(h, mean, rstd) =
                at::native_layer_norm(y, shape, head_->norm_weight, head_->norm_bias, head_->epsilon);
        if (!train) return head_loss(*head_, h, targets, {}, 1, o.rows_at_a_time, &buffers_);
        at::Tensor& by_h = room(4, c.size(0), c.size(1));
        const double loss = head_loss(*head_, h, targets, by_h, weight * s / n, o.rows_at_a_time, &buffers_);
        at::Tensor by_y = by_h;
        if (normed)
            by_y = std::get<0>(at::native_layer_norm_backward(by_h, y, shape, mean, rstd, head_->norm_weight,
                                                              head_->norm_bias, {true, false, false}));
        b.addmm_(by_y.t(), u);
        at::Tensor& by_u = room(3, c.size(0), u.size(1));
        at::mm_out(by_u, by_y, adapter_->lora_B);
        a.addmm_(by_u.t(), x);
        return loss;
    }
    // y <- scale * y - c; the sum of its squares, in one pass.
    static double subtract(const at::Tensor& c, const at::Tensor& y, float scale) {
        const Rows from = as_rows(c);
        const MutRows to = as_mut_rows(y);
        double total = 0;
        for (index_t i = 0; i < to.rows; ++i) {
            const std::span<const float> x = from[i];
            const std::span<float> out = to[i];
            float lanes[16] = {};
            std::size_t j = 0;
            for (; j + 16 <= out.size(); j += 16)
                for (std::size_t l = 0; l < 16; ++l) {
                    const float e = scale * out[j + l] - x[j + l];
                    out[j + l] = e, lanes[l] += e * e;
                }
            for (; j < out.size(); ++j) out[j] = scale * out[j] - x[j], lanes[0] += out[j] * out[j];
            for (const float l : lanes) total += double{l};
        }
        return total;
    }

    PemaAdapter adapter_;
    const FrozenHead* head_;
    std::array<at::Tensor, 5> rooms_, views_;
    HeadLossBuffers buffers_;
    std::array<std::int64_t, 1> widths_{};

  public:
    at::Tensor a, b;
};

/// Adam (Kingma and Ba 2015) as torch.optim.Adam computes it, without weight decay.
struct AdamMoments {
    at::Tensor mean, square; // Float, like the weights

    explicit AdamMoments(const at::Tensor& weights) : mean(at::zeros_like(weights)), square(at::zeros_like(weights)) {}
    /// Step `n`, counted from 1.
    void step(const at::Tensor& weights, const at::Tensor& gradient, const PemaTrainOptions& o, std::int64_t n) {
        const double of_mean = 1 - std::pow(o.beta1, static_cast<double>(n)),
                     of_square = 1 - std::pow(o.beta2, static_cast<double>(n));
        const auto rate = static_cast<float>(o.learning_rate / of_mean),
                   root = static_cast<float>(std::sqrt(of_square)), b1 = static_cast<float>(o.beta1),
                   b2 = static_cast<float>(o.beta2), rest1 = static_cast<float>(1 - o.beta1),
                   rest2 = static_cast<float>(1 - o.beta2), epsilon = static_cast<float>(o.epsilon);
        float *const w = weights.data_ptr<float>(), *const m = mean.data_ptr<float>(),
                     *const v = square.data_ptr<float>();
        const float* const g = gradient.data_ptr<float>();
        for (std::int64_t i = 0; i < weights.numel(); ++i) {
            m[i] = b1 * m[i] + rest1 * g[i];
            v[i] = b2 * v[i] + rest2 * g[i] * g[i];
            w[i] -= rate * m[i] / (std::sqrt(v[i]) / root + epsilon);
        }
    }
};

/// Inverted dropout whose draws depend on their place alone, so that a run is resumed without a generator's state.
inline void counted_dropout(double p, std::uint64_t key, const at::Tensor& c, index_t first_row,
                            const at::Tensor& out) {
    const Rows from = as_rows(c);
    const MutRows to = as_mut_rows(out);
    const auto keep = static_cast<float>(1 / (1 - p));
    const auto limit = static_cast<std::uint32_t>(std::lround(p * 65536)); // of 16 bits a draw
    for (index_t i = 0; i < from.rows; ++i) {
        const std::span<const float> x = from[i];
        const std::span<float> y = to[i];
        std::uint64_t counter = key + static_cast<std::uint64_t>(first_row + i) * 0x9e3779b97f4a7c15u;
        for (std::size_t j = 0; j < x.size(); j += 4) {
            std::uint64_t r = counter += 0x9e3779b97f4a7c15u; // splitmix64
            r = (r ^ (r >> 30)) * 0xbf58476d1ce4e5b9u;
            r = (r ^ (r >> 27)) * 0x94d049bb133111ebu;
            r ^= r >> 31;
            for (std::size_t l = j; l < std::min(j + 4, x.size()); ++l, r >>= 16)
                y[l] = (r & 0xffff) < limit ? 0.0f : x[l] * keep;
        }
    }
}

/// Trains an adapter on a memory (keys: states, values: tokens), which it reads in order and never searches.
///
///     PemaTrainer trainer(adapter, head, memory, &held_out, {.phase = PemaPhase::joint});
///     trainer.run([](const PemaTrainer<Datastore>::Progress& p) { return true; });
///
/// Every validate_every steps the held-out memory is scored without dropout; training ends when the sum of its batches'
/// losses is above both of the two before. The weights of the best validation are kept. A run that is saved and resumed
/// gives the same adapter, bit for bit. Memories must outlive the trainer.
template <KeyedStore S> class PemaTrainer {
  public:
    struct Progress {
        std::int64_t step = 0, steps = 0; // done, and how many there are at most
        PemaLosses losses;                // of the step
        std::optional<double> validation; // mean of the held-out batches' losses, when they were computed
    };

    PemaTrainer(PemaAdapter adapter, FrozenHead head, const S& memory, const S* held_out, PemaTrainOptions options)
        : adapter_(std::move(adapter)), head_(std::move(head)), options_(options), train_(memory),
          gradients_(adapter_, &head_), moments_{AdamMoments(adapter_->lora_A), AdamMoments(adapter_->lora_B)} {
        if (held_out != nullptr) held_out_.emplace(*held_out);
        const auto& o = options_;
        if (o.batch < 1) fail("training, batch: expected at least 1, got ", o.batch);
        if (o.epochs < 1) fail("training, epochs: expected at least 1, got ", o.epochs);
        if (o.validate_every < 1) fail("training, validate_every: expected at least 1, got ", o.validate_every);
        if (!(o.kappa >= 0 && o.kappa <= 1)) fail("training, kappa: expected [0, 1], got ", o.kappa);
        if (memory.size() < 1) fail("training: expected a memory with entries, got an empty one");
        for (const S* s : {&memory, held_out})
            if (s != nullptr)
                expect_equal<index_t>("training: width of the memory's keys", s->key_dim(), adapter_->options().dim());
        if (o.phase != PemaPhase::reconstruct) head_.check(adapter_->options().dim());
        for (const at::Tensor& p : adapter_->parameters())
            if (p.scalar_type() != at::kFloat || !p.device().is_cpu() || !p.is_contiguous())
                fail("training: expected contiguous Float parameters on cpu, got ", describe(p));
    }

    std::int64_t steps_in_epoch() const { return (train_.size() + options_.batch - 1) / options_.batch; }
    std::int64_t steps() const { return steps_in_epoch() * options_.epochs; }
    std::int64_t done() const { return done_; }
    bool finished() const { return stopped_ || done_ >= steps(); }
    const PemaAdapter& adapter() const { return adapter_; }

    /// One step, and the validation behind it where one is due.
    Progress step() {
        if (finished()) fail("training: it has ended after ", done_, " steps");
        const std::int64_t in_epoch = done_ % steps_in_epoch(), first = in_epoch * options_.batch;
        if (in_epoch == 0) dropout_on_ = true;
        const index_t n = std::min<index_t>(options_.batch, train_.size() - first);
        const bool drops = dropout_on_ && adapter_->options().dropout() > 0;
        const std::uint64_t key =
            options_.seed * 0xd1342543de82ef95u + static_cast<std::uint64_t>(done_) * 0xaf251af3b0f025b5u;
        const auto dropout = [&](int draw, index_t row, const at::Tensor& c, at::Tensor& out) {
            counted_dropout(adapter_->options().dropout(), key + static_cast<std::uint64_t>(draw) * 0x2545f4914f6cdd1du,
                            c, row, out);
        };
        Progress p;
        p.losses = gradients_.compute(options_, train_.keys(first, n), targets(train_, first, n), true,
                                      drops ? PemaGradients::Dropout(dropout) : PemaGradients::Dropout());
        if (!std::isfinite(p.losses.total(options_.phase, options_.kappa)))
            fail("training, step ", done_, ": the loss is not finite; lower the learning rate");
        update();
        p.steps = steps(), p.step = done_;
        const std::int64_t step = done_ - 1; // as the reference counts
        if (held_out_ && step % options_.validate_every == 0 && (step != 0 || options_.phase != PemaPhase::joint))
            p.validation = validate(step);
        return p;
    }
    /// Steps until training has ended or `report(Progress)` says false; true if it has ended. The adapter is then in
    /// evaluation mode, with its newest weights: see restore_best.
    template <class Report> bool run(Report&& report) {
        bool go_on = true;
        while (!finished() && go_on) go_on = report(step());
        adapter_->eval();
        return finished();
    }

    /// Adam's step on the gradients of the last compute; for drivers of their own.
    void update() {
        const at::NoGradGuard no_grad;
        ++done_;
        moments_[0].step(adapter_->lora_A, gradients_.a, options_, done_);
        moments_[1].step(trained_b(), gradients_.b, options_, done_);
    }
    PemaGradients& gradients() { return gradients_; }
    const std::array<AdamMoments, 2>& moments() const { return moments_; } // of A and of the trained B

    /// Mean over the batches of their mean loss, without dropout.
    double mean_loss(PemaRows<S>& rows) { return sum_of_losses(rows) / static_cast<double>(batches(rows)); }
    double mean_loss(const S& memory) {
        PemaRows<S> rows(memory);
        return mean_loss(rows);
    }
    double best_validation() const { return best_; }
    /// Puts the weights of the best validation back.
    void restore_best() {
        if (!best_a_.defined()) return;
        const at::NoGradGuard no_grad;
        adapter_->lora_A.copy_(best_a_);
        trained_b().copy_(best_b_);
    }

    /// Writes weights, moments and position to one file, at once.
    void save(const std::string& path) const {
        std::vector<Entry> entries;
        const auto add = [&](const std::string& name, const at::Tensor& t) {
            entries.push_back(
                tensor_entry(name, t.sizes().vec(),
                             std::span<const float>(t.data_ptr<float>(), static_cast<std::size_t>(t.numel()))));
        };
        for (const auto& [name, tensor] : tensors()) add(name, tensor);
        if (best_a_.defined()) add("best.A", best_a_), add("best.B", best_b_);
        auto about = identity();
        about["done"] = text(done_), about["stopped"] = stopped_ ? "1" : "0",
        about["dropout_on"] = dropout_on_ ? "1" : "0";
        about["sums"] = exact(sums_[0]) + " " + exact(sums_[1]) + " " + exact(best_);
        write_safetensors(path, entries, about);
    }
    /// Goes on where `save` was. Throws Error if the file is damaged or of another run; then nothing has changed.
    void resume(const std::string& path) {
        const SafeTensors file = SafeTensors::open(path);
        auto about = file.metadata();
        for (const auto& [field, value] : identity())
            if (about[field] != value)
                fail(path, ": ", field, ": expected ", value, " as in this run, got ", in_quotes(about[field]));
        std::int64_t done = -1;
        const std::string& s = about["done"];
        if (std::from_chars(s.data(), s.data() + s.size(), done).ec != std::errc() || done < 0 || done > steps())
            fail(path, ": done: expected 0 to ", steps(), " steps, got ", in_quotes(s));
        double numbers[3];
        const char* at_number = about["sums"].c_str();
        for (double& x : numbers) {
            char* end = nullptr;
            x = std::strtod(at_number, &end);
            if (end == at_number) fail(path, ": sums: expected three numbers, got ", in_quotes(about["sums"]));
            at_number = end;
        }
        std::vector<std::pair<at::Tensor, std::vector<float>>> loaded;
        const auto read = [&](const std::string& name, const at::Tensor& into) {
            if (file.at(name).shape != into.sizes().vec()) fail(path, ": ", name, ": the shape is another run's");
            loaded.emplace_back(into, file.values<float>(name));
        };
        for (const auto& [name, tensor] : tensors()) read(name, tensor);
        at::Tensor best_a, best_b;
        if (file.find("best.A") != nullptr) {
            best_a = at::empty_like(adapter_->lora_A), best_b = at::empty_like(adapter_->lora_B);
            read("best.A", best_a), read("best.B", best_b);
        }
        const at::NoGradGuard no_grad;
        for (const auto& [tensor, values] : loaded)
            std::copy(values.begin(), values.end(), tensor.template data_ptr<float>());
        best_a_ = best_a, best_b_ = best_b;
        done_ = done, stopped_ = about["stopped"] == "1", dropout_on_ = about["dropout_on"] == "1";
        sums_ = {numbers[0], numbers[1]}, best_ = numbers[2];
    }

  private:
    at::Tensor trained_b() const {
        return options_.phase == PemaPhase::reconstruct ? adapter_->lora_B_rct : adapter_->lora_B;
    }
    std::span<const std::int32_t> targets(PemaRows<S>& rows, index_t first, index_t n) const {
        return options_.phase == PemaPhase::reconstruct ? std::span<const std::int32_t>() : rows.values(first, n);
    }
    std::int64_t batches(const PemaRows<S>& rows) const { return (rows.size() + options_.batch - 1) / options_.batch; }
    double sum_of_losses(PemaRows<S>& rows) {
        double sum = 0;
        for (index_t first = 0; first < rows.size(); first += options_.batch) {
            const index_t n = std::min<index_t>(options_.batch, rows.size() - first);
            sum += gradients_.compute(options_, rows.keys(first, n), targets(rows, first, n), false, {})
                       .total(options_.phase, options_.kappa);
        }
        return sum;
    }
    double validate(std::int64_t step) {
        const double sum = sum_of_losses(*held_out_), mean = sum / static_cast<double>(batches(*held_out_));
        if (mean < best_)
            best_ = mean, best_a_ = adapter_->lora_A.detach().clone(), best_b_ = trained_b().detach().clone();
        if (step > 1 && sum > sums_[0] && sum > sums_[1]) stopped_ = true;
        sums_ = {sums_[1], sum};
        if (options_.no_dropout_after_validation) dropout_on_ = false;
        return mean;
    }
    // What a run is made of; files of other runs are refused.
    static std::string exact(double x) {
        char buffer[40];
        std::snprintf(buffer, sizeof buffer, "%.17g", x);
        return buffer;
    }
    std::map<std::string, std::string> identity() const {
        const auto& o = options_;
        return {{"format", "mnemo-adapter-training"},
                {"version", "1"},
                {"phase", std::string(name(o.phase))},
                {"rows", text(train_.size())},
                {"held_out", text(held_out_ ? held_out_->size() : 0)},
                {"options", exact(o.kappa) + " " + text(o.epochs, " ", o.batch, " ") + exact(o.learning_rate) + " " +
                                exact(o.beta1) + " " + exact(o.beta2) + " " + exact(o.epsilon) + " " +
                                text(o.validate_every, " ", o.no_dropout_after_validation ? 1 : 0, " ", o.seed, " ") +
                                exact(adapter_->options().scale()) + " " + exact(adapter_->options().dropout())}};
    }
    std::vector<std::pair<std::string, at::Tensor>> tensors() const {
        return {{"lora_A", adapter_->lora_A.detach()},
                {"lora_B", adapter_->lora_B.detach()},
                {"lora_B_rct", adapter_->lora_B_rct.detach()},
                {"mean.A", moments_[0].mean},
                {"mean.B", moments_[1].mean},
                {"square.A", moments_[0].square},
                {"square.B", moments_[1].square}};
    }

    PemaAdapter adapter_;
    FrozenHead head_;
    PemaTrainOptions options_;
    PemaRows<S> train_;
    std::optional<PemaRows<S>> held_out_{};
    PemaGradients gradients_;
    std::array<AdamMoments, 2> moments_;
    std::int64_t done_ = 0;
    bool stopped_ = false, dropout_on_ = true;
    std::array<double, 2> sums_{10000, 10000}; // of the two validations before
    double best_ = std::numeric_limits<double>::infinity();
    at::Tensor best_a_{}, best_b_{};
};

/// Puts the optimum of the reconstruction into lora_A and lora_B_rct, in closed form: one pass over the memory and an
/// eigenproblem of width d instead of epochs of steps.
///
/// With S the mean of c c^T and S_in = S + p / (1 - p) diag(S), p being the dropout, the best map of rank r is
/// U U^T S S_in^-1, where U are the first r eigenvectors of S S_in^-1 S. For p = 0 these are the principal components.
/// A and B share the map's size equally, as they do after training by gradients. Returns the mean squared error that
/// the map leaves without dropout.
template <KeyedStore S>
double reconstruct_in_closed_form(const PemaAdapter& adapter, const S& memory, double dropout,
                                  std::int64_t rows_at_a_time = 4096) {
    if (!(dropout >= 0 && dropout < 1)) fail("closed form, dropout: expected [0, 1), got ", dropout);
    if (memory.size() < 1) fail("closed form: expected a memory with entries, got an empty one");
    const std::int64_t d = adapter->options().dim(), rank = std::min(adapter->options().rank(), d);
    expect_equal<index_t>("closed form: width of the memory's keys", memory.key_dim(), d);
    const at::NoGradGuard no_grad;
    PemaRows<S> rows(memory);
    at::Tensor sum = at::zeros({d, d}, at::kDouble);
    for (index_t first = 0; first < rows.size(); first += rows_at_a_time) {
        const at::Tensor c = rows.keys(first, std::min<index_t>(rows_at_a_time, rows.size() - first));
        sum.add_(at::mm(c.t(), c)); // of a piece in float, of all in double
    }
    const at::Tensor s = (sum + sum.t()) / (2 * static_cast<double>(rows.size()));
    at::Tensor down, up; // [rank, d], [d, rank]
    if (dropout == 0) {
        up = std::get<1>(at::linalg_eigh(s)).narrow(1, d - rank, rank);
        down = up.t();
    } else {
        const at::Tensor variances = s.diagonal() * (dropout / (1 - dropout));
        const double least = 1e-12 * std::max(s.diagonal().max().item<double>(), 1e-30); // columns that are always 0
        const at::Tensor back = at::linalg_solve(s + at::diag(variances + least), s);    // S_in^-1 S
        const at::Tensor product = at::mm(s, back);
        up = std::get<1>(at::linalg_eigh((product + product.t()) / 2)).narrow(1, d - rank, rank);
        down = at::mm(back, up).t(); // U^T S S_in^-1
    }
    const double share = 1 / std::sqrt(std::abs(adapter->options().scale())); // scale * share^2 = 1
    const double sign = adapter->options().scale() < 0 ? -1 : 1;
    adapter->lora_A.zero_(), adapter->lora_B_rct.zero_();
    adapter->lora_A.narrow(0, 0, rank).copy_(down * (share * sign));
    adapter->lora_B_rct.narrow(1, 0, rank).copy_(up * share);
    // E|P c - c|^2 = tr(P S P^T) - 2 tr(P S) + tr(S)
    const at::Tensor ps = at::mm(up, at::mm(down, s));
    const double error =
        (at::mm(ps, down.t()) * up).sum().item<double>() - 2 * ps.trace().item<double>() + s.trace().item<double>();
    return std::max(error, 0.0) / static_cast<double>(d);
}

} // namespace mnemo::nn
