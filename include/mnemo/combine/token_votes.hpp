// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/error.hpp>
#include <mnemo/kernels/log_sum_exp.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <optional>
#include <span>

namespace mnemo {

/// Distinct tokens and their log-probabilities.
struct TokenLogProbs {
    std::span<const std::int32_t> tokens;
    std::span<float> log_p;
};

/// Evidence from recalled entries: a softmax over their scores, in which each votes for its token (kNN-LM, equation 2).
///
///     p(v) = sum over j with value_j = v of exp(score_j / temperature) / sum over all j
///
/// Scores of -inf count for nothing; a row without any other has no opinion. The order of the entries does not matter
/// beyond rounding. Any number of blocks, dense ones included.
struct TokenVotes {
    float temperature = 1;
    /// Least log-probability of one token: a parity switch for kReferenceFloor, log 0 otherwise.
    float floor = kLogZero;
    static constexpr float kReferenceFloor = -10000; // what the kNN-LM reference gives a token that was not recalled

    /// log p(token), without aggregating the votes; nothing if the row has no opinion.
    template <class Q, AssociativeRecall R, TokenValued S>
    std::optional<float> log_prob(const Reading<Q, R, S>& reading, index_t row, std::int32_t token) const {
        const float high = highest(reading.recall, row), scale = inverse_temperature();
        if (high == kLogZero) return std::nullopt;
        double all = 0, same = 0;
        bool found = false;
        reading.recall.visit(row, [&](const Ids auto& ids, std::span<const float> scores) {
            for_each_chunk(scores, high, scale, all, [&](std::size_t j, float weight) {
                if (static_cast<index_t>(reading.store.value(static_cast<index_t>(ids[j]))) != token) return;
                same += static_cast<double>(weight);
                found = true;
            });
        });
        const double log_same = !found         ? double{kLogZero}
                                : same < kTiny ? log_weight(reading, row, token, high, scale)
                                               : std::log(same);
        const double log_p = std::min(0.0, log_same - std::log(all));
        return floor == kLogZero ? static_cast<float>(log_p) : log_add(log_p, double{floor});
    }

    /// Buffers for `votes`: room for the longest row. O(hits), never O(vocab).
    struct Scratch {
        std::span<float> weights;       // a token
        std::span<std::int32_t> tokens; // distinct, in the order of their first vote
        std::span<std::int32_t> slots;  // a hit: where its token is
        std::span<std::int32_t> table;  // hashed token -> slot or -1
    };
    template <class Q, AssociativeRecall R, TokenValued S> Scratch scratch(const Reading<Q, R, S>& reading) const {
        std::size_t most = 0;
        for (index_t row = 0; row < reading.recall.rows(); ++row) most = std::max(most, hits(reading.recall, row));
        Arena& arena = reading.scratch;
        return {arena.take<float>(most), arena.take<std::int32_t>(most), arena.take<std::int32_t>(most),
                arena.take<std::int32_t>(table_size(most))};
    }

    /// The row's distribution over the tokens that were voted for; empty if the row has no opinion. Lives in `scratch`.
    template <class Q, AssociativeRecall R, TokenValued S>
    TokenLogProbs votes(const Reading<Q, R, S>& reading, index_t row, const Scratch& scratch) const {
        const float high = highest(reading.recall, row), scale = inverse_temperature();
        if (high == kLogZero) return {};
        const auto table = scratch.table.first(table_size(hits(reading.recall, row)));
        std::fill(table.begin(), table.end(), -1);
        double all = 0;
        std::size_t tokens = 0, hit = 0;
        reading.recall.visit(row, [&](const Ids auto& ids, std::span<const float> scores) {
            for_each_chunk(scores, high, scale, all, [&](std::size_t j, float weight) {
                const auto token = token_of(reading.store, static_cast<index_t>(ids[j]));
                std::int32_t& slot = find(table, scratch.tokens, token);
                if (slot < 0) {
                    slot = static_cast<std::int32_t>(tokens);
                    scratch.tokens[tokens] = token;
                    scratch.weights[tokens++] = 0;
                }
                scratch.slots[hit++] = slot;
                scratch.weights[static_cast<std::size_t>(slot)] += weight;
            });
        });
        const auto weights = scratch.weights.first(tokens);
        const bool underflow = *std::min_element(weights.begin(), weights.end()) < kTiny;
        log_each(weights);
        if (underflow) // rare: tokens 70 nats below the best keep their exact share
            for (std::size_t t = 0; t < tokens; ++t)
                if (weights[t] < std::log(kTiny))
                    weights[t] = static_cast<float>(log_weight(reading, row, scratch.tokens[t], high, scale));
        add_each(weights, static_cast<float>(-std::log(all)));
        return {scratch.tokens.first(tokens), weights};
    }

  private:
    static constexpr float kTiny = 1e-30f; // below it, sums of float exponentials lose digits
    static constexpr std::size_t kChunk = 512;

    float inverse_temperature() const {
        const float inverse = 1 / temperature;
        if (!(inverse > 0) || std::isinf(inverse))
            fail("TokenVotes: temperature: expected a positive number, got ", temperature);
        return inverse;
    }
    static float highest(const AssociativeRecall auto& recall, index_t row) {
        float high = kLogZero;
        recall.visit(row, [&](const Ids auto&, std::span<const float> s) { high = std::max(high, max_value(s)); });
        return high;
    }
    static std::size_t hits(const AssociativeRecall auto& recall, index_t row) {
        std::size_t n = 0;
        recall.visit(row, [&](const Ids auto&, std::span<const float> scores) { n += scores.size(); });
        return n;
    }
    /// f(j, exp((score_j - high) * scale)) for each score; their sum is added to `all`.
    static void for_each_chunk(std::span<const float> scores, float high, float scale, double& all, auto&& f) {
        float weights[kChunk];
        for (std::size_t i = 0; i < scores.size(); i += kChunk) {
            const auto chunk = scores.subspan(i, std::min(kChunk, scores.size() - i));
            all += exp_sum(chunk, high, scale, std::span(weights, chunk.size()));
            for (std::size_t j = 0; j < chunk.size(); ++j) f(i + j, weights[j]);
        }
    }
    /// log of the sum of exp((score_j - high) * scale) over the votes for `token`, without underflow.
    template <class Q, AssociativeRecall R, TokenValued S>
    static double log_weight(const Reading<Q, R, S>& reading, index_t row, std::int32_t token, float high,
                             float scale) {
        LogSumExp sum;
        for_each_hit(reading.recall, row, [&](index_t id, float score) {
            if (static_cast<index_t>(reading.store.value(id)) == token) sum.add((score - high) * scale);
        });
        return sum.value();
    }
    static std::int32_t token_of(const TokenValued auto& store, index_t id) {
        const auto value = static_cast<index_t>(store.value(id));
        if (value < 0 || value > std::numeric_limits<std::int32_t>::max())
            fail("TokenVotes: value of entry ", id, ": expected a token, got ", value);
        return static_cast<std::int32_t>(value);
    }
    static std::size_t table_size(std::size_t hits) { return std::bit_ceil(2 * hits + 2); } // at most half full
    static std::int32_t& find(std::span<std::int32_t> table, std::span<const std::int32_t> tokens, std::int32_t token) {
        const std::size_t mask = table.size() - 1;
        std::size_t at =
            static_cast<std::uint32_t>(token) * std::uint32_t{2654435769u} >> 8 & mask; // Fibonacci hashing
        while (table[at] >= 0 && tokens[static_cast<std::size_t>(table[at])] != token) at = (at + 1) & mask;
        return table[at];
    }
};

} // namespace mnemo
