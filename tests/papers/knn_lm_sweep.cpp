// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/papers/knn_lm_explain.hpp>
#include <mnemo/papers/knn_lm_sweep.hpp>
#include <mnemo/text/bpe.hpp>

#include <functional>
#include <random>

using namespace mnemo;

namespace {
struct SweptTokens {
    using value_type = std::int32_t;
    std::vector<std::int32_t> values;
    index_t key_dim() const { return 1; }
    index_t size() const { return static_cast<index_t>(values.size()); }
    std::int32_t value(index_t id) const { return values[static_cast<std::size_t>(id)]; }
};

struct SweptCase {
    SweptTokens store;
    Hits hits;
    std::vector<std::int32_t> targets;
    std::vector<float> log_p;
    TargetLogProbs text() { return {targets, log_p}; }
};
SweptCase random_case(unsigned seed, index_t rows, index_t k) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> score(-9, 0);
    SweptCase c;
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
double perplexity(const std::vector<float>& log_p) {
    Perplexity mean;
    mean.add(log_p);
    return mean.perplexity();
}
} // namespace

TEST_CASE("a sweep gives what each setting gives by itself") {
    SweptCase c = random_case(1, 20, 16);
    const KnnLmGrid grid{{1, 4, 16, 100}, {0.5f, 1, 10}, {0, 0.25f, 0.9f, 1}};
    const KnnLmSweep all = sweep(grid, c.hits, c.store, c.text());
    REQUIRE(all.perplexity.size() == 4 * 3 * 4);
    for (const index_t k : grid.k)
        for (const float temperature : grid.temperature)
            for (const float lambda : grid.lambda) {
                Hits fewer;
                for (index_t row = 0; row < c.hits.rows(); ++row) {
                    for (std::size_t j = 0; j < c.hits.ids(row).size() && j < static_cast<std::size_t>(k); ++j)
                        fewer.push(c.hits.ids(row)[j], c.hits.scores(row)[j]);
                    fewer.end_row();
                }
                std::vector<float> log_p = c.log_p;
                TargetLogProbs base{c.targets, log_p};
                Arena scratch;
                const Rows queries;
                Interpolate{TokenVotes{.temperature = temperature}, Fixed{lambda}}.combine(
                    base, Reading{queries, fewer, c.store, scratch});
                CHECK(all.at({k, temperature, lambda}) == perplexity(log_p)); // bit for bit; infinite is equal, too
            }
    CHECK_THROWS_AS(all.at({2, 1, 0}), Error);
}

TEST_CASE("the best setting of a sweep is its lowest perplexity") {
    SweptCase c = random_case(2, 30, 16);
    const KnnLmSweep all = sweep({{2, 8, 16}, {1, 3}, {0.1f, 0.5f, 0.8f}}, c.hits, c.store, c.text());
    CHECK(all.at(all.best()) == *std::min_element(all.perplexity.begin(), all.perplexity.end()));
    const KnnLmSetting best = all.best();
    CHECK(sweep({{best.k}, {best.temperature}, {best.lambda}}, c.hits, c.store, c.text()).at(0, 0, 0) == all.at(best));
    KnnLmTuned tuned{all, all};
    tuned.test.perplexity.assign(tuned.test.perplexity.size(), 7.0);
    CHECK(tuned.perplexity() == 7.0); // chosen on the one, judged on the other
}

TEST_CASE("lambda 0 is the host, whatever was recalled") {
    SweptCase c = random_case(3, 10, 8);
    CHECK(sweep({{8}, {1}, {0}}, c.hits, c.store, c.text()).at(0, 0, 0) == perplexity(c.log_p));
    CHECK(sweep({0}, Unigram::of(c.store, 5), c.text()).at(0, 0, 0) == perplexity(c.log_p));
    c.targets.pop_back();
    CHECK_THROWS_AS(sweep({{8}, {1}, {0}}, c.hits, c.store, c.text()), Error);
}

TEST_CASE("the unigram control counts values") {
    const SweptTokens store{{1, 1, 1, 2}};
    std::vector<std::int32_t> targets{1, 2, 9};
    std::vector<float> log_p{-1, -1, -1};
    const TargetLogProbs text{targets, log_p};
    CHECK(std::isinf(sweep({1}, Unigram::of(store, 10), text).at(0, 0, 0))); // 9 was never seen
    targets[2] = 1;
    CHECK(sweep({1}, Unigram::of(store, 10), text).at(0, 0, 0) == Approx(std::pow(0.75 * 0.25 * 0.75, -1.0 / 3)));
}

TEST_CASE("neighbours come with their share of the vote") {
    SweptCase c = random_case(4, 5, 12);
    const auto found = neighbours(c.hits, 0, c.store, 3);
    REQUIRE(found.size() == 12);
    double sum = 0, ones = 0;
    for (std::size_t i = 0; i < found.size(); ++i) {
        if (i > 0) CHECK(found[i].score <= found[i - 1].score);
        CHECK(found[i].token == c.store.value(found[i].id));
        sum += static_cast<double>(found[i].share);
        if (found[i].token == 1) ones += static_cast<double>(found[i].share);
    }
    CHECK(sum == Approx(1));
    Arena scratch;
    const Rows queries;
    const auto log_p = TokenVotes{.temperature = 3}.log_prob(Reading{queries, c.hits, c.store, scratch}, 0, 1);
    CHECK(ones == Approx(std::exp(static_cast<double>(log_p.value()))));
    CHECK(neighbours(c.hits, 3, c.store, 3).empty());
}

TEST_CASE("an explanation shows the text before each entry") {
    const Bpe bpe; // bytes only
    SweptTokens store;
    for (const char c : std::string("one\ntwo, one two")) store.values.push_back(Bpe::first_byte + c);
    const std::vector<Neighbour> found{{15, Bpe::first_byte + 'o', -0.5f, 0.75f},
                                       {6, Bpe::first_byte + 'o', -1, 0.25f}};
    CHECK(explain(found, store, bpe, 4, 5) == "   75.0 %  score    -0.50  ...ne tw -> [o]\n"
                                              "   25.0 %  score    -1.00  ...ne\\ntw -> [o]\n");
    CHECK(explain(found, store, bpe, 1, 0) == "   75.0 %  score    -0.50  ... -> [o]\n");
    CHECK(explain({}, store, bpe).empty());
}
