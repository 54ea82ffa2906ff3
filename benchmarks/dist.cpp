// SPDX-License-Identifier: MIT
// What a memory over several processes costs, and the model of docs/dist.md beside it. What a rank does alone is
// measured on one rank and on two, the bare network on as many ranks as there are; every exchange and every step is
// predicted from that. It starts its ranks itself, on the loopback, or is one of them where RANK is set.
//
//     bench_dist [ranks=1,2,3,4,8] [queries=1,64,512] [k=64,1024] [rows=1000000] [dim=1024] [steps=9] [window=60]
//                [search=1] [store=0] [keep=1]
//
// queries: of all ranks together. rows: of all ranks. steps: windows of so many milliseconds, of which the median
// counts; those of the network and those of every exchange take turns. search=0: the exchange alone, of hits that are
// ready, without keys. store=1: through the store instead of Gloo. keep=0: freed memory goes back to the system, as
// glibc's malloc has it unless told otherwise. The constants that it prints may be given as further arguments: then
// they are not measured.
#include <mnemo/dist/sharded.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/store/tokens.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <malloc.h>
#include <map>
#include <numeric>
#include <sstream>
#include <string>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

using namespace mnemo;
using namespace mnemo::nn;

namespace {

std::map<std::string, double> settings = {{"rows", 1e6}, {"dim", 1024}, {"steps", 9}, {"window", 60},
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
    std::uint32_t rank = 0;
    index_t key_dim() const { return d; }
    index_t size() const { return entries; }
    std::int32_t value(index_t id) const { return static_cast<std::int32_t>(id % 50000); }
};
// Scores that fall by steps of their own, so that those of ranks come in no order when they are merged.
class Falling {
  public:
    explicit Falling(std::uint32_t seed) : random_(2 * seed + 1) {}
    float next() {
        random_ = random_ * 747796405u + 2891336453u;
        return score_ -= 1 + static_cast<float>(random_ >> 8) * 0x1p-22f;
    }

  private:
    std::uint32_t random_;
    float score_ = 0;
};
struct Ready {
    index_t k;
    Hits retrieve(const NoKeys& shard, Rows queries) const { return retrieve(shard, queries, {}); }
    Hits retrieve(const NoKeys& shard, Rows queries, Hits hits) const {
        const index_t n = std::min(k, shard.entries);
        hits.resize(queries.rows, n);
        index_t id = 0;
        for (index_t q = 0; q < queries.rows; ++q) {
            const auto ids = hits.room_for_ids(q);
            const auto scores = hits.room_for_scores(q);
            Falling score(static_cast<std::uint32_t>(q) * 1000003u + shard.rank);
            for (index_t i = 0; i < n; ++i, id = id + 7919 - (id + 7919 >= shard.entries ? shard.entries : 0)) {
                ids[static_cast<std::size_t>(i)] = id; // no two of a rank's alike
                scores[static_cast<std::size_t>(i)] = score.next();
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
double processor_time() { // of this thread: what other programs do meanwhile does not count
    timespec t{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}
// Of each rank, what it has measured.
std::vector<double> of_all(Ranks& ranks, double mine) {
    std::vector<double> out;
    for (const at::Tensor& t : ranks.gather(at::full({1}, mine, at::kDouble))) out.push_back(t.item<double>());
    return out;
}
double slowest(Ranks& ranks, double mine) {
    const std::vector<double> all = of_all(ranks, mine);
    return *std::max_element(all.begin(), all.end());
}

// Ranks that share a core take turns.
double crowd(int world) { return std::max(1.0, static_cast<double>(world) / std::thread::hardware_concurrency()); }

// Calls that all ranks make together, or that each makes at the same time as the others: as many of each as take a
// window, in turn; the median of what a call takes.
class Windows {
  public:
    explicit Windows(Ranks& ranks) : ranks_(ranks) {}
    // Wall time, of the slowest rank. Before each call a rank may prepare it: that work is not counted.
    void wall(
        std::string name, std::function<void()> call, std::function<void()> prepare = [] {}) {
        works_.push_back({std::move(name), std::move(call), std::move(prepare), false});
    }
    // Processor time, in the mean of ranks.
    void processor(std::string name, std::function<void()> call) {
        works_.push_back({std::move(name), std::move(call), [] {}, true});
    }
    std::map<std::string, double> run(index_t steps) {
        const double window = 1e-3 * settings.at("window");
        for (int warm = 0; warm < 2; ++warm) // the first time around nothing is as it will be
            for (Work& w : works_) {
                const double once = slowest(ranks_, seconds_of([&] { w.call(); }));
                w.times = static_cast<int>(std::clamp(window / once, 1.0, 1000.0));
                (void)one_window(w);
            }
        for (index_t i = 0; i < steps; ++i)
            for (Work& w : works_) w.seconds.push_back(one_window(w));
        std::map<std::string, double> out;
        for (const Work& w : works_) out[w.name] = median(w.seconds);
        return out;
    }

  private:
    struct Work {
        std::string name;
        std::function<void()> call, prepare;
        bool processor;
        int times = 1;
        std::vector<double> seconds{};
    };
    double one_window(const Work& w) {
        (void)slowest(ranks_, 0); // all begin together
        const double begin = processor_time();
        double prepared = 0;
        const double wall = seconds_of([&] {
            for (int t = 0; t < w.times; ++t) {
                const double before = processor_time();
                w.prepare();
                prepared += processor_time() - before;
                w.call();
            }
        });
        const double own = w.processor ? processor_time() - begin : wall;
        const std::vector<double> all = of_all(ranks_, own), aside = of_all(ranks_, prepared);
        const auto mean = [](const std::vector<double>& of) {
            return std::accumulate(of.begin(), of.end(), 0.0) / static_cast<double>(of.size());
        };
        const double whole = w.processor ? mean(all) : *std::max_element(all.begin(), all.end());
        return std::max(0.0, whole - crowd(ranks_.size()) * mean(aside)) / w.times;
    }
    Ranks& ranks_;
    std::vector<Work> works_;
};

// ---- The model ----

using Numbers = std::map<std::string, double>;

// Seconds of a round by the bytes that each rank has for each other one, gathered or exchanged: a straight line between
// sizes that were measured.
struct Curve {
    std::vector<std::pair<double, double>> points;
    double operator()(double bytes) const {
        if (points.empty()) return 0; // a rank alone
        if (points.size() == 1 || bytes <= points[0].first) return points[0].second;
        std::size_t i = 1;
        while (i + 1 < points.size() && bytes > points[i].first) ++i;
        const auto [x0, y0] = points[i - 1];
        const auto [x1, y1] = points[i];
        return std::max(y0, y0 + (y1 - y0) * (bytes - x0) / (x1 - x0));
    }
};
struct Network {
    Curve gather, exchange;
};
constexpr double kNear = 1 << 16; // hits whose messages a core's own cache holds
// What a rank does alone: nanoseconds for a call, a query, a number of a query that is copied for one rank, a hit that
// is packed (and more for each beyond kNear), one that is copied from the only list, or merged from
// several (and more for each doubling of their number), a value that is fetched.
const char* const work_names[] = {"call_ns",    "query_ns", "copy_ns",      "pack_ns", "far_ns",
                                  "merge_1_ns", "merge_ns", "merge_log_ns", "fetch_ns"};
// Of a search, by one rank alone (alone_), or by as many as there are cores at the same time (search_): keys x queries
// x width a second, and the seconds that it takes with any number of keys (_s).
std::string search_name(bool alone, Shape s) { return text(alone ? "alone_" : "search_", s.queries, "_", s.k); }

struct Prediction {
    double bytes = 0, rounds = 0, work = 0, search = 0; // bytes into a rank, seconds
    double exchange() const { return rounds + work; }
};
// The messages of a retrieval, in bytes for each pair of ranks.
struct Messages {
    double pieces = 1, queries = 0, hits = 0, fetched = 0; // of a piece; values that a rank fetches from each other one
    Messages(int world, Shape s) {
        const double n = settings.at("rows"), r = world, own = std::ceil(static_cast<double>(s.queries) / r),
                     k = static_cast<double>(s.k);
        pieces = std::ceil(own / std::max(std::floor(1024 / r), 1.0));
        queries = own / pieces * 4 * settings.at("dim");
        hits = 8 + own / pieces * (4 + 8 * std::min(k, n / r));
        fetched = own * std::min(k, n) / r;
    }
    double most() const { return std::max({queries, hits, 4 * fetched}); }
};
Prediction predict(int world, Shape s, const Network& net) {
    const double n = settings.at("rows"), d = settings.at("dim"), r = world, all = static_cast<double>(s.queries),
                 own = std::ceil(all / r), k = static_cast<double>(s.k), found = std::min(k, n);
    const Messages m(world, s);
    const auto of = [](const char* name) { return settings.at(name) * 1e-9; };
    Prediction p;
    const double packed = all * std::min(k, n / r);
    p.work = of("call_ns") + all * of("query_ns") + packed * of("pack_ns") +
             std::max(0.0, packed - kNear) * of("far_ns") +
             own * found * (world == 1 ? of("merge_1_ns") : of("merge_ns") + of("merge_log_ns") * std::log2(r));
    if (world > 1) {
        p.bytes = (r - 1) * (m.pieces * (m.queries + m.hits) + 8 * m.fetched);
        p.rounds = net.gather(112) + m.pieces * (net.gather(m.queries) + net.exchange(m.hits)) + net.exchange(8) +
                   2 * net.exchange(4 * m.fetched);
        p.work += own * r * d * of("copy_ns") + (r - 1) * m.fetched * of("fetch_ns");
    }
    p.work *= crowd(world);
    if (get("search") != 0) {
        const std::string name = search_name(world == 1, s);
        p.search = crowd(world) * (settings.at(name + "_s") + n / r * all * d / settings.at(name));
    }
    return p;
}

// ---- What is measured ----

index_t share(index_t n, const Ranks& ranks) {
    return n * (ranks.rank() + 1) / ranks.size() - n * ranks.rank() / ranks.size();
}
// No two ranks have the same: what one has looked up is not in the cache for another.
Matrix queries_of(const Ranks& ranks, index_t rows) {
    return random_rows(rows, get("dim"), 0x9E3779B97F4A7C15u * static_cast<std::uint64_t>(ranks.rank() + 1));
}

// The engine alone: rounds of messages of a few sizes. As in a retrieval a rank has read what came before and written
// what it sends.
struct Bare {
    Bare(Ranks& ranks, Windows& windows) {
        if (ranks.size() == 1) return;
        double most = 0;
        for (const Shape s : shapes) most = std::max(most, Messages(ranks.size(), s).most());
        for (std::int64_t bytes = 128;; bytes *= bytes < 8192 ? 4 : 2) { // closer where the line bends
            sizes.push_back(bytes);
            if (static_cast<double>(bytes) >= most) break;
        }
        const auto world = static_cast<std::int64_t>(ranks.size());
        const at::Tensor in = at::zeros({world * sizes.back()}, at::kByte), out = at::zeros_like(in);
        for (const std::int64_t bytes : sizes) {
            const std::vector<std::int64_t> ones(static_cast<std::size_t>(world), 1);
            const at::Tensor from = in.narrow(0, 0, world * bytes).view({world, bytes}),
                             to = out.narrow(0, 0, world * bytes).view({world, bytes});
            const auto prepare = [=] {
                const auto* came = to.data_ptr<std::uint8_t>();
                std::transform(came, came + to.numel(), from.data_ptr<std::uint8_t>(),
                               [](std::uint8_t x) { return static_cast<std::uint8_t>(x + 1); });
            };
            std::function<void()> gather = [=, &ranks] { ranks.gather_into(to, from, ones); },
                                  exchange = [=, &ranks] { ranks.all_to_all_into(to, from, ones, ones); };
            if (bytes == sizes[0]) { // as small ones travel
                gather = [=, &ranks] { ranks.gather(from.narrow(0, 0, 1), ones); };
                exchange = [=, &ranks] { ranks.all_to_all(from, ones, ones); };
            }
            windows.wall(text("gather ", bytes), gather, prepare);
            windows.wall(text("exchange ", bytes), exchange, prepare);
        }
    }
    std::vector<std::int64_t> sizes;
};
// The exchange without a search, again and again.
std::function<void()> exchange_of(const std::shared_ptr<Ranks>& ranks, Shape s) {
    struct State {
        ShardedStore<NoKeys> store;
        Matrix queries;
        Sharded<Ready> sharded;
        Hits hits;
    };
    const auto state =
        std::make_shared<State>(State{ShardedStore<NoKeys>(ranks, NoKeys{get("dim"), share(get("rows"), *ranks),
                                                                         static_cast<std::uint32_t>(ranks->rank())}),
                                      queries_of(*ranks, share(s.queries, *ranks)),
                                      {{s.k}},
                                      {}});
    return [state] { state->hits = state->sharded.retrieve(state->store, state->queries, std::move(state->hits)); };
}
TokenStore<half> random_store(const Ranks& ranks, index_t rows) {
    TokenStore<half> shard(get("dim"));
    shard.reserve(rows);
    for (index_t at = 0; at < rows; at += 4096) {
        const index_t count = std::min<index_t>(4096, rows - at);
        const std::vector<std::int32_t> tokens(static_cast<std::size_t>(count), 7);
        shard.append(random_rows(count, get("dim"), static_cast<std::uint64_t>(ranks.rank() * get("rows") + at)),
                     tokens);
    }
    return shard;
}
// Merges what `lists` ranks have found for 512 / lists queries.
std::function<void()> merge_of(index_t lists, index_t k) {
    using namespace mnemo::nn::detail;
    struct State {
        std::vector<std::vector<std::uint8_t>> messages;
        std::vector<HitsOnWire> answers;
        Hits hits;
        MergeHits merge;
        std::vector<MergeHits::List> from;
    };
    const auto state = std::make_shared<State>();
    const index_t queries = 512 / lists;
    std::vector<float> scores(static_cast<std::size_t>(k));
    std::vector<std::uint32_t> rows(scores.size());
    std::iota(rows.begin(), rows.end(), 0u);
    for (index_t r = 0; r < lists; ++r) {
        state->messages.emplace_back(static_cast<std::size_t>(HitsOnWire::bytes(queries, k)));
        state->answers.emplace_back(state->messages.back().data(), queries, k);
        for (index_t q = 0; q < queries; ++q) {
            Falling falling(static_cast<std::uint32_t>(q) * 1000003u + static_cast<std::uint32_t>(r));
            for (float& score : scores) score = falling.next();
            state->answers.back().set(q, scores, rows);
        }
    }
    state->hits.resize(queries, k);
    return [state, lists, queries, k] {
        for (index_t q = 0; q < queries; ++q) {
            state->from.clear();
            for (index_t r = 0; r < lists; ++r)
                state->from.push_back({&state->answers[static_cast<std::size_t>(r)], q, r * 1000000});
            const auto ids = state->hits.room_for_ids(q);
            const auto of_row = state->hits.room_for_scores(q);
            state->merge(state->from, k, [&](index_t i, index_t id, float score, std::size_t, index_t) {
                ids[static_cast<std::size_t>(i)] = id, of_row[static_cast<std::size_t>(i)] = score;
            });
        }
    };
}

// What a search takes, of these ranks at the same time: from two sizes of a shard.
void measure_search(Ranks& ranks, Numbers& out) {
    const index_t rows = get("rows") / 2, few = rows / 8;
    const TokenStore<half> large = random_store(ranks, rows), small = random_store(ranks, few);
    for (const Shape s : shapes) {
        const Matrix all = queries_of(ranks, s.queries);
        const Exact<L2> exact{.k = s.k};
        Hits found;
        Windows windows(ranks);
        windows.processor("large", [&] { found = exact.retrieve(large, all, std::move(found)); });
        windows.processor("small", [&] { found = exact.retrieve(small, all, std::move(found)); });
        const Numbers seconds = windows.run(std::min<index_t>(get("steps"), 5));
        const std::string name = search_name(ranks.size() == 1, s);
        const double a_key = (seconds.at("large") - seconds.at("small")) / static_cast<double>(rows - few);
        out[name] = static_cast<double>(s.queries * get("dim")) / a_key;
        out[name + "_s"] = seconds.at("small") - a_key * static_cast<double>(few);
    }
}
Numbers measure_alone(const RanksOptions& options) {
    Ranks ranks(options);
    Numbers out;
    if (get("search") != 0) measure_search(ranks, out);
    return out;
}
// On two ranks, both at once: what a rank does alone, by means of a store of its own, and the rate of a search.
Numbers measure_constants(const RanksOptions& options) {
    const auto ranks = std::make_shared<Ranks>(options), alone = std::make_shared<Ranks>(RanksOptions{});
    const index_t d = get("dim"), queries = 512, k = 256;
    Windows windows(*ranks);
    for (int log = 0; log < 4; ++log) windows.processor(text("merge ", log), merge_of(index_t{1} << log, k));
    windows.processor("one", exchange_of(alone, {1, 1}));
    windows.processor("few", exchange_of(alone, {queries, 1}));
    windows.processor("near", exchange_of(alone, {queries / 2, k / 2}));
    windows.processor("many", exchange_of(alone, {2 * queries, 3 * k}));
    const Matrix rows = queries_of(*ranks, queries / 2);
    std::vector<float> copies(2 * rows.data.size());
    windows.processor("copy", [&] {
        for (index_t row = 0; row < 2 * rows.rows; ++row)
            convert(rows[row % rows.rows],
                    std::span<float>(copies).subspan(static_cast<std::size_t>(row * d), static_cast<std::size_t>(d)));
    });
    const ShardedStore<NoKeys> store(ranks,
                                     NoKeys{d, share(get("rows"), *ranks), static_cast<std::uint32_t>(ranks->rank())});
    const Hits found = Sharded<Ready>{{2 * k}}.retrieve(store, rows);
    windows.processor("fetch", [&] { store.fetch(found); });
    const Numbers seconds = windows.run(get("steps"));
    Numbers out;
    // One list is copied; a straight line through what two, four and eight take.
    const auto merge = [&](int log) {
        return 1e9 * seconds.at(text("merge ", log)) / static_cast<double>((queries >> log) * k);
    };
    out["merge_1_ns"] = merge(0);
    out["merge_log_ns"] = (merge(3) - merge(1)) / 2;
    out["merge_ns"] = (merge(1) + merge(2) + merge(3)) / 3 - 2 * out["merge_log_ns"];
    out["call_ns"] = 1e9 * seconds.at("one");
    out["query_ns"] = 1e9 * (seconds.at("few") - seconds.at("one")) / static_cast<double>(queries);
    out["copy_ns"] = 1e9 * seconds.at("copy") / static_cast<double>(copies.size());
    const auto hits = [&](const char* name, index_t of) { // without the call and the queries
        return 1e9 * seconds.at(name) - out["call_ns"] - static_cast<double>(of) * out["query_ns"];
    };
    const double near = static_cast<double>(queries / 2 * (k / 2)), many = static_cast<double>(6 * queries * k);
    const double a_hit = hits("near", queries / 2) / near;
    out["pack_ns"] = a_hit - out["merge_1_ns"];
    out["far_ns"] = std::max(0.0, hits("many", 2 * queries) - many * a_hit) / (many - kNear);
    out["fetch_ns"] = 1e9 * seconds.at("fetch") / static_cast<double>(queries / 2 * k); // half of them
    if (get("search") != 0) measure_search(*ranks, out);
    return out;
}

// The network, and every shape: its exchange, its step.
Numbers measure(const RanksOptions& options) {
    const auto ranks = std::make_shared<Ranks>(options);
    Windows windows(*ranks);
    const Bare bare(*ranks, windows);
    for (std::size_t i = 0; i < shapes.size(); ++i)
        if (ranks->size() == 1)
            windows.processor(text("shape ", i), exchange_of(ranks, shapes[i]));
        else
            windows.wall(text("shape ", i), exchange_of(ranks, shapes[i]));
    Numbers out = windows.run(get("steps"));
    if (get("search") == 0) return out;
    const ShardedStore<TokenStore<half>> store(ranks, random_store(*ranks, share(get("rows"), *ranks)));
    for (std::size_t i = 0; i < shapes.size(); ++i) {
        const Sharded<Exact<L2>> sharded{{.k = shapes[i].k}};
        const Matrix queries = queries_of(*ranks, share(shapes[i].queries, *ranks));
        Hits hits;
        Windows steps(*ranks);
        steps.wall(text("step ", i), [&] { hits = sharded.retrieve(store, queries, std::move(hits)); });
        out.merge(steps.run(std::min<index_t>(get("steps"), 5)));
    }
    return out;
}
Network network_of(const Numbers& measured) {
    Network net;
    for (const auto& [name, seconds] : measured)
        for (const auto& [prefix, curve] : {std::pair{"gather ", &net.gather}, std::pair{"exchange ", &net.exchange}})
            if (name.starts_with(prefix))
                curve->points.emplace_back(std::stod(name.substr(std::strlen(prefix))), seconds);
    for (Curve* curve : {&net.gather, &net.exchange}) std::sort(curve->points.begin(), curve->points.end());
    return net;
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
    std::printf(
        "| ranks | queries | k | MB into a rank | exchange, ms | predicted, rounds + work | predicted / measured |%s\n",
        get("search") != 0 ? " step, ms | predicted | predicted / measured | exchange of step |" : "");
    std::printf("|--:|--:|--:|--:|--:|--:|--:|%s\n", get("search") != 0 ? "--:|--:|--:|--:|" : "");
}
void print(int world, const Numbers& measured, Errors& exchanges, Errors& steps) {
    const Network net = network_of(measured);
    for (std::size_t i = 0; i < shapes.size(); ++i) {
        const Prediction p = predict(world, shapes[i], net);
        const double exchange = measured.at(text("shape ", i));
        std::printf("| %d | %lld | %lld | %.3g | %.3g | %.3g + %.3g | %s |", world,
                    static_cast<long long>(shapes[i].queries), static_cast<long long>(shapes[i].k), p.bytes / 1e6,
                    1e3 * exchange, 1e3 * p.rounds, 1e3 * p.work, exchanges.add(p.exchange(), exchange).c_str());
        if (get("search") != 0) {
            const double step = measured.at(text("step ", i)), whole = p.exchange() + p.search;
            std::printf(" %.3g | %.3g | %s | %.2g %% |", 1e3 * step, 1e3 * whole, steps.add(whole, step).c_str(),
                        100 * exchange / step);
        }
        std::printf("\n");
    }
    std::fflush(stdout);
}
// A line for each curve: microseconds by bytes.
std::string describe(int world, const Network& net) {
    std::string out;
    for (const auto& [name, curve] : {std::pair{"gathered", &net.gather}, std::pair{"exchanged", &net.exchange}}) {
        if (curve->points.empty()) continue;
        out += text(world, " ranks, microseconds of a round, ", name, ", by bytes for each pair:");
        for (const auto& [bytes, seconds] : curve->points) {
            char point[48];
            std::snprintf(point, sizeof point, " %.0f: %.3g", bytes, 1e6 * seconds);
            out += point;
        }
        out += "\n";
    }
    return out;
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
            const bool constant = name.starts_with("search_") || name.starts_with("alone_") || name.ends_with("_ns");
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
            bool all = get("search") == 0 || std::all_of(shapes.begin(), shapes.end(), [&](Shape s) {
                           return given.count(search_name(false, s)) == 1 && given.count(search_name(true, s)) == 1;
                       });
            for (const char* name : work_names) all = all && given.count(name) == 1;
            if (!all) {
                given = start(2, measure_constants);
                given.merge(start(1, measure_alone));
            }
            std::printf("constants:");
            for (const auto& [name, value] : given) std::printf(" %s=%.3g", name.c_str(), settings[name] = value);
            std::printf("\n\n");
        }
        Errors exchanges, steps;
        std::string networks;
        const auto report = [&](int world, const Numbers& measured) {
            print(world, measured, exchanges, steps);
            networks += describe(world, network_of(measured));
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
