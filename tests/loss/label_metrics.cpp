// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/loss/label_metrics.hpp>

using namespace mnemo;

// Expected numbers are worked out by hand from the definitions.
TEST_CASE("label metrics: accuracy and the F1 scores") {
    const std::vector<std::int64_t> gold = {0, 0, 1, 1, 2, 2}, predicted = {0, 1, 1, 1, 0, 2};
    CHECK(accuracy(gold, predicted) == Approx(4.0 / 6));
    CHECK(micro_f1(gold, predicted) == Approx(4.0 / 6));
    CHECK(binary_f1(gold, predicted) == Approx(0.8)); // 2 right of 3 predicted and 2 gold
    CHECK(macro_f1(gold, predicted) == Approx((0.5 + 0.8 + 2.0 / 3) / 3));
    CHECK(binary_f1(std::vector<std::int64_t>{0}, std::vector<std::int64_t>{0}) == 0);
    CHECK_THROWS_AS(accuracy({}, {}), Error);
    CHECK_THROWS_AS(macro_f1(gold, std::vector<std::int64_t>{0}), Error);
}

TEST_CASE("label metrics: correlations") {
    // Two by two: 3 and 2 right, 1 wrong each way: (3*2 - 1*1) / sqrt(4*4*3*3).
    const std::vector<std::int64_t> gold = {1, 1, 1, 1, 0, 0, 0}, predicted = {1, 1, 1, 0, 0, 0, 1};
    CHECK(matthews_correlation(gold, predicted) == Approx(5.0 / 12));
    CHECK(matthews_correlation(std::vector<std::int64_t>{1, 0}, std::vector<std::int64_t>{1, 1}) == 0);
    const std::vector<double> x = {1, 2, 3, 4}, y = {2, 4, 6, 8}, z = {1, 4, 9, 16}, w = {4, 3, 2, 1},
                              tied = {1, 1, 2, 2};
    CHECK(pearson(x, y) == Approx(1));
    CHECK(pearson(x, w) == Approx(-1));
    CHECK(pearson(x, z) == Approx(25 / std::sqrt(5.0 * 129)));
    CHECK(spearman(x, z) == Approx(1));
    CHECK(spearman(x, tied) == Approx(4 / std::sqrt(5.0 * 4))); // ranks 1.5, 1.5, 3.5, 3.5
    CHECK(pearson(x, std::vector<double>{7, 7, 7, 7}) == 0);
}
