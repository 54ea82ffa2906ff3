// SPDX-License-Identifier: MIT
// What a memory over several processes costs, and the model of docs/dist.md beside it. What a rank does beside
// searching and the bare network are measured on as many ranks as there are, a search on one rank and on two; every
// exchange and every step is predicted from that. It starts its ranks itself, on the loopback, or is one of them where
// RANK is set.
//
//     bench_dist [ranks=1,2,3,4,8] [queries=1,64,512] [k=64,1024] [rows=1000000] [dim=1024] [passes=5] [steps=4]
//                [window=60] [search=1] [store=0] [alltoall=0] [keep=1]
//
// queries: of all ranks together. rows: of all ranks. passes: constants and all numbers of ranks, again and again, for
// a machine is faster in one minute than in the next. steps: windows of so many milliseconds for each pass, in which
// everything takes turns (one a pass of what takes longer); the mean of the middle half of all windows counts. A
// window in which the host of a virtual machine kept processors to itself is measured again, and does not count where
// there are others.
// search=0: the exchange alone, of hits that are ready, without keys. store=1: through the store instead of Gloo.
// alltoall=1: Gloo's own alltoall, as of a group that a host hands over.
// keep=0: freed memory goes back to the system, as glibc's malloc has it unless told otherwise. The constants that it
// prints, of one rank and of two, are for dist_model.py. Those of searches may be given as further arguments: then they
// are not measured, as they cannot be where RANK is set.
#include <mnemo/dist/sharded.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/store/tokens.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <malloc.h>
#include <map>
#include <numeric>
#include <set>
#include <sstream>
#include <string>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

using namespace mnemo;
using namespace mnemo::nn;

namespace {

std::map<std::string, double> settings = {{"rows", 1e6}, {"dim", 1024}, {"passes", 5},   {"steps", 4}, {"window", 60},
                                          {"search", 1}, {"store", 0},  {"alltoall", 0}, {"keep", 1}};
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

// The mean of the middle half: of a machine that is now fast and now slow it says what it takes in between, of a window
// that was disturbed nothing.
double middle(std::vector<double> of) {
    std::sort(of.begin(), of.end());
    const auto n = static_cast<double>(of.size());
    double sum = 0, at = 0; // of a few, some count in part
    for (const double x : of) sum += x * std::clamp(std::min(at + 1 - n / 4, n - n / 4 - at), 0.0, 1.0), ++at;
    return sum / (n / 2);
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
// Seconds of processors that the host of a virtual machine has kept to itself so far.
double kept_by_host() {
    std::ifstream in("/proc/stat");
    std::string name;
    double ticks = 0;
    in >> name;
    for (int i = 0; i < 8; ++i) in >> ticks; // the eighth: "steal"
    return in ? ticks / static_cast<double>(::sysconf(_SC_CLK_TCK)) : 0;
}
constexpr double kQuiet = 0.02; // of the processors, that it may keep in a window
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

using Numbers = std::map<std::string, double>;
using Samples = std::map<std::string, std::vector<double>>; // seconds, a window each
const std::string kDisturbed = " disturbed"; // after a name: windows that count where there are no others
const std::string kPrepared = " prepared";   // after a name: how much of it was preparation
Numbers middle(const Samples& samples) {
    Numbers out;
    for (const auto& [name, seconds] : samples)
        if (!name.ends_with(kDisturbed))
            out[name] = middle(seconds);
        else if (const auto whole = name.substr(0, name.size() - kDisturbed.size()); samples.count(whole) == 0)
            out[whole] = middle(seconds);
    return out;
}

// Calls that all ranks make together, or that each makes at the same time as the others: as many of each as take a
// window, in turn: what a call takes in each.
class Windows {
  public:
    explicit Windows(Ranks& ranks, double window = 1e-3 * settings.at("window")) : ranks_(ranks), window_(window) {}
    // Wall time, of the slowest rank. Before each call a rank may prepare it: how much processor time that takes, in
    // the mean of ranks, is noted as well.
    void wall(std::string name, std::function<void()> call, std::function<void()> prepare = {}) {
        works_.push_back({std::move(name), std::move(call), std::move(prepare), false});
    }
    // Processor time, in the mean of ranks.
    void processor(std::string name, std::function<void()> call) {
        works_.push_back({std::move(name), std::move(call), {}, true});
    }
    /// In each of so many passes `steps` windows of each, of those that are not longer than a window; one of others.
    Samples run(index_t passes, index_t steps) {
        for (Work& w : works_) { // the first time around nothing is as it will be
            double once = slowest(ranks_, seconds_of([&] { w.call(); }));
            if (once < 10 * window_) once = slowest(ranks_, seconds_of([&] { w.call(); }));
            w.times = static_cast<int>(std::clamp(window_ / once, 1.0, 1000.0));
            if (once < window_) (void)one_window(w);
        }
        Samples out;
        for (index_t i = 0; i < passes * steps; ++i)
            for (const Work& w : works_)
                if (i % steps == 0 || w.times > 1) {
                    const Window window = one_window(w);
                    const std::string suffix = window.kept > kQuiet ? kDisturbed : "";
                    out[w.name + suffix].push_back(window.seconds);
                    if (w.prepare) out[w.name + kPrepared + suffix].push_back(window.prepared);
                }
        return out;
    }

  private:
    struct Work {
        std::string name;
        std::function<void()> call, prepare;
        bool processor;
        int times = 1;
    };
    struct Window {
        double seconds = 0, prepared = 0; // of a call, of its preparation
        double kept = INFINITY;           // by the host, of the processors
        double took = 0;                  // the whole of it
    };
    // The least disturbed one, where the host of a virtual machine keeps the processors to itself, of as many as fit
    // three times what one takes, or 0.3 seconds.
    Window one_window(const Work& w) {
        Window best;
        double all = 0;
        for (double once = 0; best.kept > kQuiet && all <= std::max(0.3 - once, 2.5 * once); all += once) {
            const Window tried = one_try(w);
            once = tried.took;
            if (tried.kept < best.kept) best = tried;
        }
        return best;
    }
    // The same on all ranks.
    Window one_try(const Work& w) {
        if (w.times > 1) { // what others have left of memory and caches is not counted
            if (w.prepare) w.prepare();
            w.call();
        }
        (void)slowest(ranks_, 0); // all begin together
        const double begin = processor_time(), kept_before = kept_by_host();
        double prepared = 0;
        const double wall = seconds_of([&] {
            for (int t = 0; t < w.times; ++t) {
                if (w.prepare) {
                    const double before = processor_time();
                    w.prepare();
                    prepared += processor_time() - before;
                }
                w.call();
            }
        });
        const double own = w.processor ? processor_time() - begin : wall, kept_here = kept_by_host() - kept_before;
        const std::vector<double> all = of_all(ranks_, own), aside = of_all(ranks_, prepared),
                                  walls = of_all(ranks_, wall), kept = of_all(ranks_, kept_here);
        const auto mean = [](const std::vector<double>& of) {
            return std::accumulate(of.begin(), of.end(), 0.0) / static_cast<double>(of.size());
        };
        return {(w.processor ? mean(all) : *std::max_element(all.begin(), all.end())) / w.times, mean(aside) / w.times,
                kept[0] / walls[0] / std::thread::hardware_concurrency(), walls[0]};
    }
    Ranks& ranks_;
    double window_;
    std::vector<Work> works_;
};

// ---- The model ----

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
    // What a millisecond that every rank works adds to a large round: more than one, for ranks share cores, and the
    // slower keeps the others waiting. And by how much less that is than what it adds to a small round: where the wire
    // is slow some work while others wait, and who shares a core has the time to move to another.
    double crowd = 1, overlap = 1;
    // A round in which all messages come from one rank or go to one, as a part of one in which each has some for each.
    double lone = 1;
};
// Hits that a core holds in its own cache, as found and as they travel (20 bytes): of a rank alone, and of one that has
// what comes from others beside them.
double near_hits(bool alone) { return alone ? 1 << 16 : 1 << 15; }
// Of a search, by one rank alone (alone_), or by as many as there are cores at the same time (search_): keys x queries
// x width a second, and the seconds that it takes with any number of keys (_s).
std::string search_name(bool alone, Shape s) { return text(alone ? "alone_" : "search_", s.queries, "_", s.k); }

struct Prediction {
    double bytes = 0, rounds = 0, work = 0, search = 0; // bytes into a rank that has queries, seconds
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
// `work`: what a rank does beside searching, nanoseconds for a call, a query, a hit that is packed (and more for each
// beyond near_hits), a hit of several lists that is merged or, by a rank alone, copied; in company also for a number of
// a query that is copied for one rank and a value that is fetched.
Prediction predict(int world, Shape s, const Network& net, const Numbers& work) {
    const double n = settings.at("rows"), d = settings.at("dim"), r = world, all = static_cast<double>(s.queries),
                 own = std::ceil(all / r), k = static_cast<double>(s.k), found = std::min(k, n);
    const Messages m(world, s);
    const auto of = [&](const char* name) { return work.at(name) * 1e-9; };
    Prediction p;
    const double packed = all * std::min(k, n / r);
    p.work = of("call_ns") + all * of("query_ns") + packed * of("pack_ns") +
             std::max(0.0, packed - near_hits(world == 1)) * of("far_ns") + own * found * of("merge_ns");
    if (world > 1) {
        // Those that have no queries ask nobody; what they are told of the search is as much as nothing.
        const double others = std::min(all, r) - 1, part = net.lone + (1 - net.lone) * others / (r - 1);
        p.bytes = m.pieces * (others * m.queries + (r - 1) * m.hits) + 4 * m.fetched * (others + r - 1);
        p.rounds = net.gather(112) + m.pieces * (part * net.gather(m.queries) + net.exchange(m.hits)) +
                   net.exchange(8) + part * 2 * net.exchange(4 * m.fetched);
        p.work = net.overlap * (p.work + own * r * d * of("copy_ns")) + (r - 1) * m.fetched * of("fetch_ns");
    }
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

constexpr index_t kMerged = 512, kListed = 256, kWide = 1024; // queries of all ranks, hits of each list
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
    const index_t queries = kMerged / lists;
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

constexpr std::int64_t kSmall = 128, kLone = 2048; // bytes
const std::string kAtWork = "at work ";            // before a size: a round behind work
// The engine alone: rounds of messages of a few sizes. As in a retrieval a rank has read what came before and written
// what it sends, and has had to do with several times as much memory since it last used these buffers. A small round
// stands behind each other one, and is taken off: what is still on its way when a rank has all that it waits for holds
// up the next message, not the next large one.
void bare_rounds(Ranks& ranks, Windows& windows) {
    if (ranks.size() == 1) return;
    double most = 0;
    for (const Shape s : shapes) most = std::max(most, Messages(ranks.size(), s).most());
    struct State {
        at::Tensor in, out; // [buffers, ranks, bytes]
        std::int64_t which = 0;
        State(std::int64_t world, std::int64_t bytes)
            : in(at::zeros({4, world, bytes}, at::kByte)), out(at::zeros_like(in)) {}
        void next() {
            const at::Tensor came = out[which];
            which = (which + 1) % in.size(0);
            const auto* read = came.data_ptr<std::uint8_t>();
            std::transform(read, read + came.numel(), in[which].data_ptr<std::uint8_t>(),
                           [](std::uint8_t x) { return static_cast<std::uint8_t>(x + 1); });
        }
    };
    using Counts = std::vector<std::int64_t>;
    const std::int64_t world = ranks.size(), copies = ranks.copies();
    const Counts ones(static_cast<std::size_t>(world), 1);
    const auto small = [word = at::zeros({1, kSmall}, at::kByte), ones, &ranks] { ranks.gather(word, ones); };
    std::function<void()> large, before_large;
    std::int64_t size = 0;
    for (std::int64_t bytes = kSmall;; bytes *= bytes < 8192 ? 4 : 2) { // closer where the line bends
        const auto state = std::make_shared<State>(world, bytes);
        const std::function<void()> prepare = [state] { state->next(); };
        std::function<void()> gather = [=, &ranks] {
            ranks.gather_into(state->out[state->which], state->in[state->which].narrow(0, 0, copies), ones), small();
        };
        std::function<void()> exchange = [=, &ranks] {
            ranks.all_to_all_into(state->out[state->which], state->in[state->which], ones, ones), small();
        };
        if (bytes == kSmall) { // as small ones travel
            gather = small;
            exchange = [=, &ranks] { ranks.all_to_all(state->in[state->which], ones, ones); };
        }
        windows.wall(text("gather ", bytes), gather, prepare);
        windows.wall(text("exchange ", bytes), exchange, prepare);
        if (bytes <= 1 << 20) large = gather, before_large = prepare, size = bytes;
        if (static_cast<double>(bytes) >= most) break;
    }
    // With what the merge of 512 queries takes before it.
    windows.wall(text(kAtWork, size), large,
                 [before_large, merge = merge_of(ranks.size(), kWide)] { before_large(), merge(); });
    // The last rank has something for all others, and they for it.
    const auto state = std::make_shared<State>(world, kLone);
    const bool asks = ranks.rank() + 1 == world;
    Counts one(ones.size(), 0), mine(ones.size(), asks);
    one.back() = 1;
    const auto ask_and_answer = [=, &ranks] {
        const at::Tensor in = state->in[state->which], out = state->out[state->which];
        ranks.gather_into(out.narrow(0, 0, 1), in.narrow(0, 0, asks ? copies : 0), one);
        ranks.all_to_all_into(out.narrow(0, 0, asks ? world : 0), in.narrow(0, 0, 1), one, mine);
        small();
    };
    windows.wall("lone", ask_and_answer, [state] { state->next(); });
}
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
// Searches of two sizes of a shard; those of two ranks at the same time, and they wait for each other.
void searches(Ranks& ranks, Windows& windows) {
    struct State {
        TokenStore<half> store;
        Hits found{};
    };
    for (const auto& [size, part] : {std::pair{" large", 2}, std::pair{" small", 16}}) {
        const auto state = std::make_shared<State>(State{random_store(ranks, get("rows") / part)});
        for (const Shape s : shapes) {
            const std::string name = search_name(ranks.size() == 1, s) + size;
            const auto search = [state, s, all = queries_of(ranks, s.queries)] {
                state->found = Exact<L2>{.k = s.k}.retrieve(state->store, all, std::move(state->found));
            };
            if (ranks.size() == 1)
                windows.processor(name, search);
            else
                windows.wall(name, [&ranks, search] { search(), slowest(ranks, 0); });
        }
    }
}
void search_constants(Numbers& out, const Numbers& seconds, bool alone) {
    if (get("search") == 0) return;
    for (const Shape s : shapes) {
        const std::string name = search_name(alone, s);
        const double large = std::floor(settings.at("rows") / 2), small = std::floor(settings.at("rows") / 16),
                     a_key = (seconds.at(name + " large") - seconds.at(name + " small")) / (large - small);
        out[name] = static_cast<double>(s.queries * get("dim")) / a_key;
        out[name + "_s"] = seconds.at(name + " small") - a_key * small;
    }
}
// Retrievals of a rank that has no others, of four shapes.
const Shape alone_shapes[] = {{1, 1}, {1024, 1}, {256, 128}, {1024, 768}};
std::string alone_name(Shape s) { return text("alone ", s.queries, "_", s.k); }
// call_ns, query_ns, far_ns and what a hit takes, packed and copied. `base` is what each time has beside it.
double common_work(Numbers& out, const Numbers& seconds, double base, double near_by) {
    const auto ns = [&](Shape s) { return 1e9 * (seconds.at(alone_name(s)) - base); };
    const auto [one, few, near, many] = alone_shapes;
    const double call = out["call_ns"] = std::max(0.0, ns(one)),
                 query = out["query_ns"] = std::max(0.0, ns(few) - call) / static_cast<double>(few.queries),
                 hit = (ns(near) - call - static_cast<double>(near.queries) * query) /
                       static_cast<double>(near.queries * near.k),
                 far = static_cast<double>(many.queries * many.k);
    out["far_ns"] =
        std::max(0.0, ns(many) - call - static_cast<double>(many.queries) * query - far * hit) / (far - near_by);
    return hit;
}

void work_alone(const std::shared_ptr<Ranks>& ranks, Windows& windows) {
    for (const Shape s : alone_shapes) windows.processor(alone_name(s), exchange_of(ranks, s));
    windows.processor("merge", merge_of(1, kListed));
}
// On all ranks at once, by means of a store of its own. Each work has a round of the network behind it, which is taken
// off: as in a retrieval, a rank begins it with what the network has left of its caches, and waits for the slower.
void work_in_company(const std::shared_ptr<Ranks>& ranks, Windows& windows) {
    const auto alone = std::make_shared<Ranks>(RanksOptions{});
    const index_t d = get("dim"), world = ranks->size(), rows = kMerged / world;
    const at::Tensor word = at::zeros({1, 14}, at::kLong);
    const auto round = [ranks, word, ones = std::vector<std::int64_t>(static_cast<std::size_t>(world), 1)] {
        ranks->gather(word, ones);
    };
    const auto with_round = [&](std::string name, std::function<void()> work) {
        windows.wall(std::move(name), [round, work] { work(), round(); });
    };
    windows.wall("round", round);
    for (const Shape s : alone_shapes) with_round(alone_name(s), exchange_of(alone, s));
    with_round("merge", merge_of(world, kWide));
    for (index_t lists = 1; lists <= (world == 2 ? 8 : 1); lists *= 2)
        with_round(text("merge ", lists), merge_of(lists, kListed));
    const auto queries = std::make_shared<Matrix>(queries_of(*ranks, rows));
    const auto copies = std::make_shared<std::vector<float>>(static_cast<std::size_t>(kMerged * d));
    const auto width = static_cast<std::size_t>(d);
    with_round("copy", [=] {
        for (index_t row = 0; row < kMerged; ++row)
            convert((*queries)[row % rows],
                    std::span<float>(*copies).subspan(static_cast<std::size_t>(row) * width, width));
    });
    const ShardedStore<NoKeys> store(ranks,
                                     NoKeys{d, share(get("rows"), *ranks), static_cast<std::uint32_t>(ranks->rank())});
    windows.wall("fetch", [store, found = Sharded<Ready>{{kWide}}.retrieve(store, *queries)] { store.fetch(found); });
}
Network network_of(const Numbers& measured) {
    Network net;
    for (const auto& [name, seconds] : measured)
        if (name.starts_with(kAtWork) && !name.ends_with(kPrepared)) {
            const std::string idle = "gather " + name.substr(kAtWork.size());
            const double added = std::max(0.0, seconds - measured.at(idle));
            net.crowd = added / (measured.at(name + kPrepared) - measured.at(idle + kPrepared));
            net.overlap = added / (measured.at("merge") - measured.at("round"));
        }
    const auto bare = [&](const std::string& name) {
        return std::max(0.0, measured.at(name) - net.crowd * measured.at(name + kPrepared));
    };
    for (const auto& [prefix, curve] : {std::pair{"gather ", &net.gather}, std::pair{"exchange ", &net.exchange}}) {
        for (const auto& [name, seconds] : measured)
            if (name.starts_with(prefix) && !name.ends_with(kPrepared))
                curve->points.emplace_back(std::stod(name.substr(std::strlen(prefix))), bare(name));
        std::sort(curve->points.begin(), curve->points.end());
    }
    const double small = net.gather(kSmall);
    for (Curve* curve : {&net.gather, &net.exchange})
        for (auto& [bytes, seconds] : curve->points)
            if (bytes > kSmall) seconds = std::max(0.0, seconds - small);
    if (measured.count("lone") == 1)
        net.lone = std::max(0.0, bare("lone") - small) / (net.gather(kLone) + net.exchange(kLone));
    return net;
}
Numbers work_of(int world, const Numbers& measured) {
    Numbers out;
    if (world == 1) {
        const double hit = common_work(out, measured, 0, near_hits(true));
        out["merge_ns"] = 1e9 * measured.at("merge") / static_cast<double>(kMerged * kListed);
        out["pack_ns"] = hit - out["merge_ns"];
        return out;
    }
    const double round = measured.at("round");
    const auto ns = [&](const std::string& name, index_t count) {
        return 1e9 * std::max(0.0, measured.at(name) - round) / static_cast<double>(count);
    };
    out["pack_ns"] = common_work(out, measured, round, near_hits(false)) - ns("merge 1", kMerged * kListed);
    out["merge_ns"] = ns("merge", kMerged / world * kWide);
    out["copy_ns"] = ns("copy", kMerged * get("dim"));
    const double from_each = static_cast<double>(kMerged / world * std::min(kWide, get("rows"))) / world;
    const Curve exchange = network_of(measured).exchange;
    out["fetch_ns"] = 1e9 * std::max(0.0, measured.at("fetch") - exchange(8) - 2 * exchange(4 * from_each)) /
                      (from_each * (world - 1));
    return out;
}
// What dist_model.py wants to know, too: two lists are merged without a tree, four and eight with one.
Numbers constants_of(const Numbers& alone, const Numbers& company) {
    Numbers out = work_of(2, company);
    for (const auto& [name, value] : work_of(1, alone)) out["alone_" + name] = value;
    const auto merge = [&](index_t lists) {
        return 1e9 * (company.at(text("merge ", lists)) - company.at("round")) /
               static_cast<double>(kMerged / lists * kListed);
    };
    out["merge_log_ns"] = merge(8) - merge(4);
    out["merge_tree_ns"] = merge(4) - 2 * out["merge_log_ns"];
    search_constants(out, alone, true);
    search_constants(out, company, false);
    return out;
}

// Kept with what they need.
std::shared_ptr<Ranks> start_ranks(const RanksOptions& options) {
#if MNEMO_GLOO
    if (get("alltoall") != 0 && options.world > 1) {
        struct Host {
            mnemo::nn::detail::HeldStore store;
            c10::intrusive_ptr<c10d::ProcessGroup> group; // not known to be Gloo's
            Ranks ranks;
            explicit Host(const RanksOptions& o)
                : store(meet(o)), group(gloo_group(store.shared(), o.rank, o.world, o)), ranks(group, o.rank, o.world) {
            }
        };
        const auto host = std::make_shared<Host>(options);
        return {host, &host->ranks};
    }
#endif
    return std::make_shared<Ranks>(options);
}
// The network, work, and every shape: its exchange, its step. On one rank and on two what a search takes as well.
Samples measure(const RanksOptions& options, index_t passes = 1) {
    const auto ranks = start_ranks(options);
    Windows windows(*ranks), steps(*ranks, 5e-3 * settings.at("window"));
    bare_rounds(*ranks, windows);
    for (std::size_t i = 0; i < shapes.size(); ++i)
        if (ranks->size() == 1)
            windows.processor(text("shape ", i), exchange_of(ranks, shapes[i]));
        else
            windows.wall(text("shape ", i), exchange_of(ranks, shapes[i]));
    if (ranks->size() == 1) work_alone(ranks, windows);
    if (ranks->size() > 1) work_in_company(ranks, windows);
    Samples out = windows.run(passes, get("steps"));
    if (get("search") == 0) return out;
    const ShardedStore<TokenStore<half>> store(ranks, random_store(*ranks, share(get("rows"), *ranks)));
    Hits hits;
    for (std::size_t i = 0; i < shapes.size(); ++i)
        steps.wall(text("step ", i),
                   [&hits, &store, k = shapes[i].k, queries = queries_of(*ranks, share(shapes[i].queries, *ranks))] {
                       hits = Sharded<Exact<L2>>{{.k = k}}.retrieve(store, queries, std::move(hits));
                   });
    if (ranks->size() <= 2) searches(*ranks, steps);
    for (auto& [name, seconds] : steps.run(passes, get("steps")))
        out[name].insert(out[name].end(), seconds.begin(), seconds.end());
    return out;
}
// The same on `world` processes of its own: adds what rank 0 has measured.
void start(int world, Samples& out) {
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
            for (const auto& [name, values] : measure(options))
                for (const double value : values) {
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
    std::istringstream in(lines);
    for (std::string line; std::getline(in, line);)
        out[line.substr(0, line.find('\t'))].push_back(std::stod(line.substr(line.find('\t') + 1)));
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
    const Numbers work = work_of(world, measured);
    for (std::size_t i = 0; i < shapes.size(); ++i) {
        const Prediction p = predict(world, shapes[i], net, work);
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
    if (world > 1) {
        char line[200];
        std::snprintf(
            line, sizeof line,
            "%d ranks: a millisecond of work of each adds %.2f to a large round, %.2f of what it adds to a small "
            "one; a round of one rank's messages takes %.2f of one of all\n",
            world, net.crowd, net.overlap, net.lone);
        out += line;
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
        const bool all = get("search") == 0 || std::all_of(shapes.begin(), shapes.end(), [&](Shape s) {
                             return given.count(search_name(false, s)) == 1 && given.count(search_name(true, s)) == 1;
                         });
        if (options.world > 1 && !all) fail("expected constants of searches where RANK is set: bench_dist prints them");
        std::set<index_t> worlds(lists["ranks"].begin(), lists["ranks"].end());
        if (!all) worlds.insert({1, 2});
        std::map<index_t, Samples> measured;
        if (options.world > 1) measured[options.world] = measure(options, get("passes"));
        for (index_t pass = 0; options.world == 1 && pass < get("passes"); ++pass) {
            std::fprintf(stderr, "pass %lld of %lld\n", static_cast<long long>(pass + 1),
                         static_cast<long long>(get("passes")));
            for (const index_t world : worlds) start(static_cast<int>(world), measured[world]);
        }
        if (options.rank != 0) return 0;
        if (measured.count(1) == 1 && measured.count(2) == 1)
            for (const auto& [name, value] : constants_of(middle(measured[1]), middle(measured[2])))
                given.insert({name, value});
        for (const auto& [name, value] : given)
            std::printf("%s%s=%.3g", name == given.begin()->first ? "constants: " : " ", name.c_str(),
                        settings[name] = value);
        if (!given.empty()) std::printf("\n\n");
        Errors exchanges, steps;
        std::string networks;
        print_header();
        for (const index_t world : options.world > 1 ? std::vector<index_t>{options.world} : lists["ranks"]) {
            const Numbers seconds = middle(measured[world]);
            print(static_cast<int>(world), seconds, exchanges, steps);
            networks += describe(static_cast<int>(world), network_of(seconds));
        }
        std::printf("\n%s", networks.c_str());
        exchanges.print("exchange");
        if (get("search") != 0) steps.print("step");
        std::size_t windows = 0, disturbed = 0;
        for (const auto& [world, samples] : measured)
            for (const auto& [name, seconds] : samples)
                if (name.find(kPrepared) == std::string::npos)
                    windows += seconds.size(), disturbed += name.ends_with(kDisturbed) ? seconds.size() : 0;
        std::printf("the host of a virtual machine kept more than %.0f %% of the processors in %zu of %zu windows\n",
                    100 * kQuiet, disturbed, windows);
    } catch (const std::exception& e) {
        std::fprintf(stderr, "%s\n", e.what());
        return 1;
    }
    return 0;
}
