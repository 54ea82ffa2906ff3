// SPDX-License-Identifier: MIT
#include "trime_fixture.hpp"

#include <mnemo/nn/trime_scorer.hpp>

namespace {

using golden::Check;
using golden::Fixture;
using mnemo::Hits;
using mnemo::index_t;
using mnemo::Rows;
using namespace mnemo::nn;

// The fixture's datastore: values, and keys where scores are computed anew.
struct ReferenceStore {
    using value_type = std::int32_t;
    std::vector<std::int32_t> values;
    mnemo::Matrix stored;
    index_t key_dim() const { return stored.cols; }
    index_t size() const { return static_cast<index_t>(values.size()); }
    std::int32_t value(index_t id) const { return values[static_cast<std::size_t>(id)]; }
};

// What the fixture's index found for one window; scores as the reference uses them.
struct FoundEntries {
    std::vector<index_t> ids;
    std::vector<float> scores;
    bool l2 = false, again = false; // squared distances are negated, or inner products computed from the keys

    Hits retrieve(const ReferenceStore& store, Rows queries) const {
        Hits hits;
        const std::size_t k = ids.size() / static_cast<std::size_t>(queries.rows);
        for (index_t i = 0; i < queries.rows; ++i) {
            for (std::size_t j = 0; j < k; ++j) {
                const index_t id = ids[static_cast<std::size_t>(i) * k + j];
                if (id < 0) continue;
                double score = double{scores[static_cast<std::size_t>(i) * k + j]};
                if (l2 || again) {
                    score = 0;
                    for (index_t d = 0; d < queries.cols; ++d) {
                        const auto c = static_cast<std::size_t>(d);
                        const double q = double{queries[i][c]}, key = double{store.stored[id][c]};
                        score += l2 ? -(q - key) * (q - key) : q * key;
                    }
                }
                hits.push(id, static_cast<float>(score));
            }
            hits.end_row();
        }
        return hits;
    }
};

void evaluate(const Fixture& fixture, Check& check) {
    const at::NoGradGuard no_grad;
    const golden::Tolerance tolerance = golden::tolerance_of(fixture);
    const std::int64_t pad = fixture.integer("pad_idx");
    const auto on = [&](const std::string& name) { return fixture.text(name) == "1"; };
    TrimeScoring options{.temperature = fixture.number("softmax_temp"),
                         .local = on("use_local"),
                         .mem_size = on("use_long") ? fixture.integer("mem_size") : 0,
                         .external = on("use_external"),
                         .parity = {.free_target = {}, .free_in_band = pad},
                         .half_mix = on("fp16_mix")};
    if (on("use_interp")) {
        options.lambda = fixture.number("lmbda");
        options.interpolation_temperature = fixture.number("interp_temp");
    }
    TrimeScorer scorer(golden::trime_weights(fixture, at::kFloat).output, options, fixture.integer("dim"));
    ReferenceStore store;
    const bool external = fixture.integer("k") > 0;
    if (external) store.values = fixture.tokens("in.dstore_vals"), store.stored = fixture.matrix("in.dstore_keys");

    double total = 0;
    index_t count = 0;
    for (index_t t = 0; t < fixture.integer("n_windows"); ++t) {
        const std::string in = mnemo::text("in.s", t, "."), out = mnemo::text("out.s", t, ".");
        const at::Tensor targets = golden::ids_of(fixture, in + "target").view(-1);
        const index_t start = fixture.ids(in + "start")[0], scored = targets.ne(pad).sum().item<std::int64_t>();
        const std::int64_t dim = fixture.integer("dim");
        TrimeWindow window{golden::tensor_of(fixture, in + "features").view({-1, dim}),
                           golden::tensor_of(fixture, in + "keys").view({-1, dim}),
                           golden::ids_of(fixture, in + "src_tokens").view(-1),
                           targets.narrow(0, start, scored),
                           start,
                           fixture.ids(in + "id")[0]};
        TrimeScores scores;
        if (external)
            scores = scorer.score(window,
                                  FoundEntries{fixture.ids(in + "knn_ids"), fixture.floats(in + "knn_dists"),
                                               fixture.text("metric") == "l2", fixture.text("sim_func") == "ip"},
                                  store);
        else
            scores = scorer.score(window);
        const auto close = [&](const std::string& name, const at::Tensor& got) {
            golden::close_or_nothing(fixture, check, out + name, got, tolerance);
        };
        close("logp", scores.log_p);
        close("vocab_logp", scores.vocabulary.target - scores.vocabulary.all);
        close("lse_vocab", scores.vocabulary.all);
        close("lse_memory", scores.memory.all);
        const at::Tensor some = at::isfinite(scores.memory.all);
        golden::close_or_nothing(fixture, check, out + "memory_logp",
                                 (scores.memory.target - scores.memory.all).index({some}), tolerance, some);
        const index_t entries = scores.entries + (external && options.external ? fixture.integer("k") : 0);
        check.equal(out + "n_memory", std::vector<index_t>{entries});
        if (fixture.has(out + "logp_joint")) close("logp_joint", scores.joint);
        if (fixture.has(out + "logp_knn")) close("logp_knn", scores.retrieved);
        total += scores.log_p.to(at::kDouble).sum().item<double>();
        count += scored;
    }
    check.equal("out.n_tokens", std::vector<index_t>{count});
    const double bits = -total / static_cast<double>(count) / std::log(2.0);
    check.close("out.loss_base2", std::vector<double>{bits}, tolerance);
    check.close("out.ppl", std::vector<double>{std::exp2(bits)}, tolerance);
    if (fixture.has("out.memory_keys")) {
        std::vector<float> keys;
        std::vector<index_t> labels;
        const mnemo::RingStore& memory = scorer.memory();
        for (index_t age = 0; age < memory.size(); ++age) {
            const auto key = memory.keys()[memory.slot(age)];
            keys.insert(keys.end(), key.begin(), key.end());
            labels.push_back(memory.value(memory.slot(age)));
        }
        check.close("out.memory_keys", keys, tolerance);
        check.equal("out.memory_labels", labels);
    }
}

} // namespace

GOLDEN("trime.eval_local") { evaluate(fixture, check); }
GOLDEN("trime.eval_long") { evaluate(fixture, check); }
GOLDEN("trime.eval_ext") { evaluate(fixture, check); }
