// SPDX-License-Identifier: MIT
#include "brute_force.hpp"
#include "random_rows.hpp"

#include <catch.hpp>
#include <kernels/simd_levels.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/store/tokens.hpp>

#include <functional>

using namespace mnemo;

namespace {

constexpr index_t kKeys = 4500, kQueries = 130; // enough of both for every format of the filter

struct Data {
    const char* name;
    std::function<void(Matrix& keys, Matrix& queries)> change;
};

// What a first pass over rounded numbers could go wrong on.
const std::vector<Data> adversaries = {
    {"clusters", [](Matrix&, Matrix&) {}},
    {"near ties",
     [](Matrix& keys, Matrix&) {
         for (index_t i = 0; i < keys.rows; ++i)
             for (std::size_t j = 0; j < keys[i].size(); ++j)
                 keys[i][j] = keys[i % 5][j] * (1 + 1e-7f * static_cast<float>((i * 31 + static_cast<index_t>(j)) % 4));
     }},
    {"all equal", [](Matrix& keys, Matrix&) { std::fill(keys.data.begin(), keys.data.end(), 0.3f); }},
    {"all zero", [](Matrix& keys, Matrix&) { std::fill(keys.data.begin(), keys.data.end(), 0.0f); }},
    {"queries are keys",
     [](Matrix& keys, Matrix& queries) {
         for (index_t i = 0; i < queries.rows; ++i) std::copy(keys[i].begin(), keys[i].end(), queries[i].begin());
     }},
    {"zero queries", [](Matrix&, Matrix& queries) { std::fill(queries.data.begin(), queries.data.end(), 0.0f); }},
    {"two large elements",
     [](Matrix& keys, Matrix& queries) {
         for (Matrix* m : {&keys, &queries})
             for (index_t i = 0; i < m->rows; ++i) (*m)[i][1] *= 1000, (*m)[i][2] *= -300;
     }},
    {"one large key",
     [](Matrix& keys, Matrix&) {
         for (float& x : keys[4321]) x *= 1e5f;
     }},
    {"far from the origin",
     [](Matrix& keys, Matrix& queries) {
         for (Matrix* m : {&keys, &queries})
             for (float& x : m->data) x += 1e4f;
     }},
    {"large numbers",
     [](Matrix& keys, Matrix& queries) {
         for (Matrix* m : {&keys, &queries})
             for (float& x : m->data) x *= 1e12f;
     }},
    {"beyond the bound",
     [](Matrix& keys, Matrix& queries) {
         for (float& x : keys.data) x *= 1e17f;
         for (float& x : queries.data) x *= 1e17f;
     }},
    {"small numbers",
     [](Matrix& keys, Matrix& queries) {
         for (Matrix* m : {&keys, &queries})
             for (float& x : m->data) x *= 1e-15f;
     }},
    {"subnormal numbers",
     [](Matrix& keys, Matrix& queries) {
         for (Matrix* m : {&keys, &queries})
             for (float& x : m->data) x *= 1e-39f;
     }},
    {"norms of all sizes",
     [](Matrix& keys, Matrix&) {
         for (index_t i = 0; i < keys.rows; ++i)
             for (float& x : keys[i]) x = std::ldexp(x, static_cast<int>(i % 41) - 20);
     }},
};

template <class MetricT, class Key> void check(const Data& data, index_t d, index_t k) {
    Matrix keys = clustered(kKeys, d, 1), queries = clustered(kQueries, d, 2);
    data.change(keys, queries);
    TokenStore<Key> store(d);
    store.append(keys, numbered(kKeys));
    for (index_t id = 5; id < kKeys; id += 11) store.erase(id);
    INFO(data.name << ", " << name(MetricT::metric) << ", d = " << d << ", k = " << k);
    const Answer expected = brute_force<MetricT>(store, queries, k);
    for (const SimdLevel level : simd_levels()) {
        if (level == SimdLevel::plain) continue; // has no filter
        const UseSimdLevel use(level);
        INFO(name(level));
        CHECK(answer(Exact<MetricT>{k}.retrieve(store, queries)) == expected);
        CHECK(answer(Exact<MetricT, Threads>{k, {2}}.retrieve(store, queries)) == expected);
    }
}

} // namespace

TEMPLATE_TEST_CASE("what the filter leaves out is never among the k best", "", L2, InnerProduct, Cosine) {
    for (const Data& data : adversaries) {
        check<TestType, float>(data, 40, 100);
        check<TestType, bfloat16>(data, 65, 1);
    }
    for (const index_t k : {1, 8, 1024}) check<TestType, half>(adversaries[0], 128, k);
    for (const index_t d : {1, 2, 15, 63, 200}) check<TestType, float>(adversaries[1], d, 30);
}

TEST_CASE("a NaN among the queries of a block changes nothing for the others") {
    const Matrix keys = clustered(kKeys, 24, 1);
    Matrix queries = clustered(kQueries, 24, 2);
    queries[17][3] = std::numeric_limits<float>::quiet_NaN();
    queries[18][3] = std::numeric_limits<float>::infinity();
    TokenStore<> store(24);
    store.append(keys, numbered(kKeys));
    CHECK(answer(Exact<L2>{50}.retrieve(store, queries)) == brute_force<L2>(store, queries, 50));
    CHECK(Exact<L2>{50}.retrieve(store, queries).ids(17).empty());
    CHECK(answer(Exact<InnerProduct>{50}.retrieve(store, queries)) == brute_force<InnerProduct>(store, queries, 50));
}

#if MNEMO_X86
namespace {
// Lower bounds of the candidates, against s in double: q'.x' - |x'|^2 / 2, or q.x'.
template <class MetricT> void check_bounds(FilterFormat format, index_t d, float outlier) {
    const index_t n = 480;
    Matrix keys = clustered(n, d, 3), queries = clustered(20, d, 4);
    for (Matrix* m : {&keys, &queries})
        for (index_t i = 0; i < m->rows; ++i) (*m)[i][0] *= outlier;
    const Rows rows = keys;
    std::vector<float> centre(static_cast<std::size_t>(d));
    Filter<MetricT>::template centre_of<float>(rows, centre);
    Arena arena;
    Filter<MetricT> filter(arena, queries.rows, d, FilterFormat::float32);
    filter.use(format);
    std::vector<Candidates> found;
    for (index_t q = 0; q < queries.rows; ++q) found.push_back(Candidates::in(arena, n, n));
    REQUIRE(
        filter.template scan<float>(queries, rows, {}, centre.data(), 0, n, found.data(), 1, [](index_t) { FAIL(); }));
    for (index_t q = 0; q < queries.rows; ++q) {
        const Candidates& c = found[static_cast<std::size_t>(q)];
        REQUIRE(c.count == static_cast<std::size_t>(n)); // fewer than k so far: all
        double norm_q = 0, widest = 0;
        for (const float x : queries[q]) norm_q += double(x) * x;
        for (std::size_t i = 0; i < c.count; ++i) {
            const auto key = keys[c.ids[i]];
            double norm_x = 0, dot = 0, squares = 0;
            for (const float x : key) norm_x += double(x) * x;
            const bool cosine = MetricT::metric == Metric::cosine, l2 = MetricT::metric == Metric::l2;
            for (std::size_t j = 0; j < key.size(); ++j) {
                const double x = (cosine ? key[j] / std::sqrt(norm_x) : key[j]) - double(centre[j]);
                const double y =
                    cosine ? queries[q][j] / std::sqrt(norm_q) : queries[q][j] - (l2 ? double(centre[j]) : 0);
                dot += x * y, squares += x * x;
            }
            const double s = dot - (l2 ? squares / 2 : 0);
            REQUIRE(c.scores[i] <= s);
            REQUIRE(s <= double(c.scores[i]) + 2 * double(c.error));
            widest = std::max(widest, std::abs(s - c.scores[i] - c.error));
        }
        CHECK(widest > 0.001 * double(c.error)); // the bound is of the error's size, not just any large number
    }
}
} // namespace

TEMPLATE_TEST_CASE("the filter's bounds hold", "", L2, InnerProduct, Cosine) {
    for (const SimdLevel level : simd_levels()) {
        const UseSimdLevel use(level);
        if (level == SimdLevel::plain) continue;
        for (const index_t d : {1, 7, 64, 100, 300})
            for (const float outlier : {1.0f, 200.0f}) {
                check_bounds<TestType>(FilterFormat::float32, d, outlier);
                if (!Filter<TestType>::has_integers()) continue;
                check_bounds<TestType>(FilterFormat::int8, d, outlier);
                check_bounds<TestType>(FilterFormat::rotated_int8, d, outlier);
            }
    }
}
#endif
