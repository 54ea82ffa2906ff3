// SPDX-License-Identifier: MIT
#include "random_rows.hpp"

#include <allocations.hpp>
#include <catch.hpp>
#include <mnemo/retrieve/any.hpp>
#include <mnemo/retrieve/both.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/retrieve/recite.hpp>
#include <mnemo/retrieve/rescore.hpp>
#include <mnemo/store/tokens.hpp>

using namespace mnemo;

namespace {

/// Finds the same ids for every query, with scores that mean nothing.
struct Fixed {
    std::vector<index_t> ids;
    Hits retrieve(const MemoryStore auto&, Rows queries) const {
        Hits hits;
        for (index_t row = 0; row < queries.rows; ++row) {
            for (const index_t id : ids) hits.push(id, 0.25f);
            hits.end_row();
        }
        return hits;
    }
};

TokenStore<> filled(index_t n, index_t d, unsigned seed) {
    TokenStore<> store(d);
    store.append(clustered(n, d, seed), numbered(n));
    return store;
}

bool equal(std::span<const index_t> a, std::span<const index_t> b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end());
}
bool equal(std::span<const float> a, std::span<const float> b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

} // namespace

TEST_CASE("re-scoring gives exact scores in order and drops what is no entry") {
    auto store = filled(50, 9, 1);
    store.erase(7);
    const Matrix q = clustered(5, 9, 2);
    const Rescored<Fixed, L2> rescored{{{3, -1, 40, 7, 12, 3, -1}}};
    const Hits hits = rescored.retrieve(store, q);
    for (index_t row = 0; row < 5; ++row) {
        REQUIRE(hits.ids(row).size() == 4);
        std::vector<index_t> ids(hits.ids(row).begin(), hits.ids(row).end());
        for (std::size_t j = 0; j < 4; ++j) {
            CHECK(hits.scores(row)[j] == score<L2>(q[row], store.keys()[ids[j]]));
            if (j > 0) CHECK((hits.scores(row)[j - 1] > hits.scores(row)[j] || ids[j - 1] <= ids[j]));
        }
        std::sort(ids.begin(), ids.end());
        CHECK(ids == std::vector<index_t>{3, 3, 12, 40});
    }
    CHECK_THROWS_WITH((Rescored<Fixed, L2>{{{3, 50}}}.retrieve(store, q)),
                      Catch::Contains("expected ids below 50, got 50"));
}

TEST_CASE("re-scoring all of another metric's hits is exact search") {
    const auto store = filled(300, 20, 3);
    const Matrix q = clustered(40, 20, 4);
    const Hits expected = Exact<Cosine>{300}.retrieve(store, q);
    Hits hits;
    for (const index_t threads : {1, 3}) {
        const Rescored<Exact<L2>, Cosine, Threads> rescored{{300}, {threads}};
        hits = rescored.retrieve(store, q, std::move(hits));
        for (index_t row = 0; row < 40; ++row) {
            CHECK(equal(hits.ids(row), expected.ids(row)));
            CHECK(equal(hits.scores(row), expected.scores(row)));
        }
    }
    const Rescored<Exact<L2>, Cosine> rescored{{300}};
    for (int i = 0; i < 3; ++i) hits = rescored.retrieve(store, q, std::move(hits));
    const long before = allocations_so_far();
    for (int i = 0; i < 5; ++i) hits = rescored.retrieve(store, q, std::move(hits));
    CHECK(allocations_so_far() == before);
}

TEST_CASE("two memories are retrieved from as one") {
    const Both both(filled(30, 4, 5), filled(20, 4, 6));
    const RetrieveBoth retriever{Exact<L2>{3}, Exact<L2>{2}};
    const Matrix q = clustered(6, 4, 7);
    static_assert(RecyclingRetrieverFor<decltype(retriever), decltype(both), Rows>);
    auto found = retriever.retrieve(both, Rows(q));
    found = retriever.retrieve(both, Rows(q), std::move(found));
    const Hits first = Exact<L2>{3}.retrieve(both.first(), q), second = Exact<L2>{2}.retrieve(both.second(), q);
    for (index_t row = 0; row < 6; ++row) {
        std::vector<index_t> ids;
        for_each_hit(found, row, [&](index_t id, float) { ids.push_back(id); });
        std::vector<index_t> expected(first.ids(row).begin(), first.ids(row).end());
        for (const index_t id : second.ids(row)) expected.push_back(30 + id);
        CHECK(ids == expected);
    }
}

TEST_CASE("a retriever is chosen at run time") {
    const auto store = filled(60, 4, 8);
    const Matrix q = clustered(3, 4, 9);
    using Any = AnyRetriever<TokenStore<>>;
    static_assert(RecyclingRetrieverFor<Any, TokenStore<>, Rows>);
    for (const bool exact : {true, false}) {
        const Any chosen = exact ? Any(Exact<L2>{5}) : Any(Fixed{{1, 2}});
        const Any copy = chosen;
        Hits hits = copy.retrieve(store, q);
        hits = chosen.retrieve(store, q, std::move(hits));
        REQUIRE(hits.rows() == 3);
        CHECK(hits.ids(0).size() == (exact ? 5u : 2u));
        CHECK(hits.ids(2)[0] == (exact ? Exact<L2>{5}.retrieve(store, q).ids(2)[0] : 1));
    }
}

namespace {
/// Negates the query.
struct Mirror {
    index_t key_dim() const { return 2; }
    Vectors recite(Rows queries) const {
        Vectors out{Matrix(queries.rows, queries.cols)};
        for (index_t i = 0; i < queries.rows; ++i)
            for (std::size_t j = 0; j < queries[i].size(); ++j) out.values[i][j] = -queries[i][j];
        return out;
    }
};
static_assert(RetrieverFor<Recite, Mirror, Rows> && !RetrieverFor<Recite, TokenStore<>, Rows>);
} // namespace

TEST_CASE("reciting asks the store") {
    Matrix q(1, 2);
    q[0][1] = 3;
    CHECK(Recite{}.retrieve(Mirror{}, Rows(q)).vector(0)[1] == -3);
}
