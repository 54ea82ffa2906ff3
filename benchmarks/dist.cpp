// SPDX-License-Identifier: MIT
// What a memory over several processes costs: the step, the part of it that is exchange, one query's latency, and the
// model of docs/dist.md beside them. It starts its ranks itself, on the loopback, or is one of them where RANK is set.
//
//     bench_dist [ranks=1,2,4] [rows=1000000] [dim=1024] [batch=512] [k=1024] [steps=3] [search=1] [store=0] [hit_ns=0]
//
// batch: queries of all ranks together. search=0: the exchange alone, of hits that are ready, without keys. store=1:
// through the store instead of Gloo. hit_ns: what a hit costs in nanoseconds, measured on one rank where it is 0.
#include <mnemo/dist/sharded.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/store/tokens.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <string_view>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

using namespace mnemo;
using namespace mnemo::nn;

namespace {

std::map<std::string, double> settings = {{"rows", 1e6}, {"dim", 1024}, {"batch", 512}, {"k", 1024},
                                          {"steps", 3},  {"search", 1}, {"store", 0},   {"hit_ns", 0}};
index_t get(const char* name) { return static_cast<index_t>(settings.at(name)); }

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
                ids[static_cast<std::size_t>(i)] = (i * 127 + q * 31 + 7) % shard.entries;
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

// The slowest rank's mean seconds of `times` calls that all begin together, after one to warm up.
double timed(Ranks& ranks, index_t times, auto&& work) {
    work();
    ranks.gather(at::zeros({1}));
    const auto start = std::chrono::steady_clock::now();
    for (index_t i = 0; i < times; ++i) work();
    const std::chrono::duration<double> mine = std::chrono::steady_clock::now() - start;
    double most = 0;
    for (const at::Tensor& t : ranks.gather(at::full({1}, mine.count() / static_cast<double>(times), at::kDouble)))
        most = std::max(most, t.item<double>());
    return most;
}

// One configuration, on rank `options.rank` of it; returns the nanoseconds that a hit costs.
double measure(const RanksOptions& options) {
    const auto ranks = std::make_shared<Ranks>(options);
    const index_t world = options.world, d = get("dim"), batch = get("batch"), rows = get("rows"), steps = get("steps");
    const index_t k = std::min(get("k"), rows);
    const auto share = [&](index_t n) { return n * (options.rank + 1) / world - n * options.rank / world; };
    const Matrix queries = random_rows(share(batch), d, static_cast<std::uint64_t>(-1 - options.rank)),
                 one = random_rows(options.rank == 0 ? 1 : 0, d, 5);

    // The constants, of the engine alone: a round of nothing, and one of a MiB for each pair.
    const auto n = static_cast<std::size_t>(world);
    const std::vector<std::int64_t> nothing(n, 0), much(n, std::int64_t{1} << 20);
    const at::Tensor none = at::empty({0}, at::kByte), bytes = at::zeros({world << 20}, at::kByte);
    const double round = timed(*ranks, 30, [&] { ranks->all_to_all(none, nothing, nothing); });
    const double full = timed(*ranks, 10, [&] { ranks->all_to_all(bytes, much, much); });
    const double others = static_cast<double>(world - 1);
    const double bandwidth = others * 0x1p20 / std::max(full - round, 1e-9);

    double exchange = 0, exchange_one = 0;
    {
        const ShardedStore<NoKeys> store(ranks, NoKeys{d, share(rows)});
        const Sharded<Ready> sharded{{k}};
        exchange = timed(*ranks, 3 * steps, [&] { sharded.retrieve(store, queries); });
        exchange_one = timed(*ranks, 10 * steps, [&] { sharded.retrieve(store, one); });
    }
    double step = 0, latency = 0, search = 0, search_one = 0;
    if (get("search") != 0) {
        TokenStore<half> shard(d);
        shard.reserve(share(rows));
        for (index_t at = 0; at < share(rows); at += 4096) {
            const index_t count = std::min<index_t>(4096, share(rows) - at);
            const std::vector<std::int32_t> tokens(static_cast<std::size_t>(count), 7);
            shard.append(random_rows(count, d, static_cast<std::uint64_t>(options.rank * rows + at)), tokens);
        }
        const ShardedStore<TokenStore<half>> store(ranks, std::move(shard));
        const Sharded<Exact<L2>> sharded{{.k = k}};
        const Matrix all = random_rows(batch, d, 9), single = random_rows(1, d, 5); // what a rank searches in a step
        search = timed(*ranks, steps, [&] { sharded.inner.retrieve(store.shard().part(0), all); });
        search_one = timed(*ranks, steps, [&] { sharded.inner.retrieve(store.shard().part(0), single); });
        step = timed(*ranks, steps, [&] { sharded.retrieve(store, queries); });
        latency = timed(*ranks, steps, [&] { sharded.retrieve(store, one); });
    }

    // The model. Each rank packs the hits of its shard for all queries and merges those of all shards for its own.
    const double own = static_cast<double>(batch) / static_cast<double>(world);
    const double width = static_cast<double>(std::min(k, rows / world)), found = static_cast<double>(k);
    const double in = own * others * (4 * static_cast<double>(d) + 8 * width + 4) +
                      own * found * others / static_cast<double>(world) * (4 + 4);
    const double cores = std::thread::hardware_concurrency(), crowd = std::max(1.0, static_cast<double>(world) / cores);
    const double of_a_rank = static_cast<double>(std::max<index_t>(1024 / world, 1));
    const double pieces = std::ceil(own / of_a_rank), hits = static_cast<double>(batch) * width;
    const double hit_ns = settings["hit_ns"] > 0 ? settings["hit_ns"] : 1e9 * exchange / hits;
    const double rounds = world == 1 ? 0 : (4 + 2 * pieces) * round, moved = world == 1 ? 0 : in / bandwidth;
    const double modelled = rounds + moved + crowd * hits * hit_ns / 1e9;
    if (options.rank == 0) {
        std::printf("| %lld | %.0f | %.2f | %.2f | %.1f | %.1f | %.2f |", static_cast<long long>(world), 1e6 * round,
                    world == 1 ? 0.0 : bandwidth / 1e9, in / 1e6, 1e3 * exchange, 1e3 * modelled, 1e3 * exchange_one);
        if (step > 0)
            std::printf(" %.2f | %.2f | %.2f | %.1f %% | %.0f | %.0f |", search, step, search + modelled,
                        100 * exchange / step, 1e3 * search_one, 1e3 * latency);
        std::printf("\n");
        std::fflush(stdout);
    }
    return hit_ns;
}

// The same on `world` processes of its own.
void start(int world) {
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
            const double hit_ns = measure(options);
            if (options.rank == 0 && ::write(ends[1], &hit_ns, sizeof hit_ns) != sizeof hit_ns) fail("pipe");
            std::_Exit(0);
        } catch (const std::exception& e) {
            std::fprintf(stderr, "rank %d of %d: %s\n", options.rank, world, e.what());
            std::_Exit(1);
        }
    }
    bool well = true;
    for (const pid_t child : children) {
        int status = 0;
        ::waitpid(child, &status, 0);
        well = well && status == 0;
    }
    if (!well) fail("a rank of ", world, " failed");
    if (world == 1 && settings["hit_ns"] == 0 &&
        ::read(ends[0], &settings["hit_ns"], sizeof(double)) != static_cast<ssize_t>(sizeof(double)))
        fail("pipe");
    ::close(ends[0]), ::close(ends[1]);
}

} // namespace

int main(int count, char** arguments) {
    std::vector<int> worlds = {1, 2, 4};
    try {
        for (int i = 1; i < count; ++i) {
            const std::string argument = arguments[i], name = argument.substr(0, argument.find('='));
            if (name.size() == argument.size() || (name != "ranks" && settings.count(name) == 0))
                fail("expected name=number, got ", argument);
            std::string value = argument.substr(name.size() + 1);
            if (name != "ranks") {
                settings[name] = std::stod(value);
                continue;
            }
            worlds.clear();
            for (std::size_t at = 0; at < value.size(); at = std::min(value.find(',', at), value.size() - 1) + 1)
                worlds.push_back(std::stoi(value.substr(at)));
        }
        const bool launched = std::getenv("WORLD_SIZE") != nullptr;
        const RanksOptions options = RanksOptions::from_environment();
        if (options.rank == 0) {
            std::printf(
                "| ranks | a round, us | GB/s | MB into a rank | exchange, ms | modelled | of one query |%s\n",
                get("search") != 0
                    ? " search, s | step, s | modelled | exchange of step | one query: search, ms | latency, ms |"
                    : "");
            std::printf("|--:|--:|--:|--:|--:|--:|--:|%s\n", get("search") != 0 ? "--:|--:|--:|--:|--:|--:|" : "");
        }
        if (launched) {
            measure(options);
            return 0;
        }
        if (settings["hit_ns"] == 0 && (worlds.empty() || worlds.front() != 1)) worlds.insert(worlds.begin(), 1);
        for (const int world : worlds) start(world);
    } catch (const std::exception& e) {
        std::fprintf(stderr, "%s\n", e.what());
        return 1;
    }
    return 0;
}
