// SPDX-License-Identifier: MIT
#include "catch.hpp"

#include <mnemo/kernels/product_quantizer.hpp>
#include <mnemo/retrieve/neighbour_graph.hpp>

using namespace mnemo;

TEST_CASE("Windows join only if nodes are shared", "[graph]") {
    const std::vector<index_t> table{3, 5, 4, -1}; // [2, 2]
    const MatrixView<const index_t> neighbours(table.data(), 2, 2);
    const auto apart = build_neighbour_graph(neighbours, {}, 6, {.left = 0, .right = 1});
    CHECK(apart.rows == std::vector<index_t>{3, 4, 5, 4, 5}); // 5 has nothing behind it
    CHECK(apart.after == std::vector<index_t>{1, -1, -1, 4, -1});
    CHECK(apart.before == std::vector<index_t>{-1, 0, -1, -1, 3});
    CHECK(apart.centres == std::vector<index_t>{0, 2, 3});
    CHECK(apart.centres_of(1).size() == 1);
    const auto joined = build_neighbour_graph(neighbours, {}, 6, {.left = 0, .right = 1, .shared = true});
    CHECK(joined.rows == std::vector<index_t>{3, 4, 5});
    CHECK(joined.after == std::vector<index_t>{1, 2, -1});
    CHECK(joined.before == std::vector<index_t>{-1, 0, 1});
    CHECK(joined.centres == std::vector<index_t>{0, 2, 1});

    const std::vector<index_t> places{4, 100};
    const auto others = build_neighbour_graph(neighbours, places, 6, {.left = 0, .right = 0, .own_text = 2});
    CHECK(others.rows == std::vector<index_t>{4});
    CHECK(others.centres_of(0).empty());
    CHECK_THROWS_WITH(build_neighbour_graph(neighbours, {}, 5, {}), Catch::Contains("corpus of 5, got 5"));
    CHECK_THROWS_WITH(build_neighbour_graph(neighbours, {}, 6, {.own_text = 2}), Catch::Contains("places"));
}

TEST_CASE("A table pads what was not found", "[graph]") {
    Hits hits;
    hits.push(7, 1), hits.push(5, 0.5f), hits.push(9, 0.1f), hits.end_row();
    hits.push(2, 1), hits.end_row();
    CHECK(neighbour_table(hits, 2) == std::vector<index_t>{7, 5, 2, -1});
}

TEST_CASE("A quantizer checks its sizes", "[graph]") {
    ProductQuantizer q;
    q.dim = q.width = 4, q.parts = 2, q.centroids_a_part = 2;
    q.centroids = {0, 0, 1, 1, 0, 0, 2, 2};
    q.check();
    Matrix x(2, 4);
    x.data = {0.9f, 1, 0.2f, 0.1f, 0.4f, 0.1f, 1.5f, 2};
    std::vector<std::uint8_t> codes(4);
    q.encode(x, {codes.data(), 2, 2});
    CHECK(codes == std::vector<std::uint8_t>{1, 0, 0, 1});
    q.parts = 3;
    CHECK_THROWS_WITH(q.check(), Catch::Contains("ProductQuantizer"));
}
