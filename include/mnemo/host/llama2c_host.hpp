// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/host/llama2c_decoder.hpp>
#include <mnemo/io/manifest.hpp>
#include <mnemo/papers/knn_lm.hpp>

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mnemo {

/// Which state of a llama2.c model is the key of a memory.
enum class Llama2cTap { ffn_in, prehead };
constexpr std::string_view name(Llama2cTap tap) { return tap == Llama2cTap::ffn_in ? "ffn_in" : "prehead"; }

/// A llama2.c model as the drivers of papers/knn_lm.hpp want it: keys of a batch of windows, log-probabilities of its
/// targets, and decoding. What it returns lives until its next call. One host serves one thread; several may share a
/// model.
class Llama2cHost {
  public:
    explicit Llama2cHost(std::shared_ptr<const Llama2cModel> model, Llama2cTap tap = Llama2cTap::ffn_in)
        : model_(std::move(model)), tap_(tap), decoder_(model_->weights()) {}

    index_t key_dim() const { return model_->config().dim; }
    index_t vocab_size() const { return model_->config().vocab_size; }
    /// What a datastore of this host records, and what it is compared with.
    Fingerprint fingerprint(std::string tokenizer_hash = {}) const {
        return {.model = text("llama2.c, ", model_->config().layers, " layers of ", model_->config().dim),
                .model_hash = model_->weights().hash(),
                .tokenizer_hash = std::move(tokenizer_hash),
                .key_tap = std::string(name(tap_)),
                .key_dim = key_dim(),
                .vocab_size = vocab_size(),
                .more = {}};
    }

    /// Keys of the scored tokens [scored, key_dim], row after row, each row from position 0. The output matrix is not
    /// touched. Throws Error for rows of more tokens than the model has positions.
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
    void reset() { history_.clear(), decoder_.reset(); }
    /// The state after one more token, and the log-probabilities of the next. When the positions are used up, the newer
    /// half of the text is read again and decoding goes on.
    DecodedToken step(std::int32_t token) {
        if (decoder_.position() >= model_->config().seq_len) {
            history_.erase(history_.begin(), history_.end() - model_->config().seq_len / 2);
            decoder_.reset();
            for (const std::int32_t earlier : history_) decoder_.forward(earlier, false);
        }
        decoder_.forward(token);
        history_.push_back(token);
        log_softmax(decoder_.logits());
        return {Rows(key().data(), 1, key_dim()), MutRows(decoder_.logits().data(), 1, vocab_size())};
    }

  private:
    std::span<const float> key() const { return tap_ == Llama2cTap::ffn_in ? decoder_.ffn_in() : decoder_.prehead(); }

    void compute(const WindowBatch& batch, bool with_log_p) {
        reset();
        const index_t scored = batch.scored();
        if (keys_.rows != scored || keys_.cols != key_dim()) keys_ = Matrix(scored, key_dim());
        log_p_.clear();
        index_t at = 0;
        for (index_t row = 0; row < batch.rows; ++row) {
            const auto i = static_cast<std::size_t>(row);
            decoder_.reset();
            for (index_t column = 0; column < batch.length[i]; ++column) {
                const bool counts = column >= batch.start[i];
                decoder_.forward(batch.input(row)[static_cast<std::size_t>(column)], counts && with_log_p);
                if (!counts) continue;
                std::copy(key().begin(), key().end(), keys_[at++].begin());
                if (with_log_p) add_log_p(batch.target(row)[static_cast<std::size_t>(column)]);
            }
        }
        decoder_.reset();
    }
    void add_log_p(std::int32_t target) {
        if (target < 0 || target >= vocab_size()) fail("target: expected 0 to ", vocab_size() - 1, ", got ", target);
        const double logit = decoder_.logits()[static_cast<std::size_t>(target)];
        log_p_.push_back(static_cast<float>(logit - log_sum_exp(decoder_.logits())));
    }

    std::shared_ptr<const Llama2cModel> model_;
    Llama2cTap tap_;
    Llama2cDecoder decoder_;
    std::vector<std::int32_t> history_; // tokens that were decoded, the newest seq_len at most
    Matrix keys_;                       // [scored, key_dim]
    std::vector<float> log_p_;          // [scored]
};
static_assert(KeyHost<Llama2cHost> && ScoringHost<Llama2cHost> && DecodingHost<Llama2cHost>);

} // namespace mnemo
