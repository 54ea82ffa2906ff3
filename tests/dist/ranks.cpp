// SPDX-License-Identifier: MIT
// Processes on the loopback: ranks gather what the others hold, their losses are those of one process that knows
// everything, and one that dies gives the others an error.
#include <mnemo/dist/ranks.hpp>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

using namespace mnemo;
using namespace mnemo::nn;

namespace {

void require(bool holds, const char* what) {
    if (!holds) fail("expected ", what);
}

// Rank r's batch: any rank can make it, so that each knows what to expect. Ranks differ in length; rank 2 is empty.
TrimeBatch batch_of(int rank) {
    at::manual_seed(static_cast<std::uint64_t>(100 + rank));
    const std::int64_t segments = rank == 2 ? 0 : 2, length = 3 + rank;
    TrimeBatch out{at::randn({segments, length, 8}), at::randn({segments, length, 6}),
                   at::randint(20, {segments, length})};
    if (rank == 1) out.lengths = {length, 1};
    return out;
}

void work(const RanksOptions& options) {
    Ranks ranks(options);
    std::vector<at::Tensor> keys, targets;
    for (int r = 0; r < options.world; ++r) {
        const TrimeBatch other = batch_of(r);
        at::Tensor k = other.keys.reshape({-1, 6}), t = other.targets.reshape(-1);
        if (r == 1) k = k.narrow(0, 0, 5), t = t.narrow(0, 0, 5); // its first segment of 4 and one token
        keys.push_back(k), targets.push_back(t);
    }
    TrimeBatch batch = batch_of(options.rank);
    for (int round = 0; round < 3; ++round) {
        const RankEntries entries = gather_entries(ranks, batch);
        require(entries.rank == static_cast<std::size_t>(options.rank), "the own rank");
        for (std::size_t r = 0; r < keys.size(); ++r) {
            require(at::equal(entries.keys[r], keys[r]), "the keys of every rank, in order");
            require(at::equal(entries.targets[r], targets[r]), "the targets of every rank");
        }
        // The losses over what was gathered are those over what is known.
        at::manual_seed(7);
        const OutputLayer output{at::randn({20, 8}), {}, {}};
        const RankEntries known{keys, targets, entries.rank};
        const auto same = [](const TrimeLoss& a, const TrimeLoss& b) {
            require(at::equal(a.token_loss, b.token_loss), "the loss of one process that knows everything");
        };
        for (const std::size_t group : {1, 2})
            same(trime_long_loss(batch, output, {}, entries, group), trime_long_loss(batch, output, {}, known, group));
        same(trime_ext_loss(batch, output, {}, true, entries), trime_ext_loss(batch, output, {}, true, known));
    }
    const at::Tensor sum = ranks.sum(at::full({2, 2}, options.rank + 1.0));
    require(sum.sum().item<double>() == 2.0 * options.world * (options.world + 1), "the sum over ranks");
}

// Rank 1 goes away; everybody else gets an Error in time.
void work_until_death(const RanksOptions& options) {
    Ranks ranks(options);
    ranks.gather(at::ones({2, 2}));
    if (options.rank == 1) std::_Exit(0);
    const auto start = std::chrono::steady_clock::now();
    try {
        for (int i = 0; i < 3; ++i) ranks.gather(at::ones({2, 2}));
    } catch (const Error& e) {
        require(std::chrono::steady_clock::now() - start < 3 * options.timeout, "an error in time");
        require(std::string_view(e.what()).find("ranks: gathering") != std::string_view::npos,
                "an error that says what");
        std::_Exit(0); // the group is of no use: nothing is shut down in order
    }
    fail("expected an error when a rank is gone");
}

int free_port() {
    const int s = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    const bool bound = s >= 0 && ::bind(s, reinterpret_cast<sockaddr*>(&address), size) == 0 &&
                       ::getsockname(s, reinterpret_cast<sockaddr*>(&address), &size) == 0;
    ::close(s);
    if (!bound) fail("expected a free port on the loopback");
    return ntohs(address.sin_port);
}

// Starts `world` processes as torchrun would, by their environment; true if all end well within a minute.
bool start(const char* what, int world, bool through_store, void (*child_work)(const RanksOptions&)) {
    const std::string port = std::to_string(free_port());
    std::vector<pid_t> children;
    std::fflush(nullptr);
    for (int rank = 0; rank < world; ++rank) {
        const pid_t child = ::fork();
        if (child == 0) {
            try {
                ::setenv("RANK", std::to_string(rank).c_str(), 1);
                ::setenv("WORLD_SIZE", std::to_string(world).c_str(), 1);
                ::setenv("MASTER_ADDR", "127.0.0.1", 1);
                ::setenv("MASTER_PORT", port.c_str(), 1);
                RanksOptions options = RanksOptions::from_environment();
                options.timeout = std::chrono::seconds(10);
                options.through_store = through_store;
                child_work(options);
                std::fflush(nullptr);
                std::_Exit(0);
            } catch (const std::exception& e) {
                std::fprintf(stderr, "%s, rank %d of %d: %s\n", what, rank, world, e.what());
                std::_Exit(1);
            }
        }
        children.push_back(child);
    }
    bool passed = true;
    const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    for (const pid_t child : children) {
        int status = 0;
        while (::waitpid(child, &status, WNOHANG) == 0) {
            if (std::chrono::steady_clock::now() > end) {
                std::fprintf(stderr, "%s: a rank of %d hangs\n", what, world);
                ::kill(child, SIGKILL);
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(10));
        }
        passed = passed && WIFEXITED(status) && WEXITSTATUS(status) == 0;
    }
    std::printf("%-7s %s, %d processes, %s\n", passed ? "ok" : "FAILED", what, world,
                through_store ? "through the store" : "over Gloo");
    return passed;
}

bool refuses(const char* name, const char* value) {
    ::setenv("WORLD_SIZE", "2", 1), ::setenv("RANK", "0", 1), ::setenv("MASTER_PORT", "29500", 1);
    ::setenv(name, value, 1);
    bool refused = false;
    try {
        RanksOptions::from_environment();
    } catch (const Error& e) {
        refused = std::string_view(e.what()).find(name) != std::string_view::npos;
    }
    for (const char* all : {"WORLD_SIZE", "RANK", "MASTER_PORT"}) ::unsetenv(all);
    std::printf("%-7s %s=%s is refused\n", refused ? "ok" : "FAILED", name, value);
    return refused;
}

} // namespace

int main() {
    if (std::getenv("RANK") != nullptr) { // torchrun --no-python has started this
        try {
            work(RanksOptions::from_environment());
            std::printf("ok      rank %s of %s\n", std::getenv("RANK"), std::getenv("WORLD_SIZE"));
            return 0;
        } catch (const std::exception& e) {
            std::fprintf(stderr, "rank %s: %s\n", std::getenv("RANK"), e.what());
            return 1;
        }
    }
    bool passed = true;
    for (const bool through_store : {true, false}) {
        if (!through_store && !Ranks::has_gloo) continue; // no headers of Gloo
        for (const int world : {1, 2, 3, 4}) passed = start("gathering", world, through_store, work) && passed;
        for (const int world : {2, 3})
            passed = start("a rank that dies", world, through_store, work_until_death) && passed;
    }
    passed = refuses("RANK", "2") && refuses("WORLD_SIZE", "many") && refuses("MASTER_PORT", "70000") && passed;
    return passed ? 0 : 1;
}
