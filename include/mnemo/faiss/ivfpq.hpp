// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/recall.hpp>
#include <mnemo/kernels/score.hpp>
#include <mnemo/kernels/select.hpp>

#include <faiss/IndexIVFPQ.h>
#include <omp.h>

#include <algorithm>
#include <limits>
#include <span>
#include <typeinfo>
#include <utility>

// Searching FAISS's inverted lists of product-quantised residuals. The same codes, tables and sums as FAISS's own
// search, but several codes are summed side by side, so that additions do not wait for each other, and a part of the
// tables at a time, so that it stays in the first-level cache; the k best are collected without a heap.

namespace mnemo::detail {

// Lists of newer FAISS versions that hand out no array of codes.
template <class Lists> bool needs_iterator(const Lists& lists) {
    if constexpr (requires { lists.use_iterator; }) return lists.use_iterator;
    return false;
}

/// The index, if search_ivfpq can search it: 8 bits a code, squared L2, residuals with FAISS's precomputed tables, none
/// of its special modes. Null otherwise, and FAISS searches.
inline const ::faiss::IndexIVFPQ* searchable_ivfpq(const ::faiss::Index& index) {
    if (typeid(index) != typeid(::faiss::IndexIVFPQ)) return nullptr;
    const auto& ivf = static_cast<const ::faiss::IndexIVFPQ&>(index);
    const std::size_t table = ivf.nlist * ivf.pq.M * ivf.pq.ksub;
    const bool plain = ivf.metric_type == ::faiss::METRIC_L2 && ivf.by_residual && ivf.pq.nbits == 8 &&
                       ivf.use_precomputed_table == 1 && ivf.precomputed_table.size() == table &&
                       ivf.polysemous_ht == 0 && ivf.max_codes == 0 && ivf.parallel_mode == 0 &&
                       !needs_iterator(*ivf.invlists) && ivf.ntotal < std::numeric_limits<std::uint32_t>::max();
    return plain ? &ivf : nullptr;
}

// table[i] = of_list[i] - 2 * of_query[i]
inline void combine_tables_plain(const float* of_list, const float* of_query, std::size_t n, float* table) {
    for (std::size_t i = 0; i < n; ++i) table[i] = of_list[i] - 2 * of_query[i]; // the product is exact
}
#if MNEMO_X86
MNEMO_INTRINSICS_BEGIN
MNEMO_AVX2 inline void combine_tables_avx2(const float* of_list, const float* of_query, std::size_t n, float* table) {
    for (std::size_t i = 0; i < n; i += 8) // n is a multiple of 256
        _mm256_storeu_ps(table + i, _mm256_fnmadd_ps(_mm256_set1_ps(2.0f), _mm256_loadu_ps(of_query + i),
                                                     _mm256_loadu_ps(of_list + i)));
}
MNEMO_INTRINSICS_END
#endif
inline void combine_tables(const float* of_list, const float* of_query, std::size_t n, float* table) {
#if MNEMO_X86
    if (simd_level() >= SimdLevel::avx2) return combine_tables_avx2(of_list, of_query, n, table);
#endif
    combine_tables_plain(of_list, of_query, n, table);
}

// sums[c] += table entries of the code at codes + c * stride, bytes [begin, end), for each c of `C`: sums in registers.
template <std::size_t... C>
void sum_together(const std::uint8_t* codes, std::size_t stride, std::size_t begin, std::size_t end, const float* table,
                  float* sums, std::index_sequence<C...>) {
    float sum[] = {sums[C]...};
    for (std::size_t b = begin; b < end; ++b) ((sum[C] += table[b * 256 + codes[C * stride + b]]), ...);
    ((sums[C] = sum[C]), ...);
}

/// sums[i] += table entries of code i, for `n` codes of `width` bytes; table [width, 256]. Each sum adds its terms in
/// the order of the code's bytes.
inline void sum_codes(const std::uint8_t* codes, std::size_t n, std::size_t width, const float* table, float* sums) {
    constexpr std::size_t some_codes = 128, some_bytes = 16, together = 8; // 16 kB of tables, 8 kB of codes
    for (std::size_t first = 0; first < n; first += some_codes) {
        const std::size_t last = std::min(n, first + some_codes);
        for (std::size_t begin = 0; begin < width; begin += some_bytes) {
            const std::size_t end = std::min(width, begin + some_bytes);
            std::size_t i = first;
            for (; i + together <= last; i += together)
                sum_together(codes + i * width, width, begin, end, table, sums + i,
                             std::make_index_sequence<together>());
            for (; i < last; ++i)
                sum_together(codes + i * width, width, begin, end, table, sums + i, std::index_sequence<0>());
        }
    }
}

/// What a thread needs to search for one query.
struct IvfPqScratch {
    std::span<float> of_query, table; // [code bytes, 256]
    std::span<float> scores;          // of the codes in work
    std::span<index_t> starts;        // of the probed lists in the order of visiting
    std::span<index_t> places;        // what was found, counted in that order
    std::span<std::uint64_t> keys;    // for sorting
    Candidates candidates;
};

/// The k nearest by the index's own distances, into the room of `hits`: scores are negated distances, ties go by the
/// order of visiting. Rows get as many hits as their lists hold.
inline void search_ivfpq(const ::faiss::IndexIVFPQ& index, Rows queries, std::size_t k, Hits& hits) {
    constexpr std::size_t piece = 1024; // codes
    static_assert(piece % Candidates::kSlack == 0);
    const std::size_t probes = std::min(index.nprobe, index.nlist), width = index.pq.M, table = width * 256;
    const auto rows = static_cast<std::size_t>(queries.rows);
    Arena& arena = hits.scratch(); // which may hold the queries: no reset here
    const auto coarse = arena.take<float>(rows * probes);
    const auto lists = arena.take<index_t>(rows * probes);
    index.quantizer->search(queries.rows, queries.data, static_cast<index_t>(probes), coarse.data(), lists.data());
    const int threads =
        std::max(1, std::min(omp_get_max_threads(), static_cast<int>(std::min<index_t>(queries.rows, 4096))));
    const auto scratch = arena.take<IvfPqScratch>(static_cast<std::size_t>(threads));
    for (IvfPqScratch& s : scratch)
        s = {arena.take<float>(table),
             arena.take<float>(table),
             arena.take<float>(piece),
             arena.take<index_t>(probes + 1),
             arena.take<index_t>(k),
             arena.take<std::uint64_t>(2 * k),
             Candidates::in(arena, k, static_cast<std::size_t>(index.ntotal))};

    const auto search_one = [&](std::size_t row, IvfPqScratch& s) {
        const auto sub = static_cast<index_t>(index.pq.dsub);
        for (std::size_t m = 0; m < width; ++m)
            score_rows<InnerProduct>(
                Rows(queries[static_cast<index_t>(row)].data() + static_cast<index_t>(m) * sub, 1, sub),
                Rows(index.pq.centroids.data() + m * 256 * index.pq.dsub, 256, sub),
                MutRows(s.of_query.data() + m * 256, 1, 256));
        s.candidates.restart();
        index_t visited = 0;
        for (std::size_t p = 0; p < probes; ++p) {
            s.starts[p] = visited;
            const auto list = lists[row * probes + p];
            if (list < 0) continue; // the quantizer found fewer
            const auto size = static_cast<std::size_t>(index.invlists->list_size(static_cast<std::size_t>(list)));
            if (size == 0) continue;
            combine_tables(index.precomputed_table.get() + static_cast<std::size_t>(list) * table, s.of_query.data(),
                           table, s.table.data());
            ::faiss::InvertedLists::ScopedCodes codes(index.invlists, static_cast<std::size_t>(list));
            for (std::size_t first = 0; first < size; first += piece) {
                const std::size_t n = std::min(piece, size - first);
                const auto scores = s.scores.first(n);
                std::fill(scores.begin(), scores.end(), coarse[row * probes + p]);
                sum_codes(codes.get() + first * index.code_size, n, width, s.table.data(), scores.data());
                for (float& x : scores) x = 0.0f - x;
                for (std::size_t i = 0; i < n; i += Candidates::kSlack) {
                    const std::size_t some = std::min(Candidates::kSlack, n - i);
                    if (!s.candidates.has_room_for(some)) s.candidates.raise();
                    if (!s.candidates.has_room_for(some)) s.candidates.cut();
                    s.candidates.append(scores.data() + i, some,
                                        static_cast<std::uint32_t>(visited) + static_cast<std::uint32_t>(first + i));
                }
            }
            visited += static_cast<index_t>(size);
        }
        s.starts[probes] = visited;
        const auto found = write_best({&s.candidates, 1}, s.keys.first(k), s.keys.subspan(k), s.places,
                                      hits.room_for_scores(static_cast<index_t>(row)));
        const auto ids = hits.room_for_ids(static_cast<index_t>(row));
        for (std::size_t j = 0; j < found; ++j) {
            // The last list that starts at or before the place: empty ones start where the next does.
            const auto p = static_cast<std::size_t>(
                std::upper_bound(s.starts.begin(), s.starts.begin() + static_cast<index_t>(probes), s.places[j]) -
                s.starts.begin() - 1);
            ids[j] = index.invlists->get_single_id(static_cast<std::size_t>(lists[row * probes + p]),
                                                   static_cast<std::size_t>(s.places[j] - s.starts[p]));
        }
        hits.set_size(static_cast<index_t>(row), static_cast<index_t>(found));
    };
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (index_t row = 0; row < queries.rows; ++row)
        search_one(static_cast<std::size_t>(row), scratch[static_cast<std::size_t>(omp_get_thread_num())]);
}

} // namespace mnemo::detail
