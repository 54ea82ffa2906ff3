// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/loss/nll.hpp>
#include <mnemo/nn/hugging_face_lm.hpp>
#include <mnemo/nn/side_network.hpp>
#include <mnemo/papers/long_mem.hpp>

#include <ATen/CPUGeneratorImpl.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace mnemo::nn {

/// The published backbone's options: ALiBi, parallel blocks behind one norm, tanh GELU, an output matrix of its own
/// with a bias. With other positions all else is the same; keys are remembered as they are before a rotation.
inline HuggingFaceOptions
long_mem_backbone_options(std::int64_t vocab_size, std::int64_t dim, std::int64_t layers, std::int64_t heads,
                          HuggingFaceOptions::Positions positions = HuggingFaceOptions::Positions::alibi) {
    HuggingFaceOptions o;
    o.model_type = "newgpt";
    o.vocab_size = vocab_size, o.dim = o.input_dim = dim, o.ffn_dim = 4 * dim, o.layers = layers;
    o.heads = o.kv_heads = heads;
    if (heads < 1 || dim % heads != 0) fail("backbone, heads: expected a divisor of ", dim, ", got ", heads);
    o.head_dim = dim / heads;
    o.max_positions = long_mem_knobs::segment;
    o.positions = positions;
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

/// A backbone with random weights, to be trained: normal with `spread`, norms at one, biases at zero. The draws depend
/// on the seed alone.
inline HuggingFaceLm random_backbone(const HuggingFaceOptions& options, double spread, std::uint64_t seed) {
    auto generator = at::detail::createCPUGenerator(seed);
    return HuggingFaceLm(options, [&](const std::string& name, at::IntArrayRef shape) {
        if (shape.size() > 1) return at::randn(shape, generator) * spread;
        return name.find("weight") != std::string::npos ? at::ones(shape) : at::zeros(shape);
    });
}

/// How a side network begins.
enum class SideStart {
    /// As published: layer i is the backbone's layer reduction * i + 1. What the layers add comes on top of what the
    /// backbone added already, which much training has to undo. Retrieval layers of reduction * i + 1 are aligned.
    published,
    /// Layer i is the backbone's layer reduction * i, whose input it shares, the memory layer the retrieval layer; none
    /// adds anything but that one, so that the model begins as its backbone and what is recalled. With a retrieval
    /// layer of reduction * i the queries are the backbone's own: they find what it would have attended to.
    quiet
};

/// The side network's start from the backbone's layers; gates are at one half. Of a backbone that is not the published
/// kind the side network takes what it has a place for: no biases of attention, and of blocks in sequence the first
/// norm.
inline SideNetwork side_network_from(const HuggingFaceLm& backbone, std::int64_t reduction,
                                     std::int64_t retrieval_layer, SideStart start = SideStart::published,
                                     bool reference = false) {
    const auto& o = backbone->options();
    if (reduction < 1 || o.layers % reduction != 0)
        fail("side network: expected a layer reduction that divides ", o.layers, " layers, got ", reduction);
    if (retrieval_layer < 0 || retrieval_layer >= o.layers)
        fail("side network: expected a retrieval layer of 0 to ", o.layers - 1, ", got ", retrieval_layer);
    if (!o.causal || o.kv_heads != o.heads || o.heads * o.head_dim != o.dim || o.input_dim != o.dim || o.gated ||
        o.rms_norm || !o.norm_weights || !o.norm_first || !o.final_norm)
        fail("side network: a ", o.model_type, " backbone has no weights for its layers; give them yourself");
    SideNetworkOptions side{.dim = o.dim, .ffn_dim = o.ffn_dim, .heads = o.heads, .layers = o.layers / reduction};
    side.memory_layer = retrieval_layer / reduction, side.reference = reference;
    const bool quiet = start == SideStart::quiet;
    const auto find = [&](const std::string& wanted) {
        for (const auto& [name, tensor] : backbone->weights())
            if (name == wanted) return tensor.detach();
        if (wanted.find(".bias") != std::string::npos) return at::Tensor(); // the backbone has none
        fail("side network: expected a weight `", wanted, "` of the backbone, got none");
    };
    return SideNetwork(side, [&](const std::string& name, at::IntArrayRef shape) {
        if (name.find("memory_bias") != std::string::npos) return at::zeros(shape);
        const std::string suffix = name.substr(name.rfind('.'));
        if (name.rfind("layer_norm", 0) == 0) {
            if (!quiet) return find("final_norm" + suffix);
            // What comes in is normed already and weighted: its mean and spread are kept, the weights not taken twice.
            const at::Tensor weight = find("final_norm.weight"), bias = find("final_norm.bias");
            const double mean = bias.mean().item<double>();
            const double square = (weight * weight + bias * bias).mean().item<double>();
            return at::full(shape, suffix == ".bias" ? mean : std::sqrt(square - mean * mean));
        }
        const std::size_t end = name.find('.', 7);
        const std::int64_t layer = std::stoll(name.substr(7, end - 7));
        const std::int64_t from = !quiet                       ? reduction * layer + (reduction > 1 ? 1 : 0)
                                  : layer == side.memory_layer ? retrieval_layer
                                                               : reduction * layer;
        const std::string part = name.substr(end + 1, name.rfind('.') - end - 1);
        const std::string own = part == "self_attn.q_proj"     ? "query"
                                : part == "self_attn.k_proj"   ? "key"
                                : part == "self_attn.v_proj"   ? "value"
                                : part == "self_attn.out_proj" ? "out"
                                : part == "fc1"                ? "up"
                                : part == "fc2"                ? "down"
                                                               : "norm1";
        if (quiet && (own == "down" || (own == "out" && layer != side.memory_layer))) return at::zeros(shape);
        const at::Tensor weight = find(text("layers.", from, ".", own, suffix));
        return weight.defined() ? weight : at::zeros(shape);
    });
}

/// A frozen backbone, its side network and their banks. Backbones are models of HuggingFaceLm with as many key heads
/// as query heads. The backbone's vocabulary product is not computed; its gradients neither. BanksT is a LongMemBanks
/// of any element type and retriever.
template <class BanksT = LongMemBanks<>> class LongMem {
  public:
    using Banks = BanksT;

    LongMem(HuggingFaceLm backbone, SideNetwork side, std::int64_t reduction, std::int64_t retrieval_layer,
            BanksT banks)
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
    /// reads, [batch, rows, dim]. The segment is remembered by `remember`, after the backward pass. `documents`, one a
    /// token, says where texts end; what belongs to another document is not recalled.
    at::Tensor forward(const at::Tensor& tokens, const at::Tensor& mask = {}, std::vector<index_t> documents = {}) {
        return read(tokens, mask, std::move(documents), nullptr);
    }

    /// What was read of a segment so far, for reading it token by token.
    struct Caches {
        KeyValueCache backbone{}, side{};
    };
    /// As forward; tokens continue what `caches` has read of their segment.
    at::Tensor read(const at::Tensor& tokens, const at::Tensor& mask, std::vector<index_t> documents, Caches* caches) {
        std::vector<at::Tensor> states;
        {
            const at::NoGradGuard frozen;
            TokenInfo info;
            info.mask = mask;
            states = backbone_->states(tokens, taps_, caches != nullptr ? &caches->backbone : nullptr, info);
        }
        const bool goes_on = caches != nullptr && caches->side.length() > 0;
        const auto keep = [&](at::Tensor& kept) {
            const at::Tensor own = flat(states.back());
            kept = goes_on ? at::cat({kept, own}) : own;
            states.pop_back();
        };
        keep(values_), keep(keys_);
        const std::vector<index_t> own_documents = documents; // of these tokens; documents_ are the segment's
        if (!goes_on) documents_.clear();
        documents_.insert(documents_.end(), documents.begin(), documents.end());
        real_.clear();
        if (mask.defined()) {
            const at::Tensor real = mask.ne(0).to(at::kByte).contiguous();
            real_.assign(real.data_ptr<std::uint8_t>(), real.data_ptr<std::uint8_t>() + real.numel());
        }
        return side_->forward(
            states, mask,
            [&](const at::Tensor& queries) {
                const at::Tensor rows = queries.contiguous();
                const auto reading = c10::make_intrusive<ReadingOf<typename BanksT::Ring>>();
                reading->filled_to = banks_.filled_to();
                for (auto& r : banks_.recall(as_rows(rows), own_documents))
                    reading->add(*r.ring, std::move(r.hits), r.first, r.rows);
                last_ = reading;
                return reading;
            },
            caches != nullptr ? &caches->side : nullptr);
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
    BanksT& banks() { return banks_; }
    const LongMemOptions& options() const { return banks_.options(); }
    /// What the last segment recalled; it may be null.
    const SharedReading& last_reading() const { return last_; }

  private:
    static at::Tensor flat(const at::Tensor& t) { return t.reshape({-1, t.size(-1)}).contiguous(); }

    HuggingFaceLm backbone_;
    SideNetwork side_;
    BanksT banks_;
    std::vector<Tap> taps_;
    at::Tensor keys_, values_; // of the last segment, [batch * rows, dim]
    std::vector<std::uint8_t> real_;
    std::vector<index_t> documents_;
    SharedReading last_;
};

/// How a text is read in order, one row.
struct LongMemReading {
    index_t segment = long_mem_knobs::segment; // tokens
    std::int32_t before = 2;                   // stands before the first token
    bool remember = true;                      // false: the memory is read and stays as it is
    bool tail = true;                          // the last, shorter segment is read, too
};
/// Reads a text segment by segment through the memory, without gradients; `each(first, log_p)` gets the
/// log-probabilities of tokens [first, first + log_p.size()). For texts that only fill the memory, too.
template <class BanksT>
Perplexity read_text(LongMem<BanksT>& model, std::span<const std::int32_t> text, const LongMemReading& options,
                     auto&& each) {
    if (options.segment < 1) fail("LongMem: expected a segment of at least 1 token, got ", options.segment);
    if (model.banks().batch() != 1) fail("LongMem: expected a batch of 1, got ", model.banks().batch());
    const at::NoGradGuard no_grad;
    model.side().ptr()->eval();
    Perplexity sum;
    const auto n = static_cast<index_t>(text.size());
    for (index_t first = 0; first < n; first += options.segment) {
        const index_t size = std::min(options.segment, n - first);
        if (size < options.segment && !options.tail) break;
        const at::Tensor targets = at::empty({1, size}, at::kLong), tokens = at::empty({1, size}, at::kLong);
        std::copy_n(text.begin() + first, size, targets.data_ptr<std::int64_t>());
        tokens.data_ptr<std::int64_t>()[0] = first == 0 ? options.before : text[static_cast<std::size_t>(first - 1)];
        std::copy_n(text.begin() + first, size - 1, tokens.data_ptr<std::int64_t>() + 1);
        const at::Tensor log_p = model.log_prob_target(model.forward(tokens), targets).contiguous();
        const std::span<const float> values(log_p.data_ptr<float>(), static_cast<std::size_t>(size));
        sum.add(values);
        each(first, values);
        if (options.remember) model.remember();
    }
    return sum;
}
template <class BanksT>
Perplexity read_text(LongMem<BanksT>& model, std::span<const std::int32_t> text, const LongMemReading& options = {}) {
    return read_text(model, text, options, [](index_t, std::span<const float>) {});
}

/// Decodes token by token with memory: the same numbers as segment by segment. A segment is remembered when it is full.
/// The model's banks are used; one decoder at a time.
template <class BanksT = LongMemBanks<>> class LongMemDecoder {
  public:
    explicit LongMemDecoder(LongMem<BanksT>& model, index_t segment = long_mem_knobs::segment)
        : model_(&model), segment_(segment) {
        if (segment < 1) fail("LongMem: expected a segment of at least 1 token, got ", segment);
        if (model.banks().batch() != 1) fail("LongMem: expected a batch of 1, got ", model.banks().batch());
        model.side().ptr()->eval();
    }
    /// Log-probabilities [vocab_size] of what follows one more token.
    at::Tensor step(std::int32_t token) {
        const at::NoGradGuard no_grad;
        if (caches_.side.length() == segment_) end_segment();
        const at::Tensor tokens = at::full({1, 1}, token, at::kLong);
        const at::Tensor states = model_->read(tokens, {}, {}, &caches_);
        return at::log_softmax(model_->logits(states), -1).view({-1});
    }
    /// Remembers the segment as far as it is read, and begins another.
    void end_segment() {
        if (caches_.side.length() == 0) return;
        model_->remember();
        caches_.backbone.reset(), caches_.side.reset();
    }

  private:
    LongMem<BanksT>* model_;
    index_t segment_;
    typename LongMem<BanksT>::Caches caches_;
};

} // namespace mnemo::nn
