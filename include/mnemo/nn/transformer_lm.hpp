// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/nn/adaptive_softmax.hpp>
#include <mnemo/nn/key_value_cache.hpp>
#include <mnemo/nn/tap.hpp>

#include <limits>

namespace mnemo::nn {

/// A fairseq `transformer_lm`; fairseq's name of a field stands behind it where it differs. The defaults are a small
/// model for training from scratch.
struct TransformerLmOptions {
    TORCH_ARG(std::int64_t, vocab_size) = 0;
    TORCH_ARG(std::int64_t, dim) = 128;            // decoder_embed_dim
    TORCH_ARG(std::int64_t, input_dim) = 0;        // decoder_input_dim; 0: dim
    TORCH_ARG(std::int64_t, output_dim) = 0;       // decoder_output_dim; 0: dim
    TORCH_ARG(std::int64_t, ffn_dim) = 512;        // decoder_ffn_embed_dim
    TORCH_ARG(std::int64_t, layers) = 3;           // decoder_layers
    TORCH_ARG(std::int64_t, heads) = 4;            // decoder_attention_heads
    TORCH_ARG(std::string, activation) = "relu";   // activation_fn: relu, gelu, gelu_accurate, gelu_fast, tanh, linear
    TORCH_ARG(std::int64_t, max_positions) = 1024; // max_target_positions; sinusoids go on beyond it
    TORCH_ARG(bool, positions) = true;             // not no_token_positional_embeddings
    TORCH_ARG(bool, learned_positions) = false;    // decoder_learned_pos
    TORCH_ARG(bool, scale_embedding) = true;       // not no_scale_embedding
    TORCH_ARG(bool, layernorm_embedding) = false;
    TORCH_ARG(bool, final_norm) = true;       // not no_decoder_final_norm
    TORCH_ARG(bool, share_embeddings) = true; // share_decoder_input_output_embed; without adaptive softmax only
    TORCH_ARG(bool, adaptive_input) = false;
    TORCH_ARG(std::vector<std::int64_t>, adaptive_input_cutoff);
    TORCH_ARG(double, adaptive_input_factor) = 4;
    TORCH_ARG(std::vector<std::int64_t>, adaptive_softmax_cutoff); // empty: a plain softmax
    TORCH_ARG(double, adaptive_softmax_factor) = 4;
    TORCH_ARG(bool, tie_adaptive_weights) = false;
    TORCH_ARG(bool, tie_adaptive_proj) = false;
    TORCH_ARG(double, dropout) = 0; // of embeddings, attention output and feed-forward output, in training
    TORCH_ARG(std::int64_t, pad) = 1;
    TORCH_ARG(std::int64_t, softmax_batch) = 256; // rows whose logits exist at a time
};

/// Block of the decoder: x += out(attention(norm(x))); x += fc2(act(fc1(norm(x)))).
class TransformerLayerImpl : public torch::nn::Module {
  public:
    explicit TransformerLayerImpl(const TransformerLmOptions& o)
        : heads_(o.heads()), dropout_(o.dropout()), activation_(activation(o.activation())) {
        const std::int64_t d = o.dim();
        attention_norm_ = norm("self_attn_layer_norm", d);
        qkv_ = linear("qkv_proj", 3 * d, d, 2 * d); // three [d, d] maps in one: the bound is theirs
        out_ = linear("out_proj", d, d, 2 * d);
        ffn_norm_ = norm("final_layer_norm", d);
        fc1_ = linear("fc1", o.ffn_dim(), d, o.ffn_dim() + d);
        fc2_ = linear("fc2", d, o.ffn_dim(), o.ffn_dim() + d);
    }

    /// x + attention; `mask` [1 or batch * heads, rows, columns] is added to the scores. `append(k, v)` may put earlier
    /// keys and values before those of x.
    at::Tensor attend(const at::Tensor& x, const at::Tensor& mask, auto&& append) const {
        const std::int64_t batch = x.size(0), rows = x.size(1), d = x.size(2), width = d / heads_;
        const at::Tensor h = at::layer_norm(x, {d}, attention_norm_.weight, attention_norm_.bias, 1e-5);
        const at::Tensor qkv = at::linear(h, qkv_.weight, qkv_.bias)
                                   .view({batch, rows, 3, heads_, width})
                                   .permute({2, 0, 3, 1, 4})
                                   .contiguous(); // [3, batch, heads, rows, width]
        const auto [k, v] = append(qkv[1], qkv[2]);
        const std::int64_t columns = k.size(2), products = batch * heads_;
        const at::Tensor scores = at::baddbmm(
            mask.expand({products, rows, columns}), qkv[0].view({products, rows, width}),
            k.reshape({products, columns, width}).transpose(1, 2), 1, 1 / std::sqrt(static_cast<double>(width)));
        const at::Tensor read = at::bmm(at::softmax(scores, -1), v.reshape({products, columns, width}));
        const at::Tensor joined = read.view({batch, heads_, rows, width}).transpose(1, 2).reshape({batch, rows, d});
        return x + drop(at::linear(joined, out_.weight, out_.bias));
    }
    /// The feed-forward's input.
    at::Tensor ffn_in(const at::Tensor& x) const {
        return at::layer_norm(x, {x.size(-1)}, ffn_norm_.weight, ffn_norm_.bias, 1e-5);
    }
    /// x + feed-forward(in).
    at::Tensor feed_forward(const at::Tensor& x, const at::Tensor& in) const {
        const at::Tensor h = activation_(at::linear(in, fc1_.weight, fc1_.bias));
        return x + drop(at::linear(h, fc2_.weight, fc2_.bias));
    }

    /// Under fairseq's names; the three projections are parts of one tensor.
    void weights(const std::string& prefix, NamedWeights& out) const {
        const std::int64_t d = out_.weight.size(0);
        const char* parts[] = {"q_proj", "k_proj", "v_proj"};
        for (std::int64_t i = 0; i < 3; ++i)
            named(prefix + "self_attn." + parts[i],
                  {qkv_.weight.detach().narrow(0, i * d, d), qkv_.bias.detach().narrow(0, i * d, d)}, out);
        named(prefix + "self_attn.out_proj", out_, out);
        named(prefix + "self_attn_layer_norm", attention_norm_, out);
        named(prefix + "fc1", fc1_, out);
        named(prefix + "fc2", fc2_, out);
        named(prefix + "final_layer_norm", ffn_norm_, out);
    }

  private:
    struct Affine {
        at::Tensor weight, bias;
    };
    using Activation = at::Tensor (*)(const at::Tensor&);
    static Activation activation(const std::string& name) {
        if (name == "relu") return [](const at::Tensor& x) { return at::relu(x); };
        if (name == "gelu") return [](const at::Tensor& x) { return at::gelu(x); };
        if (name == "gelu_accurate" || name == "gelu_fast")
            return [](const at::Tensor& x) { return at::gelu(x, "tanh"); };
        if (name == "tanh") return [](const at::Tensor& x) { return at::tanh(x); };
        if (name == "linear") return [](const at::Tensor& x) { return x; };
        fail("activation_fn: expected relu, gelu, gelu_accurate, gelu_fast, tanh or linear, got '", name, "'");
    }
    static void named(const std::string& name, const Affine& a, NamedWeights& out) {
        out.emplace_back(name + ".weight", a.weight);
        out.emplace_back(name + ".bias", a.bias);
    }
    Affine norm(const std::string& name, std::int64_t d) {
        return {register_parameter(name + "_weight", at::ones({d})),
                register_parameter(name + "_bias", at::zeros({d}))};
    }
    Affine linear(const std::string& name, std::int64_t out, std::int64_t in, std::int64_t fan) {
        const double bound = std::sqrt(6.0 / static_cast<double>(fan)); // Xavier
        return {register_parameter(name + "_weight", at::empty({out, in}).uniform_(-bound, bound)),
                register_parameter(name + "_bias", at::zeros({out}))};
    }
    at::Tensor drop(const at::Tensor& x) const {
        return dropout_ > 0 && is_training() ? at::dropout(x, dropout_, true) : x;
    }

    std::int64_t heads_;
    double dropout_;
    Activation activation_;
    Affine attention_norm_, qkv_, out_, ffn_norm_, fc1_, fc2_; // qkv_: [3 d, d]
};
TORCH_MODULE(TransformerLayer);

/// The language model of kNN-LM and TRIME: a pre-norm decoder as fairseq's `transformer_lm` computes it, with adaptive
/// input and softmax or plain embeddings. Token ids are Long [batch, rows]; `pad` may stand anywhere: it takes no
/// position and nobody attends to it (states of pads are finite and mean nothing). Calls are const and may run in
/// several threads; run them under torch::NoGradGuard or c10::InferenceMode unless gradients are wanted.
class TransformerLmImpl : public torch::nn::Module {
  public:
    explicit TransformerLmImpl(TransformerLmOptions options) : options_(std::move(options)) {
        auto& o = options_;
        if (o.input_dim() == 0) o.input_dim(o.dim());
        if (o.output_dim() == 0) o.output_dim(o.dim());
        check(o);
        const std::int64_t d = o.dim();
        const auto linear = [this](const char* name, std::int64_t out, std::int64_t in) {
            const double bound = std::sqrt(6.0 / static_cast<double>(in + out)); // Xavier
            return register_parameter(name, at::empty({out, in}).uniform_(-bound, bound));
        };
        const auto table = [this](const char* name, std::int64_t rows, std::int64_t width) {
            return register_parameter(name, at::randn({rows, width}) / std::sqrt(static_cast<double>(width)));
        };
        if (o.adaptive_input()) {
            adaptive_input_ = register_module("adaptive_input", AdaptiveInput(AdaptiveInputOptions()
                                                                                  .vocab_size(o.vocab_size())
                                                                                  .cutoffs(o.adaptive_input_cutoff())
                                                                                  .input_dim(o.input_dim())
                                                                                  .dim(d)
                                                                                  .factor(o.adaptive_input_factor())));
        } else {
            embedding_ = table("embed_tokens", o.vocab_size(), o.input_dim());
            if (o.input_dim() != d) project_in_ = linear("project_in_dim", d, o.input_dim());
        }
        if (o.positions() && o.learned_positions())
            positions_ = table("embed_positions", o.max_positions() + o.pad() + 1, d);
        else if (o.positions())
            positions_ = register_buffer("sinusoids", sinusoids(at::arange(o.max_positions() + o.pad() + 1)));
        if (o.layernorm_embedding()) embedding_norm_ = norm("layernorm_embedding");
        for (std::int64_t i = 0; i < o.layers(); ++i)
            layers_.push_back(register_module(text("layer_", i), TransformerLayer(o)));
        if (o.final_norm()) final_norm_ = norm("layer_norm");
        if (o.output_dim() != d) project_out_ = linear("project_out_dim", o.output_dim(), d);
        if (adaptive_softmax())
            adaptive_softmax_ = register_module("adaptive_softmax",
                                                AdaptiveSoftmax(AdaptiveSoftmaxOptions()
                                                                    .vocab_size(o.vocab_size())
                                                                    .cutoffs(o.adaptive_softmax_cutoff())
                                                                    .dim(o.output_dim())
                                                                    .factor(o.adaptive_softmax_factor())
                                                                    .tie_projections(o.tie_adaptive_proj()),
                                                                o.tie_adaptive_weights() ? adaptive_input_ : nullptr));
        else
            output_ = o.share_embeddings() ? embedding_ : table("embed_out", o.vocab_size(), o.output_dim());
    }

    /// `prehead` [batch, rows, output_dim].
    at::Tensor forward(const at::Tensor& tokens, KeyValueCache* cache = nullptr) const {
        return states(tokens, {Tap{Tap::prehead, 0}}, cache)[0];
    }

    /// The states at `taps`, in their order, [batch, rows, width of the tap]. Nothing behind the last tap is computed.
    /// With a cache `tokens` continue those it has read; it keeps no gradients.
    std::vector<at::Tensor> states(const at::Tensor& tokens, const std::vector<Tap>& taps,
                                   KeyValueCache* cache = nullptr) const {
        if (tokens.dim() != 2 || tokens.scalar_type() != at::kLong || tokens.numel() == 0)
            fail("tokens: expected Long [batch, rows] with at least one token, got ", describe(tokens));
        check_ids("tokens", tokens);
        std::vector<at::Tensor> out(taps.size());
        const auto take = [&](Tap tap, const at::Tensor& x) {
            for (std::size_t i = 0; i < taps.size(); ++i)
                if (taps[i] == tap) out[i] = x;
        };
        // How far anybody asks; a cache wants the keys and values of every layer.
        const std::int64_t last = options_.layers() - 1;
        std::int64_t attended = cache != nullptr ? last : -1, fed = -1;
        bool head = false;
        for (const Tap tap : taps) {
            if (tap.point == Tap::ffn_in) attended = std::max(attended, tap.layer);
            if (tap.point == Tap::hidden) fed = std::max(fed, tap.layer - 1);
            head |= tap.point == Tap::prehead;
        }
        if (head) fed = last;
        attended = std::max(attended, fed);

        const std::int64_t past = cache != nullptr ? cache->length() : 0, rows = tokens.size(1);
        const at::Tensor padding = pads(tokens, cache); // [batch, past + rows], undefined if there is none
        at::Tensor x = embed(tokens, past, padding);
        take({Tap::hidden, 0}, x);
        const at::Tensor mask = attention_mask(x, past, rows, padding);
        for (std::int64_t i = 0; i <= attended; ++i) {
            const auto& layer = *layers_[static_cast<std::size_t>(i)];
            x = layer.attend(x, mask, [&](const at::Tensor& k, const at::Tensor& v) {
                if (cache == nullptr) return std::pair{k, v};
                const at::NoGradGuard no_grad;
                return cache->append(static_cast<std::size_t>(i), k, v);
            });
            const at::Tensor in = layer.ffn_in(x);
            take({Tap::ffn_in, i}, in);
            if (i == attended && i > fed) break;
            x = layer.feed_forward(x, in);
            take({Tap::hidden, i + 1}, x);
        }
        if (cache != nullptr) cache->advance(rows, padding);
        if (head) {
            if (final_norm_.weight.defined())
                x = at::layer_norm(x, {options_.dim()}, final_norm_.weight, final_norm_.bias, 1e-5);
            if (project_out_.defined()) x = at::linear(x, project_out_);
            take({Tap::prehead, 0}, x);
        }
        return out;
    }
    Tap tap(std::string_view name) const { return Tap::parse(name, options_.layers()); }
    std::int64_t width(Tap tap) const { return tap.point == Tap::prehead ? options_.output_dim() : options_.dim(); }

    /// prehead [..., output_dim], targets Long [...] -> log p(target) [...]. An adaptive softmax computes the tails of
    /// the targets only; logits exist for `softmax_batch` rows at a time.
    at::Tensor log_prob_target(const at::Tensor& prehead, const at::Tensor& targets) const {
        if (prehead.sizes().slice(0, static_cast<std::size_t>(prehead.dim()) - 1) != targets.sizes() ||
            targets.scalar_type() != at::kLong)
            fail("targets: expected Long [...] for states [..., ", options_.output_dim(), "], got ", describe(targets),
                 " for ", describe(prehead));
        check_ids("targets", targets);
        const at::Tensor rows = prehead.reshape({-1, options_.output_dim()}), ids = targets.reshape(-1);
        std::vector<at::Tensor> parts;
        for (std::int64_t i = 0; i < rows.size(0) || i == 0; i += options_.softmax_batch()) {
            const std::int64_t n = std::min(options_.softmax_batch(), rows.size(0) - i);
            const at::Tensor states = rows.narrow(0, i, n), t = ids.narrow(0, i, n);
            parts.push_back(adaptive_softmax() ? adaptive_softmax_->log_prob_target(states, t)
                                               : log_prob_of(logits(states), t));
        }
        return (parts.size() == 1 ? parts[0] : at::cat(parts)).view(targets.sizes());
    }
    /// prehead [..., output_dim] -> log-probabilities [..., vocab_size].
    at::Tensor log_prob_all(const at::Tensor& prehead) const {
        return adaptive_softmax() ? adaptive_softmax_->log_prob_all(prehead) : at::log_softmax(logits(prehead), -1);
    }
    /// prehead [..., output_dim] -> logits [..., vocab_size]; an adaptive softmax has none.
    at::Tensor logits(const at::Tensor& prehead) const {
        if (adaptive_softmax()) fail("a model with adaptive softmax has no logits: ask for log-probabilities");
        return at::linear(prehead, output_);
    }
    /// Mean negative log-likelihood of the targets that are not pad, in nats; the training objective.
    at::Tensor loss(const at::Tensor& tokens, const at::Tensor& targets) const {
        const at::Tensor rows = forward(tokens).reshape({-1, options_.output_dim()}), ids = targets.reshape(-1);
        if (!adaptive_softmax()) {
            check_ids("targets", targets);
            return at::cross_entropy_loss(logits(rows), ids, {}, at::Reduction::Mean, options_.pad());
        }
        const at::Tensor real = ids.ne(options_.pad());
        return -(log_prob_target(rows, ids) * real).sum() / real.sum();
    }

    const TransformerLmOptions& options() const { return options_; }
    std::int64_t vocab_size() const { return options_.vocab_size(); }
    std::int64_t max_positions() const { return options_.max_positions(); }
    /// Such as "transformer_lm, 16 layers of 1024".
    std::string description() const {
        return text("transformer_lm, ", options_.layers(), " layers of ", options_.dim());
    }
    bool adaptive_softmax() const { return !options_.adaptive_softmax_cutoff().empty(); }
    const AdaptiveSoftmax& head() const { return adaptive_softmax_; }
    /// The weights behind `prehead` as plain tensors, through which gradients flow.
    OutputLayer output_layer() const {
        return adaptive_softmax() ? adaptive_softmax_->output_layer() : OutputLayer{output_, {}, {}};
    }

    /// Every tensor once, under fairseq's names; parts of one parameter are views, without gradient.
    NamedWeights weights() const {
        const std::string prefix = "decoder.";
        NamedWeights out;
        if (embedding_.defined())
            out.emplace_back(prefix + "embed_tokens.weight", embedding_);
        else
            adaptive_input_->weights(prefix + "embed_tokens.", out);
        if (project_in_.defined()) out.emplace_back(prefix + "project_in_dim.weight", project_in_);
        if (options_.positions() && options_.learned_positions())
            out.emplace_back(prefix + "embed_positions.weight", positions_);
        const auto norm = [&](const char* name, const Norm& n) {
            if (!n.weight.defined()) return;
            out.emplace_back(prefix + name + ".weight", n.weight);
            out.emplace_back(prefix + name + ".bias", n.bias);
        };
        norm("layernorm_embedding", embedding_norm_);
        for (std::size_t i = 0; i < layers_.size(); ++i) layers_[i]->weights(text(prefix, "layers.", i, "."), out);
        norm("layer_norm", final_norm_);
        if (project_out_.defined()) out.emplace_back(prefix + "project_out_dim.weight", project_out_);
        if (adaptive_softmax())
            adaptive_softmax_->weights(prefix + "adaptive_softmax.", out);
        else if (!options_.share_embeddings())
            out.emplace_back(prefix + "embed_out", output_);
        return out;
    }
    /// Names by which files may repeat a tied tensor.
    NamedWeights aliases() const {
        NamedWeights out;
        if (adaptive_softmax())
            adaptive_softmax_->aliases("decoder.adaptive_softmax.", out);
        else if (options_.share_embeddings())
            out.emplace_back("decoder.embed_out", embedding_);
        return out;
    }

    /// The position embeddings that are added to those of `tokens` [batch, rows]: [batch, rows, dim].
    at::Tensor positions(const at::Tensor& tokens) const {
        const auto shape = {tokens.size(0), tokens.size(1), options_.dim()};
        if (!positions_.defined()) return at::zeros(shape);
        return position_rows(tokens, 0, pads(tokens, nullptr)).expand(shape);
    }
    /// Rows of position embeddings for row numbers [...] (pad + 1 is the first token's): half sines, half cosines.
    at::Tensor sinusoids(const at::Tensor& numbers) const {
        const std::int64_t half = options_.dim() / 2;
        const auto float_options = at::TensorOptions(at::kFloat).device(numbers.device());
        const at::Tensor frequencies =
            at::exp(at::arange(half, float_options) * (-std::log(10000.0) / static_cast<double>(half - 1)));
        const at::Tensor angles = numbers.to(at::kFloat).unsqueeze(-1) * frequencies;
        at::Tensor rows = at::cat({angles.sin(), angles.cos()}, -1);
        if (options_.dim() % 2 == 1) rows = at::constant_pad_nd(rows, {0, 1});
        return rows * numbers.ne(options_.pad()).unsqueeze(-1);
    }

  private:
    struct Norm {
        at::Tensor weight, bias;
    };
    Norm norm(const std::string& name) {
        return {register_parameter(name + "_weight", at::ones({options_.dim()})),
                register_parameter(name + "_bias", at::zeros({options_.dim()}))};
    }

    static void check(const TransformerLmOptions& o) {
        const auto positive = [](const char* name, std::int64_t n) {
            if (n < 1) fail(name, ": expected at least 1, got ", n);
        };
        positive("vocab_size", o.vocab_size());
        positive("decoder_embed_dim", o.dim());
        positive("decoder_input_dim", o.input_dim());
        positive("decoder_output_dim", o.output_dim());
        positive("decoder_ffn_embed_dim", o.ffn_dim());
        positive("decoder_layers", o.layers());
        positive("decoder_attention_heads", o.heads());
        positive("max_target_positions", o.max_positions());
        positive("softmax_batch", o.softmax_batch());
        if (o.dim() % o.heads() != 0)
            fail("decoder_attention_heads: expected a divisor of decoder_embed_dim ", o.dim(), ", got ", o.heads());
        if (o.positions() && !o.learned_positions() && o.dim() < 4)
            fail("decoder_embed_dim: expected at least 4 for sinusoidal positions, got ", o.dim());
        if (o.pad() < 0 || o.pad() >= o.vocab_size())
            fail("pad: expected an id below vocab_size ", o.vocab_size(), ", got ", o.pad());
        if (!(o.dropout() >= 0 && o.dropout() < 1)) fail("dropout: expected [0, 1), got ", o.dropout());
        const bool adaptive = !o.adaptive_softmax_cutoff().empty();
        if (o.tie_adaptive_weights()) {
            if (!o.adaptive_input() || !adaptive)
                fail("tie_adaptive_weights: expected adaptive_input and adaptive_softmax_cutoff with it");
            if (o.adaptive_input_cutoff() != o.adaptive_softmax_cutoff())
                fail("tie_adaptive_weights: expected equal adaptive_input_cutoff and adaptive_softmax_cutoff");
            if (o.adaptive_input_factor() != o.adaptive_softmax_factor())
                fail("tie_adaptive_weights: expected equal adaptive factors, got ", o.adaptive_input_factor(), " and ",
                     o.adaptive_softmax_factor());
            if (o.output_dim() != o.dim())
                fail("tie_adaptive_weights: expected decoder_output_dim ", o.dim(), " as decoder_embed_dim, got ",
                     o.output_dim());
        }
        if (o.tie_adaptive_proj() && !o.tie_adaptive_weights())
            fail("tie_adaptive_proj: expected tie_adaptive_weights with it");
        if (!adaptive && o.share_embeddings()) {
            if (o.adaptive_input())
                fail("share_decoder_input_output_embed: expected plain embeddings, got adaptive_input");
            if (o.input_dim() != o.output_dim())
                fail("share_decoder_input_output_embed: expected decoder_output_dim ", o.input_dim(),
                     " as decoder_input_dim, got ", o.output_dim());
        }
    }
    void check_ids(const char* what, const at::Tensor& ids) const {
        if (ids.numel() == 0) return;
        const auto [low, high] = at::aminmax(ids);
        for (const std::int64_t id : {low.item<std::int64_t>(), high.item<std::int64_t>()})
            if (id < 0 || id >= options_.vocab_size())
                fail(what, ": expected ids from 0 to ", options_.vocab_size() - 1, ", got ", id);
    }

    at::Tensor pads(const at::Tensor& tokens, const KeyValueCache* cache) const {
        const KeyValueCache none;
        return (cache != nullptr ? cache : &none)
            ->padding_with(tokens.eq(options_.pad()), tokens.size(0), tokens.size(1));
    }
    at::Tensor embed(const at::Tensor& tokens, std::int64_t past, const at::Tensor& padding) const {
        at::Tensor x = embedding_.defined() ? at::embedding(embedding_, tokens) : adaptive_input_->forward(tokens);
        if (options_.scale_embedding()) x = x * std::sqrt(static_cast<double>(options_.dim()));
        if (project_in_.defined()) x = at::linear(x, project_in_);
        if (positions_.defined()) x = x + position_rows(tokens, past, padding);
        if (embedding_norm_.weight.defined())
            x = at::layer_norm(x, {options_.dim()}, embedding_norm_.weight, embedding_norm_.bias, 1e-5);
        return options_.dropout() > 0 && is_training() ? at::dropout(x, options_.dropout(), true) : x;
    }
    // Row numbers count the tokens that are not pad, from pad + 1; a pad's own is pad. [rows, dim] if there are no
    // pads.
    at::Tensor position_rows(const at::Tensor& tokens, std::int64_t past, const at::Tensor& padding) const {
        const std::int64_t rows = tokens.size(1), first = options_.pad() + 1 + past;
        at::Tensor numbers;
        std::int64_t end = first + rows;
        if (padding.defined()) {
            const at::Tensor real = padding.logical_not().to(at::kLong);
            numbers = (real.cumsum(1) * real + options_.pad()).narrow(1, past, rows);
            end = numbers.max().item<std::int64_t>() + 1;
        }
        if (end <= positions_.size(0))
            return numbers.defined() ? at::embedding(positions_, numbers) : positions_.narrow(0, first, rows);
        if (options_.learned_positions())
            fail("tokens: expected at most ", options_.max_positions(), " in a row (max_target_positions), got ",
                 end - options_.pad() - 1);
        return sinusoids(numbers.defined() ? numbers : at::arange(first, end, tokens.options()));
    }
    // -inf above the diagonal. Pads get the lowest finite number instead: a row that sees only pads would be NaN, and
    // NaN in a value spreads through a weight of 0.
    at::Tensor attention_mask(const at::Tensor& x, std::int64_t past, std::int64_t rows,
                              const at::Tensor& padding) const {
        const std::int64_t columns = past + rows;
        at::Tensor mask = at::zeros({1, rows, columns}, x.options());
        if (rows > 1)
            mask = at::full({1, rows, columns}, -std::numeric_limits<double>::infinity(), x.options()).triu_(past + 1);
        if (!padding.defined()) return mask;
        const at::Tensor hidden =
            at::zeros(padding.sizes(), x.options()).masked_fill_(padding, std::numeric_limits<float>::lowest());
        return (mask + hidden.unsqueeze(1)) // [batch, rows, columns]
            .repeat_interleave(options_.heads(), 0);
    }

    TransformerLmOptions options_;
    AdaptiveInput adaptive_input_{nullptr};
    AdaptiveSoftmax adaptive_softmax_{nullptr};
    at::Tensor embedding_, project_in_, positions_, project_out_, output_;
    Norm embedding_norm_, final_norm_;
    std::vector<TransformerLayer> layers_;
};
TORCH_MODULE(TransformerLm);

} // namespace mnemo::nn
