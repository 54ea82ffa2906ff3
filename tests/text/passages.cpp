// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/text/passages.hpp>

#include <algorithm>
#include <numeric>

using namespace mnemo;

TEST_CASE("rows of successive batches are contiguous texts, and no text is read twice") {
    std::vector<std::int32_t> tokens(61);
    std::iota(tokens.begin(), tokens.end(), 100);
    for (const bool drop : {false, true})
        for (const index_t workers : {1, 2, 3}) {
            const Passages passages(tokens, {.block = 4, .rows = 2, .workers = workers, .drop_last_block = drop});
            std::vector<std::int32_t> seen;
            for (index_t worker = 0; worker < workers; ++worker) {
                std::vector<std::int32_t> last(2, -1);
                for (index_t i = 0; i < passages.batches(worker); ++i) {
                    Passages::Batch batch;
                    passages.read(worker, i, batch);
                    REQUIRE(batch.inputs.size() == 8);
                    REQUIRE(batch.targets.size() == 8);
                    for (std::size_t row = 0; row < 2; ++row) {
                        const std::int32_t* target = batch.targets.data() + 4 * row;
                        CHECK(batch.inputs[4 * row] == (target[0] == 100 ? 2 : target[0] - 1));
                        CHECK(batch.inputs[4 * row + 1] == target[0]);
                        CHECK(batch.blocks[row] == (target[0] - 100) / 4);
                        if (i > 0) CHECK(target[0] == last[row] + 1);
                        last[row] = target[3];
                        seen.insert(seen.end(), target, target + 4);
                    }
                }
            }
            std::sort(seen.begin(), seen.end());
            CHECK(std::adjacent_find(seen.begin(), seen.end()) == seen.end());
            CHECK(!seen.empty());
        }
}

TEST_CASE("a stream too short for its rows gives no batch") {
    const std::vector<std::int32_t> tokens(9);
    const Passages passages(tokens, {.block = 4, .rows = 3});
    CHECK(passages.batches(0) == 0);
    Passages::Batch batch;
    CHECK_THROWS_WITH(passages.read(0, 0, batch), Catch::Contains("below 0"));
    CHECK_THROWS_AS(passages.batches(1), Error);
    CHECK_THROWS_AS(Passages(tokens, {.block = 0}), Error);
}
