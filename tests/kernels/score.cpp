// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/kernels/score.hpp>

#include "simd_levels.hpp"

#include <random>
#include <vector>

using namespace mnemo;

namespace {

// The definition in its plainest form: lanes, then the tree.
template <class MetricT, class T> float canonical(std::span<const float> q, std::span<const T> x) {
    const auto sum = [&](bool difference, auto a, auto b) {
        float lane[64] = {};
        for (std::size_t j = 0; j < q.size(); ++j) {
            const float u = to_float(a[j]), v = to_float(b[j]), e = u - v;
            lane[j % 64] = difference ? std::fma(e, e, lane[j % 64]) : std::fma(u, v, lane[j % 64]);
        }
        for (int w = 32; w > 0; w /= 2)
            for (int l = 0; l < w; ++l) lane[l] += lane[l + w];
        return lane[0];
    };
    if constexpr (std::is_same_v<MetricT, L2>) return 0.0f - sum(true, q, x);
    if constexpr (std::is_same_v<MetricT, InnerProduct>) return sum(false, q, x) + 0.0f;
    const double norms = std::sqrt(double(sum(false, q, q))) * std::sqrt(double(sum(false, x, x)));
    return norms == 0 ? 0.0f : static_cast<float>(sum(false, q, x) / norms) + 0.0f;
}

bool same_bits_or_nan(float a, float b) {
    return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b) || (std::isnan(a) && std::isnan(b));
}

enum class Kind { ordinary, subnormal, huge, mixed };

std::vector<float> numbers(std::size_t n, Kind kind, unsigned seed) {
    std::mt19937 gen(seed);
    std::normal_distribution<float> normal;
    std::uniform_int_distribution<int> exponent(-60, 60);
    std::vector<float> out(n);
    for (float& x : out) {
        x = normal(gen);
        if (kind == Kind::subnormal) x *= 1e-40f;
        if (kind == Kind::huge) x *= 1e18f;
        if (kind == Kind::mixed) x = std::ldexp(x, exponent(gen));
    }
    return out;
}

} // namespace

TEMPLATE_TEST_CASE("every level gives the canonical score, bit for bit", "", L2, InnerProduct, Cosine) {
    const auto check = [](auto zero, Kind kind) {
        using T = decltype(zero);
        for (const index_t d : {1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 200, 257}) {
            const index_t n = 5, stride = d + 3;
            const auto q = numbers(static_cast<std::size_t>(6 * d), kind, 1);
            const auto x = numbers(static_cast<std::size_t>(n * stride), kind, 2);
            std::vector<T> keys(x.size());
            for (std::size_t i = 0; i < x.size(); ++i) keys[i] = from_float<T>(x[i]);
            const MatrixView<const T> rows(keys.data(), n, d, stride);
            const Rows queries(q.data(), 6, d);
            const std::vector<index_t> ids = {4, -1, 0, 0, 3, 1, 2, 4};
            for (const SimdLevel level : simd_levels()) {
                const UseSimdLevel use(level);
                Matrix out(6, n);
                score_rows<TestType>(queries, rows, out);
                std::vector<float> by_id(ids.size());
                for (index_t i = 0; i < 6; ++i) {
                    score_ids<TestType>(queries[i], rows, ids, by_id);
                    for (index_t j = 0; j < n; ++j) {
                        const float expected = canonical<TestType, T>(queries[i], rows[j]);
                        REQUIRE(same_bits_or_nan(out[i][static_cast<std::size_t>(j)], expected));
                        REQUIRE(same_bits_or_nan(score<TestType>(queries[i], rows[j]), expected));
                    }
                    for (std::size_t j = 0; j < ids.size(); ++j)
                        REQUIRE(same_bits_or_nan(by_id[j], ids[j] < 0 ? -std::numeric_limits<float>::infinity()
                                                                      : out[i][static_cast<std::size_t>(ids[j])]));
                }
            }
        }
    };
    for (const Kind kind : {Kind::ordinary, Kind::subnormal, Kind::huge, Kind::mixed}) {
        check(0.0f, kind);
        check(half{}, kind);
        check(bfloat16{}, kind);
    }
}

TEST_CASE("the exact fused multiply-add without the instruction is the machine's") {
    std::mt19937 gen(3);
    std::uniform_int_distribution<std::uint32_t> bits;
    int different = 0;
    for (int i = 0; i < 2000000; ++i) {
        const float a = std::bit_cast<float>(bits(gen)), b = std::bit_cast<float>(bits(gen));
        // A c of the product's size, so that they meet; any c every other time.
        const float near = -a * b * (1 + std::ldexp(1.0f, -static_cast<int>(bits(gen) % 26)));
        const float c = i % 2 == 0 ? near : std::bit_cast<float>(bits(gen));
        different += !same_bits_or_nan(detail::fused_multiply_add(a, b, c), std::fma(a, b, c));
    }
    CHECK(different == 0);
}

TEST_CASE("scores agree with double precision") {
    const index_t d = 300;
    const auto q = numbers(d, Kind::ordinary, 5), x = numbers(d, Kind::ordinary, 6);
    double l2 = 0, ip = 0, qq = 0, xx = 0;
    for (std::size_t j = 0; j < d; ++j) {
        l2 += (double(q[j]) - x[j]) * (double(q[j]) - x[j]);
        ip += double(q[j]) * x[j], qq += double(q[j]) * q[j], xx += double(x[j]) * x[j];
    }
    const std::span<const float> key(x);
    CHECK(score<L2>(q, key) == Approx(-l2).epsilon(1e-6));
    CHECK(score<InnerProduct>(q, key) == Approx(ip).epsilon(1e-5));
    CHECK(score<Cosine>(q, key) == Approx(ip / std::sqrt(qq * xx)).epsilon(1e-5));
}

TEST_CASE("equal vectors are at zero, zero vectors at cosine zero, NaN stays NaN") {
    const auto x = numbers(77, Kind::ordinary, 7);
    const std::span<const float> key(x);
    CHECK(same_bits_or_nan(score<L2>(x, key), 0.0f));
    CHECK(score<Cosine>(x, key) == Approx(1));
    const std::vector<float> zero(77);
    const std::span<const float> zero_key(zero);
    CHECK(same_bits_or_nan(score<Cosine>(x, zero_key), 0.0f));
    CHECK(same_bits_or_nan(score<Cosine>(zero, key), 0.0f));
    auto nan = x;
    nan[70] = std::numeric_limits<float>::quiet_NaN();
    CHECK(std::isnan(score<L2>(nan, key)));
    CHECK(std::isnan(score<InnerProduct>(nan, key)));
    CHECK(std::isnan(score<Cosine>(nan, key)));
    CHECK(std::isnan(score<Cosine>(nan, zero_key)));
}

TEST_CASE("vectors without elements score zero") {
    const std::vector<float> none;
    CHECK(score<L2>(none, std::span<const float>(none)) == 0);
    CHECK(score<InnerProduct>(none, std::span<const float>(none)) == 0);
    CHECK(score<Cosine>(none, std::span<const float>(none)) == 0);
}
