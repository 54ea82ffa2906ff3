// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/key_rows.hpp>
#include <mnemo/core/recall.hpp>

namespace mnemo {

// The five policies. `XFor` names the types a policy is used with; plain `X` asks the same question with the
// archetypes below, so that an author can write static_assert(mnemo::Retriever<Mine>).

// ---- MemoryStore: where a memory lives. All beyond its key width is a refinement that a policy asks for. ----

/// The least a store has: the width of its keys.
template <class S>
concept MemoryStore = requires(const S& s) {
    { s.key_dim() } -> std::convertible_to<index_t>;
};

/// A store of entries 0 .. size() - 1, each with a value: a token, a vector, a chunk of keys and values. An id is never
/// reused or shifted; erased entries keep theirs (see MarksErased).
template <class S>
concept AssociativeStore = MemoryStore<S> && requires(const S& s, index_t id) {
    typename S::value_type;
    { s.size() } -> std::convertible_to<index_t>;
    { s.value(id) } -> std::convertible_to<typename S::value_type>;
};

/// ... whose keys can be looked at (exact search, re-scoring): a MatrixView of float, half or bfloat16, or KeyRows.
/// An index may own the keys instead; retrievers that need them say so by this concept.
template <class S>
concept KeyedStore = AssociativeStore<S> && requires(const S& s) {
    { s.keys() } -> std::convertible_to<KeyRows>;
};

/// A set of ids; ids beyond the words are not in it.
struct IdSet {
    std::span<const std::uint64_t> words;
    bool contains(index_t id) const {
        const auto word = static_cast<std::size_t>(id) / 64;
        return word < words.size() && (words[word] >> (id % 64) & 1u) != 0;
    }
};

/// ... that can say which entries were erased; retrievers leave them out.
template <class S>
concept MarksErased = AssociativeStore<S> && requires(const S& s) {
    { s.erased() } -> std::convertible_to<IdSet>;
};
IdSet erased_ids(const MemoryStore auto& store) {
    if constexpr (requires { IdSet(store.erased()); }) return store.erased();
    return {};
}

/// ... that grows.
template <class S, class Keys, class Values>
concept WritableStoreFor =
    MemoryStore<S> && requires(S& s, const Keys& keys, const Values& values) { s.append(keys, values); };

/// ... that is edited in place.
template <class S>
concept EditableStore =
    AssociativeStore<S> && requires(S& s, index_t id, std::span<const float> key, const typename S::value_type& value) {
        s.replace(id, key, value);
        s.erase(id);
    };

/// A store that is a function of the query: a low-rank adapter, any learned associative map.
template <class S, class Queries>
concept ParametricStoreFor = MemoryStore<S> && requires(const S& s, const Queries& q) { s.recite(q); };

/// A store whose entries predict a token.
template <class S> concept TokenValued = AssociativeStore<S> && std::integral<typename S::value_type>;

namespace archetype {
/// The least a KeyedStore offers; used in concepts only, never called.
struct Store {
    using value_type = std::int32_t;
    index_t key_dim() const;
    index_t size() const;
    std::int32_t value(index_t) const;
    Rows keys() const;
};
} // namespace archetype

// ---- KeyExtractor: host activations -> query and key vectors. ----

template <class E, class States>
concept KeyExtractorFor = requires(const E& e, const States& states) { e.queries(states); };
template <class E> concept KeyExtractor = KeyExtractorFor<E, Rows>;

/// ... and -> keys, when the memory is written through the same Memory.
template <class E, class States> concept KeyWriterFor = requires(const E& e, const States& states) { e.keys(states); };

// ---- Retriever: (store, queries) -> Recall. Const, so that one memory serves many threads. ----

template <class R, class Store, class Queries>
concept RetrieverFor = MemoryStore<Store> && requires(const R& r, const Store& store, const Queries& queries) {
    { r.retrieve(store, queries) } -> Recall;
};
template <class R> concept Retriever = RetrieverFor<R, archetype::Store, Rows>;

template <class E, class States>
using queries_t = std::remove_cvref_t<decltype(std::declval<const E&>().queries(std::declval<const States&>()))>;
template <class R, class S, class Q>
using recall_t = std::remove_cvref_t<decltype(std::declval<const R&>().retrieve(std::declval<const S&>(),
                                                                                std::declval<const Q&>()))>;

/// Optional: a retriever that refills an earlier answer instead of allocating a new one.
template <class R, class Store, class Queries>
concept RecyclingRetrieverFor =
    RetrieverFor<R, Store, Queries> &&
    requires(const R& r, const Store& s, const Queries& q, recall_t<R, Store, Queries> spare) {
        { r.retrieve(s, q, std::move(spare)) } -> std::same_as<recall_t<R, Store, Queries>>;
    };

/// `retriever.retrieve(store, queries)`, into the buffers of `spare` where the retriever can.
template <class R, class Store, class Queries>
recall_t<R, Store, Queries> retrieve_into(const R& retriever, const Store& store, const Queries& queries,
                                          recall_t<R, Store, Queries>&& spare) {
    if constexpr (RecyclingRetrieverFor<R, Store, Queries>)
        return retriever.retrieve(store, queries, std::move(spare));
    else
        return retriever.retrieve(store, queries);
}

// ---- Combiner: what the host computed (`Base`) + what was recalled -> result. ----

/// What a read found. One argument, so that fields can be added without breaking anybody's combiner.
template <class Queries, class RecallT, class Store> struct Reading {
    const Queries& queries;
    const RecallT& recall;
    const Store& store;
    Arena& scratch; // buffers for this call
};
template <class Q, class R, class S> Reading(const Q&, const R&, const S&, Arena&) -> Reading<Q, R, S>;

/// In place on spans (returns void) or by value on tensors. The type of Base says at which level the memory works:
/// log-probabilities, scores of targets, hidden rows.
template <class C, class Base, class ReadingT>
concept CombinerFor = requires(const C& c, Base& base, const ReadingT& reading) { c.combine(base, reading); };
template <class C> concept Combiner = CombinerFor<C, MutRows, Reading<Rows, Hits, archetype::Store>>;

// ---- Loss: a scalar from the same Base (targets included) and Reading. ----

/// It is handed the Combiner and decides itself whether to call it: some objectives only borrow a part of it.
template <class L, class Base, class ReadingT, class C>
concept LossFor =
    requires(const L& l, Base& base, const ReadingT& reading, const C& combiner) { l.loss(base, reading, combiner); };

/// Layer-level memories leave the loss to the host.
struct HostLoss {};

/// For generic code that asks instead of being told.
template <class E, class S, class R, class C, class States, class Base>
concept Composes = KeyExtractorFor<E, States> && RetrieverFor<R, S, queries_t<E, States>> &&
                   CombinerFor<C, Base, Reading<queries_t<E, States>, recall_t<R, S, queries_t<E, States>>, S>>;

} // namespace mnemo
