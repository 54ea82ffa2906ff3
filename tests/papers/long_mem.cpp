// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/papers/long_mem.hpp>
#include <mnemo/papers/long_mem_tasks.hpp>
#include <mnemo/retrieve/in_parts.hpp>

using namespace mnemo;

namespace {
// Row r, token t: the number 100 r + t in every column.
Matrix segment(index_t rows, index_t first, index_t n, index_t width) {
    Matrix m(rows * n, width);
    for (index_t r = 0; r < rows; ++r)
        for (index_t t = 0; t < n; ++t)
            for (float& x : m[r * n + t]) x = static_cast<float>(100 * r + first + t);
    return m;
}
} // namespace

TEST_CASE("each row of a batch has its own bank; the reference's is shared") {
    const LongMemOptions options{.heads = 2, .head_dim = 2, .memory_tokens = 8, .chunk = 2, .k = 4};
    LongMemBanks banks(options, 3);
    banks.remember(segment(3, 0, 4, 4), segment(3, 0, 4, 4));
    const auto found = banks.recall(segment(3, 4, 2, 4));
    REQUIRE(found.size() == 3);
    for (std::size_t r = 0; r < 3; ++r) {
        CHECK(found[r].first == 2 * static_cast<index_t>(r));
        CHECK(found[r].rows == 2);
        const index_t best = found[r].hits[1].ids(0)[0];
        CHECK(found[r].ring->means(1)[best][0] == static_cast<float>(100 * r) + 2.5f);
    }
    CHECK(banks.filled_to() == 0);
    CHECK(banks.bytes() == banks.most_bytes() / 2);

    auto shared = options;
    shared.reference = true, shared.memory_tokens = 64;
    LongMemBanks one(shared, 3);
    one.remember(segment(3, 0, 3, 4), segment(3, 0, 3, 4));
    REQUIRE(one.rings().size() == 1);
    CHECK(one.rings()[0].chunks() == 4); // 9 tokens, one is lost, two chunks hold tokens of two rows
    CHECK(one.rings()[0].means(0)[1][0] == 51);
    CHECK(one.recall(segment(3, 3, 1, 4)).size() == 1);
    CHECK(one.filled_to() == 2);
}

TEST_CASE("documents end where they end, and padding is not remembered") {
    LongMemBanks banks({.heads = 1, .head_dim = 2, .memory_tokens = 8, .chunk = 2, .k = 2}, 2);
    const std::vector<std::uint8_t> real = {1, 1, 1, 1, 0, 1, 1, 0};
    const std::vector<index_t> documents = {1, 1, 2, 2, 5, 5, 5, 5};
    banks.remember(segment(2, 0, 4, 2), segment(2, 0, 4, 2), real, documents);
    CHECK(banks.rings()[0].document() == 2);
    REQUIRE(banks.rings()[0].chunks() == 1);
    CHECK(banks.rings()[0].means(0)[0][0] == 2.5f);
    REQUIRE(banks.rings()[1].chunks() == 1);
    CHECK(banks.rings()[1].means(0)[0][0] == 101.5f);
    // The first row goes on with document 2 and begins a third.
    const std::vector<index_t> next = {2, 3, 5, 5};
    const auto found = banks.recall(segment(2, 4, 2, 2), next);
    REQUIRE(found.size() == 2);
    CHECK(found[0].rows == 1);
    CHECK(found[1].first == 2);
    CHECK(found[1].rows == 2);
    CHECK_THROWS_AS(banks.recall(segment(1, 0, 3, 2)), Error);
    CHECK_THROWS_AS(LongMemBanks({.chunk = 4, .k = 6}, 1), Error);
}

TEST_CASE("banks of other elements and retrievers find the same chunks") {
    const LongMemOptions options{.heads = 2, .head_dim = 4, .memory_tokens = 64, .chunk = 2, .k = 8};
    Matrix keys(40, 8), queries(6, 8); // small whole numbers: the same in every type
    for (index_t i = 0; i < keys.rows; ++i)
        for (index_t j = 0; j < 8; ++j)
            keys[i][static_cast<std::size_t>(j)] = static_cast<float>((7 * i * i + 3 * i * j + j) % 17 - 8);
    for (index_t i = 0; i < queries.rows; ++i)
        for (index_t j = 0; j < 8; ++j)
            queries[i][static_cast<std::size_t>(j)] = static_cast<float>((5 * i + 3 * j * j) % 13 - 6);
    LongMemBanks banks(options, 2);
    LongMemBanks<bfloat16> short_numbers(options, 2);
    using Parts = PerHead<InParts<Exact<InnerProduct>>, Threads>;
    const Parts in_parts{{{.k = 4}, 4, 64}, Threads{2}};
    LongMemBanks<float, Parts> other(options, 2, in_parts);
    const auto ids = [&](auto& of) {
        of.remember(keys, keys);
        std::vector<index_t> out;
        for (const auto& found : of.recall(queries))
            for (const Hits& hits : found.hits.heads)
                for (index_t i = 0; i < hits.rows(); ++i) out.insert(out.end(), hits.ids(i).begin(), hits.ids(i).end());
        return out;
    };
    const auto expected = ids(banks);
    CHECK(expected.size() == 6 * 2 * 4);
    CHECK(ids(short_numbers) == expected);
    CHECK(ids(other) == expected);
}

TEST_CASE("texts and labels of the in-context tasks are the published ones") {
    const InContextTask& task = long_mem_task("SST-2");
    const auto [words, label] = in_context_example(task, "a fine film \t1\n");
    CHECK(words == "a fine film");
    CHECK(label == "positive");
    CHECK(demonstration(task, words, label) == "Review: a fine film Sentiment: positive. ");
    CHECK(in_context_query(task, words) == "Review: a fine film Sentiment:");
    CHECK(in_context_example(long_mem_task("sst-5"), "4 splendid").second == "great");
    CHECK(in_context_query(long_mem_task("subj"), "x") == "Input: x Type:");
    CHECK(begins_label(" pos", "positive"));
    CHECK_FALSE(begins_label(" ", "positive"));
    CHECK_FALSE(begins_label("ositive", "positive"));
    CHECK_FALSE(begins_label("positively", "positive"));
    CHECK_THROWS_WITH(in_context_example(task, "no label"), Catch::Contains("SST-2"));
    CHECK_THROWS_AS(in_context_example(long_mem_task("mr"), "7 seven"), Error);
    CHECK_THROWS_AS(long_mem_task("sst"), Error);
}
