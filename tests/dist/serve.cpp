// SPDX-License-Identifier: MIT
// A service on the loopback: a front and a process for each shard, which come, go, hang, come back and are refused.
#include "processes.hpp"

#include <mnemo/combine/interpolate.hpp>
#include <mnemo/dist/serve.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/store/tokens.hpp>
#include <mnemo/store/views.hpp>

#include <cstring>
#include <random>

using namespace mnemo;
using namespace mnemo::nn;
using namespace std::chrono_literals;

namespace {

constexpr index_t kDim = 16, kRows = 900, kShards = 3, kFound = 40;

Matrix random_rows(index_t rows, unsigned seed) {
    std::mt19937 random(seed);
    Matrix m(rows, kDim);
    for (float& x : m.data) x = static_cast<float>(random() % 5);
    return m;
}
// Shard s of three; those of the whole, -1.
TokenStore<> entries_of(index_t shard, unsigned seed = 1) {
    const Matrix keys = random_rows(kRows, seed);
    TokenStore<> store(kDim);
    std::vector<std::int32_t> tokens;
    const index_t first = shard < 0 ? 0 : kRows * shard / kShards,
                  last = shard < 0 ? kRows : kRows * (shard + 1) / kShards;
    for (index_t id = first; id < last; ++id) tokens.push_back(static_cast<std::int32_t>(id * 3));
    store.append(Rows(keys).slice(first, last - first), tokens);
    return store;
}
// What the whole has without some shards.
Hits expected(const TokenStore<>& whole, Rows queries, std::span<const index_t> lost) {
    const KeptEntries<TokenStore<>> kept(
        whole, [&](index_t id) { return std::find(lost.begin(), lost.end(), id / (kRows / kShards)) == lost.end(); });
    return Exact<L2>{kFound}.retrieve(kept, queries);
}
void require_right(const Served<std::int32_t>& got, const TokenStore<>& whole, Rows queries) {
    const Hits right = expected(whole, queries, got.lost);
    require(got.hits.rows() == queries.rows, "an answer to every query");
    for (index_t q = 0; q < queries.rows; ++q) {
        const auto a = got.hits.ids(q), b = right.ids(q);
        require(std::equal(a.begin(), a.end(), b.begin(), b.end()), "the neighbours in the living shards");
        const auto x = got.hits.scores(q), y = right.scores(q);
        require(std::memcmp(x.data(), y.data(), y.size_bytes()) == 0, "their scores, bit for bit");
        for (const index_t id : a) require(got.value(id) == whole.value(id), "their values");
    }
    require(std::abs(got.missing - static_cast<double>(got.lost.size()) / kShards) < 1e-9, "the missing fraction");
}

ServeOptions service(const RanksOptions& ranks, bool degraded = false) {
    ServeOptions out;
    out.ranks = ranks;
    out.shards = kShards;
    out.timeout = 1000ms;
    out.degraded = degraded;
    return out;
}
struct Slow {
    index_t k = kFound;
    std::chrono::milliseconds pause{0};
    Hits retrieve(const TokenStore<>& store, Rows queries) const {
        std::this_thread::sleep_for(pause);
        return Exact<L2>{k}.retrieve(store, queries);
    }
};

// Rank 0 is the front, ranks 1 to 3 are the shards.
void answers(const RanksOptions& ranks) {
    const ServeOptions options = service(ranks);
    const auto store = meet(ranks);
    if (ranks.rank > 0) {
        const index_t s = ranks.rank - 1;
        serve_shard(store, options, s, Shard<TokenStore<>>({entries_of(s)}), Exact<L2>{kFound}, 7);
        return;
    }
    const TokenStore<> whole = entries_of(-1);
    auto front = std::make_shared<Front<std::int32_t>>(store, options);
    require(front->size() == kRows && front->key_dim() == kDim, "the service as a whole");
    require_right(front->search(Rows(nullptr, 0, kDim)), whole, Rows(nullptr, 0, kDim));
    std::vector<std::thread> users;
    std::atomic<int> right{0};
    for (unsigned user = 0; user < 4; ++user)
        users.emplace_back([&, user] {
            for (unsigned i = 0; i < 20; ++i) {
                const Matrix queries = random_rows(1 + i % 7, 100 * user + i);
                require_right(front->search(queries), whole, queries);
                ++right;
            }
        });
    for (std::thread& t : users) t.join();
    require(right == 80, "right answers to four users at once");
    const std::string wrong = error_of([&] { front->search(Rows(nullptr, 0, kDim + 1)); });
    require(wrong.find("width of the queries: expected 16, got 17") != wrong.npos, "an error for wrong widths");
    // As a memory's store and retriever.
    const Matrix states = random_rows(3, 5);
    const std::vector<std::int32_t> targets{3, 6, 9};
    std::vector<float> log_p(3, -5.0f), alone(3, -5.0f);
    const Interpolate<TokenVotes> combiner{{.temperature = 3}, {.lambda = 0.4f}};
    const RemoteStore<std::int32_t> remote(front);
    Arena scratch;
    const Rows queries = states;
    const Hits found = RetrieveServed{}.retrieve(remote, queries), known = Exact<L2>{kFound}.retrieve(whole, queries);
    TargetLogProbs a{targets, log_p}, b{targets, alone};
    combiner.combine(a, Reading{queries, found, remote, scratch});
    combiner.combine(b, Reading{queries, known, whole, scratch});
    require(log_p == alone && remote.missing() == 0, "what the combiner makes of one store");
}

// Shard 1 is lost at its third question: it dies, or stops.
template <bool dies, bool degraded> void loses(const RanksOptions& ranks) {
    const ServeOptions options = service(ranks, degraded);
    const auto store = meet(ranks);
    if (ranks.rank > 0) {
        struct Lost {
            index_t k = kFound, shard = 0;
            mutable int questions = 0;
            Hits retrieve(const TokenStore<>& entries, Rows queries) const {
                if (shard == 1 && ++questions == 3) {
                    if (dies) std::_Exit(0);
                    std::raise(SIGSTOP);
                }
                return Exact<L2>{k}.retrieve(entries, queries);
            }
        };
        const index_t s = ranks.rank - 1;
        serve_shard(store, options, s, Shard<TokenStore<>>({entries_of(s)}), Lost{.shard = s});
        return;
    }
    const TokenStore<> whole = entries_of(-1);
    Front<std::int32_t> front(store, options);
    for (unsigned i = 0; i < 8; ++i) {
        const Matrix queries = random_rows(5, i);
        const auto begin = std::chrono::steady_clock::now();
        if (degraded || i < 2) {
            const auto got = front.search(queries);
            require(got.lost == (i < 2 ? std::vector<index_t>{} : std::vector<index_t>{1}), "the lost shard, named");
            require_right(got, whole, queries);
        } else {
            const std::string error = error_of([&] { front.search(queries); });
            require(error.find("shard 1 of 3 is lost, and with it 33.3333 % of the entries") != error.npos,
                    "an error that says what is lost, got '" + error + "'");
        }
        require(std::chrono::steady_clock::now() - begin < 2 * options.timeout + 500ms, "an answer in time");
    }
}

// The process that runs the store hangs (or dies), which is rank 0 here, and rank 4 the front. Over Gloo the shards
// that are there go on, also when one of them is lost; through the store nobody answers. All of it in time.
template <bool dies> void loses_store(const RanksOptions& ranks) {
    ServeOptions options = service(ranks, true);
    options.timeout = 600ms;
    const auto store = meet(ranks, false);
    if (ranks.rank == 0) {
        const std::string own = std::to_string(::getpid());
        store->set("pid", std::vector<std::uint8_t>(own.begin(), own.end()));
        for (;;) ::pause();
    }
    if (ranks.rank < 4) {
        struct Lost {
            index_t k = kFound, shard = 0;
            mutable int questions = 0;
            Hits retrieve(const TokenStore<>& entries, Rows queries) const {
                if (shard == 1 && ++questions == 4) std::_Exit(0);
                return Exact<L2>{k}.retrieve(entries, queries);
            }
        };
        const index_t s = ranks.rank - 1;
        const std::string error =
            error_of([&] { serve_shard(store, options, s, Shard<TokenStore<>>({entries_of(s)}), Lost{.shard = s}); });
        require(error.empty() != ranks.through_store, "an error where the store is needed, got '" + error + "'");
        return;
    }
    const TokenStore<> whole = entries_of(-1);
    const auto begin = std::chrono::steady_clock::now();
    {
        Front<std::int32_t> front(store, options);
        const auto pid = store->get("pid");
        for (unsigned i = 0; i < 8; ++i) {
            const Matrix queries = random_rows(5, i);
            if (i == 2)
                require(::kill(std::stoi(std::string(pid.begin(), pid.end())), dies ? SIGKILL : SIGSTOP) == 0,
                        "the store's process");
            const auto start = std::chrono::steady_clock::now();
            const auto got = front.search(queries);
            require(std::chrono::steady_clock::now() - start < 3 * options.timeout + 500ms, "an answer in time");
            const std::size_t lost = i < 2 ? 0 : ranks.through_store ? 3 : i < 3 ? 0 : 1;
            require(got.lost.size() == lost, text(lost, " shards to be lost, got ", got.lost.size()));
            require_right(got, whole, queries);
        }
    }
    require(std::chrono::steady_clock::now() - begin < 10 * options.timeout, "an end in time");
}

// Slow shards: batches wait in the queue, more at the door, and those behind are turned away in time.
void waits(const RanksOptions& ranks) {
    ServeOptions options = service(ranks);
    options.queue = 2;
    options.timeout = 600ms;
    options.batch = 1;
    const auto store = meet(ranks);
    if (ranks.rank > 0) {
        const index_t s = ranks.rank - 1;
        serve_shard(store, options, s, Shard<TokenStore<>>({entries_of(s)}), Slow{kFound, 400ms});
        return;
    }
    const TokenStore<> whole = entries_of(-1);
    Front<std::int32_t> front(store, options);
    const Matrix queries = random_rows(1, 1);
    std::atomic<int> right{0}, turned_away{0};
    std::vector<std::thread> users;
    for (int user = 0; user < 8; ++user)
        users.emplace_back([&] {
            const auto begin = std::chrono::steady_clock::now();
            const std::string error = error_of([&] {
                require_right(front.search(queries), whole, queries);
                ++right;
            });
            turned_away += error.find("the queue is full") != error.npos;
            if (!error.empty())
                require(std::chrono::steady_clock::now() - begin < options.timeout + 300ms, "a refusal in time");
        });
    for (std::thread& t : users) t.join();
    require(right + turned_away == 8 && right >= 3 && turned_away >= 1, "answers, and refusals for those behind");
}

// What goes wrong in a search is the asker's Error; a shard of another store, or of another retriever, is refused.
void refuses(const RanksOptions& ranks) {
    const ServeOptions options = service(ranks);
    const auto store = meet(ranks);
    const index_t s = ranks.rank - 1;
    if (ranks.rank > 0) {
        struct Fails {
            index_t k = kFound, shard = 0, nprobe = 8;
            mutable int questions = 0;
            Hits retrieve(const TokenStore<>& entries, Rows queries) const {
                if (shard == 1 && ++questions == 1) fail("disk on fire");
                return Exact<L2>{k}.retrieve(entries, queries);
            }
        };
        serve_shard(store, options, s, Shard<TokenStore<>>({entries_of(s)}), Fails{.shard = s}, 7);
        // Once more, and shard 2 is another store's.
        const std::string error = error_of([&] {
            serve_shard(store, options, s, Shard<TokenStore<>>({entries_of(s)}), Fails{.shard = s}, s == 2 ? 8 : 7);
        });
        require(s != 2 || error.find("refused: the store's identity: expected 7, got 8") != error.npos,
                "the refused shard to hear why, got '" + error + "'");
        require(s == 2 || !error.empty(), "the others to hear that the front is gone");
        // Shard 2 looks at more lists than the others.
        std::string lists = "meeting";
        for (int i = 0; i < 4 && lists.find("meeting") != lists.npos; ++i) // until the next front is there
            lists = error_of([&] {
                const Fails differs{.shard = s, .nprobe = s == 2 ? 16 : 8};
                serve_shard(store, options, s, Shard<TokenStore<>>({entries_of(s)}), differs, 7);
            });
        require(s != 2 || lists.find("refused: nprobe: expected 8, got 16") != lists.npos,
                "the refused shard to hear of its nprobe, got '" + lists + "'");
        return;
    }
    const TokenStore<> whole = entries_of(-1);
    const Matrix queries = random_rows(4, 9);
    {
        Front<std::int32_t> front(store, options);
        const std::string error = error_of([&] { front.search(queries); });
        require(error.find("shard 1: mnemo: disk on fire") != error.npos, "a failed search to be heard of");
        require_right(front.search(queries), whole, queries);
    }
    const std::string error = error_of([&] { Front<std::int32_t>(store, options); });
    require(error.find("shard 2 does not fit: the store's identity: expected 7, got 8") != error.npos,
            "a refusal, got '" + error + "'");
    const std::string lists = error_of([&] { Front<std::int32_t>(store, options); });
    require(lists.find("shard 2 does not fit: nprobe: expected 8, got 16") != lists.npos,
            "a refusal for nprobe, got '" + lists + "'");
    std::this_thread::sleep_for(200ms); // the store runs here
}

} // namespace

int main() {
    bool passed = true;
    for (const bool through_store : {false, true}) {
        if (!through_store && !Ranks::has_gloo) continue; // no headers of Gloo
        const auto run = [&](const char* what, auto work, int lost = -1, int world = 4) {
            passed = start(what, {world, through_store, 15s, 60s, lost}, work) && passed;
        };
        run("a service answers", answers);
        run("a shard dies", loses<true, false>, 2);
        run("a shard dies, degraded", loses<true, true>, 2);
        run("a shard hangs", loses<false, false>, 2);
        run("a shard hangs, degraded", loses<false, true>, 2);
        run("the store hangs", loses_store<false>, 0, 5);
        run("the store dies", loses_store<true>, 0, 5);
        run("a full queue", waits);
        run("errors and refusals", refuses);
    }
    return passed ? 0 : 1;
}
