// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/kernels/score.hpp>
#include <mnemo/kernels/select.hpp>

#include <algorithm>
#include <span>
#include <utility>

// Exact scores for what a first pass has left (kernels/filter_bound.hpp).

namespace mnemo {

namespace detail {

// The k best of `c` by exact score stay, in their order and with the lower bounds they had. Bounds the buffer where
// very many keys are too near each other for the filter to tell. Buffers hold c's capacity.
template <MetricTag MetricT, class T>
void cut_exactly(std::span<const float> query, MatrixView<const T> keys, Candidates& c, float* exact,
                 std::span<std::uint64_t> ranks, std::span<std::uint64_t> order) {
    score<MetricT, T>({query.data(), 1, keys.cols}, keys, c.ids, static_cast<index_t>(c.count), exact, 0);
    for (std::size_t i = 0; i < c.count; ++i) order[i] = ranks[i] = rank_key(exact[i], c.ids[i]);
    const auto kth = order.begin() + static_cast<std::ptrdiff_t>(c.k) - 1;
    std::nth_element(order.begin(), kth, order.begin() + static_cast<std::ptrdiff_t>(c.count));
    std::size_t kept = 0;
    for (std::size_t i = 0; i < c.count; ++i)
        if (ranks[i] <= *kth) {
            c.scores[kept] = c.scores[i];
            c.ids[kept++] = c.ids[i];
        }
    c.count = kept;
}

// Exact scores of the likely candidates c[query * stride], or of the others; ids in [first, last) ascend. Keys are read
// a tile at a time, for all queries. cursors [queries].
template <MetricTag MetricT, class T>
void score_candidates(Rows queries, MatrixView<const T> keys, index_t first, index_t last, const Candidates* c,
                      index_t stride, bool others, std::size_t* cursors) {
    constexpr index_t cached = 1 << 20;
    const index_t row_bytes = std::max<index_t>(keys.cols * static_cast<index_t>(sizeof(T)), 1);
    const index_t tile = std::max<index_t>(cached / row_bytes, 64); // a query has some candidates in each
    // Of the next query, so many short rows are fetched meanwhile.
    const std::size_t most = row_bytes <= 512 ? 8 : 0;
    for (index_t q = 0; q < queries.rows; ++q) cursors[q] = others ? c[q * stride].likely : 0;
    for (index_t end = first + tile; end < last + tile; end += tile) {
        // Where a query's candidates in the tile end.
        const auto find_end = [&](index_t q) {
            const Candidates& mine = c[q * stride];
            const std::size_t stop = others ? mine.count : mine.likely;
            std::size_t to = cursors[q];
            for (; to < stop && static_cast<index_t>(mine.ids[to]) < end; ++to)
                if (to - cursors[q] < most) prefetch_row<2>(keys.data + mine.ids[to] * keys.stride, keys.cols);
            return to;
        };
        std::size_t next = queries.rows > 0 ? find_end(0) : 0;
        for (index_t q = 0; q < queries.rows; ++q) {
            const Candidates& mine = c[q * stride];
            const std::size_t from = std::exchange(cursors[q], next), n = next - from;
            if (q + 1 < queries.rows) next = find_end(q + 1);
            if (n > 0)
                score<MetricT, T>(queries.slice(q, 1), keys, mine.ids + from, static_cast<index_t>(n),
                                  mine.scores + from, 0);
        }
    }
}

} // namespace detail

} // namespace mnemo
