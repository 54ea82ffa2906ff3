// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/executor.hpp>
#include <mnemo/io/manifest.hpp>
#include <mnemo/nn/fairseq.hpp>
#include <mnemo/papers/knn_lm.hpp>
#include <mnemo/text/hash.hpp>

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

namespace mnemo::nn {

/// Everything in a model's options that says what is computed with its weights.
inline std::string options_text(const TransformerLmImpl& model) {
    return fairseq_config(TransformerLmOptions(model.options()).dropout(0)).dump();
}
/// Of the weights and of the options that say what is computed with them.
template <class ModelImpl> std::string weights_hash(const ModelImpl& model) {
    Hash64 hash;
    hash.add(options_text(model));
    for (const auto& [name, tensor] : model.weights()) {
        const at::Tensor t = tensor.detach().to(at::kCPU, at::kFloat).contiguous();
        hash.add(name).add(std::as_bytes(std::span(t.data_ptr<float>(), static_cast<std::size_t>(t.numel()))));
    }
    return hash.text();
}

/// A TransformerLm or a causal HuggingFaceLm as the drivers of papers/knn_lm.hpp want it: keys of a batch of windows,
/// log-probabilities of its targets, and decoding with a cache. What it returns lives until its next call. One host
/// serves one thread; several hosts may share a model. A batch is computed in parts of `rows_at_a_time`, by the
/// executor's workers, with the same result for any number of them; set torch::set_num_threads(1) beside Threads{n}.
template <Executor X = Serial, class ModelT = TransformerLm> class LmHost {
  public:
    explicit LmHost(ModelT model, std::string_view tap = "ffn_in", X executor = {}, index_t rows_at_a_time = 8)
        : model_(std::move(model)), tap_(model_->tap(tap)), device_(model_->parameters()[0].device()),
          executor_(std::move(executor)), rows_at_a_time_(rows_at_a_time), max_context_(model_->max_positions()) {
        if constexpr (requires { model_->causal(); })
            if (!model_->causal())
                fail(model_->description(), ": reads its text from both sides, so it is no language model");
        if (rows_at_a_time < 1) fail("rows_at_a_time: expected at least 1, got ", rows_at_a_time);
        model_->eval();
    }

    index_t key_dim() const { return model_->width(tap_); }
    index_t vocab_size() const { return model_->vocab_size(); }
    const ModelT& model() const { return model_; }
    /// What a datastore of this host records, and what it is compared with.
    Fingerprint fingerprint(std::string tokenizer_hash = {}) const {
        return {.model = model_->description(),
                .model_hash = weights_hash(*model_),
                .tokenizer_hash = std::move(tokenizer_hash),
                .key_tap = name(tap_),
                .key_dim = key_dim(),
                .vocab_size = vocab_size(),
                .more = {}};
    }

    /// Keys of the scored tokens [scored, key_dim], row after row. The output matrix is not touched.
    Rows keys(const WindowBatch& batch) {
        compute(batch, false);
        return keys_;
    }
    /// The same with the log-probabilities of the targets.
    ScoredTokens score(const WindowBatch& batch) {
        compute(batch, true);
        return {keys_, log_p_};
    }

    /// Forgets the text that was decoded.
    void reset() { history_.clear(), cache_.reset(); }
    /// The state after one more token, and the distribution of the next. When the model's positions are used up
    /// (max_target_positions), the newer half of them is read again and decoding goes on.
    DecodedToken step(std::int32_t token) {
        const c10::InferenceMode inference;
        if (token < 0 || token >= vocab_size())
            fail("token: expected an id from 0 to ", vocab_size() - 1, ", got ", token);
        history_.push_back(token);
        if (cache_.length() >= max_context_) {
            history_.erase(history_.begin(), history_.end() - std::max<index_t>(max_context_ / 2, 1));
            cache_.reset();
        }
        const auto unread = static_cast<index_t>(history_.size()) - cache_.length();
        const at::Tensor tokens = at::empty({1, unread}, at::kLong);
        std::copy(history_.end() - unread, history_.end(), tokens.data_ptr<std::int64_t>());
        const auto states = model_->states(on_device(tokens), {tap_, Tap{Tap::prehead, 0}}, &cache_);
        key_ = plain(states[0].select(1, unread - 1));
        log_probs_ = plain(model_->log_prob_all(states[1].select(1, unread - 1)));
        return {as_rows(key_), as_mut_rows(log_probs_)};
    }

  private:
    at::Tensor on_device(const at::Tensor& t) const { return t.to(device_); }
    static at::Tensor plain(const at::Tensor& t) { return t.to(at::kCPU, at::kFloat).contiguous(); }

    // Keys, and log-probabilities of targets if asked, of the scored tokens of a batch.
    void compute(const WindowBatch& batch, bool with_targets) {
        std::vector<index_t> first(static_cast<std::size_t>(batch.rows) + 1); // of each row's scored tokens
        for (std::size_t i = 0; i < first.size() - 1; ++i) {
            if (batch.start[i] < 0 || batch.length[i] < batch.start[i] || batch.length[i] > batch.width)
                fail("window batch, row ", i, ": expected 0 <= start <= length <= ", batch.width, ", got ",
                     batch.start[i], " and ", batch.length[i]);
            first[i + 1] = first[i] + batch.length[i] - batch.start[i];
        }
        keys_.rows = first.back(), keys_.cols = key_dim();
        keys_.data.resize(static_cast<std::size_t>(keys_.rows * keys_.cols));
        log_p_.resize(with_targets ? static_cast<std::size_t>(first.back()) : 0);
        const index_t parts = (batch.rows + rows_at_a_time_ - 1) / rows_at_a_time_;
        executor_.run(parts, [&](index_t part, index_t) {
            const c10::InferenceMode inference;
            at::init_num_threads(); // a new thread does not know what the program has set
            const index_t begin = part * rows_at_a_time_, end = std::min(begin + rows_at_a_time_, batch.rows);
            const auto at_begin = static_cast<std::size_t>(begin), at_end = static_cast<std::size_t>(end);
            // Columns behind the longest row of the part are padding.
            const index_t width = *std::max_element(batch.length.begin() + begin, batch.length.begin() + end),
                          out = first[at_begin];
            if (first[at_end] == out) return;
            const at::Tensor tokens = at::empty({end - begin, width}, at::kLong),
                             places = at::empty({first[at_end] - out}, at::kLong), targets = at::empty_like(places);
            auto *token = tokens.data_ptr<std::int64_t>(), *place = places.data_ptr<std::int64_t>(),
                 *target = targets.data_ptr<std::int64_t>();
            for (index_t row = begin; row < end; ++row) {
                token = std::copy_n(batch.input(row).begin(), width, token);
                index_t column = batch.start[static_cast<std::size_t>(row)];
                for (const std::int32_t id : batch.scored_targets(row)) {
                    *target++ = id;
                    *place++ = (row - begin) * width + column++;
                }
            }
            std::vector<Tap> taps{tap_};
            if (with_targets) taps.push_back({Tap::prehead, 0});
            const auto states = model_->states(on_device(tokens), taps);
            const at::Tensor rows = on_device(places);
            const auto scored = [&](const at::Tensor& s) { return s.flatten(0, 1).index_select(0, rows); };
            const at::Tensor k = plain(scored(states[0]));
            std::copy_n(k.data_ptr<float>(), k.numel(), keys_.data.data() + out * keys_.cols);
            if (!with_targets) return;
            const at::Tensor p = plain(model_->log_prob_target(scored(states[1]), on_device(targets)));
            std::copy_n(p.data_ptr<float>(), p.numel(), log_p_.data() + out);
        });
    }

    ModelT model_;
    Tap tap_;
    at::Device device_;
    [[no_unique_address]] X executor_;
    index_t rows_at_a_time_, max_context_;
    Matrix keys_; // [scored, key_dim]
    std::vector<float> log_p_;
    std::vector<std::int64_t> history_; // what the cache has read, and the newest token
    KeyValueCache cache_;
    at::Tensor key_, log_probs_;
};
static_assert(KeyHost<LmHost<>> && ScoringHost<LmHost<>> && DecodingHost<LmHost<>>);

} // namespace mnemo::nn
