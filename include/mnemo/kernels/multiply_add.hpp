// SPDX-License-Identifier: MIT
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace mnemo::detail {

// a * b + c with one rounding. Without the instruction: the product is exact in double, the sum is rounded to odd there
// (its last bit says that something was cut off), and rounding that to float is then correct.
inline float fused_multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__FP_FAST_FMAF)
    return std::fma(a, b, c);
#else
    const double product = static_cast<double>(a) * b, sum = product + c;
    const double shifted = sum - product;
    const double error = (product - (sum - shifted)) + (c - shifted);
    if (error == 0 || !std::isfinite(sum)) return static_cast<float>(sum);
    auto bits = std::bit_cast<std::uint64_t>(sum);
    if ((bits & 1) == 0) bits += (error > 0) == (sum > 0) ? 1 : static_cast<std::uint64_t>(-1);
    return static_cast<float>(std::bit_cast<double>(bits));
#endif
}

} // namespace mnemo::detail
