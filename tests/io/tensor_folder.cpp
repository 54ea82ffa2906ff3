// SPDX-License-Identifier: MIT
#include "files.hpp"

#include <catch.hpp>
#include <mnemo/io/tensor_folder.hpp>

using namespace mnemo;

TEST_CASE("a folder's tensors come from one file or from the shards of its index") {
    const auto one = TensorFolder::open(bad_file("dir_ok")), shards = TensorFolder::open(bad_file("dir_sharded_ok"));
    CHECK(one.names() == shards.names());
    CHECK(one.names().size() == 16);
    for (const std::string& name : one.names()) {
        CHECK(one.find(name)->shape == shards.find(name)->shape);
        CHECK(one.values<float>(name) == shards.values<float>(name));
    }
    CHECK(one.find("nothing") == nullptr);
    CHECK(error_of([&] { (void)one.values<float>("nothing"); }).find("dir_ok: expected a tensor \"nothing\"") !=
          std::string::npos);
}

TEST_CASE("an index may only name files of its folder that hold what it promises") {
    const auto refused = [](const char* folder) { return error_of([&] { TensorFolder::open(bad_file(folder)); }); };
    CHECK(refused("dir_index_escape").find("expected the name of a file in this folder, got \"../dir_ok") !=
          std::string::npos);
    CHECK(refused("dir_index_absolute").find("got \"/etc") != std::string::npos);
    CHECK(refused("dir_index_missing_shard").find("model-00002-of-00002.safetensors: cannot open") !=
          std::string::npos);
    CHECK(refused("dir_index_wrong_shard").find("has none of that name") != std::string::npos);
    CHECK(refused("dir_no_weights").find("got neither") != std::string::npos);
    CHECK(refused("no_such_folder").find("no_such_folder: expected") != std::string::npos);
    for (const char* index : {"{}", "[]", R"({"weight_map": {}})", R"({"weight_map": {"a": 1}})",
                              R"({"weight_map": {"a": ""}})", R"({"weight_map": {"a": ".."}})",
                              R"({"weight_map": {"a": "b\\c"}})", R"({"weight_map": {"a": "b", "a": "c"}})"}) {
        INFO(index);
        CHECK(error_of([&] { TensorFolder::parse_index(index, "the index"); }).find("the index: ") !=
              std::string::npos);
    }
}
