// SPDX-License-Identifier: MIT
// Re-scoring by id, exact search and conversion, on one thread. Compare ratios within one run, not times across runs.
#include <benchmark/benchmark.h>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/store/tokens.hpp>
#ifdef MNEMO_BENCH_FAISS
#include <mnemo/faiss/index.hpp>
#endif

#include <map>
#include <random>

using namespace mnemo;

namespace {

// A dense orthogonal matrix in d log d steps: pairs of elements turned by random angles, at every distance.
void turn(std::span<float> row, const std::vector<std::pair<float, float>>& angles) {
    std::size_t at = 0;
    for (std::size_t h = 1; h < row.size(); h *= 2)
        for (std::size_t j = 0; j < row.size(); ++j)
            if ((j & h) == 0 && j + h < row.size()) {
                const auto [c, s] = angles[at++];
                const float a = row[j], b = row[j + h];
                row[j] = c * a - s * b, row[j + h] = s * a + c * b;
            }
}

// Clusters of Zipf sizes, a falling spectrum and a common offset: what keys from a language model look like.
Matrix keys_like_hidden_states(index_t rows, index_t d, unsigned seed) {
    std::mt19937 gen(seed), shared(7);
    std::normal_distribution<float> normal;
    const index_t clusters = std::max<index_t>(64, rows / 256);
    std::vector<float> spectrum(static_cast<std::size_t>(d));
    std::vector<double> weights(static_cast<std::size_t>(clusters));
    for (std::size_t j = 0; j < spectrum.size(); ++j) spectrum[j] = std::pow(static_cast<float>(j + 1), -0.55f);
    for (std::size_t c = 0; c < weights.size(); ++c) weights[c] = 1.0 / static_cast<double>(c + 10);
    Matrix centres(clusters, d), out(rows, d);
    for (index_t c = 0; c < clusters; ++c)
        for (std::size_t j = 0; j < spectrum.size(); ++j)
            centres[c][j] = spectrum[j] * (normal(shared) + (j == 0 ? 1.5f : 0.0f));
    std::uniform_real_distribution<float> angle(0, 6.2831853f);
    std::vector<std::pair<float, float>> angles(spectrum.size() * 16);
    for (auto& a : angles) {
        const float x = angle(shared);
        a = {std::cos(x), std::sin(x)};
    }
    std::discrete_distribution<index_t> choose(weights.begin(), weights.end());
    for (index_t i = 0; i < rows; ++i) {
        const auto centre = centres[choose(gen)];
        for (std::size_t j = 0; j < spectrum.size(); ++j) out[i][j] = centre[j] + 0.6f * spectrum[j] * normal(gen);
        turn(out[i], angles);
    }
    return out;
}

// Stores are made once a shape and shared by all benchmarks.
template <class Key> const TokenStore<Key>& store_of(index_t n, index_t d) {
    static std::map<std::pair<index_t, index_t>, TokenStore<Key>> stores;
    const auto [found, is_new] = stores.try_emplace({n, d}, d);
    if (is_new) {
        const std::vector<std::int32_t> values(static_cast<std::size_t>(n));
        found->second.append(keys_like_hidden_states(n, d, 1), values);
    }
    return found->second;
}

void count(benchmark::State& state, index_t queries, double operations, double bytes) {
    const auto rate = benchmark::Counter::kIsIterationInvariantRate;
    state.counters["queries/s"] = benchmark::Counter(static_cast<double>(queries), rate);
    state.counters["flop/s"] = benchmark::Counter(operations, rate);
    state.counters["bytes/s"] = benchmark::Counter(bytes, rate, benchmark::Counter::kIs1024);
}

template <class Key> void rescore_by_id(benchmark::State& state) {
    const index_t n = 100000, k = state.range(0), d = state.range(1);
    const auto& store = store_of<Key>(n, d);
    const Matrix q = keys_like_hidden_states(1, d, 2);
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
    count(state, 1, 2.0 * double(k * d), double(k * d) * sizeof(Key));
}

template <class MetricT, class Key> void exact(benchmark::State& state) {
    const index_t n = state.range(0), d = state.range(1), k = state.range(2), batch = state.range(3);
    const auto& store = store_of<Key>(n, d);
    const Matrix q = keys_like_hidden_states(batch, d, 2);
    const Exact<MetricT> retriever{k};
    Hits hits;
    for (auto _ : state) hits = retriever.retrieve(store, q, std::move(hits));
    count(state, batch, 2.0 * double(n * d * batch), double(n * d) * sizeof(Key));
}

#ifdef MNEMO_BENCH_FAISS
void faiss_flat(benchmark::State& state) {
    const index_t n = state.range(0), d = state.range(1), k = state.range(2), batch = state.range(3);
    const auto& store = store_of<float>(n, d);
    FaissBuild how;
    how.factory = "Flat";
    FaissIndex index = FaissIndex::build(store, how);
    index.k = k;
    index.threads = 1;
    const Matrix q = keys_like_hidden_states(batch, d, 2);
    Hits hits;
    for (auto _ : state) hits = index.retrieve(store, q, std::move(hits));
    count(state, batch, 2.0 * double(n * d * batch), double(n * d) * sizeof(float));
}
#endif

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

void shapes(benchmark::internal::Benchmark* b) {
    b->ArgNames({"n", "d", "k", "batch"})->Unit(benchmark::kMillisecond);
    for (const index_t d : {256, 1024})
        for (const index_t batch : {1, 16, 512}) b->Args({100000, d, 1024, batch});
}

} // namespace

BENCHMARK_TEMPLATE(rescore_by_id, half)->ArgNames({"k", "d"})->Args({1024, 1024})->Args({1024, 256});
BENCHMARK_TEMPLATE(rescore_by_id, float)->ArgNames({"k", "d"})->Args({1024, 1024})->Args({1024, 256});
BENCHMARK_TEMPLATE(exact, L2, float)->Apply(shapes);
#ifdef MNEMO_BENCH_FAISS
BENCHMARK(faiss_flat)->Apply(shapes);
#endif
BENCHMARK_TEMPLATE(exact, L2, half)->Apply(shapes);
BENCHMARK_TEMPLATE(exact, InnerProduct, float)->Apply(shapes);
BENCHMARK_TEMPLATE(convert_rows, half, float)->ArgName("n")->Arg(1 << 12)->Arg(1 << 24);
BENCHMARK_TEMPLATE(convert_rows, float, half)->ArgName("n")->Arg(1 << 12)->Arg(1 << 24);
BENCHMARK_TEMPLATE(convert_rows, bfloat16, float)->ArgName("n")->Arg(1 << 12)->Arg(1 << 24);
BENCHMARK_TEMPLATE(convert_rows, float, bfloat16)->ArgName("n")->Arg(1 << 12)->Arg(1 << 24);

BENCHMARK_MAIN();
