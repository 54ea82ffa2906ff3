// SPDX-License-Identifier: MIT
#include "../combine/toy_store.hpp"

#include <catch.hpp>
#include <mnemo/combine/interpolate.hpp>
#include <mnemo/loss/nll.hpp>

#include <array>

using namespace mnemo;

TEST_CASE("perplexity, bits and bits per byte of known probabilities") {
    Perplexity p;
    CHECK(std::isnan(p.perplexity()));
    for (const double x : {0.5, 0.25, 0.125, 0.25}) p.add(static_cast<float>(std::log(x)));
    CHECK(p.count() == 4);
    CHECK(p.bits() == Approx(2.0).epsilon(1e-7));
    CHECK(p.perplexity() == Approx(4.0).epsilon(1e-7));
    CHECK(p.nats() == Approx(std::log(4.0)).epsilon(1e-7));
    CHECK(p.bits_per_byte(16) == Approx(0.5).epsilon(1e-7));
}

TEST_CASE("an impossible target makes the perplexity infinite") {
    Perplexity p;
    p.add(-1.0f), p.add(-std::numeric_limits<float>::infinity());
    CHECK(p.perplexity() == HUGE_VAL);
    CHECK(p.bits() == HUGE_VAL);
}

TEST_CASE("a million small terms are not lost") {
    Perplexity p, half;
    const std::vector<float> part(500000, -0.1f);
    p.add(part);
    half.add(part);
    p.add(half);
    CHECK(p.count() == 1000000);
    CHECK(p.nats() == Approx(double{0.1f}).epsilon(1e-12));
}

TEST_CASE("the pieces of a word count as one") {
    Perplexity p;
    const std::vector<float> log_p{-1, -2, -4, -8};
    const std::array<bool, 4> continues{false, true, true, false};
    p.add_words(log_p, continues);
    CHECK(p.count() == 2);
    CHECK(p.nats() == 7.5);
    const std::array<bool, 4> dangling{false, false, false, true}; // a sentence may end within a word
    p = {};
    p.add_words(log_p, dangling);
    CHECK(p.count() == 4);
}

TEST_CASE("the loss is the mean over the combination's targets") {
    ToyRecall toy = ToyRecall::random(6, 20, 50, 10, 21);
    const std::vector<std::int32_t> targets{0, 2, 4, 6, 8, 10};
    std::vector<float> a{-1, -2, -3, -4, -5, -6}, b = a;
    TargetLogProbs base{targets, a}, by_hand{targets, b};
    const Interpolate<TokenVotes> combiner;
    combiner.combine(by_hand, toy.reading());
    double sum = 0;
    for (const float x : b) sum -= double{x};
    CHECK(Nll{}.loss(base, toy.reading(), combiner) == Approx(sum / 6).epsilon(1e-12));
    CHECK(a == b);
}
