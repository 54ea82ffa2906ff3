// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/key_rows.hpp>
#include <mnemo/kernels/score.hpp>

#include <cassert>
#include <span>

namespace mnemo {

namespace detail {

template <class T>
void weighted_sum_plain(const T* rows, index_t stride, index_t d, const index_t* ids, const float* weights, index_t n,
                        float* out) {
    for (index_t i = 0; i < n; ++i) {
        const T* row = rows + ids[i] * stride;
        for (index_t j = 0; j < d; ++j) out[j] = fused_multiply_add(weights[i], to_float(row[j]), out[j]);
    }
}

#if MNEMO_X86
MNEMO_INTRINSICS_BEGIN
// Vectors of one row's width that stay in registers while all rows pass.
inline constexpr int kSumVectors = 4;

#define MNEMO_WEIGHTED_SUM(level, target, vector, lanes, load, loadu, storeu, set1, fmadd)                             \
    template <class T, int V>                                                                                          \
    target inline void weighted_columns_##level(const T* rows, index_t stride, const index_t* ids,                     \
                                                const float* weights, index_t n, float* out) {                         \
        vector sum[V];                                                                                                 \
        MNEMO_UNROLL                                                                                                   \
        for (int v = 0; v < V; ++v) sum[v] = loadu(out + lanes * v);                                                   \
        for (index_t i = 0; i < n; ++i) {                                                                              \
            if (i + kRowsAhead < n) prefetch_row(rows + ids[i + kRowsAhead] * stride, lanes * V);                      \
            const T* row = rows + ids[i] * stride;                                                                     \
            const vector weight = set1(weights[i]);                                                                    \
            MNEMO_UNROLL                                                                                               \
            for (int v = 0; v < V; ++v) sum[v] = fmadd(weight, load(row + lanes * v), sum[v]);                         \
        }                                                                                                              \
        MNEMO_UNROLL                                                                                                   \
        for (int v = 0; v < V; ++v) storeu(out + lanes * v, sum[v]);                                                   \
    }                                                                                                                  \
    template <class T>                                                                                                 \
    target void weighted_sum_##level(const T* rows, index_t stride, index_t d, const index_t* ids,                     \
                                     const float* weights, index_t n, float* out) {                                    \
        index_t j = 0;                                                                                                 \
        for (; j + lanes * kSumVectors <= d; j += lanes * kSumVectors)                                                 \
            weighted_columns_##level<T, kSumVectors>(rows + j, stride, ids, weights, n, out + j);                      \
        for (; j + lanes <= d; j += lanes) weighted_columns_##level<T, 1>(rows + j, stride, ids, weights, n, out + j); \
        if (j < d) weighted_sum_plain(rows + j, stride, d - j, ids, weights, n, out + j);                              \
    }
MNEMO_WEIGHTED_SUM(avx2, MNEMO_AVX2, __m256, 8, load8, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps,
                   _mm256_fmadd_ps)
MNEMO_WEIGHTED_SUM(avx512, MNEMO_AVX512, __m512, 16, load16, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps,
                   _mm512_fmadd_ps)
#undef MNEMO_WEIGHTED_SUM
MNEMO_INTRINSICS_END
#endif

} // namespace detail

/// out [d] += sum over i of weights[i] * rows[ids[i]], in increasing i by fused multiply-add, so that every instruction
/// set gives the same bits. Rows are read where they are and widened in registers; nothing is gathered.
template <class T>
void add_weighted_rows(MatrixView<const T> rows, std::span<const index_t> ids, std::span<const float> weights,
                       std::span<float> out) {
    assert(ids.size() == weights.size() && static_cast<index_t>(out.size()) == rows.cols);
    const auto n = static_cast<index_t>(ids.size());
#if MNEMO_X86
    if (simd_level() >= SimdLevel::avx512)
        return detail::weighted_sum_avx512(rows.data, rows.stride, rows.cols, ids.data(), weights.data(), n,
                                           out.data());
    if (simd_level() >= SimdLevel::avx2)
        return detail::weighted_sum_avx2(rows.data, rows.stride, rows.cols, ids.data(), weights.data(), n, out.data());
#endif
    detail::weighted_sum_plain(rows.data, rows.stride, rows.cols, ids.data(), weights.data(), n, out.data());
}

} // namespace mnemo
