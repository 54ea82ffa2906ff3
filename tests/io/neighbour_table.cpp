// SPDX-License-Identifier: MIT
#include "catch.hpp"
#include "folder.hpp"

#include <mnemo/io/neighbour_table.hpp>

using namespace mnemo;

TEST_CASE("A neighbour table is int64 without a header", "[graph]") {
    const Folder folder;
    const std::string path = folder / "neighbors.mmap.3";
    const std::vector<index_t> table{4, 2, -1, 9, 8, 7};
    NeighbourTableWriter writer(path, 3);
    writer.append({table.data(), 1, 3}), writer.append({table.data() + 3, 1, 3});
    writer.commit();
    CHECK(std::filesystem::file_size(path) == 48);
    const NeighbourTable back = NeighbourTable::open(path, 3);
    REQUIRE(back.tokens() == 2);
    CHECK(back.rows()[0][2] == -1);
    CHECK(back.rows()[1][0] == 9);
    CHECK_THROWS_WITH(NeighbourTable::open(path, 4), Catch::Contains("neighbors.mmap.3: expected int64 [tokens, 4]"));
    CHECK_THROWS_AS(NeighbourTable::open(path, 0), Error);
    CHECK_THROWS_WITH(writer.append({table.data(), 1, 2}), Catch::Contains("neighbours a token"));
}
