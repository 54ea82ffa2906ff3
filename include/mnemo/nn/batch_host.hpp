// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/nn/frozen_head.hpp>
#include <mnemo/nn/transformer_lm.hpp>
#include <mnemo/papers/pema.hpp>

#include <ATen/ops/mm.h>
#include <c10/core/InferenceMode.h>

#include <span>
#include <string>
#include <utility>
#include <vector>

namespace mnemo::nn {

/// The output matrix [vocab, width] of a model that has one.
template <class ModelT> at::Tensor output_matrix(const ModelT& model) {
    if constexpr (requires { model->output_weight(); }) {
        return model->output_weight();
    } else {
        if (model->adaptive_softmax()) fail("a model with adaptive softmax has no output matrix");
        at::Tensor found;
        for (const auto& [name, tensor] : model->weights())
            if (name == "decoder.embed_out" || (name == "decoder.embed_tokens.weight" && !found.defined()))
                found = tensor;
        if (!found.defined()) fail("the model has no plain output matrix");
        return found;
    }
}

/// rows [n, width] times the output matrix [vocab, width], in one pass over it, into out [n, vocab].
inline void multiply_head(const at::Tensor& output, Rows rows, MutRows out) {
    constexpr index_t kFewRows = 8; // a matrix product is no faster below
    const c10::InferenceMode inference;
    if (rows.rows <= kFewRows) return head_logits(rows, as_rows(output), out);
    const at::Tensor in =
        at::from_blob(const_cast<float*>(rows.data), {rows.rows, rows.cols}, {rows.stride, 1}, at::kFloat); // only read
    at::Tensor to = at::from_blob(out.data, {out.rows, out.cols}, {out.stride, 1}, at::kFloat);
    at::mm_out(to, in, output.t());
}

/// Which of a model's norms stands before the output matrix of an exported head.
enum class ExportedNorm {
    before_last_feed_forward, // what agwaBom/PEMA exports: not the norm that makes the model's own logits
    last                      // the decoder's final norm
};

/// The model's output matrix, shared, and one of its norms.
template <class ModelT> FrozenHead exported_head(const ModelT& model, ExportedNorm which) {
    FrozenHead head;
    head.output = output_matrix(model);
    const auto layers = static_cast<std::int64_t>([&] {
        if constexpr (requires { model->options().layers(); })
            return model->options().layers();
        else
            return model->options().layers;
    }());
    const bool last = which == ExportedNorm::last;
    const std::vector<std::string> names = {last ? "decoder.layer_norm"
                                                 : text("decoder.layers.", layers - 1, ".final_layer_norm"),
                                            last ? "final_norm" : text("layers.", layers - 1, ".norm2")};
    for (const auto& [name, tensor] : model->weights())
        for (const std::string& n : names) {
            if (name == n + ".weight") head.norm_weight = tensor.detach(), head.norm_name = n;
            if (name == n + ".bias") head.norm_bias = tensor.detach();
        }
    if (!head.norm_weight.defined())
        fail("exported head: expected a norm called ", names[0], " or ", names[1], ", got none in the model");
    head.check(head.dim());
    return head;
}

/// A model that decodes batches, for the drivers of papers/pema.hpp: a TransformerLm, or any model with the same
/// members (taps, a cache) whose `states` may take what is padding as TokenInfo. Its states are the last layer's output
/// before the final norm. Prompts are padded on the left. What it returns lives until its next call; one host serves
/// one thread, several may share a model.
template <class ModelT = TransformerLm> class BatchHost {
  public:
    explicit BatchHost(ModelT model)
        : model_(std::move(model)), output_(output_matrix(model_).detach().to(at::kCPU, at::kFloat)),
          device_(model_->parameters()[0].device()), tap_(last_tap()) {
        model_->eval();
        const std::int64_t width = model_->width(Tap{Tap::prehead, 0});
        if (output_.size(1) != width)
            fail("batch host: expected an output matrix [vocab, ", width, "], got ", describe(output_));
    }

    index_t key_dim() const { return model_->width(tap_); }
    index_t vocab_size() const { return output_.size(0); }
    const ModelT& model() const { return model_; }

    BatchStates start(const PromptBatch& prompts) {
        texts_.clear(), padding_ = prompts.padding;
        for (index_t row = 0; row < prompts.rows; ++row) {
            const auto first = prompts.ids.begin() + row * prompts.width;
            texts_.emplace_back(first, first + prompts.width);
        }
        return begin_anew();
    }
    BatchStates next(std::span<const std::int32_t> tokens) {
        expect_equal("batch host: tokens", tokens.size(), texts_.size());
        for (std::size_t row = 0; row < tokens.size(); ++row) texts_[row].push_back(tokens[row]);
        if (stale_) return begin_anew();
        std::vector<std::int64_t> ids(tokens.begin(), tokens.end());
        return newest(at::from_blob(ids.data(), {static_cast<std::int64_t>(ids.size()), 1}, at::kLong),
                      static_cast<index_t>(texts_[0].size()) - 1);
    }
    /// Row i goes on as row from[i]; the texts are read again with the next token.
    void reorder(std::span<const index_t> from) {
        std::vector<std::vector<std::int32_t>> texts;
        std::vector<index_t> padding;
        bool same = from.size() == texts_.size();
        for (const index_t row : from) {
            same = same && row == static_cast<index_t>(texts.size());
            texts.push_back(texts_.at(static_cast<std::size_t>(row)));
            padding.push_back(padding_.at(static_cast<std::size_t>(row)));
        }
        texts_ = std::move(texts), padding_ = std::move(padding);
        stale_ = stale_ || !same;
    }
    /// States of all positions, [rows * width, d].
    Rows read(const PromptBatch& texts) {
        const c10::InferenceMode inference;
        const at::Tensor ids = at::empty({texts.rows, texts.width}, at::kLong);
        std::copy(texts.ids.begin(), texts.ids.end(), ids.data_ptr<std::int64_t>());
        states_ = plain(states(ids, texts.padding, 0, {tap_}, nullptr)[0].flatten(0, 1));
        return as_rows(states_);
    }
    void logits(Rows rows, MutRows out) const { multiply_head(output_, rows, out); }

  private:
    Tap last_tap() const {
        if constexpr (requires { model_->options().layers(); })
            return {Tap::hidden, model_->options().layers()};
        else
            return {Tap::hidden, model_->options().layers};
    }
    static at::Tensor plain(const at::Tensor& t) { return t.to(at::kCPU, at::kFloat).contiguous(); }
    // Of columns `first` on: a text's own positions, however far its row is padded.
    static at::Tensor positions(const std::vector<index_t>& padding, index_t first, index_t columns) {
        const at::Tensor out = at::empty({static_cast<std::int64_t>(padding.size()), columns}, at::kLong);
        auto* to = out.data_ptr<std::int64_t>();
        for (const index_t row : padding)
            for (index_t column = first; column < first + columns; ++column) *to++ = std::max<index_t>(column - row, 0);
        return out;
    }
    // `ids` are columns `first` on of rows that begin with padding.
    std::vector<at::Tensor> states(const at::Tensor& ids, const std::vector<index_t>& padding, index_t first,
                                   const std::vector<Tap>& taps, KeyValueCache* cache) const {
        at::Tensor mask, places;
        const bool padded = std::any_of(padding.begin(), padding.end(), [](index_t n) { return n > 0; });
        if (padded) places = positions(padding, first, ids.size(1)).to(device_);
        if (padded && first == 0) { // a cache remembers what it was told
            mask = at::ones(ids.sizes(), at::kLong);
            for (std::size_t row = 0; row < padding.size(); ++row)
                mask.select(0, static_cast<std::int64_t>(row)).narrow(0, 0, padding[row]).zero_();
            mask = mask.to(device_);
        }
        if constexpr (requires(const ModelT& m) { m->states(ids, taps, cache, {mask, {}, {}}); })
            return model_->states(ids.to(device_), taps, cache, {mask, places, {}});
        else
            return model_->states(ids.to(device_), taps, cache); // its pad id says what is padding
    }
    BatchStates begin_anew() {
        const auto rows = static_cast<std::int64_t>(texts_.size()),
                   width = static_cast<std::int64_t>(texts_.at(0).size());
        const at::Tensor ids = at::empty({rows, width}, at::kLong);
        auto* id = ids.data_ptr<std::int64_t>();
        for (const auto& t : texts_) id = std::copy(t.begin(), t.end(), id);
        cache_ = KeyValueCache(), stale_ = false;
        return newest(ids, 0);
    }
    BatchStates newest(const at::Tensor& ids, index_t first) {
        const c10::InferenceMode inference;
        const auto out = states(ids, padding_, first, {tap_, Tap{Tap::prehead, 0}}, &cache_);
        states_ = plain(out[0].select(1, ids.size(1) - 1)), head_in_ = plain(out[1].select(1, ids.size(1) - 1));
        return {as_rows(states_), as_rows(head_in_)};
    }

    ModelT model_;
    at::Tensor output_; // the model's own tensor, where that is Float on the CPU
    at::Device device_;
    Tap tap_;
    std::vector<std::vector<std::int32_t>> texts_; // what has been read, and what reorder left to be read again
    std::vector<index_t> padding_;
    bool stale_ = false;
    KeyValueCache cache_;
    at::Tensor states_, head_in_;
};
static_assert(BeamHost<BatchHost<>> && ReadingHost<BatchHost<>>);

} // namespace mnemo::nn
