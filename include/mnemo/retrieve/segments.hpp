// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/error.hpp>

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

namespace mnemo {

/// A store of parts that are searched one by one; row r of part i is row first_row(i) + r of the whole.
template <class S>
concept SegmentedStore = AssociativeStore<S> && requires(const S& s, std::size_t i) {
    { s.segments().size() } -> std::convertible_to<std::size_t>;
    requires AssociativeStore<std::remove_cvref_t<decltype(s.segments()[i])>>;
    { s.first_row(i) } -> std::convertible_to<index_t>;
};

/// The k best of what a retriever finds in each part of a store: best first, ties by lower row. `inner` must look for
/// at least k in each. Fewer hits where there are fewer entries, none in an empty store.
template <class RetrieverT> struct RetrieveSegments {
    RetrieverT inner;
    index_t k = 5;

    Hits retrieve(const SegmentedStore auto& store, Rows queries) const { return retrieve(store, queries, Hits{}); }

    Hits retrieve(const SegmentedStore auto& store, Rows queries, Hits hits) const {
        expect_equal("RetrieveSegments: width of the queries", queries.cols, index_t{store.key_dim()});
        if (k < 0) fail("RetrieveSegments: expected k >= 0, got ", k);
        const auto segments = store.segments();
        using Found = recall_t<RetrieverT, std::remove_cvref_t<decltype(segments[0])>, Rows>;
        std::vector<Found> found;
        found.reserve(segments.size());
        for (const auto& segment : segments) found.push_back(inner.retrieve(segment, queries));

        std::vector<std::pair<float, index_t>> best;
        hits.clear();
        for (index_t q = 0; q < queries.rows; ++q) {
            best.clear();
            for (std::size_t i = 0; i < found.size(); ++i) {
                const index_t first = store.first_row(i);
                for_each_hit(found[i], q, [&](index_t row, float score) { best.emplace_back(score, first + row); });
            }
            const auto keep = static_cast<std::ptrdiff_t>(std::min(static_cast<std::size_t>(k), best.size()));
            std::partial_sort(best.begin(), best.begin() + keep, best.end(), [](const auto& a, const auto& b) {
                return a.first != b.first ? a.first > b.first : a.second < b.second;
            });
            for (std::ptrdiff_t i = 0; i < keep; ++i)
                hits.push(best[static_cast<std::size_t>(i)].second, best[static_cast<std::size_t>(i)].first);
            hits.end_row();
        }
        return hits;
    }
};
template <class R> RetrieveSegments(R, index_t) -> RetrieveSegments<R>;

} // namespace mnemo
