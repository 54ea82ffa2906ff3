// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/text/remaining.hpp>

using namespace mnemo;

TEST_CASE("the rest of a text is cut as the whole is") {
    std::vector<std::int32_t> tokens(1000);
    for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(i % 97 + 4);
    const WindowOptions options{.block_size = 16, .context = 24, .batch = {.max_rows = 4, .multiple = 1}};
    ContextWindows all({tokens, {}}, options);
    std::vector<WindowBatch> batches(1);
    while (all.next(batches.back())) batches.emplace_back();
    batches.pop_back();
    REQUIRE(batches.size() == 16);

    index_t done = 0;
    for (std::size_t first = 0; first <= batches.size(); ++first) {
        all.rewind();
        RemainingWindows rest(all, done);
        CHECK(rest.tokens() == 1000);
        WindowBatch batch;
        for (std::size_t i = first; i < batches.size(); ++i) {
            REQUIRE(rest.next(batch));
            REQUIRE(batch.inputs == batches[i].inputs); // context included
            REQUIRE(batch.targets == batches[i].targets);
            REQUIRE(batch.start == batches[i].start);
        }
        REQUIRE(!rest.next(batch));
        if (first < batches.size()) done += batches[first].scored();
    }
    all.rewind();
    RemainingWindows wrong(all, 10);
    WindowBatch batch;
    CHECK_THROWS_AS(wrong.next(batch), Error);
}
