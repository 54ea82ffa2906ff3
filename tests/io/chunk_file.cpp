// SPDX-License-Identifier: MIT
#include "../folder.hpp"
#include <catch.hpp>
#include <mnemo/combine/gated_attention.hpp>
#include <mnemo/io/chunk_file.hpp>
#include <mnemo/retrieve/in_parts.hpp>
#include <mnemo/retrieve/per_head.hpp>

#include <random>

#include <sys/wait.h>

using namespace mnemo;

namespace {
Matrix random_rows(index_t n, index_t d, unsigned seed) {
    std::mt19937 draw(seed);
    std::normal_distribution<float> normal;
    Matrix m(n, d);
    for (float& x : m.data) x = normal(draw);
    return m;
}
} // namespace

TEMPLATE_TEST_CASE("a file of chunks is the ring of chunks, also when it is opened again", "", float, half, bfloat16) {
    const Folder folder;
    const std::string path = folder.path() + "/bank";
    const ChunkRingOptions options{.heads = 2, .head_dim = 5, .chunk = 3, .memory_tokens = 60};
    ChunkRing<TestType> ring(options);
    auto file = std::make_unique<ChunkFile<TestType>>(ChunkFile<TestType>::create(path, options));
    unsigned seed = 0;
    for (const index_t n : {2, 3, 31, 0, 40, 1, 200, 7, 3}) {
        const Matrix keys = random_rows(n, 10, ++seed), values = random_rows(n, 10, ++seed);
        ring.append(keys, values), file->append(keys, values);
        REQUIRE(file->chunks() == ring.chunks());
        CHECK(file->waiting() == ring.waiting());
        const Matrix queries = random_rows(4, 10, ++seed);
        const HeadHits expected = PerHead{Exact<InnerProduct>{.k = 6}}.retrieve(ring, queries);
        const PerHead<InParts<Exact<InnerProduct>>> in_parts{{.inner = {.k = 6}, .k = 6, .part = 64}};
        const HeadHits found = in_parts.retrieve(*file, queries);
        Arena scratch;
        Matrix a(4, 10), b(4, 10);
        const std::vector<float> gates = {1, 0.5f};
        HeadOutputs to_a{a, gates}, to_b{b, gates};
        const Rows rows = queries;
        GatedAttention<>{}.combine(to_a, Reading{rows, expected, ring, scratch});
        GatedAttention<>{}.combine(to_b, Reading{rows, found, *file, scratch});
        CHECK(a.data == b.data);
        for (index_t h = 0; h < 2; ++h)
            for (index_t i = 0; i < 4; ++i) {
                REQUIRE(found[h].ids(i).size() == expected[h].ids(i).size());
                for (std::size_t j = 0; j < found[h].ids(i).size(); ++j) {
                    CHECK(found[h].scores(i)[j] == expected[h].scores(i)[j]);
                    CHECK(file->value(found[h].ids(i)[j]) == ring.value(expected[h].ids(i)[j]));
                }
            }
        file->release();
        if (ring.waiting() == 0) { // what waits is in memory alone
            file.reset();
            file = std::make_unique<ChunkFile<TestType>>(ChunkFile<TestType>::open(path));
            CHECK(file->chunks() == ring.chunks());
        }
    }
    file->clear();
    CHECK(file->chunks() == 0);
    CHECK(PerHead{Exact<InnerProduct>{.k = 6}}.retrieve(*file, random_rows(1, 10, 1))[0].ids(0).empty());
    const Matrix more = random_rows(7, 10, 1);
    file->append(more, more);
    CHECK(file->chunks() == 2);
    CHECK(PerHead{Exact<InnerProduct>{.k = 6}}.retrieve(*file, random_rows(1, 10, 1))[0].ids(0).size() == 2);
}

TEST_CASE("a file of chunks has one writer, and says what is wrong with it") {
    const Folder folder;
    const std::string path = folder.path() + "/bank";
    const ChunkRingOptions options{.heads = 1, .head_dim = 4, .chunk = 2, .memory_tokens = 8};
    CHECK_THROWS_WITH(ChunkFile<>::open(path), Catch::Contains("got none"));
    {
        ChunkFile<> file = ChunkFile<>::create(path, options);
        const Matrix rows = random_rows(4, 4, 1);
        file.append(rows, rows);
        CHECK_THROWS_WITH(ChunkFile<>::open(path), Catch::Contains("another writer"));
        ChunkFile<> reader = ChunkFile<>::open(path, false);
        CHECK(reader.chunks() == 2);
        CHECK_THROWS_WITH(reader.append(rows, rows), Catch::Contains("opened for writing"));
        Matrix bad = rows;
        bad[3][1] = 1e6f;
        CHECK_THROWS_WITH(file.append(rows, bad), Catch::Contains("row 3, column 1"));
        CHECK(file.chunks() == 2);
    }
    CHECK_THROWS_WITH(ChunkFile<>::create(path, options), Catch::Contains("expected no file"));
    CHECK_THROWS_WITH(ChunkFile<float>::open(path), Catch::Contains("another type"));
    File(path, O_RDWR).truncate(9000);
    CHECK_THROWS_WITH(ChunkFile<>::open(path), Catch::Contains("bytes, got 9000"));
    for (const std::uint64_t at : {8, 4096 + 8}) File(path, O_RDWR).write_at(at, std::as_bytes(std::span("x", 1)));
    CHECK_THROWS_WITH(ChunkFile<>::open(path), Catch::Contains("something else"));
    File(path, O_RDWR).truncate(10);
    CHECK_THROWS_WITH(ChunkFile<>::open(path), Catch::Contains("got 10 bytes"));
}

TEST_CASE("a writer that is killed leaves a file of chunks that opens, with all that was told") {
    const Folder folder;
    const std::string path = folder.path() + "/bank";
    constexpr index_t width = 6, chunk = 2, held = 300;
    // Token i has i mod 1000 in every column, its value the same and a half: exact in half precision.
    const auto tokens = [](index_t first, index_t n, float add) {
        Matrix m(n, width);
        for (index_t i = 0; i < n; ++i)
            for (float& x : m[i]) x = static_cast<float>((first + i) % 1000) + add;
        return m;
    };
    {
        ChunkFile<> file = ChunkFile<>::create(
            path, {.heads = 2, .head_dim = width / 2, .chunk = chunk, .memory_tokens = held * chunk});
    }
    std::mt19937 draw(7);
    index_t total = 0; // tokens in chunks, as announced
    for (int kill = 0; kill < 40; ++kill) {
        int ends[2];
        REQUIRE(::pipe(ends) == 0);
        const pid_t child = ::fork();
        REQUIRE(child >= 0);
        if (child == 0) {
            ::close(ends[0]);
            try {
                ChunkFile<> file = ChunkFile<>::open(path);
                std::mt19937 sizes(static_cast<unsigned>(kill));
                for (index_t done = total;;) {
                    const auto n = static_cast<index_t>(sizes() % 200) * chunk;
                    file.append(tokens(done, n, 0), tokens(done, n, 0.5f));
                    done += n;
                    if (::write(ends[1], &done, sizeof done) != static_cast<ssize_t>(sizeof done)) ::_exit(3);
                }
            } catch (...) {
                ::_exit(2);
            }
        }
        ::close(ends[1]);
        ::usleep(static_cast<useconds_t>(draw() % 12'000));
        ::kill(child, SIGKILL);
        int status = 0;
        ::waitpid(child, &status, 0);
        REQUIRE(WIFSIGNALED(status));
        index_t told = total;
        while (::read(ends[0], &told, sizeof told) == static_cast<ssize_t>(sizeof told)) {
        }
        ::close(ends[0]);
        const ChunkFile<> file = ChunkFile<>::open(path);
        index_t newest = 0;
        for (index_t slot = 0; slot < file.size(); ++slot) {
            if (file.erased().contains(slot)) continue;
            const index_t position = file.value(slot).position;
            newest = std::max(newest, position + chunk);
            for (index_t h = 0; h < 2; ++h) {
                REQUIRE(file.means(h)[slot][0] ==
                        (static_cast<float>(position % 1000) + static_cast<float>((position + 1) % 1000)) / 2);
                for (index_t t = 0; t < chunk; ++t) {
                    const auto number = static_cast<float>((position + t) % 1000);
                    REQUIRE(to_float(file.keys(h)[slot * chunk + t][2]) == number);
                    REQUIRE(to_float(file.values(h)[slot * chunk + t][1]) == number + 0.5f);
                }
            }
        }
        CHECK(newest >= told);
        CHECK(file.chunks() + 200 >= std::min(newest / chunk, held)); // an append gives up what it will write over
        total = newest;
    }
    CHECK(total > held * chunk); // it has gone around
}
