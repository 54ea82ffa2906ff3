// SPDX-License-Identifier: MIT
// Forward and backward of TRIME's losses, one thread. Peak memory belongs to a process: run one case at a time
// (--benchmark_filter), as the level before and the highest level are those of the process.
#include <mnemo/nn/trime.hpp>

#include <benchmark/benchmark.h>

#include <sys/resource.h>

namespace {

using namespace mnemo::nn;

double peak_megabytes() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<double>(usage.ru_maxrss) / 1024;
}

enum class Kind { cross_entropy, local, earlier, others };

struct Case {
    TrimeBatch batch;
    OutputLayer output;
    Kind kind;

    Case(Kind k, std::int64_t segments, std::int64_t length, std::int64_t dim, std::int64_t vocab) : kind(k) {
        at::manual_seed(0);
        const auto words = at::randn({vocab, dim}).mul_(1 / std::sqrt(static_cast<double>(dim)));
        output.words = words.requires_grad_();
        const at::Tensor zipf = at::ones({vocab - 4}).div_(at::arange(1, vocab - 3));
        batch.targets = (at::multinomial(zipf, segments * length, true) + 4).view({segments, length});
        batch.features = at::randn({segments, length, dim}).requires_grad_();
        batch.keys = at::layer_norm(at::randn({segments, length, dim}), {dim}).requires_grad_();
    }
    TrimeLoss loss(const TrimeOptions& options) const {
        switch (kind) {
        case Kind::local:
            return trime_loss(batch, output, options);
        case Kind::earlier:
            return trime_long_loss_same_device(batch, output, options);
        case Kind::others:
            return trime_ext_loss(batch, output, options, false);
        default: {
            TrimeOptions warm_up = options;
            warm_up.cross_entropy = true;
            return trime_loss(batch, output, warm_up);
        }
        }
    }
    void step(const TrimeOptions& options) const {
        for (const at::Tensor& t : {batch.features, batch.keys, output.words}) t.mutable_grad() = at::Tensor();
        loss(options).loss.backward();
    }
};

void train(benchmark::State& state, Kind kind, std::int64_t segments, std::int64_t length, std::int64_t dim,
           std::int64_t vocab, bool plain) {
    at::set_num_threads(1);
    const Case problem(kind, segments, length, dim, vocab);
    const double before = peak_megabytes();
    problem.step({.plain = plain});
    for (auto _ : state) problem.step({.plain = plain});
    state.counters["extra_mb"] = peak_megabytes() - before;
    state.counters["tokens_per_s"] =
        benchmark::Counter(static_cast<double>(segments * length * state.iterations()), benchmark::Counter::kIsRate);
}

void add(const char* name, Kind kind, std::int64_t segments, std::int64_t length, std::int64_t dim,
         std::int64_t vocab) {
    for (const bool plain : {false, true})
        benchmark::RegisterBenchmark((std::string("trime/") + name + (plain ? "/plain" : "/fused")).c_str(), train,
                                     kind, segments, length, dim, vocab, plain)
            ->Unit(benchmark::kMillisecond)
            ->UseRealTime();
}

} // namespace

int main(int count, char** arguments) {
    add("ce_only_T3072", Kind::cross_entropy, 1, 3072, 512, 8192);
    add("local_T3072", Kind::local, 1, 3072, 512, 8192);
    add("local_T3000_L150", Kind::local, 20, 150, 410, 8192);
    add("local_T4096_V32k", Kind::local, 1, 4096, 512, 32768);
    add("long_T4096_chars", Kind::earlier, 8, 512, 512, 208);
    add("long_T6144", Kind::earlier, 4, 1536, 512, 8192);
    add("ext_T3072", Kind::others, 4, 768, 512, 8192);
    benchmark::Initialize(&count, arguments);
    benchmark::RunSpecifiedBenchmarks();
}
