// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/recall.hpp>
#include <mnemo/nn/fused_joint.hpp>
#include <mnemo/store/ring.hpp>

#include <optional>

namespace mnemo::nn {

/// How a text is scored with memories (the reference's flags behind each).
struct TrimeScoring {
    double temperature = 1;               // of all memory scores, not of the vocabulary (--softmax-temp)
    bool local = true;                    // positions of the window before the scored one (--use-local)
    index_t mem_size = 0;                 // tokens scored before, beside the window; 0: none (--use-long, --mem-size)
    bool external = true;                 // recalled entries take part in the joint softmax (--use-external)
    double lambda = 0;                    // share of the recalled entries' own distribution (--use-interp, --lmbda)
    double interpolation_temperature = 1; // of it (--interp-temp)
    // Tokens of the window's context that the long-term memory holds too count twice in the reference, with an old and
    // a fresh key, and its temperatures were tuned so.
    bool count_context_twice = true;
    VocabularyParity parity{}; // the reference's numbers need free_in_band = its id of padding
    bool half_mix = false;     // both terms of the mix are rounded to half, as under --fp16
};

/// One window of a text: positions 0 .. W - 1, of which [start, start + n) are scored. What lies before is context.
struct TrimeWindow {
    at::Tensor features; // [n, D] of the scored positions, or [W, D] of all
    at::Tensor keys;     // [W, D_k]
    at::Tensor inputs;   // Long [W]: labels of the context are the next inputs
    at::Tensor targets;  // Long [n] of the scored positions
    index_t start = 0;
    std::optional<index_t> id{}; // windows that follow one another; after a gap the long-term memory starts anew
};

/// What was computed for the n scored positions.
struct TrimeScores {
    at::Tensor log_p;     // [n], the result
    Sums vocabulary;      // logarithms of sums, before any temperature
    Sums memory;          // of all memories in the joint softmax together
    at::Tensor joint;     // [n], log p of the joint softmax alone
    at::Tensor retrieved; // [n], log p of recalled entries alone; undefined without
    index_t entries = 0;  // of the long-term memory and the window
};

/// Scores windows of a text one after another with local, long-term and external memory in one softmax, then mixes in
/// the external one (Zhong et al. 2022, section 4). Only the scored rows are computed, and searched for once.
class TrimeScorer {
  public:
    TrimeScorer(OutputLayer output, TrimeScoring options, index_t key_dim)
        : output_(std::move(output)), options_(options), memory_(key_dim, options.mem_size) {
        if (!(options.temperature > 0) || !(options.interpolation_temperature > 0))
            fail("TrimeScorer: expected temperatures above 0, got ", options.temperature, " and ",
                 options.interpolation_temperature);
        if (!(options.lambda >= 0 && options.lambda <= 1))
            fail("TrimeScorer: lambda: expected 0 to 1, got ", options.lambda);
        if (options.mem_size > 0 && !options.local) fail("TrimeScorer: expected local memory with the long-term one");
    }

    const RingStore& memory() const { return memory_; }
    void clear() { memory_.clear(), last_.reset(); }

    /// Without external memory. Then the window's scored tokens are remembered.
    TrimeScores score(const TrimeWindow& window) {
        if (options_.lambda > 0) fail("TrimeScorer: lambda: expected a retriever with it");
        return mixed(window, [](const at::Tensor&, TrimeScores&) {});
    }
    /// With what `retriever` finds in `store` for the keys of the scored positions.
    template <TokenValued StoreT, RetrieverFor<StoreT, Rows> RetrieverT>
    TrimeScores score(const TrimeWindow& window, const RetrieverT& retriever, const StoreT& store) {
        return mixed(window, [&](const at::Tensor& queries, TrimeScores& scores) {
            const at::Tensor rows = queries.to(at::kCPU, at::kFloat).contiguous();
            add_recalled(retriever.retrieve(store, as_rows(rows)), store, window.targets, queries, scores);
        });
    }

  private:
    TrimeScores mixed(const TrimeWindow& w, auto&& external) {
        const at::NoGradGuard no_grad;
        if (!w.targets.defined() || w.targets.dim() != 1 || !w.keys.defined() || w.keys.dim() != 2 ||
            w.keys.size(1) != memory_.key_dim())
            fail("window: expected targets Long [scored] and keys [positions, ", memory_.key_dim(), "], got ",
                 describe(w.targets), " and ", describe(w.keys));
        const std::int64_t n = w.targets.size(0), positions = w.keys.size(0);
        if (w.start < 0 || w.start + n > positions)
            fail("window: expected scored positions within ", positions, ", got ", n, " from ", w.start);
        if (!w.inputs.defined() || w.inputs.dim() != 1 || w.inputs.size(0) != positions)
            fail("window: inputs: expected Long [", positions, "], got ", describe(w.inputs));
        if (w.id && last_ && *w.id != *last_ + 1) memory_.clear();
        last_ = w.id;

        JointInputs in;
        in.output = output_;
        in.features = w.features.size(0) == n ? w.features : w.features.narrow(0, w.start, n);
        in.targets = w.targets;
        in.parity = options_.parity;
        const at::Tensor scored = w.keys.narrow(0, w.start, n);
        if (options_.local) {
            in.keys = scored;
            in.scoring.scale = scale();
            // Oldest first; the ring is in at most two pieces.
            index_t kept = memory_.size();
            if (!options_.count_context_twice) kept = std::max<index_t>(kept - w.start, 0);
            for (index_t age = 0; age < kept;) {
                const index_t slot = memory_.slot(age), count = std::min(kept - age, memory_.size() - slot);
                add_remembered(in, slot, count);
                age += count;
            }
            if (w.start > 0) {
                in.keys_before.push_back(w.keys.narrow(0, 0, w.start));
                in.labels_before.push_back(w.inputs.narrow(0, 1, w.start));
            }
            in.visible = Visibility::earlier(n, kept + w.start + n, kept + w.start);
        }
        const FusedSums sums = fused_joint_sums(in);
        TrimeScores out;
        out.vocabulary = sums.vocabulary, out.memory = sums.memory;
        out.joint = out.log_p = -sums.token_loss;
        out.entries = options_.local ? memory_.size() + positions : 0;
        external(scored, out);
        if (options_.mem_size > 0) {
            const at::Tensor rows = scored.to(at::kCPU, at::kFloat).contiguous();
            const at::Tensor values = w.targets.to(at::kCPU, at::kInt).contiguous();
            memory_.append(as_rows(rows), {values.data_ptr<std::int32_t>(), static_cast<std::size_t>(n)});
        }
        return out;
    }
    double scale() const { return 1 / (std::sqrt(static_cast<double>(memory_.key_dim())) * options_.temperature); }

    // The ring's keys are seen in place on the cpu.
    void add_remembered(JointInputs& in, index_t slot, index_t count) const {
        const Rows rows = memory_.keys().slice(slot, count);
        const at::Tensor keys = at::from_blob(const_cast<float*>(rows.data), {count, rows.cols}, at::kFloat);
        const auto values = memory_.values().subspan(static_cast<std::size_t>(slot), static_cast<std::size_t>(count));
        const at::Tensor labels =
            at::from_blob(const_cast<std::int32_t*>(values.data()), {count}, at::kInt).to(at::kLong);
        in.keys_before.push_back(keys.to(in.keys.device()));
        in.labels_before.push_back(labels.to(in.keys.device()));
    }

    void add_recalled(const AssociativeRecall auto& recall, const TokenValued auto& store, const at::Tensor& targets,
                      const at::Tensor& queries, TrimeScores& scores) const {
        const at::Tensor wanted = targets.to(at::kCPU, at::kLong).contiguous();
        const std::int64_t n = wanted.size(0);
        expect_equal("retriever: rows", static_cast<index_t>(recall.rows()), index_t{n});
        // Two softmaxes over the same scores: with all memories, and alone.
        const at::Tensor sums = at::empty({4, n}, at::kFloat);
        std::vector<float> scaled;
        for (std::int64_t i = 0; i < n; ++i) {
            TargetSums joint, alone;
            recall.visit(i, [&](const Ids auto& ids, std::span<const float> found) {
                const auto add = [&](TargetSums& to, double by) {
                    scaled.assign(found.begin(), found.end());
                    for (float& s : scaled) s *= static_cast<float>(by);
                    to.all.add(scaled);
                    for (std::size_t j = 0; j < scaled.size(); ++j)
                        if (static_cast<std::int64_t>(store.value(static_cast<index_t>(ids[j]))) ==
                            wanted.data_ptr<std::int64_t>()[i])
                            to.target.add(scaled[j]);
                };
                if (options_.external) add(joint, scale());
                if (options_.lambda > 0) add(alone, 1 / options_.interpolation_temperature);
            });
            const double values[] = {joint.all.value(), joint.target.value(), alone.log_p(),
                                     alone.all.max == kLogZero ? 0.0 : 1.0};
            for (std::int64_t j = 0; j < 4; ++j) sums.data_ptr<float>()[j * n + i] = static_cast<float>(values[j]);
        }
        const at::Tensor found = sums.to(queries.device());
        if (options_.external) {
            scores.memory = scores.memory + Sums{found[0], found[1]};
            const Sums all = scores.vocabulary + scores.memory;
            scores.joint = scores.log_p = all.target - all.all;
        }
        if (!(options_.lambda > 0)) return;
        scores.retrieved = found[2];
        const auto rounded = [&](const at::Tensor& t) {
            return options_.half_mix ? t.to(at::kHalf).to(t.scalar_type()) : t;
        };
        const at::Tensor mixed = at::logaddexp(rounded(scores.joint) + std::log1p(-options_.lambda),
                                               rounded(scores.retrieved) + std::log(options_.lambda));
        scores.log_p = at::where(found[3].gt(0), mixed, scores.joint); // where nothing was found
    }

    OutputLayer output_;
    TrimeScoring options_;
    RingStore memory_;
    std::optional<index_t> last_;
};

} // namespace mnemo::nn
