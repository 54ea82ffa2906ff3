// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/text/excerpts.hpp>

#include <numeric>

using namespace mnemo;

TEST_CASE("excerpts are spread from the first token to the last") {
    std::vector<std::int32_t> tokens(1001);
    std::iota(tokens.begin(), tokens.end(), 0);
    const WindowBatch batch = excerpts(tokens, 10, 4, 12);
    REQUIRE(batch.rows == 10);
    REQUIRE(batch.width == 16);
    CHECK(batch.scored() == 40);
    CHECK(batch.input(0)[0] == 0);
    CHECK(batch.target(9)[15] == 1000);
    for (index_t row = 0; row < 10; ++row) {
        for (std::size_t j = 0; j < 16; ++j) REQUIRE(batch.target(row)[j] == batch.input(row)[j] + 1);
        REQUIRE(batch.scored_targets(row).size() == 4);
        REQUIRE(batch.scored_targets(row)[0] == batch.input(row)[12] + 1);
        if (row > 0) REQUIRE(batch.input(row)[0] >= batch.input(row - 1)[0] + 16); // apart
    }
}

TEST_CASE("a short text gives fewer excerpts, and a shorter one none") {
    std::vector<std::int32_t> tokens(50);
    CHECK(excerpts(tokens, 100, 4, 12).rows == 3);
    CHECK(excerpts(std::span(tokens).first(17), 100, 4, 12).rows == 1);
    CHECK_THROWS_AS(excerpts(std::span(tokens).first(16), 100, 4, 12), Error);
    CHECK_THROWS_AS(excerpts(tokens, 0, 4, 12), Error);
    CHECK_THROWS_AS(excerpts(tokens, 1, 0, 12), Error);
}
