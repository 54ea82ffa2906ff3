// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/papers/knn_lm.hpp>

#include <algorithm>
#include <vector>

namespace mnemo {

/// Tokens of a text as a host saw them: what a memory is asked, and what the host thought by itself.
struct KnnLmSample {
    Matrix queries;                    // [n, d]
    std::vector<std::int32_t> targets; // [n]
    std::vector<float> log_p;          // [n], the host's, of the targets

    index_t size() const { return static_cast<index_t>(targets.size()); }
    TargetLogProbs base() { return {targets, log_p}; }
};

/// The scored tokens of `windows`, copied out of the host.
template <ScoringHost H> KnnLmSample score_sample(H& host, const WindowBatch& windows) {
    KnnLmSample out;
    for (index_t row = 0; row < windows.rows; ++row) {
        const auto targets = windows.scored_targets(row);
        out.targets.insert(out.targets.end(), targets.begin(), targets.end());
    }
    const ScoredTokens scored = host.score(windows);
    expect_equal("score: keys of a batch", scored.keys.rows, out.size());
    expect_equal("score: log-probabilities of a batch", static_cast<index_t>(scored.log_p.size()), out.size());
    out.queries = Matrix(scored.keys.rows, scored.keys.cols);
    for (index_t i = 0; i < scored.keys.rows; ++i)
        std::copy(scored.keys[i].begin(), scored.keys[i].end(), out.queries[i].begin());
    out.log_p.assign(scored.log_p.begin(), scored.log_p.end());
    return out;
}

/// Settings tuned on one sample and judged on another, from one search of each; `retriever` must find the grid's
/// largest k.
template <class R, TokenValued S>
    requires RetrieverFor<R, S, Rows>
KnnLmTuned tune(const KnnLmGrid& grid, const R& retriever, const S& store, KnnLmSample& valid, KnnLmSample& test) {
    return {sweep(grid, retriever.retrieve(store, Rows(valid.queries)), store, valid.base()),
            sweep(grid, retriever.retrieve(store, Rows(test.queries)), store, test.base())};
}

} // namespace mnemo
