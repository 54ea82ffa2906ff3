// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/error.hpp>

#include <span>
#include <utility>
#include <vector>

namespace mnemo {

/// Queries of which only some are worth a search: `wanted` [rows], 0 or not.
struct SelectedQueries {
    Rows queries;
    std::span<const std::uint8_t> wanted;
};

/// What was found for the rows that were asked for; the others have no hits, so a combiner leaves them to the host.
template <AssociativeRecall R> struct SelectedHits {
    R found{};
    std::vector<index_t> row_of{}; // in `found`; -1: not asked for
    Matrix asked{};                // buffers of the queries

    index_t rows() const { return static_cast<index_t>(row_of.size()); }
    void visit(index_t row, auto&& f) const {
        const index_t at = row_of[static_cast<std::size_t>(row)];
        if (at >= 0) found.visit(at, f);
    }
};

/// Asks `inner` only for the rows that are wanted. Around any retriever of rows whose hits belong to their row alone.
template <class RetrieverT> struct Selected {
    RetrieverT inner;

    template <class S>
        requires RetrieverFor<RetrieverT, S, Rows> && AssociativeRecall<recall_t<RetrieverT, S, Rows>>
    auto retrieve(const S& store, const SelectedQueries& queries) const {
        return retrieve(store, queries, SelectedHits<recall_t<RetrieverT, S, Rows>>{});
    }
    template <class S>
        requires RetrieverFor<RetrieverT, S, Rows> && AssociativeRecall<recall_t<RetrieverT, S, Rows>>
    auto retrieve(const S& store, const SelectedQueries& queries,
                  SelectedHits<recall_t<RetrieverT, S, Rows>> spare) const {
        const Rows rows = queries.queries;
        expect_equal("Selected: wanted", static_cast<index_t>(queries.wanted.size()), rows.rows);
        spare.row_of.assign(queries.wanted.size(), -1);
        spare.asked.rows = 0, spare.asked.cols = rows.cols;
        spare.asked.data.clear();
        for (index_t row = 0; row < rows.rows; ++row) {
            if (queries.wanted[static_cast<std::size_t>(row)] == 0) continue;
            spare.row_of[static_cast<std::size_t>(row)] = spare.asked.rows++;
            spare.asked.data.insert(spare.asked.data.end(), rows[row].begin(), rows[row].end());
        }
        spare.found = retrieve_into(inner, store, Rows(spare.asked), std::move(spare.found));
        return spare;
    }
};

} // namespace mnemo
