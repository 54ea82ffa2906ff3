// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/error.hpp>
#include <mnemo/kernels/score.hpp>

#include <algorithm>
#include <vector>

namespace mnemo {

/// Every entry of the store for every query, in the order of the store: what a softmax over a whole memory needs. No
/// entry is left out, so it takes no store with erased ones.
template <MetricTag MetricT> struct Everything {
    DenseHits retrieve(const KeyedStore auto& store, Rows queries, DenseHits spare = {}) const {
        spare.visible.assign(static_cast<std::size_t>(queries.rows), {index_t{0}, index_t{store.size()}});
        return scored(store, queries, std::move(spare));
    }

    /// All scores [queries, size of the store].
    static DenseHits scored(const KeyedStore auto& store, Rows queries, DenseHits spare) {
        const KeyRows keys = store.keys();
        expect_equal("dense memory: width of the queries", queries.cols, keys.cols);
        if (!erased_ids(store).words.empty()) fail("dense memory: expected a store without erased entries");
        spare.scores.rows = queries.rows, spare.scores.cols = keys.rows;
        spare.scores.data.resize(static_cast<std::size_t>(queries.rows * keys.rows));
        score_rows<MetricT>(queries, keys, {spare.scores.data.data(), queries.rows, keys.rows});
        return spare;
    }
};
static_assert(Retriever<Everything<InnerProduct>>);

/// What went before: the queries are the store's newest entries, oldest first, and each sees those before itself.
template <MetricTag MetricT> struct Earlier {
    DenseHits retrieve(const KeyedStore auto& store, Rows queries, DenseHits spare = {}) const {
        const index_t first = store.size() - queries.rows;
        if (first < 0)
            fail("Earlier: expected at most ", store.size(), " queries, the newest entries of the store, got ",
                 queries.rows);
        spare.visible.clear();
        for (index_t row = 0; row < queries.rows; ++row) spare.visible.emplace_back(index_t{0}, first + row);
        return Everything<MetricT>::scored(store, queries, std::move(spare));
    }
};
static_assert(Retriever<Earlier<InnerProduct>>);

} // namespace mnemo
