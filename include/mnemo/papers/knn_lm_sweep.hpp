// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/combine/interpolate.hpp>
#include <mnemo/loss/nll.hpp>
#include <mnemo/retrieve/first_hits.hpp>

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
    /// The setting with the lowest perplexity; of equal ones the first.
    KnnLmSetting best() const {
        KnnLmSetting setting;
        double lowest = INFINITY;
        for (std::size_t k = 0; k < grid.k.size(); ++k)
            for (std::size_t t = 0; t < grid.temperature.size(); ++t)
                for (std::size_t l = 0; l < grid.lambda.size(); ++l)
                    if (at(k, t, l) < lowest) {
                        lowest = at(k, t, l);
                        setting = {grid.k[k], grid.temperature[t], grid.lambda[l]};
                    }
        return setting;
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
} // namespace detail

/// Perplexities of `base` (targets and the host's log-probabilities) mixed with what `recall` found in `store`, for
/// every setting of `grid`: the same numbers as Interpolate<TokenVotes> gives, from one search. `recall` needs hits for
/// the largest k, best first.
template <AssociativeRecall R, TokenValued S>
KnnLmSweep sweep(KnnLmGrid grid, const R& recall, const S& store, const TargetLogProbs& base) {
    expect_equal("sweep: targets", static_cast<index_t>(base.targets.size()), static_cast<index_t>(recall.rows()));
    KnnLmSweep out{std::move(grid), {}};
    std::vector<std::optional<float>> memory(base.targets.size());
    std::vector<float> log_p(base.targets.size());
    for (const index_t k : out.grid.k) {
        const FirstHits nearest{recall, k};
        Arena scratch;
        const Rows no_queries;
        const Reading reading{no_queries, nearest, store, scratch};
        for (const float temperature : out.grid.temperature) {
            const TokenVotes votes{.temperature = temperature};
            for (std::size_t i = 0; i < memory.size(); ++i)
                memory[i] = votes.log_prob(reading, static_cast<index_t>(i), base.targets[i]);
            for (const float lambda : out.grid.lambda) {
                log_p.assign(base.log_p.begin(), base.log_p.end());
                TargetLogProbs mixed{base.targets, log_p};
                Interpolate{detail::Known{memory}, Fixed{lambda}}.combine(mixed, reading);
                Perplexity mean;
                mean.add(log_p);
                out.perplexity.push_back(mean.perplexity());
            }
        }
    }
    return out;
}

} // namespace mnemo
