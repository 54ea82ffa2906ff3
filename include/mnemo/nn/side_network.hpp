// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/nn/adaptive_input.hpp>
#include <mnemo/nn/gated_attention.hpp>
#include <mnemo/nn/key_value_cache.hpp>
#include <mnemo/nn/local_attention.hpp>

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace mnemo::nn {

struct SideNetworkOptions {
    std::int64_t dim = 0, ffn_dim = 0, heads = 0, layers = 0;
    std::int64_t memory_layer = 0; // the one that reads memory, from 0
    double norm_epsilon = 1e-5;
    double dropout = 0, attention_dropout = 0; // while training: of the feed-forward's output, of local probabilities
    /// The published implementation's way: where memory is read, padding is not masked.
    bool reference = false;
};

/// LongMem's side network (Wang et al. 2023): layers that run beside a frozen backbone, each of which also takes what
/// the backbone's layers at its height added. One norm a layer, attention and feed-forward in parallel, ALiBi; the
/// memory layer mixes in what was recalled. Weights have the published names: `layers.N.` + `self_attn.q_proj.weight`,
/// `k_proj`, `v_proj`, `out_proj`, `fc1.weight`, `fc1.bias`, `fc2`, `ln_1`; `layers.M.self_attn.memory_bias`;
/// `layer_norm`.
class SideNetworkImpl : public torch::nn::Module {
  public:
    using Weights = std::function<at::Tensor(const std::string& name, at::IntArrayRef shape)>;
    /// Recalls for queries [batch * rows, dim] of the memory layer; may return nothing.
    using Recall = std::function<SharedReading(const at::Tensor& queries)>;

    SideNetworkImpl(SideNetworkOptions options, const Weights& weights) : options_(options) {
        const auto& o = options_;
        for (const auto& [name, n] : {std::pair{"dim", o.dim}, std::pair{"ffn_dim", o.ffn_dim},
                                      std::pair{"heads", o.heads}, std::pair{"layers", o.layers}})
            if (n < 1) fail("side network, ", name, ": expected at least 1, got ", n);
        if (o.dim % o.heads != 0) fail("side network, heads: expected a divisor of ", o.dim, ", got ", o.heads);
        if (o.memory_layer < 0 || o.memory_layer >= o.layers)
            fail("side network, memory_layer: expected 0 to ", o.layers - 1, ", got ", o.memory_layer);
        const auto add = [&](const std::string& name, at::IntArrayRef shape) {
            std::string registered = name;
            std::replace(registered.begin(), registered.end(), '.', '_');
            weights_.emplace_back(name, register_parameter(registered, weights(name, shape).clone()));
            return weights_.back().second;
        };
        for (std::int64_t i = 0; i < o.layers; ++i) {
            const std::string at = text("layers.", i, ".");
            Layer layer;
            if (i == o.memory_layer) layer.memory_bias = add(at + "self_attn.memory_bias", {o.heads});
            layer.k = add(at + "self_attn.k_proj.weight", {o.dim, o.dim});
            layer.v = add(at + "self_attn.v_proj.weight", {o.dim, o.dim});
            layer.q = add(at + "self_attn.q_proj.weight", {o.dim, o.dim});
            layer.out = add(at + "self_attn.out_proj.weight", {o.dim, o.dim});
            layer.fc1 = add(at + "fc1.weight", {o.ffn_dim, o.dim}), layer.fc1_bias = add(at + "fc1.bias", {o.ffn_dim});
            layer.fc2 = add(at + "fc2.weight", {o.dim, o.ffn_dim}), layer.fc2_bias = add(at + "fc2.bias", {o.dim});
            layer.norm = add(at + "ln_1.weight", {o.dim}), layer.norm_bias = add(at + "ln_1.bias", {o.dim});
            layers_.push_back(layer);
        }
        norm_ = add("layer_norm.weight", {o.dim}), norm_bias_ = add("layer_norm.bias", {o.dim});
    }

    /// hidden: layers + 1 states [batch, rows, dim] of the backbone, every so many layers apart, the last one behind
    /// its final norm. mask [batch, rows], 0 is padding; undefined: none. Returns what the output matrix reads. With a
    /// cache, without padding and gradients, the tokens continue those that it has read.
    at::Tensor forward(const std::vector<at::Tensor>& hidden, const at::Tensor& mask, const Recall& recall,
                       KeyValueCache* cache = nullptr) const {
        if (static_cast<std::int64_t>(hidden.size()) != options_.layers + 1)
            fail("side network: expected ", options_.layers + 1, " states of the backbone, got ", hidden.size());
        at::Tensor z = hidden[0];
        const bool padded = mask.defined();
        const std::int64_t columns = z.size(1) + (cache != nullptr ? cache->length() : 0);
        if (cache != nullptr && padded) fail("side network: expected no padding beside a cache");
        const at::Tensor real = padded ? mask : at::ones({1, columns}, z.options().requires_grad(false));
        const LocalBias bias = causal_alibi_bias(real, options_.heads);
        const LocalBias unmasked = padded && options_.reference ? causal_alibi_bias(real, options_.heads, false) : bias;
        for (std::int64_t i = 0; i < options_.layers; ++i) {
            const auto at = static_cast<std::size_t>(i);
            z = layer(i, z, hidden[at + 1] - hidden[at], bias, unmasked, recall, cache);
        }
        if (cache != nullptr) cache->advance(hidden[0].size(1), {});
        return at::layer_norm(z, {options_.dim}, norm_, norm_bias_, options_.norm_epsilon);
    }

    /// One layer: z [batch, rows, dim] -> the same. `unmasked` is the bias in place of `bias` where memory is read in
    /// the reference's way.
    at::Tensor layer(std::int64_t i, const at::Tensor& z, const at::Tensor& residual, const LocalBias& bias,
                     const LocalBias& unmasked, const Recall& recall, KeyValueCache* cache = nullptr) const {
        const Layer& w = layers_[static_cast<std::size_t>(i)];
        const at::Tensor y = at::layer_norm(z, {options_.dim}, w.norm, w.norm_bias, options_.norm_epsilon);
        const at::Tensor fed = at::linear(at::gelu(at::linear(y, w.fc1, w.fc1_bias)), w.fc2, w.fc2_bias);
        return at::dropout(fed, options_.dropout, is_training()) + attend(i, y, bias, unmasked, recall, cache) +
               residual + z;
    }

    /// Attention of layer i on its normed input y [batch, rows, dim].
    at::Tensor attend(std::int64_t i, const at::Tensor& y, const LocalBias& bias, const LocalBias& unmasked,
                      const Recall& recall, KeyValueCache* cache = nullptr) const {
        const Layer& w = layers_[static_cast<std::size_t>(i)];
        const std::int64_t n = y.size(0) * y.size(1), dim = options_.dim;
        const at::Tensor query = at::linear(y, w.q); // searches and attends
        SharedReading reading;
        if (i == options_.memory_layer && recall) reading = recall(query.detach().view({n, dim}));
        const bool remembers = reading && !reading->empty();
        const LocalBias& own = remembers && options_.reference ? unmasked : bias;
        at::Tensor key = at::linear(y, w.k), value = at::linear(y, w.v);
        if (cache != nullptr) {
            const auto all = cache->append(static_cast<std::size_t>(i), key.unsqueeze(1), value.unsqueeze(1));
            key = all.first.squeeze(1), value = all.second.squeeze(1);
        }
        const double scale = 1 / std::sqrt(static_cast<double>(dim / options_.heads));
        const double dropout = is_training() ? options_.attention_dropout : 0;
        at::Tensor out = dropout > 0 || cache != nullptr
                             ? local_attention_composed(query, key, value, own, options_.heads, scale, dropout)
                             : local_attention(query, key, value, own, options_.heads, scale);
        if (remembers) out = gated_attention(out.view({n, dim}), query.view({n, dim}), w.memory_bias, reading);
        return at::linear(out.view(y.sizes()), w.out);
    }

    const SideNetworkOptions& options() const { return options_; }
    const NamedWeights& weights() const { return weights_; }

  private:
    struct Layer {
        at::Tensor q, k, v, out, memory_bias, fc1, fc1_bias, fc2, fc2_bias, norm, norm_bias;
    };

    SideNetworkOptions options_;
    std::vector<Layer> layers_;
    at::Tensor norm_, norm_bias_;
    NamedWeights weights_;
};
TORCH_MODULE(SideNetwork);

} // namespace mnemo::nn
