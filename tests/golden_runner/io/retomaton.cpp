// SPDX-License-Identifier: MIT
#include "golden.hpp"

#include <mnemo/papers/retomaton.hpp>
#include <mnemo/store/tokens.hpp>

#include <map>

namespace {

using namespace mnemo;

/// What the fixture's index found, looked up by the query's place.
struct FromFixture {
    const Matrix* queries;
    const std::vector<index_t>* ids; // [steps, k]
    const std::vector<float>* distances;
    std::size_t k;

    Hits retrieve(const MemoryStore auto& /*store*/, Rows query) const {
        Hits out;
        for (index_t row = 0; row < query.rows; ++row) {
            const auto step = static_cast<std::size_t>((query[row].data() - queries->data.data()) / queries->cols);
            for (std::size_t j = step * k; j < (step + 1) * k; ++j)
                if ((*ids)[j] >= 0) out.push((*ids)[j], -(*distances)[j]);
            out.end_row();
        }
        return out;
    }
};

/// Whether `theirs` is an order of the candidates in which clusters with equally many pointers changed places.
bool same_up_to_ties(const std::vector<index_t>& pointers, const std::vector<index_t>& ours,
                     const std::vector<index_t>& theirs, const Clusters& clusters) {
    if (theirs.size() != ours.size() || !std::equal(pointers.begin(), pointers.end(), theirs.begin())) return false;
    std::map<std::int32_t, std::size_t> count;
    for (const index_t id : pointers) ++count[clusters.of(id)];
    std::size_t last = pointers.size() + 1;
    for (std::size_t i = pointers.size(); i < theirs.size();) {
        const std::int32_t cluster = clusters.of(theirs[i]);
        if (count.count(cluster) == 0 || count[cluster] > last) return false; // also a cluster that comes twice
        last = count[cluster];
        count.erase(cluster);
        for (const index_t id : clusters.members(cluster))
            if (i < theirs.size() && theirs[i++] != id) return false;
    }
    return true;
}

std::vector<index_t> without_padding(std::span<const index_t> row) {
    std::vector<index_t> out;
    for (const index_t id : row)
        if (id >= 0) out.push_back(id);
    return out;
}

} // namespace

GOLDEN("retomaton.eval") {
    if (fixture.flag("recompute_dists")) fail("recompute_dists: not handled, the reference fails on it");
    // Pointers are scored by what the reference reconstructs from its index.
    const Matrix keys = fixture.matrix("in.reconstructed"), queries = fixture.matrix("in.queries");
    TokenStore<> store(keys.cols);
    store.append(keys, fixture.tokens("in.vals"));
    const auto search_ids = fixture.ids("in.search_ids");
    const auto search_distances = fixture.floats("in.search_dists");
    const auto labels = fixture.tokens("in.labels");
    const Clusters clusters(fixture.tokens("in.cluster_of"));
    const bool clustered = fixture.flag("clusters");
    const auto k = static_cast<std::size_t>(fixture.size("in.search_ids", 1));
    const FromFixture index{&queries, &search_ids, &search_distances, k};
    const Follow<FromFixture, L2> follow{index, clustered ? &clusters : nullptr, fixture.integer("min_knns"),
                                         fixture.integer("max_knns")};
    const TokenVotes votes{.temperature = static_cast<float>(fixture.number("knn_temp"))};
    Matrix log_p = fixture.matrix("in.lm_logp"), memory = log_p;
    const golden::Tolerance tolerance{fixture.number("tolerance"), 0};

    const auto expected_pointers = fixture.ids("out.pointers"), expected_ids = fixture.ids("out.knn_ids");
    const auto expected_scores = fixture.floats("out.neg_dists");
    const auto row_of = [&](const auto& all, index_t row, index_t rows) {
        const std::size_t width = all.size() / static_cast<std::size_t>(rows);
        return std::span(all).subspan(static_cast<std::size_t>(row) * width, width);
    };
    Trail trail;
    Hits hits;
    std::vector<index_t> searched, candidates, ids;
    std::vector<float> scores, scores_expected;
    for (index_t row = 0; row < queries.rows; ++row) {
        follow.extend(store, trail, candidates);
        const auto theirs = without_padding(row_of(expected_pointers, row, queries.rows));
        const bool same = clustered && trail.pointers.size() < static_cast<std::size_t>(follow.max_knns)
                              ? same_up_to_ties(trail.pointers, candidates, theirs, clusters)
                              : candidates == theirs;
        check.that("out.pointers", same, text("the same pointers, up to ties, in step ", row));
        const index_t before = trail.searches;
        follow.step(store, Rows(queries).slice(row, 1), theirs, trail); // the ties as the reference broke them
        searched.push_back(trail.searches - before);
        const auto expected = without_padding(row_of(expected_ids, row, queries.rows));
        check.equal("out.knn_ids", trail.found, expected);
        const auto expected_row = row_of(expected_scores, row, queries.rows).first(expected.size());
        check.close("out.neg_dists", trail.scores, expected_row, tolerance);
        for (std::size_t j = 0; j < trail.found.size(); ++j) hits.push(trail.found[j], trail.scores[j]);
        hits.end_row();
        trail.advance(store, labels[static_cast<std::size_t>(row)]);
    }
    check.equal("out.searched", searched);

    Arena arena;
    const Rows no_queries = queries;
    const Reading reading{no_queries, hits, store, arena};
    for (index_t row = 0; row < memory.rows; ++row) {
        const auto out = memory[row];
        std::fill(out.begin(), out.end(), TokenVotes::kReferenceFloor);
        const TokenLogProbs of_row = votes.votes(reading, row, votes.scratch(reading));
        for (std::size_t t = 0; t < of_row.tokens.size(); ++t)
            out[static_cast<std::size_t>(of_row.tokens[t])] = of_row.log_p[t];
    }
    check.close("out.knn_logp", memory.data, tolerance);
    MutRows base = log_p;
    struct Base {
        MutRows log_probs;
    } mixed{base};
    Interpolate{votes, Fixed{static_cast<float>(fixture.number("lmbda"))}}.combine(mixed, reading);
    check.close("out.logp", log_p.data, tolerance);

    // The whole sequence in one read, where no tie was broken by the reference.
    if (!clustered) {
        std::vector<Trail> trails(1);
        const RetoMaton<TokenStore<>, FromFixture> reto_maton(
            LastHidden{}, store, follow, {votes, {static_cast<float>(fixture.number("lmbda"))}}, {});
        Matrix again = fixture.matrix("in.lm_logp");
        reto_maton.read(TrailQueries{queries, trails, {}, labels}, MutRows(again));
        check.close("out.logp", again.data, tolerance);
        check.equal("out.searched", std::vector<index_t>{trails[0].searches},
                    std::vector<index_t>{std::accumulate(searched.begin(), searched.end(), index_t{0})});
    }
}
