// SPDX-License-Identifier: MIT
#include "golden.hpp"

#include <mnemo/combine/interpolate.hpp>
#include <mnemo/core/session.hpp>
#include <mnemo/extract/last_hidden.hpp>
#include <mnemo/kernels/score.hpp>
#include <mnemo/loss/nll.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/store/tokens.hpp>

namespace {

using namespace mnemo;
using golden::Check;
using golden::Fixture;
using golden::Tolerance;

/// "1e-4 absolute", "2e-3 relative (...)", as the fixtures say it.
Tolerance stated_tolerance(const Fixture& fixture) {
    const double value = fixture.number("tolerance");
    return fixture.text("tolerance").find("relative") != std::string::npos ? Tolerance{value / 10, value}
                                                                           : Tolerance{value, value / 10};
}

/// The fixture's keys in the type that they are stored in, with its values.
template <class Key> TokenStore<Key> store_in(const Fixture& fixture) {
    const Matrix keys = fixture.matrix("in.keys");
    const auto values = fixture.has("in.vals") ? fixture.tokens("in.vals")
                                               : std::vector<std::int32_t>(static_cast<std::size_t>(keys.rows));
    TokenStore<Key> store(keys.cols);
    store.append(keys, values);
    return store;
}
auto with_store(const Fixture& fixture, auto&& f) {
    return fixture.tensors().at("in.keys").dtype == "F16" ? f(store_in<half>(fixture)) : f(store_in<float>(fixture));
}

/// Ids and distances that a fixture's index found, a row a query.
struct Found {
    std::vector<index_t> ids; // [queries, k], -1: none
    std::vector<float> distances;
    std::size_t k;

    explicit Found(const Fixture& fixture)
        : ids(fixture.ids("in.ids")), distances(fixture.floats("in.faiss_dists")),
          k(static_cast<std::size_t>(fixture.size("in.ids", 1))) {}
    index_t rows() const { return static_cast<index_t>(ids.size() / k); }
};

/// The scores of one route for all that was found. A missing id stands for the last row in the reference, which
/// indexes keys[-1]; `missing` chooses what it stands for here.
enum class Missing { none, last_row };
std::vector<float> scores_of(const std::string& route, const Found& found, Rows queries, const KeyRows& keys,
                             Missing missing) {
    std::vector<float> scores(found.ids.size());
    std::vector<index_t> ids = found.ids;
    if (missing == Missing::last_row)
        for (index_t& id : ids) id = id < 0 ? keys.rows - 1 : id;
    for (index_t row = 0; row < found.rows(); ++row) {
        const auto first = static_cast<std::size_t>(row) * found.k;
        const auto of_row = std::span(scores).subspan(first, found.k);
        const auto ids_of_row = std::span<const index_t>(ids).subspan(first, found.k);
        if (route == "recompute")
            score_ids<L2>(queries[row], keys, ids_of_row, of_row);
        else if (route == "dot")
            score_ids<InnerProduct>(queries[row], keys, ids_of_row, of_row);
        else if (route == "do_not_recomp_l2" || route == "faiss")
            for (std::size_t j = 0; j < found.k; ++j)
                of_row[j] = route == "faiss" ? found.distances[first + j] : -found.distances[first + j];
        else
            fail("unknown route `", route, "`");
    }
    return scores;
}
Hits hits_of(const Found& found, const std::vector<float>& scores, index_t rows_of_store, Missing missing) {
    Hits hits;
    for (index_t row = 0; row < found.rows(); ++row) {
        for (std::size_t j = static_cast<std::size_t>(row) * found.k; j < static_cast<std::size_t>(row + 1) * found.k;
             ++j)
            if (found.ids[j] >= 0 || missing == Missing::last_row)
                hits.push(found.ids[j] >= 0 ? found.ids[j] : rows_of_store - 1, scores[j]);
        hits.end_row();
    }
    return hits;
}
std::string route_of(const std::string& tensor) { return tensor.substr(tensor.rfind('.') + 1); }

/// Evidence that a fixture brings along.
struct Given {
    Matrix log_p; // [rows, vocab]
    float log_prob(const auto& /*reading*/, index_t row, std::int32_t token) const {
        return log_p[row][static_cast<std::size_t>(token)];
    }
    void log_probs(const auto& /*reading*/, index_t row, std::span<float> out) const {
        std::copy(log_p[row].begin(), log_p[row].end(), out.begin());
    }
};

} // namespace

GOLDEN("knnlm.distance") {
    const Found found(fixture);
    const Matrix queries = fixture.matrix("in.queries_flat");
    const Tolerance tolerance = stated_tolerance(fixture);
    with_store(fixture, [&](const auto& store) {
        for (const auto& name : fixture.names("out.scores."))
            check.close(name, scores_of(route_of(name), found, queries, store.keys(), Missing::last_row), tolerance);
        // The index was flat or nearly so: its distances are ours.
        const bool l2 = fixture.text("metric") == "l2";
        const auto exact = scores_of(l2 ? "recompute" : "dot", found, queries, store.keys(), Missing::none);
        const auto reported = scores_of(l2 ? "do_not_recomp_l2" : "faiss", found, queries, store.keys(), Missing::none);
        std::vector<float> ours, theirs;
        for (std::size_t i = 0; i < exact.size(); ++i)
            if (found.ids[i] >= 0) ours.push_back(exact[i]), theirs.push_back(reported[i]);
        check.close("in.faiss_dists", ours, theirs, {1e-5, 1e-5});
    });
}

GOLDEN("knnlm.probability") {
    const Found found(fixture);
    const Matrix all = fixture.matrix("in.queries"); // [time * batch, d]
    const auto targets = fixture.tokens("in.targets");
    const auto pad = static_cast<std::int32_t>(fixture.integer("pad"));
    Matrix queries(0, all.cols);
    std::vector<std::int32_t> asked;
    for (std::size_t i = 0; i < targets.size(); ++i)
        if (targets[i] != pad) {
            const auto row = all[static_cast<index_t>(i)];
            queries.data.insert(queries.data.end(), row.begin(), row.end());
            ++queries.rows;
            asked.push_back(targets[i]);
        }
    const Tolerance tolerance = stated_tolerance(fixture);
    with_store(fixture, [&](const auto& store) {
        const auto log_p = [&](const std::string& route, Missing missing, float floor) {
            const auto scores = scores_of(route, found, queries, store.keys(), missing);
            const Hits hits = hits_of(found, scores, store.size(), missing);
            const Interpolate<TokenVotes> memory_alone{{.floor = floor}, {1.0f}};
            std::vector<float> out(asked.size());
            Arena scratch;
            const Rows rows = queries;
            TargetLogProbs base{asked, out};
            memory_alone.combine(base, Reading{rows, hits, store, scratch});
            return out;
        };
        for (const auto& name : fixture.names("out.logp.")) {
            const auto got = log_p(route_of(name), Missing::last_row, TokenVotes::kReferenceFloor);
            std::vector<float> scattered; // [time, batch, 1], pads at the floor
            for (std::size_t i = 0, j = 0; i < targets.size(); ++i)
                scattered.push_back(targets[i] == pad ? TokenVotes::kReferenceFloor : got[j++]);
            check.close(name, scattered, tolerance);
        }
        for (const auto& name : fixture.names("out.prob_masked.")) {
            auto p = log_p(route_of(name), Missing::none, kLogZero);
            for (float& x : p) x = std::exp(x);
            check.close(name, p, tolerance);
        }
    });
}

GOLDEN("knnlm.full_distribution") {
    const Found found(fixture);
    const Matrix queries = fixture.matrix("in.queries");
    const index_t vocab = fixture.integer("vocab_size");
    const Tolerance tolerance = stated_tolerance(fixture);
    with_store(fixture, [&](const auto& store) {
        const auto scores = scores_of("recompute", found, queries, store.keys(), Missing::none);
        const Hits hits = hits_of(found, scores, store.size(), Missing::none);
        for (const auto& temperature : fixture.list("temperatures")) {
            Matrix log_p(queries.rows, vocab);
            std::fill(log_p.data.begin(), log_p.data.end(), -std::log(static_cast<float>(vocab)));
            MutRows base(log_p);
            Arena scratch;
            const Rows rows = queries;
            const Interpolate<TokenVotes> memory_alone{{.temperature = std::stof(temperature)}, {1.0f}};
            memory_alone.combine(base, Reading{rows, hits, store, scratch});
            std::vector<float> p;
            for (const float x : log_p.data) p.push_back(std::exp(x));
            check.close("out.prob.T" + temperature, p, tolerance);
            const std::string logs = "out.logp_hf.T" + temperature;
            if (!fixture.has(logs)) continue;
            // The reference's logarithm of a probability that underflowed is its floor; ours is still right.
            const auto expected = fixture.floats(logs);
            auto got = log_p.data;
            for (std::size_t i = 0; i < got.size(); ++i)
                if (expected[i] == TokenVotes::kReferenceFloor && got[i] < -87.0f) got[i] = expected[i];
            check.close(logs, got, {1e-4, 1e-5});
        }
    });
}

GOLDEN("knnlm.interpolate") {
    const Matrix host = fixture.matrix("in.lm_logp"), memory = fixture.matrix("in.knn_logp");
    Tolerance tolerance = stated_tolerance(fixture);
    const Hits nothing_recalled = [&] {
        Hits hits;
        for (index_t row = 0; row < host.rows; ++row) hits.end_row();
        return hits;
    }();
    const Rows queries;
    const TokenStore<> store(1);
    Arena scratch;
    const Reading reading{queries, nothing_recalled, store, scratch};
    for (const auto& lambda : fixture.list("lambdas")) {
        const std::string name = "out.logp." + lambda;
        const Fixed weight{std::stof(lambda)};
        Matrix full = host; // as a distribution over columns
        MutRows rows(full);
        Interpolate{Given{memory}, weight}.combine(rows, reading);
        check.close(name, full.data, tolerance);
        Matrix scored = host; // as scores of targets, a column at a time
        for (index_t column = 0; column < host.cols; ++column) {
            const std::vector<std::int32_t> targets(static_cast<std::size_t>(host.rows),
                                                    static_cast<std::int32_t>(column));
            std::vector<float> log_p;
            for (index_t row = 0; row < host.rows; ++row) log_p.push_back(host[row][static_cast<std::size_t>(column)]);
            TargetLogProbs base{targets, log_p};
            Interpolate{Given{memory}, weight}.combine(base, reading);
            for (index_t row = 0; row < host.rows; ++row)
                scored[row][static_cast<std::size_t>(column)] = log_p[static_cast<std::size_t>(row)];
        }
        check.close(name, scored.data, tolerance);
        if (weight.lambda == 0) check.that(name, full.data == host.data && scored.data == host.data, "the host's bits");
        if (weight.lambda == 1) check.that(name, full.data == memory.data, "the memory's bits");
    }
}

GOLDEN("knnlm.eval") {
    const auto targets = fixture.tokens("in.targets_BT"), starts = fixture.tokens("in.start_indices");
    const auto host = fixture.floats("in.lm_logp_BT");
    const Matrix queries_TBC = fixture.matrix("in.queries_TBC");
    const auto batch = static_cast<std::size_t>(fixture.size("in.targets_BT", 0)),
               time = static_cast<std::size_t>(fixture.size("in.targets_BT", 1));
    const auto pad = static_cast<std::int32_t>(fixture.integer("pad"));
    const Tolerance tolerance = stated_tolerance(fixture);

    // The reference searches time-major without pads and sums sentence by sentence.
    Matrix queries(0, queries_TBC.cols);
    std::vector<std::int32_t> asked;
    std::vector<float> host_of_query;
    std::vector<std::size_t> query_of(batch * time);
    for (std::size_t t = 0; t < time; ++t)
        for (std::size_t b = 0; b < batch; ++b) {
            if (targets[b * time + t] == pad) continue;
            query_of[b * time + t] = asked.size();
            const auto row = queries_TBC[static_cast<index_t>(t * batch + b)];
            queries.data.insert(queries.data.end(), row.begin(), row.end());
            ++queries.rows;
            asked.push_back(targets[b * time + t]);
            host_of_query.push_back(host[b * time + t]);
        }
    const auto sentence_order = [&](const std::vector<float>& of_query) {
        std::vector<float> out;
        for (std::size_t b = 0; b < batch; ++b)
            for (auto t = static_cast<std::size_t>(starts[b]); t < time; ++t)
                if (targets[b * time + t] != pad) out.push_back(of_query[query_of[b * time + t]]);
        return out;
    };

    with_store(fixture, [&](const auto& store) {
        const auto evaluate = [&]<class MetricT>(MetricT) {
            using Store = std::remove_cvref_t<decltype(store)>;
            const Exact<MetricT> exact{fixture.integer("k"), {}};
            Memory<LastHidden, std::shared_ptr<const Store>, Exact<MetricT>, Interpolate<TokenVotes>, Nll> memory(
                {}, std::make_shared<const Store>(store), exact, {{.floor = TokenVotes::kReferenceFloor}, {}});
            const Rows rows = queries;
            const Hits hits = memory.recall(rows);
            const bool l2 = MetricT::metric == Metric::l2;
            std::vector<index_t> ids;
            std::vector<float> distances;
            for (index_t row = 0; row < hits.rows(); ++row)
                for (std::size_t j = 0; j < static_cast<std::size_t>(exact.k); ++j) {
                    const bool missing = j >= hits.ids(row).size();
                    ids.push_back(missing ? -1 : hits.ids(row)[j]);
                    const float score = missing ? -std::numeric_limits<float>::max() : hits.scores(row)[j];
                    distances.push_back(l2 ? -score : score);
                }
            check.equal("out.ids", ids);
            check.close("out.faiss_dists", distances, {1e-5, 1e-5});
            check.close("out.logp.lm", sentence_order(host_of_query), tolerance);
            for (const auto& name : fixture.names("out.ppl.")) {
                const std::string route = route_of(name);
                std::vector<float> all;
                std::vector<double> perplexities;
                for (const auto& lambda : fixture.list("lambdas")) {
                    memory.combiner().lambda.lambda = std::stof(lambda);
                    std::vector<float> log_p = host_of_query;
                    const double nats = memory.loss(rows, TargetLogProbs{asked, log_p});
                    const auto ordered = sentence_order(log_p);
                    Perplexity perplexity;
                    perplexity.add(ordered);
                    if (ordered.size() == log_p.size())
                        check.that(name, std::abs(perplexity.nats() - nats) < 1e-9, "the loss of the memory");
                    perplexities.push_back(perplexity.perplexity());
                    all.insert(all.end(), ordered.begin(), ordered.end());
                }
                check.close("out.logp." + route, all, tolerance);
                check.close(name, perplexities, {0, tolerance.absolute});
            }
        };
        if (fixture.text("metric") == "l2")
            evaluate(L2{});
        else
            evaluate(InnerProduct{});
    });
}
