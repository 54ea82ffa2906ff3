// SPDX-License-Identifier: MIT
// kNN-LM's hot paths on the shapes of a reference script; each case is labelled with the name it has there, so that
// compare.py can put the two side by side. MNEMO_BENCHMARK_DIR keeps the data between runs (default: the system's
// temporary folder).
#include <mnemo/combine/interpolate.hpp>
#include <mnemo/faiss/index.hpp>
#include <mnemo/io/datastore.hpp>
#include <mnemo/kernels/score.hpp>
#include <mnemo/papers/knn_lm.hpp>
#include <mnemo/retrieve/build_lists.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/retrieve/lists.hpp>
#include <mnemo/retrieve/rescore.hpp>
#include <mnemo/store/tokens.hpp>
#include <mnemo/store/views.hpp>

#include <benchmark/benchmark.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <random>

using namespace mnemo;

namespace {

constexpr index_t kWidth = 1024, kHits = 1024;

/// Keys from a mixture of 128 Gaussians whose centres all seeds share, so that coarse lists stay balanced.
Matrix make_keys(index_t rows, unsigned seed) {
    static const Matrix centres = [] {
        std::mt19937 random(12345);
        std::normal_distribution<float> normal;
        Matrix m(128, kWidth);
        for (float& x : m.data) x = normal(random);
        return m;
    }();
    std::mt19937 random(seed);
    std::normal_distribution<float> noise(0, 0.6f);
    Matrix keys(rows, kWidth);
    for (index_t i = 0; i < rows; ++i) {
        const auto centre = centres[static_cast<index_t>(random() % 128)];
        for (std::size_t j = 0; j < centre.size(); ++j) keys[i][j] = centre[j] + noise(random);
    }
    return keys;
}
std::vector<std::int32_t> make_tokens(index_t n, std::int32_t vocab, unsigned seed) {
    std::mt19937 random(seed);
    std::uniform_int_distribution<std::int32_t> token(4, vocab - 1);
    std::vector<std::int32_t> out(static_cast<std::size_t>(n));
    for (auto& t : out) t = token(random);
    return out;
}
std::filesystem::path data_folder() {
    const char* wanted = std::getenv("MNEMO_BENCHMARK_DIR");
    const auto folder =
        (wanted ? std::filesystem::path(wanted) : std::filesystem::temp_directory_path()) / "mnemo_bench_knn_lm";
    std::filesystem::create_directories(folder);
    return folder;
}

/// A datastore on disk, made once; mapped.
std::shared_ptr<const Datastore> datastore(index_t rows, KeyType type) {
    static std::map<std::pair<index_t, KeyType>, std::shared_ptr<const Datastore>> open;
    auto& store = open[{rows, type}];
    if (store) return store;
    const std::string folder = (data_folder() / text("keys_", rows, "_", name(type))).string();
    if (!std::filesystem::exists(folder + "/complete")) {
        auto writer = DatastoreWriter::create(
            folder, {.host = {.key_dim = kWidth, .vocab_size = 30000}, .key_type = type, .overwrite = true});
        for (index_t first = 0; first < rows; first += 10000) {
            const index_t n = std::min<index_t>(10000, rows - first);
            writer.append(Rows(make_keys(n, 1000 + static_cast<unsigned>(first))),
                          make_tokens(n, 30000, static_cast<unsigned>(first)));
        }
        writer.close();
        std::filesystem::create_directory(folder + "/complete");
    }
    return store = std::make_shared<const Datastore>(Datastore::open(folder));
}

/// Hits at random places, as a search of a large datastore finds them.
Hits random_hits(index_t rows, index_t k, index_t entries, float spread) {
    std::mt19937 random(1);
    std::uniform_int_distribution<index_t> id(0, entries - 1);
    std::uniform_real_distribution<float> score(-spread, 0);
    Hits hits;
    for (index_t row = 0; row < rows; ++row) {
        for (index_t j = 0; j < k; ++j) hits.push(id(random), score(random));
        hits.end_row();
    }
    return hits;
}
/// Values without keys.
struct Values {
    using value_type = std::int32_t;
    std::vector<std::int32_t> tokens;
    index_t key_dim() const { return kWidth; }
    index_t size() const { return static_cast<index_t>(tokens.size()); }
    std::int32_t value(index_t id) const { return tokens[static_cast<std::size_t>(id)]; }
};
Matrix random_log_probs(index_t rows, index_t vocab) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    Matrix m(rows, vocab);
    for (float& x : m.data) x = normal(random);
    for (index_t i = 0; i < rows; ++i) log_softmax(m[i]);
    return m;
}
void count(benchmark::State& state, index_t items, const char* label) {
    state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations()) * items);
    state.SetLabel(label);
}

// ---- combining ----

void combine_targets(benchmark::State& state) {
    const index_t rows = 1024;
    const Values store{make_tokens(1000000, 267744, 1)};
    const Hits hits = random_hits(rows, kHits, store.size(), 60);
    std::vector<std::int32_t> targets;
    for (index_t row = 0; row < rows; ++row) targets.push_back(store.value(hits.ids(row)[0]));
    std::vector<float> log_p(static_cast<std::size_t>(rows));
    const Rows queries;
    Arena scratch;
    const Interpolate<TokenVotes> combiner;
    for (auto _ : state) {
        std::fill(log_p.begin(), log_p.end(), -3.0f);
        TargetLogProbs base{targets, log_p};
        combiner.combine(base, Reading{queries, hits, store, scratch});
        benchmark::DoNotOptimize(log_p.data());
    }
    count(state, rows, "prob_scatter_interpolate");
}
BENCHMARK(combine_targets)->Unit(benchmark::kMillisecond)->UseRealTime();

template <class Base> void combine_rows(benchmark::State& state, index_t vocab, const char* label) {
    const index_t rows = 64;
    const Values store{make_tokens(1000000, static_cast<std::int32_t>(vocab), 1)};
    const Hits hits = random_hits(rows, kHits, store.size(), 60);
    const Matrix fresh = random_log_probs(rows, vocab);
    Matrix work = fresh;
    const Rows queries;
    Arena scratch;
    const Interpolate<TokenVotes> combiner;
    for (auto _ : state) {
        state.PauseTiming();
        std::copy(fresh.data.begin(), fresh.data.end(), work.data.begin());
        scratch.reset();
        state.ResumeTiming();
        Base base{work};
        combiner.combine(base, Reading{queries, hits, store, scratch});
        benchmark::DoNotOptimize(work.data.data());
    }
    count(state, rows, label);
    state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations()) * rows * vocab * 8);
}
void combine_distributions(benchmark::State& state) {
    combine_rows<MutRows>(state, 267744, "full_distribution_interpolate");
}
BENCHMARK(combine_distributions)->Unit(benchmark::kMillisecond)->UseRealTime();
void combine_logits(benchmark::State& state) { combine_rows<Logits>(state, 50257, "logits in place, V = 50257"); }
BENCHMARK(combine_logits)->Unit(benchmark::kMillisecond)->UseRealTime();

// ---- exact scores of what was found ----

void recompute(benchmark::State& state, KeyType type, const char* label) {
    const index_t rows = 16, entries = 60000;
    const auto store = datastore(entries, type);
    const Hits hits = random_hits(rows, kHits, entries, 60);
    const Matrix queries = make_keys(rows, 5);
    std::vector<float> scores(static_cast<std::size_t>(kHits));
    for (auto _ : state)
        for (index_t row = 0; row < rows; ++row) {
            score_ids<L2>(queries[row], store->keys(), hits.ids(row), scores);
            benchmark::DoNotOptimize(scores.data());
        }
    count(state, rows, label);
    state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations()) * rows * kHits * kWidth * size_of(type));
}
BENCHMARK_CAPTURE(recompute, float32, KeyType::float32, "distance_recompute_float32")
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK_CAPTURE(recompute, float16, KeyType::float16, "distance_recompute_float16")
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

/// The scores above, then the targets' probabilities.
void recompute_and_combine(benchmark::State& state) {
    const index_t rows = 16, entries = 60000;
    const auto store = datastore(entries, KeyType::float16);
    const Matrix queries = make_keys(rows, 5);
    struct Found {
        const Hits* hits;
        Hits retrieve(const Datastore&, Rows) const { return *hits; }
    };
    const Hits hits = random_hits(rows, kHits, entries, 60);
    const KnnLm<std::shared_ptr<const Datastore>, Rescored<Found, L2>> memory({}, store, {{&hits}, {}}, {});
    std::vector<std::int32_t> targets = make_tokens(rows, 30000, 4);
    std::vector<float> log_p(static_cast<std::size_t>(rows));
    Session<const decltype(memory), Rows> session(memory);
    for (auto _ : state) {
        std::fill(log_p.begin(), log_p.end(), -3.0f);
        session.read(queries, TargetLogProbs{targets, log_p});
        benchmark::DoNotOptimize(log_p.data());
    }
    count(state, rows, "recompute and combine, float16");
}
BENCHMARK(recompute_and_combine)->Unit(benchmark::kMillisecond)->UseRealTime();

// ---- evaluation: search, exact scores or the index's own, probabilities; 64 tokens in batches of 16 ----

constexpr index_t kEntries = 100000; // to evaluate with

template <class StoreT, class R>
void evaluate_text(benchmark::State& state, const StoreT& store, const R& retriever, const char* label,
                   index_t batch = 16) {
    const index_t rows = 64;
    const KnnLm<StoreT, R> memory({}, store, retriever, {});
    const Matrix queries = make_keys(rows, 78);
    const auto targets = make_tokens(rows, 30000, 79);
    std::vector<float> log_p(static_cast<std::size_t>(rows));
    Session<const KnnLm<StoreT, R>, Rows> session(memory);
    for (auto _ : state) {
        std::fill(log_p.begin(), log_p.end(), -3.0f);
        for (index_t first = 0; first < rows; first += batch)
            session.read(Rows(queries).slice(first, batch),
                         TargetLogProbs{std::span(targets).subspan(static_cast<std::size_t>(first), batch),
                                        std::span(log_p).subspan(static_cast<std::size_t>(first), batch)});
        benchmark::DoNotOptimize(log_p.data());
    }
    count(state, rows, label);
}
FaissIndex index_to_evaluate(const Datastore& store) {
    const std::string file = (data_folder() / text("ivf128_pq64_", kEntries, ".index")).string();
    FaissIndex index = FaissIndex::build(
        store, {.factory = FaissBuild::ivfpq(128, 64, 8), .training_rows = 12000, .threads = 1}, file);
    index.k = kHits;
    index.threads = 1;
    index.set_nprobe(32);
    return index;
}
void evaluate_recompute(benchmark::State& state) {
    const auto store = datastore(kEntries, KeyType::float16);
    evaluate_text(state, store, Rescored<FaissIndex, L2>{index_to_evaluate(*store), {}}, "eval_recompute");
}
BENCHMARK(evaluate_recompute)->Unit(benchmark::kMillisecond)->UseRealTime();
void evaluate_as_found(benchmark::State& state) {
    const auto store = datastore(kEntries, KeyType::float16);
    evaluate_text(state, store, index_to_evaluate(*store), "eval_do_not_recomp_l2");
}
BENCHMARK(evaluate_as_found)->Unit(benchmark::kMillisecond)->UseRealTime();
// The same with retrievers of ours, whose distances are exact as well: another line each.
void evaluate_exact(benchmark::State& state) {
    const auto store = datastore(kEntries, KeyType::float16);
    PackedKeys<L2> packed(store->key_dim());
    packed.follow(store->keys());
    evaluate_text(state, WithPacked<Datastore>(*store, packed.view()), Exact<L2>{kHits}, "eval_recompute",
                  state.range(0));
}
BENCHMARK(evaluate_exact)->Arg(16)->Arg(64)->Unit(benchmark::kMillisecond)->UseRealTime();
void evaluate_lists(benchmark::State& state) {
    const auto store = datastore(kEntries, KeyType::float16);
    static const KeyLists lists = [&] {
        ListsBuilder<L2> builder(store->keys(), {.lists = 128});
        while (builder.step()) {
        }
        return builder.pack();
    }();
    evaluate_text(state, store, Lists<L2>{lists.view(), kHits, 32}, "eval_recompute");
}
BENCHMARK(evaluate_lists)->Unit(benchmark::kMillisecond)->UseRealTime();

} // namespace

BENCHMARK_MAIN();
