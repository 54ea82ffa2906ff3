// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/kernels/filter.hpp>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

namespace mnemo {

#if MNEMO_X86
/// The cheapest format for these keys: one that leaves too many candidates costs more than it saves. Tried on a sample
/// of keys and on up to 8 queries, with that many buffers. Only time depends on the choice.
template <MetricTag MetricT, class T>
FilterFormat choose_format(Filter<MetricT>& filter, Rows queries, MatrixView<const T> keys, const float* centre,
                           std::span<const Candidates> buffers) {
    constexpr std::size_t most_queries = 8, candidates_a_k = 4;
    FilterFormat best = FilterFormat::float32;
    if (!Filter<MetricT>::has_integers()) return best;
    const index_t step = std::max<index_t>(keys.rows / 2048, 1), rows = keys.rows / step;
    const MatrixView<const T> sample(keys.data, rows, keys.cols, keys.stride * step);
    const std::size_t n = std::min({most_queries, static_cast<std::size_t>(queries.rows), buffers.size()});
    const std::size_t k = std::max<std::size_t>(buffers.front().k / static_cast<std::size_t>(step), 1);
    std::array<Candidates, most_queries> c;
    // As float32 would cost: to score one key in 32 again is little beside what integers save.
    std::size_t least = std::max(2 * candidates_a_k * k, static_cast<std::size_t>(rows) / 32) * n;
    for (const FilterFormat format : {FilterFormat::int8, FilterFormat::rotated_int8, FilterFormat::bfloat16}) {
        if (format == FilterFormat::bfloat16 && simd_level() < SimdLevel::avx512_bf16) break;
        for (std::size_t q = 0; q < n; ++q) {
            c[q] = buffers[q];
            c[q].restart();
            c[q].k = k;
        }
        std::size_t found = 0;
        const auto full = [&](index_t q) { found += std::exchange(c[static_cast<std::size_t>(q)].count, 0); };
        if (!filter.use(queries.slice(0, static_cast<index_t>(n)), format, centre) ||
            !filter.scan(sample, {}, 0, rows, c.data(), 1, full))
            break;
        for (std::size_t q = 0; q < n; ++q) {
            c[q].raise(0);
            found += c[q].count;
        }
        if (found < least) least = found, best = format;
        if (found <= candidates_a_k * k * n) break;
    }
    return best;
}
#endif

/// The format for a packed copy of these keys, with some of them as queries: for searches of about a hundredth of all.
template <MetricTag MetricT> FilterFormat packed_format_for([[maybe_unused]] const KeyRows& keys) {
#if MNEMO_X86
    if (keys.rows > 0 && Filter<MetricT>::available(keys.cols) && Filter<MetricT>::has_integers()) {
        constexpr index_t few = 8;
        const auto k = static_cast<std::size_t>(std::max<index_t>(keys.rows / 100, 1));
        Matrix queries(std::min(few, keys.rows), keys.cols);
        for (index_t i = 0; i < queries.rows; ++i) keys.read(i * (keys.rows / queries.rows), queries[i]);
        Arena arena;
        Filter<MetricT> filter(arena, queries.rows, keys.cols);
        std::vector<Candidates> buffers;
        for (index_t i = 0; i < queries.rows; ++i)
            buffers.push_back(Candidates::in(arena, k, static_cast<std::size_t>(keys.rows)));
        std::vector<float> centre(static_cast<std::size_t>(keys.cols));
        const FilterFormat best = keys.visit([&]<class T>(MatrixView<const T> rows) {
            detail::mean_of<MetricT>(rows, std::span<float>(centre));
            return choose_format<MetricT, T>(filter, queries, rows, centre.data(), buffers);
        });
        if (best != FilterFormat::float32) return best;
    }
#endif
    return simd_level() >= SimdLevel::avx512_bf16 ? FilterFormat::bfloat16 : FilterFormat::int8;
}

} // namespace mnemo
