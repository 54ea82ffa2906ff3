// SPDX-License-Identifier: MIT
#include "files.hpp"

#include <catch.hpp>
#include <mnemo/io/knowledge_files.hpp>
#include <mnemo/store/knowledge.hpp>

using namespace mnemo;

namespace {
Matrix counting_rows(index_t rows, index_t cols, index_t first = 0) {
    Matrix m(rows, cols);
    for (index_t i = 0; i < rows; ++i)
        for (float& x : m[i]) x = static_cast<float>(first + i);
    return m;
}
} // namespace

TEST_CASE("a knowledge base is written in the order of its ids and read back in place") {
    const Folder scratch;
    const std::string folder = scratch.path();
    KnowledgeStore store(3, 2, 2);
    const std::vector<std::uint16_t> documents = {1, 2, 3, 0, 5, 6};
    store.append(counting_rows(3, 3), counting_rows(3, 2, 10), "all", {documents.data(), 3, 2});
    const std::vector<float> key = {7, 7, 7}, value = {8, 8};
    store.replace(0, key, value, std::span(documents).first(2));
    store.erase(1);
    CHECK(write_knowledge(folder, *store.snapshot()) == 2);

    const auto files = KnowledgeFiles::open(folder + "/keys.npy", folder + "/values.npy", true);
    const auto keys = files->keys(), values = files->values();
    REQUIRE(keys.rows == 2);
    CHECK(to_float(keys[0][0]) == 7);
    CHECK(to_float(keys[1][2]) == 2);
    CHECK(to_float(values[0][1]) == 8);
    CHECK(to_float(values[1][0]) == 12);
    const DocumentRows read = read_documents(folder + "/tokenized_documents.npy");
    CHECK(read.tokens == std::vector<std::uint16_t>{1, 2, 5, 6});
    write_documents(folder + "/again.npy", read);
    CHECK(read_file(folder + "/again.npy") == read_file(folder + "/tokenized_documents.npy"));

    KnowledgeStore mapped(3, 2);
    mapped.append(keys, values, files, "file");
    mapped.erase(0);
    CHECK(mapped.snapshot()->entries() == 1);
}

TEST_CASE("knowledge files that do not fit are refused by name") {
    const Folder scratch;
    const std::string folder = scratch.path(), keys = folder + "/keys.npy", values = folder + "/values.npy";
    const std::vector<half> four(4, to_half(1));
    write_npy(keys, {2, 2}, four);
    write_npy(values, {4, 1}, four);
    CHECK_THROWS_AS(KnowledgeFiles::open(keys, values), Error);
    write_npy(values, {2, 2}, std::vector<float>(4));
    CHECK_THROWS_AS(KnowledgeFiles::open(keys, values), Error);
    std::vector<half> infinite = four;
    infinite[3] = half{0x7c00};
    write_npy(values, {2, 2}, infinite);
    CHECK(KnowledgeFiles::open(keys, values)->values().rows == 2);
    CHECK_THROWS_AS(KnowledgeFiles::open(keys, values, true), Error);
    const std::string documents = folder + "/documents.npy";
    write_npy(documents, {1, 3}, std::vector<std::int16_t>{5, 0, 6});
    CHECK_THROWS_AS(read_documents(documents), Error);
    write_npy(documents, {1, 2}, std::vector<std::int32_t>{5, 70000});
    CHECK_THROWS_AS(read_documents(documents), Error);
    write_npy(documents, {2}, std::vector<std::int32_t>{5, 7});
    CHECK_THROWS_AS(read_documents(documents), Error);
}
