// SPDX-License-Identifier: MIT
// What a memory over several processes costs, and the model of docs/dist.md beside it. The constants of the model are
// measured on two ranks (and the network's on as many as there are); everything else is predicted from them. It starts
// its ranks itself, on the loopback, or is one of them where RANK is set.
//
//     bench_dist [ranks=1,2,3,4,8] [queries=1,64,512] [k=64,1024] [rows=1000000] [dim=1024] [steps=5] [search=1]
//                [store=0] [keep=1]
//
// queries: of all ranks together. rows: of all ranks. steps: rounds, of which the median counts. search=0: the exchange
// alone, of hits that are ready, without keys. store=1: through the store instead of Gloo. keep=0: freed memory goes
// back to the system, as glibc's malloc has it unless told otherwise. The constants that it prints may be given as
// further arguments: then they are not measured.
#include <mnemo/dist/sharded.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/store/tokens.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <malloc.h>
#include <map>
#include <sstream>
#include <string>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

using namespace mnemo;
using namespace mnemo::nn;

namespace {

std::map<std::string, double> settings = {{"rows", 1e6}, {"dim", 1024}, {"steps", 5},
                                          {"search", 1}, {"store", 0},  {"keep", 1}};
index_t get(const char* name) { return static_cast<index_t>(settings.at(name)); }

struct Shape {
    index_t queries, k; // queries of all ranks
};
std::vector<Shape> shapes;

// A shard without keys, and a retriever that finds its entries without looking: what remains is the exchange.
struct NoKeys {
    using value_type = std::int32_t;
    index_t d, entries;
    index_t key_dim() const { return d; }
    index_t size() const { return entries; }
    std::int32_t value(index_t id) const { return static_cast<std::int32_t>(id % 50000); }
};
struct Ready {
    index_t k;
    Hits retrieve(const NoKeys& shard, Rows queries) const {
        const index_t n = std::min(k, shard.entries);
        Hits hits;
        hits.resize(queries.rows, n);
        for (index_t q = 0; q < queries.rows; ++q) {
            const auto ids = hits.room_for_ids(q);
            const auto scores = hits.room_for_scores(q);
            for (index_t i = 0; i < n; ++i) {
                ids[static_cast<std::size_t>(i)] = (q * n + i) * 7919 % shard.entries; // no two of a rank's alike
                scores[static_cast<std::size_t>(i)] = -static_cast<float>(i);
            }
            hits.set_size(q, n);
        }
        return hits;
    }
};

Matrix random_rows(index_t rows, index_t cols, std::uint64_t seed) {
    Matrix m(rows, cols);
    for (float& x : m.data) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        x = static_cast<float>(static_cast<std::int32_t>(seed >> 32)) * 0x1p-31f;
    }
    return m;
}

double median(std::vector<double> of) {
    const auto middle = of.begin() + static_cast<std::ptrdiff_t>(of.size() / 2);
    std::nth_element(of.begin(), middle, of.end());
    return *middle;
}
double seconds_of(auto&& work) {
    const auto start = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}
// Processor time of this thread, in the median of `steps`: what other programs do meanwhile does not count. `times`:
// calls a step, which all ranks must have alike where they call one another; 0: as many as take 20 ms.
double processor_seconds(auto&& work, int times = 0) {
    const auto now = [] {
        timespec t{};
        ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
        return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
    };
    work();
    const double begin = now();
    work();
    if (times == 0) times = static_cast<int>(std::clamp(0.02 / (now() - begin), 1.0, 200.0));
    std::vector<double> rounds;
    for (index_t i = 0; i < get("steps"); ++i) {
        const double start = now();
        for (int t = 0; t < times; ++t) work();
        rounds.push_back((now() - start) / times);
    }
    return median(rounds);
}
double slowest(Ranks& ranks, double mine) {
    double most = 0;
    for (const at::Tensor& t : ranks.gather(at::full({1}, mine, at::kDouble))) most = std::max(most, t.item<double>());
    return most;
}
// The slowest rank's seconds for a call that all make together, one after the other for 20 ms; the median of `steps`.
double timed(Ranks& ranks, auto&& work) {
    work();
    const double once = slowest(ranks, seconds_of(work));
    const auto times = static_cast<int>(std::clamp(0.02 / once, 1.0, 200.0));
    std::vector<double> rounds;
    for (index_t i = 0; i < get("steps"); ++i)
        rounds.push_back(slowest(ranks, seconds_of([&] {
                                     for (int t = 0; t < times; ++t) work();
                                 })) /
                         times);
    return median(rounds);
}

// ---- The model ----

struct Network {
    double round = 0, bandwidth = 0; // seconds of a round that moves next to nothing; bytes a second into each rank
};
// What a rank does alone: nanoseconds for a call, a number of a query, a hit that is packed, one that is merged (from
// one list, and more for each doubling of their number), a value that is fetched.
const char* const work_names[] = {"call_ns", "query_ns", "pack_ns", "merge_ns", "merge_log_ns", "fetch_ns"};
std::string search_name(Shape s) { return text("search_", s.queries, "_", s.k); } // keys x queries x width, a second

// Ranks that share a core take turns.
double crowd(int world) { return std::max(1.0, static_cast<double>(world) / std::thread::hardware_concurrency()); }
struct Prediction {
    double bytes = 0, exchange = 0, search = 0; // bytes into a rank, seconds
};
Prediction predict(int world, Shape s, const Network& net) {
    const auto n = static_cast<double>(get("rows")), d = static_cast<double>(get("dim")), r = double(world);
    const double all = static_cast<double>(s.queries), own = std::ceil(all / r), k = static_cast<double>(s.k);
    const double width = std::min(k, n / r), found = std::min(k, n), fetched = own * found * (r - 1) / r;
    const double pieces = std::ceil(own / std::max(std::floor(1024 / r), 1.0));
    const auto of = [](const char* name) { return settings.at(name) * 1e-9; };
    Prediction p;
    p.bytes = own * (r - 1) * (4 * d + 8 * width + 4) + 8 * fetched;
    p.exchange =
        crowd(world) * (of("call_ns") + all * d * of("query_ns") + all * width * of("pack_ns") +
                        own * found * (of("merge_ns") + of("merge_log_ns") * std::log2(r)) + fetched * of("fetch_ns"));
    if (world > 1) p.exchange += (4 + 2 * pieces) * net.round + p.bytes / net.bandwidth;
    if (get("search") != 0) p.search = crowd(world) * n / r * all * d / settings.at(search_name(s));
    return p;
}

// ---- What is measured ----

index_t share(index_t n, const Ranks& ranks) {
    return n * (ranks.rank() + 1) / ranks.size() - n * ranks.rank() / ranks.size();
}
// The engine alone: a round as the retrieval begins with, and one of a MiB for each pair.
Network measure_network(Ranks& ranks) {
    if (ranks.size() == 1) return {};
    const auto n = static_cast<std::size_t>(ranks.size());
    const at::Tensor row = at::zeros({1, 12}, at::kLong), bytes = at::zeros({ranks.size() << 20}, at::kByte);
    const std::vector<std::int64_t> ones(n, 1), much(n, std::int64_t{1} << 20);
    Network net;
    net.round = timed(ranks, [&] { ranks.gather(row, ones); });
    const double full = timed(ranks, [&] { ranks.all_to_all(bytes, much, much); });
    net.bandwidth = static_cast<double>(ranks.size() - 1) * 0x1p20 / std::max(full - net.round, 1e-9);
    return net;
}
double measure_exchange(const std::shared_ptr<Ranks>& ranks, Shape s) {
    const ShardedStore<NoKeys> store(ranks, NoKeys{get("dim"), share(get("rows"), *ranks)});
    const Matrix queries = random_rows(share(s.queries, *ranks), get("dim"), 5);
    const Sharded<Ready> sharded{{s.k}};
    Hits hits;
    const auto retrieve = [&] { hits = sharded.retrieve(store, queries, std::move(hits)); };
    return ranks->size() == 1 ? processor_seconds(retrieve) : timed(*ranks, retrieve);
}
TokenStore<half> random_store(const Ranks& ranks) {
    TokenStore<half> shard(get("dim"));
    const index_t rows = share(get("rows"), ranks);
    shard.reserve(rows);
    for (index_t at = 0; at < rows; at += 4096) {
        const index_t count = std::min<index_t>(4096, rows - at);
        const std::vector<std::int32_t> tokens(static_cast<std::size_t>(count), 7);
        shard.append(random_rows(count, get("dim"), static_cast<std::uint64_t>(ranks.rank() * get("rows") + at)),
                     tokens);
    }
    return shard;
}
// Nanoseconds a hit to merge what `lists` ranks have found for 512 / lists queries.
double measure_merge(index_t lists, index_t k) {
    using namespace mnemo::nn::detail;
    const index_t queries = 512 / lists;
    std::vector<std::vector<std::uint8_t>> messages;
    std::vector<HitsOnWire> answers;
    for (index_t r = 0; r < lists; ++r) {
        messages.emplace_back(static_cast<std::size_t>(HitsOnWire::bytes(queries, k)));
        answers.emplace_back(messages.back().data(), queries, k);
        for (index_t q = 0; q < queries; ++q) {
            answers.back().set_size(q, k);
            for (index_t i = 0; i < k; ++i) answers.back().set(q, i, -static_cast<float>(i), i);
        }
    }
    Hits hits;
    hits.resize(queries, k);
    const double seconds = processor_seconds([&] {
        MergeHits merge;
        std::vector<MergeHits::List> from;
        for (index_t q = 0; q < queries; ++q) {
            from.clear();
            for (index_t r = 0; r < lists; ++r) from.push_back({&answers[static_cast<std::size_t>(r)], q, r * 1000000});
            const auto ids = hits.room_for_ids(q);
            const auto scores = hits.room_for_scores(q);
            merge(from, k, [&](index_t i, index_t id, float score, std::size_t, index_t) {
                ids[static_cast<std::size_t>(i)] = id, scores[static_cast<std::size_t>(i)] = score;
            });
        }
    });
    return 1e9 * seconds / static_cast<double>(queries * k);
}

using Numbers = std::map<std::string, double>;

// On two ranks, both at once: what a rank does alone, by means of a store of its own, and the rate of a search.
Numbers measure_constants(const RanksOptions& options) {
    const auto ranks = std::make_shared<Ranks>(options), alone = std::make_shared<Ranks>(RanksOptions{});
    const index_t d = get("dim"), queries = 512, k = 1024;
    const double numbers = static_cast<double>(queries * d), hits = static_cast<double>(queries * k);
    Numbers out;
    // A straight line through what one, two, four and eight lists take.
    double mean = 0, slope = 0;
    for (int log = 0; log < 4; ++log) {
        const double ns = measure_merge(index_t{1} << log, k);
        mean += ns / 4, slope += ns * (log - 1.5) / 5;
    }
    out["merge_log_ns"] = slope, out["merge_ns"] = mean - 1.5 * slope;
    const double one = measure_exchange(alone, {1, 1}), few = measure_exchange(alone, {queries, 1}),
                 many = measure_exchange(alone, {queries, k});
    out["call_ns"] = 1e9 * one;
    out["query_ns"] = 1e9 * (few - one) / numbers;
    out["pack_ns"] = 1e9 * (many - few) / hits - out["merge_ns"];
    {
        const ShardedStore<NoKeys> store(ranks, NoKeys{d, share(get("rows"), *ranks)});
        const Matrix own = random_rows(queries / 2, d, 5);
        const Hits found = Sharded<Ready>{{k}}.retrieve(store, own);
        out["fetch_ns"] = 1e9 * processor_seconds([&] { store.fetch(found); }, 3) / (hits / 4);
    }
    if (get("search") != 0) {
        const TokenStore<half> shard = random_store(*ranks);
        for (const Shape s : shapes) {
            const Matrix all = random_rows(s.queries, d, 9);
            const Exact<L2> exact{.k = s.k};
            Hits found;
            const double search = processor_seconds([&] { found = exact.retrieve(shard, all, std::move(found)); });
            out[search_name(s)] = static_cast<double>(shard.size() * s.queries * d) / search;
        }
    }
    return out;
}

// The network, and every shape: its exchange, its step.
Numbers measure(const RanksOptions& options) {
    const auto ranks = std::make_shared<Ranks>(options);
    Numbers out;
    for (std::size_t i = 0; i < shapes.size(); ++i) { // the network changes with what else runs: measured each time
        const Network net = measure_network(*ranks);
        out[text("round ", i)] = net.round, out[text("bandwidth ", i)] = net.bandwidth;
        out[text("exchange ", i)] = measure_exchange(ranks, shapes[i]);
    }
    if (get("search") == 0) return out;
    const ShardedStore<TokenStore<half>> store(ranks, random_store(*ranks));
    for (std::size_t i = 0; i < shapes.size(); ++i) {
        const Sharded<Exact<L2>> sharded{{.k = shapes[i].k}};
        const Matrix queries = random_rows(share(shapes[i].queries, *ranks), get("dim"), 9);
        Hits hits;
        out[text("step ", i)] = timed(*ranks, [&] { hits = sharded.retrieve(store, queries, std::move(hits)); });
    }
    return out;
}

// The same on `world` processes of its own: what rank 0 has measured.
Numbers start(int world, Numbers (*work)(const RanksOptions&)) {
    RanksOptions options;
    options.world = world, options.port = 29600 + world + static_cast<int>(::getpid() % 1000);
    options.through_store = options.through_store || get("store") != 0;
    int ends[2];
    if (::pipe(ends) != 0) fail("pipe");
    std::fflush(nullptr);
    std::vector<pid_t> children;
    for (options.rank = 0; options.rank < world; ++options.rank) {
        children.push_back(::fork());
        if (children.back() != 0) continue;
        try {
            std::string lines;
            for (const auto& [name, value] : work(options)) {
                char number[40];
                std::snprintf(number, sizeof number, "%.17g", value);
                lines += name + "\t" + number + "\n";
            }
            if (options.rank == 0 && ::write(ends[1], lines.data(), lines.size()) != static_cast<ssize_t>(lines.size()))
                fail("pipe");
            std::_Exit(0);
        } catch (const std::exception& e) {
            std::fprintf(stderr, "rank %d of %d: %s\n", options.rank, world, e.what());
            std::_Exit(1);
        }
    }
    ::close(ends[1]);
    std::string lines;
    char buffer[4096];
    for (ssize_t n; (n = ::read(ends[0], buffer, sizeof buffer)) > 0;)
        lines.append(buffer, static_cast<std::size_t>(n));
    ::close(ends[0]);
    bool well = true;
    for (const pid_t child : children) {
        int status = 0;
        ::waitpid(child, &status, 0);
        well = well && status == 0;
    }
    if (!well) fail("a rank of ", world, " failed");
    Numbers out;
    std::istringstream in(lines);
    for (std::string line; std::getline(in, line);)
        out[line.substr(0, line.find('\t'))] = std::stod(line.substr(line.find('\t') + 1));
    return out;
}

// ---- What is printed ----

struct Errors {
    int all = 0, large = 0;
    double most = 0; // as a factor
    std::string add(double predicted, double measured) {
        const double factor = predicted / measured;
        ++all, large += factor > 1.2 || factor < 0.8;
        if (std::abs(std::log(factor)) > std::abs(std::log(std::max(most, 1e-9))) || all == 1) most = factor;
        char out[32];
        std::snprintf(out, sizeof out, "%.2f", factor);
        return out;
    }
    void print(const char* what) const {
        std::printf("%s: %d of %d predictions are off by more than 20 %%; the worst is %.2f of what was measured\n",
                    what, large, all, most);
    }
};

void print_header() {
    std::printf("| ranks | queries | k | MB into a rank | exchange, ms | predicted | predicted / measured |%s\n",
                get("search") != 0 ? " step, ms | predicted | predicted / measured | exchange of step |" : "");
    std::printf("|--:|--:|--:|--:|--:|--:|--:|%s\n", get("search") != 0 ? "--:|--:|--:|--:|" : "");
}
void print(int world, const Numbers& measured, Errors& exchanges, Errors& steps) {
    for (std::size_t i = 0; i < shapes.size(); ++i) {
        const Network net{measured.at(text("round ", i)), measured.at(text("bandwidth ", i))};
        const Prediction p = predict(world, shapes[i], net);
        const double exchange = measured.at(text("exchange ", i));
        std::printf("| %d | %lld | %lld | %.3g | %.3g | %.3g | %s |", world, static_cast<long long>(shapes[i].queries),
                    static_cast<long long>(shapes[i].k), p.bytes / 1e6, 1e3 * exchange, 1e3 * p.exchange,
                    exchanges.add(p.exchange, exchange).c_str());
        if (get("search") != 0) {
            const double step = measured.at(text("step ", i)), whole = p.exchange + p.search;
            std::printf(" %.3g | %.3g | %s | %.2g %% |", 1e3 * step, 1e3 * whole, steps.add(whole, step).c_str(),
                        100 * exchange / step);
        }
        std::printf("\n");
    }
    std::fflush(stdout);
}

} // namespace

int main(int count, char** arguments) {
    std::map<std::string, std::vector<index_t>> lists = {
        {"ranks", {1, 2, 3, 4, 8}}, {"queries", {1, 64, 512}}, {"k", {64, 1024}}};
    try {
        Numbers given;
        for (int i = 1; i < count; ++i) {
            const std::string argument = arguments[i], name = argument.substr(0, argument.find('='));
            if (name.size() == argument.size()) fail("expected name=number, got ", argument);
            const std::string value = argument.substr(name.size() + 1);
            const bool constant = name.starts_with("search_") || name.ends_with("_ns");
            if (const auto list = lists.find(name); list != lists.end()) {
                list->second.clear();
                std::istringstream in(value);
                for (std::string one; std::getline(in, one, ',');) list->second.push_back(std::stol(one));
            } else if (settings.count(name) == 1 || constant) {
                (constant ? given : settings)[name] = std::stod(value);
            } else {
                fail("expected a name that is known, got ", argument);
            }
        }
        if (get("keep") != 0) {
            ::mallopt(M_MMAP_THRESHOLD, 32 << 20);
            ::mallopt(M_TRIM_THRESHOLD, 1 << 30);
        }
        for (const index_t queries : lists["queries"])
            for (const index_t k : lists["k"]) shapes.push_back({queries, std::min(k, get("rows"))});
        const RanksOptions options = RanksOptions::from_environment(); // somebody else has started this as one of many
        if (options.rank == 0) {
            bool all = get("search") == 0 || std::all_of(shapes.begin(), shapes.end(),
                                                         [&](Shape s) { return given.count(search_name(s)) == 1; });
            for (const char* name : work_names) all = all && given.count(name) == 1;
            if (!all) given = start(2, measure_constants);
            std::printf("constants:");
            for (const auto& [name, value] : given) std::printf(" %s=%.3g", name.c_str(), settings[name] = value);
            std::printf("\n\n");
        }
        Errors exchanges, steps;
        std::string networks;
        const auto report = [&](int world, const Numbers& measured) {
            print(world, measured, exchanges, steps);
            std::vector<double> rounds, bandwidths;
            for (std::size_t i = 0; i < shapes.size(); ++i) {
                rounds.push_back(measured.at(text("round ", i)));
                bandwidths.push_back(measured.at(text("bandwidth ", i)));
            }
            char line[128];
            std::snprintf(line, sizeof line, "%d ranks: a round %.3g us, %.3g GB/s into each\n", world,
                          1e6 * median(rounds), 1e-9 * median(bandwidths));
            if (world > 1) networks += line;
        };
        if (options.rank == 0) print_header();
        if (options.world > 1) {
            const Numbers measured = measure(options);
            if (options.rank != 0) return 0;
            report(options.world, measured);
        } else {
            for (const index_t world : lists["ranks"])
                report(static_cast<int>(world), start(static_cast<int>(world), measure));
        }
        std::printf("\n%s", networks.c_str());
        exchanges.print("exchange");
        if (get("search") != 0) steps.print("step");
    } catch (const std::exception& e) {
        std::fprintf(stderr, "%s\n", e.what());
        return 1;
    }
    return 0;
}
