// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/host/llama2c_model.hpp>
#include <mnemo/nn/hugging_face_lm.hpp>

#include <map>
#include <string>
#include <utility>
#include <vector>

namespace mnemo::nn {

/// Writes a Llama model as a llama2.c checkpoint, for Llama2cHost and for run.c. Throws Error, naming what, for a model
/// that llama2.c does not compute: biases, another activation, norm, epsilon or rotary base.
inline void save_llama2c(const HuggingFaceLmImpl& model, const std::string& path) {
    const HuggingFaceOptions& o = model.options();
    const auto expect = [&](bool ok, const char* what) {
        if (!ok) fail(path, ": a llama2.c checkpoint has ", what, ", but the model is ", options_text(model));
    };
    expect(o.positions == HuggingFaceOptions::Positions::rotary && o.rotary_base == 10000,
           "rotary positions, base 10000");
    expect(o.causal && o.norm_first && o.final_norm && o.rms_norm && o.norm_epsilon == 1e-5,
           "RMS norms first, epsilon 1e-5");
    expect(o.gated && (o.activation == "silu" || o.activation == "swish"), "gated feed-forward blocks with SiLU");
    expect(!o.attention_bias && !o.ffn_bias && !o.head_bias && !o.head_transform, "no biases");
    expect(o.input_dim == o.dim && o.head_dim * o.heads == o.dim, "heads that divide the state");
    expect(o.attention_scale * o.attention_scale * static_cast<double>(o.head_dim) > 0.999 &&
               o.attention_scale * o.attention_scale * static_cast<double>(o.head_dim) < 1.001 &&
               !o.attention_scale_layer,
           "scores over the root of the head's width");
    std::map<std::string, std::vector<float>> blocks; // all layers of a weight, one after another
    // Hugging Face turns value i of a head with value i + width / 2, llama2.c with its neighbour.
    const auto neighbours = [&](const at::Tensor& w) {
        return w.view({-1, 2, o.head_dim / 2, w.size(1)}).transpose(1, 2);
    };
    for (const auto& [name, tensor] : model.weights()) {
        const at::Tensor plain = tensor.detach().to(at::kCPU, at::kFloat);
        std::string role = name.substr(0, name.rfind('.'));
        if (role.starts_with("layers.")) role = role.substr(role.rfind('.') + 1);
        const at::Tensor values = (role == "query" || role == "key" ? neighbours(plain) : plain).contiguous();
        auto& block = blocks[role];
        block.insert(block.end(), values.data_ptr<float>(), values.data_ptr<float>() + values.numel());
    }
    Llama2cWeights w;
    w.config = {.dim = o.dim,
                .hidden_dim = o.ffn_dim,
                .layers = o.layers,
                .heads = o.heads,
                .kv_heads = o.kv_heads,
                .vocab_size = o.vocab_size,
                .seq_len = o.max_positions,
                .tied_classifier = o.tied_head};
    w.embedding = blocks["tokens"], w.attention_norm = blocks["norm1"], w.ffn_norm = blocks["norm2"];
    w.wq = blocks["query"], w.wk = blocks["key"], w.wv = blocks["value"], w.wo = blocks["out"];
    w.w1 = blocks["gate"], w.w2 = blocks["down"], w.w3 = blocks["up"];
    w.final_norm = blocks["final_norm"], w.classifier = blocks[o.tied_head ? "tokens" : "head"];
    w.save(path);
}

} // namespace mnemo::nn
