// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/retrieve/per_head.hpp>
#include <mnemo/store/chunk_ring.hpp>
#include <mnemo/store/tokens.hpp>

#include <limits>
#include <random>

using namespace mnemo;

namespace {
// Token i has i in every column, its value i + 0.5: exact in all types as far as the tests go.
Matrix tokens(index_t first, index_t n, index_t width, float add = 0) {
    Matrix m(n, width);
    for (index_t i = 0; i < n; ++i)
        for (float& x : m[i]) x = static_cast<float>(first + i) + add;
    return m;
}
template <class T> void add(ChunkRing<T>& ring, index_t first, index_t n) {
    ring.append(tokens(first, n, ring.key_dim()), tokens(first, n, ring.key_dim(), 0.5f));
}
// First tokens of the chunks, oldest first.
template <class T> std::vector<index_t> held(const ChunkRing<T>& ring) {
    std::vector<index_t> first;
    for (index_t age = 0; age < ring.chunks(); ++age) first.push_back(ring.value(ring.slot(age)).position);
    return first;
}
} // namespace

TEMPLATE_TEST_CASE("a chunk ring holds exactly its newest chunks", "", float, half, bfloat16) {
    ChunkRing<TestType> ring({.heads = 2, .head_dim = 3, .chunk = 4, .memory_tokens = 16});
    index_t total = 0;
    for (const index_t n : {3, 2, 0, 7, 1, 20, 5, 1, 1}) {
        add(ring, total, n);
        total += n;
        CHECK(ring.waiting() == total % 4);
        CHECK(ring.chunks() == std::min<index_t>(total / 4, 4));
        std::vector<index_t> expected;
        for (index_t chunk = std::max<index_t>(total / 4 - 4, 0); chunk < total / 4; ++chunk)
            expected.push_back(4 * chunk);
        CHECK(held(ring) == expected);
        for (index_t slot = 0; slot < ring.size(); ++slot) {
            const auto first = static_cast<float>(ring.value(slot).position);
            for (index_t head = 0; head < 2; ++head) {
                CHECK(ring.means(head)[slot][2] == first + 1.5f);
                for (index_t t = 0; t < 4; ++t) {
                    CHECK(to_float(ring.keys(head)[4 * slot + t][0]) == first + static_cast<float>(t));
                    CHECK(to_float(ring.values(head)[4 * slot + t][1]) == first + static_cast<float>(t) + 0.5f);
                }
            }
        }
        CHECK(ring.erased().words.empty());
    }
    CHECK(ring.tokens() == 16);
    CHECK(ring.bytes() == ring.most_bytes());
    CHECK(ring.most_bytes() == 2 * 16 * 3 * 2 * static_cast<index_t>(sizeof(TestType)) + 2 * 4 * 3 * 4);
    for (index_t age = 0; age < 4; ++age) CHECK(ring.age(ring.slot(age)) == age);
}

TEST_CASE("a chunk ring forgets at the border of a document") {
    ChunkRing<> ring({.heads = 1, .head_dim = 2, .chunk = 2, .memory_tokens = 8});
    ring.start_document(7);
    add(ring, 0, 5);
    ring.start_document(7);
    CHECK(ring.chunks() == 2);
    ring.start_document(8);
    CHECK(ring.chunks() == 0);
    CHECK(ring.waiting() == 0);
    CHECK(ring.size() == 0);
    add(ring, 5, 3);
    CHECK(held(ring) == std::vector<index_t>{5});
    CHECK(ring.document() == 8);
}

TEST_CASE("heads of a chunk ring differ, and each is searched by itself") {
    ChunkRing<half> ring({.heads = 2, .head_dim = 2, .chunk = 2, .memory_tokens = 6});
    Matrix keys(8, 4); // head 0 rises with the token, head 1 falls
    for (index_t i = 0; i < 8; ++i) keys[i][0] = static_cast<float>(i), keys[i][2] = -static_cast<float>(i);
    ring.append(keys, keys);
    const Matrix query = tokens(1, 1, 4);
    HeadHits hits = PerHead{Exact<InnerProduct>{.k = 2}}.retrieve(ring, query);
    REQUIRE(hits.rows() == 1);
    const auto position = [&](index_t head, std::size_t rank) { return ring.value(hits[head].ids(0)[rank]).position; };
    CHECK(position(0, 0) == 6);
    CHECK(position(0, 1) == 4);
    CHECK(position(1, 0) == 2); // 0 is forgotten
    CHECK(position(1, 1) == 4);
    CHECK(hits[0].scores(0)[0] == 6.5f);
    CHECK(hits[1].scores(0)[0] == -2.5f);
    const index_t* ids = hits[0].ids(0).data();
    hits = PerHead{Exact<InnerProduct>{.k = 2}}.retrieve(ring, query, std::move(hits));
    CHECK(hits[0].ids(0).data() == ids); // recycled
    CHECK_THROWS_WITH((PerHead<>{}.retrieve(ring, tokens(0, 1, 3))), Catch::Contains("expected 4, got 3"));
}

TEST_CASE("a ring's packed means follow what is written, forgotten, copied and lowered, and change nothing") {
    const index_t heads = 2, d = 20, width = heads * d;
    ChunkRing<float> ring({.heads = heads, .head_dim = d, .chunk = 1, .memory_tokens = 1300});
    std::uint64_t state = 1;
    const auto draw = [&](index_t rows, float scale) {
        Matrix m(rows, width);
        for (index_t i = 0; i < rows; ++i)
            for (float& x : m[i]) {
                state = state * 6364136223846793005u + 1442695040888963407u;
                x = scale * (static_cast<float>(state >> 40) / 8388608.0f - 1);
            }
        return m;
    };
    const Matrix queries = draw(20, 1);
    const auto agrees = [&](const ChunkRing<float>& packed) {
        for (index_t h = 0; h < heads; ++h) {
            TokenStore<float> plain(d);
            Matrix row(1, d);
            for (index_t slot = 0; slot < packed.size(); ++slot) {
                std::copy_n(packed.means(h)[slot].begin(), d, row[0].begin());
                plain.append(row, std::vector<std::int32_t>{0});
            }
            const Rows own(queries.data.data() + h * d, queries.rows, d, width);
            for (const index_t rows : {index_t{1}, queries.rows}) {
                const Exact<InnerProduct> search{.k = 7};
                const Hits found = search.retrieve(packed.head(h), own.slice(0, rows));
                const Hits expected = search.retrieve(plain, own.slice(0, rows));
                for (index_t i = 0; i < rows; ++i)
                    if (!std::equal(found.ids(i).begin(), found.ids(i).end(), expected.ids(i).begin(),
                                    expected.ids(i).end()))
                        return false;
            }
        }
        return true;
    };
    bool packed = false;
    for (index_t step = 0; step < 24; ++step) { // two turns and more; keys grow and shrink
        const Matrix rows = draw(step % 5 == 0 ? 331 : 60 + step, step % 7 == 3 ? 9.0f : 0.5f);
        const SimdLevel before = use_simd_level(step == 9 ? SimdLevel::plain : machine_simd_level());
        ring.append(rows, rows);
        use_simd_level(before);
        INFO(step);
        CHECK(agrees(ring));
        CHECK(ring.bytes() <= ring.most_bytes());
        packed = packed || ring.packed(0).rows == ring.size();
    }
    CHECK(packed == Filter<InnerProduct>::has_integers());
    CHECK(agrees(ChunkRing<float>(ring.options(), ring.contents())));
    ring.clear();
    CHECK(ring.packed(0).rows == 0);
}

TEST_CASE("the reference's forgetting: twice the append, tails lost, ids of dropped chunks never found") {
    ChunkRing<> ring({.heads = 1, .head_dim = 2, .chunk = 4, .memory_tokens = 40, .reference = true});
    const auto levels = [&](index_t i) {
        add(ring, 10 * i, 10);
        return ring.chunks();
    };
    CHECK(levels(0) == 2);
    CHECK(levels(1) == 4);
    CHECK(levels(2) == 6);
    CHECK(levels(3) == 8); // 6 + 2 < 10
    CHECK(levels(4) == 5); // 8 + 2 >= 10: drops 20 / 4
    CHECK(ring.waiting() == 0);
    CHECK(held(ring) == std::vector<index_t>{24, 30, 34, 40, 44});
    for (index_t i = 5; i < 40; ++i) {
        CHECK(levels(i) < ring.slots());
        const HeadHits hits = PerHead{Exact<InnerProduct>{.k = 10}}.retrieve(ring, tokens(1, 1, 2));
        CHECK(static_cast<index_t>(hits[0].ids(0).size()) == ring.chunks());
        for (const index_t slot : hits[0].ids(0)) CHECK(ring.age(slot) < ring.chunks());
    }
    CHECK_THROWS_WITH(add(ring, 0, 30), Catch::Contains("a third of the memory"));
}

TEST_CASE("a chunk ring is made again from its contents") {
    for (const bool reference : {false, true}) {
        const ChunkRingOptions options{
            .heads = 2, .head_dim = 2, .chunk = 2, .memory_tokens = 12, .reference = reference};
        ChunkRing<half> ring(options);
        for (index_t i = 0; i < 9; ++i) add(ring, 3 * i, 3);
        ChunkRing<half> copy(options, ring.contents());
        for (index_t i = 9; i < 20; ++i) {
            add(ring, 3 * i, 3), add(copy, 3 * i, 3);
            CHECK(held(copy) == held(ring));
            CHECK(copy.waiting() == ring.waiting());
            CHECK(copy.erased().words.size() == ring.erased().words.size());
        }
        auto broken = ring.contents();
        broken.means[1].pop_back();
        CHECK_THROWS_WITH(ChunkRing<half>(options, broken), Catch::Contains("means of a head"));
        broken = ring.contents(), broken.used = 100;
        CHECK_THROWS_AS(ChunkRing<half>(options, broken), Error);
    }
}

TEST_CASE("a chunk ring refuses what it cannot hold") {
    CHECK_THROWS_WITH(ChunkRing<>({.heads = 1, .head_dim = 4, .chunk = 4, .memory_tokens = 10}),
                      Catch::Contains("whole chunks of 4 tokens, got 10"));
    CHECK_THROWS_AS(ChunkRing<>({.heads = 0}), Error);
    CHECK_THROWS_AS(ChunkRing<>({.chunk = 4, .memory_tokens = 3}), Error);
    ChunkRing<> ring({.heads = 1, .head_dim = 2, .chunk = 2, .memory_tokens = 4});
    CHECK_THROWS_AS(ring.append(tokens(0, 2, 3), tokens(0, 2, 3)), Error);
    CHECK_THROWS_AS(ring.append(tokens(0, 2, 2), tokens(0, 1, 2)), Error);
    Matrix bad = tokens(0, 3, 2);
    bad[2][1] = 70000;
    CHECK_THROWS_WITH(ring.append(tokens(0, 3, 2), bad), Catch::Contains("row 2, column 1"));
    bad[2][1] = std::numeric_limits<float>::quiet_NaN();
    CHECK_THROWS_AS(ring.append(bad, tokens(0, 3, 2)), Error);
    CHECK(ring.size() == 0); // all or nothing
    CHECK(ring.waiting() == 0);
}
