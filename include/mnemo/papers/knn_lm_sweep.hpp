// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/combine/interpolate.hpp>
#include <mnemo/combine/unigram.hpp>
#include <mnemo/loss/nll.hpp>
#include <mnemo/retrieve/first_hits.hpp>

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace mnemo {

/// What kNN-LM tunes on held-out text; none of it needs another search.
struct KnnLmSetting {
    index_t k = 1024;
    float temperature = 1;
    float lambda = 0.25f;
};

/// Settings to try: all combinations.
struct KnnLmGrid {
    std::vector<index_t> k;
    std::vector<float> temperature, lambda;
};

/// Perplexities of a text under every setting of a grid.
struct KnnLmSweep {
    KnnLmGrid grid;
    std::vector<double> perplexity; // [k, temperature, lambda]

    double at(std::size_t k, std::size_t temperature, std::size_t lambda) const {
        return perplexity[(k * grid.temperature.size() + temperature) * grid.lambda.size() + lambda];
    }
    /// Throws Error for a setting that is not in the grid.
    double at(const KnnLmSetting& s) const {
        return at(find(grid.k, s.k), find(grid.temperature, s.temperature), find(grid.lambda, s.lambda));
    }
    /// The setting with the lowest perplexity; of equal ones the first.
    KnnLmSetting best() const {
        const auto lowest =
            static_cast<std::size_t>(std::min_element(perplexity.begin(), perplexity.end()) - perplexity.begin());
        const std::size_t l = grid.lambda.size(), t = grid.temperature.size();
        return {grid.k[lowest / l / t], grid.temperature[lowest / l % t], grid.lambda[lowest % l]};
    }

  private:
    template <class T> static std::size_t find(const std::vector<T>& values, T value) {
        const auto at = std::find(values.begin(), values.end(), value);
        if (at == values.end()) fail("sweep: expected a setting of its grid, got ", value);
        return static_cast<std::size_t>(at - values.begin());
    }
};

namespace detail {
// Evidence that was computed before: it does not depend on lambda.
struct Known {
    std::span<const std::optional<float>> log_p;
    std::optional<float> log_prob(const auto& /*reading*/, index_t row, std::int32_t /*token*/) const {
        return log_p[static_cast<std::size_t>(row)];
    }
};

inline void sweep_lambda(std::span<const std::optional<float>> memory, const TargetLogProbs& base, KnnLmSweep& out) {
    Hits none;
    none.resize(static_cast<index_t>(base.targets.size()), 0);
    const Rows queries;
    const archetype::Store* const no_store = nullptr;
    Arena scratch;
    const Reading<Rows, Hits, const archetype::Store*> reading{queries, none, no_store, scratch};
    std::vector<float> log_p;
    for (const float lambda : out.grid.lambda) {
        log_p.assign(base.log_p.begin(), base.log_p.end());
        TargetLogProbs mixed{base.targets, log_p};
        Interpolate{Known{memory}, Fixed{lambda}}.combine(mixed, reading);
        Perplexity mean;
        mean.add(log_p);
        out.perplexity.push_back(mean.perplexity());
    }
}
} // namespace detail

/// Perplexities of `base` (targets and the host's log-probabilities) mixed with what `recall` found in `store`, for
/// every setting of `grid`: the same numbers as Interpolate<TokenVotes> gives, from one search. `recall` needs hits for
/// the largest k, best first.
template <AssociativeRecall R, TokenValued S>
KnnLmSweep sweep(KnnLmGrid grid, const R& recall, const S& store, const TargetLogProbs& base) {
    expect_equal("sweep: rows of the recall", static_cast<index_t>(recall.rows()),
                 static_cast<index_t>(base.targets.size()));
    KnnLmSweep out{std::move(grid), {}};
    std::vector<std::optional<float>> memory(base.targets.size());
    for (const index_t k : out.grid.k) {
        const FirstHits nearest{recall, k};
        const Rows queries;
        Arena scratch;
        const Reading reading{queries, nearest, store, scratch};
        for (const float temperature : out.grid.temperature) {
            const TokenVotes votes{.temperature = temperature};
            for (std::size_t i = 0; i < memory.size(); ++i)
                memory[i] = votes.log_prob(reading, static_cast<index_t>(i), base.targets[i]);
            detail::sweep_lambda(memory, base, out);
        }
    }
    return out;
}

/// The same for a memory that knows only how often each token occurs, whatever is asked: what it would be worth without
/// retrieval. The grid's k and temperature have one value each, which means nothing.
inline KnnLmSweep sweep(std::vector<float> lambda, const Unigram& unigram, const TargetLogProbs& base) {
    std::vector<std::optional<float>> memory;
    for (const std::int32_t target : base.targets) memory.push_back(unigram.log_prob(base, 0, target));
    KnnLmSweep out{{{0}, {1}, std::move(lambda)}, {}};
    detail::sweep_lambda(memory, base, out);
    return out;
}

/// A setting that was chosen on one text, and judged on another.
struct KnnLmTuned {
    KnnLmSweep valid, test;

    KnnLmSetting setting() const { return valid.best(); }
    double perplexity() const { return test.at(setting()); }
};

} // namespace mnemo
