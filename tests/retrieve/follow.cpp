// SPDX-License-Identifier: MIT
#include "catch.hpp"

#include <mnemo/papers/retomaton.hpp>
#include <mnemo/store/tokens.hpp>

#include <random>

using namespace mnemo;

namespace {

// A text that repeats itself: keys are noise around a vector of the token before.
struct Fixture {
    TokenStore<> store{8};
    Matrix queries{40, 8};
    std::vector<std::int32_t> text, targets;

    Fixture() {
        std::mt19937 random(7);
        std::uniform_real_distribution<float> noise(-0.02f, 0.02f);
        const auto key = [&](std::int32_t token, std::span<float> out) {
            std::mt19937 of_token(static_cast<unsigned>(token) + 100);
            for (float& x : out) x = std::uniform_real_distribution<float>(-1, 1)(of_token) + noise(random);
        };
        for (int i = 0; i < 200; ++i) text.push_back(static_cast<std::int32_t>(random() % 5 == 0 ? i % 7 : i % 20));
        Matrix keys(199, 8);
        for (index_t i = 0; i < 199; ++i) key(text[static_cast<std::size_t>(i)], keys[i]);
        store.append(keys, std::span(text).subspan(1));
        for (index_t i = 0; i < 40; ++i) {
            key(text[static_cast<std::size_t>(i + 60)], queries[i]);
            targets.push_back(text[static_cast<std::size_t>(i + 61)]);
        }
    }
};

const Exact<L2> exact{8};

} // namespace

TEST_CASE("Follow finds what a plain loop over its rules finds", "[follow]") {
    Fixture f;
    const Clusters clusters = cluster_keys(f.store, {.lists = 12});
    const bool clustered = GENERATE(false, true);
    const Follow<Exact<L2>, L2> follow{exact, clustered ? &clusters : nullptr, 2, 20};
    std::vector<Trail> trails(1);
    const Hits hits = follow.retrieve(f.store, TrailQueries{f.queries, trails, {}, f.targets});
    REQUIRE(hits.rows() == 40);

    std::vector<index_t> pointers;
    index_t searches = 0;
    for (index_t row = 0; row < 40; ++row) {
        std::vector<std::pair<index_t, float>> expected;
        if (pointers.size() < 2) {
            ++searches;
            const Hits found = exact.retrieve(f.store, Rows(f.queries).slice(row, 1));
            for_each_hit(found, 0, [&](index_t id, float s) { expected.emplace_back(id, s); });
        }
        std::vector<index_t> e = pointers;
        if (clustered) {
            std::vector<std::pair<int, std::int32_t>> order;
            for (std::int32_t c = 0; c < clusters.count(); ++c) {
                int n = 0;
                for (const index_t p : pointers) n += clusters.of(p) == c ? 1 : 0;
                if (n > 0) order.emplace_back(-n, c);
            }
            std::sort(order.begin(), order.end());
            for (const auto& o : order)
                for (index_t id = 0; id < f.store.size(); ++id)
                    if (clusters.of(id) == o.second) e.push_back(id);
        }
        if (e.size() > 20) e.resize(20);
        for (const index_t id : e)
            expected.emplace_back(id, score<L2>(std::as_const(f.queries)[row], f.store.keys()[id]));
        REQUIRE(hits.ids(row).size() == expected.size());
        std::vector<std::pair<float, index_t>> right;
        for (std::size_t j = 0; j < expected.size(); ++j) {
            CHECK(hits.ids(row)[j] == expected[j].first);
            CHECK(hits.scores(row)[j] == expected[j].second);
            if (f.store.value(expected[j].first) == f.targets[static_cast<std::size_t>(row)] && expected[j].first < 198)
                right.emplace_back(expected[j].second, expected[j].first);
        }
        std::stable_sort(right.begin(), right.end(), [](auto a, auto b) { return a.first > b.first; });
        pointers.clear();
        for (const auto& r : right) pointers.push_back(r.second + 1);
    }
    CHECK(trails[0].steps == 40);
    CHECK(trails[0].searches == searches);
    CHECK(searches < 30);
    CHECK(trails[0].saved() == 1 - double(searches) / 40);
}

TEST_CASE("Sequences of a batch do not see each other", "[follow]") {
    Fixture f;
    const RetoMaton<TokenStore<>, Exact<L2>> memory(LastHidden{}, f.store, {exact, nullptr, 1, 64}, {{}, {0.3f}}, {});
    // Two sequences, step by step in turn, and each alone.
    Matrix mixed(40, 8);
    std::vector<std::int32_t> targets;
    std::vector<index_t> trail_of;
    for (index_t i = 0; i < 20; ++i)
        for (const index_t from : {i, i + 20}) {
            std::copy_n(f.queries[from].begin(), 8, mixed[static_cast<index_t>(targets.size())].begin());
            targets.push_back(f.targets[static_cast<std::size_t>(from)]);
            trail_of.push_back(from < 20 ? 0 : 1);
        }
    std::vector<Trail> two(2);
    std::vector<float> together(40, -3.0f);
    memory.read(TrailQueries{mixed, two, trail_of, targets}, TargetLogProbs{targets, together});
    for (std::size_t s = 0; s < 2; ++s) {
        std::vector<Trail> one(1);
        std::vector<float> alone(20, -3.0f);
        const auto own = std::span(f.targets).subspan(20 * s, 20);
        memory.read(TrailQueries{Rows(f.queries).slice(static_cast<index_t>(20 * s), 20), one, {}, own},
                    TargetLogProbs{own, alone});
        for (std::size_t i = 0; i < 20; ++i) CHECK(alone[i] == together[2 * i + s]);
        CHECK(one[0].searches == two[s].searches);
    }
    // Step by step without knowing what comes: the owner advances.
    Trail trail;
    for (index_t i = 0; i < 20; ++i) {
        std::vector<float> step(1, -3.0f);
        const auto at = static_cast<std::size_t>(i);
        memory.read(TrailQueries{Rows(f.queries).slice(i, 1), std::span(&trail, 1), {}, {}},
                    TargetLogProbs{std::span(f.targets).subspan(at, 1), step});
        CHECK(step[0] == together[2 * at]);
        trail.advance(memory.store(), f.targets[at]);
    }
}

TEST_CASE("Follow leaves out what was erased, and repeats nothing if asked", "[follow]") {
    Fixture f;
    const Clusters clusters = cluster_keys(f.store, {.lists = 12});
    for (index_t id = 0; id < 199; id += 3) f.store.erase(id);
    for (const bool distinct : {false, true}) {
        const Follow<Exact<L2>, L2> follow{exact, &clusters, retomaton_knobs::always_search, 30, distinct};
        std::vector<Trail> trails(1);
        const Hits hits = follow.retrieve(f.store, TrailQueries{f.queries, trails, {}, f.targets});
        bool repeated = false;
        for (index_t row = 0; row < 40; ++row) {
            std::vector<index_t> ids(hits.ids(row).begin(), hits.ids(row).end());
            for (const index_t id : ids) CHECK(id % 3 != 0);
            std::sort(ids.begin(), ids.end());
            repeated = repeated || std::adjacent_find(ids.begin(), ids.end()) != ids.end();
        }
        CHECK(repeated == !distinct);
        CHECK(trails[0].searches == 40);
    }
}

TEST_CASE("With min_knns = infinity and no pointers Follow is its inner retriever", "[follow]") {
    Fixture f;
    const Follow<Exact<L2>, L2> follow{exact, nullptr, retomaton_knobs::always_search, 0};
    std::vector<Trail> trails(1);
    const Hits followed = follow.retrieve(f.store, TrailQueries{f.queries, trails, {}, f.targets});
    const Hits plain = exact.retrieve(f.store, f.queries);
    for (index_t row = 0; row < 40; ++row)
        CHECK(std::equal(plain.ids(row).begin(), plain.ids(row).end(), followed.ids(row).begin(),
                         followed.ids(row).end()));
}

TEST_CASE("Follow says what is wrong", "[follow]") {
    Fixture f;
    const Clusters few(std::vector<std::int32_t>{0, 1, 0});
    CHECK(few.count() == 2);
    CHECK(std::vector<index_t>(few.members(0).begin(), few.members(0).end()) == std::vector<index_t>{0, 2});
    const Follow<Exact<L2>, L2> follow{exact, &few, 1, 64};
    std::vector<Trail> trails(1);
    CHECK_THROWS_WITH(follow.retrieve(f.store, TrailQueries{f.queries, trails, {}, f.targets}),
                      Catch::Contains("entries of the clusters"));
    const std::vector<index_t> wrong(40, 1);
    CHECK_THROWS_WITH(follow.retrieve(f.store, TrailQueries{f.queries, trails, wrong, f.targets}),
                      Catch::Contains("expected one of 1 trails, got 1"));
    CHECK_THROWS_WITH(follow.retrieve(f.store, TrailQueries{f.queries, trails, {}, std::span(f.targets).first(3)}),
                      Catch::Contains("Follow: targets"));
    CHECK_THROWS_WITH(Clusters(std::vector<std::int32_t>{0, -1}), Catch::Contains("entry 1"));
    CHECK_THROWS_WITH(Clusters(std::vector<std::int32_t>{0, 1000000000}), Catch::Contains("clusters"));
}
