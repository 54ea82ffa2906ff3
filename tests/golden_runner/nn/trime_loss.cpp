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

// The reference's defects show where a target is padding, or has the id of padding within its band.
bool defects_show(const std::vector<Rank>& ranks, const OutputLayer& output, std::int64_t pad) {
    bool found = false;
    for (const Rank& rank : ranks) {
        std::int64_t first = 0, size = output.words.size(0);
        found |= rank.batch.targets.eq(pad).any().item<bool>();
        for (const auto& band : output.bands) {
            first += size, size = band.embedding.size(0);
            found |= size > pad && rank.batch.targets.eq(first + pad).any().item<bool>();
        }
    }
    return found;
}

// By whole matrices in double, with the reference's defects; and by tiles in float, where no defect shows.
void lm_loss(const Fixture& fixture, Check& check, bool fused) {
    const Tolerance tolerance = golden::tolerance_of(fixture);
    const std::string criterion = fixture.text("criterion");
    const auto world = static_cast<std::size_t>(fixture.integer("world"));
    const std::int64_t pad = fixture.integer("pad_idx");
    const TrimeOptions options{.cross_entropy = fixture.text("ce_warmup") == "1",
                               .pads_are_tokens = !fused,
                               .bands_skip_pad_id = !fused,
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
    if (fused && defects_show(ranks, weights.output, pad)) return;
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

        const auto close = [&](const std::string& name, const at::Tensor& got) {
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
        const auto close = [&](const std::string& name, const at::Tensor& got) {
            check.close(name + suffix, floats_of(got), tolerance);
        };
        const at::Tensor real = batch.targets.ne(pad);
        const auto close_real = [&](const std::string& name, const at::Tensor& got) {
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

} // namespace

GOLDEN("trime.mt") { translation_loss(fixture, check); }
GOLDEN("trime.loss") { lm_loss(fixture, check); }
GOLDEN("trime.long_loss") { lm_loss(fixture, check); }
GOLDEN("trime.ext_loss") { lm_loss(fixture, check); }
