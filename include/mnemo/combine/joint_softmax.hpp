// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/combine/bases.hpp>
#include <mnemo/core/concepts.hpp>
#include <mnemo/core/error.hpp>
#include <mnemo/kernels/log_sum_exp.hpp>

namespace mnemo {

/// What one softmax over several sources (vocabulary, local memory, long-term memory, a datastore) needs of each: the
/// sum over all it scores and the sum over what predicts the target. Sources compose by `add`, in any order, tile by
/// tile; whoever offers these two sums takes part.
struct TargetSums {
    LogSumExp all, target;

    void add(float score, bool is_target) {
        all.add(score);
        if (is_target) target.add(score);
    }
    void add(const TargetSums& other) { all.add(other.all), target.add(other.target); }
    /// log p(target); -inf if nothing predicts it.
    double log_p() const { return target.max == kLogZero ? double{kLogZero} : target.value() - all.value(); }
};

/// Scoring a text by one softmax over the vocabulary and memories: what the vocabulary alone sums to. Combined in
/// place, so that memories are added one after another; log_p is log_target - log_all of what has been added.
struct JointLogProbs {
    std::span<const std::int32_t> targets; // [rows]
    std::span<float> log_all;              // [rows], log of the sum of exp(logit) over the vocabulary
    std::span<float> log_target;           // [rows], the target's logit
    std::span<float> log_p;                // [rows], out
};

/// One softmax over the vocabulary's logits and the scores of recalled entries: entries that predict the target are
/// summed, and the target's logit competes with them (Zhong et al. 2022, equation 2).
struct JointSoftmax {
    float scale = 1; // of scores: 1 / (sqrt(d) * temperature)

    /// Raw logits [rows, vocab], in place: logit_v <- log(exp(logit_v) + sum over entries with value v of
    /// exp(scale * score)), so that a softmax of the result is the joint one.
    template <class Q, AssociativeRecall R, TokenValued S>
    void combine(Logits& base, const Reading<Q, R, S>& reading) const {
        const MutRows rows = base.logits;
        expect_equal("JointSoftmax: rows of logits", rows.rows, static_cast<index_t>(reading.recall.rows()));
        for (index_t i = 0; i < rows.rows; ++i)
            for_each_hit(reading.recall, i, [&](index_t id, float score) {
                const auto token = static_cast<index_t>(reading.store.value(id));
                if (token < 0 || token >= rows.cols)
                    fail("JointSoftmax: expected tokens below ", rows.cols, ", the memory's store has ", token);
                float& logit = rows[i][static_cast<std::size_t>(token)];
                logit = static_cast<float>(log_add(double{logit}, double{scale} * double{score}));
            });
    }

    template <class Q, AssociativeRecall R, TokenValued S>
    void combine(JointLogProbs& base, const Reading<Q, R, S>& reading) const {
        const auto rows = static_cast<std::size_t>(reading.recall.rows());
        if (base.targets.size() != rows || base.log_all.size() != rows || base.log_target.size() != rows ||
            base.log_p.size() != rows)
            fail("JointSoftmax: expected targets, sums and log-probabilities of ", rows, " rows, got ",
                 base.targets.size(), ", ", base.log_all.size(), ", ", base.log_target.size(), " and ",
                 base.log_p.size());
        for (std::size_t i = 0; i < rows; ++i) {
            TargetSums sums{{base.log_all[i], 1}, {base.log_target[i], 1}};
            reading.recall.visit(static_cast<index_t>(i), [&](const Ids auto& ids, std::span<const float> scores) {
                for (std::size_t j = 0; j < scores.size(); ++j)
                    sums.add(scale * scores[j], reading.store.value(static_cast<index_t>(ids[j])) == base.targets[i]);
            });
            base.log_all[i] = static_cast<float>(sums.all.value());
            base.log_target[i] = static_cast<float>(sums.target.value());
            base.log_p[i] = static_cast<float>(sums.log_p());
        }
    }
};

/// A joint softmax over all memories, then a share of what the second of two memories says alone:
///     p = (1 - lambda) p_joint + lambda p_second,   p_second = softmax of score / temperature
/// over the entries of the second (Zhong et al. 2022, section 4.3: the datastore). Both come from one search. A row for
/// which it found nothing keeps p_joint.
struct JointThenMix {
    JointSoftmax joint{};
    float lambda = 0;
    float temperature = 1;

    template <class Q, AssociativeRecall A, AssociativeRecall B, TokenValued S>
    void combine(JointLogProbs& base, const Reading<Q, JoinedHits<A, B>, S>& reading) const {
        joint.combine(base, reading);
        if (!(lambda >= 0 && lambda <= 1)) fail("JointThenMix: lambda: expected a weight in [0, 1], got ", lambda);
        if (lambda == 0) return;
        for (std::size_t i = 0; i < base.targets.size(); ++i) {
            TargetSums alone;
            for_each_hit(reading.recall.second, static_cast<index_t>(i), [&](index_t id, float score) {
                alone.add(score / temperature, reading.store.value(reading.recall.offset + id) == base.targets[i]);
            });
            if (alone.all.max == kLogZero) continue;
            base.log_p[i] = static_cast<float>(
                log_add(std::log1p(-double{lambda}) + double{base.log_p[i]}, std::log(double{lambda}) + alone.log_p()));
        }
    }
};

} // namespace mnemo
