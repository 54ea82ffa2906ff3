// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/nn/hugging_face_lm.hpp>
#include <mnemo/nn/side_network.hpp>
#include <mnemo/papers/long_mem.hpp>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace mnemo::nn {

/// The published backbone's options: ALiBi, parallel blocks behind one norm, tanh GELU, an output matrix of its own
/// with a bias.
inline HuggingFaceOptions long_mem_backbone_options(std::int64_t vocab_size, std::int64_t dim, std::int64_t layers,
                                                    std::int64_t heads) {
    HuggingFaceOptions o;
    o.model_type = "newgpt";
    o.vocab_size = vocab_size, o.dim = o.input_dim = dim, o.ffn_dim = 4 * dim, o.layers = layers;
    o.heads = o.kv_heads = heads;
    if (heads < 1 || dim % heads != 0) fail("backbone, heads: expected a divisor of ", dim, ", got ", heads);
    o.head_dim = dim / heads;
    o.max_positions = long_mem_knobs::segment;
    o.positions = HuggingFaceOptions::Positions::alibi;
    o.parallel = true;
    o.norm_epsilon = 1e-6;
    o.attention_bias = false;
    o.activation = "gelu_new";
    o.attention_scale = 1 / std::sqrt(static_cast<double>(o.head_dim));
    o.tied_head = false, o.head_bias = true;
    return o;
}
/// The published checkpoints' name for a weight of HuggingFaceLm, without their prefix `decoder.model.`.
inline std::string long_mem_backbone_name(const std::string& name) {
    const std::size_t dot = name.rfind('.');
    const std::string role = name.substr(0, dot), suffix = name.substr(dot);
    if (role == "tokens") return "transformer.wte" + suffix;
    if (role == "final_norm") return "transformer.ln_f" + suffix;
    if (role == "head") return "lm_head" + suffix;
    const std::size_t end = role.find('.', 7); // "layers.N.part"
    const std::string layer = "transformer.h." + role.substr(7, end - 7) + ".", part = role.substr(end + 1);
    if (part == "norm1") return layer + "ln_1" + suffix;
    if (part == "up") return layer + "mlp.fc_in" + suffix;
    if (part == "down") return layer + "mlp.fc_out" + suffix;
    if (part == "query" || part == "key" || part == "value")
        return layer + "attn." + part.substr(0, 1) + "_proj" + suffix;
    if (part == "out") return layer + "attn.out_proj" + suffix;
    fail("backbone: expected a weight of the published model, got `", name, "`");
}

/// The side network's start: layer i is the backbone's layer reduction * i + 1, gates are at one half.
inline SideNetwork side_network_from(const HuggingFaceLm& backbone, std::int64_t reduction,
                                     std::int64_t retrieval_layer, bool reference = false) {
    const auto& o = backbone->options();
    if (reduction < 1 || o.layers % reduction != 0)
        fail("side network: expected a layer reduction that divides ", o.layers, " layers, got ", reduction);
    if (retrieval_layer < 0 || retrieval_layer >= o.layers)
        fail("side network: expected a retrieval layer of 0 to ", o.layers - 1, ", got ", retrieval_layer);
    if (!o.parallel || o.attention_bias || o.kv_heads != o.heads)
        fail("side network: its layers start as the backbone's only where those are parallel blocks without biases in "
             "attention; give the weights yourself");
    SideNetworkOptions side{.dim = o.dim, .ffn_dim = o.ffn_dim, .heads = o.heads, .layers = o.layers / reduction};
    side.memory_layer = retrieval_layer / reduction, side.reference = reference;
    const auto find = [&](const std::string& wanted) {
        for (const auto& [name, tensor] : backbone->weights())
            if (name == wanted) return tensor.detach();
        fail("side network: expected a weight `", wanted, "` of the backbone, got none");
    };
    return SideNetwork(side, [&](const std::string& name, at::IntArrayRef shape) {
        if (name.find("memory_bias") != std::string::npos) return at::zeros(shape);
        const std::string suffix = name.substr(name.rfind('.'));
        if (name.rfind("layer_norm", 0) == 0) return find("final_norm" + suffix);
        const std::size_t end = name.find('.', 7);
        const std::int64_t from = reduction * std::stoll(name.substr(7, end - 7)) + (reduction > 1 ? 1 : 0);
        const std::string part = name.substr(end + 1, name.rfind('.') - end - 1);
        const std::string own = part == "self_attn.q_proj"     ? "query"
                                : part == "self_attn.k_proj"   ? "key"
                                : part == "self_attn.v_proj"   ? "value"
                                : part == "self_attn.out_proj" ? "out"
                                : part == "fc1"                ? "up"
                                : part == "fc2"                ? "down"
                                                               : "norm1";
        return find(text("layers.", from, ".", own, suffix));
    });
}

/// A frozen backbone, its side network and their banks. Backbones are models of HuggingFaceLm with as many key heads
/// as query heads. The backbone's vocabulary product is not computed; its gradients neither.
class LongMem {
  public:
    LongMem(HuggingFaceLm backbone, SideNetwork side, std::int64_t reduction, std::int64_t retrieval_layer,
            LongMemBanks banks)
        : backbone_(std::move(backbone)), side_(std::move(side)), banks_(std::move(banks)) {
        const auto& o = backbone_->options();
        const auto& s = side_->options();
        if (reduction < 1 || s.layers * reduction != o.layers || s.dim != o.dim)
            fail("LongMem: expected a side network of ", o.dim, " dimensions for ", o.layers, " layers, one for every ",
                 reduction, ", got ", s.layers, " layers of ", s.dim);
        if (retrieval_layer < 0 || retrieval_layer >= o.layers)
            fail("LongMem: expected a retrieval layer of 0 to ", o.layers - 1, ", got ", retrieval_layer);
        if (o.kv_heads != s.heads || o.head_dim != o.dim / s.heads || banks_.options().heads != s.heads ||
            banks_.options().head_dim != o.head_dim)
            fail("LongMem: expected backbone, side network and banks of equal heads, got ", o.kv_heads, ", ", s.heads,
                 " and ", banks_.options().heads);
        for (std::int64_t i = 0; i < s.layers; ++i) taps_.push_back({Tap::hidden, i * reduction});
        taps_.push_back({Tap::prehead, 0});
        taps_.push_back({Tap::key, retrieval_layer}), taps_.push_back({Tap::value, retrieval_layer});
        for (at::Tensor p : backbone_->parameters()) p.set_requires_grad(false);
    }

    /// Reads a segment, tokens [batch, rows] with mask (0 is padding; undefined: none); returns what the output matrix
    /// reads, [batch, rows, dim]. The segment is remembered by `remember`, after the backward pass.
    at::Tensor forward(const at::Tensor& tokens, const at::Tensor& mask = {}, std::vector<index_t> documents = {}) {
        std::vector<at::Tensor> states;
        {
            const at::NoGradGuard frozen;
            TokenInfo info;
            info.mask = mask;
            states = backbone_->states(tokens, taps_, nullptr, info);
        }
        values_ = flat(states.back()), states.pop_back();
        keys_ = flat(states.back()), states.pop_back();
        documents_ = std::move(documents);
        real_.clear();
        if (mask.defined()) {
            const at::Tensor real = mask.ne(0).to(at::kByte).contiguous();
            real_.assign(real.data_ptr<std::uint8_t>(), real.data_ptr<std::uint8_t>() + real.numel());
        }
        return side_->forward(states, mask, [&](const at::Tensor& queries) {
            const at::Tensor rows = queries.contiguous();
            const auto reading = c10::make_intrusive<MemoryReading>();
            reading->filled_to = banks_.filled_to();
            for (auto& r : banks_.recall(as_rows(rows), documents_))
                reading->parts.push_back({r.ring, std::move(r.hits), r.first, r.rows});
            last_ = reading;
            return reading;
        });
    }
    /// Remembers the segment that was read last, once. Not before its backward pass.
    void remember() {
        if (!keys_.defined()) fail("LongMem: expected a segment that was read and not remembered yet");
        banks_.remember(as_rows(keys_), as_rows(values_), real_, documents_);
        keys_ = values_ = at::Tensor();
    }
    /// Logits by the backbone's output matrix.
    at::Tensor logits(const at::Tensor& states) const { return backbone_->logits(states); }
    at::Tensor log_prob_target(const at::Tensor& states, const at::Tensor& targets) const {
        return backbone_->log_prob_target(states, targets);
    }

    const HuggingFaceLm& backbone() const { return backbone_; }
    const SideNetwork& side() const { return side_; }
    LongMemBanks& banks() { return banks_; }
    /// What the last segment recalled; it may be null.
    const SharedReading& last_reading() const { return last_; }

  private:
    static at::Tensor flat(const at::Tensor& t) { return t.reshape({-1, t.size(-1)}).contiguous(); }

    HuggingFaceLm backbone_;
    SideNetwork side_;
    LongMemBanks banks_;
    std::vector<Tap> taps_;
    at::Tensor keys_, values_; // of the last segment, [batch * rows, dim]
    std::vector<std::uint8_t> real_;
    std::vector<index_t> documents_;
    SharedReading last_;
};

} // namespace mnemo::nn
