// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/combine/bases.hpp>
#include <mnemo/combine/token_votes.hpp>
#include <mnemo/core/executor.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <iterator>
#include <optional>
#include <span>

namespace mnemo {

/// The same weight for every row.
struct Fixed {
    float lambda = 0.25f;
    float operator()(const auto& /*base*/, index_t /*row*/) const { return lambda; }
};

/// Evidence about one token: `log_prob(reading, row, token)` returns float, or std::optional<float> if a row may have
/// no opinion.
template <class E, class ReadingT>
concept TargetEvidence = requires(const E& e, const ReadingT& m) {
    { e.log_prob(m, index_t{}, std::int32_t{}) } -> std::convertible_to<std::optional<float>>;
};
/// Evidence about few tokens: `votes(reading, row, scratch)`, empty if a row has no opinion.
template <class E, class ReadingT>
concept SparseEvidence = requires(const E& e, const ReadingT& m) {
    { e.votes(m, index_t{}, e.scratch(m)) } -> std::convertible_to<TokenLogProbs>;
};
/// Evidence about every token: `log_probs(reading, row, out)` fills out [vocab]; a head over recalled vectors.
template <class E, class ReadingT>
concept DenseEvidence =
    requires(const E& e, const ReadingT& m, std::span<float> out) { e.log_probs(m, index_t{}, out); };

/// log((1 - lambda) p_host + lambda p_memory). kNN-LM: Interpolate<TokenVotes>, equation 3.
///
/// `lambda(base, row)` gives the weight of a row, so a schedule finds what it needs in the base. A weight of 0 leaves
/// the base bit for bit; a weight of 1 is the memory alone. A row for which the memory has no opinion keeps the base,
/// whatever its weight, so that distributions sum to one. -inf is legal everywhere. Rows are independent: any number of
/// threads gives the same result.
template <class Evidence, class Lambda = Fixed, Executor X = Serial> struct Interpolate {
    Evidence evidence{};
    Lambda lambda{};
    [[no_unique_address]] X executor{};

    /// Scores of targets, in place: `base.targets` and `base.log_p` [rows].
    template <class Base, class ReadingT>
        requires TargetEvidence<Evidence, ReadingT> && requires(Base& b) {
            std::span<const std::int32_t>(b.targets);
            std::span<float>(b.log_p);
        }
    void combine(Base& base, const ReadingT& reading) const {
        const std::span<const std::int32_t> targets(base.targets);
        const std::span<float> log_p(base.log_p);
        const index_t rows = reading.recall.rows();
        expect_equal("TargetLogProbs: targets", static_cast<index_t>(targets.size()), rows);
        expect_equal("TargetLogProbs: log_p", static_cast<index_t>(log_p.size()), rows);
        executor.run((rows + kRowsOfTask - 1) / kRowsOfTask, [&](index_t task, index_t /*thread*/) {
            const index_t end = std::min(rows, (task + 1) * kRowsOfTask);
            for (index_t row = task * kRowsOfTask; row < end; ++row) {
                const float weight = weight_of(base, row);
                if (weight == 0) continue;
                const auto i = static_cast<std::size_t>(row);
                const std::optional<float> memory = evidence.log_prob(reading, row, targets[i]);
                if (memory) log_p[i] = mix(log_p[i], *memory, weight);
            }
        });
    }

    /// Log-probabilities [rows, vocab], in place: MutRows, or a base of one's own with `log_probs`.
    template <class ReadingT>
        requires SparseEvidence<Evidence, ReadingT> || DenseEvidence<Evidence, ReadingT>
    void combine(MutRows& log_probs, const ReadingT& reading) const {
        combine_rows<false>(log_probs, log_probs, reading);
    }
    template <class Base, class ReadingT>
        requires(SparseEvidence<Evidence, ReadingT> || DenseEvidence<Evidence, ReadingT>) &&
                requires(Base& b) { MutRows(b.log_probs); }
    void combine(Base& base, const ReadingT& reading) const {
        combine_rows<false>(base, MutRows(base.log_probs), reading);
    }

    /// Raw logits [rows, vocab], in place: Logits, or a base of one's own with `logits`. One pass over a row for its
    /// log-sum-exp Z; then only the tokens that the memory knows change, up to a constant that a softmax ignores:
    /// logit_v <- log(exp(logit_v) + exp(Z) lambda / (1 - lambda) p_memory(v)).
    template <class Base, class ReadingT>
        requires(SparseEvidence<Evidence, ReadingT> || DenseEvidence<Evidence, ReadingT>) &&
                requires(Base& b) { MutRows(b.logits); }
    void combine(Base& base, const ReadingT& reading) const {
        combine_rows<true>(base, MutRows(base.logits), reading);
    }

    /// The memory's own distributions as lists, with their weights.
    template <class ReadingT>
        requires SparseEvidence<Evidence, ReadingT>
    void combine(SparseLogProbs& out, const ReadingT& reading) const {
        out.offsets.assign(1, 0), out.tokens.clear(), out.log_p.clear(), out.lambda.clear();
        const auto scratch = evidence.scratch(reading);
        for (index_t row = 0; row < reading.recall.rows(); ++row) {
            const TokenLogProbs votes = evidence.votes(reading, row, scratch);
            out.tokens.insert(out.tokens.end(), votes.tokens.begin(), votes.tokens.end());
            out.log_p.insert(out.log_p.end(), votes.log_p.begin(), votes.log_p.end());
            out.offsets.push_back(out.tokens.size());
            out.lambda.push_back(votes.tokens.empty() ? 0.0f : weight_of(out, row));
        }
    }

  private:
    static constexpr index_t kRowsOfTask = 16;

    float weight_of(const auto& base, index_t row) const {
        const float weight = lambda(base, row);
        if (!(weight >= 0 && weight <= 1)) fail("Interpolate: lambda: expected a weight in [0, 1], got ", weight);
        return weight;
    }
    static float mix(float host, float memory, float weight) {
        return weight == 1 ? memory : log_add(std::log1p(-double{weight}) + host, std::log(double{weight}) + memory);
    }

    template <bool kLogits, class Base, class ReadingT>
    void combine_rows(const Base& base, MutRows rows, const ReadingT& reading) const {
        expect_equal("Interpolate: rows of the base", rows.rows, static_cast<index_t>(reading.recall.rows()));
        if constexpr (SparseEvidence<Evidence, ReadingT>) {
            using Scratch = decltype(evidence.scratch(reading));
            const auto scratch = reading.scratch.template take<Scratch>(static_cast<std::size_t>(executor.threads()));
            for (Scratch& s : scratch) s = evidence.scratch(reading);
            executor.run(rows.rows, [&](index_t row, index_t thread) {
                const float weight = weight_of(base, row);
                if (weight == 0) return;
                const TokenLogProbs votes = evidence.votes(reading, row, scratch[static_cast<std::size_t>(thread)]);
                if (!votes.tokens.empty()) patch<kLogits>(rows[row], votes, weight);
            });
        } else {
            const auto vocab = static_cast<std::size_t>(rows.cols);
            const auto scratch =
                reading.scratch.template take<float>(static_cast<std::size_t>(executor.threads()) * vocab);
            executor.run(rows.rows, [&](index_t row, index_t thread) {
                const float weight = weight_of(base, row);
                if (weight == 0) return;
                const auto memory = scratch.subspan(static_cast<std::size_t>(thread) * vocab, vocab);
                evidence.log_probs(reading, row, memory);
                const auto out = rows[row];
                if (weight == 1) return static_cast<void>(std::copy(memory.begin(), memory.end(), out.begin()));
                if (kLogits) log_softmax(out);
                add_each(out, log_rest(weight));
                add_each(memory, std::log(weight));
                log_add_each(out, memory);
            });
        }
    }
    static float log_rest(float weight) { return static_cast<float>(std::log1p(-double{weight})); }

    /// One row and the tokens that the memory voted for; everything else is a constant shift.
    template <bool kLogits> static void patch(std::span<float> row, TokenLogProbs votes, float weight) {
        const auto vocab = static_cast<index_t>(row.size());
        for (const std::int32_t token : votes.tokens)
            if (token >= vocab) fail("Interpolate: expected tokens below ", vocab, ", the memory's store has ", token);
        if (weight == 1) {
            std::fill(row.begin(), row.end(), kLogZero);
            for (std::size_t t = 0; t < votes.tokens.size(); ++t) row[at(votes, t)] = votes.log_p[t];
            return;
        }
        double shift = std::log(double{weight});
        if constexpr (kLogits)
            shift += log_sum_exp(row) - std::log1p(-double{weight});
        else
            add_each(row, log_rest(weight));
        add_each(votes.log_p, static_cast<float>(shift));
        float host[256]; // gathered, so that the logarithms are vectorised
        for (std::size_t first = 0; first < votes.tokens.size(); first += std::size(host)) {
            const std::size_t n = std::min(std::size(host), votes.tokens.size() - first);
            for (std::size_t t = 0; t < n; ++t) host[t] = row[at(votes, first + t)];
            log_add_each(std::span(host, n), votes.log_p.subspan(first, n));
            for (std::size_t t = 0; t < n; ++t) row[at(votes, first + t)] = host[t];
        }
    }
    static std::size_t at(const TokenLogProbs& votes, std::size_t t) {
        return static_cast<std::size_t>(votes.tokens[t]);
    }
};
template <class E> Interpolate(E) -> Interpolate<E>;
template <class E, class L> Interpolate(E, L) -> Interpolate<E, L>;
template <class E, class L, class X> Interpolate(E, L, X) -> Interpolate<E, L, X>;

static_assert(Combiner<Interpolate<TokenVotes>>);
static_assert(CombinerFor<Interpolate<TokenVotes>, TargetLogProbs, Reading<Rows, Hits, archetype::Store>>);
static_assert(CombinerFor<Interpolate<TokenVotes>, Logits, Reading<Rows, Hits, archetype::Store>>);
static_assert(!CombinerFor<Interpolate<TokenVotes>, MutRows, Reading<Rows, Vectors, archetype::Store>>);

} // namespace mnemo
