// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/arena.hpp>
#include <mnemo/core/concepts.hpp>
#include <mnemo/kernels/score.hpp>
#include <mnemo/kernels/select.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

// A first pass over rounded keys and queries finds the few keys that can be among the k best; those alone are scored
// exactly. The result is the canonical one, whatever the rounding, because its error is bounded:
//
// With a centre c, let q' = q - c for L2 and q' = q else, x' = x - c, b = -|x'|^2 / 2 for L2 and 0 else. Then
// s = q'.x' + b has the order of the canonical score (L2 = 2 s - |q'|^2, inner product = s + q.c; for Cosine keys and
// queries are normalised first). With rounded vectors q^ and x^, e_q = q' - q^ and e_x = x' - x^, the first pass
// computes t = q^.x^ + b, and
//
//     |t - s| <= E = |e_q| |x^| + |q'| |e_x| + rounding of these sums and of the canonical score.
//
// t - E is a lower bound of s. If T is the k-th largest lower bound, every key of the k best, ties included, has
// t + E >= T.

namespace mnemo {

/// How the first pass sees keys and queries: as 8-bit integers with a scale a vector, the same after a rotation, or as
/// floats, summed without the care and the cost of the canonical score. The rotation changes no score and spreads a few
/// large elements, beside which 8 bits would see no others, over all.
enum class FilterFormat : std::uint8_t { int8, rotated_int8, float32 };

namespace detail {

inline constexpr index_t kPanel = 48;              // keys side by side: three vectors of 16
inline constexpr index_t kGroup = 8;               // queries that share the loads of keys
inline constexpr float kMostNorm = 1e15f;          // beyond, squares come near the end of the floats
inline constexpr index_t kMostFilterWidth = 65536; // 127 * 255 * d must fit an int32, and the bounds below hold

constexpr bool is_integer(FilterFormat f) { return f != FilterFormat::float32; }

// The largest norms of some vectors, rounded up.
struct Norms {
    float centred = 0, residual = 0, raw = 0;                              // |x'|, |x' - x^|, |x|
    bool usable() const { return centred < kMostNorm && raw < kMostNorm; } // false for NaN
    void widen(Norms n) {
        centred = std::max(centred, n.centred), residual = std::max(residual, n.residual), raw = std::max(raw, n.raw);
    }
};

// A bound of |t - s| for any query of norms q and key of norms x, in width d.
template <MetricTag MetricT> float filter_error(Norms q, Norms x, FilterFormat format, index_t d) {
    constexpr float unit = 0x1p-24f;
    constexpr bool l2 = MetricT::metric == Metric::l2, cosine = MetricT::metric == Metric::cosine;
    const auto width = static_cast<float>(d);
    const float product = (q.centred + q.residual) * (x.centred + x.residual);
    const float rounded = q.residual * (x.centred + x.residual) + q.centred * x.residual;
    // Sums of d products in a lane of floats; with integers only the scales and the bias round.
    const float summed = (is_integer(format) ? 8.0f : width + 8.0f) * product;
    // Rounding of q', x' and b, and of the sums that b is made of.
    const float prepared = 16 * q.centred * x.centred + (l2 ? (width / 8 + 16) * x.centred * x.centred : 0.0f);
    const float lanes = width / kLanes + 12;
    const float both = q.centred + x.centred;
    const float canonical = l2 ? lanes * 0.5f * both * both : (cosine ? 4.0f : 1.0f) * lanes * q.raw * x.raw;
    const float underflow = width * (cosine ? 1e-20f : 1e-37f);
    return 1.01f * (rounded + unit * (summed + prepared + canonical) + underflow);
}

// What one panel of keys looks like to the first pass. Lanes without a key, and of erased keys, have bias -inf.
struct Panel {
    std::uint32_t* words; // [words, kPanel]
    float* bias;          // [kPanel]
    float* scale;         // [kPanel], of the key's integers
    std::int32_t* offset; // [kPanel], -128 times their sum: queries are stored + 128
    Norms norms;
};

// Queries in groups of kGroup; the last group is filled up with zeros.
struct QueryGroups {
    std::uint32_t* words; // [groups, words, kGroup]
    float* scale;         // [groups * kGroup]
    Norms* norms;         // [groups * kGroup]
};

#if MNEMO_X86
MNEMO_INTRINSICS_BEGIN

// Squares too small for a float are lost from a sum; this is more than the root of all that can be lost.
inline constexpr float kLostNorm = 1e-18f;
inline constexpr float kNormUp = 1.001f; // float sums of up to kMostFilterWidth squares in 8 lanes

MNEMO_AVX2 inline float sum8(__m256 v) {
    const __m128 u = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 w = _mm_add_ps(u, _mm_movehl_ps(u, u));
    return _mm_cvtss_f32(_mm_add_ss(w, _mm_movehdup_ps(w)));
}
MNEMO_AVX2 inline float max8(__m256 v) {
    const __m128 u = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 w = _mm_max_ps(u, _mm_movehl_ps(u, u));
    return _mm_cvtss_f32(_mm_max_ss(w, _mm_movehdup_ps(w)));
}

struct Centred {
    float squares, largest; // |x'|^2 and the largest |x'_j|
    Norms norms;
};
// out = row * factor - centre, padded with zeros to a multiple of 64.
template <class T>
MNEMO_AVX2 inline Centred centre_row(const T* row, float factor, const float* centre, index_t d, float* out) {
    const __m256 f = _mm256_set1_ps(factor), sign = _mm256_set1_ps(-0.0f);
    __m256 squares = _mm256_setzero_ps(), raw = squares, largest = squares;
    index_t j = 0;
    for (; j < d; j += 8) {
        __m256 x, c;
        if (j + 8 <= d) {
            x = load8(row + j);
            c = _mm256_loadu_ps(centre + j);
        } else {
            T last[8] = {};
            float last_centre[8] = {};
            std::copy_n(row + j, d - j, last);
            std::copy_n(centre + j, d - j, last_centre);
            x = load8(last), c = _mm256_loadu_ps(last_centre);
        }
        x = _mm256_mul_ps(x, f);
        raw = _mm256_fmadd_ps(x, x, raw);
        x = _mm256_sub_ps(x, c);
        squares = _mm256_fmadd_ps(x, x, squares);
        largest = _mm256_max_ps(largest, _mm256_andnot_ps(sign, x));
        _mm256_storeu_ps(out + j, x);
    }
    for (; j % 64 != 0; j += 8) _mm256_storeu_ps(out + j, _mm256_setzero_ps());
    Centred r;
    r.squares = sum8(squares), r.largest = max8(largest);
    r.norms.centred = std::sqrt(r.squares) * kNormUp + kLostNorm;
    r.norms.raw = std::sqrt(sum8(raw)) * kNormUp + kLostNorm;
    return r;
}

// Walsh-Hadamard of `n` elements, n >= 8 a power of two, after signs that look random; an orthogonal matrix. Returns
// the largest magnitude.
MNEMO_AVX2 inline __m256 rotate_power_of_two(float* x, index_t n, std::uint32_t seed) {
    const __m256 swap1 = _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1), swap2 = _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1),
                 swap4 = _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1), sign = _mm256_set1_ps(-0.0f);
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    for (index_t j = 0; j < n; j += 8) {
        // The upper bits of products with odd constants: the sign bits of a multiplicative hash.
        __m256i hash =
            _mm256_add_epi32(lane, _mm256_set1_epi32(static_cast<int>(seed + static_cast<std::uint32_t>(j))));
        hash = _mm256_mullo_epi32(hash, _mm256_set1_epi32(static_cast<int>(0x9e3779b1u)));
        hash = _mm256_mullo_epi32(_mm256_xor_si256(hash, _mm256_srli_epi32(hash, 15)),
                                  _mm256_set1_epi32(static_cast<int>(0x85ebca77u)));
        __m256 v = _mm256_xor_ps(_mm256_loadu_ps(x + j), _mm256_and_ps(_mm256_castsi256_ps(hash), sign));
        v = _mm256_fmadd_ps(v, swap1, _mm256_permute_ps(v, 0xb1));
        v = _mm256_fmadd_ps(v, swap2, _mm256_permute_ps(v, 0x4e));
        v = _mm256_fmadd_ps(v, swap4, _mm256_permute2f128_ps(v, v, 1));
        _mm256_storeu_ps(x + j, v);
    }
    for (index_t h = 8; h < n; h *= 2)
        for (index_t i = 0; i < n; i += 2 * h)
            for (index_t j = i; j < i + h; j += 8) {
                const __m256 a = _mm256_loadu_ps(x + j), b = _mm256_loadu_ps(x + j + h);
                _mm256_storeu_ps(x + j, _mm256_add_ps(a, b));
                _mm256_storeu_ps(x + j + h, _mm256_sub_ps(a, b));
            }
    const __m256 scale = _mm256_set1_ps(1 / std::sqrt(static_cast<float>(n)));
    __m256 largest = _mm256_setzero_ps();
    for (index_t j = 0; j < n; j += 8) {
        const __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + j), scale);
        _mm256_storeu_ps(x + j, v);
        largest = _mm256_max_ps(largest, _mm256_andnot_ps(sign, v));
    }
    return largest;
}
// The same for any multiple of 64, in blocks that are powers of two. Its rounding is kRotationError of the norm.
inline constexpr float kRotationError = 32 * 0x1p-24f;
MNEMO_AVX2 inline float rotate_row(float* x, index_t n) {
    __m256 largest = _mm256_setzero_ps();
    for (index_t done = 0; done < n;) {
        const auto block = static_cast<index_t>(std::bit_floor(static_cast<std::uint64_t>(n - done)));
        largest = _mm256_max_ps(largest, rotate_power_of_two(x + done, block, static_cast<std::uint32_t>(done)));
        done += block;
    }
    return max8(largest);
}

struct Rounded {
    float scale, residual;
    std::int32_t sum;
};
// Signed 8-bit integers of a centred row, `offset` added.
MNEMO_AVX512 inline Rounded round_row(const float* row, float largest, index_t d, int offset, std::int8_t* out) {
    Rounded r;
    r.scale = std::max(largest / 127, 1e-25f);
    const __m512 scale = _mm512_set1_ps(r.scale), inverse = _mm512_set1_ps(1 / r.scale);
    const __m512i most = _mm512_set1_epi32(127), least = _mm512_set1_epi32(-127), shift = _mm512_set1_epi32(offset);
    __m512 squares = _mm512_setzero_ps();
    __m512i sum = _mm512_setzero_si512();
    for (index_t j = 0; j < d; j += 16) {
        const __m512 x = _mm512_loadu_ps(row + j);
        const __m512i i =
            _mm512_max_epi32(least, _mm512_min_epi32(most, _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse))));
        const __m512 e = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(i), scale, x);
        squares = _mm512_fmadd_ps(e, e, squares);
        sum = _mm512_add_epi32(sum, i);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + j), _mm512_cvtepi32_epi8(_mm512_add_epi32(i, shift)));
    }
    alignas(64) std::array<float, 16> parts;
    alignas(64) std::array<std::int32_t, 16> sums;
    _mm512_store_ps(parts.data(), squares);
    _mm512_store_si512(sums.data(), sum);
    float total = 0;
    r.sum = 0;
    for (std::size_t l = 0; l < 16; ++l) total += parts[l], r.sum += sums[l];
    r.residual = std::sqrt(total) * kNormUp + kLostNorm;
    return r;
}

// in [kPanel, words] -> out [words, kPanel], words a multiple of 16: squares of 16 x 16 in registers, each step joining
// elements from twice as many rows.
MNEMO_AVX512 inline void transpose_panel_avx512(const std::uint32_t* in, index_t words, std::uint32_t* out) {
    for (index_t first = 0; first < kPanel; first += 16)
        for (index_t w = 0; w < words; w += 16) {
            __m512i a[16], b[16];
            MNEMO_UNROLL
            for (int r = 0; r < 16; ++r) a[r] = _mm512_loadu_si512(in + (first + r) * words + w);
            MNEMO_UNROLL
            for (int r = 0; r < 16; r += 2) {
                b[r] = _mm512_unpacklo_epi32(a[r], a[r + 1]);
                b[r + 1] = _mm512_unpackhi_epi32(a[r], a[r + 1]);
            }
            MNEMO_UNROLL
            for (int r = 0; r < 16; r += 4) {
                a[r] = _mm512_unpacklo_epi64(b[r], b[r + 2]);
                a[r + 1] = _mm512_unpackhi_epi64(b[r], b[r + 2]);
                a[r + 2] = _mm512_unpacklo_epi64(b[r + 1], b[r + 3]);
                a[r + 3] = _mm512_unpackhi_epi64(b[r + 1], b[r + 3]);
            }
            // a[4 g + c] holds columns c, c + 4, c + 8, c + 12 of the rows 4 g .. 4 g + 3.
            MNEMO_UNROLL
            for (int c = 0; c < 4; ++c) {
                const __m512i even_low = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88),
                              even_high = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88),
                              odd_low = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd),
                              odd_high = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
                std::uint32_t* column = out + (w + c) * kPanel + first;
                _mm512_storeu_si512(column, _mm512_shuffle_i32x4(even_low, even_high, 0x88));
                _mm512_storeu_si512(column + 4 * kPanel, _mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
                _mm512_storeu_si512(column + 8 * kPanel, _mm512_shuffle_i32x4(even_low, even_high, 0xdd));
                _mm512_storeu_si512(column + 12 * kPanel, _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
            }
        }
}
inline void transpose_panel_plain(const std::uint32_t* in, index_t words, std::uint32_t* out) {
    for (index_t l = 0; l < kPanel; ++l)
        for (index_t w = 0; w < words; ++w) out[w * kPanel + l] = in[l * words + w];
}

// ---- t for kGroup queries and kPanel keys: out [kGroup, kPanel]. ----

MNEMO_AVX512_VNNI inline __m512i dot4(__m512i sum, __m512i unsigned_bytes, __m512i signed_bytes) {
#if defined(__GNUC__) && !defined(__clang__)
    // The intrinsic makes g++ 12 copy every sum around the instruction, which halves the rate.
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "v"(signed_bytes));
    return sum;
#else
    return _mm512_dpbusd_epi32(sum, unsigned_bytes, signed_bytes);
#endif
}
template <int M>
MNEMO_AVX512_VNNI inline void multiply_int8(const std::uint32_t* q, const float* q_scale, const Panel& p, index_t words,
                                            float* out) {
    __m512i sum[M][3];
    MNEMO_UNROLL
    for (int m = 0; m < M; ++m) {
        MNEMO_UNROLL
        for (int v = 0; v < 3; ++v) sum[m][v] = _mm512_loadu_si512(p.offset + 16 * v);
    }
    for (index_t w = 0; w < words; ++w) {
        __m512i key[3];
        MNEMO_UNROLL
        for (int v = 0; v < 3; ++v) key[v] = _mm512_loadu_si512(p.words + w * kPanel + 16 * v);
        MNEMO_UNROLL
        for (int m = 0; m < M; ++m) {
            const __m512i a = _mm512_set1_epi32(static_cast<int>(q[w * kGroup + m]));
            MNEMO_UNROLL
            for (int v = 0; v < 3; ++v) sum[m][v] = dot4(sum[m][v], a, key[v]);
        }
    }
    MNEMO_UNROLL
    for (int v = 0; v < 3; ++v) {
        const __m512 scale = _mm512_loadu_ps(p.scale + 16 * v), bias = _mm512_loadu_ps(p.bias + 16 * v);
        MNEMO_UNROLL
        for (int m = 0; m < M; ++m)
            _mm512_storeu_ps(
                out + m * kPanel + 16 * v,
                _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[m][v]), _mm512_mul_ps(scale, _mm512_set1_ps(q_scale[m])), bias));
    }
}
template <int M>
MNEMO_AVX512 inline void multiply_float_avx512(const float* q, const Panel& p, index_t words, float* out) {
    const auto* keys = reinterpret_cast<const float*>(p.words);
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
    MNEMO_UNROLL
    for (int m = 0; m < M; ++m) {
        MNEMO_UNROLL
        for (int v = 0; v < 3; ++v) _mm512_storeu_ps(out + m * kPanel + 16 * v, sum[m][v]);
    }
}
// Half a panel and half a group at a time: 12 sums, 3 vectors of keys and a query fill the 16 registers.
template <int M> MNEMO_AVX2 inline void multiply_float_avx2(const float* q, const Panel& p, index_t words, float* out) {
    const auto* keys = reinterpret_cast<const float*>(p.words);
    for (index_t first = 0; first < kPanel; first += 24) {
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
                const __m256 a = _mm256_broadcast_ss(q + w * kGroup + m);
                MNEMO_UNROLL
                for (int v = 0; v < 3; ++v) sum[m][v] = _mm256_fmadd_ps(a, key[v], sum[m][v]);
            }
        }
        MNEMO_UNROLL
        for (int m = 0; m < M; ++m) {
            MNEMO_UNROLL
            for (int v = 0; v < 3; ++v) _mm256_storeu_ps(out + m * kPanel + first + 8 * v, sum[m][v]);
        }
    }
}

// Takes the lanes whose upper bound reaches the threshold, with their lower bounds.
MNEMO_AVX512 inline void take_avx512(const float* t, float error, std::uint32_t first_id, Candidates& c) {
    const __m512 limit = _mm512_set1_ps(c.threshold - error), e = _mm512_set1_ps(error);
    const __m512 a = _mm512_loadu_ps(t), b = _mm512_loadu_ps(t + 16), d = _mm512_loadu_ps(t + 32);
    const __mmask16 hits[3] = {_mm512_cmp_ps_mask(a, limit, _CMP_GE_OQ), _mm512_cmp_ps_mask(b, limit, _CMP_GE_OQ),
                               _mm512_cmp_ps_mask(d, limit, _CMP_GE_OQ)};
    if (!(hits[0] | hits[1] | hits[2])) return;
    const __m512 values[3] = {a, b, d};
    std::size_t n = c.count;
    for (std::uint32_t v = 0; v < 3; ++v)
        n += store_hits(hits[v], _mm512_sub_ps(values[v], e), ids_from(first_id + 16 * v), c.scores + n, c.ids + n);
    c.count = n;
}
inline void take_plain(const float* t, float error, std::uint32_t first_id, Candidates& c) {
    const float limit = c.threshold - error;
    const std::size_t n =
        append_at_least(t, static_cast<std::size_t>(kPanel), first_id, limit, c.scores + c.count, c.ids + c.count);
    for (std::size_t i = 0; i < n; ++i) c.scores[c.count + i] -= error;
    c.count += n;
}
MNEMO_INTRINSICS_END
#endif

} // namespace detail

/// The first pass over a block of queries. It packs keys as it goes, so the store needs nothing beside its keys; that
/// pays from about 16 queries on.
template <MetricTag MetricT> class Filter {
  public:
    /// Whether this machine, level and width have a filter.
    static bool available(index_t d) { return simd_level() >= SimdLevel::avx2 && d <= detail::kMostFilterWidth; }
    /// Whether it has integers; else only floats pay.
    static bool has_integers() { return simd_level() >= SimdLevel::avx512_vnni; }

#if MNEMO_X86
    /// Buffers for up to `block` queries of width d from `arena`.
    Filter(Arena& arena, index_t block, index_t d, FilterFormat format) : d_(d), stride_((d + 63) / 64 * 64) {
        use(format);
        const auto n = [](index_t x) { return static_cast<std::size_t>(x); };
        const index_t rows = (block + detail::kGroup - 1) / detail::kGroup * detail::kGroup;
        groups_.words = arena.take<std::uint32_t>(n(rows * words_)).data();
        groups_.scale = arena.take<float>(n(rows)).data();
        groups_.norms = arena.take<detail::Norms>(n(rows)).data();
        errors_ = arena.take<float>(n(rows)).data();
        panel_.words = arena.take<std::uint32_t>(n(words_ * detail::kPanel)).data();
        panel_.bias = arena.take<float>(n(detail::kPanel)).data();
        panel_.scale = arena.take<float>(n(detail::kPanel)).data();
        panel_.offset = arena.take<std::int32_t>(n(detail::kPanel)).data();
        rows_ = arena.take<float>(n(detail::kPanel * stride_)).data();
        bytes_ = arena.take<std::int8_t>(n(detail::kPanel * stride_)).data();
    }

    /// Another format from here on, one that needs no more room than that of the constructor (float32 needs most).
    void use(FilterFormat format) {
        format_ = format;
        words_ = integers() ? stride_ / 4 : stride_;
    }

    /// A centre for keys: the mean of a sample. Any vector is right; near the keys the bound is tighter.
    template <class T> static void centre_of(MatrixView<const T> keys, std::span<float> centre) {
        constexpr index_t sample = 1024;
        const index_t step = std::max<index_t>(keys.rows / sample, 1);
        std::fill(centre.begin(), centre.end(), 0.0f);
        index_t n = 0;
        for (index_t i = 0; i < keys.rows; i += step, ++n) {
            const float factor = normaliser(keys[i].data(), keys.cols);
            for (std::size_t j = 0; j < centre.size(); ++j) centre[j] += factor * to_float(keys[i][j]);
        }
        for (float& c : centre) c /= static_cast<float>(std::max<index_t>(n, 1));
    }

    /// Looks for candidates among keys [first, last), in the order of their ids: c[query * stride]. `full(query)` is
    /// called when a query's buffer has no room for a panel after raise(). Returns false, with nothing promised about
    /// the candidates, where a vector is too large for the bound: then score all keys.
    template <class T, class Full>
    bool scan(Rows queries, MatrixView<const T> keys, IdSet erased, const float* centre, index_t first, index_t last,
              Candidates* c, index_t stride, Full&& full) {
        if (!pack(queries, centre)) return false;
        widest_ = {-1, -1, -1};
        for (index_t begin = first; begin < last; begin += detail::kPanel) {
            if (!pack(keys.slice(begin, std::min(detail::kPanel, last - begin)), erased, begin, centre)) return false;
            scan_panel(queries.rows, static_cast<std::uint32_t>(begin), c, stride, full);
        }
        return true;
    }

  private:
    template <class T> static float normaliser(const T* row, index_t d) {
        if constexpr (MetricT::metric != Metric::cosine) return 1;
        float sum = 0;
        detail::sum_avx2<detail::Sum::products, 1>(row, 0, row, d, &sum);
        return sum > 0 ? static_cast<float>(1 / std::sqrt(static_cast<double>(sum))) : 0.0f;
    }
    bool integers() const { return detail::is_integer(format_); }
    // Rounds a centred row into `out` and says by how much it is off.
    detail::Rounded round(float* row, detail::Centred& centred, int offset, std::int8_t* out) const {
        const bool rotated = format_ == FilterFormat::rotated_int8;
        if (rotated) centred.largest = detail::rotate_row(row, stride_);
        const detail::Rounded r = detail::round_row(row, centred.largest, stride_, offset, out);
        centred.norms.residual = r.residual + (rotated ? detail::kRotationError * centred.norms.centred : 0.0f);
        return r;
    }

    bool pack(Rows queries, const float* centre) {
        const index_t padded = (queries.rows + detail::kGroup - 1) / detail::kGroup * detail::kGroup;
        std::fill_n(groups_.words, padded * words_, 0u);
        std::fill_n(groups_.scale, padded, 0.0f);
        const bool l2 = MetricT::metric == Metric::l2;
        if (!l2) std::fill_n(rows_ + stride_, stride_, 0.0f); // no centre
        for (index_t i = 0; i < queries.rows; ++i) {
            const float* q = queries[i].data();
            const float* shift = l2 ? centre : rows_ + stride_;
            detail::Centred centred = detail::centre_row(q, normaliser(q, d_), shift, d_, rows_);
            const auto* words = reinterpret_cast<const std::uint32_t*>(rows_);
            if (integers()) {
                groups_.scale[i] = round(rows_, centred, 128, bytes_).scale;
                words = reinterpret_cast<const std::uint32_t*>(bytes_);
            }
            groups_.norms[i] = centred.norms;
            if (!groups_.norms[i].usable()) return false;
            std::uint32_t* out = groups_.words + i / detail::kGroup * words_ * detail::kGroup + i % detail::kGroup;
            for (index_t w = 0; w < words_; ++w) out[w * detail::kGroup] = words[w];
        }
        return true;
    }

    template <class T> bool pack(MatrixView<const T> keys, IdSet erased, index_t first_id, const float* centre) {
        panel_.norms = {};
        for (index_t l = 0; l < detail::kPanel; ++l) {
            panel_.bias[l] = -std::numeric_limits<float>::infinity();
            panel_.scale[l] = 0, panel_.offset[l] = 0;
            if (l >= keys.rows || erased.contains(first_id + l)) {
                if (integers())
                    std::fill_n(bytes_ + l * stride_, stride_, std::int8_t{0});
                else
                    std::fill_n(rows_ + l * stride_, stride_, 0.0f);
                continue;
            }
            float* row = rows_ + (integers() ? 0 : l * stride_);
            const T* key = keys[l].data();
            detail::Centred centred = detail::centre_row(key, normaliser(key, d_), centre, d_, row);
            if (integers()) {
                const detail::Rounded r = round(row, centred, 0, bytes_ + l * stride_);
                panel_.scale[l] = r.scale, panel_.offset[l] = -128 * r.sum;
            }
            if (!centred.norms.usable()) return false;
            panel_.bias[l] = MetricT::metric == Metric::l2 ? -0.5f * centred.squares : 0.0f;
            panel_.norms.widen(centred.norms);
        }
        const auto* in =
            integers() ? reinterpret_cast<const std::uint32_t*>(bytes_) : reinterpret_cast<const std::uint32_t*>(rows_);
        if (simd_level() >= SimdLevel::avx512)
            detail::transpose_panel_avx512(in, words_, panel_.words);
        else
            detail::transpose_panel_plain(in, words_, panel_.words);
        return true;
    }

    // One bound a query for all panels so far: it changes only where a panel's norms are the largest yet.
    void update_errors(index_t queries) {
        const detail::Norms n = panel_.norms;
        if (n.centred <= widest_.centred && n.residual <= widest_.residual && n.raw <= widest_.raw) return;
        widest_.widen(n);
        for (index_t i = 0; i < queries; ++i)
            errors_[i] = detail::filter_error<MetricT>(groups_.norms[i], widest_, format_, d_);
    }

    template <class Full>
    void scan_panel(index_t queries, std::uint32_t first_id, Candidates* c, index_t stride, Full&& full) {
        const bool wide = simd_level() >= SimdLevel::avx512;
        update_errors(queries);
        alignas(64) std::array<float, detail::kGroup * detail::kPanel> t;
        for (index_t g = 0; g < queries; g += detail::kGroup) {
            const std::uint32_t* q = groups_.words + g * words_;
            const auto* floats = reinterpret_cast<const float*>(q);
            if (integers())
                detail::multiply_int8<8>(q, groups_.scale + g, panel_, words_, t.data());
            else if (wide)
                detail::multiply_float_avx512<8>(floats, panel_, words_, t.data());
            else {
                detail::multiply_float_avx2<4>(floats, panel_, words_, t.data());
                detail::multiply_float_avx2<4>(floats + 4, panel_, words_, t.data() + 4 * detail::kPanel);
            }
            const index_t rows = std::min(detail::kGroup, queries - g);
            for (index_t m = 0; m < rows; ++m) {
                Candidates& mine = c[(g + m) * stride];
                const float error = errors_[g + m];
                mine.error = error;
                if (!mine.has_room_for(detail::kPanel)) mine.raise();
                if (!mine.has_room_for(detail::kPanel)) full(g + m);
                if (wide)
                    detail::take_avx512(t.data() + m * detail::kPanel, error, first_id, mine);
                else
                    detail::take_plain(t.data() + m * detail::kPanel, error, first_id, mine);
            }
        }
    }

    index_t d_, words_, stride_; // stride_ elements of a row in rows_ and bytes_
    FilterFormat format_;
    detail::QueryGroups groups_{};
    detail::Panel panel_{};
    detail::Norms widest_; // of the panels so far
    float* errors_;        // [block], the bound for them
    float* rows_;          // [kPanel, stride_] centred
    std::int8_t* bytes_;   // [kPanel, stride_]
#endif
};

} // namespace mnemo
