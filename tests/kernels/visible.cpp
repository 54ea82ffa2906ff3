// SPDX-License-Identifier: MIT
#include "catch.hpp"

#include <mnemo/kernels/visible.hpp>

#include <random>

using namespace mnemo;

namespace {

std::vector<index_t> seen(const Visibility& visible, index_t row) {
    std::vector<index_t> out;
    for (index_t id = 0; id < visible.entries(); ++id)
        if (visible[row].contains(id)) out.push_back(id);
    return out;
}
using KeyIds = std::vector<index_t>;

} // namespace

TEST_CASE("rows see what their rule says") {
    const std::vector<index_t> lengths{2, 0, 3};
    const auto own = Visibility::same_segment(lengths, 8, 1); // entries 1..5 of 8 are the rows'
    REQUIRE(own.rows() == 5);
    REQUIRE(seen(own, 0).empty());
    REQUIRE(seen(own, 1) == KeyIds{1});
    REQUIRE(seen(own, 2).empty());
    REQUIRE(seen(own, 4) == KeyIds{3, 4});
    REQUIRE(own.pairs() == 1 + 1 + 2);

    const auto before = Visibility::earlier(2, 6, 3, 1); // rows are entries 3 and 4, their group begins at 1
    REQUIRE(seen(before, 0) == KeyIds{1, 2});
    REQUIRE(seen(before, 1) == KeyIds{1, 2, 3});

    const auto others = Visibility::other_segments(lengths, 8, 1, false);
    REQUIRE(seen(others, 1) == KeyIds{0, 3, 4, 5, 6, 7});
    const auto with_past = Visibility::other_segments(lengths, 8, 1, true);
    REQUIRE(seen(with_past, 1) == KeyIds{0, 1, 3, 4, 5, 6, 7});
    REQUIRE(seen(with_past, 3) == KeyIds{0, 1, 2, 3, 6, 7});
}

TEST_CASE("a hull holds what its rows see, in two ranges") {
    std::mt19937 random(3);
    for (int round = 0; round < 300; ++round) {
        const auto entries = static_cast<index_t>(random() % 20), rows = static_cast<index_t>(1 + random() % 5);
        std::vector<VisibleRow> ranges;
        for (index_t i = 0; i < rows; ++i) {
            index_t cut[4];
            for (index_t& c : cut) c = static_cast<index_t>(random() % static_cast<unsigned>(entries + 1));
            std::sort(cut, cut + 4);
            ranges.push_back({{cut[0], cut[1]}, {cut[2], cut[3]}});
        }
        const Visibility visible(ranges, entries);
        const VisibleRow hull = visible.hull(0, rows);
        REQUIRE(hull.left.last <= hull.right.first);
        for (index_t row = 0; row < rows; ++row)
            for (const index_t id : seen(visible, row)) REQUIRE(hull.contains(id));
        if (rows == 1) REQUIRE(hull.size() == visible[0].size()); // nothing too much
    }
    REQUIRE(Visibility().hull(0, 0).size() == 0);
}

TEST_CASE("ranges that overlap or go too far are refused") {
    REQUIRE_THROWS_WITH(Visibility({{{0, 3}, {2, 4}}}, 5), Catch::Contains("row 0"));
    REQUIRE_THROWS_WITH(Visibility({{{0, 3}, {4, 6}}}, 5), Catch::Contains("within 5 entries"));
    const std::vector<index_t> lengths{3, -1};
    REQUIRE_THROWS_WITH(Visibility::same_segment(lengths, 5), Catch::Contains("got -1"));
}
