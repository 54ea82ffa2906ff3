// SPDX-License-Identifier: MIT
// PEMA's hot paths on the shapes of a reference script; labels are the names of its cases, for compare.py. What has no
// counterpart there: the closed form, the head in bfloat16, building with the targets' words.
#include "../tests/folder.hpp"
#include <mnemo/io/datastore.hpp>
#include <mnemo/nn/batch_host.hpp>
#include <mnemo/nn/hugging_face_lm.hpp>
#include <mnemo/nn/pema_train.hpp>
#include <mnemo/store/tokens.hpp>

#include <ATen/Parallel.h>
#include <ATen/ops/randint.h>
#include <benchmark/benchmark.h>
#include <sys/resource.h>
#include <torch/utils.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>

using namespace mnemo;

namespace {

constexpr index_t kRank = 512, kVocab = 50272;

double peak_megabytes() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<double>(usage.ru_maxrss) / 1024;
}
std::vector<std::int32_t> random_tokens(index_t n, index_t first, index_t end) {
    const at::Tensor ids = at::randint(first, end, {n}, at::kInt);
    return {ids.data_ptr<std::int32_t>(), ids.data_ptr<std::int32_t>() + n};
}
TokenStore<float> random_memory(index_t rows, index_t d) {
    const at::Tensor c = at::randn({rows, d});
    TokenStore<float> store(d);
    store.append(nn::as_rows(c), random_tokens(rows, 0, kVocab));
    return store;
}
nn::FrozenHead random_head(index_t d) {
    return {at::empty({kVocab, d}).normal_().div_(45), at::ones({d}), at::zeros({d}), 1e-5, "random"};
}
nn::PemaAdapter random_adapter(index_t d) {
    nn::PemaAdapter adapter(nn::PemaAdapterOptions().dim(d).rank(kRank));
    const at::NoGradGuard no_grad;
    adapter->lora_B.normal_(), adapter->lora_B_rct.normal_();
    return adapter;
}

void train(benchmark::State& state, nn::PemaPhase phase, bool half, const std::string& label) {
    const index_t rows = state.range(0), d = state.range(1);
    const at::NoGradGuard no_grad;
    const TokenStore<float> memory = random_memory(rows, d);
    nn::FrozenHead head = phase == nn::PemaPhase::joint ? random_head(d) : nn::FrozenHead();
    if (half) head = head.with_bfloat16();
    nn::PemaTrainOptions options;
    options.phase = phase, options.batch = rows, options.epochs = 1000000;
    const double before = peak_megabytes();
    nn::PemaTrainer<TokenStore<float>> trainer(random_adapter(d), head, memory, nullptr, options);
    for (auto _ : state) benchmark::DoNotOptimize(trainer.step());
    state.SetItemsProcessed(state.iterations() * rows);
    state.counters["extra_MB"] = peak_megabytes() - before;
    state.SetLabel(label);
}
void reconstruction_step(benchmark::State& state) {
    train(state, nn::PemaPhase::reconstruct, false, text("rct_step d=", state.range(1), " rows=", state.range(0)));
}
void joint_step(benchmark::State& state) {
    train(state, nn::PemaPhase::joint, false, text("joint_step d=", state.range(1)));
}
void joint_step_bfloat16(benchmark::State& state) {
    train(state, nn::PemaPhase::joint, true, text("joint_step_bfloat16 d=", state.range(1)));
}
void closed_form(benchmark::State& state) {
    const TokenStore<float> memory = random_memory(state.range(0), state.range(1));
    const nn::PemaAdapter adapter = random_adapter(state.range(1));
    for (auto _ : state) benchmark::DoNotOptimize(nn::reconstruct_in_closed_form(adapter, memory, 0.2));
    state.SetItemsProcessed(state.iterations() * state.range(0));
    state.SetLabel(text("closed_form d=", state.range(1)));
}

/// What steps reach in 50 times the closed form's time, or when they are as good; without dropout, so that both lower
/// the same loss. States have a falling spectrum, as a model's have.
void steps_to_closed_form(benchmark::State& state) {
    const index_t rows = state.range(0), d = state.range(1);
    const at::NoGradGuard no_grad;
    const at::Tensor spectrum = at::arange(1, d + 1).to(at::kFloat).rsqrt();
    const at::Tensor c = at::mm(at::randn({rows, d}) * spectrum, at::randn({d, d}).div_(std::sqrt(double(d))));
    TokenStore<float> memory(d);
    memory.append(nn::as_rows(c), random_tokens(rows, 0, kVocab));
    const auto fresh = [&] { return nn::PemaAdapter(nn::PemaAdapterOptions().dim(d).rank(kRank).dropout(0)); };
    using Clock = std::chrono::steady_clock;
    const auto since = [](Clock::time_point from) {
        return std::chrono::duration<double>(Clock::now() - from).count();
    };
    for (auto _ : state) {
        const nn::PemaAdapter closed = fresh();
        const auto began = Clock::now();
        const double optimum = nn::reconstruct_in_closed_form(closed, memory, 0);
        const double closed_seconds = since(began);
        nn::PemaTrainOptions options;
        options.phase = nn::PemaPhase::reconstruct, options.batch = rows, options.epochs = 1000000;
        nn::PemaTrainer<TokenStore<float>> trainer(fresh(), {}, memory, nullptr, options);
        const auto start = Clock::now();
        double loss = 0, steps = 0;
        do loss = trainer.step().losses.reconstruction, ++steps;
        while (loss > optimum * 1.01 && since(start) < 50 * closed_seconds);
        state.counters["closed_form_s"] = closed_seconds;
        state.counters["closed_form_loss"] = optimum;
        state.counters["steps"] = steps;
        state.counters["steps_s"] = since(start);
        state.counters["steps_loss"] = loss;
    }
}

/// A host that has computed its states already: what is timed is what stands behind them.
struct HeadOnly {
    at::Tensor output;
    index_t vocab_size() const { return output.size(0); }
    index_t key_dim() const { return output.size(1); }
    BatchStates start(const PromptBatch&) { return {}; }
    BatchStates next(std::span<const std::int32_t>) { return {}; }
    void logits(Rows rows, MutRows out) const { nn::multiply_head(output, rows, out); }
};
void decode(benchmark::State& state, bool mixed, const char* name) {
    constexpr index_t kWidth = 2048;
    const index_t batch = state.range(0), tokens = state.range(1);
    const at::NoGradGuard no_grad;
    const nn::FrozenHead head = random_head(kWidth);
    HeadOnly host{head.output};
    const Pema<> memory = nn::pema_memory(random_adapter(kWidth), head);
    const at::Tensor c = at::randn({batch, kWidth});
    Matrix normed(batch, kWidth);
    mnemo::detail::PemaHeads heads;
    for (auto _ : state)
        for (index_t t = 0; t < tokens; ++t) {
            for (index_t row = 0; row < batch; ++row) memory.combiner().evidence.norm(nn::as_rows(c)[row], normed[row]);
            heads.compute(memory, host, {nn::as_rows(c), normed}, mixed);
            for (index_t row = 0; row < batch; ++row)
                benchmark::DoNotOptimize(mixed ? best_of_mixture(heads.base()[row], heads.memory()[row], 0.9f).token
                                               : static_cast<std::int32_t>(std::max_element(heads.base()[row].begin(),
                                                                                            heads.base()[row].end()) -
                                                                           heads.base()[row].begin()));
        }
    state.SetItemsProcessed(state.iterations() * batch * tokens);
    state.SetLabel(text(name, " batch=", batch, " tokens_per_row=", tokens));
}
void decode_base(benchmark::State& state) { decode(state, false, "decode_step.base_head"); }
void decode_mixed(benchmark::State& state) { decode(state, true, "decode_step.base_plus_pema"); }

nn::HuggingFaceLm random_opt() {
    nn::HuggingFaceOptions o;
    o.model_type = "opt", o.vocab_size = 8000, o.dim = o.input_dim = 128, o.ffn_dim = 512, o.layers = 4;
    o.heads = o.kv_heads = 4, o.head_dim = 32, o.max_positions = 1024, o.position_offset = 2;
    o.positions = nn::HuggingFaceOptions::Positions::learned_by_mask;
    o.activation = "relu", o.attention_scale = 1 / std::sqrt(32.0);
    nn::HuggingFaceLm model(o, [](const std::string& name, at::IntArrayRef shape) {
        const bool scale = name.find("norm") != std::string::npos && name.find("weight") != std::string::npos;
        return 0.1 * at::randn(shape) + (scale ? 1 : 0);
    });
    model->eval();
    return model;
}
void build(benchmark::State& state, PemaContexts contexts, const char* label) {
    const at::NoGradGuard no_grad;
    torch::manual_seed(1);
    nn::BatchHost host(random_opt());
    std::vector<PemaExample> examples;
    for (index_t i = 0; i < 30; ++i)
        examples.push_back({random_tokens(48 - i % 12, 3, 8000), random_tokens(40, 3, 8000)});
    PemaBuilding options;
    options.contexts = contexts, options.end = -1;
    const Folder folder;
    for (auto _ : state) {
        DatastoreWriter writer = DatastoreWriter::create(
            folder.path(),
            {.host = {.key_dim = 128, .vocab_size = 8000}, .key_type = KeyType::float32, .overwrite = true});
        if (build_pema_memory(host, examples, writer, options).written != 1200) state.SkipWithError("rows are missing");
        writer.close();
    }
    state.SetItemsProcessed(state.iterations() * 1200);
    state.SetLabel(label);
}
void build_free(benchmark::State& state) { build(state, PemaContexts::free_running, "build_memory"); }
void build_forced(benchmark::State& state) {
    build(state, PemaContexts::teacher_forced, "build_memory_teacher_forced");
}

void loader(benchmark::State& state) {
    constexpr index_t kRows = 40000, kWidth = 1024, kBatch = 4096;
    const Folder folder;
    {
        const at::Tensor c = at::randn({kRows, kWidth});
        DatastoreWriter writer =
            DatastoreWriter::create(folder.path(), {.host = {.key_dim = kWidth}, .key_type = KeyType::float32});
        writer.append(nn::as_rows(c), std::vector<std::int32_t>(kRows, 7));
    }
    const Datastore store = Datastore::open(folder.path());
    nn::PemaRows<Datastore> rows(store);
    const at::Tensor batch = at::empty({kBatch, kWidth});
    for (auto _ : state)
        for (index_t first = 0; first < kRows; first += kBatch) { // a copy, as the script makes one
            const index_t n = std::min(kBatch, kRows - first);
            batch.narrow(0, 0, n).copy_(rows.keys(first, n));
            benchmark::DoNotOptimize(rows.values(first, n).data());
        }
    state.SetItemsProcessed(state.iterations() * kRows);
    state.SetLabel("loader_epoch");
}

BENCHMARK(reconstruction_step)->Args({8192, 1024})->Args({4096, 2048})->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(closed_form)->Args({8192, 1024})->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(steps_to_closed_form)->Args({8192, 1024})->Iterations(1)->Unit(benchmark::kSecond)->UseRealTime();
BENCHMARK(joint_step)->Args({256, 1024})->Args({256, 2048})->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(joint_step_bfloat16)->Args({256, 1024})->Args({256, 2048})->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(decode_base)->Args({1, 10})->Args({30, 4})->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(decode_mixed)->Args({1, 10})->Args({30, 4})->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(build_free)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(build_forced)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(loader)->Unit(benchmark::kMillisecond)->UseRealTime();

} // namespace

int main(int argc, char** argv) {
    const char* threads = std::getenv("OMP_NUM_THREADS");
    at::set_num_threads(threads != nullptr ? std::max(std::atoi(threads), 1) : 1);
    benchmark::Initialize(&argc, argv);
    benchmark::RunSpecifiedBenchmarks();
    return 0;
}
