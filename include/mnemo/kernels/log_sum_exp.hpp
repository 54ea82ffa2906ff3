// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/kernels/cpu.hpp>
#include <mnemo/kernels/multiply_add.hpp>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>

namespace mnemo {

// Exponentials, logarithms and their sums over spans. Results are the same bits at every SIMD level: every
// multiply-add is a fused one, and sums run over 16 lanes that are added by a fixed tree. Errors: exp and log 2 ulp,
// sums of n terms about log2(n) ulp more. -inf is log 0 everywhere. exp below 2^-126 is 0, log of it is -inf.

inline constexpr float kLogZero = -std::numeric_limits<float>::infinity();

namespace detail::math {

// Constants of the Cephes library's expf and logf (S. Moshier): ln 2 in two parts, minimax polynomials.
inline constexpr float kLog2E = 1.44269504088896341f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
inline constexpr float kRounder = 12582912.0f;    // 1.5 * 2^23: adding it rounds to an integer
inline constexpr float kLowestExp = -87.3365402f; // exp of it is the least normal float
inline constexpr float kHalfSqrt = 0.707106781f;  // mantissas are taken from [sqrt(1/2), sqrt(2))
inline constexpr float kExp[6] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                  4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
inline constexpr float kLog[9] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                                  -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                                  2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};

constexpr std::size_t kLanes = 16;
constexpr std::size_t kSumBlock = 512; // short float sums, added up in double

/// exp(x) for x <= 0.
inline float exp_one(float x) {
    if (x < kLowestExp) return 0.0f;
    const float shifted = fused_multiply_add(x, kLog2E, kRounder), n = shifted - kRounder;
    const float r = fused_multiply_add(n, -kLn2Low, fused_multiply_add(n, -kLn2High, x));
    float p = kExp[0];
    for (int i = 1; i < 6; ++i) p = fused_multiply_add(p, r, kExp[i]);
    const std::uint32_t power = std::bit_cast<std::uint32_t>(shifted) << 23;
    return (fused_multiply_add(p, r * r, r) + 1.0f) * std::bit_cast<float>(power + 0x3f800000u);
}

inline float log_one(float x) {
    if (!(x >= std::numeric_limits<float>::min())) return std::isnan(x) ? x : kLogZero;
    if (x == std::numeric_limits<float>::infinity()) return x;
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
    float m = std::bit_cast<float>((bits & 0x007fffffu) | 0x3f000000u); // [1/2, 1)
    float e = static_cast<float>(static_cast<std::int32_t>(bits >> 23) - 126);
    const bool low = m < kHalfSqrt;
    e = low ? e - 1.0f : e;
    m = (low ? m + m : m) - 1.0f;
    float p = kLog[0];
    for (int i = 1; i < 9; ++i) p = fused_multiply_add(p, m, kLog[i]);
    const float z = m * m;
    const float y = fused_multiply_add(-0.5f, z, fused_multiply_add(e, kLn2Low, p * (m * z)));
    return fused_multiply_add(e, kLn2High, m + y);
}

/// log(exp(a) + exp(b)), in float: what log_add_each does to one pair.
inline float log_add_one(float a, float b) {
    const float high = a > b ? a : b, low = a > b ? b : a;
    if (high == kLogZero) return high;
    const float e = exp_one(low - high), u = 1.0f + e; // u rounds, the quotient gives back what was lost
    return high + (log_one(u) + (e - (u - 1.0f)) / u);
}

inline float sum_lanes(const float (&lanes)[kLanes]) {
    float s[kLanes / 2];
    for (std::size_t i = 0; i < 8; ++i) s[i] = lanes[i] + lanes[i + 8];
    for (std::size_t i = 0; i < 4; ++i) s[i] += s[i + 4];
    return (s[0] + s[2]) + (s[1] + s[3]);
}

struct Plain {
    static float max(const float* x, std::size_t n) {
        float m = kLogZero;
        for (std::size_t i = 0; i < n; ++i) m = m > x[i] ? m : x[i];
        return m;
    }
    /// sum of exp((x - shift) * scale); the terms go to `out` unless it is null. n <= kSumBlock.
    static float exp_sum(const float* x, std::size_t n, float shift, float scale, float* out) {
        float lanes[kLanes] = {};
        for (std::size_t i = 0; i < n; ++i) {
            const float e = exp_one((x[i] - shift) * scale);
            lanes[i % kLanes] += e;
            if (out) out[i] = e;
        }
        return sum_lanes(lanes);
    }
    static void log_each(float* x, std::size_t n) {
        for (std::size_t i = 0; i < n; ++i) x[i] = log_one(x[i]);
    }
    static void log_add_each(float* into, const float* other, std::size_t n) {
        for (std::size_t i = 0; i < n; ++i) into[i] = log_add_one(into[i], other[i]);
    }
    static void add_each(float* x, float c, std::size_t n) {
        for (std::size_t i = 0; i < n; ++i) x[i] += c;
    }
};

#if MNEMO_X86
MNEMO_AVX2 inline __m256 exp_eight(__m256 x) {
    const __m256 rounder = _mm256_set1_ps(kRounder);
    const __m256 shifted = _mm256_fmadd_ps(x, _mm256_set1_ps(kLog2E), rounder), n = _mm256_sub_ps(shifted, rounder);
    const __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-kLn2Low), _mm256_fmadd_ps(n, _mm256_set1_ps(-kLn2High), x));
    __m256 p = _mm256_set1_ps(kExp[0]);
    for (int i = 1; i < 6; ++i) p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(kExp[i]));
    const __m256i power =
        _mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(shifted), 23), _mm256_set1_epi32(0x3f800000));
    const __m256 mantissa = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
    const __m256 zero = _mm256_cmp_ps(x, _mm256_set1_ps(kLowestExp), _CMP_LT_OQ);
    return _mm256_andnot_ps(zero, _mm256_mul_ps(mantissa, _mm256_castsi256_ps(power)));
}

MNEMO_AVX2 inline __m256 log_eight(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i half_exponent = _mm256_set1_epi32(0x3f000000);
    __m256 m =
        _mm256_castsi256_ps(_mm256_or_si256(_mm256_and_si256(bits, _mm256_set1_epi32(0x007fffff)), half_exponent));
    __m256 e = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_srli_epi32(bits, 23), _mm256_set1_epi32(126)));
    const __m256 one = _mm256_set1_ps(1.0f), low = _mm256_cmp_ps(m, _mm256_set1_ps(kHalfSqrt), _CMP_LT_OQ);
    e = _mm256_sub_ps(e, _mm256_and_ps(low, one));
    m = _mm256_sub_ps(_mm256_add_ps(m, _mm256_and_ps(low, m)), one);
    __m256 p = _mm256_set1_ps(kLog[0]);
    for (int i = 1; i < 9; ++i) p = _mm256_fmadd_ps(p, m, _mm256_set1_ps(kLog[i]));
    const __m256 z = _mm256_mul_ps(m, m);
    __m256 y = _mm256_mul_ps(p, _mm256_mul_ps(m, z));
    y = _mm256_fmadd_ps(_mm256_set1_ps(-0.5f), z, _mm256_fmadd_ps(e, _mm256_set1_ps(kLn2Low), y));
    const __m256 result = _mm256_fmadd_ps(e, _mm256_set1_ps(kLn2High), _mm256_add_ps(m, y));
    const __m256 least = _mm256_set1_ps(std::numeric_limits<float>::min());
    const __m256 infinity = _mm256_set1_ps(std::numeric_limits<float>::infinity());
    const __m256 tiny = _mm256_cmp_ps(x, least, _CMP_LT_OQ), keep = _mm256_cmp_ps(x, infinity, _CMP_EQ_UQ);
    return _mm256_blendv_ps(_mm256_blendv_ps(result, _mm256_set1_ps(kLogZero), tiny), x, keep); // inf and NaN stay
}

MNEMO_AVX2 inline __m256 log_add_eight(__m256 a, __m256 b) {
    const __m256 one = _mm256_set1_ps(1.0f), above = _mm256_cmp_ps(a, b, _CMP_GT_OQ);
    const __m256 high = _mm256_blendv_ps(b, a, above), low = _mm256_blendv_ps(a, b, above);
    const __m256 e = exp_eight(_mm256_sub_ps(low, high)), u = _mm256_add_ps(one, e);
    const __m256 lost = _mm256_div_ps(_mm256_sub_ps(e, _mm256_sub_ps(u, one)), u);
    const __m256 sum = _mm256_add_ps(high, _mm256_add_ps(log_eight(u), lost));
    return _mm256_blendv_ps(sum, high, _mm256_cmp_ps(high, _mm256_set1_ps(kLogZero), _CMP_EQ_OQ));
}

struct Avx2 {
    MNEMO_AVX2 static float max(const float* x, std::size_t n) {
        __m256 high[4];
        for (__m256& h : high) h = _mm256_set1_ps(kLogZero);
        std::size_t i = 0;
        for (; i + 32 <= n; i += 32)
            for (std::size_t j = 0; j < 4; ++j) high[j] = _mm256_max_ps(high[j], _mm256_loadu_ps(x + i + 8 * j));
        float lanes[8];
        _mm256_storeu_ps(lanes, _mm256_max_ps(_mm256_max_ps(high[0], high[1]), _mm256_max_ps(high[2], high[3])));
        return std::max(Plain::max(lanes, 8), Plain::max(x + i, n - i));
    }
    MNEMO_AVX2 static float exp_sum(const float* x, std::size_t n, float shift, float scale, float* out) {
        const __m256 shifts = _mm256_set1_ps(shift), scales = _mm256_set1_ps(scale);
        __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
        for (std::size_t i = 0; i < n; i += kLanes) {
            const std::size_t rest = std::min(kLanes, n - i);
            float padded[kLanes], ends[kLanes];
            const float* from = x + i;
            if (rest < kLanes) {
                std::fill_n(padded, kLanes, kLogZero);
                std::copy_n(from, rest, padded);
                from = padded;
            }
            const __m256 a = exp_eight(_mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(from), shifts), scales));
            const __m256 b = exp_eight(_mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(from + 8), shifts), scales));
            low = _mm256_add_ps(low, a), high = _mm256_add_ps(high, b);
            if (out) {
                float* to = rest < kLanes ? ends : out + i;
                _mm256_storeu_ps(to, a), _mm256_storeu_ps(to + 8, b);
                if (rest < kLanes) std::copy_n(ends, rest, out + i);
            }
        }
        float lanes[kLanes];
        _mm256_storeu_ps(lanes, low), _mm256_storeu_ps(lanes + 8, high);
        return sum_lanes(lanes);
    }
    MNEMO_AVX2 static void log_each(float* x, std::size_t n) {
        std::size_t i = 0;
        for (; i + 8 <= n; i += 8) _mm256_storeu_ps(x + i, log_eight(_mm256_loadu_ps(x + i)));
        Plain::log_each(x + i, n - i);
    }
    MNEMO_AVX2 static void log_add_each(float* into, const float* other, std::size_t n) {
        std::size_t i = 0;
        for (; i + 8 <= n; i += 8)
            _mm256_storeu_ps(into + i, log_add_eight(_mm256_loadu_ps(into + i), _mm256_loadu_ps(other + i)));
        Plain::log_add_each(into + i, other + i, n - i);
    }
    MNEMO_AVX2 static void add_each(float* x, float c, std::size_t n) {
        const __m256 constant = _mm256_set1_ps(c);
        std::size_t i = 0;
        for (; i + 8 <= n; i += 8) _mm256_storeu_ps(x + i, _mm256_add_ps(_mm256_loadu_ps(x + i), constant));
        Plain::add_each(x + i, c, n - i);
    }
};
#endif

/// f(math) with the functions of this machine's level.
decltype(auto) dispatch(auto&& f) {
#if MNEMO_X86
    if (simd_level() >= SimdLevel::avx2) return f(Avx2{});
#endif
    return f(Plain{});
}

} // namespace detail::math

/// log(exp(a) + exp(b)), rounded once.
inline float log_add(double a, double b) {
    if (a < b) std::swap(a, b);
    return static_cast<float>(std::isinf(a) ? a : a + std::log1p(std::exp(b - a)));
}

/// The largest element; -inf of nothing.
inline float max_value(std::span<const float> x) {
    return detail::math::dispatch([&](auto math) { return math.max(x.data(), x.size()); });
}

/// Sum of exp((x_j - shift) * scale); no exponent may be above 0. The terms go to `out` unless it is empty.
inline double exp_sum(std::span<const float> x, float shift, float scale = 1.0f, std::span<float> out = {}) {
    assert(out.empty() || out.size() == x.size());
    return detail::math::dispatch([&](auto math) {
        double sum = 0;
        for (std::size_t i = 0; i < x.size(); i += detail::math::kSumBlock)
            sum += static_cast<double>(math.exp_sum(x.data() + i, std::min(detail::math::kSumBlock, x.size() - i),
                                                    shift, scale, out.empty() ? nullptr : out.data() + i));
        return sum;
    });
}

/// A log-sum-exp that grows: by numbers, spans, other sums. Associative up to rounding.
struct LogSumExp {
    float max = kLogZero; // of what was added
    double sum = 0;       // of exp(x - max)

    void add(float x) { add(LogSumExp{x, 1.0}); }
    void add(std::span<const float> x) {
        // Blocks that stay in the first-level cache: one pass over memory, although the maximum comes first.
        for (std::size_t i = 0; i < x.size(); i += kBlock) {
            const auto block = x.subspan(i, std::min(kBlock, x.size() - i));
            raise(max_value(block));
            if (!(max > kHighest)) sum += exp_sum(block, max == kLogZero ? 0.0f : max);
        }
    }
    void add(const LogSumExp& other) {
        if (other.max == kLogZero) return;
        raise(other.max);
        sum += other.max == max ? other.sum : other.sum * std::exp(double{other.max} - double{max});
    }
    double value() const { return max > kHighest ? double{max} : double{max} + std::log(sum); }

  private:
    static constexpr std::size_t kBlock = 2048;
    static constexpr float kHighest = std::numeric_limits<float>::max();
    void raise(float to) {
        if (!(to > max)) return;
        if (max != kLogZero) sum *= std::exp(double{max} - double{to});
        max = to;
    }
};

/// log of the sum of exp(x_j), in one pass over memory; -inf of nothing.
inline double log_sum_exp(std::span<const float> x) {
    LogSumExp total;
    total.add(x);
    return total.value();
}

/// x_j = log(x_j).
inline void log_each(std::span<float> x) {
    detail::math::dispatch([&](auto math) { math.log_each(x.data(), x.size()); });
}
/// x_j = x_j + c.
inline void add_each(std::span<float> x, float c) {
    detail::math::dispatch([&](auto math) { math.add_each(x.data(), c, x.size()); });
}
/// into_j = log(exp(into_j) + exp(other_j)).
inline void log_add_each(std::span<float> into, std::span<const float> other) {
    assert(into.size() == other.size());
    detail::math::dispatch([&](auto math) { math.log_add_each(into.data(), other.data(), into.size()); });
}
/// Log-probabilities of logits, in place.
inline void log_softmax(std::span<float> logits) { add_each(logits, static_cast<float>(-log_sum_exp(logits))); }

} // namespace mnemo
