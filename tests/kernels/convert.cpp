// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/kernels/convert.hpp>

#include "simd_levels.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

using namespace mnemo;

namespace {

template <class From, class To> void check_conversion(const std::vector<From>& from) {
    for (const SimdLevel level : simd_levels()) {
        const UseSimdLevel use(level);
        std::vector<To> to(from.size());
        convert(std::span<const From>(from), std::span<To>(to));
        for (std::size_t i = 0; i < from.size(); ++i) {
            const To expected = from_float<To>(to_float(from[i]));
            if (std::isnan(to_float(from[i])))
                REQUIRE(std::isnan(to_float(to[i])));
            else
                REQUIRE(std::memcmp(&to[i], &expected, sizeof(To)) == 0);
        }
    }
}

template <class T> std::vector<T> all_bits() {
    std::vector<T> out(0x10000);
    for (std::size_t i = 0; i < out.size(); ++i) out[i].bits = static_cast<std::uint16_t>(i);
    return out;
}

} // namespace

TEST_CASE("conversions of whole spans are those of single numbers") {
    check_conversion<half, float>(all_bits<half>());
    check_conversion<half, bfloat16>(all_bits<half>());
    check_conversion<half, half>(all_bits<half>());
    check_conversion<bfloat16, float>(all_bits<bfloat16>());
    check_conversion<bfloat16, half>(all_bits<bfloat16>());
    std::mt19937 gen(1);
    std::vector<float> floats;
    for (int i = 0; i < 300000; ++i) floats.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(gen())));
    std::uniform_int_distribution<std::uint32_t> in_range(0x32000000u, 0x48000000u); // where half rounds
    for (int i = 0; i < 300000; ++i) floats.push_back(std::bit_cast<float>(in_range(gen)));
    check_conversion<float, half>(floats);
    check_conversion<float, bfloat16>(floats);
    check_conversion<float, float>(floats);
}

TEST_CASE("a conversion writes its span and nothing else") {
    for (std::size_t n = 0; n < 40; ++n) {
        const std::vector<float> from(n, 1.5f);
        std::vector<half> to(n + 8, to_half(-3));
        convert(std::span<const float>(from), std::span(to).first(n));
        for (std::size_t i = 0; i < to.size(); ++i) REQUIRE(to[i] == to_half(i < n ? 1.5f : -3.0f));
    }
}

TEST_CASE("the first number that is not finite is found") {
    constexpr float inf = std::numeric_limits<float>::infinity(), largest = std::numeric_limits<float>::max();
    std::vector<float> row(50, 1.0f);
    CHECK(first_not_finite<float>(row) == 50);
    row[20] = largest;
    CHECK(first_not_finite<float>(row) == 50);
    CHECK(first_not_finite<bfloat16>(row) == 20);
    CHECK(first_not_finite<half>(row) == 20);
    row[20] = -65519.0f;
    CHECK(first_not_finite<half>(row) == 50);
    row[20] = 65520.0f;
    CHECK(first_not_finite<half>(row) == 20);
    CHECK(first_not_finite<bfloat16>(row) == 50);
    // The largest number that bfloat16 rounds down, and the one after it.
    const float limit = std::bit_cast<float>(0x7f7f7fffu), beyond = std::bit_cast<float>(0x7f7f8000u);
    row[20] = limit;
    CHECK(std::isfinite(to_float(to_bfloat16(limit))));
    CHECK(first_not_finite<bfloat16>(row) == 50);
    row[20] = beyond;
    CHECK(std::isinf(to_float(to_bfloat16(beyond))));
    CHECK(first_not_finite<bfloat16>(row) == 20);
    row[20] = 1;
    for (const float bad : {inf, -inf, std::numeric_limits<float>::quiet_NaN()}) {
        row[49] = bad;
        CHECK(first_not_finite<float>(row) == 49);
        CHECK(first_not_finite<half>(row) == 49);
        CHECK(first_not_finite<bfloat16>(row) == 49);
    }
}
