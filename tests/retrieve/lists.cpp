// SPDX-License-Identifier: MIT
#include "brute_force.hpp"
#include "random_rows.hpp"

#include <catch.hpp>
#include <kernels/simd_levels.hpp>
#include <mnemo/retrieve/build_lists.hpp>
#include <mnemo/retrieve/lists.hpp>

#include <functional>

using namespace mnemo;

namespace {

constexpr index_t kKeys = 3000, kQueries = 40;

template <class MetricT> KeyLists lists_of(const auto& store, FilterFormat format = FilterFormat::int8) {
    return ListsBuilder<MetricT>(store.keys(), {.lists = 30, .rounds = 3, .chunk = 700, .format = format}).build();
}

template <class MetricT> void check_exact(const Matrix& keys, const Matrix& queries) {
    TokenStore<half> store(keys.cols);
    store.append(keys, numbered(keys.rows));
    const KeyLists lists = lists_of<MetricT>(store);
    for (index_t id = 5; id < keys.rows; id += 11) store.erase(id);
    Matrix later = clustered(100, keys.cols, 5); // not in the lists
    store.append(later, numbered(100));
    for (const index_t k : {1, 60, 2500}) {
        const Answer expected = brute_force<MetricT>(store, queries, k);
        for (const SimdLevel level : simd_levels()) {
            const UseSimdLevel use(level);
            INFO(name(level) << ", k = " << k);
            Lists<MetricT> exact{lists.view(), k, 3, Probe::exact};
            CHECK(answer(exact.retrieve(store, queries)) == expected);
            CHECK(answer(Lists<MetricT, Threads>{lists.view(), k, 3, Probe::exact, {2}}.retrieve(store, queries)) ==
                  expected);
            // All lists are the whole store.
            CHECK(answer(Lists<MetricT>{lists.view(), k, 30}.retrieve(store, queries)) == expected);
        }
    }
}

} // namespace

TEMPLATE_TEST_CASE("lists with bounds find exactly the nearest", "", L2, InnerProduct, Cosine) {
    Matrix keys = clustered(kKeys, 20, 1), queries = clustered(kQueries, 20, 2);
    SECTION("clusters") {}
    SECTION("near ties") {
        for (index_t i = 0; i < kKeys; ++i)
            for (std::size_t j = 0; j < 20; ++j) keys[i][j] = keys[i % 7][j] + 0.001f * static_cast<float>(i % 3);
    }
    SECTION("all equal") { std::fill(keys.data.begin(), keys.data.end(), 0.3f); }
    SECTION("queries are keys") {
        for (index_t i = 0; i < kQueries; ++i) std::copy(keys[i].begin(), keys[i].end(), queries[i].begin());
    }
    SECTION("far from the origin") {
        for (Matrix* m : {&keys, &queries})
            for (float& x : m->data) x += 1000;
    }
    SECTION("small numbers") {
        for (Matrix* m : {&keys, &queries})
            for (float& x : m->data) x *= 1e-4f;
    }
    SECTION("zero queries") { std::fill(queries.data.begin(), queries.data.end(), 0.0f); }
    check_exact<TestType>(keys, queries);
}

TEST_CASE("keys beyond the bound of the filter") {
    Matrix keys = clustered(kKeys, 16, 1), queries = clustered(kQueries, 16, 2);
    for (Matrix* m : {&keys, &queries})
        for (float& x : m->data) x *= 1e16f;
    TokenStore<> store(16);
    store.append(keys, numbered(kKeys));
    const KeyLists lists = lists_of<L2>(store);
    CHECK(answer(Lists<L2>{lists.view(), 50, 3, Probe::exact}.retrieve(store, queries)) ==
          brute_force<L2>(store, queries, 50));
}

TEMPLATE_TEST_CASE("the nearest lists hold most of the nearest keys", "", L2, InnerProduct, Cosine) {
    const Matrix keys = clustered(kKeys, 24, 1), queries = clustered(kQueries, 24, 2);
    TokenStore<> store(24);
    store.append(keys, numbered(kKeys));
    for (const FilterFormat format : {FilterFormat::int8, FilterFormat::rotated_int8, FilterFormat::bfloat16}) {
        const KeyLists lists = lists_of<TestType>(store, format);
        REQUIRE(lists.entries == kKeys);
        Lists<TestType> retriever{lists.view(), 50, 10};
        const Hits exact = Exact<TestType>{50}.retrieve(store, queries);
        const Hits found = retriever.retrieve(store, queries);
        const double recall = compare(found, exact).recall;
        CHECK(recall > 0.8);
        for (index_t row = 0; row < kQueries; ++row) // scores are exact, and in order
            for (std::size_t j = 0; j < found.ids(row).size(); ++j) {
                CHECK(found.scores(row)[j] == score<TestType>(queries[row], store.keys()[found.ids(row)[j]]));
                if (j > 0) CHECK(found.scores(row)[j] <= found.scores(row)[j - 1]);
            }
        const Answer expected = answer(found);
        CHECK(answer(Lists<TestType, Threads>{lists.view(), 50, 10, Probe::rescored, {3}}.retrieve(store, queries)) ==
              expected);
        for (index_t row = 0; row < kQueries; ++row)
            CHECK(answer(retriever.retrieve(store, Rows(queries).slice(row, 1)))[0] ==
                  expected[static_cast<std::size_t>(row)]);
        retriever.probe = Probe::first_pass;
        const Hits rough = retriever.retrieve(store, queries);
        CHECK(compare(rough, exact).recall > recall - 0.1);
        for (index_t row = 0; row < kQueries; ++row)
            for (std::size_t j = 0; j < rough.ids(row).size(); ++j) {
                const auto q = queries[row], x = store.keys()[rough.ids(row)[j]];
                const bool cosine = TestType::metric == Metric::cosine;
                const float squares = cosine ? 2 : score<InnerProduct>(q, q) + score<InnerProduct>(x, x);
                CHECK(std::abs(score<TestType>(q, x) - rough.scores(row)[j]) < 0.02f * squares); // of 8 bits
            }
    }
}

TEST_CASE("nprobe is tuned for a recall") {
    const Matrix keys = clustered(kKeys, 24, 1), queries = clustered(kQueries, 24, 2);
    TokenStore<> store(24);
    store.append(keys, numbered(kKeys));
    const KeyLists lists = lists_of<L2>(store);
    Lists<L2> retriever{lists.view(), 100};
    const Hits exact = Exact<L2>{100}.retrieve(store, queries);
    for (const double recall : {0.5, 0.9, 1.0}) {
        retriever.nprobe = tune_nprobe(retriever, store, queries, recall);
        CHECK(compare(retriever.retrieve(store, queries), exact).recall >= recall);
    }
    CHECK(tune_nprobe(retriever, store, queries, 0.5) < tune_nprobe(retriever, store, queries, 0.99));
}

TEST_CASE("an interrupted build goes on") {
    const Matrix keys = clustered(kKeys, 12, 1);
    const ListsOptions options{.lists = 20, .rounds = 3, .chunk = 500};
    const KeyLists whole = ListsBuilder<L2>(keys, options).build();
    CHECK(ListsBuilder<L2, Threads>(keys, options, {2}).build().ids == whole.ids);
    ListsBuilder<L2> builder(keys, options);
    CHECK(builder.total() == 9);
    CHECK_THROWS_WITH(builder.pack(), Catch::Matchers::Equals("mnemo: ListsBuilder: expected 9 steps, got 0"));
    for (int stop = 1; builder.step(); ++stop) {
        CHECK(builder.done() == stop);
        ListsBuilder<L2> again(keys, options, {}, builder.draft());
        const KeyLists lists = again.build();
        CHECK(lists.ids == whole.ids);
        CHECK(lists.words == whole.words);
        CHECK(lists.radius == whole.radius);
    }
    CHECK_THROWS(ListsBuilder<L2>(keys, {.lists = 21}, {}, builder.draft()));
}

TEST_CASE("keys join the lists of centroids that are there") {
    const Matrix keys = clustered(kKeys, 12, 1);
    const ListsOptions options{.lists = 60, .rounds = 3};
    ListsBuilder<L2> whole(keys, options);
    const KeyLists lists = whole.build();
    const index_t few = 40; // fewer than lists
    const ListsDraft learned{options.rounds, whole.draft().centroids, {}};
    ListsBuilder<L2> part(Rows(keys).slice(0, few), {.rounds = 3}, {}, learned);
    CHECK(part.build().centroids == lists.centroids);
    CHECK(std::equal(part.draft().assigned.begin(), part.draft().assigned.end(), whole.draft().assigned.begin()));
    CHECK(part.draft().assigned.size() == static_cast<std::size_t>(few));
}

TEST_CASE("lists that do not fit") {
    const Matrix keys = clustered(100, 8, 1);
    TokenStore<> store(8), small(8), wide(9);
    store.append(keys, numbered(100));
    const KeyLists lists = ListsBuilder<L2>(store.keys(), {.lists = 4}).build();
    const Matrix queries(2, 8);
    CHECK_THROWS(Lists<Cosine>{lists.view()}.retrieve(store, queries));
    CHECK_THROWS(Lists<L2>{lists.view()}.retrieve(small, queries));
    CHECK_THROWS(Lists<L2>{lists.view()}.retrieve(wide, Matrix(2, 9)));
    CHECK(Lists<L2>{lists.view()}.retrieve(store, Matrix(0, 8)).rows() == 0);
    CHECK_THROWS(ListsBuilder<L2>(small.keys(), {}));
}
