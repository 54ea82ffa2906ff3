// SPDX-License-Identifier: MIT
// Large-k retrieval, each case labelled with its name, on one shape at a time:
//
//   bench_retrieval [--keys keys.npy --queries queries.npy | --n N --d D --batch B] [--k K] [--metric l2|ip]
//                   [--threads T] [--lists L] [--recall R] [--vocab V] [--noise S] [Google Benchmark's own flags]
//
// Every search reports its recall against exact search, queries/s and, as flop/s, 2 n d batch whatever was skipped; the
// cases that end in _latency search for one query after the other and report percentiles of the milliseconds.
// benchmarks/retrieval.py runs many shapes beside a reference script. A retriever of your own joins in where it says
// so.
#include <mnemo/combine/interpolate.hpp>
#include <mnemo/io/npy.hpp>
#include <mnemo/retrieve/build_lists.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/retrieve/lists.hpp>
#include <mnemo/store/packed.hpp>
#include <mnemo/store/tokens.hpp>
#ifdef MNEMO_BENCH_FAISS
#include <mnemo/faiss/ivfpq_products.hpp>
#endif
#if __has_include(<hnswlib/hnswlib.h>)
#include <hnswlib/hnswlib.h>
#define MNEMO_BENCH_HNSWLIB 1
#endif

#include <benchmark/benchmark.h>

#include <chrono>
#include <functional>
#include <memory>
#include <random>
#include <string>

using namespace mnemo;

namespace {

struct Shape {
    std::string keys, queries, metric = "l2";
    index_t n = 100000, d = 256, batch = 512, k = 1024, threads = 1, lists = 1024, vocab = 32768;
    double recall = 0.98, noise = 0.6; // of keys around their cluster's centre, whose own is 1
};

// Clusters of Zipf sizes, a falling spectrum and a common offset, turned by random reflections: what keys from a
// language model look like. The last `batch` rows are queries.
Matrix rows_like_hidden_states(index_t rows, index_t d, float spread) {
    std::mt19937 gen(1);
    std::normal_distribution<float> normal;
    const index_t clusters = std::max<index_t>(64, rows / 256);
    std::vector<float> spectrum(static_cast<std::size_t>(d));
    std::vector<double> weights(static_cast<std::size_t>(clusters));
    for (std::size_t j = 0; j < spectrum.size(); ++j) spectrum[j] = std::pow(static_cast<float>(j + 1), -0.55f);
    for (std::size_t c = 0; c < weights.size(); ++c) weights[c] = 1.0 / static_cast<double>(c + 10);
    Matrix centres(clusters, d), out(rows, d), mirrors(8, d);
    for (index_t c = 0; c < clusters; ++c)
        for (std::size_t j = 0; j < spectrum.size(); ++j)
            centres[c][j] = spectrum[j] * (normal(gen) + (j == 0 ? 1.5f : 0.0f));
    for (float& x : mirrors.data) x = normal(gen);
    std::discrete_distribution<index_t> choose(weights.begin(), weights.end());
    for (index_t i = 0; i < rows; ++i) {
        const auto centre = centres[choose(gen)];
        const auto row = out[i];
        for (std::size_t j = 0; j < spectrum.size(); ++j) row[j] = centre[j] + spread * spectrum[j] * normal(gen);
        for (index_t m = 0; m < mirrors.rows; ++m) {
            float dot = 0, norm = 0;
            for (std::size_t j = 0; j < row.size(); ++j)
                dot += row[j] * mirrors[m][j], norm += mirrors[m][j] * mirrors[m][j];
            for (std::size_t j = 0; j < row.size(); ++j) row[j] -= 2 * dot / norm * mirrors[m][j];
        }
    }
    return out;
}

Matrix load(const std::string& path) {
    const Npy file = Npy::open(path);
    const auto rows = file.matrix<float>();
    Matrix out(rows.rows, rows.cols);
    for (index_t i = 0; i < rows.rows; ++i) std::copy_n(rows[i].begin(), rows.cols, out[i].begin());
    return out;
}

double seconds_of(auto&& work) {
    const auto start = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Google Benchmark runs each of these; the label is the case.
void add_case(const std::string& name, auto&& body) {
    benchmark::RegisterBenchmark(name.c_str(),
                                 [name, body](benchmark::State& state) {
                                     body(state);
                                     state.SetLabel(name);
                                 })
        ->Unit(benchmark::kMillisecond)
        ->UseRealTime();
}

template <class MetricT> struct Comparison {
    const Shape& shape;
    const TokenStore<>& store;
    Rows queries;
    std::shared_ptr<Hits> exact = std::make_shared<Hits>(); // found when first needed

    // `make` builds what the search needs, once, and returns a callable: Hits (Rows queries, Hits spare). Where another
    // search's hits are given, `same_ids` is the part of them that was found.
    void add(const std::string& name, double bytes_a_key, auto&& make, std::shared_ptr<Hits> other = {}) const {
        auto search = std::make_shared<std::function<Hits(Rows, Hits)>>();
        auto build_seconds = std::make_shared<double>(0);
        add_case(name, [=, *this](benchmark::State& state) {
            if (exact->rows() == 0) *exact = Exact<MetricT>{shape.k}.retrieve(store, queries);
            if (!*search) *build_seconds = seconds_of([&] { *search = make(); });
            Hits hits;
            for (auto _ : state) hits = (*search)(queries, std::move(hits));
            const auto rate = benchmark::Counter::kIsIterationInvariantRate;
            const auto rows = static_cast<double>(queries.rows), keys = static_cast<double>(store.size() * shape.d);
            state.SetItemsProcessed(state.iterations() * queries.rows);
            state.counters["flop/s"] = benchmark::Counter(2 * keys * rows, rate);
            state.counters["bytes/s"] = benchmark::Counter(bytes_a_key * static_cast<double>(store.size()), rate);
            state.counters["recall"] = compare(hits, *exact).recall;
            state.counters["bytes_a_key"] = bytes_a_key;
            state.counters["build_s"] = *build_seconds;
            if (other && other->rows() > 0) state.counters["same_ids"] = compare(hits, *other).recall;
            if (other && other->rows() == 0) *other = std::move(hits);
        });
        add_case(name + "_latency", [=, *this](benchmark::State& state) {
            if (!*search) *search = make();
            Hits hits = (*search)(queries.slice(0, 1), Hits{});
            std::vector<double> ms;
            for (auto _ : state)
                for (index_t q = 0; q < queries.rows; ++q)
                    ms.push_back(1000 * seconds_of([&] { hits = (*search)(queries.slice(q, 1), std::move(hits)); }));
            std::sort(ms.begin(), ms.end());
            const auto percentile = [&](double p) {
                return ms.empty() ? 0 : ms[static_cast<std::size_t>(p * static_cast<double>(ms.size() - 1))];
            };
            state.SetItemsProcessed(state.iterations() * queries.rows);
            for (const auto& [label, p] : {std::pair{"p50_ms", 0.5}, {"p95_ms", 0.95}, {"p99_ms", 0.99}})
                state.counters[label] = percentile(p);
        });
    }
    // Any retriever for this store.
    template <class R> void add_retriever(const std::string& name, double bytes_a_key, R retriever) const {
        add(name, bytes_a_key, [=, *this] {
            return
                [=, *this](Rows rows, Hits spare) { return retrieve_into(retriever, store, rows, std::move(spare)); };
        });
    }

    void add_all() const {
        const double width = static_cast<double>(shape.d);
        const Threads threads{shape.threads};
        // ---- A retriever of your own: a line like these, then `--benchmark_filter=mine`. ----
        // add_retriever("mine", 4 * width, Mine{...});
        add_retriever("exact", 4 * width, Exact<MetricT, Threads>{shape.k, threads});
        add("exact_half", 2 * width, [=, *this] {
            auto half_store = std::make_shared<TokenStore<half>>(shape.d);
            half_store->append(store.keys(), std::vector<std::int32_t>(static_cast<std::size_t>(store.size())));
            return [=, *this](Rows rows, Hits spare) {
                return Exact<MetricT, Threads>{shape.k, threads}.retrieve(*half_store, rows, std::move(spare));
            };
        });
        add("packed", PackedKeys<MetricT>(shape.d).bytes_a_key(), [=, *this] {
            auto packed = std::make_shared<Packed<TokenStore<>, MetricT>>(store);
            return [=, *this](Rows rows, Hits spare) {
                return Exact<MetricT, Threads>{shape.k, threads}.retrieve(*packed, rows, std::move(spare));
            };
        });
        add("packed_bfloat16", PackedKeys<MetricT>(shape.d, FilterFormat::bfloat16).bytes_a_key(), [=, *this] {
            auto packed = std::make_shared<Packed<TokenStore<>, MetricT>>(store, FilterFormat::bfloat16);
            return [=, *this](Rows rows, Hits spare) {
                return Exact<MetricT, Threads>{shape.k, threads}.retrieve(*packed, rows, std::move(spare));
            };
        });
        add_scan(FilterFormat::int8);
        add_scan(FilterFormat::bfloat16);
        add("lists_nprobe32", width + 16, [=, *this] { return lists(Probe::first_pass, 32); });
        for (const auto& [name, probe] : {std::pair{"lists_first_pass", Probe::first_pass},
                                          {"lists_rescored", Probe::rescored},
                                          {"lists_exact", Probe::exact}})
            add(name, width + 16, [=, probe = probe, *this] { return lists(probe); });
#ifdef MNEMO_BENCH_FAISS
        add_faiss("faiss_linked_flat", "Flat", 4 * width);
        add_faiss("faiss_linked_ivf_flat", "IVF" + std::to_string(shape.lists) + ",Flat", 4 * width + 8);
        if constexpr (MetricT::metric == Metric::l2) {
            // The same codes, searched by FAISS itself, by its tables in our order, and a batch at a time.
            const auto found = std::make_shared<Hits>();
            add(
                "faiss_linked_ivf_pq", 72,
                [=, *this] {
                    const FaissIndex index = quantised();
                    return [=, *this](Rows rows, Hits hits) {
                        const detail::OmpThreads omp(static_cast<int>(shape.threads));
                        hits.resize(rows.rows, shape.k);
                        index.index().search(rows.rows, rows.data, shape.k, hits.room_for_scores(0).data(),
                                             hits.room_for_ids(0).data());
                        for (index_t row = 0; row < rows.rows; ++row) {
                            const auto ids = hits.room_for_ids(row);
                            hits.set_size(row,
                                          std::count_if(ids.begin(), ids.end(), [](index_t id) { return id >= 0; }));
                        }
                        return hits;
                    };
                },
                found);
            add(
                "ivf_pq_tables", 72,
                [=, *this] {
                    FaissIndex index = quantised();
                    index.threads = static_cast<int>(shape.threads);
                    return [=, *this](Rows rows, Hits spare) { return index.retrieve(store, rows, std::move(spare)); };
                },
                found);
            add(
                "ivf_pq_products", 76,
                [=, *this] {
                    const IvfPqProducts<Threads> products(quantised(), {shape.threads});
                    return
                        [=, *this](Rows rows, Hits spare) { return products.retrieve(store, rows, std::move(spare)); };
                },
                found);
        }
#endif
#ifdef MNEMO_BENCH_HNSWLIB
        add_hnswlib();
#endif
    }

    // The first pass alone, nothing selected: what share of the machine's peak the kernels reach.
    void add_scan(FilterFormat format) const {
        add_case("scan_" + std::string(mnemo::name(format)), [=, *this](benchmark::State& state) {
#if MNEMO_X86
            PackedKeys<MetricT> packed(shape.d, format);
            packed.follow(store.keys());
            if (packed.rows() == 0) return state.SkipWithError("this machine has no instructions for the format");
            Arena arena;
            Filter<MetricT> filter(arena, queries.rows, shape.d);
            std::vector<Candidates> none(static_cast<std::size_t>(queries.rows));
            for (Candidates& c : none) c = Candidates::in(arena, 1, 1), c.threshold = std::numeric_limits<float>::max();
            filter.use(queries, format, packed.view().centre);
            for (auto _ : state) filter.scan(packed.view(), {}, 0, store.size(), none.data(), 1, [](index_t) {});
            state.SetItemsProcessed(state.iterations() * queries.rows);
            state.counters["flop/s"] =
                benchmark::Counter(2 * static_cast<double>(store.size() * shape.d * queries.rows),
                                   benchmark::Counter::kIsIterationInvariantRate);
#else
            state.SkipWithError("no first pass on this machine");
#endif
        });
    }

    // nprobe for the recall that was asked for, on the queries themselves.
    std::function<Hits(Rows, Hits)> lists(Probe probe, index_t nprobe = 0) const {
        static std::shared_ptr<const KeyLists> built; // one shape a run
        if (!built)
            built = std::make_shared<KeyLists>(ListsBuilder<MetricT>(store.keys(), {.lists = shape.lists}).build());
        Lists<MetricT, Threads> retriever{built->view(), shape.k, nprobe > 0 ? nprobe : 32, probe, {shape.threads}};
        if (probe != Probe::exact && nprobe == 0)
            retriever.nprobe =
                tune_nprobe(retriever, store, queries.slice(0, std::min<index_t>(queries.rows, 128)), shape.recall);
        return [=, *this](Rows rows, Hits spare) { return retriever.retrieve(store, rows, std::move(spare)); };
    }

#ifdef MNEMO_BENCH_HNSWLIB
    // hnswlib's graph, as wide a search as there are neighbours to find.
    void add_hnswlib() const {
        constexpr std::size_t links = 16, construction = 128;
        add("hnswlib", 4 * static_cast<double>(shape.d) + 8 * links, [=, *this] {
            using Space = hnswlib::SpaceInterface<float>;
            const auto d = static_cast<std::size_t>(shape.d);
            std::shared_ptr<Space> space;
            if (MetricT::metric == Metric::l2)
                space = std::make_shared<hnswlib::L2Space>(d);
            else
                space = std::make_shared<hnswlib::InnerProductSpace>(d);
            auto graph = std::make_shared<hnswlib::HierarchicalNSW<float>>(
                space.get(), static_cast<std::size_t>(store.size()), links, construction);
            for (index_t i = 0; i < store.size(); ++i)
                graph->addPoint(store.keys()[i].data(), static_cast<std::size_t>(i));
            graph->setEf(static_cast<std::size_t>(shape.k));
            return [=, *this](Rows rows, Hits hits) {
                hits.resize(rows.rows, std::min(shape.k, store.size()));
                for (index_t row = 0; row < rows.rows; ++row) {
                    auto found = graph->searchKnn(rows[row].data(), static_cast<std::size_t>(shape.k));
                    std::size_t at = found.size();
                    hits.set_size(row, static_cast<index_t>(at));
                    for (; !found.empty(); found.pop()) {
                        hits.room_for_ids(row)[--at] = static_cast<index_t>(found.top().second);
                        hits.room_for_scores(row)[at] = -found.top().first;
                    }
                }
                static_cast<void>(space); // the graph needs it
                return hits;
            };
        });
    }
#endif

#ifdef MNEMO_BENCH_FAISS
    FaissIndex quantised() const {
        static std::shared_ptr<FaissIndex> built; // one shape a run
        if (!built) {
            FaissBuild how;
            how.factory = FaissBuild::ivfpq(shape.lists, shape.d % 64 == 0 && shape.d >= 256 ? 64 : shape.d / 4, 8);
            how.training_rows = 40000;
            built = std::make_shared<FaissIndex>(FaissIndex::build(store, how));
            built->k = shape.k;
            built->set_nprobe(32);
        }
        return *built;
    }
    void add_faiss(const std::string& name, const std::string& factory, double bytes_a_key) const {
        add(name, bytes_a_key, [=, *this] {
            FaissBuild how;
            how.factory = factory;
            how.metric = MetricT::metric;
            auto index = std::make_shared<FaissIndex>(FaissIndex::build(store, how));
            index->k = shape.k;
            index->threads = static_cast<int>(shape.threads);
            if (factory != "Flat") index->set_nprobe(32);
            return [=, *this](Rows rows, Hits spare) { return index->retrieve(store, rows, std::move(spare)); };
        });
    }
#endif
};

// Reading, at the speed of the machine.
void read_bandwidth(benchmark::State& state) {
    const HugeVector<float> data(std::size_t{1} << 27, 1.0f);
    for (auto _ : state) benchmark::DoNotOptimize(detail::count_at_least(data.data(), data.size(), 2.0f));
    state.counters["bytes/s"] = benchmark::Counter(static_cast<double>(data.size() * sizeof(float)),
                                                   benchmark::Counter::kIsIterationInvariantRate);
}

// From hits to probabilities: of the targets alone, or of all tokens.
struct Tail {
    TokenStore<> store{1};
    Hits hits;
    Matrix queries, log_p;
    std::vector<std::int32_t> targets;
    std::vector<float> target_log_p;

    explicit Tail(const Shape& shape) : queries(shape.batch, 1) {
        std::mt19937 gen(1);
        std::vector<double> zipf(static_cast<std::size_t>(shape.vocab));
        for (std::size_t v = 0; v < zipf.size(); ++v) zipf[v] = 1.0 / static_cast<double>(v + 5);
        std::discrete_distribution<std::int32_t> token(zipf.begin(), zipf.end());
        std::vector<std::int32_t> values(static_cast<std::size_t>(shape.n));
        for (std::int32_t& v : values) v = token(gen);
        store.append(Matrix(shape.n, 1), values);
        std::uniform_real_distribution<float> distance(50, 100);
        for (index_t row = 0; row < shape.batch; ++row) {
            const auto first =
                static_cast<index_t>(gen() % static_cast<unsigned>(std::max<index_t>(shape.n - 4 * shape.k, 1)));
            for (index_t j = 0; j < shape.k; ++j)
                hits.push(
                    first + static_cast<index_t>(gen() % static_cast<unsigned>(std::min(4 * shape.k, shape.n - first))),
                    -distance(gen));
            hits.end_row();
            targets.push_back(store.value(hits.ids(row)[0]));
            target_log_p.push_back(-3);
        }
    }
};

} // namespace

int main(int count, char** arguments) {
    static Shape shape;
    std::vector<char*> left{arguments[0]};
    for (int i = 1; i < count; ++i) {
        const std::string flag = arguments[i];
        const auto is = [&](const char* name) { return flag == name && i + 1 < count; };
        if (is("--keys"))
            shape.keys = arguments[++i];
        else if (is("--queries"))
            shape.queries = arguments[++i];
        else if (is("--metric"))
            shape.metric = arguments[++i];
        else if (is("--n"))
            shape.n = std::stol(arguments[++i]);
        else if (is("--d"))
            shape.d = std::stol(arguments[++i]);
        else if (is("--batch"))
            shape.batch = std::stol(arguments[++i]);
        else if (is("--k"))
            shape.k = std::stol(arguments[++i]);
        else if (is("--threads"))
            shape.threads = std::stol(arguments[++i]);
        else if (is("--lists"))
            shape.lists = std::stol(arguments[++i]);
        else if (is("--vocab"))
            shape.vocab = std::stol(arguments[++i]);
        else if (is("--recall"))
            shape.recall = std::stod(arguments[++i]);
        else if (is("--noise"))
            shape.noise = std::stod(arguments[++i]);
        else
            left.push_back(arguments[i]);
    }
    static Matrix keys, queries;
    if (!shape.keys.empty()) {
        keys = load(shape.keys), queries = load(shape.queries);
        queries = [&] { // the first `batch`
            Matrix some(std::min(shape.batch, queries.rows), queries.cols);
            std::copy_n(queries.data.begin(), some.data.size(), some.data.begin());
            return some;
        }();
        shape.n = keys.rows, shape.d = keys.cols, shape.batch = queries.rows;
    } else {
        Matrix all = rows_like_hidden_states(shape.n + shape.batch, shape.d, static_cast<float>(shape.noise));
        keys = Matrix(shape.n, shape.d), queries = Matrix(shape.batch, shape.d);
        std::copy_n(all.data.begin(), keys.data.size(), keys.data.begin());
        std::copy_n(all[shape.n].begin(), queries.data.size(), queries.data.begin());
    }
    static TokenStore<> store(shape.d);
    store.append(keys, std::vector<std::int32_t>(static_cast<std::size_t>(shape.n)));
    keys = {};
    if (shape.metric == "ip")
        Comparison<InnerProduct>{shape, store, queries}.add_all();
    else
        Comparison<L2>{shape, store, queries}.add_all();
    add_case("read_bandwidth", read_bandwidth);

    static std::unique_ptr<Tail> tail;
    const auto add_tail = [&](const std::string& name, auto&& combine) {
        add_case(name, [combine](benchmark::State& state) {
            if (!tail) tail = std::make_unique<Tail>(shape);
            Arena scratch;
            const Interpolate<TokenVotes, Fixed, Threads> interpolate{{.temperature = 10}, {0.25f}, {shape.threads}};
            for (auto _ : state) {
                scratch.reset();
                combine(interpolate, Reading{Rows(tail->queries), tail->hits, tail->store, scratch});
            }
            state.SetItemsProcessed(state.iterations() * shape.batch);
        });
    };
    add_tail("tail_gold", [](const auto& interpolate, const auto& reading) {
        TargetLogProbs base{tail->targets, tail->target_log_p};
        interpolate.combine(base, reading);
    });
    add_tail("tail_dense", [](const auto& interpolate, const auto& reading) {
        if (tail->log_p.rows == 0) {
            tail->log_p = Matrix(shape.batch, shape.vocab);
            std::fill(tail->log_p.data.begin(), tail->log_p.data.end(), -std::log(static_cast<float>(shape.vocab)));
        }
        MutRows rows = tail->log_p;
        interpolate.combine(rows, reading);
    });

    int rest = static_cast<int>(left.size());
    benchmark::Initialize(&rest, left.data());
    if (benchmark::ReportUnrecognizedArguments(rest, left.data())) return 1;
    benchmark::RunSpecifiedBenchmarks();
}
