// SPDX-License-Identifier: MIT
// What a memory costs a host at each step: mixing neighbours into a row of logits, on the shapes of a reference script
// (labels are the names of its cases; compare.py --cases hosts.io.mix), and a whole decoding step of a llama2.c model.
#include <mnemo/host/llama2c_decoder.hpp>
#include <mnemo/mnemo.hpp>

#include <benchmark/benchmark.h>

#include <random>

using namespace mnemo;

namespace {

Matrix random_matrix(index_t rows, index_t cols, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    Matrix m(rows, cols);
    for (float& x : m.data) x = normal(random);
    return m;
}

/// Values without keys.
struct Values {
    using value_type = std::int32_t;
    std::vector<std::int32_t> tokens;
    index_t key_dim() const { return 1; }
    index_t size() const { return static_cast<index_t>(tokens.size()); }
    std::int32_t value(index_t id) const { return tokens[static_cast<std::size_t>(id)]; }
};

// 64 rows of logits, 1024 neighbours each with normally distributed scores; raw logits in place, as a sampler takes
// them.
void mix_logits(benchmark::State& state) {
    const index_t rows = 64, k = 1024, vocab = state.range(0);
    const Matrix fresh = random_matrix(rows, vocab, 1), scores = random_matrix(rows, k, 2);
    std::mt19937 random(3);
    std::uniform_int_distribution<std::int32_t> token(0, static_cast<std::int32_t>(vocab - 1));
    Values store;
    Hits hits;
    for (index_t row = 0; row < rows; ++row) {
        for (const float score : scores[row]) {
            hits.push(store.size(), score);
            store.tokens.push_back(token(random));
        }
        hits.end_row();
    }
    Matrix work = fresh;
    const Rows queries;
    Arena scratch;
    const Interpolate<TokenVotes> combiner;
    for (auto _ : state) {
        state.PauseTiming();
        std::copy(fresh.data.begin(), fresh.data.end(), work.data.begin());
        scratch.reset();
        state.ResumeTiming();
        Logits base{work};
        combiner.combine(base, Reading{queries, hits, store, scratch});
        benchmark::DoNotOptimize(work.data.data());
    }
    state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations()) * rows);
    state.SetLabel(text("hosts.io.mix_logits vocab=", vocab));
}
BENCHMARK(mix_logits)->Arg(512)->Arg(32000)->Arg(50257)->Arg(267744)->Unit(benchmark::kMillisecond)->UseRealTime();

/// A llama2.c model of the shape of stories260K with random weights.
class RandomLlama {
  public:
    RandomLlama() {
        Llama2cConfig& c = weights.config;
        c.dim = 64, c.hidden_dim = 172, c.layers = 5, c.heads = 8, c.kv_heads = 4, c.vocab_size = 512, c.seq_len = 512;
        const index_t sizes[] = {c.vocab_size * c.dim,
                                 c.layers * c.dim,
                                 c.layers * c.dim * c.dim,
                                 c.layers * c.kv_dim() * c.dim,
                                 c.layers * c.kv_dim() * c.dim,
                                 c.layers * c.dim * c.dim,
                                 c.layers * c.dim,
                                 c.layers * c.hidden_dim * c.dim,
                                 c.layers * c.dim * c.hidden_dim,
                                 c.layers * c.hidden_dim * c.dim,
                                 c.dim};
        std::span<const float>* const blocks[] = {
            &weights.embedding, &weights.attention_norm, &weights.wq, &weights.wk, &weights.wv,
            &weights.wo,        &weights.ffn_norm,       &weights.w1, &weights.w2, &weights.w3,
            &weights.final_norm};
        index_t total = 0;
        for (const index_t size : sizes) total += size;
        values_ = random_matrix(1, total, 5);
        for (float& x : values_.data) x *= 0.1f;
        std::size_t at = 0;
        for (std::size_t i = 0; i < std::size(blocks); ++i) {
            *blocks[i] = std::span<const float>(values_.data).subspan(at, static_cast<std::size_t>(sizes[i]));
            at += static_cast<std::size_t>(sizes[i]);
        }
        weights.classifier = weights.embedding;
    }
    Llama2cWeights weights;

  private:
    Matrix values_;
};

// One token more at a time, from the first position to the 256th and again; 0 entries: no memory.
void decode(benchmark::State& state) {
    const RandomLlama model;
    const Llama2cConfig& c = model.weights.config;
    const index_t entries = state.range(0);
    std::mt19937 random(7);
    std::uniform_int_distribution<std::int32_t> token(0, static_cast<std::int32_t>(c.vocab_size - 1));
    TokenStore<half> store(c.dim);
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(entries));
    for (auto& t : tokens) t = token(random);
    store.append(random_matrix(entries, c.dim, 9), tokens);
    const KnnLm<TokenStore<half>, Exact<L2>> memory({}, std::move(store), {.k = 1024},
                                                    {.evidence = {.temperature = 3}, .lambda = {0.3f}});
    Session<const decltype(memory), Rows> session(memory);
    Llama2cDecoder decoder(model.weights);
    for (auto _ : state) {
        if (decoder.position() == 256) decoder.reset();
        decoder.forward(static_cast<std::int32_t>(decoder.position()));
        if (entries > 0)
            session.read(Rows(decoder.ffn_in().data(), 1, c.dim),
                         Logits{MutRows(decoder.logits().data(), 1, c.vocab_size)});
        benchmark::DoNotOptimize(decoder.logits().data());
    }
    state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations()));
    state.SetLabel(text("llama2.c step, d 64, ", entries, " entries"));
}
BENCHMARK(decode)->Arg(0)->Arg(10000)->Arg(100000)->Unit(benchmark::kMicrosecond)->UseRealTime();

} // namespace

BENCHMARK_MAIN();
