// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/kernels/log_sum_exp.hpp>
#include <mnemo/nn/adaptive_input.hpp>
#include <mnemo/nn/output_layer.hpp>

#include <ATen/Parallel.h>

#include <algorithm>

namespace mnemo::nn {

/// log softmax(logits)[target] for each row: logits [n, v], targets Long [n] -> [n]. Without gradients it reads each
/// row once and makes no second matrix.
inline at::Tensor log_prob_of(const at::Tensor& logits, const at::Tensor& targets) {
    if (logits.requires_grad() || !logits.device().is_cpu() || logits.scalar_type() != at::kFloat)
        return at::log_softmax(logits, -1).gather(1, targets.unsqueeze(1)).squeeze(1);
    const at::Tensor rows = logits.contiguous(), ids = targets.contiguous(),
                     out = at::empty(ids.sizes(), rows.options());
    const Rows view = as_rows(rows);
    const auto* id = ids.data_ptr<std::int64_t>();
    auto* log_p = out.data_ptr<float>();
    at::parallel_for(0, view.rows, 16, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i)
            log_p[i] = static_cast<float>(static_cast<double>(view[i][static_cast<std::size_t>(id[i])]) -
                                          log_sum_exp(view[i]));
    });
    return out;
}

struct AdaptiveSoftmaxOptions {
    TORCH_ARG(std::int64_t, vocab_size) = 0;
    TORCH_ARG(std::vector<std::int64_t>, cutoffs);
    TORCH_ARG(std::int64_t, dim) = 0; // width of the states
    TORCH_ARG(double, factor) = 4;
    TORCH_ARG(bool, tie_projections) = false; // only with tied embeddings
};

/// Softmax over a large vocabulary in two steps (Grave et al. 2017): the head decides between the frequent words and
/// the bands of rarer ones, a tail within its band:
///     log p(t) = lsm(head)[t]                                     t in band 0
///              = lsm(head)[c + i - 1] + lsm(tail_i)[t - first_i]  t in band i, c = size of band 0
/// Given an AdaptiveInput its embeddings are the output matrices. As in fairseq, band 0's projection is then not used
/// (a linear map of its own stands in where widths differ), and those of the others are used transposed if
/// `tie_projections`.
class AdaptiveSoftmaxImpl : public torch::nn::Module {
  public:
    explicit AdaptiveSoftmaxImpl(const AdaptiveSoftmaxOptions& options, AdaptiveInput tied = nullptr)
        : options_(options), bands_(options.vocab_size(), options.cutoffs(), options.dim(), options.factor()),
          tied_(!tied.is_empty()) {
        if (tied_) bands_ = tied->bands();
        if (options.tie_projections() && !tied_) fail("tie_adaptive_proj: expected tie_adaptive_weights with it");
        if (options.tie_projections() && tied->options().dim() != options.dim())
            fail("tie_adaptive_proj: expected states of width ", tied->options().dim(), ", got ", options.dim());
        const std::int64_t d = options.dim(), tails = static_cast<std::int64_t>(bands_.size()) - 1;
        if (!tied_) {
            head_ = linear("head", bands_[0].size + tails, d);
        } else {
            head_ = tied->embedding(0);
            if (bands_[0].width != d) word_projection_ = linear("word_projection", bands_[0].width, d);
            classes_ = linear("classes", tails, d);
        }
        for (std::size_t i = 1; i < bands_.size(); ++i) {
            const auto [first, size, width] = bands_[i];
            if (options.tie_projections())
                tails_.push_back({tied->projection(i), tied->embedding(i)});
            else
                tails_.push_back({linear(text("projection_", i), width, d),
                                  tied_ ? tied->embedding(i) : linear(text("tail_", i), size, width)});
        }
    }

    /// states [..., dim] -> [..., size of band 0 + number of tails].
    at::Tensor head_logits(const at::Tensor& states) const {
        if (!tied_) return at::linear(states, head_);
        const at::Tensor words =
            at::linear(word_projection_.defined() ? at::linear(states, word_projection_) : states, head_);
        return at::cat({words, at::linear(states, classes_)}, -1);
    }

    /// states [n, dim], targets [n] -> log p(target) [n]. A tail is computed only for the rows whose target it holds.
    at::Tensor log_prob_target(const at::Tensor& states, const at::Tensor& targets) const {
        at::Tensor column = targets;
        for (std::size_t i = bands_.size() - 1; i > 0; --i) {
            const auto [first, size, width] = bands_[i];
            const at::Tensor inside = targets.ge(first).logical_and(targets.lt(first + size));
            column = column.masked_fill(inside, bands_[0].size + static_cast<std::int64_t>(i) - 1);
        }
        at::Tensor out = log_prob_of(head_logits(states), column);
        for (std::size_t i = 1; i < bands_.size(); ++i) {
            const auto [first, size, width] = bands_[i];
            const at::Tensor rows = at::nonzero(targets.ge(first).logical_and(targets.lt(first + size))).view(-1);
            if (rows.size(0) == 0) continue;
            const at::Tensor within = targets.index_select(0, rows) - first;
            out = out.index_add(0, rows, log_prob_of(tail_logits(i, states.index_select(0, rows)), within));
        }
        return out;
    }

    /// states [..., dim] -> log-probabilities [..., vocab].
    at::Tensor log_prob_all(const at::Tensor& states) const {
        const at::Tensor head = at::log_softmax(head_logits(states), -1);
        std::vector<at::Tensor> parts{head.narrow(-1, 0, bands_[0].size)};
        for (std::size_t i = 1; i < bands_.size(); ++i)
            parts.push_back(at::log_softmax(tail_logits(i, states), -1) +
                            head.narrow(-1, bands_[0].size + static_cast<std::int64_t>(i) - 1, 1));
        return at::cat(parts, -1);
    }

    /// The weights as plain tensors, through which gradients flow. Throws Error if words have a projection of their
    /// own.
    OutputLayer output_layer() const {
        if (word_projection_.defined())
            fail("output layer: expected states as wide as the embeddings of band 0 (", bands_[0].width, "), got ",
                 options_.dim());
        const auto tails = static_cast<std::int64_t>(tails_.size());
        OutputLayer out{tied_ ? head_ : head_.narrow(0, 0, bands_[0].size), {}, {}};
        if (tails > 0) out.classes = tied_ ? classes_ : head_.narrow(0, bands_[0].size, tails);
        for (const Tail& tail : tails_)
            out.bands.push_back({options_.tie_projections() ? tail.projection.t() : tail.projection, tail.words});
        return out;
    }

    /// What is not tied, under fairseq's names.
    void weights(const std::string& prefix, NamedWeights& out) const {
        if (!tied_) {
            out.emplace_back(prefix + "head.weight", head_);
        } else {
            if (word_projection_.defined()) out.emplace_back(prefix + "head.word_proj.0.weight", word_projection_);
            out.emplace_back(prefix + "head.class_proj.weight", classes_);
        }
        for (std::size_t i = 0; i < tails_.size(); ++i) {
            if (!options_.tie_projections())
                out.emplace_back(text(prefix, "tail.", i, ".0.weight"), tails_[i].projection);
            if (!tied_) out.emplace_back(text(prefix, "tail.", i, ".2.weight"), tails_[i].words);
        }
    }
    /// What is tied, under the names that fairseq's own files repeat it by.
    void aliases(const std::string& prefix, NamedWeights& out) const {
        if (!tied_) return;
        out.emplace_back(prefix + (word_projection_.defined() ? "head.word_proj.1.weight" : "head.word_proj.weight"),
                         head_);
        for (std::size_t i = 0; i < tails_.size(); ++i) {
            if (options_.tie_projections())
                out.emplace_back(text(prefix, "tail.", i, ".0.weight"), tails_[i].projection);
            out.emplace_back(text(prefix, "tail.", i, ".2.weight"), tails_[i].words);
        }
    }

  private:
    at::Tensor linear(const std::string& name, std::int64_t out, std::int64_t in) {
        const double bound = std::sqrt(6.0 / static_cast<double>(in + out)); // Xavier
        return register_parameter(name, at::empty({out, in}).uniform_(-bound, bound));
    }
    at::Tensor tail_logits(std::size_t band, const at::Tensor& states) const {
        const Tail& tail = tails_[band - 1];
        const at::Tensor projection = options_.tie_projections() ? tail.projection.t() : tail.projection;
        return at::linear(at::linear(states, projection), tail.words);
    }

    struct Tail {
        at::Tensor projection; // [width, dim], or the tied one [dim, width]
        at::Tensor words;      // [size, width]
    };
    AdaptiveSoftmaxOptions options_;
    AdaptiveBands bands_;
    bool tied_;
    at::Tensor head_;            // [size of band 0 (+ tails if not tied), width]
    at::Tensor word_projection_; // [width, dim], only if tied and the widths differ
    at::Tensor classes_;         // [tails, dim], only if tied
    std::vector<Tail> tails_;
};
TORCH_MODULE(AdaptiveSoftmax);

} // namespace mnemo::nn
