// SPDX-License-Identifier: MIT
#include "brute_force.hpp"
#include "random_rows.hpp"

#include <allocations.hpp>
#include <catch.hpp>
#include <kernels/simd_levels.hpp>
#include <mnemo/core/session.hpp>
#include <mnemo/extract/last_hidden.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/store/tokens.hpp>

using namespace mnemo;

namespace {

template <class Key> TokenStore<Key> store_of(const Matrix& keys) {
    TokenStore<Key> store(keys.cols);
    store.append(keys, numbered(keys.rows));
    return store;
}

} // namespace

TEMPLATE_TEST_CASE("exact search finds what sorting all scores finds", "", L2, InnerProduct, Cosine) {
    const auto check = [](auto zero, index_t n, index_t d, index_t queries) {
        auto store = store_of<decltype(zero)>(clustered(n, d, 1));
        for (index_t id = 3; id < n; id += 7) store.erase(id);
        const Matrix q = clustered(queries, d, 2);
        for (const index_t k : {index_t{1}, index_t{10}, index_t{100}, n / 2, n, n + 5}) {
            const Answer expected = brute_force<TestType>(store, q, k);
            CHECK(answer(Exact<TestType>{k}.retrieve(store, q)) == expected);
            CHECK(answer(Exact<TestType, Threads>{k, {3}}.retrieve(store, q)) == expected);
        }
    };
    check(0.0f, 1, 3, 2);
    check(0.0f, 500, 17, 70);
    check(half{}, 1500, 64, 5);
    check(bfloat16{}, 700, 33, 130);
    check(0.0f, 20000, 8, 3); // several parts of the keys with threads
}

TEST_CASE("exact search agrees with double precision") {
    const index_t n = 3000, d = 50, k = 200;
    const auto store = store_of<float>(clustered(n, d, 3));
    const Matrix q = clustered(4, d, 4);
    const Hits hits = Exact<L2>{k}.retrieve(store, q);
    for (index_t row = 0; row < 4; ++row) {
        std::vector<double> distances;
        const auto distance = [&](index_t id) {
            double sum = 0;
            for (std::size_t j = 0; j < static_cast<std::size_t>(d); ++j) {
                const double e = double(q[row][j]) - store.keys()[id][j];
                sum += e * e;
            }
            return sum;
        };
        for (index_t id = 0; id < n; ++id) distances.push_back(distance(id));
        std::sort(distances.begin(), distances.end());
        REQUIRE(hits.ids(row).size() == 200);
        for (std::size_t j = 0; j < 200; ++j) {
            CHECK(hits.scores(row)[j] == Approx(-distances[j]).epsilon(1e-5));
            CHECK(distance(hits.ids(row)[j]) == Approx(distances[j]).epsilon(1e-5));
        }
    }
}

TEST_CASE("the answer is the same for every batch, number of threads and instruction set") {
    const index_t n = 13000, d = 40, k = 300;
    Matrix keys = clustered(n, d, 5);
    for (index_t i = 0; i < n / 3; ++i) // every key three times
        for (index_t copy = 1; copy < 3; ++copy)
            std::copy(keys[i].begin(), keys[i].end(), keys[(i * 7919 + copy) % n].begin());
    const auto store = store_of<half>(keys);
    const Matrix q = clustered(200, d, 6);
    const Answer expected = brute_force<L2>(store, q, k);
    for (const SimdLevel level : simd_levels()) {
        const UseSimdLevel use(level);
        for (const index_t threads : {1, 2, 5})
            for (const index_t batch : {1, 3, 64, 200}) {
                if (level == SimdLevel::plain && batch != 64) continue; // slow
                const Exact<L2, Threads> exact{k, {threads}};
                Hits hits;
                for (index_t first = 0; first < (batch < 64 ? 9 : 200); first += batch) {
                    const index_t rows = std::min<index_t>(batch, 200 - first);
                    hits = exact.retrieve(store, Rows(q).slice(first, rows), std::move(hits));
                    const auto from = expected.begin() + first;
                    REQUIRE(answer(hits) == Answer(from, from + rows));
                }
            }
    }
}

TEST_CASE("more ties than k are cut by id") {
    const index_t d = 5;
    Matrix keys(6000, d);
    std::fill(keys.data.begin(), keys.data.end(), 2.0f);
    for (index_t i = 0; i < d; ++i) keys[3001][static_cast<std::size_t>(i)] = 0.5f; // the one that is nearer
    const auto store = store_of<float>(keys);
    const Matrix q(2, d);
    for (const index_t k : {1, 2, 50, 1024, 5999, 6000, 7000})
        for (const index_t threads : {1, 3}) {
            const Hits hits = Exact<L2, Threads>{k, {threads}}.retrieve(store, q);
            REQUIRE(hits.ids(0).size() == static_cast<std::size_t>(std::min<index_t>(k, 6000)));
            CHECK(hits.ids(0)[0] == 3001);
            for (index_t j = 1; j < static_cast<index_t>(hits.ids(0).size()); ++j)
                REQUIRE(hits.ids(0)[static_cast<std::size_t>(j)] == (j <= 3001 ? j - 1 : j));
            CHECK(answer(hits)[0] == answer(hits)[1]);
        }
}

TEST_CASE("nothing is found where there is nothing") {
    TokenStore<> store(3);
    Matrix q(2, 3);
    CHECK(Exact<L2>{4}.retrieve(store, q).rows() == 2);
    CHECK(Exact<L2>{4}.retrieve(store, q).ids(1).empty());
    const std::vector<std::int32_t> values = {1, 2};
    store.append(Matrix(2, 3), values);
    CHECK(Exact<L2>{0}.retrieve(store, q).ids(1).empty());
    CHECK(Exact<L2>{4}.retrieve(store, Rows(nullptr, 0, 3)).rows() == 0);
    CHECK(Exact<L2>{4}.retrieve(store, q).ids(1).size() == 2);
    store.erase(0), store.erase(1);
    CHECK(Exact<L2>{4}.retrieve(store, q).ids(1).empty());
    CHECK_THROWS_WITH((Exact<L2>{4}.retrieve(store, Matrix(2, 4))), Catch::Contains("width of the queries"));
    CHECK_THROWS_WITH((Exact<L2>{-1}.retrieve(store, q)), Catch::Contains("expected k >= 0, got -1"));
}

TEST_CASE("a query with a NaN and a score that overflows find nothing") {
    TokenStore<> store(2);
    Matrix keys(3, 2);
    keys[0][0] = 3e19f; // its square is beyond float
    keys[1][0] = 1;
    store.append(keys, numbered(3));
    Matrix q(2, 2);
    q[1][0] = std::numeric_limits<float>::quiet_NaN();
    const Hits hits = Exact<L2>{3}.retrieve(store, q);
    CHECK(answer(hits)[0] == std::vector<Hit>{{2, 0.0f}, {1, -1.0f}});
    CHECK(hits.ids(1).empty());
}

TEST_CASE("a row's hits do not depend on what was in the buffers before") {
    const auto store = store_of<float>(clustered(900, 6, 8));
    const Matrix q = clustered(20, 6, 9);
    Hits hits = Exact<L2>{700}.retrieve(store, q);
    hits = Exact<L2>{5}.retrieve(store, Rows(q).slice(0, 3), std::move(hits));
    CHECK(answer(hits) == brute_force<L2>(store, Rows(q).slice(0, 3), 5));
    hits = Exact<L2>{900}.retrieve(store, q, std::move(hits));
    CHECK(answer(hits) == brute_force<L2>(store, q, 900));
}

namespace {
// Leaves the recall to be looked at.
struct Nothing {
    template <class Q, AssociativeRecall R, class S> void combine(MutRows, const Reading<Q, R, S>&) const {}
};
} // namespace

TEST_CASE("exact search in a session allocates nothing after the first steps") {
    const Memory memory(LastHidden{}, store_of<half>(clustered(5000, 32, 10)), Exact<L2>{300}, Nothing{});
    Session<const decltype(memory), Rows> session(memory);
    const Matrix q = clustered(70, 32, 11);
    Matrix base(70, 1);
    for (int i = 0; i < 2; ++i) session.read(q, MutRows(base));
    const long before = allocations_so_far();
    for (int i = 0; i < 5; ++i) session.read(q, MutRows(base));
    CHECK(allocations_so_far() == before);
    CHECK(answer(session.recall()) == brute_force<L2>(memory.store(), q, 300));
}
