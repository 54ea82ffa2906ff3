// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/retrieve/first_hits.hpp>
#include <mnemo/store/packed.hpp>
#include <mnemo/store/tokens.hpp>
#include <mnemo/store/views.hpp>

#include <random>
#include <vector>

using namespace mnemo;

namespace {
struct Numbers {
    using value_type = std::int32_t;
    std::vector<float> data{0, 1, 2, 3, 4, 5}; // [3, 2]
    std::vector<std::int32_t> values{7, 8, 9};
    std::uint64_t gone = 2;
    index_t key_dim() const { return 2; }
    index_t size() const { return 3; }
    std::int32_t value(index_t id) const { return values[static_cast<std::size_t>(id)]; }
    Rows keys() const { return {data.data(), 3, 2}; }
    IdSet erased() const { return {{&gone, 1}}; }
};
} // namespace

TEST_CASE("the first entries of a store are a smaller store") {
    const Numbers all;
    const FirstEntries two(all, 2);
    CHECK(two.key_dim() == 2);
    CHECK(two.size() == 2);
    CHECK(two.value(1) == 8);
    CHECK(two.keys().rows == 2);
    CHECK(two.keys().data == all.data.data());
    CHECK(two.erased().contains(1));
    CHECK(FirstEntries(all, 100).size() == 3);
    CHECK(FirstEntries(all, 100).keys().rows == 3);
    CHECK(FirstEntries(all, 0).size() == 0);
}

TEST_CASE("a filter keeps some entries, and searches find the best of those") {
    const Numbers all;
    const KeptEntries odd(all, [&](index_t id) { return all.value(id) % 2 != 0; });
    CHECK(odd.size() == 3);
    CHECK_FALSE(odd.erased().contains(0));
    CHECK(odd.erased().contains(1)); // erased in the store, whatever the filter says

    std::mt19937 gen(4);
    std::normal_distribution<float> normal;
    Matrix keys(3000, 24), queries(40, 24);
    for (Matrix* m : {&keys, &queries})
        for (float& x : m->data) x = normal(gen);
    std::vector<std::int32_t> values(3000);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::int32_t>(i * 7 % 10);
    TokenStore<> store(24);
    store.append(keys, values);
    store.erase(5), store.erase(2999);
    Packed<TokenStore<>, L2> packed(store);
    const auto keep = [&](index_t id) { return store.value(id) < 3; };
    const auto check = [&](const auto& kept, const Hits& hits) {
        REQUIRE(hits.rows() == 40);
        for (index_t q = 0; q < 40; ++q) {
            std::vector<std::pair<float, index_t>> best;
            for (index_t id = 0; id < 3000; ++id)
                if (keep(id) && !kept.erased().contains(id))
                    best.emplace_back(-score<L2>(queries[q], std::span<const float>(keys[id])), id);
            std::sort(best.begin(), best.end());
            REQUIRE(hits.ids(q).size() == 50);
            for (std::size_t i = 0; i < 50; ++i) CHECK(hits.ids(q)[i] == best[i].second);
        }
    };
    const KeptEntries few(store, keep);
    check(few, Exact<L2>{50}.retrieve(few, queries));
    const KeptEntries few_packed(packed, keep);
    check(few_packed, Exact<L2>{50}.retrieve(few_packed, queries));
    const KeptEntries none(store, [](index_t) { return false; });
    CHECK(Exact<L2>{50}.retrieve(none, queries).ids(0).empty());
}

TEST_CASE("a store can be read with other values") {
    const Numbers all;
    const std::vector<std::int32_t> other{1, 2, 3}, few{1};
    const WithValues view(all, other);
    CHECK(view.size() == 3);
    CHECK(view.value(2) == 3);
    CHECK(KeyRows(view.keys()).data == all.data.data());
    CHECK(view.erased().contains(1));
    CHECK_THROWS_AS(WithValues(all, few), Error);
}

TEST_CASE("the first hits are those of a smaller k, in every block") {
    Hits hits;
    hits.push(4, 3.0f), hits.push(5, 2.0f), hits.push(6, 1.0f), hits.end_row();
    hits.push(9, 0.0f), hits.end_row();
    hits.end_row();
    const FirstHits two{hits, 2};
    REQUIRE(two.rows() == 3);
    std::vector<index_t> ids;
    for (index_t row = 0; row < 3; ++row) for_each_hit(two, row, [&](index_t id, float) { ids.push_back(id); });
    CHECK(ids == std::vector<index_t>{4, 5, 9});
    const JoinedHits joined{Hits(hits), Hits(hits), 100};
    ids.clear();
    for_each_hit(FirstHits{joined, 1}, 0, [&](index_t id, float) { ids.push_back(id); });
    CHECK(ids == std::vector<index_t>{4, 104});
}
