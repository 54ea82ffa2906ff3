// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/nn/fused_joint.hpp>

#include <numeric>
#include <random>

namespace mnemo::nn {

// The losses of TRIME (Zhong, Lei and Chen 2022) on plain tensors of anybody's model: what the output layer reads, what
// serves as key and query, the targets. One hidden vector of each position is query and key at once and its target is
// the label; gradients flow to both sides.

/// B segments of L positions, of which the first lengths[b] are real. Padding neither costs nor is remembered.
struct TrimeBatch {
    at::Tensor features;            // [B, L, D]; with `logits` it may be undefined
    at::Tensor keys;                // [B, L, D_k]
    at::Tensor targets;             // Long [B, L]
    std::vector<index_t> lengths{}; // [B]; empty: L each
    at::Tensor logits{};            // [B, L, V] of a plain softmax, instead of features
};

/// The lengths of segments whose ends are filled with `pad`. Throws Error if a pad stands before a token.
inline std::vector<index_t> lengths_of(const at::Tensor& targets, std::int64_t pad) {
    const at::Tensor real = targets.ne(pad), count = real.sum(1);
    const at::Tensor expected =
        at::arange(targets.size(1), targets.options().dtype(at::kLong)).unsqueeze(0).lt(count.unsqueeze(1));
    if (!at::equal(real, expected)) fail("targets: expected padding only behind the tokens of a segment");
    const at::Tensor host = count.to(at::kCPU, at::kLong).contiguous();
    return {host.data_ptr<std::int64_t>(), host.data_ptr<std::int64_t>() + host.numel()};
}

/// What the ranks of a job gathered: keys [n_r, D_k] and targets [n_r] of each, without padding. Those of the own rank
/// are not read: the batch has them, with gradients, while other ranks' keys are constants as in the reference, unless
/// they are `learned`.
struct RankEntries {
    std::vector<at::Tensor> keys, targets;
    std::size_t rank = 0;
    bool learned = false;
};

struct TrimeOptions {
    bool cross_entropy = false; // warm-up: no memory, keys get no gradient
    double temperature = 1;     // of the memory's scores
    bool plain = false;         // whole matrices in place of tiles
    FusedTiles tiles{};
    // The reference's defects, for its numbers.
    bool pads_are_tokens = false;   // padding is remembered and costs what that takes from it; without lengths, plain
    bool bands_skip_pad_id = false; // the target of id `pad` within a band is free: its probability is overstated
    std::int64_t pad = 1;

    bool needs_plain() const { return plain || pads_are_tokens; }
};

struct TrimeLoss {
    at::Tensor loss;       // scalar, the sum over tokens, nats
    at::Tensor token_loss; // [tokens], detached unless computed plainly
    index_t tokens = 0;    // to divide by
    JointTerms terms;      // only if computed plainly, as are
    JointInputs inputs;    // what was computed from, without padding
};

namespace detail {

/// A batch without padding, as rows.
struct TrimeRows {
    JointInputs in;
    std::vector<index_t> lengths;
    index_t first = 0, entries = 0; // of the own entries among all

    TrimeRows(const TrimeBatch& batch, const OutputLayer& output, const TrimeOptions& options,
              const RankEntries& ranks) {
        if (!batch.targets.defined() || batch.targets.dim() != 2)
            fail("targets: expected Long [segments, positions], got ", describe(batch.targets));
        const std::int64_t segments = batch.targets.size(0), positions = batch.targets.size(1);
        lengths = batch.lengths;
        if (lengths.empty()) lengths.assign(static_cast<std::size_t>(segments), positions);
        expect_equal("lengths", static_cast<index_t>(lengths.size()), index_t{segments});
        std::vector<std::int64_t> real;
        for (std::int64_t b = 0; b < segments; ++b) {
            const index_t length = lengths[static_cast<std::size_t>(b)];
            if (length < 0 || length > positions)
                fail("lengths: expected 0 to ", positions, ", got ", length, " for segment ", b);
            for (index_t j = 0; j < length; ++j) real.push_back(b * positions + j);
        }
        const bool all = static_cast<std::int64_t>(real.size()) == segments * positions;
        const at::Tensor rows = all ? at::Tensor() : at::tensor(real, at::kLong).to(batch.targets.device());
        const auto flat = [&](const char* what, const at::Tensor& t) {
            if (t.dim() != 3 || t.size(0) != segments || t.size(1) != positions)
                fail(what, ": expected a tensor [", segments, ", ", positions, ", width], got ", describe(t));
            const at::Tensor matrix = t.reshape({segments * positions, t.size(2)});
            return all ? matrix : matrix.index_select(0, rows);
        };
        in.targets = batch.targets.reshape(-1);
        if (!all) in.targets = in.targets.index_select(0, rows);
        if (batch.logits.defined()) {
            in.logits = flat("logits", batch.logits);
        } else {
            in.features = flat("features", batch.features);
            in.output = output;
        }
        if (options.cross_entropy) return;
        in.keys = flat("keys", batch.keys);
        in.scoring.scale = 1 / (std::sqrt(static_cast<double>(in.keys.size(1))) * options.temperature);
        if (!ranks.keys.empty()) {
            const std::size_t world = ranks.keys.size();
            if (ranks.rank >= world || ranks.targets.size() != world)
                fail("ranks: expected keys and targets of each of ", world, " ranks, own rank below it, got ",
                     ranks.targets.size(), " targets and rank ", ranks.rank);
            in.others_learn = ranks.learned;
            for (std::size_t r = 0; r < world; ++r) {
                if (r == ranks.rank) continue;
                (r < ranks.rank ? in.keys_before : in.keys_after).push_back(ranks.keys[r]);
                (r < ranks.rank ? in.labels_before : in.labels_after).push_back(ranks.targets[r]);
            }
        }
        for (const at::Tensor& k : in.keys_before) first += k.size(0);
        entries = first + in.rows();
        for (const at::Tensor& k : in.keys_after) entries += k.size(0);
    }
};

inline TrimeLoss trime_result(TrimeRows& rows, const TrimeOptions& options) {
    TrimeLoss out;
    out.tokens = rows.in.rows();
    if (options.bands_skip_pad_id) rows.in.parity.free_in_band = options.pad;
    if (options.pads_are_tokens) {
        rows.in.parity.free_target = options.pad;
        out.tokens = rows.in.targets.ne(options.pad).sum().item<std::int64_t>();
    }
    out.inputs = rows.in;
    if (!options.needs_plain() && !rows.in.logits.defined() && rows.in.scoring.metric == Metric::inner_product) {
        const FusedLoss fused = fused_joint_loss(rows.in, options.tiles);
        out.loss = fused.loss, out.token_loss = fused.token_loss;
        return out;
    }
    out.terms = joint_terms(rows.in);
    out.token_loss = out.terms.token_loss;
    out.loss = out.token_loss.sum();
    return out;
}

} // namespace detail

/// TrimeLM: a token sees what went before it in its own segment.
inline TrimeLoss trime_loss(const TrimeBatch& batch, const OutputLayer& output, const TrimeOptions& options = {}) {
    detail::TrimeRows rows(batch, output, options, {});
    if (rows.in.keys.defined()) rows.in.visible = Visibility::same_segment(rows.lengths, rows.entries);
    return detail::trime_result(rows, options);
}

/// TrimeLM_long on consecutive segments: a token sees all that went before it in the batch, earlier segments included.
inline TrimeLoss trime_long_loss_same_device(const TrimeBatch& batch, const OutputLayer& output,
                                             const TrimeOptions& options = {}) {
    detail::TrimeRows rows(batch, output, options, {});
    if (rows.in.keys.defined()) rows.in.visible = Visibility::earlier(rows.in.rows(), rows.entries);
    return detail::trime_result(rows, options);
}

/// The same over groups of `group` ranks, which hold consecutive segments in rank order. Ranks may hold any number of
/// tokens, none too.
inline TrimeLoss trime_long_loss(const TrimeBatch& batch, const OutputLayer& output, const TrimeOptions& options,
                                 const RankEntries& ranks, std::size_t group) {
    if (group < 1) fail("trime_long_loss: expected groups of at least 1 rank, got 0");
    detail::TrimeRows rows(batch, output, options, ranks);
    if (rows.in.keys.defined()) {
        index_t begin = 0;
        for (std::size_t r = 0; r < ranks.rank / group * group; ++r) begin += ranks.keys[r].size(0);
        rows.in.visible = Visibility::earlier(rows.in.rows(), rows.entries, rows.first, begin);
    }
    return detail::trime_result(rows, options);
}

/// TrimeLM_ext: a token sees all other segments of all ranks, and what went before it in its own unless `cross_only`.
inline TrimeLoss trime_ext_loss(const TrimeBatch& batch, const OutputLayer& output, const TrimeOptions& options,
                                bool cross_only, const RankEntries& ranks = {}) {
    detail::TrimeRows rows(batch, output, options, ranks);
    if (rows.in.keys.defined())
        rows.in.visible = Visibility::other_segments(rows.lengths, rows.entries, rows.first, !cross_only);
    return detail::trime_result(rows, options);
}

/// Draws for each batch of training whether it sees other segments only (`--cross-sent-ratio`).
class CrossSentenceDraw {
  public:
    CrossSentenceDraw(double ratio, std::uint64_t seed) : ratio_(ratio), generator_(seed) {
        if (!(ratio >= 0 && ratio <= 1)) fail("cross-sentence ratio: expected 0 to 1, got ", ratio);
    }
    bool operator()() { return static_cast<double>(generator_() >> 11) * 0x1p-53 < ratio_; }

  private:
    double ratio_;
    std::mt19937_64 generator_;
};

/// How TrimeMT scores: `top_k` best tokens of the other sentences (0: all).
struct TrimeMtOptions {
    std::int64_t top_k = 0;
    Metric metric = Metric::inner_product;
};

/// TrimeMT: a target token sees the tokens of all other target sentences, or the best of them. The batch may carry
/// logits or features.
inline TrimeLoss trime_mt_loss(const TrimeBatch& batch, const OutputLayer& output, const TrimeOptions& options,
                               const TrimeMtOptions& mt, const RankEntries& ranks = {}) {
    detail::TrimeRows rows(batch, output, options, ranks);
    rows.in.scoring.top_k = mt.top_k;
    rows.in.scoring.metric = mt.metric;
    if (rows.in.keys.defined())
        rows.in.visible = Visibility::other_segments(rows.lengths, rows.entries, rows.first, false);
    return detail::trime_result(rows, options);
}

/// How TrimeMT decodes.
struct TrimeMtDecoding {
    double temperature = 1; // theta of the retrieved scores: the published value * sqrt(D)
    std::optional<double>
        lambda{};                // a fixed share of the retrieved tokens; unset: their own weight (see trime_mt_step)
    bool add_unweighted = false; // the reference's defect: without a fixed lambda the sum is 2 - lambda
};
struct TrimeMtStep {
    at::Tensor lambda;        // [rows, 1]
    at::Tensor retrieved;     // [rows, V], the distribution of the retrieved tokens alone
    at::Tensor probabilities; // [rows, V]
};
/// logits [rows, V], scores and tokens [rows, k] of what was retrieved -> the next token's distribution
///     (1 - lambda) p_vocabulary + lambda p_retrieved,   lambda = Z_r / (Z_v + Z_r),
/// Z the sums of exp(logit) and exp(score / temperature): one softmax over both. A score of -inf is no entry.
inline TrimeMtStep trime_mt_step(const at::Tensor& logits, const at::Tensor& scores, const at::Tensor& tokens,
                                 const TrimeMtDecoding& decoding) {
    if (logits.dim() != 2 || scores.dim() != 2 || scores.size(0) != logits.size(0) || tokens.sizes() != scores.sizes())
        fail("logits, scores and tokens: expected [rows, V] and twice [rows, k], got ", describe(logits), ", ",
             describe(scores), " and ", describe(tokens));
    const at::Tensor scaled = scores / decoding.temperature;
    const at::Tensor all = at::logsumexp(scaled, 1, true);
    TrimeMtStep out;
    out.lambda =
        decoding.lambda ? at::full_like(all, *decoding.lambda) : at::sigmoid(all - at::logsumexp(logits, 1, true));
    const at::Tensor share = at::exp(scaled - all).masked_fill(at::isinf(all), 0);
    out.retrieved = at::zeros_like(logits).scatter_add(1, tokens, share);
    const bool weighted = decoding.lambda || !decoding.add_unweighted;
    out.probabilities =
        (1 - out.lambda) * at::softmax(logits, 1) + (weighted ? out.lambda * out.retrieved : out.retrieved);
    return out;
}

} // namespace mnemo::nn
