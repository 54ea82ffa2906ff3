// SPDX-License-Identifier: MIT
#include "simd_levels.hpp"

#include <catch.hpp>
#include <mnemo/kernels/log_sum_exp.hpp>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

using namespace mnemo;

namespace {
const float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> random_floats(std::size_t n, float low, float high, unsigned seed = 1) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> uniform(low, high);
    std::vector<float> x(n);
    for (float& v : x) v = uniform(random);
    return x;
}
double reference_log_sum_exp(const std::vector<float>& x) {
    double high = -HUGE_VAL, sum = 0;
    for (const float v : x) high = std::max(high, double{v});
    for (const float v : x) sum += std::exp(double{v} - high);
    return high == -HUGE_VAL ? high : high + std::log(sum);
}
double ulps(double got, double expected) {
    const double unit = std::ldexp(1.0, std::max(std::ilogb(expected), -126) - 23);
    return std::abs(got - expected) / unit;
}
bool same_bits(float a, float b) { return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b); }
} // namespace

TEST_CASE("exp and log are within 2 ulp of the exact values") {
    double worst_exp = 0, worst_log = 0;
    for (float x : random_floats(200000, -87.3f, 0.0f)) {
        float e = 0;
        exp_sum(std::span(&x, 1), 0, 1, std::span(&e, 1));
        worst_exp = std::max(worst_exp, ulps(double{e}, std::exp(double{x})));
    }
    std::mt19937 random(2);
    std::uniform_int_distribution<std::uint32_t> normal(0x00800000u, 0x7f7fffffu);
    for (int i = 0; i < 200000; ++i) {
        const float x = std::bit_cast<float>(normal(random));
        float y = x;
        log_each(std::span(&y, 1));
        if (x != 1) worst_log = std::max(worst_log, ulps(double{y}, std::log(double{x})));
    }
    for (const float x : random_floats(200000, 0.5f, 2.0f)) { // where the logarithm goes through zero
        float y = x;
        log_each(std::span(&y, 1));
        if (x != 1) worst_log = std::max(worst_log, ulps(double{y}, std::log(double{x})));
    }
    CHECK(worst_exp < 2);
    CHECK(worst_log < 2);
}

TEST_CASE("ends of the range: exp and log") {
    std::vector<float> x{0, -kInfinity, -87.4f, -1000, std::numeric_limits<float>::quiet_NaN()}, e(x.size());
    for (const SimdLevel level : simd_levels()) {
        const UseSimdLevel use(level);
        exp_sum(x, 0, 1, e);
        CHECK(e[0] == 1);
        CHECK(e[1] == 0);
        CHECK(e[2] == 0);
        CHECK(e[3] == 0);
        CHECK(std::isnan(e[4]));
        for (const std::size_t n : {1, 5, 16, 19}) { // alone and in a vector
            std::vector<float> l(n);
            const auto log_of = [&](float v) {
                std::fill(l.begin(), l.end(), v);
                log_each(l);
                for (const float y : l) CHECK((same_bits(y, l[0]) || std::isnan(y)));
                return l[0];
            };
            CHECK(log_of(1) == 0);
            CHECK(log_of(0) == -kInfinity);
            CHECK(log_of(kInfinity) == kInfinity);
            CHECK(log_of(1e-40f) == -kInfinity);
            CHECK(std::isnan(log_of(std::numeric_limits<float>::quiet_NaN())));
        }
    }
}

TEST_CASE("log-sum-exp agrees with double precision at any length, at any level, bit for bit") {
    for (const std::size_t n : {0, 1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 511, 512, 513, 1024, 2047, 2049, 50257}) {
        for (const float width : {0.01f, 30.0f, 3000.0f}) {
            const auto x = random_floats(n, -width, width, static_cast<unsigned>(n));
            const double expected = reference_log_sum_exp(x);
            std::vector<double> got;
            for (const SimdLevel level : simd_levels()) {
                const UseSimdLevel use(level);
                got.push_back(log_sum_exp(x));
                CHECK(got.back() == got.front());
            }
            if (n == 0)
                CHECK(got[0] == -HUGE_VAL);
            else
                CHECK(std::abs(got[0] - expected) < 1e-6);
        }
    }
}

TEST_CASE("log-sum-exp takes infinities and shows NaN") {
    for (const SimdLevel level : simd_levels()) {
        const UseSimdLevel use(level);
        CHECK(log_sum_exp(std::vector<float>(40, -kInfinity)) == -HUGE_VAL);
        std::vector<float> x(40, -kInfinity);
        x[17] = -5000;
        CHECK(log_sum_exp(x) == -5000);
        x[39] = kInfinity;
        CHECK(log_sum_exp(x) == HUGE_VAL);
        x.assign(40, -kInfinity);
        x[3] = std::numeric_limits<float>::quiet_NaN();
        CHECK(std::isnan(log_sum_exp(x)));
    }
}

TEST_CASE("a sum that grows is the sum of everything") {
    const auto x = random_floats(5000, -40, 40);
    LogSumExp whole, parts, singles, none;
    whole.add(x);
    for (std::size_t i = 0; i < x.size(); i += 700) {
        LogSumExp part;
        part.add(std::span(x).subspan(i, std::min<std::size_t>(700, x.size() - i)));
        parts.add(part);
        parts.add(none);
    }
    for (const float v : x) singles.add(v);
    const double expected = reference_log_sum_exp(x);
    CHECK(whole.value() == Approx(expected).epsilon(1e-7));
    CHECK(parts.value() == Approx(expected).epsilon(1e-7));
    CHECK(singles.value() == Approx(expected).epsilon(1e-12));
    CHECK(none.value() == -HUGE_VAL);
    none.add(-kInfinity);
    CHECK(none.value() == -HUGE_VAL);
}

TEST_CASE("element-wise functions give the same bits at every level, at every length") {
    for (const std::size_t n : {1, 8, 13, 16, 40, 515}) {
        auto a = random_floats(n, -60, 0, 3), b = random_floats(n, -60, 0, 4);
        a[0] = -kInfinity;
        b[n - 1] = -kInfinity;
        if (n > 3) a[2] = b[2] = -kInfinity;
        std::vector<std::vector<float>> sums, shifted, logs, weights;
        for (const SimdLevel level : simd_levels()) {
            const UseSimdLevel use(level);
            sums.push_back(a), log_add_each(sums.back(), b);
            shifted.push_back(a), add_each(shifted.back(), -0.3f);
            weights.emplace_back(n);
            exp_sum(a, 0, 0.7f, weights.back());
            logs.push_back(weights.back()), log_each(logs.back());
            CHECK(max_value(a) == *std::max_element(a.begin(), a.end()));
        }
        for (const auto* all : {&sums, &shifted, &logs, &weights})
            for (const auto& one : *all)
                for (std::size_t i = 0; i < n; ++i) CHECK(same_bits(one[i], all->front()[i]));
        for (std::size_t i = 0; i < n; ++i) {
            const double expected = std::log(std::exp(double{a[i]}) + std::exp(double{b[i]}));
            if (std::isinf(expected))
                CHECK(sums[0][i] == -kInfinity);
            else
                CHECK(ulps(double{sums[0][i]}, expected) < 4);
        }
    }
}

TEST_CASE("log_add keeps what is small beside nothing, and what is large beside small") {
    CHECK(log_add(-HUGE_VAL, -HUGE_VAL) == -kInfinity);
    CHECK(log_add(-HUGE_VAL, -3.0) == -3.0f);
    CHECK(log_add(-3.0, -HUGE_VAL) == -3.0f);
    CHECK(log_add(0.0, 0.0) == Approx(std::log(2.0)));
    CHECK(log_add(-1e4, 0.0) == 0.0f);
}

TEST_CASE("a log-softmax sums to one") {
    auto x = random_floats(10007, -20, 20);
    x[5] = -kInfinity;
    log_softmax(x);
    double sum = 0;
    for (const float v : x) sum += std::exp(double{v});
    CHECK(sum == Approx(1.0).epsilon(1e-6));
    CHECK(x[5] == -kInfinity);
}
