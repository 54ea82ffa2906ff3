// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/host/llama2c_model.hpp>
#include <mnemo/kernels/log_sum_exp.hpp>
#include <mnemo/kernels/score.hpp>

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

namespace mnemo {

/// One text under a llama2.c model, token by token, with its keys and values kept: what run.c's forward() does. The
/// model must outlive it. Allocates when it is made and never again.
class Llama2cDecoder {
  public:
    explicit Llama2cDecoder(const Llama2cWeights& weights) : w_(&weights) {
        const Llama2cConfig& c = w_->config;
        const auto floats = [](index_t n) { return std::vector<float>(static_cast<std::size_t>(n)); };
        x_ = floats(c.dim), u_ = floats(c.dim), out_ = floats(c.dim), q_ = floats(c.dim), ffn_in_ = floats(c.dim);
        gate_ = floats(c.hidden_dim), up_ = floats(c.hidden_dim), logits_ = floats(c.vocab_size);
        scores_ = floats(c.seq_len), rotation_ = floats(c.head_size());
        keys_ = floats(c.layers * c.seq_len * c.kv_dim()), values_ = floats(c.layers * c.seq_len * c.kv_dim());
    }

    const Llama2cConfig& config() const { return w_->config; }
    /// How many tokens were read.
    index_t position() const { return position_; }
    /// Forgets the text.
    void reset() { position_ = 0; }

    /// Reads one more token and computes its states and, unless told otherwise, the logits of the next. Throws Error
    /// for a token that is none and when all positions are used.
    void forward(std::int32_t token, bool with_logits = true) {
        const Llama2cConfig& c = w_->config;
        if (token < 0 || token >= c.vocab_size) fail("token: expected 0 to ", c.vocab_size - 1, ", got ", token);
        if (position_ >= c.seq_len) fail("the model has ", c.seq_len, " positions, and all are used: reset() it");
        const auto from = w_->embedding.begin() + static_cast<std::ptrdiff_t>(token * c.dim);
        std::copy_n(from, c.dim, x_.begin());
        for (index_t i = 0; i < c.head_size(); i += 2) {
            const float frequency =
                1.0f / std::pow(10000.0f, static_cast<float>(i) / static_cast<float>(c.head_size()));
            const float angle = static_cast<float>(position_) * frequency;
            rotation_[static_cast<std::size_t>(i)] = std::cos(angle);
            rotation_[static_cast<std::size_t>(i) + 1] = std::sin(angle);
        }
        for (index_t layer = 0; layer < c.layers; ++layer) {
            attend(layer);
            feed_forward(layer);
        }
        ++position_;
        norm(x_, w_->final_norm, x_);
        if (with_logits) multiply(w_->classifier, x_, logits_);
    }

    /// What multiplies the output matrix: the state after the final norm [dim]. Valid until the next forward().
    std::span<const float> prehead() const { return x_; }
    /// The input of the last feed-forward block, after its norm [dim].
    std::span<const float> ffn_in() const { return ffn_in_; }
    /// Of the next token [vocab]; may be edited in place.
    std::span<float> logits() { return logits_; }

  private:
    // Of a block's `layer`-th of equal parts.
    std::span<const float> part(std::span<const float> block, index_t layer) const {
        const std::size_t size = block.size() / static_cast<std::size_t>(w_->config.layers);
        return block.subspan(static_cast<std::size_t>(layer) * size, size);
    }
    // out [rows] = matrix [rows, in] * in
    static void multiply(std::span<const float> matrix, std::span<const float> in, std::span<float> out) {
        const auto rows = static_cast<index_t>(out.size()), cols = static_cast<index_t>(in.size());
        score_rows<InnerProduct>(Rows(in.data(), 1, cols), Rows(matrix.data(), rows, cols), {out.data(), 1, rows});
    }
    // out = weight * x / sqrt(mean(x^2) + 1e-5)
    static void norm(std::span<const float> x, std::span<const float> weight, std::span<float> out) {
        const float mean = score<InnerProduct>(x, x) / static_cast<float>(x.size());
        const float scale = 1.0f / std::sqrt(mean + 1e-5f);
        for (std::size_t i = 0; i < x.size(); ++i) out[i] = weight[i] * (scale * x[i]);
    }
    static void add(std::span<const float> x, std::span<float> into) {
        for (std::size_t i = 0; i < x.size(); ++i) into[i] += x[i];
    }
    // Neighbouring pairs of each head, by the position's angles.
    void rotate(std::span<float> heads) const {
        const std::size_t h = rotation_.size();
        for (std::size_t i = 0; i < heads.size(); i += 2) {
            const float cosine = rotation_[i % h], sine = rotation_[i % h + 1];
            const float a = heads[i], b = heads[i + 1];
            heads[i] = a * cosine - b * sine;
            heads[i + 1] = a * sine + b * cosine;
        }
    }

    void attend(index_t layer) {
        const Llama2cConfig& c = w_->config;
        const index_t h = c.head_size(), kv = c.kv_dim(), first = layer * c.seq_len * kv;
        const std::span<float> key(keys_.data() + first + position_ * kv, static_cast<std::size_t>(kv));
        const std::span<float> value(values_.data() + first + position_ * kv, static_cast<std::size_t>(kv));
        norm(x_, part(w_->attention_norm, layer), u_);
        multiply(part(w_->wq, layer), u_, q_);
        multiply(part(w_->wk, layer), u_, key);
        multiply(part(w_->wv, layer), u_, value);
        rotate(q_);
        rotate(key);
        std::fill(out_.begin(), out_.end(), 0.0f);
        const std::span<float> scores(scores_.data(), static_cast<std::size_t>(position_ + 1));
        for (index_t head = 0; head < c.heads; ++head) {
            const index_t shared = first + head / (c.heads / c.kv_heads) * h;
            const Rows seen(keys_.data() + shared, position_ + 1, h, kv); // [positions, h]
            score_rows<InnerProduct>(Rows(q_.data() + head * h, 1, h), seen, {scores.data(), 1, position_ + 1});
            const float high = max_value(scores), scale = 1.0f / std::sqrt(static_cast<float>(h));
            const auto inverse = static_cast<float>(1.0 / exp_sum(scores, high, scale, scores));
            float* const out = out_.data() + head * h;
            for (index_t t = 0; t <= position_; ++t) {
                const float weight = scores[static_cast<std::size_t>(t)] * inverse;
                const float* const v = values_.data() + shared + t * kv;
                for (index_t j = 0; j < h; ++j) out[j] += weight * v[j];
            }
        }
        multiply(part(w_->wo, layer), out_, u_);
        add(u_, x_);
    }

    void feed_forward(index_t layer) {
        norm(x_, part(w_->ffn_norm, layer), u_);
        if (layer + 1 == w_->config.layers) std::copy(u_.begin(), u_.end(), ffn_in_.begin());
        multiply(part(w_->w1, layer), u_, gate_);
        multiply(part(w_->w3, layer), u_, up_);
        for (std::size_t i = 0; i < gate_.size(); ++i) gate_[i] *= up_[i] / (1.0f + std::exp(-gate_[i]));
        multiply(part(w_->w2, layer), gate_, u_);
        add(u_, x_);
    }

    const Llama2cWeights* w_;
    index_t position_ = 0;
    std::vector<float> x_, u_, out_, q_, ffn_in_; // [dim]
    std::vector<float> gate_, up_;                // [hidden]
    std::vector<float> logits_;                   // [vocab]
    std::vector<float> scores_;                   // [seq_len]
    std::vector<float> rotation_;                 // [head_size], cosine and sine in turn
    std::vector<float> keys_, values_;            // [layers, seq_len, kv_dim]
};

} // namespace mnemo
