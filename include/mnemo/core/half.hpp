// SPDX-License-Identifier: MIT
#pragma once

#include <bit>
#include <cstdint>

namespace mnemo {

/// IEEE binary16 as storage. Arithmetic is done in float; blocks are converted by kernels/convert.hpp.
struct half {
    std::uint16_t bits = 0;
    friend bool operator==(half, half) = default; // of the bits: -0 differs from 0, equal NaNs are equal
};

/// bfloat16 as storage: the upper half of a float.
struct bfloat16 {
    std::uint16_t bits = 0;
    friend bool operator==(bfloat16, bfloat16) = default;
};

constexpr float to_float(float x) { return x; }
constexpr float to_float(bfloat16 x) { return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16); }
constexpr float to_float(half x) {
    const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000u) << 16;
    const std::uint32_t exponent = (x.bits >> 10) & 31u, mantissa = x.bits & 1023u;
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13); // inf, NaN
    if (exponent > 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
    const float subnormal = static_cast<float>(mantissa) * 0x1p-24f; // exact, zero included
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(subnormal));
}

/// Rounds to nearest, ties to even; overflow gives an infinity, NaN stays NaN.
constexpr half to_half(float value) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value), magnitude = bits & 0x7fffffffu;
    const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
    const auto with_sign = [sign](std::uint32_t m) { return half{static_cast<std::uint16_t>(sign | m)}; };
    if (magnitude > 0x7f800000u) return with_sign(0x7e00u | (magnitude >> 13 & 0x3ffu));
    if (magnitude >= 0x477ff000u) return with_sign(0x7c00u); // rounds beyond 65504
    if (magnitude < 0x38800000u) {                           // subnormal: let the adder round at bit 2^-24
        const float aligned = std::bit_cast<float>(magnitude) + 0.5f;
        return with_sign(std::bit_cast<std::uint32_t>(aligned) - 0x3f000000u);
    }
    return with_sign((magnitude - 0x38000000u + 0x0fffu + (magnitude >> 13 & 1u)) >> 13);
}
constexpr bfloat16 to_bfloat16(float value) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>(bits >> 16 | 0x40u)};
    return {static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

/// `value` as T, for code that is written once for float, half and bfloat16.
template <class T> constexpr T from_float(float value);
template <> constexpr float from_float<float>(float value) { return value; }
template <> constexpr half from_float<half>(float value) { return to_half(value); }
template <> constexpr bfloat16 from_float<bfloat16>(float value) { return to_bfloat16(value); }

} // namespace mnemo
