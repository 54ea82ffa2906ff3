// SPDX-License-Identifier: MIT
#pragma once

#include "tensors.hpp"

#include <mnemo/nn/fairseq.hpp>

#include <cmath>

namespace golden {

/// The model whose weights lie in a fixture as `w.*`. Metadata gives its numbers; widths, and what is tied or absent,
/// are seen in the tensors.
inline mnemo::nn::TransformerLm model_in(const Fixture& fixture) {
    const std::string decoder = "w.decoder.", softmax = decoder + "adaptive_softmax.";
    mnemo::nn::TransformerLmOptions o;
    o.vocab_size(fixture.integer("vocab_size")).dim(fixture.integer("dimension")).pad(fixture.integer("pad"));
    o.layers(fixture.integer("decoder_layers")).heads(fixture.integer("decoder_attention_heads"));
    o.ffn_dim(fixture.size(decoder + "layers.0.fc1.weight", 0)).activation(fixture.text("activation_fn"));
    o.final_norm(fixture.flag("final_norm")).share_embeddings(fixture.flag("share_decoder_input_output_embed"));
    o.layernorm_embedding(fixture.has(decoder + "layernorm_embedding.weight"));
    const double scale = fixture.number("embed_scale");
    o.scale_embedding(scale != 1);
    if (scale != 1 && std::abs(scale - std::sqrt(static_cast<double>(o.dim()))) > 1e-5)
        mnemo::fail("embed_scale: expected 1 or the root of the width, got ", scale);
    if (fixture.has(decoder + "embed_positions.weight"))
        o.learned_positions(true).max_positions(fixture.size(decoder + "embed_positions.weight", 0) - o.pad() - 1);
    if (fixture.has(decoder + "project_out_dim.weight"))
        o.output_dim(fixture.size(decoder + "project_out_dim.weight", 0));
    if (fixture.has(decoder + "embed_tokens.weight")) {
        o.input_dim(fixture.size(decoder + "embed_tokens.weight", 1));
    } else {
        std::vector<std::int64_t> cutoffs;
        for (const auto& id : fixture.list("adaptive_cutoff")) cutoffs.push_back(std::stoll(id));
        o.adaptive_input(true).adaptive_input_cutoff(cutoffs).adaptive_input_factor(fixture.number("adaptive_factor"));
        o.input_dim(fixture.size(decoder + "embed_tokens.embeddings.0.0.weight", 1));
    }
    if (!fixture.names(softmax).empty()) {
        o.adaptive_softmax_cutoff(o.adaptive_input_cutoff()).adaptive_softmax_factor(o.adaptive_input_factor());
        o.tie_adaptive_weights(fixture.has(softmax + "head.class_proj.weight"));
        const std::string tail = softmax + "tail.0.0.weight", tied = decoder + "embed_tokens.embeddings.1.1.weight";
        o.tie_adaptive_proj(o.tie_adaptive_weights() &&
                            (!fixture.has(tail) || (fixture.shape(tail) == fixture.shape(tied) &&
                                                    fixture.floats(tail) == fixture.floats(tied))));
    }
    mnemo::nn::TransformerLm model(o);
    mnemo::nn::load_weights(*model, fixture.tensors(), "w.");
    model->eval();
    return model;
}

/// Compares the rows of `got` [batch, rows, ...] that `real` [batch, rows] marks with those of tensor `name`.
inline void close_where(const Fixture& fixture, Check& check, const std::string& name, const at::Tensor& got,
                        const at::Tensor& real, Tolerance tolerance) {
    auto stored = fixture.floats(name);
    const auto expected = at::from_blob(stored.data(), fixture.shape(name), at::kFloat);
    if (got.sizes() != expected.sizes()) return check.failed(mnemo::text(name, ": the shapes differ"));
    const auto values = [&](const at::Tensor& t) {
        const at::Tensor rows = t.index({real}).contiguous();
        return std::vector<float>(rows.data_ptr<float>(), rows.data_ptr<float>() + rows.numel());
    };
    check.close(name, values(got), values(expected), tolerance);
}

} // namespace golden
