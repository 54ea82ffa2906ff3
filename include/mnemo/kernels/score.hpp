// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/key_rows.hpp>
#include <mnemo/kernels/convert.hpp>
#include <mnemo/kernels/metric.hpp>
#include <mnemo/kernels/multiply_add.hpp>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <limits>
#include <span>

// The canonical score: what `nearer` means everywhere in the library, on every machine, for every batch size and number
// of threads. Keys are widened to float. Lane l of 64 sums the elements j = l (mod 64) by fused multiply-add in
// increasing j; the lanes are added by a fixed tree: (l, l + 32), (l, l + 16), ... L2 sums the squared differences,
// never the expansion |q|^2 - 2 q.x + |x|^2, so equal vectors are at exactly 0.

namespace mnemo {

namespace detail {

enum class Sum { products, squared_differences };
inline constexpr int kLanes = 64;

// out[m] = sum over j of a[m][j] * b[j], or of (a[m][j] - b[j])^2: `M` rows of a, stride elements apart, and one of b.
template <Sum S, int M, bool /*Ahead*/ = false, class A, class B>
void sum_plain(const A* a, index_t stride, const B* b, index_t d, float* out) {
    for (int m = 0; m < M; ++m) {
        const A* row = a + m * stride;
        float lane[kLanes] = {};
        for (index_t j = 0; j < d; ++j) {
            const float x = to_float(row[j]), y = to_float(b[j]), e = x - y;
            float& sum = lane[j % kLanes];
            sum = S == Sum::products ? fused_multiply_add(x, y, sum) : fused_multiply_add(e, e, sum);
        }
        for (int w = kLanes / 2; w > 0; w /= 2)
            for (int l = 0; l < w; ++l) lane[l] += lane[l + w];
        out[m] = lane[0];
    }
}

#if MNEMO_X86
MNEMO_INTRINSICS_BEGIN
template <Sum S> MNEMO_AVX2 inline __m256 step(__m256 a, __m256 b, __m256 sum) {
    if constexpr (S == Sum::products) return _mm256_fmadd_ps(a, b, sum);
    const __m256 e = _mm256_sub_ps(a, b);
    return _mm256_fmadd_ps(e, e, sum);
}
template <Sum S> MNEMO_AVX512 inline __m512 step(__m512 a, __m512 b, __m512 sum) {
    if constexpr (S == Sum::products) return _mm512_fmadd_ps(a, b, sum);
    const __m512 e = _mm512_sub_ps(a, b);
    return _mm512_fmadd_ps(e, e, sum);
}
template <Sum S> MNEMO_AVX512 inline __m512 step(__m512 a, __m512 b, __m512 sum, __mmask16 part) {
    if constexpr (S == Sum::products) return _mm512_mask3_fmadd_ps(a, b, sum, part);
    const __m512 e = _mm512_sub_ps(a, b);
    return _mm512_mask3_fmadd_ps(e, e, sum, part);
}

MNEMO_AVX512 inline __m512 load16(const float* p) { return _mm512_loadu_ps(p); }
MNEMO_AVX512 inline __m512 load16(const half* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
MNEMO_AVX512 inline __m512 widen(__m256i bfloat16s) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bfloat16s), 16));
}
MNEMO_AVX512 inline __m512 load16(const bfloat16* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
MNEMO_AVX512 inline __m512 load16(const float* p, __mmask16 part) { return _mm512_maskz_loadu_ps(part, p); }
MNEMO_AVX512 inline __m512 load16(const half* p, __mmask16 part) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(part, p));
}
MNEMO_AVX512 inline __m512 load16(const bfloat16* p, __mmask16 part) {
    return widen(_mm256_maskz_loadu_epi16(part, p));
}

// Rows of b that are read in turn by several rows of a: the processor's own fetching ahead does not hide the sums.
inline constexpr index_t kBytesAhead = 16 << 10;
// Into the second-level cache: the first holds the rows of a.
template <index_t Bytes> inline void prefetch_ahead(const void* b) {
    const char* line = static_cast<const char*>(b) + kBytesAhead;
    MNEMO_UNROLL
    for (index_t i = 0; i < Bytes; i += 64) __builtin_prefetch(line + i, 0, 2);
}

// The tree over 64 lanes in four vectors, down to its last four.
MNEMO_AVX512 inline __m128 four_lanes(const __m512 (&sum)[4]) {
    const __m512 s = _mm512_add_ps(_mm512_add_ps(sum[0], sum[2]), _mm512_add_ps(sum[1], sum[3]));
    const __m256 t = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
    return _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1));
}
// The lanes in four vectors, which is also the order of the tree.
template <Sum S, int M, bool Ahead = false, class A, class B>
MNEMO_AVX512 inline void sum_avx512(const A* a, index_t stride, const B* b, index_t d, float* out) {
    __m512 sum[M][4];
    MNEMO_UNROLL
    for (int m = 0; m < M; ++m) {
        MNEMO_UNROLL
        for (int g = 0; g < 4; ++g) sum[m][g] = _mm512_setzero_ps();
    }
    index_t j = 0;
    for (; j + kLanes <= d; j += kLanes) {
        if constexpr (Ahead) prefetch_ahead<kLanes * sizeof(B)>(b + j);
        MNEMO_UNROLL
        for (int g = 0; g < 4; ++g) {
            const __m512 key = load16(b + j + 16 * g);
            MNEMO_UNROLL
            for (int m = 0; m < M; ++m) sum[m][g] = step<S>(load16(a + m * stride + j + 16 * g), key, sum[m][g]);
        }
    }
    MNEMO_UNROLL // an index that is no constant would keep the sums in memory
        for (int g = 0; g < 4; ++g, j += 16) {
        if (j < d) {
            const auto part = static_cast<__mmask16>(d - j >= 16 ? 0xffff : (1 << (d - j)) - 1);
            const __m512 key = load16(b + j, part);
            MNEMO_UNROLL
            for (int m = 0; m < M; ++m) sum[m][g] = step<S>(load16(a + m * stride + j, part), key, sum[m][g], part);
        }
    }
    MNEMO_UNROLL
    for (int m = 0; m < M; ++m) {
        const __m128 u = four_lanes(sum[m]);
        const __m128 v = _mm_add_ps(u, _mm_movehl_ps(u, u));
        out[m] = _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
    }
}
// One row of a and four rows of b: loads of a are shared, and the four trees are one.
template <Sum S, class A, class B>
MNEMO_AVX512 inline void sum_of_four_avx512(const A* a, const B* const (&b)[4], index_t d, float* out) {
    __m512 sum[4][4];
    MNEMO_UNROLL
    for (int m = 0; m < 4; ++m) {
        MNEMO_UNROLL
        for (int g = 0; g < 4; ++g) sum[m][g] = _mm512_setzero_ps();
    }
    index_t j = 0;
    for (; j + kLanes <= d; j += kLanes) {
        MNEMO_UNROLL
        for (int g = 0; g < 4; ++g) {
            const __m512 x = load16(a + j + 16 * g);
            MNEMO_UNROLL
            for (int m = 0; m < 4; ++m) sum[m][g] = step<S>(x, load16(b[m] + j + 16 * g), sum[m][g]);
        }
    }
    MNEMO_UNROLL
    for (int g = 0; g < 4; ++g, j += 16) {
        if (j < d) {
            const auto part = static_cast<__mmask16>(d - j >= 16 ? 0xffff : (1 << (d - j)) - 1);
            const __m512 x = load16(a + j, part);
            MNEMO_UNROLL
            for (int m = 0; m < 4; ++m) sum[m][g] = step<S>(x, load16(b[m] + j, part), sum[m][g], part);
        }
    }
    const __m128 u[4] = {four_lanes(sum[0]), four_lanes(sum[1]), four_lanes(sum[2]), four_lanes(sum[3])};
    // (0, 2) and (1, 3) of two sums at a time, then of all four.
    const __m128 v = _mm_add_ps(_mm_unpacklo_ps(u[0], u[1]), _mm_unpackhi_ps(u[0], u[1]));
    const __m128 w = _mm_add_ps(_mm_unpacklo_ps(u[2], u[3]), _mm_unpackhi_ps(u[2], u[3]));
    _mm_storeu_ps(out, _mm_add_ps(_mm_movelh_ps(v, w), _mm_movehl_ps(w, v)));
}

// Lanes 0-31 first, then 32-63: with all eight vectors of one sum in registers there is room for no second sum.
template <Sum S, int M, bool Ahead = false, class A, class B>
MNEMO_AVX2 inline void sum_avx2(const A* a, index_t stride, const B* b, index_t d, float* out) {
    __m256 sums[2][M][4];
    for (int part_of_lanes = 0; part_of_lanes < 2; ++part_of_lanes) {
        __m256 sum[M][4];
        MNEMO_UNROLL
        for (int m = 0; m < M; ++m) {
            MNEMO_UNROLL
            for (int g = 0; g < 4; ++g) sum[m][g] = _mm256_setzero_ps();
        }
        index_t j = 32 * part_of_lanes;
        for (; j + 32 <= d; j += kLanes) {
            if (Ahead && part_of_lanes == 0) prefetch_ahead<kLanes * sizeof(B)>(b + j);
            MNEMO_UNROLL
            for (int g = 0; g < 4; ++g) {
                const __m256 key = load8(b + j + 8 * g);
                MNEMO_UNROLL
                for (int m = 0; m < M; ++m) sum[m][g] = step<S>(load8(a + m * stride + j + 8 * g), key, sum[m][g]);
            }
        }
        MNEMO_UNROLL
        for (int g = 0; g < 4; ++g, j += 8) {
            if (j < d) {
                const index_t left = std::min<index_t>(d - j, 8);
                const __m256 part = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(left)),
                                                                           _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)));
                B key[8] = {};
                std::copy_n(b + j, left, key);
                MNEMO_UNROLL
                for (int m = 0; m < M; ++m) {
                    A query[8] = {};
                    std::copy_n(a + m * stride + j, left, query);
                    sum[m][g] = _mm256_blendv_ps(sum[m][g], step<S>(load8(query), load8(key), sum[m][g]), part);
                }
            }
        }
        MNEMO_UNROLL
        for (int m = 0; m < M; ++m) {
            MNEMO_UNROLL
            for (int g = 0; g < 4; ++g) sums[part_of_lanes][m][g] = sum[m][g];
        }
    }
    MNEMO_UNROLL
    for (int m = 0; m < M; ++m) {
        __m256 s[4];
        MNEMO_UNROLL
        for (int g = 0; g < 4; ++g) s[g] = _mm256_add_ps(sums[0][m][g], sums[1][m][g]);
        const __m256 t = _mm256_add_ps(_mm256_add_ps(s[0], s[2]), _mm256_add_ps(s[1], s[3]));
        const __m128 u = _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1));
        const __m128 v = _mm_add_ps(u, _mm_movehl_ps(u, u));
        out[m] = _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
    }
}
MNEMO_INTRINSICS_END
#endif

// The similarity from the sum and the norms, which only Cosine looks at. A zero is always +0.
template <MetricTag MetricT> float similarity(float sum, [[maybe_unused]] double q_norm, [[maybe_unused]] double norm) {
    if constexpr (MetricT::metric == Metric::l2) return 0.0f - sum;
    if constexpr (MetricT::metric == Metric::inner_product) return sum + 0.0f;
    const double product = q_norm * norm;
    return product == 0 ? 0.0f : static_cast<float>(sum / product) + 0.0f;
}
template <MetricTag MetricT>
inline constexpr Sum sum_of = MetricT::metric == Metric::l2 ? Sum::squared_differences : Sum::products;

// A row of keys is fetched this many rows ahead when rows are visited in no order.
inline constexpr index_t kRowsAhead = 4;
inline constexpr index_t kCacheLine = 64;
inline constexpr const index_t* kAllRows = nullptr; // in place of ids: every row in turn
inline constexpr index_t kMissing = -1;             // the id of a hit that is none; its score is -inf

// Into the first-level cache (3), or the second (2). Inlined, as g++ drops calls of functions that do nothing else.
template <int Level = 3, class T> [[gnu::always_inline]] inline void prefetch_row(const T* row, index_t d) {
#if defined(__GNUC__) || defined(__clang__)
    const char* line = reinterpret_cast<const char*>(row);
    for (const char* end = line + d * static_cast<index_t>(sizeof(T)); line < end; line += kCacheLine)
        __builtin_prefetch(line, 0, Level);
#endif
}

/// out[m * out_stride + i] = similarity of query m of M and key ids[i], or key i where `ids` is null, i < n.
/// One function a level, so that the sum is inlined into the loop.
#define MNEMO_SCORE_LOOP(level, target)                                                                                \
    template <MetricTag MetricT, int M, class T, class Id>                                                             \
    target void score_loop_##level(const float* q, index_t q_stride, const double* q_norm, MatrixView<const T> keys,   \
                                   const Id* ids, index_t n, float* out, index_t out_stride) {                         \
        const index_t d = keys.cols;                                                                                   \
        for (index_t i = 0; i < n; ++i) {                                                                              \
            if (ids && i + kRowsAhead < n && static_cast<index_t>(ids[i + kRowsAhead]) >= 0)                           \
                prefetch_row(keys.data + ids[i + kRowsAhead] * keys.stride, d);                                        \
            const index_t id = ids ? static_cast<index_t>(ids[i]) : i;                                                 \
            float sum[M], norm = 0;                                                                                    \
            if (id >= 0) {                                                                                             \
                const T* key = keys.data + id * keys.stride;                                                           \
                sum_##level<sum_of<MetricT>, M>(q, q_stride, key, d, sum);                                             \
                if constexpr (MetricT::metric == Metric::cosine) sum_##level<Sum::products, 1>(key, 0, key, d, &norm); \
            }                                                                                                          \
            for (int m = 0; m < M; ++m)                                                                                \
                out[m * out_stride + i] =                                                                              \
                    id < 0 ? -std::numeric_limits<float>::infinity()                                                   \
                           : similarity<MetricT>(sum[m], q_norm[m], std::sqrt(static_cast<double>(norm)));             \
        }                                                                                                              \
    }
MNEMO_SCORE_LOOP(plain, )
#if MNEMO_X86
MNEMO_SCORE_LOOP(avx2, MNEMO_AVX2)
MNEMO_SCORE_LOOP(avx512, MNEMO_AVX512)
#endif
#undef MNEMO_SCORE_LOOP

#if MNEMO_X86
// What an index or a first pass has found, four keys at a time.
template <MetricTag MetricT, class T, class Id>
MNEMO_AVX512 void score_gathered_avx512(const float* q, const double* q_norm, MatrixView<const T> keys, const Id* ids,
                                        index_t n, float* out) {
    index_t i = 0;
    if constexpr (MetricT::metric != Metric::cosine)
        for (; i < n && n >= 4; i += 4) {
            i = std::min(i, n - 4); // the last ones again
            const T* rows[4];
            bool all = true;
            for (index_t j = 0; j < 4; ++j) {
                const auto id = static_cast<index_t>(ids[i + j]);
                all = all && id >= 0;
                rows[j] = keys.data + std::max<index_t>(id, 0) * keys.stride;
                if (i + j + kRowsAhead < n && static_cast<index_t>(ids[i + j + kRowsAhead]) >= 0)
                    prefetch_row(keys.data + ids[i + j + kRowsAhead] * keys.stride, keys.cols);
            }
            if (!all) break;
            float sum[4];
            sum_of_four_avx512<sum_of<MetricT>>(q, rows, keys.cols, sum);
            for (int j = 0; j < 4; ++j) out[i + j] = similarity<MetricT>(sum[j], 1, 1);
        }
    score_loop_avx512<MetricT, 1, T, Id>(q, 0, q_norm, keys, ids + i, n - i, out + i, 0);
}
#endif

// |q|, which is a canonical sum, too.
template <MetricTag MetricT> double query_norm(const float* q, index_t d) {
    if constexpr (MetricT::metric != Metric::cosine) return 1;
    float sum = 0;
#if MNEMO_X86
    if (simd_level() >= SimdLevel::avx512)
        sum_avx512<Sum::products, 1>(q, 0, q, d, &sum);
    else if (simd_level() >= SimdLevel::avx2)
        sum_avx2<Sum::products, 1>(q, 0, q, d, &sum);
    else
#endif
        sum_plain<Sum::products, 1>(q, 0, q, d, &sum);
    return std::sqrt(static_cast<double>(sum));
}

template <MetricTag MetricT, class T, class Id = index_t>
void score(Rows queries, MatrixView<const T> keys, const Id* ids, index_t n, float* out, index_t out_stride) {
    assert(queries.cols == keys.cols);
    // Queries that share one pass over a key: as many as fit the registers.
    const auto pass = [&]<int M>(std::integral_constant<int, M>, index_t first, auto loop) {
        double norm[M];
        for (int m = 0; m < M; ++m) norm[m] = query_norm<MetricT>(queries[first + m].data(), queries.cols);
        loop(queries[first].data(), queries.stride, norm, keys, ids, n, out + first * out_stride, out_stride);
    };
    const auto all = [&]<int M>(std::integral_constant<int, M> several, auto loop_several, auto loop_one) {
        index_t i = 0;
        for (; i + M <= queries.rows; i += M) pass(several, i, loop_several);
        for (; i < queries.rows; ++i) pass(std::integral_constant<int, 1>{}, i, loop_one);
    };
#if MNEMO_X86
    if (simd_level() >= SimdLevel::avx512 && ids && queries.rows == 1) {
        const double norm = query_norm<MetricT>(queries[0].data(), queries.cols);
        return score_gathered_avx512<MetricT>(queries[0].data(), &norm, keys, ids, n, out);
    }
    if (simd_level() >= SimdLevel::avx512)
        return all(std::integral_constant<int, 4>{}, score_loop_avx512<MetricT, 4, T, Id>,
                   score_loop_avx512<MetricT, 1, T, Id>);
    if (simd_level() >= SimdLevel::avx2)
        return all(std::integral_constant<int, 3>{}, score_loop_avx2<MetricT, 3, T, Id>,
                   score_loop_avx2<MetricT, 1, T, Id>);
#endif
    all(std::integral_constant<int, 1>{}, score_loop_plain<MetricT, 1, T, Id>, score_loop_plain<MetricT, 1, T, Id>);
}

} // namespace detail

/// Similarity of one query and one key [d].
template <MetricTag MetricT, class T>
    requires KeyElement<std::remove_const_t<T>>
float score(std::span<const float> query, std::span<T> key) {
    const auto d = static_cast<index_t>(query.size());
    float out = 0;
    detail::score<MetricT, std::remove_const_t<T>>({query.data(), 1, d}, {key.data(), 1, d}, detail::kAllRows, 1, &out,
                                                   1);
    return out;
}

/// out [queries, keys]: the similarity of every query and every key; any number of both.
template <MetricTag MetricT> void score_rows(Rows queries, const KeyRows& keys, MutRows out) {
    assert(out.rows == queries.rows && out.cols == keys.rows);
    keys.visit([&]<class T>(MatrixView<const T> k) {
        detail::score<MetricT, T>(queries, k, detail::kAllRows, k.rows, out.data, out.stride);
    });
}

/// out[i] = similarity of `query` and key ids[i], fetched from memory ahead of its use; -inf where ids[i] is negative.
/// This is what re-scoring the ids that an index found costs.
template <MetricTag MetricT>
void score_ids(std::span<const float> query, const KeyRows& keys, std::span<const index_t> ids, std::span<float> out) {
    assert(ids.size() == out.size());
    keys.visit([&]<class T>(MatrixView<const T> k) {
        detail::score<MetricT, T>({query.data(), 1, k.cols}, k, ids.data(), static_cast<index_t>(ids.size()),
                                  out.data(), 0);
    });
}

} // namespace mnemo
