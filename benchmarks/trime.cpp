// SPDX-License-Identifier: MIT
// TRIME's losses, forward and backward, and the scoring of a window with memories, one thread. Peak memory belongs to a
// process: run one case at a time (--benchmark_filter), as the level before and the highest level are those of the
// process; compare.py does. Labels are the cases of the reference's script.
#include <mnemo/nn/trime.hpp>
#include <mnemo/nn/trime_scorer.hpp>
#include <mnemo/store/tokens.hpp>

#include <benchmark/benchmark.h>

#include <sys/resource.h>

namespace {

using namespace mnemo::nn;

double peak_megabytes() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<double>(usage.ru_maxrss) / 1024;
}

enum class Kind { cross_entropy, local, earlier, others, top_8 };

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
        case Kind::top_8: {
            TrimeOptions translation = options;
            translation.temperature = 10;
            return trime_mt_loss(batch, output, translation, {.top_k = 8});
        }
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

void measure(benchmark::State& state, const std::string& label, std::int64_t items, auto&& step) {
    const double before = peak_megabytes();
    step();
    for (auto _ : state) step();
    state.counters["rss_before_mb"] = before;
    state.counters["peak_rss_mb"] = peak_megabytes();
    state.SetItemsProcessed(state.iterations() * items);
    state.SetLabel(label);
}

void train(benchmark::State& state, const std::string& label, Kind kind, std::int64_t segments, std::int64_t length,
           std::int64_t dim, std::int64_t vocab, const TrimeOptions& options) {
    at::set_num_threads(1);
    const Case problem(kind, segments, length, dim, vocab);
    measure(state, label, segments * length, [&] { problem.step(options); });
}

// What a search found, as it is handed on: random entries with falling scores.
struct Found {
    mnemo::Hits hits;
    mnemo::Hits retrieve(const mnemo::MemoryStore auto& /*store*/, mnemo::Rows /*queries*/) const { return hits; }
};

void score(benchmark::State& state, const std::string& label, mnemo::index_t mem_size, mnemo::index_t k) {
    at::set_num_threads(1);
    constexpr std::int64_t window = 3072, scored = 512, dim = 1024, vocab = 8192;
    const Case words(Kind::local, 1, window, dim, vocab);
    const auto keys = [&](std::int64_t n) { return at::layer_norm(at::randn({n, dim}), {dim}); };
    TrimeScorer scorer(
        {words.output.words.detach(), {}, {}},
        {.temperature = 1.2, .mem_size = mem_size, .lambda = k > 0 ? 0.3 : 0.0, .interpolation_temperature = 10.5},
        dim);
    const at::Tensor tokens = words.batch.targets.view({window});
    TrimeWindow w{at::randn({window, dim}), keys(window),
                  tokens.roll(1),           tokens.narrow(0, window - scored, scored),
                  window - scored,          {}};
    for (mnemo::index_t left = mem_size; left > 0; left -= scored) scorer.score(w); // fills the memory
    mnemo::TokenStore<> store(dim);
    Found found;
    if (k > 0) {
        const at::Tensor stored = keys(4096), values = at::randint(4, vocab, {4096}, at::kInt);
        store.append(as_rows(stored), {values.data_ptr<std::int32_t>(), 4096});
        for (std::int64_t i = 0; i < scored; ++i) {
            for (mnemo::index_t j = 0; j < k; ++j)
                found.hits.push((i * 7 + j * 13) % 4096, 0.5f * dim - 0.03f * static_cast<float>(j));
            found.hits.end_row();
        }
    }
    measure(state, label, scored, [&] {
        const TrimeScores scores = k > 0 ? scorer.score(w, found, store) : scorer.score(w);
        benchmark::DoNotOptimize(scores.log_p.data_ptr<float>());
    });
}

void add(const std::string& name, Kind kind, std::int64_t segments, std::int64_t length, std::int64_t dim,
         std::int64_t vocab) {
    TrimeOptions plain, rounded;
    plain.plain = true, rounded.tiles.bfloat16 = true;
    const std::pair<const char*, TrimeOptions> variants[] = {{"", {}}, {"/bfloat16", rounded}, {"/plain", plain}};
    for (const auto& [variant, options] : variants) {
        const std::string full = "trime." + name + variant;
        benchmark::RegisterBenchmark(full.c_str(), train, full, kind, segments, length, dim, vocab, options)
            ->Unit(benchmark::kMillisecond)
            ->UseRealTime();
    }
}
void add(const std::string& name, mnemo::index_t mem_size, mnemo::index_t k) {
    benchmark::RegisterBenchmark(("trime." + name).c_str(), score, "trime." + name, mem_size, k)
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
    add("mt_T3072_top8", Kind::top_8, 96, 32, 512, 10152);
    add("eval_local", 0, 0);
    add("eval_long_12288", 12288, 0);
    add("eval_ext_combine_k1024", 0, 1024);
    benchmark::Initialize(&count, arguments);
    benchmark::RunSpecifiedBenchmarks();
}
