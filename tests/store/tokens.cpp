// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/store/both.hpp>
#include <mnemo/store/tokens.hpp>

#include <limits>
#include <numeric>

using namespace mnemo;

namespace {
Matrix counting(index_t rows, index_t cols, float first = 0) {
    Matrix m(rows, cols);
    std::iota(m.data.begin(), m.data.end(), first);
    return m;
}
const std::vector<std::int32_t> three_tokens = {7, 8, 9};
} // namespace

TEMPLATE_TEST_CASE("a token store keeps what was appended", "", float, half, bfloat16) {
    TokenStore<TestType> store(4);
    CHECK(store.size() == 0);
    store.append(counting(3, 4), three_tokens);
    store.append(counting(2, 4, 100), std::span(three_tokens).first(2));
    REQUIRE(store.size() == 5);
    CHECK(store.key_dim() == 4);
    const std::int32_t expected[] = {7, 8, 9, 7, 8};
    std::vector<float> row(4);
    for (index_t i = 0; i < 5; ++i) {
        CHECK(store.value(i) == expected[i]);
        KeyRows(store.keys()).read(i, row);
        for (index_t j = 0; j < 4; ++j) // all are exact in bfloat16
            CHECK(row[static_cast<std::size_t>(j)] == static_cast<float>(i < 3 ? 4 * i + j : 100 + 4 * (i - 3) + j));
    }
    store.append(Rows(nullptr, 0, 4), {});
    CHECK(store.size() == 5);
    store.clear();
    CHECK(store.size() == 0);
    store.append(counting(1, 4), std::span(three_tokens).first(1));
    CHECK(store.value(0) == 7);
}

TEST_CASE("keys are read from wider rows") {
    const Matrix wide = counting(3, 10);
    TokenStore<> store(4);
    store.append(Rows(wide.data.data() + 2, 3, 4, 10), three_tokens);
    CHECK(store.keys()[1][0] == 12);
    CHECK(store.keys()[2][3] == 25);
}

TEST_CASE("entries are replaced and erased under their ids") {
    TokenStore<half> store(2);
    store.append(counting(3, 2), three_tokens);
    const std::vector<float> key = {-1, -2};
    store.replace(1, key, 42);
    CHECK(store.value(1) == 42);
    CHECK(to_float(store.keys()[1][1]) == -2);
    CHECK(to_float(store.keys()[2][0]) == 4);
    CHECK(!store.erased().contains(2));
    store.erase(2);
    CHECK(store.erased().contains(2));
    CHECK(!store.erased().contains(0));
    CHECK(store.size() == 3);
    store.append(counting(1, 2), std::span(three_tokens).first(1));
    CHECK(store.size() == 4);
    CHECK(!store.erased().contains(3));
    CHECK_THROWS_WITH(store.erase(2), "mnemo: TokenStore::erase: entry 2 was erased");
    CHECK_THROWS_WITH(store.replace(2, key, 1), "mnemo: TokenStore::replace: entry 2 was erased");
    store.clear();
    store.append(counting(3, 2), three_tokens);
    CHECK(!store.erased().contains(2));
}

TEST_CASE("what does not fit is refused by name, and nothing of it is kept") {
    TokenStore<half> store(3);
    store.append(counting(2, 3), std::span(three_tokens).first(2));
    Matrix keys = counting(3, 3);
    CHECK_THROWS_WITH(store.append(keys, std::span(three_tokens).first(2)),
                      "mnemo: TokenStore::append: values: expected 3, got 2");
    CHECK_THROWS_WITH(store.append(counting(3, 4), three_tokens),
                      "mnemo: TokenStore::append: width of the keys: expected 3, got 4");
    keys[2][1] = 70000;
    CHECK_THROWS_WITH(
        store.append(keys, three_tokens),
        "mnemo: TokenStore::append: expected numbers that are finite as float16, got 70000 in row 2, column 1");
    keys[1][2] = std::numeric_limits<float>::quiet_NaN();
    CHECK_THROWS_WITH(store.append(keys, three_tokens), Catch::Contains("got nan in row 1, column 2"));
    keys[0][0] = -std::numeric_limits<float>::infinity();
    CHECK_THROWS_WITH(store.append(keys, three_tokens), Catch::Contains("got -inf in row 0, column 0"));
    CHECK_THROWS_WITH(store.replace(0, keys[0], 1), Catch::Contains("TokenStore::replace: expected numbers"));
    CHECK_THROWS_WITH(store.replace(2, counting(1, 3)[0], 1), Catch::Contains("expected an id in [0, 2), got 2"));
    CHECK_THROWS_WITH(store.erase(-1), Catch::Contains("expected an id in [0, 2), got -1"));
    CHECK_THROWS_WITH(TokenStore<>(0), Catch::Contains("expected a key width of at least 1, got 0"));
    CHECK(store.size() == 2);
    CHECK(store.values().size() == 2);
    CHECK(to_float(store.keys()[0][0]) == 0);
    TokenStore<> wide(3);
    wide.append(Matrix(counting(1, 3, 70000)), std::span(three_tokens).first(1)); // fits float
    CHECK(wide.keys()[0][0] == 70000);
}

TEST_CASE("two stores are read as one") {
    auto first = std::make_shared<TokenStore<>>(2);
    TokenStore<half> second(2);
    first->append(counting(2, 2), std::span(three_tokens).first(2));
    second.append(counting(1, 2), std::span(three_tokens).last(1));
    Both both(first, std::move(second));
    static_assert(TokenValued<decltype(both)> && !KeyedStore<decltype(both)>);
    CHECK(both.size() == 3);
    CHECK(both.key_dim() == 2);
    CHECK(both.value(1) == 8);
    CHECK(both.value(2) == 9);
    first->append(counting(1, 2), std::span(three_tokens).first(1));
    CHECK(both.size() == 4);
    CHECK(both.value(3) == 9);
    CHECK_THROWS_WITH(Both(first, TokenStore<>(3)), Catch::Contains("width of the second store's keys"));
}
