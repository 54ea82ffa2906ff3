// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/papers/knn_lm_sweep.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <vector>

using namespace mnemo;

namespace {
struct Tokens {
    using value_type = std::int32_t;
    std::vector<std::int32_t> values;
    index_t key_dim() const { return 1; }
    index_t size() const { return static_cast<index_t>(values.size()); }
    std::int32_t value(index_t id) const { return values[static_cast<std::size_t>(id)]; }
};

struct Case {
    Tokens store;
    Hits hits;
    std::vector<std::int32_t> targets;
    std::vector<float> log_p;
};
Case random_case(unsigned seed, index_t rows, index_t k) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> score(-9, 0);
    Case c;
    for (int i = 0; i < 50; ++i) c.store.values.push_back(static_cast<std::int32_t>(random() % 5));
    for (index_t row = 0; row < rows; ++row) {
        std::vector<float> scores(static_cast<std::size_t>(row == 3 ? 0 : k)); // one row recalls nothing
        for (float& s : scores) s = score(random);
        std::sort(scores.begin(), scores.end(), std::greater<>());
        for (const float s : scores) c.hits.push(static_cast<index_t>(random() % 50), s);
        c.hits.end_row();
        c.targets.push_back(static_cast<std::int32_t>(random() % 5));
        c.log_p.push_back(score(random));
    }
    return c;
}
} // namespace

TEST_CASE("a sweep gives what each setting gives by itself") {
    Case c = random_case(1, 20, 16);
    const KnnLmGrid grid{{1, 4, 16, 100}, {0.5f, 1, 10}, {0, 0.25f, 0.9f, 1}};
    const KnnLmSweep all = sweep(grid, c.hits, c.store, TargetLogProbs{c.targets, c.log_p});
    REQUIRE(all.perplexity.size() == 4 * 3 * 4);
    for (std::size_t k = 0; k < grid.k.size(); ++k)
        for (std::size_t t = 0; t < grid.temperature.size(); ++t)
            for (std::size_t l = 0; l < grid.lambda.size(); ++l) {
                Hits fewer;
                for (index_t row = 0; row < c.hits.rows(); ++row) {
                    for (std::size_t j = 0; j < c.hits.ids(row).size() && j < static_cast<std::size_t>(grid.k[k]); ++j)
                        fewer.push(c.hits.ids(row)[j], c.hits.scores(row)[j]);
                    fewer.end_row();
                }
                std::vector<float> log_p = c.log_p;
                TargetLogProbs base{c.targets, log_p};
                Arena scratch;
                const Rows queries;
                Interpolate{TokenVotes{.temperature = grid.temperature[t]}, Fixed{grid.lambda[l]}}.combine(
                    base, Reading{queries, fewer, c.store, scratch});
                Perplexity expected;
                expected.add(log_p);
                if (std::isinf(expected.perplexity()))
                    CHECK(std::isinf(all.at(k, t, l)));
                else
                    CHECK(all.at(k, t, l) == expected.perplexity()); // bit for bit
            }
}

TEST_CASE("the best setting of a sweep is its lowest perplexity") {
    Case c = random_case(2, 30, 16);
    const KnnLmGrid grid{{2, 8, 16}, {1, 3}, {0.1f, 0.5f, 0.8f}};
    const KnnLmSweep all = sweep(grid, c.hits, c.store, TargetLogProbs{c.targets, c.log_p});
    const KnnLmSetting best = all.best();
    const KnnLmSweep one =
        sweep({{best.k}, {best.temperature}, {best.lambda}}, c.hits, c.store, TargetLogProbs{c.targets, c.log_p});
    CHECK(one.at(0, 0, 0) == *std::min_element(all.perplexity.begin(), all.perplexity.end()));
}

TEST_CASE("lambda 0 is the host, whatever was recalled") {
    Case c = random_case(3, 10, 8);
    Perplexity host;
    host.add(c.log_p);
    const KnnLmSweep none = sweep({{8}, {1}, {0}}, c.hits, c.store, TargetLogProbs{c.targets, c.log_p});
    CHECK(none.at(0, 0, 0) == host.perplexity());
    c.targets.pop_back();
    CHECK_THROWS_AS(sweep({{8}, {1}, {0}}, c.hits, c.store, TargetLogProbs{c.targets, c.log_p}), Error);
}
