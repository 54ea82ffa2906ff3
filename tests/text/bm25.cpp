// SPDX-License-Identifier: MIT
#include "catch.hpp"

#include <mnemo/text/bm25.hpp>

using namespace mnemo;

TEST_CASE("BM25 ranks by rare shared words, ties by ids as text") {
    std::vector<std::int32_t> words;
    std::vector<index_t> sizes;
    const auto add = [&](std::vector<std::int32_t> document) {
        words.insert(words.end(), document.begin(), document.end());
        sizes.push_back(static_cast<index_t>(document.size()));
    };
    add({0, 1, 2});
    for (int i = 0; i < 11; ++i) add({0, 3, 4}); // equal documents 1 to 11
    add({});
    const Bm25Index index(words, sizes);
    REQUIRE(index.size() == 13);
    Bm25Index::Scratch scratch;
    const std::vector<std::int32_t> rare{1, 0, 77}, common{0, 3}, unknown{99, -1};
    const auto found = index.search(rare, 3, scratch);
    REQUIRE(found.size() == 3);
    REQUIRE(found[0].id == 0);
    REQUIRE(found[0].score > found[1].score);
    std::vector<index_t> order;
    for (const Bm25Hit& hit : index.search(common, 20, scratch)) order.push_back(hit.id);
    REQUIRE(order == std::vector<index_t>{1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9, 0}); // 12 shares nothing
    REQUIRE(index.search(unknown, 5, scratch).empty());
    REQUIRE(index.search(common, 0, scratch).empty());

    // By hand: df(1) = 1 of 13 documents, 36 words, tf 1.
    const double idf1 = std::log(1 + (13 - 1 + 0.5) / 1.5), idf0 = std::log(1 + (13 - 12 + 0.5) / 12.5);
    const double norm = 0.9 * (1 - 0.4 + 0.4 * 3 / (36.0 / 13));
    REQUIRE(found[0].score == Approx((idf0 + idf1) / (1 + norm)).margin(6e-5));
}

TEST_CASE("a query may have more words than Lucene takes") {
    std::vector<std::int32_t> words(3000);
    std::iota(words.begin(), words.end(), 0);
    const std::vector<index_t> sizes{3000};
    Bm25Index::Scratch scratch;
    REQUIRE(Bm25Index(words, sizes).search(words, 5, scratch).size() == 1);
}

TEST_CASE("BM25 names what is wrong with documents") {
    const std::vector<std::int32_t> words{1, 2, -3}, good{1, 2};
    REQUIRE_THROWS_WITH(Bm25Index(words, std::vector<index_t>{3}), Catch::Contains("got -3"));
    REQUIRE_THROWS_WITH(Bm25Index(good, std::vector<index_t>{3}), Catch::Contains("sum to 2"));
    REQUIRE_THROWS_WITH(Bm25Index(good, std::vector<index_t>{1}), Catch::Contains("got 1"));
}

TEST_CASE("a chain uses every segment once and follows unused neighbours") {
    // Each segment's list begins with itself; 0 - 1 - 2 are alike, 3 knows nobody.
    const std::vector<std::vector<index_t>> lists{{0, 1, 2}, {1, 2, 0}, {2, 0, 1}, {3}};
    const auto order = chain_neighbours(lists);
    auto sorted = order;
    std::sort(sorted.begin(), sorted.end());
    REQUIRE(sorted == std::vector<index_t>{0, 1, 2, 3});
    const auto at = std::find(order.begin(), order.end(), 3) - order.begin();
    REQUIRE((at == 0 || at == 3)); // the three are not torn apart
    REQUIRE(chain_neighbours(lists, 1, false) == python_shuffle(4, 1));
    REQUIRE(chain_neighbours({}).empty());
    REQUIRE_THROWS_WITH(chain_neighbours({{0, 9}, {1, 9}}), Catch::Contains("ids below 2"));
}
