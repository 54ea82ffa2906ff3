// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/recall.hpp>

#include <algorithm>

namespace mnemo {

/// The first `k` hits of each block of a recall: what a smaller k would have found, without another search.
template <AssociativeRecall R> struct FirstHits {
    const R& recall; // best first
    index_t k;

    index_t rows() const { return recall.rows(); }
    void visit(index_t row, auto&& f) const {
        recall.visit(row, [&](const Ids auto& ids, std::span<const float> scores) {
            f(ids, scores.first(std::min(scores.size(), static_cast<std::size_t>(k))));
        });
    }
};
template <class R> FirstHits(const R&, index_t) -> FirstHits<R>;
static_assert(AssociativeRecall<FirstHits<Hits>>);

} // namespace mnemo
