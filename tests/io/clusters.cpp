// SPDX-License-Identifier: MIT
#include "catch.hpp"
#include "folder.hpp"

#include <mnemo/io/clusters.hpp>

using namespace mnemo;

TEST_CASE("Clusters come back from their file", "[clusters]") {
    const Folder folder;
    const std::string path = folder / "clusters.npy";
    const Clusters clusters(std::vector<std::int32_t>{3, 0, 3, 1, 1, 3});
    save_clusters(path, clusters);
    const Clusters back = load_clusters(path, 6);
    CHECK(back.count() == 4);
    CHECK(std::equal(back.members(3).begin(), back.members(3).end(), std::vector<index_t>{0, 2, 5}.begin()));
    CHECK(back.members(2).empty());
    CHECK_THROWS_WITH(load_clusters(path, 7), Catch::Contains("expected the clusters of 7 entries"));
    const std::int32_t bad[] = {0, -4};
    const index_t shape[] = {2};
    write_npy<std::int32_t>(path, shape, bad);
    CHECK_THROWS_WITH(load_clusters(path, 2), Catch::Contains("clusters.npy"));
}
