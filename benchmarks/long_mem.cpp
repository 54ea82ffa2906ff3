// SPDX-License-Identifier: MIT
// LongMem's hot paths at the published sizes, one thread; labels are the cases of benchmarks/long_mem.py, for
// compare.py --each. Peak memory belongs to a process: run one case at a time.
#include <mnemo/nn/long_mem.hpp>
#include <mnemo/retrieve/per_head.hpp>

#include <ATen/Parallel.h>
#include <ATen/ops/randint.h>
#include <benchmark/benchmark.h>
#include <sys/resource.h>
#include <torch/utils.h>

#include <cmath>

using namespace mnemo;

namespace {

constexpr index_t kHeads = 16, kHeadDim = 64, kDim = kHeads * kHeadDim, kTokens = 512;
constexpr index_t kMemory = 65'536, kStored = 14'336, kChunk = 4, kK = 64; // kStored: chunks

double peak_megabytes() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<double>(usage.ru_maxrss) / 1024;
}
void measure(benchmark::State& state, const char* label, index_t items, auto&& step) {
    const double before = peak_megabytes();
    step();
    for (auto _ : state) step();
    state.counters["rss_before_mb"] = before;
    state.counters["peak_rss_mb"] = peak_megabytes();
    state.SetItemsProcessed(state.iterations() * items);
    state.SetLabel(label);
}
void append(ChunkRing<half>& ring, index_t tokens) {
    for (index_t n = 4096; tokens > 0; tokens -= n) {
        n = std::min(n, tokens);
        const at::Tensor keys = at::randn({n, kDim}), values = at::randn({n, kDim});
        ring.append(nn::as_rows(keys), nn::as_rows(values));
    }
}
ChunkRing<half> filled(index_t tokens) {
    at::set_num_threads(1);
    torch::manual_seed(0);
    ChunkRing<half> ring({.heads = kHeads, .head_dim = kHeadDim, .chunk = kChunk, .memory_tokens = kMemory});
    append(ring, tokens);
    return ring;
}

void add(benchmark::State& state, bool evict) {
    ChunkRing<half> ring = filled(kMemory);
    if (!evict) ring.clear(); // keeps the memory: the reference's stands ready, too
    const at::Tensor keys = at::randn({kTokens, kDim}), values = at::randn({kTokens, kDim});
    measure(state, evict ? "longmem.bank_add_evict" : "longmem.bank_add", kTokens, [&] {
        if (!evict && ring.chunks() == ring.slots()) ring.clear();
        ring.append(nn::as_rows(keys), nn::as_rows(values));
    });
}

PerHead<Exact<InnerProduct>> search() { return {{.k = kK / kChunk}}; }

void bank_search(benchmark::State& state) {
    const ChunkRing<half> ring = filled(kStored * kChunk);
    const at::Tensor queries = at::randn({kTokens, kDim});
    HeadHits hits;
    measure(state, "longmem.bank_search", kTokens,
            [&] { hits = search().retrieve(ring, nn::as_rows(queries), std::move(hits)); });
}

// The memory layer's attention on [1, tokens, dim], with all four projections.
struct Layer {
    at::Tensor x = at::randn({1, kTokens, kDim}), upstream = at::randn({1, kTokens, kDim});
    nn::LocalBias bias = nn::causal_alibi_bias(at::ones({1, kTokens}), kHeads);
    nn::SideNetwork net =
        nn::SideNetwork(nn::SideNetworkOptions{.dim = kDim, .ffn_dim = 1, .heads = kHeads, .layers = 1},
                        [](const std::string& name, at::IntArrayRef shape) {
                            if (name.find("memory_bias") != std::string::npos) return at::zeros(shape);
                            return at::randn(shape) / std::sqrt(static_cast<double>(kDim));
                        });

    void forward(const nn::SideNetworkImpl::Recall& recall) const {
        const at::NoGradGuard no_grad;
        benchmark::DoNotOptimize(net->attend(0, x, bias, bias, recall));
    }
    void forward_backward(const nn::SideNetworkImpl::Recall& recall) {
        x.requires_grad_(true);
        x.mutable_grad() = at::Tensor();
        for (const auto& [name, weight] : net->weights()) weight.mutable_grad() = at::Tensor();
        net->attend(0, x, bias, bias, recall).backward(upstream);
    }
};
nn::SharedReading found(const ChunkRing<half>& ring, const at::Tensor& queries) {
    auto reading = c10::make_intrusive<nn::ReadingOf<ChunkRing<half>>>();
    reading->add(ring, search().retrieve(ring, nn::as_rows(queries)), 0, queries.size(0));
    return reading;
}
void attend(benchmark::State& state, bool searches, bool backward, const char* label) {
    const ChunkRing<half> ring = filled(kStored * kChunk);
    Layer layer;
    const nn::SharedReading given = found(ring, at::randn({kTokens, kDim}));
    const auto recall = [&](const at::Tensor& queries) { return searches ? found(ring, queries) : given; };
    measure(state, label, kTokens, [&] { backward ? layer.forward_backward(recall) : layer.forward(recall); });
}

void model(benchmark::State& state, bool train) {
    constexpr index_t vocab = 2000, segment = 256, segments = 6, layers = 8, heads = 8, dim = 256;
    at::set_num_threads(1);
    torch::manual_seed(0);
    const nn::HuggingFaceLm backbone(
        nn::long_mem_backbone_options(vocab, dim, layers, heads), [](const std::string& name, at::IntArrayRef shape) {
            if (name.find("norm") != std::string::npos || shape.size() == 1)
                return name.find("weight") != std::string::npos ? at::ones(shape) : at::zeros(shape);
            return at::randn(shape) / std::sqrt(static_cast<double>(shape.back()));
        });
    nn::LongMem memory(backbone, nn::side_network_from(backbone, 2, 5), 2, 5,
                       LongMemBanks({.heads = heads, .head_dim = dim / heads, .memory_tokens = 4096, .k = 32}, 1));
    const at::Tensor tokens = at::randint(4, vocab, {segments, 1, segment + 1}, at::kLong);
    measure(state, train ? "longmem.model_segments_train" : "longmem.model_segments_forward", segments * segment, [&] {
        const at::AutoGradMode recorded(train);
        memory.banks().clear();
        for (index_t s = 0; s < segments; ++s) {
            for (const auto& [name, weight] : memory.side()->weights()) weight.mutable_grad() = at::Tensor();
            const at::Tensor states = memory.forward(tokens[s].narrow(1, 0, segment));
            const at::Tensor loss = -memory.log_prob_target(states, tokens[s].narrow(1, 1, segment)).sum();
            if (train) loss.backward();
            memory.remember();
        }
    });
}

void add_case(const char* label, auto&& function, auto... arguments) {
    benchmark::RegisterBenchmark(label, function, arguments...)->Unit(benchmark::kMillisecond)->UseRealTime();
}

} // namespace

int main(int count, char** arguments) {
    add_case("longmem.bank_add", add, false);
    add_case("longmem.bank_add_evict", add, true);
    add_case("longmem.bank_search", bank_search);
    for (const auto& [label, searches, backward] : {std::tuple{"longmem.joint_attention_forward", false, false},
                                                    std::tuple{"longmem.joint_attention_forward_backward", false, true},
                                                    std::tuple{"longmem.search_and_attend", true, false},
                                                    std::tuple{"longmem.search_and_attend_backward", true, true}})
        add_case(label, attend, searches, backward, label);
    add_case("longmem.model_segments_forward", model, false);
    add_case("longmem.model_segments_train", model, true);
    benchmark::Initialize(&count, arguments);
    benchmark::RunSpecifiedBenchmarks();
}
