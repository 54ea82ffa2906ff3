// SPDX-License-Identifier: MIT
#include "brute_force.hpp"
#include "random_rows.hpp"

#include <allocations.hpp>
#include <catch.hpp>
#include <kernels/simd_levels.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/store/packed.hpp>
#include <mnemo/store/tokens.hpp>

#include <functional>
#include <random>

using namespace mnemo;

namespace {

constexpr index_t kFilteredKeys = 4500, kFilteredQueries = 130; // enough of both for every format of the filter

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

template <class MetricT, class Key> void check_filter(const Data& data, index_t d, index_t k) {
    Matrix keys = clustered(kFilteredKeys, d, 1), queries = clustered(kFilteredQueries, d, 2);
    data.change(keys, queries);
    TokenStore<Key> store(d);
    store.append(keys, numbered(kFilteredKeys));
    for (index_t id = 5; id < kFilteredKeys; id += 11) store.erase(id);
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
        check_filter<TestType, float>(data, 40, 100);
        check_filter<TestType, bfloat16>(data, 65, 1);
    }
    for (const index_t k : {1, 8, 1024}) check_filter<TestType, half>(adversaries[0], 128, k);
    for (const index_t d : {1, 2, 15, 63, 200}) check_filter<TestType, float>(adversaries[1], d, 30);
}

TEST_CASE("a NaN among the queries of a block changes nothing for the others") {
    const Matrix keys = clustered(kFilteredKeys, 24, 1);
    Matrix queries = clustered(kFilteredQueries, 24, 2);
    queries[17][3] = std::numeric_limits<float>::quiet_NaN();
    queries[18][3] = std::numeric_limits<float>::infinity();
    TokenStore<> store(24);
    store.append(keys, numbered(kFilteredKeys));
    CHECK(answer(Exact<L2>{50}.retrieve(store, queries)) == brute_force<L2>(store, queries, 50));
    CHECK(Exact<L2>{50}.retrieve(store, queries).ids(17).empty());
    CHECK(answer(Exact<InnerProduct>{50}.retrieve(store, queries)) == brute_force<InnerProduct>(store, queries, 50));
}

// Thresholds are guessed from a sample where there are many keys: ties across the k-th place, and keys in an order that
// makes every guess wrong.
TEST_CASE("guessed thresholds lose nothing") {
    const index_t n = 30000, d = 12, k = GENERATE(16, 100); // guessed again after quarters, and after half of the keys
    const Matrix some = clustered(n / 3, d, 1), queries = clustered(40, d, 2);
    Matrix keys(n, d);
    std::vector<std::int32_t> order = numbered(n);
    std::shuffle(order.begin(), order.end(), std::mt19937(3));
    const auto fill = [&](auto&& from) {
        for (index_t i = 0; i < n; ++i) std::copy_n(from(i).begin(), d, keys[i].begin());
    };
    SECTION("every key three times") {
        fill([&](index_t i) { return some[order[static_cast<std::size_t>(i)] % some.rows]; });
    }
    SECTION("6000 copies of one key") {
        fill([&](index_t i) { return some[i < 6000 ? 5 : i % some.rows]; });
    }
    SECTION("the sampled panels are the nearest") {
        fill([&](index_t i) { return i / detail::kPanel % 32 == 0 ? queries[i % 40] : some[i % some.rows]; });
    }
    SECTION("the sampled panels are the farthest") {
        fill([&](index_t i) { return i / detail::kPanel % 32 != 0 ? queries[i % 40] : some[i % some.rows]; });
    }
    SECTION("the first quarter is the nearest") {
        fill([&](index_t i) { return i < n / 4 ? queries[i % 40] : some[i % some.rows]; });
    }
    SECTION("the nearest come last") {
        fill([&](index_t i) { return i > n - 40 * k / 2 ? queries[i % 40] : some[i % some.rows]; });
    }
    TokenStore<half> store(d);
    store.append(keys, numbered(n));
    const Answer expected = brute_force<L2>(store, queries, k);
    const Packed<TokenStore<half>, L2> packed(store);
    for (const SimdLevel level : simd_levels()) {
        const UseSimdLevel use(level);
        INFO(name(level));
        CHECK(answer(Exact<L2>{k}.retrieve(store, queries)) == expected);
        CHECK(answer(Exact<L2>{k}.retrieve(packed, queries)) == expected);
        CHECK(answer(Exact<L2, Threads>{k, {2}}.retrieve(packed, queries)) == expected);
    }
    Answer one_by_one;
    for (index_t q = 0; q < queries.rows; ++q)
        one_by_one.push_back(answer(Exact<L2>{k}.retrieve(packed, Rows(queries).slice(q, 1)))[0]);
    CHECK(one_by_one == expected);
}

TEMPLATE_TEST_CASE("a packed copy follows its store", "", L2, InnerProduct, Cosine) {
    const index_t d = 37;
    const Matrix keys = clustered(kFilteredKeys, d, 1), queries = clustered(20, d, 2);
    for (const FilterFormat format : {FilterFormat::int8, FilterFormat::rotated_int8, FilterFormat::bfloat16}) {
        INFO(name(format));
        Packed<TokenStore<>, TestType> store(TokenStore<>(d), format);
        const auto check_all = [&] {
            for (const index_t batch : {1, 2, 3, 20}) {
                const Rows some = Rows(queries).slice(0, batch);
                const Answer expected = brute_force<TestType>(store, some, 70);
                for (const SimdLevel level : simd_levels()) {
                    const UseSimdLevel use(level);
                    CHECK(answer(Exact<TestType>{70}.retrieve(store, some)) == expected);
                    CHECK(answer(Exact<TestType, Threads>{70, {2}}.retrieve(store, some)) == expected);
                }
            }
        };
        index_t done = 0;
        for (const index_t n : {1000, 1, 30, 2000}) { // panels that are not full go on
            store.append(Rows(keys).slice(done, n), numbered(n));
            done += n;
        }
        if (store.packed().runs_here()) CHECK(store.packed().rows == done);
        check_all();
        for (index_t id = 0; id < done; id += 3) store.replace(id, queries[id % 20], 1);
        for (index_t id = 0; id < done; id += 7) store.erase(id);
        std::vector<float> large(static_cast<std::size_t>(d), 500.0f);
        store.replace(100, large, 1);
        check_all();
        large.assign(large.size(), 1e17f); // beyond the bound: all keys are scored
        store.replace(101, large, 1);
        check_all();
        {
            const UseSimdLevel use(SimdLevel::plain); // packs nothing; the next one does
            store.append(Rows(keys).slice(done, 500), numbered(500));
        }
        check_all();
        store.append(Rows(keys).slice(done + 500, 100), numbered(100));
        check_all();
    }
}

TEST_CASE("a search with a packed copy allocates nothing after the first") {
    const Matrix keys = clustered(kFilteredKeys, 32, 1), queries = clustered(16, 32, 2);
    Packed<TokenStore<half>, L2> store(TokenStore<half>(32));
    store.append(keys, numbered(kFilteredKeys));
    for (const index_t batch : {1, 4, 16}) {
        const Rows some = Rows(queries).slice(0, batch);
        Hits hits = Exact<L2>{50}.retrieve(store, some);
        hits = Exact<L2>{50}.retrieve(store, some, std::move(hits));
        const long before = allocations_so_far();
        hits = Exact<L2>{50}.retrieve(store, some, std::move(hits));
        CHECK(allocations_so_far() == before);
    }
}

#if MNEMO_X86
namespace {
// Bounds of the candidates, against s in double: q'.x' - |x'|^2 / 2, or q.x'.
template <class MetricT> void check_bounds(FilterFormat format, index_t d, float outlier, index_t used) {
    const index_t n = 480;
    Matrix keys = clustered(n, d, 3), queries = clustered(20, d, 4);
    for (Matrix* m : {&keys, &queries})
        for (index_t i = 0; i < m->rows; ++i) (*m)[i][0] *= outlier;
    const Rows rows = keys;
    std::vector<float> centre(static_cast<std::size_t>(d));
    detail::mean_of<MetricT>(rows, std::span<float>(centre));
    Arena arena;
    Filter<MetricT> filter(arena, queries.rows, d);
    const Rows some = Rows(queries).slice(0, used);
    REQUIRE(filter.use(some, format, centre.data()));
    std::vector<Candidates> found;
    for (index_t q = 0; q < used; ++q) found.push_back(Candidates::in(arena, n, n));
    REQUIRE(filter.template scan<float>(rows, {}, 0, n, found.data(), 1, [](index_t) { FAIL(); }));
    for (index_t q = 0; q < used; ++q) {
        const Candidates& c = found[static_cast<std::size_t>(q)];
        REQUIRE(c.count == static_cast<std::size_t>(n)); // fewer than k so far: all
        double norm_q = 0, mean = 0;
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
            REQUIRE(s <= double(c.scores[i]));
            REQUIRE(double(c.scores[i]) - 2 * double(c.error) <= s);
            // An exact score tells where s is, from below and closely.
            const double exact = score<MetricT>(queries[q], key);
            const double reached = double(c.factor) * exact + double(c.shift);
            REQUIRE(reached <= s + double(c.error)); // which covers the rounding of exact scores
            REQUIRE(reached >= s - 2 * double(c.error));
            REQUIRE(reached <= double(c.scores[i]));
            mean += (double(c.scores[i]) - s) / double(n);
        }
        // The first pass is right in the mean, so that bounds lie as far away as they are wide; one panel tells of all.
        CHECK(c.typical <= 1.02f * c.error);
        if (format == FilterFormat::float32 || d == 1) continue; // all is rounding, of the largest norms so far
        CHECK(mean > 0.5 * double(c.typical));
        CHECK(mean < 2 * double(c.typical));
    }
}
} // namespace

TEMPLATE_TEST_CASE("the filter's bounds hold", "", L2, InnerProduct, Cosine) {
    for (const SimdLevel level : simd_levels()) {
        const UseSimdLevel use(level);
        if (level == SimdLevel::plain) continue;
        for (const index_t d : {1, 7, 64, 100, 300})
            for (const float outlier : {1.0f, 200.0f}) {
                check_bounds<TestType>(FilterFormat::float32, d, outlier, 20);
                if (level >= SimdLevel::avx512_bf16) check_bounds<TestType>(FilterFormat::bfloat16, d, outlier, 20);
                if (!Filter<TestType>::has_integers()) continue;
                for (const index_t used : {1, 2, 3, 20}) { // up to four have two planes
                    check_bounds<TestType>(FilterFormat::int8, d, outlier, used);
                    check_bounds<TestType>(FilterFormat::rotated_int8, d, outlier, used);
                }
            }
    }
}
#endif
