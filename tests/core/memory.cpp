// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/core.hpp>

#include <string>

using namespace mnemo;

namespace {

struct Echo {
    const Rows& queries(const Rows& states) const { return states; }
    const Rows& keys(const Rows& states) const { return states; }
};
struct Log {
    using value_type = std::int32_t;
    std::vector<std::int32_t> values;
    index_t key_dim() const { return 1; }
    index_t size() const { return static_cast<index_t>(values.size()); }
    std::int32_t value(index_t id) const { return values[static_cast<std::size_t>(id)]; }
    void append(Rows keys, std::span<const std::int32_t> v) {
        expect_equal<index_t>("values", static_cast<index_t>(v.size()), keys.rows);
        values.insert(values.end(), v.begin(), v.end());
    }
};
/// Recalls every entry with the query's value as score; counts how often buffers came back.
struct All {
    Hits retrieve(const Log& store, Rows queries) const { return retrieve(store, queries, Hits()); }
    Hits retrieve(const Log& store, Rows queries, Hits spare) const {
        spare.clear();
        for (index_t i = 0; i < queries.rows; ++i) {
            for (index_t id = 0; id < store.size(); ++id) spare.push(id, queries[i][0]);
            spare.end_row();
        }
        return spare;
    }
};
/// base[row] = sum of score * value over the row's hits.
struct Sum {
    template <class Q, AssociativeRecall R, TokenValued S> void combine(MutRows base, const Reading<Q, R, S>& m) const {
        for (index_t i = 0; i < m.recall.rows(); ++i) {
            base[i][0] = 0;
            for_each_hit(m.recall, i,
                         [&](index_t id, float s) { base[i][0] += s * static_cast<float>(m.store.value(id)); });
        }
    }
};
struct FirstRow {
    template <class M> float loss(MutRows base, const M& m, const Sum& c) const {
        c.combine(base, m);
        return base[0][0];
    }
};

} // namespace

TEST_CASE("a memory writes, reads, scores and shows what it recalled") {
    Memory memory(Echo{}, Log{}, All{}, Sum{}, FirstRow{});
    const float keys[] = {1, 2, 3};
    const std::int32_t values[] = {10, 20, 30};
    memory.write(Rows(keys, 3, 1), std::span<const std::int32_t>(values));
    REQUIRE(memory.store().size() == 3);
    const float queries[] = {1, 2};
    float out[] = {0, 0};
    memory.read(Rows(queries, 2, 1), MutRows(out, 2, 1));
    CHECK(out[0] == 60);
    CHECK(out[1] == 120);
    CHECK(memory.loss(Rows(queries + 1, 1, 1), MutRows(out, 1, 1)) == 120);
    CHECK(memory.recall(Rows(queries, 2, 1)).ids(1).size() == 3);
}

TEST_CASE("a shared store is one store") {
    const auto store = std::make_shared<Log>();
    Memory first(Echo{}, store, All{}, Sum{}), second(Echo{}, store, All{}, Sum{});
    const float key = 1;
    const std::int32_t value = 7;
    first.write(Rows(&key, 1, 1), std::span(&value, 1));
    float out = 0;
    second.read(Rows(&key, 1, 1), MutRows(&out, 1, 1));
    CHECK(out == 7);
}

TEST_CASE("a session reads what a memory reads, from buffers of its own") {
    Memory memory(Echo{}, Log{{5, 6}}, All{}, Sum{}, FirstRow{});
    Session<const decltype(memory), Rows> session(memory);
    const float query = 3;
    float a = 0, b = 0;
    memory.read(Rows(&query, 1, 1), MutRows(&a, 1, 1));
    session.read(Rows(&query, 1, 1), MutRows(&b, 1, 1));
    CHECK(a == b);
    const auto* ids = session.recall().ids(0).data();
    CHECK(session.loss(Rows(&query, 1, 1), MutRows(&b, 1, 1)) == a);
    CHECK(session.recall().ids(0).data() == ids);
}

TEST_CASE("errors say what was expected and what came") {
    Memory memory(Echo{}, Log{}, All{}, Sum{});
    const float key = 1;
    REQUIRE_THROWS_WITH(memory.write(Rows(&key, 1, 1), std::span<const std::int32_t>()),
                        "mnemo: values: expected 1, got 0");
    REQUIRE_THROWS_WITH(fail("keys.npy: expected ", 3, " rows, got ", 2.5, '!'),
                        "mnemo: keys.npy: expected 3 rows, got 2.5!");
}

TEST_CASE("hits of unequal length, pushed or placed") {
    Hits hits;
    hits.push(4, 0.5f), hits.end_row(), hits.end_row(), hits.push(1, 2), hits.push(2, 1), hits.end_row();
    CHECK(hits.rows() == 3);
    CHECK(hits.ids(0).size() == 1);
    CHECK(hits.ids(1).empty());
    CHECK(hits.ids(2)[1] == 2);
    CHECK(hits.scores(2)[0] == 2);
    hits.resize(2, 3);
    hits.room_for_ids(1)[0] = 9, hits.room_for_scores(1)[0] = -1, hits.set_size(1, 1);
    CHECK(hits.ids(0).empty());
    CHECK(hits.ids(1)[0] == 9);
    const Hits copy = hits;
    CHECK(copy.scores(1)[0] == -1);
}

TEST_CASE("joined hits shift the second store's ids; dense hits imply theirs") {
    Hits first, second;
    first.push(0, 1), first.end_row();
    second.push(2, 3), second.end_row();
    const JoinedHits joined{std::move(first), std::move(second), 10};
    std::vector<index_t> ids;
    for_each_hit(joined, 0, [&](index_t id, float) { ids.push_back(id); });
    CHECK(ids == std::vector<index_t>{0, 12});

    DenseHits dense{Matrix(1, 4), {{1, 3}}};
    dense.scores[0][2] = 5;
    float best = 0;
    ids.clear();
    for_each_hit(dense, 0, [&](index_t id, float s) { ids.push_back(id), best = std::max(best, s); });
    CHECK(ids == std::vector<index_t>{1, 2});
    CHECK(best == 5);
}

TEST_CASE("an arena hands out aligned buffers and keeps its block") {
    Arena arena;
    const auto first = arena.take<float>(3);
    const auto second = arena.take<double>(100000);
    CHECK(reinterpret_cast<std::uintptr_t>(first.data()) % 64 == 0);
    CHECK(reinterpret_cast<std::uintptr_t>(second.data()) % 64 == 0);
    CHECK(static_cast<const void*>(first.data() + 3) <= static_cast<const void*>(second.data()));
    arena.reset();
    const auto* block = arena.take<float>(3).data();
    arena.take<double>(100000);
    arena.reset();
    CHECK(arena.take<float>(3).data() == block);
}

TEST_CASE("id sets end where their words end") {
    const std::uint64_t words[] = {0b100, 1};
    const IdSet set{words};
    CHECK(set.contains(2));
    CHECK(set.contains(64));
    CHECK_FALSE(set.contains(3));
    CHECK_FALSE(set.contains(1000));
    CHECK_FALSE(erased_ids(Log{}).contains(0));
}

TEST_CASE("executors run every task once, for any number of threads, and rethrow") {
    for (const index_t threads : {1, 2, 5}) {
        std::vector<int> runs(100);
        Threads{threads}.run(100, [&](index_t i, index_t thread) {
            REQUIRE(thread < threads);
            ++runs[static_cast<std::size_t>(i)];
        });
        CHECK(runs == std::vector<int>(100, 1));
        CHECK_THROWS_AS(Threads{threads}.run(10,
                                             [](index_t i, index_t) {
                                                 if (i == 7) fail("task");
                                             }),
                        Error);
        Threads{threads}.run(0, [](index_t, index_t) { FAIL("no task, no call"); });
    }
}

TEST_CASE("key rows hand their typed view back") {
    const half h[] = {to_half(1.5f), to_half(-2.0f)};
    const bfloat16 b[] = {to_bfloat16(3.0f), to_bfloat16(0.5f)};
    const float f[] = {7, 8, 9, 10};
    const auto read = [](KeyRows keys, index_t id) {
        std::vector<float> row(static_cast<std::size_t>(keys.cols));
        keys.read(id, row);
        return row;
    };
    CHECK(read(MatrixView<const half>(h, 1, 2), 0) == std::vector<float>{1.5f, -2});
    CHECK(read(MatrixView<const bfloat16>(b, 2, 1), 1) == std::vector<float>{0.5f});
    CHECK(read(Rows(f, 2, 1, 2), 1) == std::vector<float>{9}); // strided
    CHECK(name(KeyRows(MatrixView<const half>(h, 1, 2)).type) == "float16");
}
