// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/error.hpp>
#include <mnemo/kernels/clusters.hpp>
#include <mnemo/kernels/score.hpp>

#include <algorithm>
#include <span>
#include <unordered_set>
#include <utility>
#include <vector>

namespace mnemo {

/// Where one sequence stands in a store of consecutive text: the entries that its last step recalled, and the ones that
/// followed those which were right. A new sequence begins with a new Trail.
struct Trail {
    std::vector<index_t> pointers; // entries to look at next, those of the nearest hits first
    std::vector<index_t> found;    // of the last step
    std::vector<float> scores;     // [found]
    index_t steps = 0, searches = 0;
    Hits searched; // buffers of the search

    /// Tells the true token: hits that predicted it are followed to the entry behind theirs.
    template <TokenValued S> void advance(const S& store, std::int32_t token) {
        std::vector<std::pair<float, index_t>> right;
        for (std::size_t j = 0; j < found.size(); ++j)
            if (found[j] + 1 < index_t{store.size()} && static_cast<index_t>(store.value(found[j])) == token)
                right.emplace_back(scores[j], found[j]);
        std::stable_sort(right.begin(), right.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
        pointers.clear();
        const IdSet erased = erased_ids(store);
        for (const auto& [score, id] : right)
            if (!erased.contains(id + 1)) pointers.push_back(id + 1);
    }
    /// Forgets the sequence; the counts go on.
    void restart() { pointers.clear(), found.clear(), scores.clear(); }
    double saved() const { // the share of steps without a search
        return steps > 0 ? 1 - static_cast<double>(searches) / static_cast<double>(steps) : 0;
    }
};

/// Queries of sequences: row i is the next step of trails[trail_of[i]], rows of a sequence in their order. With
/// `targets` [rows], the true tokens, a sequence may have many rows at once; without, one, and its owner calls advance.
/// Rows by itself, for retrievers that follow nothing.
struct TrailQueries {
    Rows queries; // [rows, d]
    std::span<Trail> trails{};
    std::span<const index_t> trail_of{};     // [rows]; empty: trails[0]
    std::span<const std::int32_t> targets{}; // [rows] or empty

    operator Rows() const { return queries; }
};

/// A retriever that mostly follows pointers instead of searching (Alon et al. 2022, section 3): the store's entries are
/// consecutive text, so what follows an entry that was right is a good guess for the next step.
///
///     P = the entries behind the right hits of the step before, nearest first
///     E = P, with the other entries of P's clusters up to max_knns, clusters with most pointers first
///     hits = E, and before them what `inner` finds if there are fewer than min_knns pointers
///
/// Scores of E are exact, from the store's keys. A row's hits are in that order, which TokenVotes does not mind. An
/// entry that is found twice counts twice, as in the reference (knn-transformers, retomaton.py); `distinct` keeps the
/// first. Without clusters only pointers are followed. Erased entries are left out.
template <class RetrieverT, MetricTag MetricT> struct Follow {
    RetrieverT inner;
    const Clusters* clusters = nullptr; // borrowed
    index_t min_knns = 1;               // the largest index_t: always search
    index_t max_knns = 1024;
    bool distinct = false;

    template <KeyedStore S>
        requires RetrieverFor<RetrieverT, S, Rows>
    Hits retrieve(const S& store, const TrailQueries& queries, Hits out = {}) const {
        const Rows rows = queries.queries;
        if (!queries.targets.empty())
            expect_equal("Follow: targets", static_cast<index_t>(queries.targets.size()), rows.rows);
        if (!queries.trail_of.empty())
            expect_equal("Follow: trail_of", static_cast<index_t>(queries.trail_of.size()), rows.rows);
        out.clear();
        std::vector<index_t> candidates;
        for (index_t row = 0; row < rows.rows; ++row) {
            const auto i = static_cast<std::size_t>(row);
            const index_t which = queries.trail_of.empty() ? 0 : queries.trail_of[i];
            if (which < 0 || which >= static_cast<index_t>(queries.trails.size()))
                fail("Follow: trail_of[", row, "]: expected one of ", queries.trails.size(), " trails, got ", which);
            Trail& trail = queries.trails[static_cast<std::size_t>(which)];
            extend(store, trail, candidates);
            step(store, rows.slice(row, 1), candidates, trail);
            for (std::size_t j = 0; j < trail.found.size(); ++j) out.push(trail.found[j], trail.scores[j]);
            out.end_row();
            if (!queries.targets.empty()) trail.advance(store, queries.targets[i]);
        }
        return out;
    }

    /// E of the trail's pointers.
    void extend(const AssociativeStore auto& store, const Trail& trail, std::vector<index_t>& candidates) const {
        const auto most = static_cast<std::size_t>(max_knns);
        candidates = trail.pointers;
        for (const index_t id : candidates)
            if (id < 0 || id >= index_t{store.size()})
                fail("Follow: expected pointers into a store of ", store.size(), " entries, got ", id);
        if (clusters != nullptr && !candidates.empty() && candidates.size() < most) {
            expect_equal("Follow: entries of the clusters", clusters->entries(), index_t{store.size()});
            std::vector<std::pair<index_t, std::int32_t>> counts; // pointers of a cluster, negated; ties: lower cluster
            for (const index_t id : trail.pointers) {
                const std::int32_t cluster = clusters->of(id);
                const auto same = [&](const auto& c) { return c.second == cluster; };
                const auto known = std::find_if(counts.begin(), counts.end(), same);
                if (known == counts.end())
                    counts.emplace_back(-1, cluster);
                else
                    --known->first;
            }
            std::sort(counts.begin(), counts.end());
            const IdSet erased = erased_ids(store);
            for (const auto& [count, cluster] : counts) {
                for (const index_t id : clusters->members(cluster))
                    if (candidates.size() < most && !erased.contains(id)) candidates.push_back(id);
                if (candidates.size() >= most) break;
            }
        }
        if (candidates.size() > most) candidates.resize(most);
    }

    /// One step of a trail that looks at `candidates`, and searches if it has too few pointers.
    template <KeyedStore S>
    void step(const S& store, Rows query, std::span<const index_t> candidates, Trail& trail) const {
        expect_equal("Follow: width of the queries", query.cols, index_t{store.key_dim()});
        const bool search = static_cast<index_t>(trail.pointers.size()) < min_knns;
        trail.found.clear(), trail.scores.clear();
        if (search) {
            const auto keep = [&](index_t id, float score) {
                trail.found.push_back(id), trail.scores.push_back(score);
            };
            if constexpr (std::same_as<recall_t<RetrieverT, S, Rows>, Hits>) {
                trail.searched = retrieve_into(inner, store, query, std::move(trail.searched));
                for_each_hit(trail.searched, 0, keep);
            } else {
                for_each_hit(inner.retrieve(store, query), 0, keep);
            }
        }
        const std::size_t before = trail.found.size();
        trail.found.insert(trail.found.end(), candidates.begin(), candidates.end());
        if (distinct) {
            std::unordered_set<index_t> seen(trail.found.begin(),
                                             trail.found.begin() + static_cast<std::ptrdiff_t>(before));
            std::size_t kept = before; // a search finds nothing twice
            for (std::size_t j = before; j < trail.found.size(); ++j)
                if (seen.insert(trail.found[j]).second) trail.found[kept++] = trail.found[j];
            trail.found.resize(kept);
        }
        trail.scores.resize(trail.found.size());
        score_ids<MetricT>(query[0], store.keys(), std::span<const index_t>(trail.found).subspan(before),
                           std::span(trail.scores).subspan(before));
        ++trail.steps, trail.searches += search ? 1 : 0;
    }
};

} // namespace mnemo
