// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/recall.hpp>

#include <vector>

// What retrievers and combiners of attention heads share.

namespace mnemo {

/// What each head recalled for each query.
struct HeadHits {
    std::vector<Hits> heads;
    index_t rows() const { return heads.empty() ? 0 : heads.front().rows(); }
    const Hits& operator[](index_t head) const { return heads[static_cast<std::size_t>(head)]; }
};

/// A store of several heads, each of which is a store.
template <class S>
concept HeadedStore = MemoryStore<S> && requires(const S& s, index_t h) {
    { s.heads() } -> std::convertible_to<index_t>;
    { s.head_dim() } -> std::convertible_to<index_t>;
    s.head(h).keys();
};

} // namespace mnemo
