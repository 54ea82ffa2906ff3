// SPDX-License-Identifier: MIT
#include "catch.hpp"
#include "simd_levels.hpp"

#include <mnemo/kernels/find.hpp>

#include <random>

TEST_CASE("find_equal finds every place, in order, at every level") {
    std::mt19937 random(1);
    for (std::size_t size : {0, 1, 7, 8, 9, 31, 200}) {
        std::vector<std::int32_t> x(size);
        for (auto& v : x) v = static_cast<std::int32_t>(random() % 3);
        std::vector<std::uint32_t> expected{99};
        for (std::size_t i = 0; i < size; ++i)
            if (x[i] == 1) expected.push_back(static_cast<std::uint32_t>(40 + i));
        for (const mnemo::SimdLevel level : simd_levels()) {
            const UseSimdLevel use(level);
            std::vector<std::uint32_t> found{99}; // what was there stays
            mnemo::find_equal(x, 1, 40, found);
            REQUIRE(found == expected);
        }
    }
}
