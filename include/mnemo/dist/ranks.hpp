// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/nn/trime.hpp>

#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/version.h>

// Gloo's own headers are not part of a wheel, and must be of the age of the LibTorch: Debian has both (libgloo-dev).
// MNEMO_GLOO=1 says that they fit, 0 that they are not to be used.
#if !defined(MNEMO_GLOO)
#if defined(USE_C10D_GLOO) && TORCH_VERSION_MAJOR < 2 && __has_include(<gloo/context.h>)
#define MNEMO_GLOO 1
#else
#define MNEMO_GLOO 0
#endif
#endif
#if MNEMO_GLOO
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#endif

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>

namespace mnemo::nn {

/// Which of how many processes this is and where they meet. The defaults are a single process, which needs nobody.
struct RanksOptions {
    int rank = 0, world = 1;
    std::string address = "127.0.0.1";
    int port = 29500;
    bool store_runs_elsewhere = false;            // then rank 0 does not open the port itself
    bool through_store = MNEMO_GLOO == 0;         // instead of Gloo, where there is Gloo
    std::chrono::milliseconds timeout{5 * 60000}; // after which a missing rank is an error

    /// What torchrun sets, or whoever starts the processes: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT (and
    /// TORCHELASTIC_USE_AGENT_STORE). Without WORLD_SIZE a single process.
    static RanksOptions from_environment() {
        const auto text_of = [](const char* name) {
            const char* value = std::getenv(name);
            return std::string_view(value == nullptr ? "" : value);
        };
        RanksOptions out;
        const auto number = [&](const char* name, int low, int high, int& value) {
            const std::string_view s = text_of(name);
            const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), value);
            if (error != std::errc() || end != s.data() + s.size() || value < low || value > high)
                fail("ranks: ", name, ": expected a number from ", low, " to ", high, ", got '", s, "'");
        };
        if (text_of("WORLD_SIZE").empty()) return out;
        number("WORLD_SIZE", 1, 1 << 20, out.world);
        if (out.world == 1) return out;
        number("RANK", 0, out.world - 1, out.rank);
        number("MASTER_PORT", 1, 65535, out.port);
        if (const auto address = text_of("MASTER_ADDR"); !address.empty()) out.address = address;
        out.store_runs_elsewhere = text_of("TORCHELASTIC_USE_AGENT_STORE") == "True";
        return out;
    }
};

/// The processes of a job, which gather rows from one another through LibTorch's c10d: over Gloo where its headers are
/// there (Ranks::has_gloo), else through the store that the processes meet at, which any LibTorch has and which is
/// slower. A host with a process group of its own (NCCL, MPI) hands it over. Calls are made by all ranks in the same
/// order. A rank that is gone gives the others an Error: at once where the connection breaks, after `timeout` at the
/// latest; the group is of no use then.
class Ranks {
  public:
    static constexpr bool has_gloo = MNEMO_GLOO != 0;

    explicit Ranks(RanksOptions options = RanksOptions::from_environment()) : options_(std::move(options)) {
        const auto& o = options_;
        if (o.world < 1 || o.rank < 0 || o.rank >= o.world)
            fail("ranks: expected a rank below ", o.world, ", got ", o.rank);
        if (o.world == 1) return;
        guarded("meeting", [&] {
            c10d::TCPStoreOptions meeting;
            meeting.port = static_cast<std::uint16_t>(o.port);
            meeting.isServer = o.rank == 0 && !o.store_runs_elsewhere;
            meeting.numWorkers = static_cast<std::size_t>(o.world);
            meeting.waitWorkers = !o.store_runs_elsewhere;
            meeting.timeout = o.timeout;
            store_ = c10::make_intrusive<c10d::TCPStore>(o.address, meeting);
#if MNEMO_GLOO
            if (o.through_store) return;
            auto gloo = c10d::ProcessGroupGloo::Options::create(o.timeout);
            // The address at which others reach this process: that of the loopback, or what its host name stands for.
            gloo->devices.push_back(o.address == "127.0.0.1" || o.address == "localhost"
                                        ? c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1")
                                        : c10d::ProcessGroupGloo::createDefaultDevice());
            use(c10::make_intrusive<c10d::ProcessGroupGloo>(store_, o.rank, o.world, gloo));
#endif
        });
    }
    /// A group that the host has made: a c10d::ProcessGroup or Backend with allgather. Rows must lie where it wants
    /// them.
    template <class Group>
    Ranks(c10::intrusive_ptr<Group> group, int rank, int world) : options_{.rank = rank, .world = world} {
        use(std::move(group));
    }
    Ranks(Ranks&&) = default;
    Ranks& operator=(Ranks&&) = delete;
    /// The rank that runs the store stays until the others have read what they were gathering, 30 seconds at most.
    ~Ranks() {
        if (!store_ || broken_) return;
        try {
            const auto name = [](int r) { return "mnemo/left/" + std::to_string(r); };
            if (rank() != 0) store_->set(name(rank()), std::vector<std::uint8_t>{1});
            if (rank() != 0 || options_.store_runs_elsewhere) return;
            std::vector<std::string> others;
            for (int r = 1; r < size(); ++r) others.push_back(name(r));
            store_->wait(others, std::min<std::chrono::milliseconds>(options_.timeout, std::chrono::seconds(30)));
        } catch (const std::exception&) { // somebody is gone: nobody is left to wait for
        }
    }

    int rank() const { return options_.rank; }
    int size() const { return options_.world; }

    /// rows [n, ...] of every rank, in the order of ranks; n may differ and be 0, type and width may not. The results
    /// carry no gradients.
    std::vector<at::Tensor> gather(const at::Tensor& rows) {
        const at::Tensor own = rows.detach().contiguous();
        if (size() == 1) return {own};
        std::vector<at::Tensor> out;
        guarded("gathering", [&] { out = all_gather_ ? by_group(own) : by_store(own); });
        return out;
    }
    /// The sum over ranks, for gradients and counts; summed in the order of ranks, the same bits everywhere.
    at::Tensor sum(const at::Tensor& values) {
        const auto all = gather(values.reshape({1, -1}));
        at::Tensor out = all[0].clone();
        for (std::size_t r = 1; r < all.size(); ++r) out.add_(all[r]);
        return out.view(values.sizes());
    }

  private:
    template <class Group> void use(c10::intrusive_ptr<Group> group) {
        all_gather_ = [group](std::vector<at::Tensor>& out, const at::Tensor& in) {
            std::vector<std::vector<at::Tensor>> lists{out};
            std::vector<at::Tensor> inputs{in};
            group->allgather(lists, inputs)->wait();
        };
    }
    // Sizes first, then rows, filled up to the longest.
    std::vector<at::Tensor> by_group(const at::Tensor& own) const {
        const auto world = static_cast<std::size_t>(size());
        std::vector<at::Tensor> counts, out;
        for (std::size_t r = 0; r < world; ++r) counts.push_back(at::empty({1}, own.options().dtype(at::kLong)));
        all_gather_(counts, at::full({1}, own.size(0), own.options().dtype(at::kLong)));
        std::int64_t longest = 0;
        for (const at::Tensor& n : counts) longest = std::max(longest, n.item<std::int64_t>());
        auto shape = own.sizes().vec();
        shape[0] = longest;
        at::Tensor filled = own;
        if (own.size(0) < longest) {
            filled = at::zeros(shape, own.options());
            filled.narrow(0, 0, own.size(0)).copy_(own);
        }
        for (std::size_t r = 0; r < world; ++r) out.push_back(at::empty(shape, own.options()));
        if (filled.numel() > 0) all_gather_(out, filled);
        for (std::size_t r = 0; r < world; ++r) out[r] = out[r].narrow(0, 0, counts[r].item<std::int64_t>());
        return out;
    }
    // Bytes under a name for each call and rank. When a call is over, everybody has read the one before it.
    std::vector<at::Tensor> by_store(const at::Tensor& own) {
        const at::Tensor host = own.to(at::kCPU);
        const auto name = [&](std::int64_t call, int r) {
            return "mnemo/" + std::to_string(call) + "/" + std::to_string(r);
        };
        std::vector<std::uint8_t> bytes(host.nbytes());
        if (!bytes.empty()) std::memcpy(bytes.data(), host.data_ptr(), bytes.size());
        store_->set(name(calls_, rank()), bytes);
        const std::size_t row = static_cast<std::size_t>(at::zeros({1}, host.options()).nbytes()) *
                                static_cast<std::size_t>(own.size(0) > 0 ? own.numel() / own.size(0) : width_of(own));
        std::vector<at::Tensor> out;
        for (int r = 0; r < size(); ++r) {
            if (r == rank()) {
                out.push_back(own);
                continue;
            }
            const std::vector<std::uint8_t> theirs = store_->get(name(calls_, r));
            if (row == 0 || theirs.size() % row != 0)
                fail("rank ", r, ": expected rows of ", row, " bytes, got ", theirs.size(), " bytes");
            auto shape = own.sizes().vec();
            shape[0] = static_cast<std::int64_t>(theirs.size() / row);
            const at::Tensor rows = at::empty(shape, host.options());
            if (!theirs.empty()) std::memcpy(rows.data_ptr(), theirs.data(), theirs.size());
            out.push_back(rows.to(own.device()));
        }
        if (calls_ > 0) store_->deleteKey(name(calls_ - 1, rank()));
        ++calls_;
        return out;
    }
    static std::int64_t width_of(const at::Tensor& rows) {
        std::int64_t n = 1;
        for (std::int64_t i = 1; i < rows.dim(); ++i) n *= rows.size(i);
        return n;
    }
    void guarded(const char* what, auto&& work) {
        try {
            work();
        } catch (const std::exception& e) {
            broken_ = true;
            fail("ranks: ", what, ", rank ", rank(), " of ", size(), ": ", std::string_view(e.what()).substr(0, 500));
        }
    }

    RanksOptions options_;
    c10::intrusive_ptr<c10d::Store> store_;
    std::function<void(std::vector<at::Tensor>&, const at::Tensor&)> all_gather_;
    std::int64_t calls_ = 0;
    bool broken_ = false;
};

/// Keys and targets of all ranks, without padding, as the losses want them.
inline RankEntries gather_entries(Ranks& ranks, const TrimeBatch& batch) {
    at::Tensor keys = batch.keys.detach().reshape({-1, batch.keys.size(-1)}), targets = batch.targets.reshape(-1);
    if (!batch.lengths.empty()) {
        const at::Tensor lengths = at::tensor(std::vector<std::int64_t>(batch.lengths.begin(), batch.lengths.end()));
        const at::Tensor real = at::arange(batch.targets.size(1)).unsqueeze(0).lt(lengths.unsqueeze(1)).reshape(-1);
        const at::Tensor rows = at::nonzero(real).view(-1).to(keys.device());
        keys = keys.index_select(0, rows), targets = targets.index_select(0, rows);
    }
    return {ranks.gather(keys), ranks.gather(targets), static_cast<std::size_t>(ranks.rank())};
}

} // namespace mnemo::nn
