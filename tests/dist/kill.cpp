// SPDX-License-Identifier: MIT
// Kills, stops and pauses processes at random moments while they write a datastore in shards and while they serve one:
// no row that was announced as committed may be lost, no neighbour be wrong, nobody wait longer than the time-out says.
//
//     mnemo_dist_kill_test [kills = 8] [seed = 1]
#include "../folder.hpp"
#include "processes.hpp"

#include <mnemo/dist/serve.hpp>
#include <mnemo/dist/sharded_datastore.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/store/tokens.hpp>
#include <mnemo/store/views.hpp>

#include <cerrno>
#include <cstring>
#include <exception>
#include <poll.h>
#include <random>
#include <sys/prctl.h>
#include <system_error>

using namespace mnemo;
using namespace mnemo::nn;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

namespace {

constexpr index_t kDim = 32, kVocab = 50'000, kMaxRows = 20'000;
constexpr int kWriters = 3;
constexpr auto kTimeout = 2000ms;

// Row `row` of shard `shard`; exact in float16.
void fill_row(std::span<float> out, index_t shard, index_t row) {
    for (std::size_t j = 0; j < out.size(); ++j)
        out[j] = static_cast<float>((row * 31 + shard * 17 + static_cast<index_t>(j) * (row % 13 + 7)) % 201 - 100) / 8;
}
std::int32_t value_of(index_t shard, index_t row) { return static_cast<std::int32_t>((row * 17 + shard * 5) % kVocab); }

// Returns the exit code of the child; all but 0 and the two that it may have is an Error.
int ends_within(pid_t child, Clock::time_point end, const char* what, int may = 0, int or_may = 0) {
    int status = 0;
    while (::waitpid(child, &status, WNOHANG) == 0) {
        if (Clock::now() > end) {
            ::kill(child, SIGKILL);
            ::waitpid(child, &status, 0);
            fail(what, ": hangs beyond the time-out");
        }
        std::this_thread::sleep_for(2ms);
    }
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    if (code != 0 && code != may && code != or_may) fail(what, ": ended with status ", status);
    return code;
}
pid_t spawn(auto&& work) {
    std::fflush(nullptr);
    const pid_t child = ::fork();
    if (child < 0) fail_system("child", "start");
    if (child == 0) {
        ::prctl(PR_SET_PDEATHSIG, SIGKILL); // nobody is left behind by a test that fails
        try {
            work();
        } catch (const std::exception& e) {
            std::fprintf(stderr, "child: %s\n", e.what());
            std::_Exit(1);
        }
        std::_Exit(0);
    }
    return child;
}

// ---- Writers ----

struct Announced {
    std::int64_t rank, rows; // committed
};

constexpr int kLost = 3, kEndedByC10d = 4; // exit codes

// A thread of LibTorch 1.13's store does not catch that its connection is reset, as it is when the process that runs
// the store dies before it has accepted it: that ends the rank, and no caller can help it. Nothing else may end one.
void tell_that_it_was_c10d() {
    std::set_terminate([] {
        try {
            if (const auto e = std::current_exception()) std::rethrow_exception(e);
        } catch (const std::system_error& e) {
            if (TORCH_VERSION_MAJOR < 2 && e.code().value() == ECONNRESET) std::_Exit(kEndedByC10d);
        } catch (...) {
        }
        std::abort();
    });
}

[[noreturn]] void write(const RanksOptions& options, const std::string& folder, bool create, unsigned seed, int pipe) {
    tell_that_it_was_c10d();
    try {
        const auto ranks = std::make_shared<Ranks>(options);
        DatastoreOptions store;
        store.host.key_dim = kDim, store.host.vocab_size = kVocab;
        store.block_rows = 512, store.overwrite = true;
        auto writer = create ? ShardedDatastoreWriter::create(ranks, folder, store)
                             : ShardedDatastoreWriter::resume(ranks, folder);
        const auto say = [&] {
            const Announced message{options.rank, writer.committed()};
            if (::write(pipe, &message, sizeof message) != static_cast<ssize_t>(sizeof message)) std::_Exit(2);
        };
        say();
        std::mt19937 alike(seed), own(seed + 1 + static_cast<unsigned>(options.rank));
        if (own() % 2 == 0) writer.writer().set_commit_every(static_cast<index_t>(own() % 40'000 + 1));
        while (writer.size() < kMaxRows) {
            const index_t rows = static_cast<index_t>(own() % 200), first = writer.local_size();
            Matrix keys(rows, kDim);
            std::vector<std::int32_t> values;
            for (index_t i = 0; i < rows; ++i) {
                fill_row(keys[i], options.rank, first + i);
                values.push_back(value_of(options.rank, first + i));
            }
            writer.append(Rows(keys), values);
            if (alike() % 3 == 0) {
                writer.commit();
                say();
            }
        }
        writer.close();
        say();
        std::_Exit(0);
    } catch (const Error&) { // a rank is gone: what others must hear
        std::_Exit(kLost);
    }
}

class Building {
  public:
    Building(std::string folder, unsigned seed) : folder_(std::move(folder)), random_(seed) {}

    void kill_once(bool through_store) {
        const bool there = exists(ShardsManifest::path(folder_));
        const bool create = !there || ShardsManifest::read(folder_).rows() >= kMaxRows || random_() % 20 == 0;
        if (create) std::fill(std::begin(announced_), std::end(announced_), 0);
        int ends[2];
        if (::pipe(ends) != 0) fail_system("pipe", "create");
        RanksOptions options;
        options.world = kWriters, options.port = free_port(), options.timeout = kTimeout;
        options.through_store = through_store;
        const unsigned seed = random_();
        std::vector<pid_t> children;
        for (int r = 0; r < kWriters; ++r) {
            options.rank = r;
            children.push_back(spawn([&] { write(options, folder_, create, seed, ends[1]); }));
        }
        ::close(ends[1]);
        std::this_thread::sleep_for(std::chrono::milliseconds(random_() % 700));
        const std::size_t victim = random_() % kWriters;
        const bool stops = random_() % 4 == 0; // else it dies
        ::kill(children[victim], stops ? SIGSTOP : SIGKILL);
        // The others end by themselves: while they meet, commit, or wait for the one that is lost.
        const auto end = Clock::now() + 2 * kTimeout + 2s;
        for (std::size_t r = 0; r < children.size(); ++r) {
            if (r == victim) continue;
            const bool store_died = victim == 0 && !stops;
            ended_by_c10d_ +=
                ends_within(children[r], end, "a writer", kLost, store_died ? kEndedByC10d : 0) == kEndedByC10d;
        }
        ::kill(children[victim], SIGKILL);
        ::waitpid(children[victim], nullptr, 0);
        for (Announced m{}; ::read(ends[0], &m, sizeof m) == static_cast<ssize_t>(sizeof m); ++commits_)
            announced_[m.rank] = m.rows;
        ::close(ends[0]);
        check(create);
    }
    /// Any number of ranks find in the shards what one process finds in all rows.
    void open_on(int world, bool through_store) {
        if (!exists(ShardsManifest::path(folder_))) return;
        const std::string folder = folder_;
        const bool same = start("opening", {world, through_store, 10s, 60s}, [folder](const RanksOptions& options) {
            const auto ranks = std::make_shared<Ranks>(options);
            const auto store = open_sharded(ranks, folder);
            TokenStore<half> whole(kDim);
            std::vector<float> row(kDim);
            const ShardsManifest manifest = ShardsManifest::read(folder);
            for (std::size_t s = 0; s < manifest.shards.size(); ++s)
                for (index_t i = 0; i < manifest.shards[s].rows; ++i) {
                    fill_row(row, static_cast<index_t>(s), i);
                    const std::vector<std::int32_t> token{value_of(static_cast<index_t>(s), i)};
                    whole.append({row.data(), 1, kDim}, token);
                }
            require(store.size() == whole.size(), "as many entries as were committed");
            Matrix queries(20 + options.rank, kDim);
            for (index_t q = 0; q < queries.rows; ++q) fill_row(queries[q], 1, 1000 + q);
            const Hits found = Sharded<Exact<L2>>{{.k = 50}}.retrieve(store, queries),
                       right = Exact<L2>{50}.retrieve(whole, queries);
            for (index_t q = 0; q < queries.rows; ++q) {
                const auto a = found.ids(q), b = right.ids(q);
                require(std::equal(a.begin(), a.end(), b.begin(), b.end()), "the right neighbours");
                for (const index_t id : a) require(store.value(id) == whole.value(id), "their values");
            }
        });
        if (!same) fail("opened on ", world, " ranks: not what was written");
    }
    long long commits() const { return commits_; }
    int ended_by_c10d() const { return ended_by_c10d_; }

  private:
    void check(bool created) {
        if (!exists(ShardsManifest::path(folder_))) {
            for (const std::int64_t rows : announced_)
                if (rows > 0 || !created) fail("the datastore is gone");
            return;
        }
        const ShardsManifest manifest = ShardsManifest::read(folder_);
        expect_equal("shards", manifest.shards.size(), std::size_t{kWriters});
        std::vector<float> row(kDim), expected(kDim);
        for (std::size_t s = 0; s < manifest.shards.size(); ++s) {
            const auto& shard = manifest.shards[s];
            if (shard.rows < announced_[s])
                fail("shard ", s, ": expected at least the ", announced_[s], " committed rows, got ", shard.rows);
            const Datastore store = Datastore::open(folder_ + "/" + shard.folder, {.verify = true});
            if (store.size() < shard.rows || store.manifest().id != shard.id) fail("shard ", s, " is not as committed");
            for (index_t i = 0; i < store.size(); ++i) {
                store.keys().read(i, row);
                fill_row(expected, static_cast<index_t>(s), i);
                if (row != expected || store.value(i) != value_of(static_cast<index_t>(s), i))
                    fail("shard ", s, ": row ", i, " is not what was written");
            }
            announced_[s] = shard.rows;
        }
    }
    std::string folder_;
    std::mt19937 random_;
    std::int64_t announced_[kWriters] = {};
    long long commits_ = 0;
    int ended_by_c10d_ = 0;
};

// ---- A service ----

constexpr index_t kShards = 3, kRows = 1500, kFound = 30;

TokenStore<> entries_of(index_t shard) { // -1: of all
    TokenStore<> store(kDim);
    std::vector<float> row(kDim);
    for (index_t id = 0; id < kRows; ++id) {
        if (shard >= 0 && id / (kRows / kShards) != shard) continue;
        fill_row(row, 2, id);
        const std::vector<std::int32_t> token{value_of(2, id)};
        store.append({row.data(), 1, kDim}, token);
    }
    return store;
}

struct Counts {
    long long answers = 0, degraded = 0;
    double slowest = 0;
};

// Asks and compares until it is told to stop; then every shard must be back.
void ask(const ServeOptions& options, unsigned seed, int told, int result) {
    const TokenStore<> whole = entries_of(-1);
    Front<std::int32_t> front(meet(options.ranks, false), options);
    std::mt19937 random(seed);
    Counts counts;
    bool over = false;
    for (auto last = Clock::now();;) {
        pollfd poll{told, POLLIN, 0};
        if (!over && ::poll(&poll, 1, 0) > 0) over = true, last = Clock::now();
        Matrix queries(1 + static_cast<index_t>(random() % 5), kDim);
        for (index_t q = 0; q < queries.rows; ++q) fill_row(queries[q], 3, static_cast<index_t>(random() % 5000));
        const auto begin = Clock::now();
        const auto got = front.search(queries);
        const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
        counts.slowest = std::max(counts.slowest, seconds);
        require(Clock::now() - begin < 3 * options.timeout + 500ms, text("an answer in time, not after ", seconds));
        const KeptEntries<TokenStore<>> kept(whole, [&](index_t id) {
            return std::find(got.lost.begin(), got.lost.end(), id / (kRows / kShards)) == got.lost.end();
        });
        const Hits right = Exact<L2>{kFound}.retrieve(kept, queries);
        for (index_t q = 0; q < queries.rows; ++q) {
            const auto a = got.hits.ids(q), b = right.ids(q);
            const auto x = got.hits.scores(q), y = right.scores(q);
            require(std::equal(a.begin(), a.end(), b.begin(), b.end()) &&
                        std::memcmp(x.data(), y.data(), y.size_bytes()) == 0,
                    "the neighbours in the living shards");
            for (const index_t id : a) require(got.value(id) == whole.value(id), "their values");
        }
        ++counts.answers;
        counts.degraded += !got.lost.empty();
        if (over && got.lost.empty()) break;
        require(!over || Clock::now() - last < 10s, "all shards to be back within ten seconds");
    }
    if (::write(result, &counts, sizeof counts) != static_cast<ssize_t>(sizeof counts)) fail("pipe");
}

Counts serve(int kills, bool through_store, unsigned seed) {
    std::mt19937 random(seed);
    ServeOptions options;
    options.ranks.port = free_port(), options.ranks.timeout = 20s, options.ranks.through_store = through_store;
    options.ranks.rank = 1, options.ranks.store_runs_elsewhere = true;
    options.shards = kShards, options.timeout = 500ms, options.degraded = true;
    const pid_t meeting = spawn([&] {
        RanksOptions server = options.ranks;
        server.rank = 0, server.store_runs_elsewhere = false;
        const auto store = meet(server, false);
        for (;;) ::pause();
    });
    const auto shard = [&](index_t s) {
        return spawn([&, s] {
            const Shard<TokenStore<>> entries({entries_of(s)});
            for (int losses = 0; losses < 1000; ++losses) {
                try {
                    return serve_shard(meet(options.ranks, false), options, s, entries, Exact<L2>{kFound}, 11);
                } catch (const Error&) { // the front was lost, or has given this shard up: it comes again
                }
            }
            fail("shard: expected to be told when it is over");
        });
    };
    std::vector<pid_t> shards;
    for (index_t s = 0; s < kShards; ++s) shards.push_back(shard(s));
    int tell[2], hear[2];
    if (::pipe(tell) != 0 || ::pipe(hear) != 0) fail_system("pipe", "create");
    const unsigned questions = random();
    const pid_t front = spawn([&] { ask(options, questions, tell[0], hear[1]); });
    std::this_thread::sleep_for(500ms);
    for (int i = 0; i < kills; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(random() % 300));
        const std::size_t victim = random() % kShards;
        const auto away = std::chrono::milliseconds(random() % 900);
        if (random() % 3 == 0) { // away for a while
            ::kill(shards[victim], SIGSTOP);
            std::this_thread::sleep_for(away);
            ::kill(shards[victim], SIGCONT);
            continue;
        }
        if (random() % 3 == 0) ::kill(shards[victim], SIGSTOP), std::this_thread::sleep_for(away);
        ::kill(shards[victim], SIGKILL);
        ::waitpid(shards[victim], nullptr, 0);
        if (random() % 2 == 0) std::this_thread::sleep_for(away);
        shards[victim] = shard(static_cast<index_t>(victim));
    }
    if (::write(tell[1], "x", 1) != 1) fail("pipe");
    ends_within(front, Clock::now() + 30s, "the front");
    Counts counts;
    ::close(hear[1]);
    if (::read(hear[0], &counts, sizeof counts) != static_cast<ssize_t>(sizeof counts)) fail("the front said nothing");
    for (const pid_t s : shards) ends_within(s, Clock::now() + options.silence() + 2s, "a shard");
    ::kill(meeting, SIGKILL);
    ::waitpid(meeting, nullptr, 0);
    for (const int end : {tell[0], tell[1], hear[0]}) ::close(end);
    return counts;
}

} // namespace

int main(int count, char** arguments) {
    const int kills = count > 1 ? std::atoi(arguments[1]) : 8;
    const unsigned seed = count > 2 ? static_cast<unsigned>(std::atoi(arguments[2])) : 1;
    Folder folder;
    int done = 0;
    try {
        Building building(folder / "store", seed);
        for (; done < (kills + 1) / 2; ++done) {
            const bool through_store = !Ranks::has_gloo || done % 4 == 3;
            building.kill_once(through_store);
            if (done % 10 == 9 || done + 1 == (kills + 1) / 2) building.open_on(1 + done / 10 % 4, through_store);
            if (done % 50 == 49) std::printf("%d writers lost\n", done + 1), std::fflush(stdout);
        }
        std::printf("building: %d writers lost, %lld commits announced, all rows right\n", done, building.commits());
        if (building.ended_by_c10d() > 0)
            std::printf("          %d more ended by a thread of c10d's own store\n", building.ended_by_c10d());
        std::fflush(stdout);
        while (done < kills) {
            const bool through_store = !Ranks::has_gloo || done % 4 == 3;
            const int n = std::min(kills - done, 50);
            const Counts counts = serve(n, through_store, seed + static_cast<unsigned>(done));
            done += n;
            std::printf(
                "serving: %d shards lost or paused, %lld answers (%lld without a shard), all right; the slowest "
                "after %.2f s\n",
                n, counts.answers, counts.degraded, counts.slowest);
            std::fflush(stdout);
        }
    } catch (const std::exception& e) {
        folder.keep();
        std::fprintf(stderr, "after %d kills with seed %u: %s\nleft in %s\n", done, seed, e.what(),
                     folder.path().c_str());
        return 1;
    }
    return 0;
}
