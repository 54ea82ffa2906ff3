// SPDX-License-Identifier: MIT
#include "normal_rows.hpp"
#include <catch.hpp>
#include <mnemo/combine/gated_attention.hpp>
#include <mnemo/kernels/cpu.hpp>
#include <mnemo/retrieve/per_head.hpp>
#include <mnemo/store/chunk_ring.hpp>

#include <cmath>
#include <cstring>
#include <random>

using namespace mnemo;

namespace {

// The formula, written out in double over gathered copies.
std::vector<double> composed(const ChunkRing<half>& ring, const HeadHits& hits, Rows queries, Rows local,
                             std::span<const float> gates, index_t filled_to) {
    const index_t h = ring.heads(), d = ring.head_dim(), c = ring.options().chunk;
    std::vector<double> out;
    for (index_t i = 0; i < queries.rows; ++i)
        for (index_t head = 0; head < h; ++head) {
            std::vector<std::vector<double>> k, v;
            for (const index_t slot : hits[head].ids(i))
                for (index_t t = 0; t < c; ++t) {
                    k.emplace_back(), v.emplace_back();
                    for (index_t j = 0; j < d; ++j) {
                        const auto at = static_cast<std::size_t>(j);
                        k.back().push_back(double{to_float(ring.keys(head)[slot * c + t][at])});
                        v.back().push_back(double{to_float(ring.values(head)[slot * c + t][at])});
                    }
                }
            const auto found = static_cast<index_t>(hits[head].ids(i).size());
            for (index_t z = found * c; ring.chunks() > 0 && z < filled_to * c; ++z) {
                k.emplace_back(static_cast<std::size_t>(d), 0.0), v.emplace_back(static_cast<std::size_t>(d), 0.0);
            }
            std::vector<double> p;
            double sum = 0;
            for (const auto& key : k) {
                double logit = 0;
                for (index_t j = 0; j < d; ++j)
                    logit += double{queries[i][static_cast<std::size_t>(head * d + j)]} *
                             key[static_cast<std::size_t>(j)] / std::sqrt(static_cast<double>(d));
                p.push_back(std::exp(logit)), sum += p.back();
            }
            const double gate = k.empty() ? 0 : double{gates[static_cast<std::size_t>(head)]};
            for (index_t j = 0; j < d; ++j) {
                double memory = 0;
                for (std::size_t n = 0; n < k.size(); ++n) memory += p[n] / sum * v[n][static_cast<std::size_t>(j)];
                out.push_back((1 - gate) * double{local[i][static_cast<std::size_t>(head * d + j)]} + gate * memory);
            }
        }
    return out;
}

struct Case {
    ChunkRing<half> ring;
    Matrix queries, local;
    std::vector<float> gates;
    HeadHits hits;
    Arena scratch;

    Case(index_t d, index_t chunk, index_t stored, index_t k)
        : ring({.heads = 3, .head_dim = d, .chunk = chunk, .memory_tokens = 8 * chunk}),
          queries(normal_rows(5, 3 * d, 1)), local(normal_rows(5, 3 * d, 2)), gates{0.25f, 0.999f, 0.5f} {
        ring.append(normal_rows(stored, 3 * d, 3), normal_rows(stored, 3 * d, 4));
        hits = PerHead{Exact<InnerProduct>{.k = k}}.retrieve(ring, queries);
    }
    Reading<Rows, HeadHits, ChunkRing<half>> reading(const Rows& rows) { return {rows, hits, ring, scratch}; }
};

} // namespace

TEST_CASE("gated attention is the formula, forward") {
    const auto [d, chunk, stored, k, filled] = GENERATE(table<index_t, index_t, index_t, index_t, index_t>(
        {{8, 2, 16, 3, 0}, {5, 4, 40, 8, 0}, {64, 4, 9, 4, 4}, {19, 1, 3, 2, 5}, {4, 2, 0, 3, 3}, {33, 3, 2, 1, 0}}));
    Case c(d, chunk, stored, k);
    const auto expected = composed(c.ring, c.hits, c.queries, c.local, c.gates, filled);
    Matrix out = c.local;
    HeadOutputs base{out, c.gates};
    const Rows queries = c.queries;
    GatedAttention<> one{.filled_to = filled};
    one.combine(base, c.reading(queries));
    for (std::size_t i = 0; i < expected.size(); ++i) CHECK(double{out.data[i]} == Approx(expected[i]).margin(1e-6));

    Matrix again = c.local; // threads and instruction sets do not matter
    HeadOutputs base_again{again, c.gates};
    const SimdLevel before = use_simd_level(SimdLevel::plain);
    GatedAttention<Threads>{.filled_to = filled, .executor = {3}}.combine(base_again, c.reading(queries));
    use_simd_level(before);
    for (std::size_t i = 0; i < expected.size(); ++i) CHECK(again.data[i] == Approx(out.data[i]).margin(1e-7));
}

TEST_CASE("gated attention's gradients are those of finite differences") {
    const index_t filled = GENERATE(0, 6);
    Case c(6, 2, 11, 3);
    const Matrix go = normal_rows(5, 18, 9);
    const auto objective = [&] {
        const auto out = composed(c.ring, c.hits, c.queries, c.local, c.gates, filled);
        double sum = 0;
        for (std::size_t i = 0; i < out.size(); ++i) sum += out[i] * double{go.data[i]};
        return sum;
    };
    Matrix query_grad(5, 18), local_grad(5, 18);
    std::vector<float> gate_grad(3);
    const Rows queries = c.queries;
    GatedAttention<>{.filled_to = filled}.backward(c.local, c.gates, go, c.reading(queries),
                                                   {query_grad, local_grad, gate_grad});
    const auto compare = [&](std::vector<float>& x, const std::vector<float>& grad) {
        for (std::size_t i = 0; i < x.size(); ++i) {
            const float kept = x[i], step = 1.0f / 256;
            x[i] = kept + step;
            const double high = objective();
            x[i] = kept - step;
            const double low = objective();
            x[i] = kept;
            CHECK(double{grad[i]} == Approx((high - low) / (2 * double{step})).margin(2e-4));
        }
    };
    compare(c.queries.data, query_grad.data);
    compare(c.local.data, local_grad.data);
    compare(c.gates, gate_grad);
}

TEST_CASE("an empty memory leaves local attention as it is") {
    Case c(4, 2, 1, 3); // one token waits, none is seen
    Matrix out = c.local;
    HeadOutputs base{out, c.gates};
    const Rows queries = c.queries;
    GatedAttention<>{.filled_to = 3}.combine(base, c.reading(queries));
    CHECK(out.data == c.local.data);
    Matrix query_grad(5, 12), local_grad(5, 12);
    std::vector<float> gate_grad(3);
    GatedAttention<>{}.backward(c.local, c.gates, c.queries, c.reading(queries), {query_grad, local_grad, gate_grad});
    CHECK(local_grad.data == c.queries.data);
    CHECK(gate_grad == std::vector<float>(3));
    std::vector<float> two(2);
    HeadOutputs wrong{out, two};
    CHECK_THROWS_WITH(GatedAttention<>{}.combine(wrong, c.reading(queries)),
                      Catch::Contains("gates: expected 3, got 2"));
}

TEMPLATE_TEST_CASE("weighted sums of rows give the same bits on every instruction set", "", float, half, bfloat16) {
    for (const index_t d : {1, 7, 8, 16, 31, 64, 100}) {
        const Matrix floats = normal_rows(9, d, 5);
        std::vector<TestType> stored(floats.data.size());
        convert(std::span<const float>(floats.data), std::span<TestType>(stored));
        const std::vector<index_t> ids = {8, 0, 3, 3, 5, 1, 7};
        const Matrix weights = normal_rows(1, 7, 6);
        const MatrixView<const TestType> rows(stored.data(), 9, d);
        std::vector<float> expected(static_cast<std::size_t>(d), 1.0f);
        const SimdLevel before = use_simd_level(SimdLevel::plain);
        add_weighted_rows(rows, ids, weights.data, expected);
        double sum = 1;
        for (std::size_t i = 0; i < ids.size(); ++i) sum += double{weights.data[i]} * double{to_float(rows[ids[i]][0])};
        CHECK(double{expected[0]} == Approx(sum).margin(1e-6));
        for (const SimdLevel level : {SimdLevel::avx2, SimdLevel::avx512}) {
            use_simd_level(level);
            std::vector<float> out(static_cast<std::size_t>(d), 1.0f);
            add_weighted_rows(rows, ids, weights.data, out);
            CHECK(std::memcmp(out.data(), expected.data(), out.size() * sizeof(float)) == 0);
        }
        use_simd_level(before);
    }
}
