// SPDX-License-Identifier: MIT
// Processes on the loopback: ranks gather what the others hold, their losses are those of one process that knows
// everything, and one that dies gives the others an error.
#include "processes.hpp"

using namespace mnemo;
using namespace mnemo::nn;

namespace {

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
    // Rows of another number for each pair, some of them none, and more than a message of the store holds.
    const auto rows_for = [&](int from, int to) { return std::int64_t{(3 * from + 5 * to) % 4}; };
    std::vector<std::int64_t> to, from;
    std::vector<at::Tensor> sent, expected;
    for (int r = 0; r < options.world; ++r) {
        to.push_back(rows_for(options.rank, r)), from.push_back(rows_for(r, options.rank));
        sent.push_back(at::full({to.back(), 3}, 100 * options.rank + r, at::kInt));
        expected.push_back(at::full({from.back(), 3}, 100 * r + options.rank, at::kInt));
    }
    require(at::equal(ranks.all_to_all(at::cat(sent), to, from), at::cat(expected)), "what each rank had for this one");
    const std::vector<std::int64_t> large(static_cast<std::size_t>(options.world), 3 << 20);
    const auto numbers = [&](int r) { return at::arange(3 << 20, at::kInt) + r; };
    const auto gathered = ranks.gather(numbers(options.rank), large);
    for (int r = 0; r < options.world; ++r)
        require(at::equal(gathered[static_cast<std::size_t>(r)], numbers(r)), "12 MiB of every rank");
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

// Rank 1 hangs in the middle of a message to the store, whose thread waits for the rest: rank 0, which runs it, ends.
void work_until_half_a_message(const RanksOptions& options) {
    Ranks ranks(options);
    ranks.gather(at::ones({2, 2}));
    if (options.rank == 1) {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(static_cast<std::uint16_t>(options.port));
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        const int s = ::socket(AF_INET, SOCK_STREAM, 0);
        const char first = 0; // of "set"
        require(::connect(s, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 &&
                    ::send(s, &first, 1, 0) == 1,
                "a connection to the store");
    }
    try {
        ranks.gather(at::ones({2, 2}));
    } catch (const Error&) { // where it goes through the store
    }
    while (options.rank == 1) ::pause();
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
    if (std::getenv("RANK") != nullptr) return run_as_rank(work); // torchrun --no-python has started this
    bool passed = true;
    for (const bool through_store : {true, false}) {
        if (!through_store && !Ranks::has_gloo) continue; // no headers of Gloo
        for (const int world : {1, 2, 3, 4})
            passed = start("gathering", {.world = world, .through_store = through_store}, work) && passed;
        passed = start("half a message",
                       {.world = 2,
                        .through_store = through_store,
                        .timeout = std::chrono::seconds(2),
                        .limit = std::chrono::seconds(20),
                        .lost = 1},
                       work_until_half_a_message) &&
                 passed;
        for (const int world : {2, 3})
            passed =
                start("a rank that dies", {.world = world, .through_store = through_store}, work_until_death) && passed;
    }
    passed = refuses("RANK", "2") && refuses("WORLD_SIZE", "many") && refuses("MASTER_PORT", "70000") && passed;
    return passed ? 0 : 1;
}
