// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/kernels/metric.hpp>
#include <mnemo/kernels/visible.hpp>
#include <mnemo/nn/output_layer.hpp>

#include <ATen/ATen.h>

#include <cmath>
#include <limits>
#include <optional>

namespace mnemo::nn {

// One softmax over a vocabulary and memories, on tensors, by whole matrices: every intermediate exists. What
// fused_joint.hpp computes tile by tile is tested against it; gradients of any order, any floating-point type.

/// TargetSums of one source for each row, as logarithms: over all it scores, over what predicts the target. Sources
/// compose by log-add; -inf is a source that has nothing.
struct Sums {
    at::Tensor all, target; // [rows]
};
inline Sums operator+(const Sums& a, const Sums& b) {
    return {at::logaddexp(a.all, b.all), at::logaddexp(a.target, b.target)};
}

/// Where the reference counts what it should not; everything is off by default.
struct VocabularyParity {
    std::optional<std::int64_t> free_target;  // rows with this target cost nothing
    std::optional<std::int64_t> free_in_band; // nor does this id within a band: the first id of a band plus it
};

/// logits [rows, vocab], targets Long [rows].
inline Sums vocabulary_sums(const at::Tensor& logits, const at::Tensor& targets, const VocabularyParity& parity = {}) {
    Sums sums{at::logsumexp(logits, 1), logits.gather(1, targets.unsqueeze(1)).squeeze(1)};
    if (parity.free_target) sums.target = at::where(targets.eq(*parity.free_target), sums.all, sums.target);
    return sums;
}

/// features [rows, D], targets Long [rows]. The probabilities of a band sum to that of its class, so the head alone is
/// the normaliser; a band's logits are computed for the rows whose target it holds.
inline Sums vocabulary_sums(const at::Tensor& features, const OutputLayer& output, const at::Tensor& targets,
                            const VocabularyParity& parity = {}) {
    output.check(features.size(1));
    at::Tensor head = at::linear(features, output.words), column = targets;
    if (!output.bands.empty()) head = at::cat({head, at::linear(features, output.classes)}, 1);
    std::vector<at::Tensor> rows; // of each band
    std::int64_t first = output.words.size(0);
    for (std::size_t i = 0; i < output.bands.size(); ++i) {
        const at::Tensor inside = targets.ge(first).logical_and(targets.lt(first + output.bands[i].embedding.size(0)));
        column = column.masked_fill(inside, output.words.size(0) + static_cast<std::int64_t>(i));
        rows.push_back(at::nonzero(inside).view(-1));
        first += output.bands[i].embedding.size(0);
    }
    Sums sums = vocabulary_sums(head, column);
    first = output.words.size(0);
    for (std::size_t i = 0; i < output.bands.size(); ++i) {
        const auto& [projection, embedding] = output.bands[i];
        const at::Tensor within = targets.index_select(0, rows[i]) - first;
        first += embedding.size(0);
        if (rows[i].size(0) == 0) continue;
        const at::Tensor logits = at::linear(at::linear(features.index_select(0, rows[i]), projection), embedding);
        at::Tensor log_p = at::log_softmax(logits, 1).gather(1, within.unsqueeze(1)).squeeze(1);
        if (parity.free_in_band) log_p = log_p.masked_fill(within.eq(*parity.free_in_band), 0.0);
        sums.target = sums.target.index_add(0, rows[i], log_p);
    }
    if (parity.free_target) sums.target = at::where(targets.eq(*parity.free_target), sums.all, sums.target);
    return sums;
}

/// How entries of a memory are scored: scale * similarity, and which take part.
struct MemoryScoring {
    double scale = 1;                      // 1 / (sqrt(D) * temperature)
    Metric metric = Metric::inner_product; // or l2: the negated squared distance
    std::int64_t top_k = 0;                // only the best of each row, through which gradients flow; 0: all
};

/// Bool [rows, entries] of a visibility. For whole matrices; the fused form never has it.
inline at::Tensor visible_mask(const Visibility& visible, at::Device device) {
    const auto column = [&](auto&& bound) {
        std::vector<std::int64_t> values;
        for (index_t i = 0; i < visible.rows(); ++i) values.push_back(bound(visible[i]));
        return at::tensor(values, at::kLong).to(device).unsqueeze(1);
    };
    const at::Tensor id = at::arange(visible.entries(), at::TensorOptions(at::kLong).device(device)).unsqueeze(0);
    const auto inside = [&](auto&& range) {
        return id.ge(column([&](const VisibleRow& r) { return range(r).first; }))
            .logical_and(id.lt(column([&](const VisibleRow& r) { return range(r).last; })));
    };
    return inside([](const VisibleRow& r) { return r.left; }).logical_or(inside([](const VisibleRow& r) {
        return r.right;
    }));
}

/// Scores [rows, entries] of queries [rows, D] against keys [entries, D]; -inf where invisible.
inline at::Tensor memory_scores(const at::Tensor& queries, const at::Tensor& keys, const Visibility& visible,
                                const MemoryScoring& scoring) {
    at::Tensor similarity = at::mm(queries, keys.t());
    if (scoring.metric == Metric::l2)
        similarity = 2 * similarity - queries.square().sum(1).unsqueeze(1) - keys.square().sum(1).unsqueeze(0);
    else if (scoring.metric != Metric::inner_product)
        fail("memory: expected inner products or squared distances as scores");
    return (similarity * scoring.scale)
        .masked_fill(visible_mask(visible, queries.device()).logical_not(), -std::numeric_limits<double>::infinity());
}

/// Entries with these scores and labels [rows, n] or [n].
inline Sums memory_sums(const at::Tensor& scores, const at::Tensor& labels, const at::Tensor& targets) {
    if (scores.size(1) == 0) {
        const at::Tensor nothing =
            at::full({scores.size(0)}, -std::numeric_limits<double>::infinity(), scores.options());
        return {nothing, nothing};
    }
    const at::Tensor other = (labels.dim() == 1 ? labels.unsqueeze(0) : labels).ne(targets.unsqueeze(1));
    return {at::logsumexp(scores, 1),
            at::logsumexp(scores.masked_fill(other, -std::numeric_limits<double>::infinity()), 1)};
}

/// A batch with its memory. Rows are tokens, without padding.
struct JointInputs {
    at::Tensor features; // [T, D], with `output`; or
    OutputLayer output;
    at::Tensor logits;  // [T, V] instead of both
    at::Tensor targets; // Long [T]
    at::Tensor keys;    // [T, D_k]: the queries, and the entries after `before`; undefined: no memory, cross-entropy
    // Entries of others, which are constants unless others_learn: keys [n, D_k] and labels Long [n] of each block.
    std::vector<at::Tensor> keys_before, labels_before, keys_after, labels_after;
    bool others_learn = false;
    Visibility visible; // T rows; entries are those before, the T of the batch, those after
    MemoryScoring scoring;
    VocabularyParity parity;

    std::int64_t rows() const { return targets.size(0); }
    at::Tensor all_keys() const { return joined(keys_before, keys, keys_after, !others_learn); }
    at::Tensor all_labels() const { return joined(labels_before, targets, labels_after, false); }

    /// Throws Error unless all shapes fit.
    void check() const {
        if (!targets.defined() || targets.dim() != 1 || targets.scalar_type() != at::kLong)
            fail("targets: expected Long [tokens], got ", describe(targets));
        const std::int64_t n = rows();
        const auto matrix = [&](const char* what, const at::Tensor& t, std::int64_t height, std::int64_t width) {
            if (!t.defined() || t.dim() != 2 || t.size(0) != height || (width >= 0 && t.size(1) != width))
                fail(what, ": expected a tensor [", height, ", ", width >= 0 ? text(width) : "any", "], got ",
                     describe(t));
        };
        std::int64_t vocabulary = 0;
        if (logits.defined()) {
            matrix("logits", logits, n, -1);
            vocabulary = logits.size(1);
        } else {
            matrix("features", features, n, -1);
            output.check(features.size(1));
            vocabulary = output.vocab_size();
        }
        if (n > 0 && (targets.min().item<std::int64_t>() < 0 || targets.max().item<std::int64_t>() >= vocabulary))
            fail("targets: expected ids below ", vocabulary, ", got ", targets.min().item<std::int64_t>(), " to ",
                 targets.max().item<std::int64_t>());
        if (!keys.defined()) return;
        matrix("keys", keys, n, -1);
        std::int64_t entries = n;
        const auto others = [&](const char* what, const std::vector<at::Tensor>& k, const std::vector<at::Tensor>& l) {
            expect_equal(what, k.size(), l.size());
            for (std::size_t i = 0; i < k.size(); ++i) {
                if (!l[i].defined() || l[i].dim() != 1 || l[i].scalar_type() != at::kLong)
                    fail(what, ": expected labels Long [entries], got ", describe(l[i]));
                matrix(what, k[i], l[i].size(0), keys.size(1));
                entries += k[i].size(0);
            }
        };
        others("keys before the batch", keys_before, labels_before);
        others("keys after the batch", keys_after, labels_after);
        expect_equal("visibility: rows", visible.rows(), index_t{n});
        expect_equal("visibility: entries", visible.entries(), index_t{entries});
    }

  private:
    static at::Tensor joined(const std::vector<at::Tensor>& before, const at::Tensor& own,
                             const std::vector<at::Tensor>& after, bool constant) {
        std::vector<at::Tensor> parts;
        for (const at::Tensor& t : before) parts.push_back(constant ? t.detach().to(own.options()) : t);
        parts.push_back(own);
        for (const at::Tensor& t : after) parts.push_back(constant ? t.detach().to(own.options()) : t);
        return parts.size() == 1 ? own : at::cat(parts);
    }
};

/// What the plain composition sees on its way.
struct JointTerms {
    Sums vocabulary, memory; // memory is undefined without keys
    at::Tensor token_loss;   // [T], nats: log(all) - log(target) of both together
    at::Tensor top_scores;   // [T, k] with top_k
};
inline JointTerms joint_terms(const JointInputs& in) {
    in.check();
    JointTerms out;
    out.vocabulary = in.logits.defined() ? vocabulary_sums(in.logits, in.targets, in.parity)
                                         : vocabulary_sums(in.features, in.output, in.targets, in.parity);
    Sums sums = out.vocabulary;
    if (in.keys.defined()) {
        at::Tensor scores = memory_scores(in.keys, in.all_keys(), in.visible, in.scoring), labels = in.all_labels();
        if (in.scoring.top_k > 0) {
            const auto best = at::topk(scores, std::min(in.scoring.top_k, scores.size(1)), 1);
            out.top_scores = scores = std::get<0>(best);
            labels = labels.index_select(0, std::get<1>(best).reshape(-1)).view(scores.sizes());
        }
        out.memory = memory_sums(scores, labels, in.targets);
        sums = sums + out.memory;
    }
    out.token_loss = sums.all - sums.target;
    return out;
}

} // namespace mnemo::nn
