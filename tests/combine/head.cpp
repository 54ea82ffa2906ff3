// SPDX-License-Identifier: MIT
#include "normal_rows.hpp"
#include <catch.hpp>
#include <mnemo/combine/head.hpp>
#include <mnemo/combine/interpolate.hpp>
#include <mnemo/combine/schedule.hpp>
#include <mnemo/core/session.hpp>
#include <mnemo/extract/last_hidden.hpp>
#include <mnemo/kernels/mixture.hpp>
#include <mnemo/retrieve/recite.hpp>
#include <mnemo/store/low_rank.hpp>

#include <limits>
#include <random>

using namespace mnemo;

TEST_CASE("the head in one pass is the head row by row, for any number of rows and any type") {
    for (const index_t rows : {1, 2, 3, 5, 9}) {
        const Matrix states = normal_rows(rows, 70, 1), output = normal_rows(611, 70, 2);
        std::vector<bfloat16> small(output.data.size());
        convert(std::span<const float>(output.data), std::span(small));
        const KeyRows both[] = {KeyRows(output), MatrixView<const bfloat16>(small.data(), 611, 70)};
        for (const KeyRows& w : both) {
            Matrix all(rows, 611), one(rows, 611);
            head_logits(states, w, all);
            for (index_t row = 0; row < rows; ++row)
                score_rows<InnerProduct>(Rows(states).slice(row, 1), w, MutRows(one).slice(row, 1));
            CHECK(all.data == one.data);
        }
    }
}

TEST_CASE("the fused best token is the best of the written mixture") {
    int changed = 0;
    for (unsigned seed = 0; seed < 200; ++seed) {
        const auto vocab = static_cast<index_t>(1 + seed % 150);
        const Matrix a = normal_rows(1, vocab, seed, 3), b = normal_rows(1, vocab, seed + 1000, 3);
        for (const float lambda : {0.0f, 1e-6f, 0.1f, 0.5f, 0.9f, 1.0f}) {
            Matrix mixed = a, other = b;
            mix_logits(mixed[0], other[0], lambda);
            CHECK(total(mixed[0]) == Approx(1.0).epsilon(1e-5));
            const BestToken best = best_of_mixture(a[0], b[0], lambda);
            const float highest = max_value(mixed[0]);
            CHECK(mixed[0][static_cast<std::size_t>(best.token)] == Approx(highest).margin(1e-6));
            CHECK(best.log_p == Approx(highest).margin(1e-5));
            changed += lambda > 0 && best.token != best_of_mixture(a[0], b[0], 0).token;
        }
    }
    CHECK(changed > 100);
}

TEST_CASE("impossible tokens are never best, and ties go to the lowest") {
    const float inf = std::numeric_limits<float>::infinity();
    const std::vector<float> a{-inf, 0, 0, -inf}, b{-inf, 1, 1, 0};
    for (const float lambda : {0.0f, 0.3f, 0.99f, 1.0f}) CHECK(best_of_mixture(a, b, lambda).token == 1);
    const std::vector<float> only{-inf, -inf, -inf, 2};
    CHECK(best_of_mixture(a, only, 0.9f).token == 3);
    CHECK(best_of_mixture(only, a, 0.6f).token == 3);
}

TEST_CASE("a low-rank memory with a head composes with the combiner of all memories") {
    const index_t d = 24, vocab = 50, rows = 3;
    const Matrix output = normal_rows(vocab, d, 3), states = normal_rows(rows, d, 4);
    const LowRankMap map(normal_rows(5, d, 5), normal_rows(d, 5, 6), 0.2f);
    HeadEvidence evidence{{normal_rows(1, d, 7).data, normal_rows(1, d, 8).data}, output};
    Matrix base = normal_rows(rows, vocab, 9, 2);

    // In double, as it stands in the paper.
    std::vector<std::vector<double>> memory_p;
    for (index_t row = 0; row < rows; ++row) {
        std::vector<double> z(5), y(d), p(vocab);
        for (std::size_t i = 0; i < 5; ++i)
            for (std::size_t j = 0; j < d; ++j)
                z[i] += 0.2 * double{map.a()[static_cast<index_t>(i)][j]} * states[row][j];
        double mean = 0, variance = 0, sum = 0;
        for (std::size_t j = 0; j < d; ++j) {
            for (std::size_t i = 0; i < 5; ++i) y[j] += double{map.b()[static_cast<index_t>(j)][i]} * z[i];
            mean += y[j] / d;
        }
        for (const double v : y) variance += (v - mean) * (v - mean) / d;
        for (std::size_t v = 0; v < vocab; ++v) {
            for (std::size_t j = 0; j < d; ++j)
                p[v] += double{output[static_cast<index_t>(v)][j]} *
                        ((y[j] - mean) / std::sqrt(variance + 1e-5) * double{evidence.norm.weight[j]} +
                         double{evidence.norm.bias[j]});
            sum += p[v] = std::exp(p[v]);
        }
        for (double& v : p) v /= sum;
        memory_p.push_back(p);
    }

    const std::vector<index_t> steps{0, 3, 9}, lengths{10, 10, 4};
    const GradualUnrolling schedule{.lambda = 0.9f};
    Memory memory(LastHidden{}, std::make_shared<const LowRankMap>(map), Recite{}, Interpolate{evidence, schedule});
    for (index_t row = 0; row < rows; ++row) log_softmax(base[row]);
    Matrix out = base;
    Session<decltype(memory), Rows> session(memory);
    session.read(Rows(states), PositionedLogProbs{out, steps, lengths});
    for (index_t row = 0; row < rows; ++row) {
        const auto i = static_cast<std::size_t>(row);
        const double lambda = schedule.weight(steps[i], lengths[i]);
        for (std::size_t v = 0; v < vocab; ++v)
            CHECK(
                double{out[row][v]} ==
                Approx(std::log((1 - lambda) * std::exp(double{base[row][v]}) + lambda * memory_p[i][v])).margin(2e-5));
    }
}

TEST_CASE("a low-rank map refuses shapes that do not fit") {
    CHECK_THROWS_WITH(LowRankMap(Matrix(2, 3), Matrix(3, 4), 1), Catch::Contains("columns of B: expected 2, got 4"));
    CHECK_THROWS_WITH(LowRankMap(Matrix(), Matrix(3, 0), 1), Catch::Contains("A: expected [rank, d]"));
    Matrix broken(2, 3);
    broken[1][0] = std::numeric_limits<float>::quiet_NaN();
    CHECK_THROWS_WITH(LowRankMap(broken, Matrix(3, 2), 1), Catch::Contains("A: row 1: expected finite"));
    CHECK_THROWS_WITH(LowRankMap(Matrix(2, 3), Matrix(3, 2), 1).recite(Matrix(1, 4)),
                      Catch::Contains("width of the queries"));
}
