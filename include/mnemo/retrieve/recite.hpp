// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>

namespace mnemo {

/// The retriever of a memory that is a function of the query: it searches nothing and asks the store to recite.
struct Recite {
    template <class S, class Queries>
        requires ParametricStoreFor<S, Queries>
    auto retrieve(const S& store, const Queries& queries) const {
        return store.recite(queries);
    }
};

} // namespace mnemo
