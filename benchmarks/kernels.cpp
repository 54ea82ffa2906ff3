// SPDX-License-Identifier: MIT
// Re-scoring by id and conversion, on one thread. Compare ratios within one run, not times across runs.
#include <mnemo/kernels/convert.hpp>
#include <mnemo/kernels/score.hpp>
#include <mnemo/store/tokens.hpp>

#include <benchmark/benchmark.h>

#include <random>

using namespace mnemo;

namespace {

Matrix normal_rows(index_t rows, index_t d, unsigned seed) {
    std::mt19937 gen(seed);
    std::normal_distribution<float> normal;
    Matrix out(rows, d);
    for (float& x : out.data) x = normal(gen);
    return out;
}

template <class Key> void rescore_by_id(benchmark::State& state) {
    const index_t n = 100000, k = state.range(0), d = state.range(1);
    TokenStore<Key> store(d);
    store.append(normal_rows(n, d, 1), std::vector<std::int32_t>(static_cast<std::size_t>(n)));
    const Matrix q = normal_rows(1, d, 2);
    std::mt19937 gen(3);
    std::uniform_int_distribution<index_t> any(0, n - 1);
    std::vector<index_t> ids(static_cast<std::size_t>(64 * k)); // too many rows to stay in a cache
    for (index_t& id : ids) id = any(gen);
    std::vector<float> scores(static_cast<std::size_t>(k));
    std::size_t at = 0;
    for (auto _ : state) {
        score_ids<L2>(q[0], store.keys(), std::span(ids).subspan(at * scores.size(), scores.size()), scores);
        benchmark::DoNotOptimize(scores.data());
        at = (at + 1) % 64;
    }
    state.SetItemsProcessed(state.iterations() * k);
    state.SetBytesProcessed(state.iterations() * k * d * static_cast<index_t>(sizeof(Key)));
}

template <class From, class To> void convert_rows(benchmark::State& state) {
    const auto n = static_cast<std::size_t>(state.range(0));
    const std::vector<From> from(n, from_float<From>(0.5f));
    std::vector<To> to(n);
    for (auto _ : state) {
        convert(std::span<const From>(from), std::span<To>(to));
        benchmark::DoNotOptimize(to.data());
    }
    state.SetBytesProcessed(state.iterations() * static_cast<index_t>(n * (sizeof(From) + sizeof(To))));
}

} // namespace

BENCHMARK_TEMPLATE(rescore_by_id, half)->ArgNames({"k", "d"})->Args({1024, 1024})->Args({1024, 256});
BENCHMARK_TEMPLATE(rescore_by_id, float)->ArgNames({"k", "d"})->Args({1024, 1024})->Args({1024, 256});
BENCHMARK_TEMPLATE(convert_rows, half, float)->ArgName("n")->Arg(1 << 12)->Arg(1 << 24);
BENCHMARK_TEMPLATE(convert_rows, float, half)->ArgName("n")->Arg(1 << 12)->Arg(1 << 24);
BENCHMARK_TEMPLATE(convert_rows, bfloat16, float)->ArgName("n")->Arg(1 << 12)->Arg(1 << 24);
BENCHMARK_TEMPLATE(convert_rows, float, bfloat16)->ArgName("n")->Arg(1 << 12)->Arg(1 << 24);

BENCHMARK_MAIN();
