// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/matrix_view.hpp>
#include <mnemo/kernels/cpu.hpp>
#include <mnemo/kernels/metric.hpp>
#include <mnemo/kernels/score.hpp>

#include <algorithm>
#include <bit>
#include <cstdint>

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
// E is another for each query and key: keys far from the centre, or with a large element, must not make the bound wide
// for all. u = t + E is an upper bound of s, and u - 2 E' a lower one where E' is the largest E of the query. If T is
// the k-th largest lower bound, or the k-th largest of any exact scores, every key of the k best, ties included, has u
// >= T.

namespace mnemo {

/// How the first pass sees keys and queries: as 8-bit integers with a scale a vector, the same after a rotation, as
/// bfloat16, or as floats, summed without the care and the cost of the canonical score. The rotation changes no score
/// and spreads a few large elements, beside which 8 bits would see no others, over all.
enum class FilterFormat : std::uint8_t { int8, rotated_int8, bfloat16, float32 };

constexpr std::string_view name(FilterFormat f) {
    constexpr std::string_view names[] = {"int8", "rotated_int8", "bfloat16", "float32"};
    return names[static_cast<int>(f)];
}

namespace detail {

inline constexpr index_t kPanel = 48;              // keys side by side: three vectors of 16
inline constexpr index_t kGroup = 8;               // queries that share the loads of keys
inline constexpr float kMostNorm = 1e15f;          // beyond, squares come near the end of the floats
inline constexpr index_t kMostFilterWidth = 65536; // 127 * 255 * d must fit an int32, and the bounds below hold

constexpr bool is_integer(FilterFormat f) { return f <= FilterFormat::rotated_int8; }
// Whether integers are multiplied here. AVX-512 without VNNI multiplies floats as fast.
inline bool multiplies_integers() { return simd_level() == SimdLevel::avx2 || simd_level() >= SimdLevel::avx512_vnni; }
// The largest integer of a query. Without VNNI sums of two products must fit 16 bits.
inline int largest_of_query() { return simd_level() == SimdLevel::avx2 ? 63 : 127; }
// Elements of a row as the first pass holds it: padded with zeros to whole vectors.
constexpr index_t filter_stride(index_t d) { return (d + 63) / 64 * 64; }
// 32-bit words of a rounded row.
constexpr index_t filter_words(FilterFormat f, index_t d) {
    return filter_stride(d) / (is_integer(f) ? 4 : f == FilterFormat::bfloat16 ? 2 : 1);
}

// The largest norms of some vectors, rounded up.
struct Norms {
    float centred = 0, residual = 0, raw = 0;                              // |x'|, |x' - x^|, |x|
    bool usable() const { return centred < kMostNorm && raw < kMostNorm; } // false for NaN
    void widen(Norms n) {
        centred = std::max(centred, n.centred), residual = std::max(residual, n.residual), raw = std::max(raw, n.raw);
    }
};

// E = slope (|e_x| + ratio |x^|) + rounding, with slope and ratio of the query alone. The factor covers the rounding of
// the bound itself.
struct BoundOfQuery {
    float slope = 0, ratio = 0;
    BoundOfQuery() = default;
    explicit BoundOfQuery(Norms q) : slope(1.01f * q.centred), ratio(q.centred > 0 ? q.residual / q.centred : 0.0f) {}
};
// |x^| and |e_x| in one word, rounded up to bfloat16.
inline std::uint32_t bound_of_key(Norms x) {
    const auto up = [](float f) { return (std::bit_cast<std::uint32_t>(f) + 0xffffu) >> 16; };
    return up(x.centred + x.residual) << 16 | up(x.residual);
}
inline float rounded_norm(std::uint32_t bound) { return std::bit_cast<float>(bound & 0xffff0000u); }
inline float residual_norm(std::uint32_t bound) { return std::bit_cast<float>(bound << 16); }

// What rounding adds to |t - s| for any query of norms q and key of norms x, in width d.
template <MetricTag MetricT> float filter_rounding(Norms q, Norms x, FilterFormat format, index_t d) {
    constexpr float unit = 0x1p-24f;
    constexpr bool l2 = MetricT::metric == Metric::l2, cosine = MetricT::metric == Metric::cosine;
    const auto width = static_cast<float>(d);
    const float product = (q.centred + q.residual) * (x.centred + x.residual);
    // Sums of d products in a lane of floats; with integers only the scales and the bias round. The instruction for
    // bfloat16 rounds twice a product and takes subnormal numbers for zero.
    const float summed = (is_integer(format) ? 16.0f : 2 * width + 12) * product;
    // Rounding of q', x' and b, and of the sums that b is made of.
    const float prepared = 16 * q.centred * x.centred + (l2 ? (width / 8 + 16) * x.centred * x.centred : 0.0f);
    const float lanes = width / kLanes + 12;
    const float both = q.centred + x.centred;
    const float canonical = l2 ? lanes * 0.5f * both * both : (cosine ? 4.0f : 1.0f) * lanes * q.raw * x.raw;
    const float underflow = width * ((cosine ? 1e-20f : 1e-37f) + 1.2e-38f * (q.centred + x.centred));
    return 1.01f * (unit * (summed + prepared + canonical) + underflow);
}

} // namespace detail

} // namespace mnemo
