// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/io/chunk_ring.hpp>

#include <filesystem>

using namespace mnemo;

namespace {
Matrix counting(index_t first, index_t rows, index_t cols) {
    Matrix m(rows, cols);
    for (index_t i = 0; i < rows; ++i)
        for (index_t j = 0; j < cols; ++j) m[i][static_cast<std::size_t>(j)] = static_cast<float>(first + i + j);
    return m;
}
struct TemporaryFile {
    std::string path;
    explicit TemporaryFile(const std::string& name) : path((std::filesystem::temp_directory_path() / name).string()) {}
    ~TemporaryFile() { std::filesystem::remove(path); }
};
} // namespace

TEMPLATE_TEST_CASE("a chunk ring is saved and loaded", "", float, half, bfloat16) {
    const TemporaryFile file(text("mnemo_chunk_ring_", sizeof(TestType), name(key_type_of<TestType>), ".safetensors"));
    for (const index_t stored : {0, 1, 5, 11, 40}) {
        ChunkRing<TestType> ring({.heads = 3, .head_dim = 2, .chunk = 2, .memory_tokens = 12});
        ring.start_document(4);
        ring.append(counting(0, stored, 6), counting(9, stored, 6));
        save_chunk_ring(file.path, ring);
        auto loaded = load_chunk_ring<TestType>(file.path);
        CHECK(loaded.document() == 4);
        for (int again = 0; again < 2; ++again) { // and it goes on as the first would
            REQUIRE(loaded.chunks() == ring.chunks());
            CHECK(loaded.waiting() == ring.waiting());
            for (index_t age = 0; age < ring.chunks(); ++age) CHECK(loaded.slot(age) == ring.slot(age));
            for (index_t slot = 0; slot < ring.size(); ++slot) {
                CHECK(loaded.value(slot) == ring.value(slot));
                CHECK(loaded.means(2)[slot][1] == ring.means(2)[slot][1]);
                for (index_t t = 0; t < 2; ++t) {
                    CHECK(loaded.keys(1)[2 * slot + t][0] == ring.keys(1)[2 * slot + t][0]);
                    CHECK(loaded.values(1)[2 * slot + t][0] == ring.values(1)[2 * slot + t][0]);
                }
            }
            ring.append(counting(50, 7, 6), counting(60, 7, 6));
            loaded.append(counting(50, 7, 6), counting(60, 7, 6));
        }
    }
}

TEST_CASE("a file that is no chunk ring is refused by name") {
    const TemporaryFile file("mnemo_chunk_ring_bad.safetensors");
    write_safetensors(file.path, {}, {{"format", "another"}});
    CHECK_THROWS_WITH(load_chunk_ring(file.path),
                      Catch::Contains("mnemo_chunk_ring_bad") && Catch::Contains("got \"another\""));
    ChunkRing<half> ring({.heads = 1, .head_dim = 2, .chunk = 2, .memory_tokens = 4});
    ring.append(counting(0, 3, 2), counting(0, 3, 2));
    save_chunk_ring(file.path, ring);
    CHECK_THROWS_WITH(load_chunk_ring<bfloat16>(file.path), Catch::Contains("keys.0: expected BF16, got F16"));
    CHECK(load_chunk_ring(file.path).waiting() == 1);

    // Counters that do not fit what is stored.
    const auto stored = SafeTensors::open(file.path);
    for (const auto& [field, value] : std::map<std::string, std::string>{
             {"used", "9"}, {"first", "-1"}, {"heads", "1000000000000"}, {"chunk", "3"}, {"tokens", "x"}}) {
        auto metadata = stored.metadata();
        metadata[field] = value;
        const TemporaryFile broken("mnemo_chunk_ring_broken.safetensors");
        write_safetensors(broken.path, stored.entries(), metadata);
        CHECK_THROWS_WITH(load_chunk_ring(broken.path), Catch::Contains("mnemo_chunk_ring_broken"));
    }
}
