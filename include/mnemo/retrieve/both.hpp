// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/store/both.hpp>

#include <utility>

namespace mnemo {

/// A retriever for each of two stores that are read as one: all that both find, as two blocks a row.
template <class FirstT, class SecondT> struct RetrieveBoth {
    FirstT first;
    SecondT second;

    template <class A, class B, class Queries>
        requires RetrieverFor<FirstT, typename Both<A, B>::first_type, Queries> &&
                 RetrieverFor<SecondT, typename Both<A, B>::second_type, Queries>
    auto retrieve(const Both<A, B>& store, const Queries& queries) const {
        return JoinedHits{first.retrieve(store.first(), queries), second.retrieve(store.second(), queries),
                          index_t{store.first().size()}};
    }
    template <class A, class B, class Queries, class FirstRecall, class SecondRecall>
        requires RetrieverFor<FirstT, typename Both<A, B>::first_type, Queries> &&
                 RetrieverFor<SecondT, typename Both<A, B>::second_type, Queries>
    auto retrieve(const Both<A, B>& store, const Queries& queries, JoinedHits<FirstRecall, SecondRecall> spare) const {
        spare.first = retrieve_into(first, store.first(), queries, std::move(spare.first));
        spare.second = retrieve_into(second, store.second(), queries, std::move(spare.second));
        spare.offset = store.first().size();
        return spare;
    }
};
template <class FirstT, class SecondT> RetrieveBoth(FirstT, SecondT) -> RetrieveBoth<FirstT, SecondT>;

} // namespace mnemo
