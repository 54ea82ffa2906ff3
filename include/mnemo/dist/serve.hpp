// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/dist/link.hpp>
#include <mnemo/dist/sharded.hpp>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

// A memory that is served: a process for each shard answers batches of queries that a front process sends. Unlike with
// Ranks, processes come and go: a shard that is lost costs its entries until it is back, and nothing else.

namespace mnemo::nn {

/// Where the processes of a service meet, and how long they wait for one another. ranks.rank and ranks.world are not
/// used but for who runs the store: rank 0, unless ranks.store_runs_elsewhere.
struct ServeOptions {
    RanksOptions ranks{};                    // address, port, timeout, through_store
    std::string name = "memory";             // of the service, in the store
    index_t shards = 1;                      // processes that serve
    bool degraded = false;                   // answer without the shards that are lost, and say so
    std::size_t queue = 16;                  // batches that wait; more wait at the door, `timeout` at most
    index_t batch = 1024;                    // queries of waiting batches that are searched together
    std::chrono::milliseconds timeout{5000}; // for an answer of a shard

    /// A process that hears nothing for so long gives up. The front says something to every shard once a `timeout`.
    std::chrono::milliseconds silence() const { return 4 * timeout; }
};

namespace detail {

// Numbers, then bytes: what all messages of a service are.
class Message {
  public:
    std::vector<std::uint8_t> bytes;
    Message() = default;
    explicit Message(std::vector<std::uint8_t> b) : bytes(std::move(b)) {}
    void put(std::int64_t n) { put(&n, sizeof n); }
    void put(const void* data, std::size_t size) {
        const auto* p = static_cast<const std::uint8_t*>(data);
        bytes.insert(bytes.end(), p, p + size);
    }
    void put(std::string_view s) { put(static_cast<std::int64_t>(s.size())), put(s.data(), s.size()); }
    std::int64_t number() {
        std::int64_t n;
        std::memcpy(&n, take(sizeof n), sizeof n);
        return n;
    }
    std::string string() {
        const std::int64_t n = number();
        const auto* p = take(static_cast<std::size_t>(n));
        return {reinterpret_cast<const char*>(p), static_cast<std::size_t>(n)};
    }
    std::uint8_t* take(std::size_t n) {
        if (n > bytes.size() - at_) fail("expected ", n, " more bytes of a message, got ", bytes.size() - at_);
        return bytes.data() + std::exchange(at_, at_ + n);
    }

  private:
    std::size_t at_ = 0;
};
enum Request : std::int64_t { ping, search, stop, refuse };

// What a shard says about itself when it comes; a service is made of shards that agree.
struct ShardFacts {
    std::int64_t entries = 0, key_dim = 0, value_bytes = 0, identity = 0, k = 0, retriever = 0;
    RetrieverSettings set{};
    void write(Message& m) const {
        for (const std::int64_t n :
             {entries, key_dim, value_bytes, identity, k, retriever, set.nprobe, set.probe, set.others})
            m.put(n);
    }
    void read(Message& m) {
        for (std::int64_t* n :
             {&entries, &key_dim, &value_bytes, &identity, &k, &retriever, &set.nprobe, &set.probe, &set.others})
            *n = m.number();
    }
    /// What differs from `first`, the facts of another shard; empty if nothing. Entries may.
    std::string difference(const ShardFacts& first) const {
        const auto differs = [](const char* what, std::int64_t expected, std::int64_t got) {
            return expected == got ? std::string() : text(what, ": expected ", expected, ", got ", got);
        };
        for (const std::string& d :
             {differs("key_dim", first.key_dim, key_dim), differs("bytes of a value", first.value_bytes, value_bytes),
              differs("the store's identity", first.identity, identity), differs("k", first.k, k),
              differs("type of the retriever", first.retriever, retriever),
              differs("nprobe", first.set.nprobe, set.nprobe), differs("probe", first.set.probe, set.probe),
              differs("settings of the retriever", first.set.others, set.others)})
            if (!d.empty()) return d;
        return {};
    }
};
inline std::string counter_of(const ServeOptions& options, index_t shard) {
    return text("mnemo/serve/", options.name, "/", shard, "/times");
}
inline std::string link_of(const ServeOptions& options, index_t shard, std::int64_t time) {
    return text(options.name, "/", shard, "/", time);
}

} // namespace detail

/// Serves shard number `shard`, [0, options.shards), until the front says that it is over: then it returns. Throws
/// Error when the front is lost (it may be called again), and when it refuses this shard. `store` is that of meet().
template <class RetrieverT, class S>
void serve_shard(const c10::intrusive_ptr<c10d::Store>& store, const ServeOptions& options, index_t shard,
                 const Shard<S>& entries, const RetrieverT& retriever, std::uint64_t identity = 0) {
    using Value = typename Shard<S>::value_type;
    entries.check();
    const index_t k = k_of(retriever), width = std::min(k, entries.size()), bytes = entries.value_bytes();
    // A name of its own each time: what an earlier process of this shard has left in the store is not seen.
    const std::int64_t time =
        detail::in_time(text("shard ", shard, " of ", options.name, ": the store"), options.silence(),
                        [store, counter = detail::counter_of(options, shard)] { return store->add(counter, 1); });
    RanksOptions ranks = options.ranks;
    ranks.timeout = options.silence();
    Link link(ranks, detail::link_of(options, shard, time), 1);
    detail::Message hello;
    const RetrieverSettings set = settings_of(retriever);
    detail::ShardFacts{entries.size(),
                       entries.key_dim(),
                       bytes,
                       static_cast<std::int64_t>(identity),
                       k,
                       detail::type_number<RetrieverT>(set),
                       set}
        .write(hello);
    link.post(hello.bytes);
    std::vector<Hits> spare;
    for (;;) {
        detail::Message request(link.receive(options.silence()));
        const std::int64_t kind = request.number();
        if (kind == detail::stop) return;
        if (kind == detail::refuse) fail("shard ", shard, " of ", options.name, ": refused: ", request.string());
        if (kind == detail::ping) continue;
        const std::int64_t id = request.number(), n = request.number();
        const Rows queries(reinterpret_cast<const float*>(
                               request.take(static_cast<std::size_t>(n * entries.key_dim()) * sizeof(float))),
                           n, entries.key_dim());
        detail::Message answer;
        answer.put(id);
        try {
            detail::Message found; // hits, then as many values
            found.bytes.resize(static_cast<std::size_t>(detail::HitsOnWire::bytes(n, width) + n * width * bytes));
            detail::HitsOnWire hits(found.bytes.data(), n, width);
            std::uint8_t* values = found.bytes.data() + detail::HitsOnWire::bytes(n, width);
            detail::search_parts(retriever, entries, queries, width, spare,
                                 [&](index_t q, std::span<const float> scores, std::span<const std::uint32_t> rows) {
                                     hits.set(q, scores, rows);
                                     std::uint8_t* value = values + q * width * bytes;
                                     for (std::size_t i = 0; i < rows.size(); ++i, value += bytes)
                                         detail::ValueOnWire<Value>::write(entries.value(rows[i]),
                                                                           reinterpret_cast<std::byte*>(value));
                                 });
            answer.put(0);
            answer.put(found.bytes.data(), found.bytes.size());
        } catch (const std::exception& e) { // the front's caller hears of it
            answer.put(1);
            answer.put(std::string_view(e.what()));
        }
        link.post(answer.bytes);
    }
}

/// What a service found for a batch: best first, ties by lower id, as one store would have it.
template <class Value> struct Served {
    Hits hits;
    std::vector<index_t> lost; // shards that did not answer: only with ServeOptions::degraded
    double missing = 0;        // the part of all entries that they hold
    Value value(index_t id) const {
        if (!values.has(id)) fail("served: value of entry ", id, ": expected an entry that was found");
        return values[id];
    }
    detail::FetchedValues<Value> values;
};

/// The front of a service: any number of threads ask it. Value is the value_type of the shards.
template <class Value> class Front {
  public:
    using Answer = Served<Value>;

    /// Waits for all shards, ranks.timeout at most; one that does not fit the others is refused, and an Error.
    Front(c10::intrusive_ptr<c10d::Store> store, ServeOptions options)
        : store_(std::move(store)), options_(std::move(options)), shards_(static_cast<std::size_t>(options_.shards)) {
        if (options_.shards < 1 || options_.queue < 1 || options_.batch < 1)
            fail("front: expected at least one shard, and room for at least one batch of at least one query");
        const auto end = std::chrono::steady_clock::now() + options_.ranks.timeout;
        for (std::size_t s = 0; s < shards_.size(); ++s)
            while (!shards_[s].link) {
                if (take_in(s, end)) fail("front of ", options_.name, ": shard ", s, " ", shards_[s].reason);
                if (!shards_[s].link && std::chrono::steady_clock::now() > end)
                    fail("front of ", options_.name, ": shard ", s, " of ", shards_.size(), " did not come within ",
                         options_.ranks.timeout.count(), " ms", shards_[s].reason.empty() ? "" : ": ",
                         shards_[s].reason);
            }
        first_.assign(1, 0);
        for (const Remote& r : shards_) first_.push_back(first_.back() + r.facts.entries);
        worker_ = std::thread([this] { work(); });
    }
    Front(const Front&) = delete;
    Front& operator=(const Front&) = delete;
    /// Answers what waits, then tells the shards that it is over.
    ~Front() {
        {
            const std::lock_guard lock(mutex_);
            over_ = true;
        }
        changed_.notify_all();
        worker_.join();
        // Who is just being taken in is not left to the next front; a store that hangs is not waited for.
        alive_.reset();
        for (Remote& r : shards_)
            if (r.coming.valid()) r.coming.wait_for(2 * options_.timeout);
    }

    index_t key_dim() const { return facts().key_dim; }
    index_t k() const { return facts().k; }
    index_t size() const { return first_.back(); }

    /// The nearest entries of all shards. Waits while the queue is full, and for the answer; throws Error when the
    /// queue stays full for `timeout`, when a shard's search fails, and, unless degraded, when a shard is lost: after 3
    /// `timeout` behind those that wait already.
    Answer search(Rows queries) { return begin(queries).get(); }
    /// The same, but only waits while the queue is full. Queries are copied.
    std::future<Answer> begin(Rows queries) {
        expect_equal("front: width of the queries", queries.cols, key_dim());
        Job job;
        job.queries = Matrix(queries.rows, queries.cols);
        for (index_t q = 0; q < queries.rows; ++q)
            std::copy(queries[q].begin(), queries[q].end(), job.queries[q].begin());
        auto answer = job.answer.get_future();
        {
            std::unique_lock lock(mutex_);
            if (!changed_.wait_for(lock, options_.timeout, [&] { return waiting_.size() < options_.queue; }))
                fail("front of ", options_.name, ": ", waiting_.size(), " batches have been waiting for ",
                     options_.timeout.count(), " ms: the queue is full");
            waiting_.push_back(std::move(job));
        }
        changed_.notify_all();
        return answer;
    }
    std::size_t waiting() const {
        const std::lock_guard lock(mutex_);
        return waiting_.size();
    }

  private:
    // A process that has come for a shard.
    struct Coming {
        std::int64_t time = 0;      // how often one has come
        std::unique_ptr<Link> link; // none: it is gone again, or does not fit
        detail::ShardFacts facts;
        std::string reason;
        bool fits = true;
    };
    struct Remote {
        std::unique_ptr<Link> link; // none: lost
        detail::ShardFacts facts;
        std::int64_t time = 0;      // of the last one that came
        std::string reason;         // of the loss
        std::future<Coming> coming; // the next one
    };
    struct Job {
        Matrix queries;
        std::promise<Answer> answer;
    };
    const detail::ShardFacts& facts() const { return shards_.front().facts; }

    // Waits for the next process that comes for shard s and hears what it has to say. This is done aside: no answer
    // waits for a shard that hangs while it comes, nor for the store.
    std::future<Coming> await(std::size_t s) const {
        return detail::aside([store = store_.shared(), options = options_, alive = std::weak_ptr<const int>(alive_), s,
                              last = shards_[s].time, model = shards_.front().facts, before = shards_[s].facts] {
            const auto shard = static_cast<index_t>(s);
            Coming out;
            const auto pause = std::chrono::milliseconds(2);
            try {
                while ((out.time = store->add(detail::counter_of(options, shard), 0)) == last) {
                    if (alive.expired()) return out;
                    std::this_thread::sleep_for(pause);
                }
            } catch (const std::exception& e) { // the store is gone: nobody comes any more
                std::this_thread::sleep_for(pause);
                out.time = last, out.reason = detail::first_line(e);
                return out;
            }
            try {
                RanksOptions ranks = options.ranks;
                ranks.timeout = options.timeout;
                auto link = std::make_unique<Link>(ranks, detail::link_of(options, shard, out.time), 0);
                detail::Message hello(link->receive(options.timeout));
                out.facts.read(hello);
                std::string refused;
                if (model.key_dim != 0) refused = out.facts.difference(model);
                if (refused.empty() && before.key_dim != 0 && out.facts.entries != before.entries)
                    refused = text("entries: expected ", before.entries, " as before, got ", out.facts.entries);
                if (refused.empty()) {
                    out.link = std::move(link);
                    return out;
                }
                out.fits = false;
                out.reason = "does not fit: " + refused;
                detail::Message no;
                no.put(detail::refuse);
                no.put(refused);
                link->post(no.bytes);
                link->flush();
            } catch (const std::exception& e) { // it is gone again
                if (out.fits) out.reason = e.what();
            }
            return out;
        });
    }
    // Takes in the process that comes for shard s until `end`; returns whether one came that does not fit.
    bool take_in(std::size_t s, std::chrono::steady_clock::time_point end) {
        Remote& remote = shards_[s];
        if (!remote.coming.valid()) remote.coming = await(s);
        if (remote.coming.wait_until(end) != std::future_status::ready) return false;
        Coming came = remote.coming.get();
        const bool new_one = std::exchange(remote.time, came.time) != came.time;
        if (!came.reason.empty() && (new_one || remote.reason.empty())) remote.reason = std::move(came.reason);
        if (came.link && remote.facts.key_dim == 0) remote.facts = came.facts; // others have the same
        if (came.link) remote.link = std::move(came.link);
        return !came.fits;
    }
    void lose(std::size_t s, std::string reason) {
        shards_[s].link.reset();
        shards_[s].reason = std::move(reason);
    }

    void work() {
        for (;;) {
            std::vector<Job> jobs;
            {
                std::unique_lock lock(mutex_);
                changed_.wait_for(lock, options_.timeout / 4, [&] { return over_ || !waiting_.empty(); });
                if (over_ && waiting_.empty()) break;
                for (index_t n = 0; !waiting_.empty();) {
                    n += waiting_.front().queries.rows;
                    if (!jobs.empty() && n > options_.batch) break;
                    jobs.push_back(std::move(waiting_.front()));
                    waiting_.pop_front();
                }
            }
            changed_.notify_all();
            for (std::size_t s = 0; s < shards_.size(); ++s)
                if (!shards_[s].link) take_in(s, std::chrono::steady_clock::now());
            if (jobs.empty())
                say(detail::ping);
            else
                answer(jobs);
        }
        say(detail::stop);
        for (std::size_t s = 0; s < shards_.size(); ++s) {
            try {
                if (shards_[s].link) shards_[s].link->flush();
            } catch (const Error&) { // a shard that is lost needs no goodbye
            }
        }
    }
    void say(detail::Request what) {
        detail::Message m;
        m.put(what);
        for (std::size_t s = 0; s < shards_.size(); ++s) post(s, m);
    }
    void post(std::size_t s, const detail::Message& m) {
        if (!shards_[s].link) return;
        try {
            shards_[s].link->post(m.bytes);
        } catch (const Error& e) {
            lose(s, e.what());
        }
    }

    void answer(std::vector<Job>& jobs) {
        index_t rows = 0;
        for (const Job& job : jobs) rows += job.queries.rows;
        detail::Message request;
        request.put(detail::search);
        request.put(++searches_);
        request.put(rows);
        for (const Job& job : jobs) request.put(job.queries.data.data(), job.queries.data.size() * sizeof(float));
        for (std::size_t s = 0; s < shards_.size(); ++s) post(s, request);
        const auto end = std::chrono::steady_clock::now() + options_.timeout;
        // One after the other: who comes behind a shard that hangs had all its time, but has not been listened to.
        const auto least = std::max<std::chrono::milliseconds>(
            options_.timeout / std::max<std::int64_t>(4, static_cast<std::int64_t>(shards_.size())),
            std::chrono::milliseconds(1));
        std::vector<detail::Message> answers(shards_.size());
        std::vector<std::optional<detail::HitsOnWire>> hits(shards_.size());
        std::vector<const std::uint8_t*> values(shards_.size());
        std::string failure;
        for (std::size_t s = 0; s < shards_.size(); ++s) {
            if (!shards_[s].link) continue;
            try {
                const auto left =
                    std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
                answers[s] = detail::Message(shards_[s].link->receive(std::max(left, least)));
                if (answers[s].number() != searches_) fail("an answer to another question");
                if (answers[s].number() != 0) {
                    if (failure.empty()) failure = text("shard ", s, ": ", answers[s].string());
                    continue;
                }
                const index_t width = width_of(s), bytes = detail::HitsOnWire::bytes(rows, width);
                hits[s].emplace(answers[s].take(static_cast<std::size_t>(bytes)), rows, width);
                values[s] = answers[s].take(static_cast<std::size_t>(rows * width * facts().value_bytes));
            } catch (const Error& e) {
                lose(s, e.what());
            }
        }
        std::vector<index_t> lost;
        index_t entries = 0;
        for (std::size_t s = 0; s < shards_.size(); ++s)
            if (!shards_[s].link) lost.push_back(static_cast<index_t>(s)), entries += shards_[s].facts.entries;
        const double missing = size() == 0 ? 0 : static_cast<double>(entries) / static_cast<double>(size());
        if (failure.empty() && !lost.empty() && !options_.degraded)
            failure = text("shard ", lost.front(), " of ", shards_.size(), " is lost, and with it ", 100 * missing,
                           " % of the entries: ", shards_[static_cast<std::size_t>(lost.front())].reason);
        if (!failure.empty()) {
            for (Job& job : jobs)
                job.answer.set_exception(
                    std::make_exception_ptr(Error(text("mnemo: front of ", options_.name, ": ", failure))));
            return;
        }
        index_t first = 0;
        for (Job& job : jobs) {
            Answer out;
            out.lost = lost, out.missing = missing;
            out.values.bytes = facts().value_bytes;
            merge(first, job.queries.rows, hits, values, out);
            first += job.queries.rows;
            job.answer.set_value(std::move(out));
        }
    }
    index_t width_of(std::size_t s) const { return std::min<index_t>(k(), shards_[s].facts.entries); }

    void merge(index_t first, index_t rows, const std::vector<std::optional<detail::HitsOnWire>>& hits,
               const std::vector<const std::uint8_t*>& values, Answer& out) {
        std::vector<detail::MergeHits::List> lists;
        std::vector<std::size_t> shard_of;
        for (index_t q = first; q < first + rows; ++q) {
            lists.clear(), shard_of.clear();
            for (std::size_t s = 0; s < hits.size(); ++s)
                if (hits[s]) lists.push_back({&*hits[s], q, first_[s]}), shard_of.push_back(s);
            merge_(lists, k(), [&](index_t, index_t id, float score, std::size_t list, index_t at) {
                out.hits.push(id, score);
                if (out.values.has(id)) return;
                out.values.table.add(id);
                const std::size_t s = shard_of[list];
                const auto* value =
                    reinterpret_cast<const std::byte*>(values[s]) + (q * width_of(s) + at) * facts().value_bytes;
                out.values.values.insert(out.values.values.end(), value, value + facts().value_bytes);
            });
            out.hits.end_row();
        }
    }

    detail::HeldStore store_; // before the links
    ServeOptions options_;
    std::vector<Remote> shards_;
    std::vector<index_t> first_;
    std::shared_ptr<const int> alive_ = std::make_shared<const int>(0); // those who wait for shards look at it
    std::int64_t searches_ = 0;
    detail::MergeHits merge_;
    mutable std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<Job> waiting_;
    bool over_ = false;
    std::thread worker_;
};

/// A service as a store, for memories: one for each thread that reads. It knows the values of what was found last.
template <class Value> class RemoteStore {
  public:
    using value_type = Value;
    explicit RemoteStore(std::shared_ptr<Front<Value>> front) : front_(std::move(front)) {}
    index_t key_dim() const { return front_->key_dim(); }
    index_t size() const { return front_->size(); }
    Value value(index_t id) const { return last_.value(id); }
    /// The part of the entries that the last retrieval did not see.
    double missing() const { return last_.missing; }

  private:
    friend struct RetrieveServed;
    std::shared_ptr<Front<Value>> front_;
    mutable Served<Value> last_;
};

/// The retriever of a RemoteStore: what it finds, and how many, is the affair of those who serve.
struct RetrieveServed {
    template <class Value> Hits retrieve(const RemoteStore<Value>& store, Rows queries) const {
        store.last_ = store.front_->search(queries);
        return std::move(store.last_.hits);
    }
};

} // namespace mnemo::nn
