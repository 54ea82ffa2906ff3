// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/nn/hugging_face.hpp>
#include <mnemo/nn/knowledge_encoder.hpp>
#include <mnemo/nn/plug_lm.hpp>

#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace mnemo::nn {

/// What a PlugLm is built from: BERT's options and those of its memory layers.
struct PlugLmConfig {
    HuggingFaceOptions bert;
    PlugLmOptions memory;
};

/// `model_args` of the reference's config.json, or a plain config of BERT's fields and the memory's. Fields that are
/// not known are left out, as the reference does; those that ask for what does not exist are errors.
inline PlugLmConfig plug_lm_config(const nlohmann::json& config, const std::string& where) {
    const bool nested = config.is_object() && config.contains("model_args");
    const std::string place = nested ? where + ": model_args" : where;
    detail::ConfigFields fields(JsonObject(nested ? config["model_args"] : config, place));
    PlugLmConfig out;
    out.bert = detail::bert_options(fields);
    out.bert.model_type = "bert";
    out.bert.dropout = fields.number("hidden_dropout_prob", 0.1);
    out.bert.attention_dropout = fields.number("attention_probs_dropout_prob", 0.1);
    auto& m = out.memory;
    m.memory_layers = fields.integer("num_memory_layers", 6); // the reference's class, not its script
    m.memory_ffn_dim = fields.integer("memory_layer_ffn_dim", m.memory_ffn_dim);
    m.memory_k = fields.integer("memory_k", m.memory_k);
    m.query_size = fields.integer("query_size", m.query_size);
    m.query_batchnorm = fields.flag("query_batchnorm", true);
    m.fix_keys = fields.flag("fix_keys"), m.fix_values = fields.flag("fix_values");
    const std::string type = fields.string("knowledge_attention_type", "multi_head");
    m.attention = KnowledgeAttentionType::multi_head;
    while (name(m.attention) != type) {
        if (m.attention == KnowledgeAttentionType::single_head)
            fields.wrong("knowledge_attention_type", "\"multi_head\", \"sentence_level\" or \"single_head\"");
        m.attention = static_cast<KnowledgeAttentionType>(static_cast<int>(m.attention) + 1);
    }
    // Ours; the reference's files do not have it and were trained with the other merge.
    const std::string merge = fields.string("knowledge_head_merge", "reference");
    if (merge != "reference" && merge != "per_token")
        fields.wrong("knowledge_head_merge", "\"reference\" or \"per_token\"");
    m.merge = merge == "reference" ? HeadMerge::reference : HeadMerge::per_token;
    for (const char* field : {"memory_pooler_type", "document_encoder_pooler_type"})
        if (fields.string(field, "attentive") != "attentive") fields.wrong(field, "\"attentive\"");
    if (fields.string("document_encoder_type", "word_embedding") != "word_embedding")
        fields.wrong("document_encoder_type", "\"word_embedding\"");
    m.check();
    return out;
}

/// A config.json that plug_lm_config and the reference read.
inline nlohmann::json plug_lm_json(const PlugLmConfig& config) {
    const auto& b = config.bert;
    const auto& m = config.memory;
    const nlohmann::json model = {{"model_type", "bert"},
                                  {"vocab_size", b.vocab_size},
                                  {"hidden_size", b.dim},
                                  {"num_hidden_layers", b.layers},
                                  {"num_attention_heads", b.heads},
                                  {"hidden_act", b.activation},
                                  {"intermediate_size", b.ffn_dim},
                                  {"hidden_dropout_prob", b.dropout},
                                  {"attention_probs_dropout_prob", b.attention_dropout},
                                  {"max_position_embeddings", b.max_positions},
                                  {"type_vocab_size", b.segments},
                                  {"layer_norm_eps", b.norm_epsilon},
                                  {"pad_token_id", 0},
                                  {"num_memory_layers", m.memory_layers},
                                  {"memory_layer_ffn_dim", m.memory_ffn_dim},
                                  {"memory_k", m.memory_k},
                                  {"query_size", m.query_size},
                                  {"query_batchnorm", m.query_batchnorm},
                                  {"knowledge_attention_type", name(m.attention)},
                                  {"knowledge_head_merge", name(m.merge)},
                                  {"memory_pooler_type", "attentive"},
                                  {"document_encoder_pooler_type", "attentive"},
                                  {"document_encoder_type", "word_embedding"},
                                  {"fix_keys", m.fix_keys},
                                  {"fix_values", m.fix_values}};
    return {
        {"data_args", nlohmann::json::object()}, {"model_args", model}, {"training_args", nlohmann::json::object()}};
}

/// How the reference's files call a weight of HuggingFaceLm; layers from `first_memory_layer` on read the memory.
inline std::string plug_lm_name(const std::string& weight, index_t first_memory_layer) {
    const auto& parts = detail::hugging_face_names("bert").parts;
    const std::size_t dot = weight.rfind('.');
    const std::string role = weight.substr(0, dot), suffix = weight.substr(dot);
    if (role == "head") return suffix == ".bias" ? "cls.predictions.bias" : "cls.predictions.decoder.weight";
    if (role == "transform") return "cls.predictions.transform.dense" + suffix;
    if (role == "transform_norm") return "cls.predictions.transform.LayerNorm" + suffix;
    if (role.rfind("layers.", 0) != 0) return "bert." + parts.at(role) + suffix;
    const std::size_t end = role.find('.', 7);
    const std::string layer = role.substr(7, end - 7), part = role.substr(end + 1);
    const bool memory = std::stoll(layer) >= first_memory_layer;
    const std::string name = memory && part == "up"      ? "ffn.0"
                             : memory && part == "down"  ? "ffn.1"
                             : memory && part == "norm2" ? "LayerNorm"
                                                         : parts.at(part);
    return "bert.encoder.layer." + layer + "." + name + suffix;
}

/// BERT whose last layers read a knowledge store beside their feed-forward. All of them read one snapshot, which the
/// caller hands over with each batch, each with queries of its own. Parameters are called as in the reference's files.
class PlugLmImpl : public torch::nn::Module {
  public:
    using Source = SourcedModule::Source;
    /// `mlm_head` false leaves the masked language model's head out, as task models do.
    PlugLmImpl(PlugLmConfig config, const Source& source, bool mlm_head = true) : config_(std::move(config)) {
        const auto& m = config_.memory;
        HuggingFaceOptions bert = config_.bert;
        m.check();
        if (m.memory_layers > bert.layers)
            fail("num_memory_layers: expected at most ", bert.layers, " layers, got ", m.memory_layers);
        first_ = bert.layers - m.memory_layers;
        bert.padding_id = 0;
        bert.ffn_dims.assign(static_cast<std::size_t>(bert.layers), bert.ffn_dim);
        for (index_t i = first_; i < bert.layers; ++i) bert.ffn_dims[static_cast<std::size_t>(i)] = m.memory_ffn_dim;
        bert.head_transform = bert.head_bias = mlm_head;
        bert.tied_head = !mlm_head; // the reference ties its decoder to an embedding that it then replaces
        host_ = register_module("bert", HuggingFaceLm(bert, [&](const std::string& weight, at::IntArrayRef shape) {
                                    return source(plug_lm_name(weight, first_), shape);
                                }));
        for (const auto& [weight, tensor] : host_->weights()) {
            weights_.emplace_back(plug_lm_name(weight, first_), tensor);
            if (weight == "tokens.weight") embeddings_.words = tensor;
            if (weight == "segments.weight") embeddings_.segments = tensor;
            if (weight == "positions.weight") embeddings_.positions = tensor;
            if (weight == "embedding_norm.weight") embeddings_.norm_weight = tensor;
            if (weight == "embedding_norm.bias") embeddings_.norm_bias = tensor;
        }
        const auto below = [&](const std::string& prefix) -> Source {
            return [this, &source, prefix](const std::string& n, at::IntArrayRef s) {
                at::Tensor t = source(prefix + n, s);
                (n.find("running_") != n.npos ? buffers_ : weights_).emplace_back(prefix + n, t);
                return t;
            };
        };
        for (index_t i = first_; i < bert.layers; ++i) {
            const std::string prefix = text("bert.encoder.layer.", i, ".memory_layer.");
            memory_.push_back(
                register_module(text("memory_layer_", i), MemoryLayer(bert.dim, bert.heads, m, below(prefix))));
            if (m.query_batchnorm)
                buffers_.emplace_back(prefix + "batch_norm.num_batches_tracked", memory_.back()->batches());
        }
        if (m.memory_layers > 0 && !(m.fix_keys && m.fix_values)) {
            embeddings_.epsilon = bert.norm_epsilon;
            embeddings_.sparse_gradient = true;
            encoder_ = register_module("retriever",
                                       KnowledgeEncoder(embeddings_, m.query_size, below("bert.encoder.retriever."),
                                                        m.fix_keys, m.fix_values));
        }
    }

    struct Output {
        at::Tensor hidden;  // [B, T, d]
        at::Tensor prehead; // [B, T, d], what mlm_logits takes; undefined without that head
        std::vector<MemoryLayerImpl::Output> layers;
    };
    /// tokens Long [B, T]. Entries are found by the keys that are stored, however old; what they say is encoded anew,
    /// with gradient, from the documents of `knowledge` where keys or values are not fixed.
    template <Knowledge K, class RetrieverT>
    Output forward(const at::Tensor& tokens, const TokenInfo& info, const K& knowledge, const RetrieverT& retriever) {
        Output out;
        const at::Tensor mask = info.mask.defined() ? info.mask : at::ones_like(tokens);
        std::function<at::Tensor(const at::Tensor&)> dropout, attention_dropout;
        if (is_training() && config_.bert.dropout > 0)
            dropout = [p = config_.bert.dropout](const at::Tensor& x) { return at::dropout(x, p, true); };
        if (is_training() && config_.bert.attention_dropout > 0)
            attention_dropout = [p = config_.bert.attention_dropout](const at::Tensor& x) {
                return at::dropout(x, p, true);
            };
        std::function<std::pair<at::Tensor, at::Tensor>(const Hits&)> encode;
        if (reencodes()) encode = [&](const Hits& hits) { return encoded(knowledge, hits, dropout); };
        std::vector<Tap> taps = {{Tap::hidden, config_.bert.layers}};
        if (host_->options().head_transform) taps.push_back({Tap::prehead, 0});
        const auto states =
            host_->states(tokens, taps, nullptr, info, [&](std::int64_t layer, const at::Tensor& in) -> at::Tensor {
                if (layer < first_) return {};
                auto& reader = memory_[static_cast<std::size_t>(layer - first_)];
                out.layers.push_back(reader->forward(in, mask, knowledge, retriever, encode, attention_dropout));
                return out.layers.back().read.hidden;
            });
        out.hidden = states[0];
        if (states.size() > 1) out.prehead = states[1];
        return out;
    }

    /// prehead [..., d] -> [..., vocab_size].
    at::Tensor mlm_logits(const at::Tensor& prehead) const { return host_->logits(prehead); }
    /// Mean cross-entropy over the positions of labels Long [B, T] that are not `ignore`; 0 if there are none. Logits
    /// exist for those only.
    at::Tensor mlm_loss(const at::Tensor& prehead, const at::Tensor& labels, std::int64_t ignore = -1) const {
        const at::Tensor chosen = labels.reshape(-1).ne(ignore).nonzero().squeeze(1);
        const at::Tensor rows = prehead.reshape({-1, prehead.size(-1)}).index_select(0, chosen);
        if (chosen.size(0) == 0) return rows.sum();
        return at::cross_entropy_loss(mlm_logits(rows), labels.reshape(-1).index_select(0, chosen));
    }

    const PlugLmConfig& config() const { return config_; }
    const HuggingFaceLm& host() const { return host_; }
    std::vector<MemoryLayer>& memory_layers() { return memory_; }
    /// Empty where keys and values are fixed.
    const KnowledgeEncoder& encoder() const { return encoder_; }
    /// Every parameter under the reference's name, aliases once.
    const NamedWeights& weights() const { return weights_; }
    /// Batch norm's running numbers and counts.
    const NamedWeights& running() const { return buffers_; }
    /// Reads stored keys and values from now on, or encodes them anew again (needs an encoder).
    void read_stored(bool stored) {
        if (!stored && encoder_.is_empty()) fail("PlugLm: expected an encoder, got a model of fixed keys and values");
        stored_ = stored;
    }
    bool reencodes() const { return !encoder_.is_empty() && !stored_; }

  private:
    std::pair<at::Tensor, at::Tensor> encoded(const Knowledge auto& knowledge, const Hits& hits,
                                              const std::function<at::Tensor(const at::Tensor&)>& dropout) const {
        const auto& m = config_.memory;
        const index_t b = hits.rows(), k = b == 0 ? 0 : static_cast<index_t>(hits.ids(0).size());
        if (k == 0) return {at::zeros({b, 0, m.query_size}), at::zeros({b, 0, config_.bert.dim})};
        const auto length = static_cast<index_t>(knowledge.document(hits.ids(0)[0]).size());
        if (length == 0) fail("PlugLm: expected knowledge with its documents, which are encoded anew; it has none");
        const at::Tensor ids = at::empty({b * k, length}, at::kLong);
        auto* to = ids.data_ptr<std::int64_t>();
        at::Tensor keys = m.fix_keys ? at::empty({b, k, m.query_size}) : at::Tensor();
        for (index_t i = 0; i < b; ++i) {
            expect_equal("PlugLm: hits of a query", static_cast<index_t>(hits.ids(i).size()), k);
            for (index_t j = 0; j < k; ++j) {
                const index_t row = hits.ids(i)[static_cast<std::size_t>(j)];
                for (const std::uint16_t id : knowledge.document(row)) *to++ = id;
                if (m.fix_keys)
                    convert(knowledge.key(row), std::span<float>(keys.data_ptr<float>() + (i * k + j) * m.query_size,
                                                                 static_cast<std::size_t>(m.query_size)));
            }
        }
        const auto fresh = encoder_->forward(ids, dropout);
        if (!m.fix_keys) keys = fresh.key.view({b, k, -1});
        return {keys, fresh.value.view({b, k, -1})};
    }

    PlugLmConfig config_;
    index_t first_ = 0;
    HuggingFaceLm host_{nullptr};
    std::vector<MemoryLayer> memory_;
    DocumentEmbeddings embeddings_;
    KnowledgeEncoder encoder_{nullptr};
    NamedWeights weights_, buffers_;
    bool stored_ = false;
};
TORCH_MODULE(PlugLm);

/// Weights at random as the reference starts: N(0, 0.02), zero biases, norms and `beta` at 1, the first map of a memory
/// layer's feed-forward as PyTorch makes linear layers, and padding's embedding at zero. LibTorch's generator.
inline PlugLmImpl::Source fresh_plug_lm(double deviation = 0.02) {
    return [deviation](const std::string& name, at::IntArrayRef shape) -> at::Tensor {
        const torch::NoGradGuard no_grad;
        const auto has = [&](const char* part) { return name.find(part) != name.npos; };
        const bool bias = name.size() > 5 && name.compare(name.size() - 5, 5, ".bias") == 0;
        if (has("ffn.0.")) {
            const double fan_in = bias ? 0 : static_cast<double>(shape[1]);
            // The bias of that layer is drawn as well; its fan-in is not in its shape, so it starts at zero here.
            return bias ? at::zeros(shape) : at::empty(shape).uniform_(-1 / std::sqrt(fan_in), 1 / std::sqrt(fan_in));
        }
        if (bias || has("running_mean")) return at::zeros(shape);
        if (has("LayerNorm") || has("batch_norm") || has("beta")) return at::ones(shape);
        at::Tensor t = at::empty(shape).normal_(0, deviation);
        if (has("word_embeddings")) t[0].zero_();
        return t;
    };
}

/// Weights of a folder (safetensors): a PlugLM checkpoint, or any BERT, where `otherwise` gives what it has not: the
/// memory's parts, and a decoder, for which the word embedding is copied if the file was saved with tied weights.
/// Without `otherwise` a missing tensor is an Error that names it.
inline PlugLmImpl::Source plug_lm_from_folder(std::shared_ptr<const TensorFolder> folder,
                                              PlugLmImpl::Source otherwise = {}) {
    return [folder = std::move(folder), otherwise = std::move(otherwise)](const std::string& name,
                                                                          at::IntArrayRef shape) -> at::Tensor {
        const std::string words = "bert.embeddings.word_embeddings.weight";
        std::vector<std::string> names = {name};
        if (name.rfind("bert.", 0) == 0) names.push_back(name.substr(5)); // of a bare model
        for (std::size_t i = 0, n = names.size(); i < n; ++i)             // as old files call them
            if (const std::size_t at = names[i].rfind("LayerNorm."); at != std::string::npos)
                names.push_back(names[i].substr(0, at) + (name.back() == 't' ? "LayerNorm.gamma" : "LayerNorm.beta"));
        if (name == "cls.predictions.decoder.weight") names.insert(names.end(), {words, words.substr(5)});
        if (name == "cls.predictions.bias") names.push_back("cls.predictions.decoder.bias");
        for (const std::string& candidate : names) {
            const Entry* entry = folder->find(candidate);
            if (entry == nullptr) continue;
            if (at::IntArrayRef(entry->shape) != shape)
                fail(folder->folder(), ": tensor ", in_quotes(candidate), ": expected shape ", shape_text(shape),
                     ", got ", shape_text(entry->shape));
            auto values = folder->values<float>(candidate);
            return at::from_blob(values.data(), shape, at::kFloat).clone();
        }
        if (!otherwise) fail(folder->folder(), ": expected a tensor ", in_quotes(name), ", got none of that name");
        return otherwise(name, shape);
    };
}

} // namespace mnemo::nn
