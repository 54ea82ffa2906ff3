// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/arena.hpp>
#include <mnemo/kernels/cpu.hpp>
#include <mnemo/kernels/filter_bound.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

// Rounds keys and queries for the first pass (kernels/filter_bound.hpp) and lays keys out in panels: 48 side by side, a
// 32-bit word of each in turn, so that a vector holds the same word of 16 keys.

namespace mnemo {

namespace detail {

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
    float scale = 1, residual = 0;
    std::int32_t sum = 0;
};
// Signed integers of a centred row, up to `most_int` <= 127 in magnitude, with `offset` added. The row becomes what
// rounding has cut off, and its largest magnitude is returned in `largest`.
MNEMO_AVX512 inline Rounded round_to_int8_avx512(float* row, float& largest, index_t d, int most_int, int offset,
                                                 std::int8_t* out) {
    Rounded r;
    r.scale = std::max(largest / static_cast<float>(most_int), 1e-25f);
    const __m512 scale = _mm512_set1_ps(r.scale), inverse = _mm512_set1_ps(1 / r.scale);
    const __m512i most = _mm512_set1_epi32(most_int), least = _mm512_set1_epi32(-most_int),
                  shift = _mm512_set1_epi32(offset);
    __m512 squares = _mm512_setzero_ps(), most_left = squares;
    __m512i sum = _mm512_setzero_si512();
    for (index_t j = 0; j < d; j += 16) {
        const __m512 x = _mm512_loadu_ps(row + j);
        const __m512i i =
            _mm512_max_epi32(least, _mm512_min_epi32(most, _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse))));
        const __m512 e = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(i), scale, x);
        _mm512_storeu_ps(row + j, e);
        squares = _mm512_fmadd_ps(e, e, squares);
        most_left = _mm512_max_ps(most_left, _mm512_abs_ps(e));
        sum = _mm512_add_epi32(sum, i);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + j), _mm512_cvtepi32_epi8(_mm512_add_epi32(i, shift)));
    }
    r.sum = _mm512_reduce_add_epi32(sum);
    r.residual = std::sqrt(_mm512_reduce_add_ps(squares)) * kNormUp + kLostNorm;
    largest = _mm512_reduce_max_ps(most_left);
    return r;
}
MNEMO_AVX2 inline Rounded round_to_int8_avx2(float* row, float& largest, index_t d, int most_int, int offset,
                                             std::int8_t* out) {
    Rounded r;
    r.scale = std::max(largest / static_cast<float>(most_int), 1e-25f);
    const __m256 scale = _mm256_set1_ps(r.scale), inverse = _mm256_set1_ps(1 / r.scale), sign = _mm256_set1_ps(-0.0f);
    const __m256i most = _mm256_set1_epi32(most_int), least = _mm256_set1_epi32(-most_int),
                  shift = _mm256_set1_epi32(offset);
    __m256 squares = _mm256_setzero_ps(), most_left = squares;
    __m256i sum = _mm256_setzero_si256();
    for (index_t j = 0; j < d; j += 8) {
        const __m256 x = _mm256_loadu_ps(row + j);
        const __m256i i =
            _mm256_max_epi32(least, _mm256_min_epi32(most, _mm256_cvtps_epi32(_mm256_mul_ps(x, inverse))));
        const __m256 e = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(i), scale, x);
        _mm256_storeu_ps(row + j, e);
        squares = _mm256_fmadd_ps(e, e, squares);
        most_left = _mm256_max_ps(most_left, _mm256_andnot_ps(sign, e));
        sum = _mm256_add_epi32(sum, i);
        const __m256i shifted = _mm256_add_epi32(i, shift); // within -127 .. 127
        const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(shifted), _mm256_extracti128_si256(shifted, 1));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(out + j), _mm_packs_epi16(words, words));
    }
    alignas(32) std::array<std::int32_t, 8> lane;
    _mm256_store_si256(reinterpret_cast<__m256i*>(lane.data()), sum);
    for (const std::int32_t s : lane) r.sum += s;
    r.residual = std::sqrt(sum8(squares)) * kNormUp + kLostNorm;
    largest = max8(most_left);
    return r;
}
// Queries are stored unsigned, and as small as the products here want them.
inline Rounded round_to_int8(float* row, float& largest, index_t d, bool query, std::int8_t* out) {
    const int most = query ? largest_of_query() : 127, offset = query ? most + 1 : 0;
    return simd_level() >= SimdLevel::avx512 ? round_to_int8_avx512(row, largest, d, most, offset, out)
                                             : round_to_int8_avx2(row, largest, d, most, offset, out);
}
// To the nearest bfloat16, ties to even.
MNEMO_AVX512 inline Rounded round_to_bfloat16(const float* row, index_t d, std::uint16_t* out) {
    __m512 squares = _mm512_setzero_ps();
    for (index_t j = 0; j < d; j += 16) {
        const __m512i x = _mm512_loadu_si512(row + j);
        const __m512i even = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
        const __m512i y = _mm512_srli_epi32(_mm512_add_epi32(x, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff))), 16);
        const __m512 e = _mm512_sub_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(_mm512_slli_epi32(y, 16)));
        squares = _mm512_fmadd_ps(e, e, squares);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + j), _mm512_cvtepi32_epi16(y));
    }
    Rounded r;
    r.residual = std::sqrt(_mm512_reduce_add_ps(squares)) * kNormUp + kLostNorm;
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
inline void transpose_panel(const std::uint32_t* in, index_t words, std::uint32_t* out) {
    simd_level() >= SimdLevel::avx512 ? transpose_panel_avx512(in, words, out) : transpose_panel_plain(in, words, out);
}

MNEMO_INTRINSICS_END
#endif

// What one panel of keys looks like to the first pass. Lanes without a key have bias -inf.
struct Panel {
    std::uint32_t* words; // [words, kPanel]
    float* bias;          // [kPanel]
    float* scale;         // [kPanel], of the key's integers
    std::int32_t* offset; // [kPanel], -128 times their sum: queries are stored + 128
    std::uint32_t* bound; // [kPanel], see bound_of_key
    Norms* norms;
};

// Rounds vectors, one at a time.
template <MetricTag MetricT> class Rounding {
  public:
    Rounding(index_t d, FilterFormat format) : d_(d), stride_(filter_stride(d)), format_(format) {}

    FilterFormat format() const { return format_; }
    index_t words() const { return filter_words(format_, d_); }

#if MNEMO_X86
    struct Row {
        Norms norms;
        float squares; // |x'|^2
        Rounded first, second;
    };
    // out [words] and, where `second` is given, another integer plane of what the first one cut off; scratch [stride].
    template <class T>
    Row round(const T* row, const float* centre, bool query, float* scratch, std::uint32_t* out,
              std::uint32_t* second = nullptr) const {
        Row r{};
        float* centred = format_ == FilterFormat::float32 ? reinterpret_cast<float*>(out) : scratch;
        Centred c = centre_row(row, normaliser(row), centre, d_, centred);
        r.squares = c.squares;
        if (is_integer(format_)) {
            if (format_ == FilterFormat::rotated_int8) c.largest = rotate_row(scratch, stride_);
            r.first = round_to_int8(scratch, c.largest, stride_, query, reinterpret_cast<std::int8_t*>(out));
            c.norms.residual = r.first.residual;
            if (second) {
                r.second = round_to_int8(scratch, c.largest, stride_, query, reinterpret_cast<std::int8_t*>(second));
                c.norms.residual = r.second.residual + 0x1p-22f * r.first.residual; // what was cut off was rounded, too
            }
            if (format_ == FilterFormat::rotated_int8) c.norms.residual += kRotationError * c.norms.centred;
        } else if (format_ == FilterFormat::bfloat16) {
            r.first = round_to_bfloat16(scratch, stride_, reinterpret_cast<std::uint16_t*>(out));
            c.norms.residual = r.first.residual;
        }
        r.norms = c.norms;
        return r;
    }

    // Up to kPanel keys; rows [kPanel, words] and scratch [stride] are buffers.
    template <class T>
    void pack(MatrixView<const T> keys, const float* centre, float* scratch, std::uint32_t* rows, Panel out) const {
        *out.norms = {};
        for (index_t l = 0; l < kPanel; ++l) {
            std::uint32_t* words_of_row = rows + l * words();
            if (l >= keys.rows) {
                std::fill_n(words_of_row, words(), 0u);
                out.bias[l] = -std::numeric_limits<float>::infinity(), out.scale[l] = 0, out.offset[l] = 0;
                out.bound[l] = 0;
                continue;
            }
            set(l, round(keys[l].data(), centre, false, scratch, words_of_row), out);
        }
        transpose_panel(rows, words(), out.words);
    }
    // One key of a panel; norms only widen.
    template <class T>
    void pack_one(const T* key, index_t lane, const float* centre, float* scratch, std::uint32_t* row,
                  Panel out) const {
        set(lane, round(key, centre, false, scratch, row), out);
        for (index_t w = 0; w < words(); ++w) out.words[w * kPanel + lane] = row[w];
    }

    // Cosine looks at directions only.
    template <class T> float normaliser(const T* row) const {
        if constexpr (MetricT::metric != Metric::cosine) return 1;
        float sum = 0;
        sum_avx2<Sum::products, 1>(row, 0, row, d_, &sum);
        return sum > 0 ? static_cast<float>(1 / std::sqrt(static_cast<double>(sum))) : 0.0f;
    }

  private:
    static void set(index_t lane, const Row& r, Panel out) {
        out.bias[lane] = MetricT::metric == Metric::l2 ? -0.5f * r.squares : 0.0f;
        out.scale[lane] = r.first.scale, out.offset[lane] = -128 * r.first.sum;
        out.bound[lane] = bound_of_key(r.norms);
        out.norms->widen(r.norms);
    }
#endif

  private:
    index_t d_, stride_;
    FilterFormat format_;
};

/// A centre for keys: the mean of a sample, normalised for Cosine. Any vector is right; near the keys the bound is
/// tighter.
#if MNEMO_X86
template <MetricTag MetricT, class T> void mean_of(MatrixView<const T> keys, std::span<float> centre) {
    constexpr index_t sample = 1024;
    const index_t step = std::max<index_t>(keys.rows / sample, 1);
    const Rounding<MetricT> rounding(keys.cols, FilterFormat::float32);
    std::fill(centre.begin(), centre.end(), 0.0f);
    index_t n = 0;
    for (index_t i = 0; i < keys.rows; i += step, ++n) {
        const float factor = rounding.normaliser(keys[i].data());
        for (std::size_t j = 0; j < centre.size(); ++j) centre[j] += factor * to_float(keys[i][j]);
    }
    for (float& c : centre) c /= static_cast<float>(std::max<index_t>(n, 1));
}
#endif

} // namespace detail

} // namespace mnemo
