// SPDX-License-Identifier: MIT
#include "catch.hpp"
#include "files.hpp"

#include <mnemo/io/segment_files.hpp>
#include <mnemo/text/bm25.hpp>

using namespace mnemo;

TEST_CASE("segments, neighbours and orders are read as they were written") {
    const Folder folder;
    const std::vector<SegmentText> segments{{1, "a \"quoted\" word"}, {0, "n\u00e4chste"}};
    write_segments(folder / "segments.json", segments);
    REQUIRE(read_segments(folder / "segments.json") == segments);

    const std::vector<std::vector<index_t>> neighbours{{0, 2}, {}, {2, 1, 0}};
    write_neighbours(folder / "shard0.json", neighbours);
    bool text_ids = true;
    REQUIRE(read_neighbours({folder / "shard0.json"}, &text_ids) == neighbours);
    REQUIRE_FALSE(text_ids);

    const std::vector<index_t> order{2, 0, 1};
    write_order(folder / "order.json", order);
    REQUIRE(read_order(folder / "order.json", 3) == order);
    REQUIRE(read_file(folder / "order.json") == "[2,0,1]\n");
}

TEST_CASE("neighbours come from several files in any order, with ids as text too") {
    const Folder folder;
    atomic_write(folder / "shard0.json", R"([{"id": "2", "retrieval": ["2", "0"]}])");
    atomic_write(folder / "shard1.json", R"([{"id": "0", "retrieval": ["0"]}, {"id": "1", "retrieval": ["1", "2"]}])");
    bool text_ids = false;
    const auto found = read_neighbours({folder / "shard0.json", folder / "shard1.json"}, &text_ids);
    REQUIRE(found == std::vector<std::vector<index_t>>{{0}, {1, 2}, {2, 0}});
    REQUIRE(text_ids);
    REQUIRE(chain_neighbours(found, 1, !text_ids) == python_shuffle(3, 1)); // as the reference's script
}

TEST_CASE("wrong files name the file, the entry and the field") {
    const Folder folder;
    const auto error = [&](const std::string& contents, auto&& read) {
        atomic_write(folder / "f.json", contents);
        const std::string message = error_of([&] { read(folder / "f.json"); });
        REQUIRE(message.find("f.json") != std::string::npos);
        return message;
    };
    const auto has = [](const std::string& message, const std::string& part) {
        INFO(message);
        REQUIRE(message.find(part) != std::string::npos);
    };
    const auto segments = [](const std::string& path) { return read_segments(path); };
    const auto neighbours = [](const std::string& path) { return read_neighbours({path}); };
    const auto order = [](const std::string& path) { return read_order(path, 2); };
    has(error("{}", segments), "array");
    has(error(R"([{"contents": "x"}])", segments), "id");
    has(error(R"([{"id": -1, "contents": "x"}])", segments), "-1");
    has(error(R"([{"id": 18446744073709551615, "contents": "x"}])", segments), "18446744073709551615");
    has(error(R"([{"id": 0, "contents": 5}])", segments), "contents");
    has(error(R"([{"id": 0}])", neighbours), "retrieval");
    has(error(R"([{"id": 0, "retrieval": [0, 1]}])", neighbours), "below 1");
    has(error(R"([{"id": 0, "retrieval": [0]}, {"id": 0, "retrieval": []}])", neighbours), "0 twice");
    has(error(R"([{"id": "0x", "retrieval": [0]}])", neighbours), "0x");
    has(error("[0]", order), "segments");
    has(error("[0, 0]", order), "twice");
    has(error("[0, 2]", order), "got 2");
    has(error("[0, 1.5]", order), "1.5");
    has(error("[0, 1", order), "not JSON");
}
