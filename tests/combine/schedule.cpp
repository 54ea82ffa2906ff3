// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/combine/schedule.hpp>

#include <cmath>

using namespace mnemo;

TEST_CASE("gradual unrolling falls as its formula says, the first weight unsquared") {
    for (const double percent : {0.0, 10.0, 50.0, 75.0}) {
        const GradualUnrolling schedule{.lambda = 0.9f, .min_percent = percent};
        const double p = percent / 100;
        CHECK(schedule.weight(0, 40) == 0.9f);
        for (index_t t = 1; t < 40; ++t) {
            const double c = 0.9 * (1 - static_cast<double>(t) / 40);
            CHECK(double{schedule.weight(t, 40)} == Approx((1 - p) * c * c + p).epsilon(1e-4).margin(1e-6));
        }
        CHECK(schedule.weight(1000, 40) >= static_cast<float>(p)); // it stays where it stopped
        CHECK(schedule.weight(1000, 40) == schedule.weight(40, 40));
    }
}

TEST_CASE("rounding decides whether the last decrease happens") {
    // lambda - n * (lambda / n) is 0 in exact numbers; by repeated subtraction some lengths keep a crumb and some do
    // not.
    int crumbs = 0;
    for (index_t n = 1; n <= 64; ++n) {
        const GradualUnrolling schedule{.lambda = 0.9f};
        float c = 0.9f;
        const float by = 1.0f / static_cast<float>(n) * 0.9f;
        index_t steps = 0;
        while (c - by > 0) c -= by, ++steps;
        CHECK((steps == n - 1 || steps == n));
        crumbs += steps == n;
        CHECK(schedule.weight(n + 5, n) == (steps == 0 ? 0.9f : c * c));
    }
    CHECK(crumbs > 0);
    CHECK(crumbs < 64);
}

TEST_CASE("rows fall by themselves, or together as the reference has it") {
    const std::vector<index_t> lengths{4, 10, 0};
    const GradualUnrolling schedule{.lambda = 0.8f};
    UnrollingWeights own(schedule, lengths), coupled(schedule, lengths, UnrollingRows::coupled),
        pair(schedule, std::span(lengths).first(2), UnrollingRows::coupled);
    index_t last = 0; // decreases of the shorter row
    while (schedule.weight(last + 1, 4) != schedule.weight(last, 4)) ++last;
    CHECK(last >= 3);
    for (index_t t = 0; t < 15; ++t) {
        for (std::size_t row = 0; row < 3; ++row) CHECK(own.lambda()[row] == schedule.weight(t, lengths[row]));
        CHECK(coupled.lambda()[1] == 0.8f); // a row of length 0 holds everybody
        CHECK(pair.lambda()[1] == schedule.weight(std::min(t, last), 10));
        own.advance(), coupled.advance(), pair.advance();
    }
    own.reorder(std::vector<index_t>{1, 1});
    CHECK(own.lambda().size() == 2);
    CHECK(own.lambda()[0] == schedule.weight(15, 10));
    own.advance();
    CHECK(own.lambda()[1] == schedule.weight(16, 10));
}

TEST_CASE("a schedule that is off, or has knobs that make no weights") {
    CHECK(GradualUnrolling{.lambda = 0.7f, .on = false}.weight(20, 5) == 0.7f);
    CHECK_THROWS_WITH((GradualUnrolling{.lambda = 1.5f}.weight(0, 5)), Catch::Contains("lambda: expected a weight"));
    CHECK_THROWS_WITH((GradualUnrolling{.min_percent = 100}.weight(0, 5)), Catch::Contains("min_percent: expected 0"));
    CHECK_THROWS_WITH((GradualUnrolling{}.weight(0, -1)), Catch::Contains("length: expected at least 0"));
}
