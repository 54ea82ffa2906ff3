// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/papers/knn_lm.hpp>
#include <mnemo/retrieve/cluster_keys.hpp>
#include <mnemo/retrieve/follow.hpp>

#include <limits>

// RetoMaton (Alon et al., 2022, arXiv 2201.12431): kNN-LM whose datastore is read as an automaton. Its entries are
// consecutive text; entries that were right point to what followed them, and most searches are saved.

namespace mnemo {

/// RetoMaton over any keyed store of tokens in the order of their text, around any retriever.
template <class StoreT, class RetrieverT, MetricTag MetricT = L2, Executor X = Serial>
using RetoMaton = Memory<LastHidden, StoreT, Follow<RetrieverT, MetricT>, Interpolate<TokenVotes, Fixed, X>, Nll>;

/// The published figures; the flag of the reference (neulab/knn-transformers) stands behind each.
namespace retomaton_knobs {
inline constexpr index_t k = 1024;                                            // --k
inline constexpr float lambda = 0.25f;                                        // --lmbda
inline constexpr float temperature = 1;                                       // --knn_temp
inline constexpr index_t min_knns = 1;                                        // --min-knns: saves most
inline constexpr index_t always_search = std::numeric_limits<index_t>::max(); // --min-knns of the best perplexity
inline constexpr index_t max_knns = 1024;                                     // --max-knns
inline constexpr index_t clusters = 500000;                                   // --num_clusters of 103 M entries
inline constexpr index_t entries_a_cluster = 200;
} // namespace retomaton_knobs

/// A text under the host alone and with its memory, and what was searched for it.
struct RetoMatonScores {
    Perplexity host, combined;
    index_t steps = 0, searches = 0;
    double saved() const { return steps > 0 ? 1 - static_cast<double>(searches) / static_cast<double>(steps) : 0; }
};

/// Scores a text: every row of a batch is a sequence of its own, whose state ends with it.
template <class M, ScoringHost H, WindowSource W, ProgressReport P = NoProgress>
RetoMatonScores evaluate_following(const M& memory, H& host, W& windows, P&& progress = {}) {
    RetoMatonScores scores;
    Session<const M, TrailQueries> session(memory);
    WindowBatch batch;
    std::vector<float> log_p;
    std::vector<std::int32_t> targets;
    std::vector<index_t> trail_of;
    index_t done = 0;
    while (windows.next(batch)) {
        targets.clear(), trail_of.clear();
        for (index_t row = 0; row < batch.rows; ++row) {
            const auto of_row = batch.scored_targets(row);
            targets.insert(targets.end(), of_row.begin(), of_row.end());
            trail_of.insert(trail_of.end(), of_row.size(), row);
        }
        const ScoredTokens scored = host.score(batch);
        expect_equal("score: keys of a batch", scored.keys.rows, static_cast<index_t>(targets.size()));
        std::vector<Trail> trails(static_cast<std::size_t>(batch.rows));
        log_p.assign(scored.log_p.begin(), scored.log_p.end());
        session.read(TrailQueries{scored.keys, trails, trail_of, targets}, TargetLogProbs{targets, log_p});
        scores.host.add(scored.log_p);
        scores.combined.add(log_p);
        for (const Trail& trail : trails) scores.steps += trail.steps, scores.searches += trail.searches;
        progress(done += scored.keys.rows, static_cast<index_t>(windows.tokens()));
    }
    return scores;
}

/// What host and memory write after `prompt`; the token that was chosen is the true one that the automaton follows.
template <class M, DecodingHost H>
std::vector<std::int32_t> generate_following(const M& memory, H& host, std::span<const std::int32_t> prompt,
                                             const Generation& options, Trail& trail) {
    if (prompt.empty()) fail("generate: expected a prompt of at least one token (the end-of-sentence token will do)");
    Session<const M, TrailQueries> session(memory);
    ChooseToken choose(options.temperature, options.seed);
    std::vector<std::int32_t> out;
    host.reset();
    for (const std::int32_t token : prompt.first(prompt.size() - 1)) host.step(token);
    std::int32_t token = prompt.back();
    while (static_cast<index_t>(out.size()) < options.tokens) {
        DecodedToken next = host.step(token);
        session.read(TrailQueries{next.key, std::span(&trail, 1), {}, {}}, next.log_probs);
        token = choose(next.log_probs[0]);
        if (token == options.stop) break;
        trail.advance(memory.store(), token);
        out.push_back(token);
    }
    return out;
}

} // namespace mnemo
