// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/nn/adaptive_softmax.hpp>
#include <mnemo/nn/alibi.hpp>
#include <mnemo/nn/autocast.hpp>
#include <mnemo/nn/key_value_cache.hpp>
#include <mnemo/nn/output_layer.hpp>
#include <mnemo/nn/tap.hpp>

#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mnemo::nn {

/// What the architectures of HuggingFaceLm differ in; hugging_face.hpp fills it from a config.
struct HuggingFaceOptions {
    // by_mask: the n-th token that is not padding has row n; alibi: a bias for each head that grows with the column
    enum class Positions { learned, learned_by_mask, rotary, alibi };

    std::string model_type; // "gpt2", "opt", "bert" or "llama"; nothing is computed from it
    std::int64_t vocab_size = 0, dim = 0, ffn_dim = 0, layers = 0, heads = 0;
    std::int64_t input_dim = 0; // width of embeddings and of `prehead`; another than dim is projected
    std::int64_t kv_heads = 0;  // a divisor of heads: so many have keys and values
    std::int64_t head_dim = 0;
    std::int64_t max_positions = 0;
    Positions positions = Positions::learned;
    std::int64_t position_offset = 0; // row of position 0
    double rotary_base = 10000;
    std::int64_t segments = 0; // rows of segment embeddings; 0: none
    bool causal = true;
    bool parallel = false;    // feed-forward beside attention: both read one norm, both are added
    bool norm_first = true;   // norms before attention and feed-forward, not after the additions
    bool rms_norm = false;    // x / root mean square * w, not LayerNorm
    bool norm_weights = true; // false: norms without weight and bias
    double norm_epsilon = 1e-5;
    bool embedding_norm = false; // a norm of the embeddings' sum
    bool final_norm = true;      // a norm behind the last layer
    bool attention_bias = true;  // of the query, key, value and output maps
    bool ffn_bias = true;
    bool gated = false; // down(act(gate(x)) * up(x)), not down(act(up(x)))
    std::string activation = "gelu_new";
    double attention_scale = 1;         // of the scores
    bool attention_scale_layer = false; // divides that of layer i by i + 1
    bool head_transform = false;        // norm(act(linear(x))) makes `prehead`
    bool head_bias = false;
    bool tied_head = true;                   // the output matrix is the embedding
    std::vector<std::int64_t> ffn_dims = {}; // of each layer in place of ffn_dim; 0: no feed-forward. Empty: ffn_dim
    std::int64_t padding_id = -1;            // its embedding gets no gradient; -1: each gets one
    double dropout = 0;                      // of embeddings and of what layers add; in training only, as the next
    double attention_dropout = 0;            // of attention's probabilities
};

/// What a batch says besides its tokens, [batch, rows] each; undefined where it says nothing.
struct TokenInfo {
    at::Tensor mask;      // Long or Bool, 0 is padding: nobody attends to it, its states are finite and mean nothing
    at::Tensor positions; // Long; without it they count from 0, over padding too unless positions are learned_by_mask
    at::Tensor segments;  // Long; without it 0
};

/// What else a layer adds to `in`, the input of its feed-forward [batch, rows, dim]: called for each layer with its
/// number, undefined for nothing.
using BesideFeedForward = std::function<at::Tensor(std::int64_t layer, const at::Tensor& in)>;

/// A transformer of the Hugging Face hub, as its library computes it in float32: GPT-2, OPT, Llama, or BERT with its
/// MLM head. hugging_face.hpp loads it. Token ids are Long [batch, rows]. Calls are const and may run in several
/// threads; run them under torch::NoGradGuard or c10::InferenceMode unless gradients are wanted. Dropout is drawn where
/// the options ask for it and the module is in training.
class HuggingFaceLmImpl : public torch::nn::Module {
  public:
    /// The weight of that name and shape. Names: `tokens`, `positions`, `segments`, `embedding_norm`, `project_in`,
    /// `layers.N.` + `norm1`, `query`, `key`, `value`, `out`, `norm2`, `gate`, `up`, `down`; `final_norm`,
    /// `project_out`, `transform`, `transform_norm`, `head`; with `.weight` or `.bias` behind. Matrices are [out, in].
    using Weights = std::function<at::Tensor(const std::string& name, at::IntArrayRef shape)>;

    HuggingFaceLmImpl(HuggingFaceOptions options, const Weights& weights) : options_(std::move(options)) {
        const auto& o = options_;
        check(o);
        activation_ = activation(o.activation);
        const auto add = [&](const std::string& name, at::IntArrayRef shape) {
            std::string registered = name;
            std::replace(registered.begin(), registered.end(), '.', '_');
            weights_.emplace_back(name, register_parameter(registered, weights(name, shape)));
            return weights_.back().second;
        };
        const auto linear = [&](const std::string& name, std::int64_t out, std::int64_t in, bool bias) {
            return Linear{add(name + ".weight", {out, in}), bias ? add(name + ".bias", {out}) : at::Tensor()};
        };
        const auto norm = [&](const std::string& name, std::int64_t d) {
            Norm n{{}, {}, d, o.norm_epsilon, o.rms_norm};
            if (o.norm_weights) n.weight = add(name + ".weight", {d});
            if (o.norm_weights && !o.rms_norm) n.bias = add(name + ".bias", {d});
            return n;
        };
        const std::int64_t d = o.dim, q = o.heads * o.head_dim, kv = o.kv_heads * o.head_dim;
        tokens_ = add("tokens.weight", {o.vocab_size, o.input_dim});
        if (learned_positions()) positions_ = add("positions.weight", {o.max_positions + o.position_offset, d});
        if (o.segments > 0) segments_ = add("segments.weight", {o.segments, d});
        if (o.embedding_norm) embedding_norm_ = norm("embedding_norm", d);
        if (o.input_dim != d) project_in_ = linear("project_in", d, o.input_dim, false);
        for (std::int64_t i = 0; i < o.layers; ++i) {
            const std::string prefix = text("layers.", i, ".");
            Layer layer;
            layer.norm1 = norm(prefix + "norm1", d);
            layer.query = linear(prefix + "query", q, d, o.attention_bias);
            layer.key = linear(prefix + "key", kv, d, o.attention_bias);
            layer.value = linear(prefix + "value", kv, d, o.attention_bias);
            layer.out = linear(prefix + "out", d, q, o.attention_bias);
            if (!o.parallel) layer.norm2 = norm(prefix + "norm2", d);
            const std::int64_t ffn = o.ffn_dims.empty() ? o.ffn_dim : o.ffn_dims[static_cast<std::size_t>(i)];
            if (o.gated && ffn > 0) layer.gate = linear(prefix + "gate", ffn, d, o.ffn_bias);
            if (ffn > 0) layer.up = linear(prefix + "up", ffn, d, o.ffn_bias);
            if (ffn > 0) layer.down = linear(prefix + "down", d, ffn, o.ffn_bias);
            layer.scale = o.attention_scale / static_cast<double>(o.attention_scale_layer ? i + 1 : 1);
            layers_.push_back(std::move(layer));
        }
        if (o.final_norm) final_norm_ = norm("final_norm", d);
        if (o.input_dim != d) project_out_ = linear("project_out", o.input_dim, d, false);
        if (o.head_transform) {
            transform_ = linear("transform", o.input_dim, o.input_dim, true);
            transform_norm_ = norm("transform_norm", o.input_dim);
        }
        head_.weight = o.tied_head ? tokens_ : add("head.weight", {o.vocab_size, o.input_dim});
        if (o.head_bias) head_.bias = add("head.bias", {o.vocab_size});
    }

    /// `prehead` [batch, rows, input_dim].
    at::Tensor forward(const at::Tensor& tokens, KeyValueCache* cache = nullptr, const TokenInfo& info = {}) const {
        return states(tokens, {Tap{Tap::prehead, 0}}, cache, info)[0];
    }

    /// The states at `taps`, in their order, [batch, rows, width of the tap]. Nothing behind the last tap is computed.
    /// With a cache `tokens` continue those it has read (`info` is about the new ones); it keeps no gradients. A layer
    /// adds what `beside` returns, too.
    std::vector<at::Tensor> states(const at::Tensor& tokens, const std::vector<Tap>& taps,
                                   KeyValueCache* cache = nullptr, const TokenInfo& info = {},
                                   const BesideFeedForward& beside = {}) const {
        if (tokens.dim() != 2 || tokens.scalar_type() != at::kLong || tokens.numel() == 0)
            fail("tokens: expected Long [batch, rows] with at least one token, got ", describe(tokens));
        check_range("tokens", tokens, 0, options_.vocab_size);
        if (cache != nullptr && !options_.causal)
            fail("a ", options_.model_type, " model reads its text from both sides: it cannot decode with a cache");
        std::vector<at::Tensor> out(taps.size());
        const auto take = [&](Tap tap, const at::Tensor& x) {
            for (std::size_t i = 0; i < taps.size(); ++i)
                if (taps[i] == tap) out[i] = x;
        };
        // How far anybody asks; a cache wants the keys and values of every layer.
        const std::int64_t last = options_.layers - 1;
        std::int64_t attended = cache != nullptr ? last : -1, fed = -1;
        bool head = false;
        for (const Tap tap : taps) {
            if (tap.point == Tap::ffn_in || tap.projection()) attended = std::max(attended, tap.layer);
            if (tap.point == Tap::hidden) fed = std::max(fed, tap.layer - 1);
            head |= tap.point == Tap::prehead;
        }
        if (head) fed = last;
        attended = std::max(attended, fed);

        const KeyValueCache none;
        const std::int64_t batch = tokens.size(0), rows = tokens.size(1), past = cache != nullptr ? cache->length() : 0;
        const auto like_tokens = [&](const char* what, const at::Tensor& t) {
            if (t.defined() && t.sizes() != tokens.sizes())
                fail(what, ": expected the shape of tokens ", describe(tokens), ", got ", describe(t));
            return t.defined();
        };
        const at::Tensor padding = // [batch, past + rows], undefined if there is none
            (cache != nullptr ? cache : &none)
                ->padding_with(like_tokens("mask", info.mask) ? info.mask.eq(0) : info.mask, batch, rows);
        like_tokens("positions", info.positions), like_tokens("segments", info.segments);
        const at::Tensor positions = position_numbers(tokens, past, padding, info.positions);
        at::Tensor x = embed(tokens, positions, info.segments);
        take({Tap::hidden, 0}, x);
        const at::Tensor mask = with_alibi(attention_mask(x, past, rows, padding), x, past + rows, padding);
        const auto rotation = rotary_angles(positions);
        for (std::int64_t i = 0; i <= attended; ++i) {
            const Layer& layer = layers_[static_cast<std::size_t>(i)];
            const at::Tensor y = options_.norm_first ? layer.norm1(x) : x;
            const at::Tensor read = attend(
                layer, y, mask, rotation,
                [&](Tap::Point point, const at::Tensor& t) {
                    take({point, i}, t);
                },
                [&](const at::Tensor& k, const at::Tensor& v) {
                    if (cache == nullptr) return std::pair{k, v};
                    const at::NoGradGuard no_grad;
                    return cache->append(static_cast<std::size_t>(i), k, v);
                });
            x = options_.norm_first ? x + dropped(read) : layer.norm1(x + dropped(read));
            const at::Tensor in = options_.parallel ? y : options_.norm_first ? layer.norm2(x) : x;
            take({Tap::ffn_in, i}, in);
            if (i == attended && i > fed) break;
            if (layer.up.weight.defined()) x = x + dropped(feed_forward(layer, in));
            if (beside)
                if (const at::Tensor more = beside(i, in); more.defined()) x = x + more;
            if (!options_.norm_first) x = layer.norm2(x);
            take({Tap::hidden, i + 1}, x);
        }
        if (cache != nullptr) cache->advance(rows, padding);
        if (head) {
            if (options_.final_norm) x = final_norm_(x);
            if (project_out_.weight.defined()) x = project_out_(x);
            if (options_.head_transform) x = transform_norm_(activation_(transform_(x)));
            take({Tap::prehead, 0}, x);
        }
        return out;
    }
    Tap tap(std::string_view name) const { return Tap::parse(name, options_.layers, true); }
    std::int64_t width(Tap tap) const {
        if (tap.point == Tap::query) return options_.heads * options_.head_dim;
        if (tap.projection()) return options_.kv_heads * options_.head_dim;
        return tap.point == Tap::prehead ? options_.input_dim : options_.dim;
    }

    /// prehead [..., input_dim] -> logits [..., vocab_size].
    at::Tensor logits(const at::Tensor& prehead) const { return head_(prehead); }
    /// prehead [..., input_dim] -> log-probabilities [..., vocab_size].
    at::Tensor log_prob_all(const at::Tensor& prehead) const { return at::log_softmax(logits(prehead), -1); }
    /// prehead [..., input_dim], targets Long [...] -> log p(target) [...]. Logits exist for 256 rows at a time.
    at::Tensor log_prob_target(const at::Tensor& prehead, const at::Tensor& targets) const {
        if (prehead.sizes().slice(0, static_cast<std::size_t>(prehead.dim()) - 1) != targets.sizes() ||
            targets.scalar_type() != at::kLong)
            fail("targets: expected Long [...] for states [..., ", options_.input_dim, "], got ", describe(targets),
                 " for ", describe(prehead));
        check_range("targets", targets, 0, options_.vocab_size);
        const at::Tensor rows = prehead.reshape({-1, options_.input_dim}), ids = targets.reshape(-1);
        std::vector<at::Tensor> parts;
        for (std::int64_t i = 0; i < rows.size(0) || i == 0; i += 256) {
            const std::int64_t n = std::min<std::int64_t>(256, rows.size(0) - i);
            parts.push_back(log_prob_of(logits(rows.narrow(0, i, n)), ids.narrow(0, i, n)));
        }
        return at::cat(parts).view(targets.sizes());
    }

    const HuggingFaceOptions& options() const { return options_; }
    std::int64_t vocab_size() const { return options_.vocab_size; }
    std::int64_t max_positions() const { return options_.max_positions; }
    bool causal() const { return options_.causal; }
    /// Such as "gpt2, 12 layers of 768".
    std::string description() const {
        return text(options_.model_type, ", ", options_.layers, " layers of ", options_.dim);
    }
    /// The output matrix [vocab_size, input_dim]; it may be the embedding.
    const at::Tensor& output_weight() const { return head_.weight; }
    /// The same as losses and scorers of `prehead` take it; it may be trained through it.
    OutputLayer output_layer() const {
        if (head_.bias.defined()) fail(description(), ": output layer: expected one without bias, got one with it");
        return {head_.weight, {}, {}};
    }
    /// Every weight under the name it was asked for by.
    const NamedWeights& weights() const { return weights_; }

  private:
    struct Linear {
        at::Tensor weight, bias;
        at::Tensor operator()(const at::Tensor& x) const { return linear(x, weight, bias); }
    };
    struct Norm {
        at::Tensor weight, bias;
        std::int64_t dim = 0;
        double epsilon = 0;
        bool rms = false;
        at::Tensor operator()(const at::Tensor& x) const {
            if (!rms) return at::layer_norm(x, {dim}, weight, bias, epsilon);
            const at::Tensor normed = x * at::rsqrt(x.square().mean(-1, true) + epsilon);
            return weight.defined() ? weight * normed : normed;
        }
    };
    struct Layer {
        Norm norm1, norm2;
        Linear query, key, value, out, gate, up, down;
        double scale = 1;
    };
    struct Rotation {
        at::Tensor cosine, sine; // [batch or 1, 1, rows, head_dim / 2]
        // Value i of a head turns with value i + head_dim / 2.
        at::Tensor operator()(const at::Tensor& x) const {
            if (!cosine.defined()) return x;
            const auto halves = x.chunk(2, -1);
            return at::cat({halves[0] * cosine - halves[1] * sine, halves[1] * cosine + halves[0] * sine}, -1);
        }
    };
    using Activation = at::Tensor (*)(const at::Tensor&);
    static Activation activation(const std::string& name) {
        if (name == "relu") return [](const at::Tensor& x) { return at::relu(x); };
        if (name == "gelu" || name == "gelu_python") return [](const at::Tensor& x) { return at::gelu(x); };
        if (name == "gelu_new" || name == "gelu_fast" || name == "gelu_pytorch_tanh" || name == "gelu_accurate")
            return [](const at::Tensor& x) { return at::gelu(x, "tanh"); };
        if (name == "quick_gelu") return [](const at::Tensor& x) { return x * at::sigmoid(1.702 * x); };
        if (name == "silu" || name == "swish") return [](const at::Tensor& x) { return at::silu(x); };
        if (name == "tanh") return [](const at::Tensor& x) { return at::tanh(x); };
        fail("activation: expected relu, gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, gelu_accurate, quick_gelu, "
             "silu or tanh, got '",
             name, "'");
    }

    static void check(const HuggingFaceOptions& o) {
        for (const auto& [name, n] : {std::pair{"vocab_size", o.vocab_size},
                                      {"dim", o.dim},
                                      {"input_dim", o.input_dim},
                                      {"ffn_dim", o.ffn_dim},
                                      {"layers", o.layers},
                                      {"heads", o.heads},
                                      {"kv_heads", o.kv_heads},
                                      {"head_dim", o.head_dim},
                                      {"max_positions", o.max_positions}})
            if (n < 1) fail(name, ": expected at least 1, got ", n);
        if (o.heads % o.kv_heads != 0) fail("kv_heads: expected a divisor of ", o.heads, " heads, got ", o.kv_heads);
        if (o.positions == HuggingFaceOptions::Positions::rotary && o.head_dim % 2 != 0)
            fail("head_dim: expected an even number, as values are rotated in pairs, got ", o.head_dim);
        if (o.parallel && !o.norm_first) fail("parallel: expected norms first, got norms behind");
        if (!(o.norm_epsilon >= 0)) fail("norm_epsilon: expected at least 0, got ", o.norm_epsilon);
        if (!o.ffn_dims.empty() && static_cast<std::int64_t>(o.ffn_dims.size()) != o.layers)
            fail("ffn_dims: expected ", o.layers, " widths, got ", o.ffn_dims.size());
        for (const std::int64_t n : o.ffn_dims)
            if (n < 0) fail("ffn_dims: expected at least 0, got ", n);
        if (o.padding_id < -1 || o.padding_id >= o.vocab_size)
            fail("padding_id: expected an id below ", o.vocab_size, " or -1, got ", o.padding_id);
        for (const double p : {o.dropout, o.attention_dropout})
            if (!(p >= 0 && p < 1)) fail("dropout: expected a number in [0, 1), got ", p);
        if (!(o.rotary_base > 0)) fail("rotary_base: expected a positive number, got ", o.rotary_base);
    }
    static void check_range(const char* what, const at::Tensor& ids, std::int64_t first, std::int64_t end) {
        if (ids.numel() == 0) return;
        const auto [low, high] = at::aminmax(ids);
        for (const std::int64_t id : {low.item<std::int64_t>(), high.item<std::int64_t>()})
            if (id < first || id >= end) fail(what, ": expected numbers from ", first, " to ", end - 1, ", got ", id);
    }

    bool learned_positions() const {
        return options_.positions == HuggingFaceOptions::Positions::learned ||
               options_.positions == HuggingFaceOptions::Positions::learned_by_mask;
    }
    // [rows] or [batch, rows], of the new tokens.
    at::Tensor position_numbers(const at::Tensor& tokens, std::int64_t past, const at::Tensor& padding,
                                const at::Tensor& given) const {
        const std::int64_t rows = tokens.size(1);
        at::Tensor numbers = given;
        if (!given.defined() && options_.positions == HuggingFaceOptions::Positions::learned_by_mask &&
            padding.defined()) {
            const at::Tensor real = padding.logical_not().to(at::kLong);
            numbers = (real.cumsum(1) * real - 1).narrow(1, past, rows); // padding: -1
        } else if (!given.defined()) {
            numbers = at::arange(past, past + rows, tokens.options());
        }
        if (learned_positions()) check_range("positions", numbers, -options_.position_offset, options_.max_positions);
        return numbers;
    }
    at::Tensor embed(const at::Tensor& tokens, const at::Tensor& positions, const at::Tensor& segments) const {
        at::Tensor x = at::embedding(tokens_, tokens, options_.padding_id);
        if (project_in_.weight.defined()) x = project_in_(x);
        if (segments.defined()) check_range("segments", segments, 0, options_.segments);
        if (segments_.defined())
            x = x + (segments.defined() ? at::embedding(segments_, segments) : segments_.select(0, 0));
        if (positions_.defined()) x = x + at::embedding(positions_, positions + options_.position_offset);
        return dropped(options_.embedding_norm ? embedding_norm_(x) : x);
    }
    Rotation rotary_angles(const at::Tensor& positions) const {
        if (options_.positions != HuggingFaceOptions::Positions::rotary) return {};
        const auto floats = at::TensorOptions(at::kFloat).device(positions.device());
        const at::Tensor powers =
            at::arange(0, options_.head_dim, 2, floats) / static_cast<double>(options_.head_dim); // [head_dim / 2]
        at::Tensor angles = positions.to(at::kFloat).unsqueeze(-1) * (1 / at::pow(options_.rotary_base, powers));
        angles = (angles.dim() == 2 ? angles.unsqueeze(0) : angles).unsqueeze(1);
        return {angles.cos(), angles.sin()};
    }
    // Added to the scores, [1 or batch, 1, rows, columns]; undefined if everybody sees everybody. The lowest number and
    // not -inf, with which a row that sees nothing would be NaN.
    at::Tensor attention_mask(const at::Tensor& x, std::int64_t past, std::int64_t rows,
                              const at::Tensor& padding) const {
        at::Tensor hidden;
        if (options_.causal && rows > 1)
            hidden = at::ones({rows, past + rows}, x.options().dtype(at::kBool)).triu(past + 1);
        if (padding.defined())
            hidden = hidden.defined() ? hidden.logical_or(padding.unsqueeze(1)) : padding.unsqueeze(1);
        if (!hidden.defined()) return {};
        const at::Tensor mask = at::zeros(hidden.sizes(), x.options().requires_grad(false))
                                    .masked_fill_(hidden, std::numeric_limits<float>::lowest());
        return (mask.dim() == 2 ? mask.unsqueeze(0) : mask).unsqueeze(1);
    }
    // [1 or batch, heads, rows, columns] where there is ALiBi. Beside the lowest number of a mask a bias is nothing.
    at::Tensor with_alibi(const at::Tensor& mask, const at::Tensor& x, std::int64_t columns,
                          const at::Tensor& padding) const {
        if (options_.positions != HuggingFaceOptions::Positions::alibi) return mask;
        const at::Tensor real = padding.defined() ? padding.logical_not() : at::ones({1, columns}, x.options());
        const at::Tensor bias = alibi_bias(real.detach(), options_.heads);
        return mask.defined() ? mask + bias : bias;
    }
    at::Tensor attend(const Layer& layer, const at::Tensor& x, const at::Tensor& mask, const Rotation& rotate,
                      auto&& tapped, auto&& append) const {
        const std::int64_t batch = x.size(0), rows = x.size(1), width = options_.head_dim, kv = options_.kv_heads;
        const auto heads = [&](const at::Tensor& t) { // [batch, heads, rows, width]
            return t.view({batch, rows, -1, width}).transpose(1, 2);
        };
        const at::Tensor query = layer.query(x), key = layer.key(x), value = layer.value(x);
        tapped(Tap::query, query), tapped(Tap::key, key), tapped(Tap::value, value);
        const at::Tensor q = rotate(heads(query)) * layer.scale;
        const auto [k, v] = append(rotate(heads(key)), heads(value));
        // Heads that share keys lie one after another: [batch, kv heads, heads of each * rows, width].
        at::Tensor scores = at::matmul(q.reshape({batch, kv, -1, width}), k.transpose(2, 3));
        scores = scores.view({batch, options_.heads, rows, k.size(2)});
        if (mask.defined()) scores = scores + mask;
        const at::Tensor drawn = at::dropout(at::softmax(scores, -1, value.scalar_type()), options_.attention_dropout,
                                             is_training() && options_.attention_dropout > 0);
        const at::Tensor p = drawn.view({batch, kv, -1, k.size(2)});
        const at::Tensor read = at::matmul(p, v).view({batch, options_.heads, rows, width});
        return layer.out(read.transpose(1, 2).reshape({batch, rows, options_.heads * width}));
    }
    at::Tensor dropped(const at::Tensor& x) const {
        return is_training() && options_.dropout > 0 ? at::dropout(x, options_.dropout, true) : x;
    }
    at::Tensor feed_forward(const Layer& layer, const at::Tensor& x) const {
        if (!options_.gated) return layer.down(activation_(layer.up(x)));
        return layer.down(activation_(layer.gate(x)) * layer.up(x));
    }

    HuggingFaceOptions options_;
    Activation activation_ = nullptr;
    at::Tensor tokens_, positions_, segments_;
    Norm embedding_norm_, final_norm_, transform_norm_;
    Linear project_in_, project_out_, transform_, head_;
    std::vector<Layer> layers_;
    NamedWeights weights_;
};
TORCH_MODULE(HuggingFaceLm);

/// Everything in a model's options that says what is computed with its weights.
inline std::string options_text(const HuggingFaceLmImpl& model) {
    const auto& o = model.options();
    std::string widths;
    for (const std::int64_t n : o.ffn_dims) widths += text(' ', n);
    return text(o.model_type, ' ', o.vocab_size, ' ', o.dim, ' ', o.ffn_dim, ' ', o.layers, ' ', o.heads, ' ',
                o.input_dim, ' ', o.kv_heads, ' ', o.head_dim, ' ', o.max_positions, ' ', static_cast<int>(o.positions),
                ' ', o.position_offset, ' ', o.rotary_base, ' ', o.segments, ' ', o.causal, o.norm_first, o.rms_norm,
                o.norm_weights, ' ', o.norm_epsilon, ' ', o.embedding_norm, o.final_norm, o.attention_bias, o.ffn_bias,
                o.gated, ' ', o.activation, ' ', o.attention_scale, ' ', o.attention_scale_layer, o.head_transform,
                o.head_bias, o.tied_head, o.parallel ? " parallel" : "", widths);
}

} // namespace mnemo::nn
