// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>

// One readable line when a policy does not fit. Constraints on Memory's members alone would list every candidate that
// was ignored; here each check names the missing member, and the code behind it is not instantiated.
namespace mnemo::check {

template <class S> consteval bool store() {
    static_assert(MemoryStore<S>, "mnemo: MemoryStore has no `key_dim() const`");
    return true; // said above; Memory asserts the call itself
}

template <class E, class States> consteval bool key_extractor() {
    constexpr bool ok = KeyExtractorFor<E, States>;
    constexpr bool mutating = requires(E& e, const States& s) { e.queries(s); };
    static_assert(ok || mutating, "mnemo: KeyExtractor has no `queries(states) const` for this type of states");
    static_assert(ok || !mutating, "mnemo: KeyExtractor::queries(states) must be const");
    return ok;
}

template <class E, class States> consteval bool key_writer() {
    constexpr bool ok = KeyWriterFor<E, States>;
    constexpr bool mutating = requires(E& e, const States& s) { e.keys(s); };
    static_assert(ok || mutating, "mnemo: KeyExtractor has no `keys(states) const`: this memory is read-only");
    static_assert(ok || !mutating, "mnemo: KeyExtractor::keys(states) must be const");
    return ok;
}

template <class S, class Keys, class Values> consteval bool writable() {
    constexpr bool ok = WritableStoreFor<S, Keys, Values>;
    static_assert(ok, "mnemo: this MemoryStore cannot be written: it has no `append(keys, values)` for these types");
    return ok;
}

template <class R, class Store, class Queries> consteval bool retriever() {
    constexpr bool ok = RetrieverFor<R, Store, Queries>;
    constexpr bool callable = requires(const R& r, const Store& s, const Queries& q) { r.retrieve(s, q); };
    constexpr bool mutating = requires(R& r, const Store& s, const Queries& q) { r.retrieve(s, q); };
    static_assert(ok || callable || mutating,
                  "mnemo: Retriever has no `retrieve(store, queries) const` for this store and these queries (one that "
                  "looks at keys needs a KeyedStore)");
    static_assert(ok || callable || !mutating, "mnemo: Retriever::retrieve(store, queries) must be const");
    static_assert(ok || !callable,
                  "mnemo: Retriever::retrieve must return a Recall (rows(), and visit(row, f), visit_tiles(f) or "
                  "vector(row)); mnemo::Hits is one");
    return ok;
}

template <class C, class Base, class ReadingT> consteval bool combiner() {
    constexpr bool ok = CombinerFor<C, Base, ReadingT>;
    constexpr bool mutating = requires(C& c, Base& b, const ReadingT& r) { c.combine(b, r); };
    static_assert(ok || mutating,
                  "mnemo: Combiner has no `combine(base, reading) const` for this base, recall and store (a token "
                  "combiner needs a store of tokens, an attention combiner a store of vectors)");
    static_assert(ok || !mutating, "mnemo: Combiner::combine(base, reading) must be const");
    return ok;
}

template <class L, class Base, class ReadingT, class C> consteval bool loss() {
    constexpr bool host = std::same_as<L, HostLoss>;
    constexpr bool ok = LossFor<L, Base, ReadingT, C>;
    constexpr bool mutating = requires(L& l, Base& b, const ReadingT& r, const C& c) { l.loss(b, r, c); };
    static_assert(!host, "mnemo: this memory has no Loss of its own (HostLoss): backpropagate the host's loss through "
                         "read()");
    static_assert(ok || host || mutating,
                  "mnemo: Loss has no `loss(base, reading, combiner) const` for this base and recall");
    static_assert(ok || host || !mutating, "mnemo: Loss::loss(base, reading, combiner) must be const");
    return ok;
}

} // namespace mnemo::check
