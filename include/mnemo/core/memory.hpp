// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/check.hpp>

#include <memory>
#include <utility>

namespace mnemo {

namespace detail {
template <class T> struct pointee {
    using type = T;
};
template <class T> struct pointee<std::shared_ptr<T>> { // several layers, one store
    using type = T;
};
template <class S> auto& access(S& store) {
    if constexpr (std::is_same_v<typename pointee<std::remove_const_t<S>>::type, std::remove_const_t<S>>)
        return store;
    else
        return *store;
}
} // namespace detail

/// The five policies composed. It adds no state, no virtual call and no copy of its own.
///
///     write:  states --KeyExtractor--> keys, values --> MemoryStore::append
///     read:   states --KeyExtractor--> queries --Retriever(store)--> recall --Combiner(base)--> result
///     loss:   the same reading + base (with targets) --Loss(combiner)--> scalar
///
/// The order of write and read is the caller's: a memory never guesses it. Reading is const and re-entrant, writing is
/// exclusive. A store held as std::shared_ptr<S> is shared with other memories.
template <class KeyExtractorT, class StoreT, class RetrieverT, class CombinerT, class LossT = HostLoss> class Memory {
  public:
    using store_type = typename detail::pointee<StoreT>::type;
    static_assert(check::store<std::remove_const_t<store_type>>());

    Memory(KeyExtractorT e, StoreT s, RetrieverT r, CombinerT c, LossT l = {})
        : extractor_(std::move(e)), store_(std::move(s)), retriever_(std::move(r)), combiner_(std::move(c)),
          loss_(std::move(l)) {}

    /// Remembers `values` under the keys of `states`.
    template <class States, class Values> void write(const States& states, const Values& values) {
        if constexpr (check::key_writer<KeyExtractorT, States>()) {
            auto&& keys = extractor_.keys(states);
            if constexpr (check::writable<store_type, std::remove_cvref_t<decltype(keys)>, Values>())
                store().append(keys, values);
        }
    }

    /// Recalls for `states` and combines with `base`; returns what the Combiner returns.
    template <class States, class Base> decltype(auto) read(const States& states, Base&& base) const {
        return with_reading(states, nullptr, nullptr,
                            [&](const auto& m) -> decltype(auto) { return combine(combiner_, base, m); });
    }

    /// The training or scoring objective of `base`, which carries the targets.
    template <class States, class Base> decltype(auto) loss(const States& states, Base&& base) const {
        return with_reading(states, nullptr, nullptr,
                            [&](const auto& m) -> decltype(auto) { return objective(loss_, base, m, combiner_); });
    }

    /// The same with buffers that are kept from step to step; Session owns such a pair.
    template <class States, class Base, Recall Spare>
    decltype(auto) read(const States& states, Base&& base, Spare& spare, Arena& scratch) const {
        return with_reading(states, &spare, &scratch,
                            [&](const auto& m) -> decltype(auto) { return combine(combiner_, base, m); });
    }
    template <class States, class Base, Recall Spare>
    decltype(auto) loss(const States& states, Base&& base, Spare& spare, Arena& scratch) const {
        return with_reading(states, &spare, &scratch,
                            [&](const auto& m) -> decltype(auto) { return objective(loss_, base, m, combiner_); });
    }

    /// What would be recalled: for looking inside, and for hosts that combine by themselves.
    template <class States> auto recall(const States& states) const {
        return with_reading(states, nullptr, nullptr, [](const auto& m) { return m.recall; });
    }

    store_type& store() { return detail::access(store_); }
    const store_type& store() const { return detail::access(store_); }
    const KeyExtractorT& extractor() const { return extractor_; }
    const RetrieverT& retriever() const { return retriever_; }
    RetrieverT& retriever() { return retriever_; } // to turn its knobs
    const CombinerT& combiner() const { return combiner_; }
    CombinerT& combiner() { return combiner_; }

  private:
    // The policies are parameters here: clang looks members up in a generic lambda before the check could speak.
    template <class C, class Base, class M> static decltype(auto) combine(const C& c, Base& base, const M& reading) {
        if constexpr (check::combiner<C, Base, M>()) return c.combine(base, reading);
    }
    template <class L, class Base, class M, class C>
    static decltype(auto) objective(const L& l, Base& base, const M& reading, const C& c) {
        if constexpr (check::loss<L, Base, M, C>()) return l.loss(base, reading, c);
    }
    template <class States, class Spare>
    decltype(auto) with_reading(const States& states, [[maybe_unused]] Spare spare, [[maybe_unused]] Arena* scratch,
                                auto&& use) const {
        if constexpr (check::key_extractor<KeyExtractorT, States>()) {
            auto&& queries = extractor_.queries(states);
            using Queries = std::remove_cvref_t<decltype(queries)>;
            if constexpr (check::retriever<RetrieverT, store_type, Queries>()) {
                if constexpr (std::is_pointer_v<Spare>) {
                    *spare = retrieve_into(retriever_, store(), queries, std::move(*spare));
                    return use(Reading{queries, *spare, store(), *scratch});
                } else {
                    auto&& recall = retriever_.retrieve(store(), queries);
                    Arena local;
                    return use(Reading{queries, recall, store(), local});
                }
            }
        }
    }

    [[no_unique_address]] KeyExtractorT extractor_;
    StoreT store_;
    [[no_unique_address]] RetrieverT retriever_;
    [[no_unique_address]] CombinerT combiner_;
    [[no_unique_address]] LossT loss_;
};

} // namespace mnemo
