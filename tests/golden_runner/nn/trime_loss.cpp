// SPDX-License-Identifier: MIT
#include "trime_fixture.hpp"

#include <mnemo/nn/trime.hpp>

namespace {

using golden::Check;
using golden::close_or_nothing;
using golden::Fixture;
using golden::floats_of;
using golden::Tolerance;
using mnemo::index_t;
using namespace mnemo::nn;

// What a rank holds: leaf tensors.
struct Rank {
    std::string suffix;
    TrimeBatch batch;
    at::Tensor leaf; // features or logits
};

RankEntries gathered(const std::vector<Rank>& ranks, std::size_t own, bool drop_padding, std::int64_t pad) {
    RankEntries out;
    out.rank = own;
    for (const Rank& rank : ranks) {
        at::Tensor keys = rank.batch.keys.detach().reshape({-1, rank.batch.keys.size(-1)});
        at::Tensor targets = rank.batch.targets.reshape(-1);
        if (drop_padding) {
            const at::Tensor real = at::nonzero(targets.ne(pad)).view(-1);
            keys = keys.index_select(0, real), targets = targets.index_select(0, real);
        }
        out.keys.push_back(keys), out.targets.push_back(targets);
    }
    return out;
}

// By whole matrices in double, where padding counts as in the reference; and by tiles in float, if there is none.
void lm_loss(const Fixture& fixture, Check& check, bool fused) {
    const Tolerance tolerance = golden::tolerance_of(fixture);
    const std::string criterion = fixture.text("criterion");
    const auto world = static_cast<std::size_t>(fixture.integer("world"));
    const std::int64_t pad = fixture.integer("pad_idx");
    const TrimeOptions options{.cross_entropy = fixture.text("ce_warmup") == "1",
                               .pads_are_tokens = !fused,
                               .bands_skip_pad_id = true,
                               .pad = pad};
    const at::ScalarType type = fused ? at::kFloat : at::kDouble;
    auto weights = golden::trime_weights(fixture, type);
    std::vector<Rank> ranks;
    for (std::size_t r = 0; r < world; ++r) {
        const std::string suffix = fixture.has("in.targets") ? "" : mnemo::text(".r", r);
        const auto leaf = [&](const std::string& name) {
            return golden::tensor_of(fixture, name + suffix).to(type).requires_grad_();
        };
        const at::Tensor features = leaf("in.features"), keys = leaf("in.keys");
        ranks.push_back({suffix, {features, keys, golden::ids_of(fixture, "in.targets" + suffix), {}, {}}, features});
    }
    for (const Rank& rank : ranks)
        if (fused && rank.batch.targets.eq(pad).any().item<bool>()) return;
    for (std::size_t r = 0; r < world; ++r) {
        const auto& [suffix, batch, features] = ranks[r];
        for (auto& [name, weight] : weights.named) weight.mutable_grad() = at::Tensor();
        const RankEntries entries = gathered(ranks, r, false, pad);
        TrimeLoss result;
        if (criterion == "trime_loss")
            result = trime_loss(batch, weights.output, options);
        else if (criterion == "trime_long_loss_same_device")
            result = trime_long_loss_same_device(batch, weights.output, options);
        else if (criterion == "trime_long_loss")
            result = trime_long_loss(batch, weights.output, options, entries,
                                     static_cast<std::size_t>(fixture.integer("num_comb_shards")));
        else if (criterion == "trime_ext_loss")
            result = trime_ext_loss(batch, weights.output, options, fixture.text("only_cross_sent") == "1", entries);
        else
            mnemo::fail("criterion: `", criterion, "` is not known");
        result.loss.backward();

        const auto close = [&, &suffix = suffix](const std::string& name, const at::Tensor& got) {
            check.close(name + suffix, floats_of(got), tolerance);
        };
        close("out.loss", result.loss);
        close("out.token_loss", result.token_loss);
        const auto gradient = [](const at::Tensor& t) { return t.grad().defined() ? t.grad() : at::zeros_like(t); };
        close("grad.features", gradient(features));
        close("grad.keys", gradient(batch.keys));
        for (auto& [name, weight] : weights.named) close("grad." + name, gradient(weight));
        if (fused) continue;

        const Sums& vocabulary = result.terms.vocabulary;
        close("out.lse_vocab", vocabulary.all);
        close("out.vocab_nll", vocabulary.all - vocabulary.target);
        close("out.loss_ce", (vocabulary.all - vocabulary.target).sum());
        check.equal("out.sample_size" + suffix, std::vector<index_t>{result.tokens});
        if (options.cross_entropy) continue;
        const Sums& memory = result.terms.memory;
        close_or_nothing(fixture, check, "out.lse_memory" + suffix, memory.all, tolerance);
        // What the reference computes from nothing but masked entries has no meaning.
        const at::Tensor some = at::isfinite(memory.all);
        close_or_nothing(fixture, check, "out.memory_nll" + suffix, (memory.all - memory.target).index({some}),
                         tolerance, some);
        const mnemo::Visibility& seen = result.inputs.visible;
        const std::vector<float> labels = floats_of(result.inputs.all_labels());
        const std::vector<float> targets = floats_of(result.inputs.targets);
        std::vector<index_t> visible, positive;
        for (index_t i = 0; i < seen.rows(); ++i) {
            visible.push_back(seen[i].size());
            index_t same = 0;
            for (index_t j = 0; j < seen.entries(); ++j)
                same +=
                    seen[i].contains(j) && labels[static_cast<std::size_t>(j)] == targets[static_cast<std::size_t>(i)];
            positive.push_back(same);
        }
        check.equal("out.n_visible" + suffix, visible);
        check.equal("out.n_positive" + suffix, positive);
    }
}
void lm_loss(const Fixture& fixture, Check& check) {
    for (const bool fused : {false, true}) lm_loss(fixture, check, fused);
}

// Puts rows of real tokens back where they were; padding gets `fill`.
at::Tensor with_padding(const at::Tensor& rows, const at::Tensor& targets, std::int64_t pad, double fill) {
    const at::Tensor real = at::nonzero(targets.reshape(-1).ne(pad)).view(-1);
    auto shape = rows.sizes().vec();
    shape[0] = targets.numel();
    return at::full(shape, fill, rows.options()).index_copy(0, real, rows);
}

void translation_loss(const Fixture& fixture, Check& check) {
    const Tolerance tolerance = golden::tolerance_of(fixture);
    const auto world = static_cast<std::size_t>(fixture.integer("world"));
    const std::int64_t pad = fixture.integer("pad_idx");
    const TrimeOptions options{
        .cross_entropy = fixture.text("ce_warmup") == "1", .temperature = fixture.number("temp"), .plain = true};
    const bool l2 = fixture.text("dist_func") == "l2";
    const TrimeMtOptions mt{fixture.integer("topk_mem"), l2 ? mnemo::Metric::l2 : mnemo::Metric::inner_product};
    std::vector<Rank> ranks;
    for (std::size_t r = 0; r < world; ++r) {
        const std::string suffix = mnemo::text(".r", r);
        const at::Tensor logits = golden::tensor_of(fixture, "in.logits" + suffix).requires_grad_();
        const at::Tensor targets = golden::ids_of(fixture, "in.targets" + suffix);
        const at::Tensor keys = golden::tensor_of(fixture, "in.keys" + suffix).requires_grad_();
        ranks.push_back({suffix, {{}, keys, targets, lengths_of(targets, pad), logits}, logits});
    }
    for (std::size_t r = 0; r < world; ++r) {
        const auto& [suffix, batch, logits] = ranks[r];
        const TrimeLoss result = trime_mt_loss(batch, {}, options, mt, gathered(ranks, r, true, pad));
        result.loss.backward();
        const auto close = [&, &suffix = suffix](const std::string& name, const at::Tensor& got) {
            check.close(name + suffix, floats_of(got), tolerance);
        };
        const at::Tensor real = batch.targets.ne(pad);
        const auto close_real = [&, &suffix = suffix](const std::string& name, const at::Tensor& got) {
            close_or_nothing(fixture, check, name + suffix, got, tolerance, real);
        };
        close("out.loss", result.loss);
        close("out.token_loss", with_padding(result.token_loss, batch.targets, pad, 0));
        close_real("out.lse_vocab", result.terms.vocabulary.all);
        if (!options.cross_entropy) {
            const Sums& memory = result.terms.memory;
            close_real("out.lse_memory", memory.all);
            const at::Tensor some = at::isfinite(memory.all);
            close_or_nothing(fixture, check, "out.memory_logp" + suffix, (memory.target - memory.all).index({some}),
                             tolerance, real.reshape(-1).masked_scatter(real.reshape(-1), some));
            if (mt.top_k > 0) close_real("out.topk_logits", result.terms.top_scores);
        }
        const auto gradient = [](const at::Tensor& t) { return t.grad().defined() ? t.grad() : at::zeros_like(t); };
        close("grad.logits", gradient(logits));
        close("grad.keys", gradient(batch.keys));
    }
}

// The reference's decoder, whose own weights are the output layer.
TransformerLm decoder_in(const Fixture& fixture) {
    std::vector<std::int64_t> cutoffs;
    for (const auto& id : fixture.list("cutoff")) cutoffs.push_back(std::stoll(id));
    TransformerLmOptions o;
    o.vocab_size(fixture.integer("vocab_size")).dim(fixture.integer("dim")).pad(fixture.integer("pad_idx"));
    o.layers(fixture.integer("layers")).heads(fixture.integer("heads")).ffn_dim(fixture.integer("ffn"));
    o.activation(fixture.text("activation")).final_norm(fixture.text("final_norm") == "1");
    o.adaptive_input(true).adaptive_input_cutoff(cutoffs).adaptive_input_factor(fixture.number("factor"));
    o.adaptive_softmax_cutoff(cutoffs).adaptive_softmax_factor(fixture.number("factor"));
    o.tie_adaptive_weights(fixture.text("tie_adaptive_weights") == "1");
    o.tie_adaptive_proj(fixture.text("tie_adaptive_proj") == "1");
    TransformerLm model(o);
    load_weights(*model, fixture.tensors(), "w.");
    return model;
}

// The gradient of a weight by fairseq's name, which may be a part of a parameter.
at::Tensor gradient_of(const TransformerLm& model, const std::string& name) {
    for (const auto& [known, weight] : model->weights()) {
        if (known != name) continue;
        for (const at::Tensor& parameter : model->parameters()) {
            const auto offset = weight.data_ptr<float>() - parameter.data_ptr<float>();
            if (offset < 0 || offset >= parameter.numel()) continue;
            if (!parameter.grad().defined()) return at::zeros_like(weight);
            return parameter.grad().reshape(-1).narrow(0, offset, weight.numel());
        }
    }
    mnemo::fail("the model has no weight ", name);
}

void whole_model(const Fixture& fixture, Check& check) {
    const Tolerance tolerance = golden::tolerance_of(fixture);
    const TransformerLm model = decoder_in(fixture);
    const at::Tensor tokens = golden::ids_of(fixture, "in.src_tokens"), targets = golden::ids_of(fixture, "in.targets");
    const auto states = model->states(tokens, {model->tap("ffn_in"), model->tap("prehead")});
    const bool last_ffn = fixture.text("key_type") == "last_ffn_input";
    const at::Tensor keys = last_ffn ? states[0] : states[1];
    const auto close = [&](const std::string& name, const at::Tensor& got) {
        check.close(name, floats_of(got), tolerance);
    };
    close("out.last_ffn_input", states[0]);
    close("out.model_output", states[1]);
    close("out.features", states[1]);
    close("out.keys", keys);
    const TrimeBatch batch{states[1], keys, targets, {}, {}};
    for (const bool plain : {true, false}) {
        for (auto& parameter : model->parameters()) parameter.mutable_grad() = at::Tensor();
        const bool padded = targets.eq(fixture.integer("pad_idx")).any().item<bool>();
        const TrimeOptions options{
            .plain = plain, .pads_are_tokens = padded, .bands_skip_pad_id = true, .pad = fixture.integer("pad_idx")};
        const OutputLayer output = model->head()->output_layer();
        const TrimeLoss loss = fixture.text("criterion") == "trime_loss"
                                   ? trime_loss(batch, output, options)
                                   : trime_ext_loss(batch, output, options, fixture.text("only_cross_sent") == "1");
        close("out.loss", loss.loss);
        loss.loss.backward({}, plain); // the second run reads the graph of the decoder again
        for (const std::string& name : fixture.names("grad.")) close(name, gradient_of(model, name.substr(5)));
    }
}

struct TargetTokens {
    using value_type = std::int32_t;
    std::vector<std::int32_t> values;
    index_t key_dim() const { return 1; }
    index_t size() const { return static_cast<index_t>(values.size()); }
    std::int32_t value(index_t id) const { return values[static_cast<std::size_t>(id)]; }
};

// One step of decoding: the retrieved tokens' distribution mixed in by their own weight against the vocabulary's.
void translation_step(const Fixture& fixture, Check& check) {
    const at::NoGradGuard no_grad;
    const Tolerance tolerance = golden::tolerance_of(fixture);
    const at::Tensor logits = golden::tensor_of(fixture, "in.logits").flatten(0, 1);
    const at::Tensor scores = golden::tensor_of(fixture, "in.knn_dists").flatten(0, 1);
    const at::Tensor ids = golden::ids_of(fixture, "in.knn_ids").flatten(0, 1);
    const at::Tensor tokens = golden::ids_of(fixture, "in.dstore_vals").index_select(0, ids.reshape(-1)).view_as(ids);
    TrimeMtDecoding decoding{.temperature = fixture.number("temperature")};
    if (fixture.text("lambda_type") == "fix")
        decoding.lambda = fixture.number("lambda_value");
    else
        decoding.temperature *= std::sqrt(static_cast<double>(fixture.integer("dim")));
    const TrimeMtStep right = trime_mt_step(logits, scores, tokens, decoding);
    decoding.add_unweighted = true;
    const TrimeMtStep step = trime_mt_step(logits, scores, tokens, decoding);
    const auto close = [&](const std::string& name, const at::Tensor& got) {
        check.close(name, floats_of(got), tolerance);
    };
    close("out.lambda", step.lambda);
    close("out.knn_prob", step.retrieved);
    close("out.prob", step.probabilities);
    close("out.prob_sum", step.probabilities.sum(1));
    check.that("out.prob_sum", at::allclose(right.probabilities.sum(1), at::ones({logits.size(0)})),
               "a distribution without the reference's defect");
    if (decoding.lambda) return;

    // The same by policies: raw logits and hits become the joint softmax.
    const TargetTokens store{fixture.tokens("in.dstore_vals")};
    mnemo::Hits hits;
    for (std::int64_t i = 0; i < scores.size(0); ++i) {
        for (std::int64_t j = 0; j < scores.size(1); ++j)
            hits.push(ids[i][j].item<std::int64_t>(), scores[i][j].item<float>());
        hits.end_row();
    }
    const at::Tensor joint = logits.clone();
    mnemo::Logits base{as_mut_rows(joint)};
    mnemo::Arena scratch;
    const mnemo::Rows queries;
    mnemo::JointSoftmax{.scale = static_cast<float>(1 / decoding.temperature)}.combine(
        base, mnemo::Reading{queries, hits, store, scratch});
    check.that("out.prob_sum", at::allclose(at::softmax(joint, 1), right.probabilities, 1e-4, 1e-6),
               "the joint softmax of the policies");
}

} // namespace

GOLDEN("trime.lm") { whole_model(fixture, check); }
GOLDEN("trime.mt_decode") { translation_step(fixture, check); }
GOLDEN("trime.mt") { translation_loss(fixture, check); }
GOLDEN("trime.loss") { lm_loss(fixture, check); }
GOLDEN("trime.long_loss") { lm_loss(fixture, check); }
GOLDEN("trime.ext_loss") { lm_loss(fixture, check); }
