// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/kernels/pack.hpp>
#include <mnemo/kernels/select.hpp>

#include <bit>

// The first pass itself: a group of queries times a panel of keys, and what of it goes to the candidates.

namespace mnemo {

namespace detail {

#if MNEMO_X86
MNEMO_INTRINSICS_BEGIN

// Sums of whole groups of products. The intrinsics make g++ 12 copy every sum around the instruction, which halves the
// rate.
MNEMO_AVX512_VNNI inline __m512i dot4(__m512i sum, __m512i unsigned_bytes, __m512i signed_bytes) {
#if defined(__GNUC__) && !defined(__clang__)
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "v"(signed_bytes));
    return sum;
#else
    return _mm512_dpbusd_epi32(sum, unsigned_bytes, signed_bytes);
#endif
}
MNEMO_AVX512_BF16 inline __m512 dot2(__m512 sum, __m512i a, __m512i b) {
#if defined(__GNUC__) && !defined(__clang__)
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
#else
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#endif
}

// One group [words, kGroup] of queries. Row m of M is a query; with two planes it is the rows 2 m and 2 m + 1.
struct Group {
    const std::uint32_t* words;
    const float* scale; // [kGroup], of the integers
    const float* limit; // [kGroup], by query: what t + E must reach
    const float* slope; // [kGroup], by query, and the largest ratio: E, without what rounding adds
    float ratio;
};
// Of 16 keys, what the queries' slopes are multiplied by.
MNEMO_AVX512 inline __m512 width_of_bound(const Group& g, const std::uint32_t* bound) {
    const __m512i both = _mm512_loadu_si512(bound);
    const __m512 rounded =
        _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
    return _mm512_fmadd_ps(_mm512_set1_ps(g.ratio), rounded, _mm512_castsi512_ps(_mm512_slli_epi32(both, 16)));
}

// Whether anything in a row reaches the limit. All rows are written: which are needed is not known in time for a
// branch.
MNEMO_AVX512 inline unsigned store_and_compare(const __m512 (&t)[3], float least, float* out) {
    MNEMO_UNROLL
    for (int v = 0; v < 3; ++v) _mm512_storeu_ps(out + 16 * v, t[v]);
    const __m512 best = _mm512_max_ps(_mm512_max_ps(t[0], t[1]), t[2]);
    return _mm512_cmp_ps_mask(best, _mm512_set1_ps(least), _CMP_GE_OQ) != 0;
}
template <int M> MNEMO_AVX512 inline unsigned store_and_compare(const __m512 (&t)[M][3], const Group& g, float* out) {
    unsigned hits = 0;
    MNEMO_UNROLL
    for (int m = 0; m < M; ++m) hits |= store_and_compare(t[m], g.limit[m], out + m * kPanel) << m;
    return hits;
}
template <int M, int Planes>
MNEMO_AVX512_VNNI inline unsigned multiply_int8(const Group& g, const Panel& p, index_t words, float* out) {
    __m512i sum[M * Planes][3];
    MNEMO_UNROLL
    for (int m = 0; m < M * Planes; ++m) {
        MNEMO_UNROLL
        for (int v = 0; v < 3; ++v) sum[m][v] = _mm512_loadu_si512(p.offset + 16 * v);
    }
    for (index_t w = 0; w < words; ++w) {
        __m512i key[3];
        MNEMO_UNROLL
        for (int v = 0; v < 3; ++v) key[v] = _mm512_loadu_si512(p.words + w * kPanel + 16 * v);
        MNEMO_UNROLL
        for (int m = 0; m < M * Planes; ++m) {
            const __m512i a = _mm512_set1_epi32(static_cast<int>(g.words[w * kGroup + m]));
            MNEMO_UNROLL
            for (int v = 0; v < 3; ++v) sum[m][v] = dot4(sum[m][v], a, key[v]);
        }
    }
    __m512 scale[3], bias[3], width[3];
    MNEMO_UNROLL
    for (int v = 0; v < 3; ++v) {
        scale[v] = _mm512_loadu_ps(p.scale + 16 * v), bias[v] = _mm512_loadu_ps(p.bias + 16 * v);
        width[v] = width_of_bound(g, p.bound + 16 * v);
    }
    unsigned hits = 0;
    MNEMO_UNROLL
    for (int m = 0; m < M; ++m) {
        __m512 t[3];
        MNEMO_UNROLL
        for (int v = 0; v < 3; ++v) {
            t[v] = _mm512_fmadd_ps(_mm512_set1_ps(g.slope[m]), width[v], bias[v]);
            MNEMO_UNROLL
            for (int i = Planes * m; i < Planes * (m + 1); ++i)
                t[v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i][v]),
                                       _mm512_mul_ps(scale[v], _mm512_set1_ps(g.scale[i])), t[v]);
        }
        hits |= store_and_compare(t, g.limit[m], out + m * kPanel) << m;
    }
    return hits;
}
template <int M>
MNEMO_AVX512_BF16 inline unsigned multiply_bfloat16(const Group& g, const Panel& p, index_t words, float* out) {
    __m512 sum[M][3];
    MNEMO_UNROLL
    for (int m = 0; m < M; ++m) {
        MNEMO_UNROLL
        for (int v = 0; v < 3; ++v) sum[m][v] = _mm512_loadu_ps(p.bias + 16 * v);
    }
    for (index_t w = 0; w < words; ++w) {
        __m512i key[3];
        MNEMO_UNROLL
        for (int v = 0; v < 3; ++v) key[v] = _mm512_loadu_si512(p.words + w * kPanel + 16 * v);
        MNEMO_UNROLL
        for (int m = 0; m < M; ++m) {
            const __m512i a = _mm512_set1_epi32(static_cast<int>(g.words[w * kGroup + m]));
            MNEMO_UNROLL
            for (int v = 0; v < 3; ++v) sum[m][v] = dot2(sum[m][v], a, key[v]);
        }
    }
    MNEMO_UNROLL
    for (int v = 0; v < 3; ++v) {
        const __m512 width = width_of_bound(g, p.bound + 16 * v);
        MNEMO_UNROLL
        for (int m = 0; m < M; ++m) sum[m][v] = _mm512_fmadd_ps(_mm512_set1_ps(g.slope[m]), width, sum[m][v]);
    }
    return store_and_compare<M>(sum, g, out);
}
template <int M>
MNEMO_AVX512 inline unsigned multiply_float_avx512(const Group& g, const Panel& p, index_t words, float* out) {
    const auto *keys = reinterpret_cast<const float*>(p.words), *q = reinterpret_cast<const float*>(g.words);
    __m512 sum[M][3];
    MNEMO_UNROLL
    for (int m = 0; m < M; ++m) {
        MNEMO_UNROLL
        for (int v = 0; v < 3; ++v) sum[m][v] = _mm512_loadu_ps(p.bias + 16 * v);
    }
    for (index_t w = 0; w < words; ++w) {
        __m512 key[3];
        MNEMO_UNROLL
        for (int v = 0; v < 3; ++v) key[v] = _mm512_loadu_ps(keys + w * kPanel + 16 * v);
        MNEMO_UNROLL
        for (int m = 0; m < M; ++m) {
            const __m512 a = _mm512_set1_ps(q[w * kGroup + m]);
            MNEMO_UNROLL
            for (int v = 0; v < 3; ++v) sum[m][v] = _mm512_fmadd_ps(a, key[v], sum[m][v]);
        }
    }
    return store_and_compare<M>(sum, g, out);
}
// A bit for each of the first `queries` rows of t [queries, kPanel] that reaches its limit.
MNEMO_AVX2 inline unsigned compare_avx2(const float* t, index_t queries, const Group& g) {
    unsigned hits = 0;
    for (index_t m = 0; m < queries; ++m) {
        const __m256 limit = _mm256_set1_ps(g.limit[m]);
        int any = 0;
        MNEMO_UNROLL
        for (int v = 0; v < kPanel / 8; ++v)
            any |= _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(t + m * kPanel + 8 * v), limit, _CMP_GE_OQ));
        hits |= any ? 1u << m : 0u;
    }
    return hits;
}
// Half a group and a part of the panel at a time, as much as fills the 16 registers.
MNEMO_AVX2 inline unsigned multiply_float_avx2(const Group& g, const Panel& p, index_t words, float* out) {
    constexpr int M = kGroup / 2;
    const auto *keys = reinterpret_cast<const float*>(p.words), *q = reinterpret_cast<const float*>(g.words);
    for (index_t first = 0; first < kPanel; first += 24)
        for (index_t half = 0; half < kGroup; half += M) {
            __m256 sum[M][3];
            MNEMO_UNROLL
            for (int m = 0; m < M; ++m) {
                MNEMO_UNROLL
                for (int v = 0; v < 3; ++v) sum[m][v] = _mm256_loadu_ps(p.bias + first + 8 * v);
            }
            for (index_t w = 0; w < words; ++w) {
                __m256 key[3];
                MNEMO_UNROLL
                for (int v = 0; v < 3; ++v) key[v] = _mm256_loadu_ps(keys + w * kPanel + first + 8 * v);
                MNEMO_UNROLL
                for (int m = 0; m < M; ++m) {
                    const __m256 a = _mm256_broadcast_ss(q + w * kGroup + half + m);
                    MNEMO_UNROLL
                    for (int v = 0; v < 3; ++v) sum[m][v] = _mm256_fmadd_ps(a, key[v], sum[m][v]);
                }
            }
            MNEMO_UNROLL
            for (int m = 0; m < M; ++m) {
                MNEMO_UNROLL
                for (int v = 0; v < 3; ++v) _mm256_storeu_ps(out + (half + m) * kPanel + first + 8 * v, sum[m][v]);
            }
        }
    return compare_avx2(out, kGroup, g);
}
// Of the first `queries` queries. Two products of bytes fit 16 bits, as queries have 7 (largest_of_query); with two
// planes the rows 2 m and 2 m + 1 of the group are query m.
MNEMO_AVX2 inline unsigned multiply_int8_avx2(const Group& g, const Panel& p, index_t words, index_t queries,
                                              index_t planes, float* out) {
    constexpr int M = 4;
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256 ratio = _mm256_set1_ps(g.ratio);
    for (index_t first = 0; first < kPanel; first += 16)
        for (index_t half = 0; half < queries * planes; half += M) {
            __m256i sum[M][2];
            MNEMO_UNROLL
            for (int m = 0; m < M; ++m) {
                MNEMO_UNROLL
                for (int v = 0; v < 2; ++v) // queries are stored + 64
                    sum[m][v] = _mm256_srai_epi32(
                        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p.offset + first + 8 * v)), 1);
            }
            for (index_t w = 0; w < words; ++w) {
                __m256i key[2];
                MNEMO_UNROLL
                for (int v = 0; v < 2; ++v)
                    key[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p.words + w * kPanel + first + 8 * v));
                MNEMO_UNROLL
                for (int m = 0; m < M; ++m) {
                    const __m256i a = _mm256_set1_epi32(static_cast<int>(g.words[w * kGroup + half + m]));
                    MNEMO_UNROLL
                    for (int v = 0; v < 2; ++v)
                        sum[m][v] =
                            _mm256_add_epi32(sum[m][v], _mm256_madd_epi16(_mm256_maddubs_epi16(a, key[v]), ones));
                }
            }
            MNEMO_UNROLL
            for (int v = 0; v < 2; ++v) {
                const index_t at = first + 8 * v;
                const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p.bound + at));
                const __m256 rounded =
                    _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
                const __m256 width = _mm256_fmadd_ps(ratio, rounded, _mm256_castsi256_ps(_mm256_slli_epi32(both, 16)));
                const __m256 scale = _mm256_loadu_ps(p.scale + at), bias = _mm256_loadu_ps(p.bias + at);
                MNEMO_UNROLL
                for (int m = 0; m < M; ++m) {
                    const index_t row = half + m, query = row / planes;
                    float* const t = out + query * kPanel + at;
                    const __m256 before = row % planes == 0
                                              ? _mm256_fmadd_ps(_mm256_set1_ps(g.slope[query]), width, bias)
                                              : _mm256_loadu_ps(t);
                    _mm256_storeu_ps(t, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[m][v]),
                                                        _mm256_mul_ps(scale, _mm256_set1_ps(g.scale[row])), before));
                }
            }
        }
    return compare_avx2(out, queries, g);
}

// Takes the lanes of t [kPanel] that reach the limit: t + more, under the ids of the lanes. They are few.
MNEMO_AVX512 inline void take_avx512(const float* t, float limit, float more, const std::uint32_t* ids, Candidates& c) {
    const __m512 least = _mm512_set1_ps(limit);
    std::uint64_t lanes = 0;
    MNEMO_UNROLL
    for (int v = 0; v < 3; ++v)
        lanes |= std::uint64_t{_mm512_cmp_ps_mask(_mm512_loadu_ps(t + 16 * v), least, _CMP_GE_OQ)} << 16 * v;
    std::size_t n = c.count;
    for (; lanes != 0; lanes &= lanes - 1, ++n) {
        const auto l = std::countr_zero(lanes);
        c.scores[n] = t[l] + more, c.ids[n] = ids[l];
    }
    c.count = n;
}
inline void take_plain(const float* t, float limit, float more, const std::uint32_t* ids, Candidates& c) {
    for (index_t l = 0; l < kPanel; ++l) {
        c.scores[c.count] = t[l] + more;
        c.ids[c.count] = ids[l];
        c.count += t[l] >= limit;
    }
}
MNEMO_INTRINSICS_END
#endif

} // namespace detail

} // namespace mnemo
