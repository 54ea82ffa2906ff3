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
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <future>
#include <memory>
#include <numeric>
#include <sched.h>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

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

namespace detail {
// Without the stack that LibTorch appends.
inline std::string first_line(const std::exception& e) {
    const std::string_view what(e.what());
    return std::string(what.substr(0, std::min<std::size_t>(what.find('\n'), 300)));
}
// What `work` will return. It has a thread of its own, in which it goes on though nobody waits: so it must own what it
// uses.
template <class F> auto aside(F work) {
    auto task = std::make_shared<std::packaged_task<std::invoke_result_t<F>()>>(std::move(work));
    auto result = task->get_future();
    std::thread([task] { (*task)(); }).detach();
    return result;
}
// The same, or an Error after `limit`: not everything that waits for a peer gives up by itself.
template <class F> auto within(std::chrono::milliseconds limit, F work) {
    auto result = aside(std::move(work));
    if (result.wait_for(limit) != std::future_status::ready) fail("not everybody came within ", limit.count(), " ms");
    return result.get();
}
// The same, where every failure is an Error that begins with `what`.
template <class F> auto in_time(const std::string& what, std::chrono::milliseconds limit, F work) {
    try {
        return within(limit, std::move(work));
    } catch (const std::exception& e) {
        fail(what, ": ", first_line(e));
    }
}
} // namespace detail

/// The store at which processes meet. Rank 0 runs it, unless it runs elsewhere; with `all` it waits for everybody. A
/// process that leaves SIGPIPE at its default ignores it from now on: a peer that is gone is an Error, not the end.
/// Error where nobody answers within the time-out.
inline c10::intrusive_ptr<c10d::Store> meet(const RanksOptions& o, bool all = true) {
    if (const auto before = std::signal(SIGPIPE, SIG_IGN); before != SIG_DFL) std::signal(SIGPIPE, before);
    c10d::TCPStoreOptions meeting;
    meeting.port = static_cast<std::uint16_t>(o.port);
    meeting.isServer = o.rank == 0 && !o.store_runs_elsewhere;
    if (all) meeting.numWorkers = static_cast<std::size_t>(o.world);
    meeting.waitWorkers = all && !o.store_runs_elsewhere;
    meeting.timeout = o.timeout;
    // A little longer than it takes by itself, whose message says more.
    return detail::in_time(text("meeting at ", o.address, ":", o.port), o.timeout + std::chrono::milliseconds(500),
                           [where = o.address, meeting] {
                               return c10::intrusive_ptr<c10d::Store>(
                                   c10::make_intrusive<c10d::TCPStore>(where, meeting));
                           });
}

namespace detail {
// A store that this process may run. Its thread ends only when it has read the message that it is reading: never, where
// the sender hangs in the middle of it. After half a second it is left to itself.
class HeldStore {
  public:
    HeldStore(c10::intrusive_ptr<c10d::Store> store = {}) : store_(std::move(store)) {}
    HeldStore(HeldStore&&) = default;
    HeldStore& operator=(HeldStore&& other) noexcept {
        std::swap(store_, other.store_);
        return *this;
    }
    ~HeldStore() {
        if (!store_) return;
        try {
            within(std::chrono::milliseconds(500), [store = std::move(store_)]() mutable { store.reset(); });
        } catch (const std::exception&) { // it goes on in its own thread
        }
    }
    const c10::intrusive_ptr<c10d::Store>& shared() const { return store_; }
    explicit operator bool() const { return store_.defined(); }
    c10d::Store* operator->() const { return store_.get(); }

  private:
    c10::intrusive_ptr<c10d::Store> store_;
};
// A message under a name of the store; returns the names it takes. Values above 8 MiB are refused by some versions:
// pieces, of which the first says how many there are.
inline std::vector<std::string> put_message(c10d::Store& store, const std::string& name, const std::uint8_t* data,
                                            std::size_t size) {
    constexpr std::size_t piece = std::size_t{4} << 20;
    const std::size_t pieces = std::max<std::size_t>((size + piece - 1) / piece, 1);
    std::vector<std::string> names;
    for (std::size_t i = 0; i < pieces; ++i) {
        std::vector<std::uint8_t> bytes;
        bytes.reserve(std::min(size, piece) + 4);
        if (i == 0)
            for (int b = 0; b < 4; ++b) bytes.push_back(static_cast<std::uint8_t>(pieces >> (8 * b)));
        const std::size_t first = i * piece, last = std::min(size, first + piece);
        if (last > first) bytes.insert(bytes.end(), data + first, data + last);
        names.push_back(name + "/" + std::to_string(i));
        store.set(names.back(), bytes);
    }
    return names;
}
inline std::vector<std::uint8_t> take_message(c10d::Store& store, const std::string& name, bool remove = false) {
    std::vector<std::uint8_t> bytes = store.get(name + "/0");
    if (bytes.size() < 4) fail("the store: expected a message of at least 4 bytes, got ", bytes.size());
    std::size_t pieces = 0;
    for (std::size_t b = 0; b < 4; ++b) pieces |= static_cast<std::size_t>(bytes[b]) << (8 * b);
    bytes.erase(bytes.begin(), bytes.begin() + 4);
    for (std::size_t i = 1; i < pieces; ++i) {
        const auto more = store.get(name + "/" + std::to_string(i));
        bytes.insert(bytes.end(), more.begin(), more.end());
    }
    for (std::size_t i = pieces; remove && i-- > 0;) store.deleteKey(name + "/" + std::to_string(i)); // the first last
    return bytes;
}
inline std::int64_t width_of(const at::Tensor& rows) {
    std::int64_t n = 1;
    for (std::int64_t i = 1; i < rows.dim(); ++i) n *= rows.size(i);
    return n;
}
inline at::Tensor rows_like(const at::Tensor& like, std::int64_t rows) {
    auto shape = like.sizes().vec();
    shape[0] = rows;
    return at::empty(shape, like.options());
}
inline std::size_t row_bytes(const at::Tensor& rows) {
    return rows.element_size() *
           static_cast<std::size_t>(rows.size(0) > 0 ? rows.numel() / rows.size(0) : width_of(rows));
}
// What ranks have for one another, through the store: bytes under a name for each call and rank, or pair of ranks. When
// a call is over, everybody has read the one before it.
struct ThroughStore {
    c10::intrusive_ptr<c10d::Store> store;
    int rank, size;
    std::vector<std::string> posted{}, read_by_all{}; // names, of this call and of the one before
    std::int64_t calls = 0;

    std::vector<at::Tensor> gather(const at::Tensor& own) {
        const at::Tensor host = own.to(at::kCPU);
        put(name_of(rank, rank), host);
        const std::size_t row = row_bytes(host);
        std::vector<at::Tensor> out;
        for (int r = 0; r < size; ++r) {
            if (r == rank) {
                out.push_back(own);
                continue;
            }
            const std::vector<std::uint8_t> theirs = take(name_of(r, r));
            if (row == 0 || theirs.size() % row != 0)
                fail("rank ", r, ": expected rows of ", row, " bytes, got ", theirs.size(), " bytes");
            const at::Tensor rows = rows_like(host, static_cast<std::int64_t>(theirs.size() / row));
            if (!theirs.empty()) std::memcpy(rows.data_ptr(), theirs.data(), theirs.size());
            out.push_back(rows.to(own.device()));
        }
        end_call();
        return out;
    }
    at::Tensor exchange(const at::Tensor& own, const std::vector<std::int64_t>& to,
                        const std::vector<std::int64_t>& from) {
        const std::vector<at::Tensor> parts = own.to(at::kCPU).split_with_sizes(to);
        const std::size_t row = row_bytes(own);
        for (int i = 1; i < size; ++i) { // each begins with another rank
            const int r = (rank + i) % size;
            put(name_of(rank, r), parts[static_cast<std::size_t>(r)]);
        }
        const at::Tensor out = rows_like(parts[0], std::accumulate(from.begin(), from.end(), std::int64_t{0}));
        auto* at = static_cast<std::uint8_t*>(out.data_ptr());
        for (int r = 0; r < size; ++r) {
            const std::size_t expected = row * static_cast<std::size_t>(from[static_cast<std::size_t>(r)]);
            if (r == rank) {
                if (expected > 0) std::memcpy(at, parts[static_cast<std::size_t>(r)].data_ptr(), expected);
            } else {
                const std::vector<std::uint8_t> theirs = take(name_of(r, rank));
                if (theirs.size() != expected) fail("rank ", r, ": expected ", expected, " bytes, got ", theirs.size());
                if (expected > 0) std::memcpy(at, theirs.data(), expected);
            }
            at += expected;
        }
        end_call();
        return out.to(own.device());
    }
    std::string name_of(int from, int to) const {
        return "mnemo/" + std::to_string(calls) + "/" + std::to_string(from) + "/" + std::to_string(to);
    }
    void put(const std::string& name, const at::Tensor& host) {
        for (std::string& n :
             put_message(*store, name, static_cast<const std::uint8_t*>(host.data_ptr()), host.nbytes()))
            posted.push_back(std::move(n));
    }
    std::vector<std::uint8_t> take(const std::string& name) { return take_message(*store, name); }
    void end_call() {
        for (const std::string& name : read_by_all) store->deleteKey(name);
        read_by_all = std::move(posted);
        posted.clear();
        ++calls;
    }
};
} // namespace detail

#if MNEMO_GLOO
/// A group over Gloo. Others reach this process at the loopback's address where the store is there, else at what its
/// host name stands for (or that of GLOO_SOCKET_IFNAME, the name of an interface).
inline c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo_group(const c10::intrusive_ptr<c10d::Store>& store, int rank,
                                                             int world, const RanksOptions& o) {
    auto gloo = c10d::ProcessGroupGloo::Options::create(o.timeout);
    // The device's thread asks again and again for a connection that another thread of this process has locked. Where
    // they share a core and it woke up while the other one ran, it keeps that one waiting for a whole time slice: as a
    // batch thread, which it is when its maker is, it takes the core from nobody.
    auto device = std::async(std::launch::async, [&o] {
#if defined(SCHED_BATCH)
        if (sched_param own{}; ::sched_getscheduler(0) == SCHED_OTHER) ::sched_setscheduler(0, SCHED_BATCH, &own);
#endif
        const char* interface = std::getenv("GLOO_SOCKET_IFNAME");
        return interface != nullptr && *interface != 0 ? c10d::ProcessGroupGloo::createDeviceForInterface(interface)
               : o.address == "127.0.0.1" || o.address == "localhost"
                   ? c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1")
                   : c10d::ProcessGroupGloo::createDefaultDevice();
    });
    gloo->devices.push_back(device.get());
    return c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, world, gloo);
}
#endif

namespace detail {
// Returns when all of it has arrived.
template <class Group>
void all_to_all(Group& group, at::Tensor& out, at::Tensor& in, std::vector<std::int64_t>& from,
                std::vector<std::int64_t>& to) {
    if constexpr (requires { group.all_to_all_single(out, in, from, to); })
        group.all_to_all_single(out, in, from, to)->wait();
    else
        group.alltoall_base(out, in, from, to)->wait();
}
#if MNEMO_GLOO
// A rank may send when its peer has said that it waits. Gloo's own alltoall says so behind what it sends itself: a peer
// that is a little later then begins when all of that has arrived, and the two directions of a wire are used one after
// the other. Here everybody says so first.
inline void all_to_all(c10d::ProcessGroupGloo& group, at::Tensor& out, at::Tensor& in, std::vector<std::int64_t>& from,
                       std::vector<std::int64_t>& to) {
    const std::vector<at::Tensor> incoming = out.split_with_sizes(from), outgoing = in.split_with_sizes(to);
    constexpr int tag = 0x6d6e; // a host's own messages have others
    const auto world = incoming.size(), own = static_cast<std::size_t>(group.getRank());
    std::vector<decltype(group.send(std::declval<std::vector<at::Tensor>&>(), 0, 0))> pending;
    for (std::size_t i = 1; i < world; ++i) {
        const std::size_t r = (own + world - i) % world;
        std::vector<at::Tensor> one{incoming[r]};
        if (one[0].numel() > 0) pending.push_back(group.recv(one, static_cast<int>(r), tag));
    }
    for (std::size_t i = 1; i < world; ++i) { // each begins with another rank
        const std::size_t r = (own + i) % world;
        std::vector<at::Tensor> one{outgoing[r]};
        if (one[0].numel() > 0) pending.push_back(group.send(one, static_cast<int>(r), tag));
    }
    incoming[own].copy_(outgoing[own]);
    for (const auto& work : pending) work->wait();
}
#endif
} // namespace detail

/// The processes of a job, which gather and exchange rows with one another through LibTorch's c10d: over Gloo where its
/// headers are there (Ranks::has_gloo), else through the store that the processes meet at, which any LibTorch has and
/// which is slower. A host with a process group of its own (NCCL, MPI) hands it over. Calls are made by all ranks in
/// the same order. A rank that is gone gives the others an Error: at once where the connection breaks, after `timeout`
/// at the latest; the group is of no use then.
class Ranks {
  public:
    static constexpr bool has_gloo = MNEMO_GLOO != 0;

    explicit Ranks(RanksOptions options = RanksOptions::from_environment()) : options_(std::move(options)) {
        const auto& o = options_;
        if (o.world < 1 || o.rank < 0 || o.rank >= o.world)
            fail("ranks: expected a rank below ", o.world, ", got ", o.rank);
        if (o.world == 1) return;
        guarded("meeting", [&] {
            store_ = meet(o);
#if MNEMO_GLOO
            if (o.through_store) return;
            use(detail::within(o.timeout + std::chrono::milliseconds(500),
                               [o, store = store_.shared()] { return gloo_group(store, o.rank, o.world, o); }));
#endif
        });
    }
    /// A group that the host has made: a c10d::ProcessGroup or Backend with allgather, and alltoall_base (of
    /// Gloo's own send and recv) where rows are exchanged. Rows must lie where it wants them.
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
    /// Whether a call has failed: every later one does.
    bool broken() const { return broken_; }
    /// After which a rank that does not answer is an Error.
    std::chrono::milliseconds timeout() const { return options_.timeout; }

    /// rows [n, ...] of every rank, in the order of ranks; n may differ and be 0, type and width may not. The results
    /// carry no gradients.
    std::vector<at::Tensor> gather(const at::Tensor& rows) {
        const at::Tensor own = rows.detach().contiguous();
        if (size() == 1) return {own};
        std::vector<at::Tensor> out;
        guarded("gathering", [&] {
            out = all_gather_ ? by_group(own) : through_store([own](detail::ThroughStore& s) { return s.gather(own); });
        });
        return out;
    }
    /// The same where every rank knows how many rows the others have, `counts` [size()]: one round instead of two.
    std::vector<at::Tensor> gather(const at::Tensor& rows, const std::vector<std::int64_t>& counts) {
        const at::Tensor own = rows.detach().contiguous();
        check_counts("gathering", counts, own.size(0), counts.at(static_cast<std::size_t>(rank())));
        if (size() == 1) return {own};
        const at::Tensor all = detail::rows_like(own, std::accumulate(counts.begin(), counts.end(), std::int64_t{0}));
        gather_into(all, at::cat(std::vector<at::Tensor>(static_cast<std::size_t>(copies()), own)), counts);
        return all.split_with_sizes(counts);
    }
    /// How many times gather_into() wants the own rows.
    std::int64_t copies() const { return all_to_all_ ? size() : 1; }
    /// The same into `out` [sum of counts, ...]. `rows` [copies() times the own rows, ...] is the own rows once, or,
    /// over a group, once for each rank: a message goes straight from each to each, for a ring would wait for as many
    /// neighbours as there are ranks.
    void gather_into(at::Tensor out, const at::Tensor& rows, const std::vector<std::int64_t>& counts) {
        const std::int64_t own = counts.at(static_cast<std::size_t>(rank()));
        check_counts("gathering", counts, rows.size(0), own * copies());
        expect_equal("ranks: gathering: rows in all", out.size(0),
                     std::accumulate(counts.begin(), counts.end(), std::int64_t{0}));
        guarded("gathering", [&] {
            if (all_to_all_ || size() == 1) {
                exchange(out, rows, std::vector<std::int64_t>(counts.size(), own), counts);
                return;
            }
            const auto parts = through_store([rows](detail::ThroughStore& s) { return s.gather(rows); });
            std::int64_t first = 0;
            for (std::size_t r = 0; r < parts.size(); first += counts[r++]) {
                expect_equal(text("rows of rank ", r), parts[r].size(0), counts[r]);
                out.narrow(0, first, counts[r]).copy_(parts[r]);
            }
        });
    }
    /// rows [sum of `to`, ...]: to[r] of them go to rank r, those for rank 0 first. Returns [sum of `from`, ...]: what
    /// rank r had for this one, from[r] rows, in the order of ranks. Every rank must expect what the others send.
    at::Tensor all_to_all(const at::Tensor& rows, const std::vector<std::int64_t>& to,
                          const std::vector<std::int64_t>& from) {
        const at::Tensor own = rows.detach().contiguous();
        if (size() == 1) {
            check_counts("exchanging", to, own.size(0), to.empty() ? 0 : to[0]);
            return own;
        }
        at::Tensor out = detail::rows_like(own, std::accumulate(from.begin(), from.end(), std::int64_t{0}));
        all_to_all_into(out, own, to, from);
        return out;
    }
    /// The same into `out` [sum of `from`, ...], which shares no memory with `rows`; both contiguous.
    void all_to_all_into(at::Tensor out, const at::Tensor& rows, const std::vector<std::int64_t>& to,
                         const std::vector<std::int64_t>& from) {
        check_counts("exchanging", to, rows.size(0), std::accumulate(to.begin(), to.end(), std::int64_t{0}));
        check_counts("exchanging", from, out.size(0), std::accumulate(from.begin(), from.end(), std::int64_t{0}));
        guarded("exchanging", [&] { exchange(out, rows, to, from); });
    }
    /// The sum over ranks, for gradients and counts; summed in the order of ranks, the same bits everywhere.
    at::Tensor sum(const at::Tensor& values) {
        const auto all = gather(values.reshape({1, -1}));
        at::Tensor out = all[0].clone();
        for (std::size_t r = 1; r < all.size(); ++r) out.add_(all[r]);
        return out.view(values.sizes());
    }
    /// values [n], the same n on every rank and a multiple of size(), become their sums over ranks, as sum() gives
    /// them, but a rank receives 2 n numbers instead of n size(): each adds up one part and hands it to the others.
    /// `room`, [n] too, is written over; over a group nothing else is allocated.
    void add_up(at::Tensor values, at::Tensor room) {
        const std::int64_t world = size();
        for (const at::Tensor* t : {&values, &room})
            if (t->dim() != 1 || t->size(0) % world != 0 || !t->is_contiguous() || t->sizes() != values.sizes() ||
                t->scalar_type() != values.scalar_type())
                fail("ranks: adding up: expected twice the same contiguous [n], n a multiple of ", world, ", got ",
                     describe(*t));
        if (world == 1) return;
        const std::vector<std::int64_t> parts(static_cast<std::size_t>(world), values.size(0) / world);
        all_to_all_into(room, values, parts, parts);
        const at::Tensor rows = room.view({world, -1}), sum = rows[0];
        for (std::int64_t r = 1; r < world; ++r) sum.add_(rows[r]);
        for (std::int64_t r = 1; r < world; ++r) rows[r].copy_(sum);
        all_to_all_into(values, room, parts, parts);
    }

  private:
    void exchange(at::Tensor out, at::Tensor in, const std::vector<std::int64_t>& to,
                  const std::vector<std::int64_t>& from) {
        if (size() == 1)
            out.copy_(in);
        else if (all_to_all_)
            all_to_all_(out, in, from, to);
        else
            out.copy_(through_store([in, to, from](detail::ThroughStore& s) { return s.exchange(in, to, from); }));
    }
    // Not every call of the store gives up by itself when the process that runs it hangs.
    template <class F> std::invoke_result_t<F, detail::ThroughStore&> through_store(F work) {
        if (!through_store_)
            through_store_ =
                std::make_shared<detail::ThroughStore>(detail::ThroughStore{store_.shared(), rank(), size()});
        return detail::within(options_.timeout + std::chrono::seconds(1),
                              [work, shared = through_store_] { return work(*shared); });
    }
    template <class Group> void use(c10::intrusive_ptr<Group> group) {
        all_to_all_ = [group](at::Tensor& out, at::Tensor& in, std::vector<std::int64_t> from,
                              std::vector<std::int64_t> to) { detail::all_to_all(*group, out, in, from, to); };
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
    void check_counts(const char* what, const std::vector<std::int64_t>& counts, std::int64_t got,
                      std::int64_t expected) const {
        if (counts.size() != static_cast<std::size_t>(size()) || got != expected)
            fail("ranks: ", what, ": expected counts of ", size(), " ranks and ", expected, " rows, got ",
                 counts.size(), " and ", got);
    }
    void guarded(const char* what, auto&& work) {
        if (broken_) fail("ranks: ", what, ", rank ", rank(), " of ", size(), ": an earlier call has failed");
        try {
            work();
        } catch (const std::exception& e) {
            broken_ = true;
            fail("ranks: ", what, ", rank ", rank(), " of ", size(), ": ", detail::first_line(e));
        }
    }

    RanksOptions options_;
    detail::HeldStore store_; // before those that use it
    std::function<void(std::vector<at::Tensor>&, const at::Tensor&)> all_gather_;
    std::function<void(at::Tensor&, at::Tensor&, std::vector<std::int64_t>, std::vector<std::int64_t>)> all_to_all_;
    std::shared_ptr<detail::ThroughStore> through_store_;
    bool broken_ = false;
};

namespace detail {
/// Keys and targets of a batch without padding.
inline std::pair<at::Tensor, at::Tensor> entries_of(const TrimeBatch& batch) {
    at::Tensor keys = batch.keys.reshape({-1, batch.keys.size(-1)}), targets = batch.targets.reshape(-1);
    if (!batch.lengths.empty()) {
        const at::Tensor lengths = at::tensor(std::vector<std::int64_t>(batch.lengths.begin(), batch.lengths.end()));
        const at::Tensor real = at::arange(batch.targets.size(1)).unsqueeze(0).lt(lengths.unsqueeze(1)).reshape(-1);
        const at::Tensor rows = at::nonzero(real).view(-1).to(keys.device());
        keys = keys.index_select(0, rows), targets = targets.index_select(0, rows);
    }
    return {keys, targets};
}
} // namespace detail

/// Keys and targets of all ranks, without padding, as the losses want them.
inline RankEntries gather_entries(Ranks& ranks, const TrimeBatch& batch) {
    const auto [keys, targets] = detail::entries_of(batch);
    return {ranks.gather(keys), ranks.gather(targets), static_cast<std::size_t>(ranks.rank())};
}

} // namespace mnemo::nn
