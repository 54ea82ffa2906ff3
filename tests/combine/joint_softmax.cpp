// SPDX-License-Identifier: MIT
#include "catch.hpp"
#include "toy_store.hpp"

#include <mnemo/combine/joint_softmax.hpp>
#include <mnemo/retrieve/both.hpp>

#include <numeric>

using namespace mnemo;

namespace {

// Three rows of logits over a vocabulary, and what the vocabulary sums to for targets of `token`.
struct Host {
    static constexpr std::size_t kVocab = 12;
    Matrix logits{3, kVocab};
    std::vector<std::int32_t> targets;
    std::vector<float> log_all, log_target, log_p;

    Host(unsigned seed, std::int32_t token) : targets(3, token) {
        std::mt19937 random(seed);
        std::normal_distribution<float> normal;
        for (float& x : logits.data) x = normal(random);
        for (index_t i = 0; i < 3; ++i) {
            log_all.push_back(static_cast<float>(log_sum_exp(logits[i])));
            log_target.push_back(logits[i][static_cast<std::size_t>(token)]);
        }
        log_p.resize(3);
    }
    JointLogProbs base() { return {targets, log_all, log_target, log_p}; }
};
ToyRecall entries(unsigned seed) { // 3 rows, scores near those of the logits
    ToyRecall toy = ToyRecall::random(3, Host::kVocab, 6, 2, seed);
    for (index_t row = 0; row < 3; ++row)
        for (float& s : toy.hits.scores(row)) s += 200;
    return toy;
}

} // namespace

TEST_CASE("a joint softmax is one distribution over the vocabulary and what was recalled") {
    ToyRecall toy = entries(4);
    const JointSoftmax joint{.scale = 0.5f};
    std::vector<double> sums(3, 0.0);
    Matrix logits = Host(4, 0).logits;
    Logits decode{MutRows(logits)};
    joint.combine(decode, toy.reading());
    for (std::int32_t token = 0; token < static_cast<std::int32_t>(Host::kVocab); ++token) {
        Host host(4, token);
        const Host untouched(4, token);
        JointLogProbs base = host.base();
        joint.combine(base, toy.reading());
        for (index_t i = 0; i < 3; ++i) {
            const auto row = static_cast<std::size_t>(i);
            double all = 0, same = std::exp(double{untouched.log_target[row]});
            for (const float z : untouched.logits[i]) all += std::exp(double{z});
            for_each_hit(toy.hits, i, [&](index_t id, float score) {
                all += std::exp(0.5 * double{score});
                if (toy.store.value(id) == token) same += std::exp(0.5 * double{score});
            });
            REQUIRE(double{host.log_p[row]} == Approx(std::log(same / all)).epsilon(1e-5));
            REQUIRE(double{host.log_all[row]} == Approx(std::log(all)).epsilon(1e-5));
            sums[row] += std::exp(double{host.log_p[row]});
            // Decoding says the same of every token.
            const auto decoded = static_cast<const Matrix&>(logits)[i];
            REQUIRE(double{decoded[static_cast<std::size_t>(token)]} - log_sum_exp(decoded) ==
                    Approx(double{host.log_p[row]}).epsilon(1e-5));
        }
    }
    for (const double sum : sums) REQUIRE(sum == Approx(1).epsilon(1e-5));
}

TEST_CASE("memories are added one after another in any order") {
    ToyRecall a = entries(1), b = entries(2);
    Host one(9, 4), other(9, 4);
    const JointSoftmax joint{.scale = 0.5f};
    JointLogProbs first = one.base(), second = other.base();
    joint.combine(first, a.reading()), joint.combine(first, b.reading());
    joint.combine(second, b.reading()), joint.combine(second, a.reading());
    for (std::size_t i = 0; i < 3; ++i) REQUIRE(one.log_p[i] == Approx(other.log_p[i]).epsilon(1e-5));
}

TEST_CASE("the second of two memories takes a share of its own") {
    ToyRecall own = entries(1), other = entries(2);
    const Both both(own.store, other.store);
    const JoinedHits hits{own.hits, other.hits, own.store.size()};
    Arena scratch;
    const Rows queries;
    const Reading reading{queries, hits, both, scratch};
    Host joint(5, 4), mixed(5, 4), alone(5, 4);
    JointLogProbs b = joint.base(), m = mixed.base(), all = alone.base();
    JointSoftmax{.scale = 0.5f}.combine(b, reading);
    JointThenMix{{.scale = 0.5f}, 0, 1}.combine(all, reading);
    REQUIRE(alone.log_p == joint.log_p); // no share
    JointThenMix{{.scale = 0.5f}, 0.25f, 3}.combine(m, reading);
    for (index_t i = 0; i < 3; ++i) {
        double sum = 0, same = 0;
        for_each_hit(other.hits, i, [&](index_t id, float score) {
            sum += std::exp(double{score} / 3);
            if (other.store.value(id) == 4) same += std::exp(double{score} / 3);
        });
        const double p = std::exp(double{joint.log_p[static_cast<std::size_t>(i)]});
        const double expected = sum > 0 ? 0.75 * p + 0.25 * same / sum : p;
        REQUIRE(std::exp(double{mixed.log_p[static_cast<std::size_t>(i)]}) == Approx(expected).epsilon(1e-4));
    }
    const JointThenMix too_much{{}, 1.5f, 1};
    REQUIRE_THROWS_WITH(too_much.combine(m, reading), Catch::Contains("lambda"));
}

TEST_CASE("tokens beyond the vocabulary and rows that do not fit are refused") {
    ToyRecall toy = entries(4);
    Matrix narrow(3, 2), few(2, 12);
    Logits small{MutRows(narrow)}, two{MutRows(few)};
    REQUIRE_THROWS_WITH(JointSoftmax{}.combine(small, toy.reading()), Catch::Contains("tokens below 2"));
    REQUIRE_THROWS_WITH(JointSoftmax{}.combine(two, toy.reading()), Catch::Contains("rows"));
    Host host(4, 0);
    host.log_p.pop_back();
    JointLogProbs base = host.base();
    REQUIRE_THROWS_WITH(JointSoftmax{}.combine(base, toy.reading()), Catch::Contains("3 rows"));
}
