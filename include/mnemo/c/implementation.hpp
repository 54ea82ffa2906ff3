// SPDX-License-Identifier: MIT
#pragma once

// What mnemo/c.h declares. The component `c` compiles it; a project that builds it itself includes it in one .cpp file
// and nowhere else.
#include <mnemo/c.h>
#include <mnemo/io/datastore.hpp>
#include <mnemo/papers/knn_lm.hpp>
#include <mnemo/retrieve/any.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/store/tokens.hpp>
#include <mnemo/version.hpp>

#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

using namespace mnemo;

namespace mnemo::c_interface {

inline thread_local char last_error[1024] = "";

inline void remember_error(const char* message) { std::snprintf(last_error, sizeof last_error, "%s", message); }

struct ReadOnly : Error {
    using Error::Error;
};

/// Runs `f`; whatever it throws becomes a status and a message.
inline int guarded(auto&& f) noexcept {
    try {
        f();
        return MNEMO_OK;
    } catch (const ReadOnly& error) {
        remember_error(error.what());
        return MNEMO_READ_ONLY;
    } catch (const std::bad_alloc&) {
        remember_error("mnemo: the system has no more memory");
        return MNEMO_NO_MEMORY;
    } catch (const std::length_error&) {
        remember_error("mnemo: more memory was asked for than can be");
        return MNEMO_NO_MEMORY;
    } catch (const std::exception& error) {
        remember_error(error.what());
    } catch (...) {
        remember_error("mnemo: an unknown exception");
    }
    return MNEMO_ERROR;
}
inline void expect_pointer(const void* pointer, const char* what) {
    if (pointer == nullptr) fail(what, ": expected a pointer, got NULL");
}
/// The caller's struct, as far as it knows it, over the defaults.
template <class T> T known_part(const T* given, T defaults, const char* what) {
    expect_pointer(given, what);
    if (given->size < sizeof given->size || given->size > 4096)
        fail(what, ".size: expected the size of the struct, got ", given->size);
    std::memcpy(&defaults, given, std::min(given->size, sizeof defaults));
    return defaults;
}
inline std::string text_or_empty(const char* s) { return s == nullptr ? "" : s; }

template <class E> E choice(std::int32_t value, std::int32_t last, const char* what) {
    if (value < 0 || value > last) fail(what, ": expected 0 to ", last, ", got ", value);
    return static_cast<E>(value);
}
inline KeyRows key_rows(const mnemo_rows* given, index_t dim) {
    const mnemo_rows rows = known_part(given, mnemo_rows MNEMO_ROWS_INIT(nullptr, 0, 0), "states");
    if (rows.rows < 0) fail("states.rows: expected at least 0, got ", rows.rows);
    expect_equal("states.dim", index_t{rows.dim}, dim);
    if (rows.stride < rows.dim) fail("states.stride: expected at least ", rows.dim, ", got ", rows.stride);
    if (rows.rows > 0) expect_pointer(rows.data, "states.data");
    KeyRows out(rows.data, rows.rows, rows.dim, choice<KeyType>(rows.type, 2, "states.type"));
    out.stride = rows.stride;
    return out;
}

/// States as floats; those that are floats are not copied.
class Widened {
  public:
    Rows operator()(const KeyRows& rows) {
        if (rows.type == KeyType::float32)
            return {static_cast<const float*>(rows.data), rows.rows, rows.cols, rows.stride};
        wide_.resize(static_cast<std::size_t>(rows.rows * rows.cols));
        const MutRows wide(wide_.data(), rows.rows, rows.cols);
        rows.visit([&](auto typed) {
            for (index_t i = 0; i < typed.rows; ++i) convert(typed[i], wide[i]);
        });
        return wide;
    }

  private:
    std::vector<float> wide_;
};

inline void check_finite(Rows rows) {
    for (index_t i = 0; i < rows.rows; ++i)
        if (const std::size_t bad = first_not_finite<float>(rows[i]); bad < rows[i].size())
            fail("states: expected finite numbers, got ", static_cast<double>(rows[i][bad]), " in row ", i, ", column ",
                 bad);
}

inline void check_tokens(std::span<const std::int32_t> tokens, index_t vocab_size) {
    const std::string where = "tokens";
    for (std::size_t i = 0; i < tokens.size(); ++i) check_value(where, static_cast<index_t>(i), tokens[i], vocab_size);
}

} // namespace mnemo::c_interface

using namespace mnemo::c_interface;

struct mnemo_session {
    virtual ~mnemo_session() = default;
    virtual void search(Rows states, index_t k, std::int64_t* ids, float* scores, std::int32_t* tokens) = 0;
    virtual void score(Rows states, TargetLogProbs base) = 0;
    virtual void mix(Rows states, MutRows rows, bool logits) = 0;
    Widened widened;
    index_t key_dim = 0, vocab_size = 0;
};

struct mnemo_memory {
    explicit mnemo_memory(mnemo_options o, Fingerprint h) : options(o), host(std::move(h)) {
        options.model = options.key_tap = nullptr; // the caller's; `host` has copies
    }
    virtual ~mnemo_memory() = default;
    virtual index_t size() const = 0;
    virtual void add(Rows states, std::span<const std::int32_t> tokens) = 0;
    virtual void save(DatastoreWriter& writer) const = 0;
    virtual std::unique_ptr<mnemo_session> session() const = 0;
    mnemo_options options;
    Fingerprint host;
    Widened widened;
};

namespace mnemo::c_interface {

inline void check_options(const mnemo_options& o) {
    if (o.k < 1) fail("options.k: expected at least 1, got ", o.k);
    if (!(o.temperature > 0)) fail("options.temperature: expected a positive number, got ", o.temperature);
    if (!(o.lambda >= 0 && o.lambda <= 1)) fail("options.lambda: expected 0 to 1, got ", o.lambda);
    if (o.key_dim < 0) fail("options.key_dim: expected at least 0, got ", o.key_dim);
    if (o.vocab_size < 0) fail("options.vocab_size: expected at least 0, got ", o.vocab_size);
}

template <class Store> AnyRetriever<Store> retriever(Metric metric, index_t k) {
    if (metric == Metric::inner_product) return Exact<InnerProduct>{.k = k};
    if (metric == Metric::cosine) return Exact<Cosine>{.k = k};
    return Exact<L2>{.k = k};
}

template <class Store> class MemoryOf final : public mnemo_memory {
  public:
    using Combined = KnnLm<Store, AnyRetriever<Store>>;
    MemoryOf(const mnemo_options& o, Fingerprint h, Store store)
        : mnemo_memory(o, std::move(h)),
          memory_(LastHidden{}, std::move(store), retriever<Store>(static_cast<Metric>(o.metric), o.k),
                  Interpolate<TokenVotes>{.evidence = {.temperature = o.temperature}, .lambda = {o.lambda}}) {}

    index_t size() const override { return memory_.store().size(); }
    void add([[maybe_unused]] Rows states, [[maybe_unused]] std::span<const std::int32_t> tokens) override {
        if constexpr (WritableStoreFor<Store, Rows, std::span<const std::int32_t>>) {
            check_tokens(tokens, host.vocab_size);
            memory_.write(states, tokens);
        } else {
            throw ReadOnly("mnemo: the memory is mapped from files and read-only: open it with options.load = 1");
        }
    }
    void save(DatastoreWriter& writer) const override {
        const Store& store = memory_.store();
        const IdSet erased = erased_ids(store);
        std::vector<std::int32_t> tokens;
        const auto flush = [&](index_t end) {
            const auto n = static_cast<index_t>(tokens.size());
            if (n > 0) KeyRows(store.keys()).visit([&](auto keys) { writer.append(keys.slice(end - n, n), tokens); });
            tokens.clear();
        };
        for (index_t id = 0; id < store.size(); ++id) {
            if (erased.contains(id) || tokens.size() == 4096) flush(id);
            if (!erased.contains(id)) tokens.push_back(store.value(id));
        }
        flush(store.size());
    }
    std::unique_ptr<mnemo_session> session() const override { return std::make_unique<SessionOf>(*this); }

  private:
    struct SessionOf final : mnemo_session {
        explicit SessionOf(const MemoryOf& m) : memory(m.memory_), session(m.memory_) {
            key_dim = m.memory_.store().key_dim(), vocab_size = m.host.vocab_size;
            metric = static_cast<Metric>(m.options.metric);
        }
        void search(Rows states, index_t k, std::int64_t* ids, float* scores, std::int32_t* tokens) override {
            hits = retriever<Store>(metric, k).retrieve(memory.store(), states, std::move(hits));
            for (index_t row = 0; row < states.rows; ++row) {
                const auto found = hits.ids(row);
                const auto near = hits.scores(row);
                for (index_t j = 0; j < k; ++j) {
                    const auto i = static_cast<std::size_t>(j);
                    const bool there = i < found.size();
                    const index_t at = row * k + j;
                    if (ids != nullptr) ids[at] = there ? found[i] : -1;
                    if (scores != nullptr) scores[at] = there ? near[i] : kLogZero;
                    if (tokens != nullptr) tokens[at] = there ? memory.store().value(found[i]) : -1;
                }
            }
        }
        void score(Rows states, TargetLogProbs base) override { session.read(states, base); }
        void mix(Rows states, MutRows rows, bool logits) override {
            if (logits)
                session.read(states, Logits{rows});
            else
                session.read(states, rows);
        }
        const Combined& memory;
        Session<const Combined, Rows> session;
        Metric metric;
        Hits hits;
    };
    Combined memory_;
};

/// An empty store in RAM, or one filled from `from`.
template <class Key>
std::unique_ptr<mnemo_memory> in_ram(const mnemo_options& o, const Fingerprint& host, const Datastore* from) {
    TokenStore<Key> store(host.key_dim);
    if (from != nullptr) {
        store.reserve(from->size());
        std::vector<float> key(static_cast<std::size_t>(host.key_dim));
        for (index_t id = 0; id < from->size(); ++id) {
            if (from->is_erased(id)) continue;
            from->keys().read(id, key);
            const std::int32_t token = from->value(id);
            store.append(Rows(key.data(), 1, host.key_dim), {&token, 1});
        }
    }
    return std::make_unique<MemoryOf<TokenStore<Key>>>(o, host, std::move(store));
}
inline std::unique_ptr<mnemo_memory> in_ram(const mnemo_options& o, const Fingerprint& host,
                                            const Datastore* from = nullptr) {
    switch (choice<KeyType>(o.key_type, 2, "options.key_type")) {
    case KeyType::float32:
        return in_ram<float>(o, host, from);
    case KeyType::float16:
        return in_ram<half>(o, host, from);
    case KeyType::bfloat16:
        break;
    }
    return in_ram<bfloat16>(o, host, from);
}

inline Fingerprint fingerprint(const mnemo_options& o) {
    return {.model = text_or_empty(o.model),
            .key_tap = text_or_empty(o.key_tap),
            .key_dim = o.key_dim,
            .vocab_size = o.vocab_size};
}
inline mnemo_options known_options(const mnemo_options* given) {
    const mnemo_options options = known_part(given, mnemo_options MNEMO_OPTIONS_INIT, "options");
    check_options(options);
    return options;
}

} // namespace mnemo::c_interface

extern "C" {

const char* mnemo_last_error(void) { return last_error; }
const char* mnemo_version(void) { return MNEMO_VERSION_STRING; }

int mnemo_create(const mnemo_options* options, mnemo_memory** memory) {
    return guarded([&] {
        expect_pointer(memory, "memory");
        const mnemo_options o = known_options(options);
        choice<Metric>(o.metric, 2, "options.metric");
        *memory = in_ram(o, fingerprint(o)).release();
    });
}

int mnemo_open(const char* folder, const mnemo_options* options, mnemo_memory** memory) {
    return guarded([&] {
        expect_pointer(folder, "folder");
        expect_pointer(memory, "memory");
        mnemo_options o = known_options(options);
        Datastore store = Datastore::open(folder, fingerprint(o));
        const Fingerprint host = store.fingerprint();
        o.metric = static_cast<std::int32_t>(store.metric());
        o.key_type = static_cast<std::int32_t>(store.manifest().key_type);
        *memory = o.load != 0 ? in_ram(o, host, &store).release()
                              : std::make_unique<MemoryOf<Datastore>>(o, host, std::move(store)).release();
    });
}

int mnemo_save(const mnemo_memory* memory, const char* folder, int overwrite) {
    return guarded([&] {
        expect_pointer(memory, "memory");
        expect_pointer(folder, "folder");
        DatastoreOptions options;
        options.host = memory->host;
        options.key_type = static_cast<KeyType>(memory->options.key_type);
        options.metric = static_cast<Metric>(memory->options.metric);
        options.overwrite = overwrite != 0;
        DatastoreWriter writer = DatastoreWriter::create(folder, options);
        memory->save(writer);
        writer.close();
    });
}

void mnemo_close(mnemo_memory* memory) { delete memory; }

int64_t mnemo_size(const mnemo_memory* memory) { return memory == nullptr ? -1 : memory->size(); }

int mnemo_add(mnemo_memory* memory, const mnemo_rows* states, const int32_t* tokens) {
    return guarded([&] {
        expect_pointer(memory, "memory");
        const KeyRows rows = key_rows(states, memory->host.key_dim);
        if (rows.rows > 0) expect_pointer(tokens, "tokens");
        memory->add(memory->widened(rows), {tokens, static_cast<std::size_t>(rows.rows)});
    });
}

int mnemo_session_open(const mnemo_memory* memory, mnemo_session** session) {
    return guarded([&] {
        expect_pointer(memory, "memory");
        expect_pointer(session, "session");
        *session = memory->session().release();
    });
}

void mnemo_session_close(mnemo_session* session) { delete session; }

int mnemo_search(mnemo_session* session, const mnemo_rows* states, int32_t k, int64_t* ids, float* scores,
                 int32_t* tokens) {
    return guarded([&] {
        expect_pointer(session, "session");
        if (k < 1) fail("k: expected at least 1, got ", k);
        const Rows rows = session->widened(key_rows(states, session->key_dim));
        check_finite(rows);
        session->search(rows, k, ids, scores, tokens);
    });
}

int mnemo_score_targets(mnemo_session* session, const mnemo_rows* states, const int32_t* targets, float* log_p) {
    return guarded([&] {
        expect_pointer(session, "session");
        const Rows rows = session->widened(key_rows(states, session->key_dim));
        const auto n = static_cast<std::size_t>(rows.rows);
        if (n > 0) expect_pointer(targets, "targets"), expect_pointer(log_p, "log_p");
        check_finite(rows);
        check_tokens({targets, n}, session->vocab_size);
        session->score(rows, {{targets, n}, {log_p, n}});
    });
}

int mnemo_mix_logits(mnemo_session* session, const mnemo_rows* states, float* logits, int64_t vocab, int64_t stride,
                     int kind) {
    return guarded([&] {
        expect_pointer(session, "session");
        const Rows rows = session->widened(key_rows(states, session->key_dim));
        if (rows.rows > 0) expect_pointer(logits, "logits");
        if (vocab < 1) fail("vocab: expected at least 1, got ", vocab);
        if (session->vocab_size > 0) expect_equal("vocab", index_t{vocab}, session->vocab_size);
        if (stride != 0 && stride < vocab) fail("stride: expected 0 or at least ", vocab, ", got ", stride);
        if (kind != MNEMO_LOGITS && kind != MNEMO_LOG_PROBS) fail("kind: expected 0 or 1, got ", kind);
        check_finite(rows);
        session->mix(rows, MutRows(logits, rows.rows, vocab, stride == 0 ? vocab : stride), kind == MNEMO_LOGITS);
    });
}

} // extern "C"
