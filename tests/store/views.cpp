// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/retrieve/first_hits.hpp>
#include <mnemo/store/views.hpp>

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
