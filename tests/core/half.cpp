// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/core/half.hpp>

#include <bit>
#include <cmath>
#include <limits>

using namespace mnemo;

TEST_CASE("every half survives the way to float and back") {
    for (unsigned bits = 0; bits < 0x10000; ++bits) {
        const half h{static_cast<std::uint16_t>(bits)};
        const float f = to_float(h);
        if (std::isnan(f))
            REQUIRE(std::isnan(to_float(to_half(f))));
        else
            REQUIRE(to_half(f) == h);
    }
}

TEST_CASE("half rounds to nearest, ties to even, at every boundary") {
    for (unsigned bits = 0; bits < 0x7bff; ++bits) {
        const half low{static_cast<std::uint16_t>(bits)}, high{static_cast<std::uint16_t>(bits + 1)};
        const float middle = (to_float(low) + to_float(high)) / 2; // exact in float
        REQUIRE(to_half(middle) == (bits % 2 == 0 ? low : high));
        REQUIRE(to_half(std::nextafter(middle, 0.0f)) == low);
        REQUIRE(to_half(std::nextafter(middle, 1e9f)) == high);
    }
    REQUIRE(to_half(65519.0f) == to_half(65504.0f));
    REQUIRE(to_half(65520.0f) == to_half(std::numeric_limits<float>::infinity()));
}

TEST_CASE("bfloat16 rounds to nearest, ties to even") {
    for (unsigned bits = 0; bits < 0x7f80; ++bits) {
        const bfloat16 low{static_cast<std::uint16_t>(bits)};
        REQUIRE(to_bfloat16(to_float(low)) == low);
        const float middle = std::bit_cast<float>(bits << 16 | 0x8000u);
        REQUIRE(to_bfloat16(middle).bits == (bits % 2 == 0 ? bits : bits + 1));
    }
    REQUIRE(std::isnan(to_float(to_bfloat16(std::numeric_limits<float>::quiet_NaN()))));
}
