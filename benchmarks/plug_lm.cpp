// SPDX-License-Identifier: MIT
// PlugLM's hot paths on the shapes of a reference script; labels are the names of its cases, for compare.py. What has
// no counterpart there: refresh of more documents, search of a million entries, edits.
#include <mnemo/nn/autocast.hpp>
#include <mnemo/nn/plug_lm_model.hpp>

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <benchmark/benchmark.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

using namespace mnemo;

namespace {

constexpr index_t kDim = 768, kHeads = 12, kQuery = 128, kVocab = 30522;

// Weights of the script's sizes: matrices of unit gain, small biases, norms that do nothing.
at::Tensor random_weight(const std::string& name, at::IntArrayRef shape) {
    const auto has = [&](const char* part) { return name.find(part) != name.npos; };
    const bool bias = name.size() > 4 && name.compare(name.size() - 4, 4, "bias") == 0;
    if (has("norm") || has("Norm") || has("running"))
        return has("bias") || has("mean") ? at::zeros(shape) : at::ones(shape);
    if (has("beta")) return at::ones(shape);
    return at::randn(shape) * (bias ? 0.1 : 1 / std::sqrt(static_cast<double>(shape.back())));
}
DocumentRows random_documents(index_t n, index_t length) {
    const at::Tensor u = at::rand({n, length}), ends = at::randint(length / 3, length + 1, {n}, at::kLong);
    DocumentRows out;
    out.length = length;
    out.tokens.resize(static_cast<std::size_t>(n * length));
    for (index_t i = 0; i < n; ++i)
        for (index_t j = 0; j < ends.data_ptr<std::int64_t>()[i]; ++j) { // skewed, as words are
            const float x = u.data_ptr<float>()[i * length + j];
            out.tokens[static_cast<std::size_t>(i * length + j)] =
                static_cast<std::uint16_t>(1 + static_cast<float>(kVocab - 2) * x * x * x * x);
        }
    return out;
}
void fill(KnowledgeStore& store, index_t n, MatrixView<const std::uint16_t> documents = {}) {
    const index_t piece = 10000;
    for (index_t first = 0; first < n; first += piece) {
        const index_t rows = std::min(piece, n - first);
        const at::Tensor keys = at::randn({rows, store.key_dim()}), values = at::randn({rows, store.value_dim()});
        store.append(nn::as_rows(keys), store.value_dim() == 0 ? Rows(nullptr, rows, 0) : nn::as_rows(values), "all",
                     documents.cols == 0 ? documents : documents.slice(first, rows));
    }
    store.compact();
    store.pack();
}
PlugLmOptions options_of(index_t k, HeadMerge merge) {
    PlugLmOptions o;
    o.memory_k = k, o.merge = merge;
    return o;
}

void retrieve(benchmark::State& state, const char* label) {
    const index_t b = state.range(0), n = state.range(1);
    KnowledgeStore store(kQuery, kDim);
    fill(store, n);
    const auto snapshot = store.snapshot();
    const at::Tensor queries = at::randn({b, kQuery});
    const auto retriever = plug_lm_retriever(5);
    for (auto _ : state) {
        const Hits hits = retriever.retrieve(*snapshot, nn::as_rows(queries));
        benchmark::DoNotOptimize(nn::gather(*snapshot, hits));
    }
    state.SetItemsProcessed(state.iterations() * b);
    state.SetLabel(label);
}

void attention(benchmark::State& state, HeadMerge merge, const char* label) {
    const index_t b = 4, t = 128, k = state.range(0);
    const at::NoGradGuard no_grad;
    const nn::KnowledgeAttention module(kDim, kHeads, KnowledgeAttentionType::multi_head, merge, random_weight);
    const at::Tensor x = at::randn({b, t, kDim}), query = at::randn({b, kQuery}), keys = at::randn({b, k, kQuery}),
                     values = at::randn({b, k, kDim});
    for (auto _ : state) benchmark::DoNotOptimize(module->forward(x, query, keys, values).hidden);
    state.SetItemsProcessed(state.iterations() * b * t);
    state.SetLabel(label);
}

void memory_layer(benchmark::State& state, HeadMerge merge, const char* label) {
    const index_t b = 4, t = 128, n = state.range(0);
    const at::NoGradGuard no_grad;
    nn::MemoryLayer layer(kDim, kHeads, options_of(5, merge), random_weight);
    layer->eval();
    KnowledgeStore store(kQuery, kDim);
    fill(store, n);
    const auto snapshot = store.snapshot();
    const at::Tensor x = at::randn({b, t, kDim}), mask = at::ones({b, t}, at::kLong);
    const auto retriever = plug_lm_retriever(5);
    for (auto _ : state) benchmark::DoNotOptimize(layer->forward(x, mask, *snapshot, retriever).read.hidden);
    state.SetItemsProcessed(state.iterations() * b * t);
    state.SetLabel(label);
}

// One BERT layer with its memory. Rows of any numbers go in as embeddings of as many words.
struct Layer {
    Layer(index_t rows, index_t positions, HeadMerge merge)
        : memory(kDim, kHeads, options_of(5, merge), random_weight), words(at::randn({rows, kDim})) {
        nn::HuggingFaceOptions o;
        o.model_type = "bert", o.vocab_size = rows, o.dim = o.input_dim = kDim, o.ffn_dim = 768, o.layers = 1;
        o.heads = o.kv_heads = kHeads, o.head_dim = kDim / kHeads, o.max_positions = positions;
        o.attention_scale = 1 / std::sqrt(static_cast<double>(o.head_dim)), o.activation = "gelu";
        o.causal = o.norm_first = o.final_norm = false, o.norm_epsilon = 1e-12;
        host = nn::HuggingFaceLm(o, [&](const std::string& name, at::IntArrayRef shape) {
            return name == "tokens.weight" ? words : random_weight(name, shape);
        });
    }
    at::Tensor forward(const at::Tensor& tokens, const at::Tensor& mask, const KnowledgeSnapshot& snapshot,
                       const std::function<std::pair<at::Tensor, at::Tensor>(const Hits&)>& encode = {}) {
        nn::TokenInfo info;
        info.mask = mask;
        return host->states(tokens, {{nn::Tap::hidden, 1}}, nullptr, info, [&](std::int64_t, const at::Tensor& in) {
            return memory->forward(in, mask, snapshot, plug_lm_retriever(5), encode).read.hidden;
        })[0];
    }
    nn::MemoryLayer memory;
    at::Tensor words;
    nn::HuggingFaceLm host{nullptr};
};

void whole_layer(benchmark::State& state, HeadMerge merge, const char* label) {
    const index_t b = 4, t = 128, n = state.range(0);
    const at::NoGradGuard no_grad;
    Layer layer(b * t, t, merge);
    layer.memory->eval();
    KnowledgeStore store(kQuery, kDim);
    fill(store, n);
    const auto snapshot = store.snapshot();
    const at::Tensor tokens = at::arange(b * t, at::kLong).view({b, t}), mask = at::ones({b, t}, at::kLong);
    for (auto _ : state) benchmark::DoNotOptimize(layer.forward(tokens, mask, *snapshot));
    state.SetItemsProcessed(state.iterations() * b * t);
    state.SetLabel(label);
}

// Forward and backward as in pre-training: the chosen documents are encoded again, with gradient. Not `whole`: what the
// memory adds to the layer alone, without self-attention and feed-forward.
void layer_train(benchmark::State& state, HeadMerge merge, bool whole, bool mixed, const char* label) {
    const index_t b = 4, t = 128, n = state.range(0), length = 32, k = 5;
    Layer layer(b * t, t, merge);
    layer.memory->train();
    const nn::DocumentEmbeddings embeddings{at::randn({kVocab, kDim}).mul_(0.1).requires_grad_(),
                                            at::randn({2, kDim}).mul_(0.1).requires_grad_(),
                                            at::randn({512, kDim}).mul_(0.1).requires_grad_(),
                                            at::ones({kDim}).requires_grad_(),
                                            at::zeros({kDim}).requires_grad_(),
                                            1e-12,
                                            true};
    const nn::KnowledgeEncoder encoder(embeddings, kQuery, random_weight);
    const DocumentRows documents = random_documents(n, length);
    KnowledgeStore store(kQuery, 0, length);
    fill(store, n, documents.view());
    const auto snapshot = store.snapshot();
    std::vector<at::Tensor> parameters = layer.host->parameters();
    for (const auto& more : {layer.memory->parameters(), encoder->parameters()})
        parameters.insert(parameters.end(), more.begin(), more.end());
    const at::Tensor in = at::randn({b, t, kDim}).requires_grad_();
    for (const at::Tensor& p : {in, embeddings.words, embeddings.segments, embeddings.positions, embeddings.norm_weight,
                                embeddings.norm_bias})
        parameters.push_back(p);
    const at::Tensor tokens = at::arange(b * t, at::kLong).view({b, t}), mask = at::ones({b, t}, at::kLong);
    const auto encode = [&](const Hits& hits) {
        const at::Tensor ids = at::empty({b * k, length}, at::kLong);
        auto* to = ids.data_ptr<std::int64_t>();
        for (index_t i = 0; i < b; ++i)
            for (const index_t row : hits.ids(i))
                to = std::copy(snapshot->document(row).begin(), snapshot->document(row).end(), to);
        const auto encoded = encoder->forward(ids);
        return std::pair(encoded.key.view({b, k, -1}), encoded.value.view({b, k, -1}));
    };
    for (auto _ : state) {
        for (const at::Tensor& p : parameters) p.mutable_grad() = at::Tensor();
        at::Tensor out;
        {
            const nn::Autocast autocast(mixed);
            out = whole ? layer.forward(tokens, mask, *snapshot, encode)
                        : layer.memory->forward(in, mask, *snapshot, plug_lm_retriever(5), encode).read.hidden;
        }
        out.square().mean().backward();
    }
    state.SetItemsProcessed(state.iterations() * b * t);
    state.SetLabel(label);
}

void refresh(benchmark::State& state, const char* label) {
    const index_t n = state.range(0), d = state.range(1), q = state.range(2), length = 32;
    const at::NoGradGuard no_grad;
    const nn::DocumentEmbeddings embeddings{at::randn({kVocab, d}).mul_(0.1), at::randn({2, d}).mul_(0.1),
                                            at::randn({512, d}).mul_(0.1), at::ones({d}), at::zeros({d})};
    const nn::KnowledgeEncoder encoder(embeddings, q, random_weight);
    const DocumentRows documents = random_documents(n, length);
    for (auto _ : state) {
        KnowledgeStore store(q, d);
        nn::encode_knowledge(store, encoder, documents.view());
        if (store.snapshot()->entries() != n) state.SkipWithError("entries are missing");
    }
    state.SetItemsProcessed(state.iterations() * n);
    state.SetLabel(label);
}

// An entry is replaced in a base of n.
void edit(benchmark::State& state) {
    KnowledgeStore store(kQuery, kDim);
    fill(store, state.range(0));
    const at::Tensor key = at::randn({1, kQuery}), value = at::randn({1, kDim});
    index_t id = 0;
    for (auto _ : state) {
        store.replace(id, nn::as_rows(key)[0], nn::as_rows(value)[0]);
        id = (id + 7919) % state.range(0);
    }
    state.SetItemsProcessed(state.iterations());
}

constexpr auto kMs = benchmark::kMillisecond;
constexpr auto kToken = HeadMerge::per_token, kReference = HeadMerge::reference;
BENCHMARK_CAPTURE(retrieve, b8, "pluglm.retrieve B=8 N=10000")->Args({8, 10000})->Unit(kMs)->UseRealTime();
BENCHMARK_CAPTURE(retrieve, b8, "pluglm.retrieve B=8 N=100000")->Args({8, 100000})->Unit(kMs)->UseRealTime();
BENCHMARK_CAPTURE(retrieve, b32, "pluglm.retrieve B=32 N=100000")->Args({32, 100000})->Unit(kMs)->UseRealTime();
BENCHMARK_CAPTURE(retrieve, b8_million, "pluglm.retrieve B=8 N=1000000")->Args({8, 1000000})->Unit(kMs)->UseRealTime();
BENCHMARK_CAPTURE(attention, k5, kToken, "pluglm.knowledge_attention k=5")->Arg(5)->Unit(kMs)->UseRealTime();
BENCHMARK_CAPTURE(attention, k5_reference, kReference, "pluglm.knowledge_attention k=5 | reference merge")
    ->Arg(5)
    ->Unit(kMs)
    ->UseRealTime();
BENCHMARK_CAPTURE(attention, k64, kToken, "pluglm.knowledge_attention k=64")->Arg(64)->Unit(kMs)->UseRealTime();
BENCHMARK_CAPTURE(memory_layer, token, kToken, "pluglm.memory_layer N=10000")->Arg(10000)->Unit(kMs)->UseRealTime();
BENCHMARK_CAPTURE(memory_layer, token, kToken, "pluglm.memory_layer N=100000")->Arg(100000)->Unit(kMs)->UseRealTime();
BENCHMARK_CAPTURE(memory_layer, reference, kReference, "pluglm.memory_layer N=100000 | reference merge")
    ->Arg(100000)
    ->Unit(kMs)
    ->UseRealTime();
BENCHMARK_CAPTURE(whole_layer, token, kToken, "pluglm.layer")->Arg(100000)->Unit(kMs)->UseRealTime();
BENCHMARK_CAPTURE(layer_train, token, kToken, true, false, "pluglm.layer_train")->Arg(20000)->Unit(kMs)->UseRealTime();
BENCHMARK_CAPTURE(layer_train, reference, kReference, true, false, "pluglm.layer_train | reference merge")
    ->Arg(20000)
    ->Unit(kMs)
    ->UseRealTime();
BENCHMARK_CAPTURE(layer_train, mixed, kToken, true, true, "pluglm.layer_train | mixed precision")
    ->Arg(20000)
    ->Unit(kMs)
    ->UseRealTime();
BENCHMARK_CAPTURE(layer_train, memory, kToken, false, false, "pluglm.memory_train")
    ->Arg(20000)
    ->Unit(kMs)
    ->UseRealTime();
BENCHMARK_CAPTURE(refresh, n1024, "pluglm.refresh N=1024 d=768 q=128 batch=256 collation=reference")
    ->Args({1024, 768, 128})
    ->Unit(kMs)
    ->UseRealTime();
BENCHMARK_CAPTURE(refresh, n8192, "pluglm.refresh N=8192 d=128 q=64 batch=1024 collation=reference")
    ->Args({8192, 128, 64})
    ->Unit(kMs)
    ->UseRealTime();
BENCHMARK_CAPTURE(refresh, n8192_vectorised, "pluglm.refresh N=8192 d=128 q=64 batch=1024 collation=vectorised")
    ->Args({8192, 128, 64})
    ->Unit(kMs)
    ->UseRealTime();
BENCHMARK_CAPTURE(refresh, n65536, "pluglm.refresh N=8192 d=128 q=64 batch=1024 collation=vectorised | N=65536")
    ->Args({65536, 128, 64})
    ->Unit(kMs)
    ->UseRealTime();
BENCHMARK(edit)->Arg(10000)->Arg(100000)->UseRealTime();

} // namespace

int main(int argc, char** argv) {
    const char* threads = std::getenv("OMP_NUM_THREADS");
    at::set_num_threads(threads != nullptr ? std::max(std::atoi(threads), 1) : 1);
    benchmark::Initialize(&argc, argv);
    benchmark::RunSpecifiedBenchmarks();
    return 0;
}
