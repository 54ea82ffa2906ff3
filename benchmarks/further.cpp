// SPDX-License-Identifier: MIT
// GNN-LM's and RetoMaton's hot paths on the shapes of a reference script; labels are the names of its cases, for
// compare.py. hgt_layer computes what the language model reads from a layer, the targets' states; hgt_layer_both also
// the states of all retrieved nodes, as a layer that is not the last needs some of them; hgt_stack is three layers.
#include <mnemo/nn/gnn_lm.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/retrieve/follow.hpp>
#include <mnemo/store/tokens.hpp>

#include <benchmark/benchmark.h>
#include <torch/utils.h>

#include <cstdlib>

using namespace mnemo;

namespace {

constexpr index_t kTargets = 48, kNeighbours = 16, kDim = 512, kHeads = 8;

// Every neighbour a window of three nodes of its own: the centre, left, right.
nn::GraphEdges windows() {
    NeighbourGraph graph;
    graph.first.push_back(0);
    for (index_t t = 0; t < kTargets; ++t) {
        for (index_t j = 0; j < kNeighbours; ++j) {
            const index_t centre = graph.nodes();
            graph.rows.insert(graph.rows.end(), {0, 0, 0});
            graph.before.insert(graph.before.end(), {centre + 1, -1, centre});
            graph.after.insert(graph.after.end(), {centre + 2, centre, -1});
            graph.centres.push_back(centre);
        }
        graph.first.push_back(graph.centres.size());
    }
    return nn::edges_of(graph);
}

void layers(benchmark::State& state, std::int64_t count, bool with_nodes, const char* label) {
    const at::NoGradGuard no_grad;
    torch::manual_seed(0);
    nn::GraphDecoder decoder(nn::GraphDecoderOptions().in_dim(kDim).layers(count).heads(kHeads));
    decoder->eval();
    const nn::GraphEdges edges = windows();
    const at::Tensor text = at::randn({kTargets, kDim}), nodes = at::randn({edges.band.size(0), kDim});
    for (auto _ : state) benchmark::DoNotOptimize(decoder->forward(text, nodes, edges, with_nodes).text.data_ptr());
    state.SetItemsProcessed(state.iterations() * kTargets);
    state.SetLabel(label);
}
void hgt_layer(benchmark::State& state) { layers(state, 1, false, "gnnlm_hgt_layer"); }
void hgt_layer_both(benchmark::State& state) { layers(state, 1, true, "hgt_layer_both"); }
void hgt_stack(benchmark::State& state) { layers(state, 3, false, "hgt_stack"); }

void pq_decode(benchmark::State& state) {
    const at::NoGradGuard no_grad;
    constexpr index_t n = 4096, d = 1024;
    ProductQuantizer quantizer;
    quantizer.dim = quantizer.width = d, quantizer.parts = 128;
    const at::Tensor centroids = at::randn({256 * d}), rotation = at::randn({d * d});
    quantizer.centroids.assign(centroids.data_ptr<float>(), centroids.data_ptr<float>() + 256 * d);
    quantizer.rotation.assign(rotation.data_ptr<float>(), rotation.data_ptr<float>() + d * d);
    const at::Tensor codes = at::randint(0, 256, {n, 128}, at::kByte);
    const nn::CodedStates states{&quantizer, {codes.data_ptr<std::uint8_t>(), n, 128}};
    std::vector<index_t> rows(n);
    std::iota(rows.begin(), rows.end(), index_t{0});
    for (auto _ : state) benchmark::DoNotOptimize(states(rows).data_ptr());
    state.SetItemsProcessed(state.iterations() * n);
    state.SetLabel("gnnlm_pq_decode");
}

// Scores of 1024 pointers: from the store's keys, where the reference reconstructs them from its index.
void pointer_scores(benchmark::State& state) {
    constexpr index_t entries = 100000, d = 1024, pointers = 1024;
    TokenStore<half> store(d);
    store.reserve(entries);
    for (index_t first = 0; first < entries; first += 10000) {
        const at::Tensor keys = at::randn({10000, d});
        store.append(nn::as_rows(keys), std::vector<std::int32_t>(10000));
    }
    const Follow<Exact<L2>, L2> follow{{}, nullptr, 0, pointers};
    const at::Tensor query = at::randn({1, d}), ids = at::randint(0, entries, {pointers}, at::kLong);
    const std::span<const index_t> candidates(ids.data_ptr<std::int64_t>(), pointers);
    Trail trail;
    for (auto _ : state) {
        follow.step(store, nn::as_rows(query), candidates, trail);
        benchmark::DoNotOptimize(trail.scores.data());
    }
    state.SetItemsProcessed(state.iterations() * pointers);
    state.SetLabel("retomaton_pointer_distances");
}

BENCHMARK(hgt_layer)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(hgt_layer_both)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(hgt_stack)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(pq_decode)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(pointer_scores)->Unit(benchmark::kMillisecond)->UseRealTime();

} // namespace

int main(int argc, char** argv) {
    const char* threads = std::getenv("OMP_NUM_THREADS");
    at::set_num_threads(threads != nullptr ? std::max(std::atoi(threads), 1) : 1);
    benchmark::Initialize(&argc, argv);
    benchmark::RunSpecifiedBenchmarks();
    return 0;
}
