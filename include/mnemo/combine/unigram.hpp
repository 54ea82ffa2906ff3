// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/error.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

namespace mnemo {

/// How often each token stands in a memory, whatever is asked: the control that a retriever has to beat.
struct Unigram {
    std::vector<float> log_p; // [vocab], -inf for tokens that do not occur

    /// Counts the entries of `store` that were not erased. Throws Error for tokens outside [0, vocab).
    static Unigram of(const TokenValued auto& store, index_t vocab) {
        std::vector<index_t> counts(static_cast<std::size_t>(vocab));
        const IdSet erased = erased_ids(store);
        index_t total = 0;
        for (index_t id = 0; id < static_cast<index_t>(store.size()); ++id) {
            if (erased.contains(id)) continue;
            const auto token = static_cast<index_t>(store.value(id));
            if (token < 0 || token >= vocab)
                fail("Unigram: value of entry ", id, ": expected a token below ", vocab, ", got ", token);
            ++counts[static_cast<std::size_t>(token)], ++total;
        }
        Unigram out;
        for (const index_t n : counts)
            out.log_p.push_back(static_cast<float>(std::log(static_cast<double>(n) / static_cast<double>(total))));
        return out;
    }

    float log_prob(const auto& /*reading*/, index_t /*row*/, std::int32_t token) const {
        const auto t = static_cast<std::size_t>(token);
        return t < log_p.size() ? log_p[t] : -std::numeric_limits<float>::infinity();
    }
    void log_probs(const auto& /*reading*/, index_t /*row*/, std::span<float> out) const {
        expect_equal("Unigram: vocabulary", out.size(), log_p.size());
        std::copy(log_p.begin(), log_p.end(), out.begin());
    }
};

} // namespace mnemo
