// SPDX-License-Identifier: MIT
#include "golden.hpp"

#include <mnemo/combine/token_votes.hpp>
#include <mnemo/kernels/score.hpp>
#include <mnemo/retrieve/neighbour_graph.hpp>
#include <mnemo/store/tokens.hpp>

#include <algorithm>

namespace {

using namespace mnemo;
using Edges = std::vector<std::pair<index_t, index_t>>; // source, destination; sorted

Edges expected_edges(const golden::Fixture& fixture, const std::string& name) {
    const auto flat = fixture.ids(name);
    Edges edges;
    for (std::size_t i = 0; i < flat.size() / 2; ++i) edges.emplace_back(flat[i], flat[i + flat.size() / 2]);
    std::sort(edges.begin(), edges.end());
    return edges;
}

} // namespace

GOLDEN("gnnlm.graph") {
    const auto neighbours = fixture.ids("in.neighbors"), offsets = fixture.ids("in.offsets");
    const index_t targets = fixture.size("in.neighbors", 0), intra = fixture.integer("intra_context");
    const auto tokens = fixture.ids("in.neighbor_tokens");
    for (const bool shared : {false, true}) {
        const std::string prefix = shared ? "out.merged." : "out.new.";
        const NeighbourGraph graph = build_neighbour_graph(
            {neighbours.data(), targets, fixture.size("in.neighbors", 1)}, offsets, fixture.integer("corpus_size"),
            {.left = fixture.integer("left_context"),
             .right = fixture.integer("right_context"),
             .own_text = fixture.integer("invalid_neighbor_context"),
             .shared = shared});
        check.equal(prefix + "ntgt_offsets", graph.rows);
        if (!shared) {
            std::vector<index_t> labels;
            for (const index_t row : graph.rows) labels.push_back(tokens[static_cast<std::size_t>(row)]);
            check.equal(prefix + "ntgt_labels", labels);
        }
        Edges intra_targets, inter, band;
        for (index_t v = 0; v < targets; ++v) {
            for (index_t u = 0; u <= v; ++u)
                if (intra == 0 || v - u < intra) intra_targets.emplace_back(u, v);
            for (const index_t centre : graph.centres_of(v)) inter.emplace_back(centre, v);
        }
        for (index_t v = 0; v < graph.nodes(); ++v)
            for (const index_t u :
                 {graph.before[static_cast<std::size_t>(v)], v, graph.after[static_cast<std::size_t>(v)]})
                if (u >= 0) band.emplace_back(u, v);
        for (Edges* edges : {&intra_targets, &inter, &band}) std::sort(edges->begin(), edges->end());
        const auto same = [&](const std::string& type, const Edges& edges) {
            const std::string name = prefix + "edges." + type;
            check.that(name, edges == expected_edges(fixture, name), "the same edges");
        };
        same("tgt_intra_tgt", intra_targets), same("ntgt_inter_tgt", inter), same("ntgt_intra_ntgt", band);
    }
}

GOLDEN("gnnlm.probability") {
    const std::string metric = fixture.text("metric_type");
    const bool l2 = metric.ends_with("l2"), given = metric.starts_with("do_not_recomp");
    if (!l2 && !metric.ends_with("ip")) fail("metric_type: expected one of l2 and ip, got `", metric, "`");
    const bool cosine = fixture.flag("cosine");
    if (cosine && l2) fail("metric_type: expected inner products of normalised vectors");
    const Matrix keys = fixture.matrix("in.keys"), queries = fixture.matrix("in.queries");
    TokenStore<half> store(keys.cols);
    store.append(keys, fixture.tokens("in.vals"));
    const auto ids = fixture.ids("in.ids");
    const auto targets = fixture.tokens("in.targets");
    const auto k = static_cast<std::size_t>(fixture.integer("k"));
    const index_t vocab = fixture.integer("vocab_size");
    std::vector<float> scores = fixture.floats("in.faiss_sims");
    Hits hits;
    std::vector<index_t> recall;
    for (index_t row = 0; row < queries.rows; ++row) {
        const auto first = static_cast<std::size_t>(row) * k;
        const auto of_row = std::span<const index_t>(ids).subspan(first, k);
        const auto scores_of_row = std::span(scores).subspan(first, k);
        if (!given) {
            if (cosine)
                score_ids<Cosine>(queries[row], store.keys(), of_row, scores_of_row);
            else if (l2)
                score_ids<L2>(queries[row], store.keys(), of_row, scores_of_row);
            else
                score_ids<InnerProduct>(queries[row], store.keys(), of_row, scores_of_row);
        } else if (l2) {
            for (float& s : scores_of_row) s = -s;
        }
        index_t right = 0;
        for (std::size_t j = 0; j < k; ++j)
            if (of_row[j] >= 0) {
                hits.push(of_row[j], scores_of_row[j]);
                right += store.value(of_row[j]) == targets[static_cast<std::size_t>(row)] ? 1 : 0;
            }
        recall.push_back(right);
        hits.end_row();
    }
    check.equal("out.recall", recall);
    Arena arena;
    const Rows rows = queries;
    const Reading reading{rows, hits, store, arena};
    for (const std::string& tau : fixture.list("temperatures")) {
        const TokenVotes votes{.temperature = std::stof(tau)}, floored{votes.temperature, std::log(1e-10f)};
        const golden::Tolerance tolerance{std::stod(tau) <= 0.1 ? 1e-3 : 1e-5, 1e-5};
        Matrix all(queries.rows, vocab);
        std::vector<float> of_target, log_p;
        for (index_t row = 0; row < queries.rows; ++row) {
            const TokenLogProbs of_row = votes.votes(reading, row, votes.scratch(reading));
            for (std::size_t t = 0; t < of_row.tokens.size(); ++t)
                all[row][static_cast<std::size_t>(of_row.tokens[t])] = std::exp(of_row.log_p[t]);
            const std::int32_t target = targets[static_cast<std::size_t>(row)];
            of_target.push_back(all[row][static_cast<std::size_t>(target)]);
            log_p.push_back(floored.log_prob(reading, row, target).value_or(floored.floor));
        }
        check.close("out.prob.T" + tau, all.data, tolerance);
        check.close("out.target_prob.T" + tau, of_target, tolerance);
        check.close("out.target_logp_eps.T" + tau, log_p, {tolerance.absolute, 1e-4});
    }
}
