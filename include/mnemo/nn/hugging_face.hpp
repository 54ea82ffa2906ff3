// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/tensor_folder.hpp>
#include <mnemo/nn/config_fields.hpp>
#include <mnemo/nn/hugging_face_lm.hpp>

#include <cmath>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace mnemo::nn {

// A model folder of the Hugging Face hub holds config.json and model.safetensors, or shards of it with an index.

struct HuggingFaceLoading {
    bool check_finite = false;                  // refuses infinities and NaN in weights: one pass over all of them
    std::set<std::string> ignore_fields = {};   // fields of the config that are unknown and known not to matter
    std::vector<std::string>* unused = nullptr; // gets the names of tensors that the model has no use for
};

namespace detail {

/// How an architecture's files call the weights of HuggingFaceLm.
struct HuggingFaceNames {
    std::vector<std::string> prefixes; // files of the bare model have a shorter one
    std::string layer;                 // before the number
    std::map<std::string, std::string> parts;
    bool input_first = false; // matrices of a layer are [in, out]; query, key and value are parts of one
};

inline const HuggingFaceNames& hugging_face_names(const std::string& model_type) {
    static const std::map<std::string, HuggingFaceNames> all = {{"gpt2",
                                                                 {{"transformer.", ""},
                                                                  "h.",
                                                                  {{"tokens", "wte"},
                                                                   {"positions", "wpe"},
                                                                   {"norm1", "ln_1"},
                                                                   {"query", "attn.c_attn"},
                                                                   {"key", "attn.c_attn"},
                                                                   {"value", "attn.c_attn"},
                                                                   {"out", "attn.c_proj"},
                                                                   {"norm2", "ln_2"},
                                                                   {"up", "mlp.c_fc"},
                                                                   {"down", "mlp.c_proj"},
                                                                   {"final_norm", "ln_f"}},
                                                                  true}},
                                                                {"opt",
                                                                 {{"model.decoder.", "decoder.", ""},
                                                                  "layers.",
                                                                  {{"tokens", "embed_tokens"},
                                                                   {"positions", "embed_positions"},
                                                                   {"norm1", "self_attn_layer_norm"},
                                                                   {"query", "self_attn.q_proj"},
                                                                   {"key", "self_attn.k_proj"},
                                                                   {"value", "self_attn.v_proj"},
                                                                   {"out", "self_attn.out_proj"},
                                                                   {"norm2", "final_layer_norm"},
                                                                   {"up", "fc1"},
                                                                   {"down", "fc2"},
                                                                   {"final_norm", "final_layer_norm"},
                                                                   {"project_in", "project_in"},
                                                                   {"project_out", "project_out"}}}},
                                                                {"bert",
                                                                 {{"bert.", ""},
                                                                  "encoder.layer.",
                                                                  {{"tokens", "embeddings.word_embeddings"},
                                                                   {"positions", "embeddings.position_embeddings"},
                                                                   {"segments", "embeddings.token_type_embeddings"},
                                                                   {"embedding_norm", "embeddings.LayerNorm"},
                                                                   {"query", "attention.self.query"},
                                                                   {"key", "attention.self.key"},
                                                                   {"value", "attention.self.value"},
                                                                   {"out", "attention.output.dense"},
                                                                   {"norm1", "attention.output.LayerNorm"},
                                                                   {"up", "intermediate.dense"},
                                                                   {"down", "output.dense"},
                                                                   {"norm2", "output.LayerNorm"}}}},
                                                                {"llama",
                                                                 {{"model.", ""},
                                                                  "layers.",
                                                                  {{"tokens", "embed_tokens"},
                                                                   {"norm1", "input_layernorm"},
                                                                   {"query", "self_attn.q_proj"},
                                                                   {"key", "self_attn.k_proj"},
                                                                   {"value", "self_attn.v_proj"},
                                                                   {"out", "self_attn.o_proj"},
                                                                   {"norm2", "post_attention_layernorm"},
                                                                   {"gate", "mlp.gate_proj"},
                                                                   {"up", "mlp.up_proj"},
                                                                   {"down", "mlp.down_proj"},
                                                                   {"final_norm", "norm"}}}}};
    return all.at(model_type);
}

/// The weights of a folder, by HuggingFaceLm's names.
class HuggingFaceWeights {
  public:
    HuggingFaceWeights(const TensorFolder& folder, const HuggingFaceOptions& options, const HuggingFaceLoading& loading)
        : folder_(folder), names_(hugging_face_names(options.model_type)), options_(options), loading_(loading) {
        const std::string tokens = names_.parts.at("tokens") + ".weight";
        const auto has = [&](const std::string& prefix) { return folder_.find(prefix + tokens) != nullptr; };
        const auto found = std::find_if(names_.prefixes.begin(), names_.prefixes.end(), has);
        prefix_ = found == names_.prefixes.end() ? names_.prefixes.front() : *found;
    }

    at::Tensor operator()(const std::string& name, at::IntArrayRef shape) {
        const std::size_t dot = name.rfind('.');
        std::string role = name.substr(0, dot), layer, suffix = name.substr(dot);
        if (role.rfind("layers.", 0) == 0) {
            const std::size_t end = role.find('.', 7);
            layer = role.substr(7, end - 7);
            role = role.substr(end + 1);
        }
        if (layer.empty() && (role == "head" || role.rfind("transform", 0) == 0)) return head(role, suffix, shape);
        const std::string file_name =
            prefix_ + (layer.empty() ? "" : names_.layer + layer + ".") + names_.parts.at(role) + suffix;
        if (layer.empty() || !names_.input_first || role.rfind("norm", 0) == 0) return read(file_name, shape);
        // [in, out], and three maps side by side.
        const std::int64_t third = role == "query" ? 0 : role == "key" ? 1 : role == "value" ? 2 : -1;
        auto stored = shape.vec();
        if (third >= 0) stored[0] *= 3;
        std::reverse(stored.begin(), stored.end());
        const at::Tensor whole = read(file_name, stored);
        const at::Tensor part = third < 0 ? whole : whole.narrow(-1, third * shape[0], shape[0]);
        return part.dim() == 2 ? part.t() : part;
    }

    /// A file may repeat a tied tensor, as long as it is the same.
    void check_tied(const at::Tensor& tokens) {
        for (const char* name : {"lm_head.weight", "cls.predictions.decoder.weight"})
            if (options_.tied_head && folder_.find(name) != nullptr && !at::equal(read(name, tokens.sizes()), tokens))
                fail(folder_.folder(), ": tensor ", in_quotes(name),
                     ": expected the same as the tied embedding, got other values");
    }
    std::vector<std::string> unused() const {
        std::vector<std::string> out;
        for (const std::string& name : folder_.names())
            if (!used_.contains(name)) out.push_back(name);
        return out;
    }

  private:
    at::Tensor head(const std::string& role, const std::string& suffix, at::IntArrayRef shape) {
        const std::string bert = "cls.predictions.";
        if (role == "transform") return read(bert + "transform.dense" + suffix, shape);
        if (role == "transform_norm") return read(bert + "transform.LayerNorm" + suffix, shape);
        if (options_.model_type != "bert") return read("lm_head" + suffix, shape);
        const std::string own = bert + "bias", alias = bert + "decoder.bias";
        if (suffix == ".weight") return read(bert + "decoder.weight", shape);
        if (folder_.find(alias) != nullptr) used_.insert(alias);
        return read(folder_.find(own) != nullptr || folder_.find(alias) == nullptr ? own : alias, shape);
    }
    // The tensor as float32, after checking its shape. Old files call the weight and bias of a norm gamma and beta.
    at::Tensor read(std::string name, at::IntArrayRef shape) {
        const std::size_t dot = name.rfind('.');
        const std::string old = name.substr(0, dot) + (name.substr(dot) == ".weight" ? ".gamma" : ".beta");
        if (folder_.find(name) == nullptr && folder_.find(old) != nullptr) name = old;
        const Entry* entry = folder_.find(name);
        if (entry == nullptr)
            fail(folder_.folder(), ": expected a tensor ", in_quotes(name), ", got none of that name");
        if (at::IntArrayRef(entry->shape) != shape)
            fail(folder_.folder(), ": tensor ", in_quotes(name), ": expected shape ", shape_text(shape), ", got ",
                 shape_text(entry->shape));
        if (entry->dtype != "F32" && entry->dtype != "F16" && entry->dtype != "BF16" && entry->dtype != "F64")
            fail(folder_.folder(), ": tensor ", in_quotes(name), ": expected F32, F16, BF16 or F64, got ",
                 entry->dtype);
        used_.insert(name);
        auto& shared = read_[name]; // the parts of one tensor share its memory
        if (!shared.defined()) {
            auto values = entry->dtype == "F64" ? narrowed(folder_.values<double>(name))
                                                : std::make_shared<std::vector<float>>(folder_.values<float>(name));
            if (loading_.check_finite)
                for (std::size_t i = 0; i < values->size(); ++i)
                    if (!std::isfinite((*values)[i]))
                        fail(folder_.folder(), ": tensor ", in_quotes(name), ": expected finite numbers, got ",
                             static_cast<double>((*values)[i]), " in element ", i);
            shared = at::from_blob(
                values->data(), shape, [values](void*) {}, at::kFloat);
        }
        return shared;
    }
    static std::shared_ptr<std::vector<float>> narrowed(const std::vector<double>& wide) {
        return std::make_shared<std::vector<float>>(wide.begin(), wide.end());
    }

    const TensorFolder& folder_;
    const HuggingFaceNames& names_;
    const HuggingFaceOptions& options_;
    const HuggingFaceLoading& loading_;
    std::string prefix_;
    std::set<std::string> used_;
    std::map<std::string, at::Tensor> read_;
};

/// Fields that every architecture's config may have and that change no number here.
inline void pass_common_fields(ConfigFields& fields) {
    for (const char* field : {"_name_or_path",
                              "architectures",
                              "attn_implementation",
                              "_attn_implementation",
                              "_attn_implementation_autoset",
                              "bad_words_ids",
                              "begin_suppress_tokens",
                              "bos_token_id",
                              "chunk_size_feed_forward",
                              "cross_attention_hidden_size",
                              "decoder_start_token_id",
                              "diversity_penalty",
                              "do_sample",
                              "dtype",
                              "early_stopping",
                              "encoder_no_repeat_ngram_size",
                              "eos_token_id",
                              "exponential_decay_length_penalty",
                              "finetuning_task",
                              "forced_bos_token_id",
                              "forced_eos_token_id",
                              "gradient_checkpointing",
                              "id2label",
                              "initializer_range",
                              "label2id",
                              "length_penalty",
                              "max_length",
                              "min_length",
                              "no_repeat_ngram_size",
                              "num_beam_groups",
                              "num_beams",
                              "num_return_sequences",
                              "output_attentions",
                              "output_hidden_states",
                              "output_scores",
                              "pad_token_id",
                              "prefix",
                              "problem_type",
                              "remove_invalid_values",
                              "repetition_penalty",
                              "return_dict",
                              "return_dict_in_generate",
                              "sep_token_id",
                              "suppress_tokens",
                              "task_specific_params",
                              "temperature",
                              "tf_legacy_loss",
                              "tie_encoder_decoder",
                              "tokenizer_class",
                              "top_k",
                              "top_p",
                              "torch_dtype",
                              "torchscript",
                              "transformers_version",
                              "typical_p",
                              "use_bfloat16",
                              "use_cache"})
        fields.given(field);
    if (fields.flag("is_encoder_decoder")) fields.wrong("is_encoder_decoder", "false");
    if (fields.flag("add_cross_attention")) fields.wrong("add_cross_attention", "false");
    fields.expect_empty("pruned_heads");
    fields.expect_empty("quantization_config");
}

inline HuggingFaceOptions gpt2_options(ConfigFields& fields) {
    HuggingFaceOptions o;
    o.vocab_size = fields.integer("vocab_size");
    o.dim = o.input_dim = fields.integer("n_embd");
    o.ffn_dim = fields.integer("n_inner", 4 * o.dim);
    o.layers = fields.integer("n_layer");
    o.heads = o.kv_heads = fields.integer("n_head");
    o.head_dim = fields.divided("n_head", o.dim, o.heads);
    o.max_positions = fields.integer("n_positions", fields.integer("n_ctx", 1024));
    o.activation = fields.string("activation_function", "gelu_new");
    o.norm_epsilon = fields.number("layer_norm_epsilon", 1e-5);
    if (fields.flag("scale_attn_weights", true)) o.attention_scale = 1 / std::sqrt(static_cast<double>(o.head_dim));
    o.attention_scale_layer = fields.flag("scale_attn_by_inverse_layer_idx");
    o.tied_head = fields.flag("tie_word_embeddings", true);
    for (const char* field :
         {"attn_pdrop", "embd_pdrop", "resid_pdrop", "n_ctx", "reorder_and_upcast_attn", "summary_activation",
          "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj"})
        fields.given(field);
    return o;
}

inline HuggingFaceOptions opt_options(ConfigFields& fields) {
    HuggingFaceOptions o;
    o.vocab_size = fields.integer("vocab_size");
    o.dim = fields.integer("hidden_size");
    o.input_dim = fields.integer("word_embed_proj_dim", o.dim);
    o.ffn_dim = fields.integer("ffn_dim");
    o.layers = fields.integer("num_hidden_layers");
    o.heads = o.kv_heads = fields.integer("num_attention_heads");
    o.head_dim = fields.divided("num_attention_heads", o.dim, o.heads);
    o.max_positions = fields.integer("max_position_embeddings");
    o.positions = HuggingFaceOptions::Positions::learned_by_mask;
    o.position_offset = 2;
    o.activation = fields.string("activation_function", "relu");
    o.attention_scale = 1 / std::sqrt(static_cast<double>(o.head_dim));
    o.norm_first = fields.flag("do_layer_norm_before", true);
    o.final_norm = o.norm_first && !fields.flag("_remove_final_layer_norm");
    o.norm_weights = fields.flag("layer_norm_elementwise_affine", true);
    o.attention_bias = o.ffn_bias = fields.flag("enable_bias", true);
    o.tied_head = fields.flag("tie_word_embeddings", true);
    for (const char* field : {"_remove_final_layer_norm", "activation_dropout", "attention_dropout", "dropout",
                              "init_std", "layerdrop", "output_projection"})
        fields.given(field);
    return o;
}

inline HuggingFaceOptions bert_options(ConfigFields& fields) {
    HuggingFaceOptions o;
    o.vocab_size = fields.integer("vocab_size");
    o.dim = o.input_dim = fields.integer("hidden_size");
    o.ffn_dim = fields.integer("intermediate_size");
    o.layers = fields.integer("num_hidden_layers");
    o.heads = o.kv_heads = fields.integer("num_attention_heads");
    o.head_dim = fields.divided("num_attention_heads", o.dim, o.heads);
    o.max_positions = fields.integer("max_position_embeddings");
    o.segments = fields.integer("type_vocab_size", 2);
    o.activation = fields.string("hidden_act", "gelu");
    o.norm_epsilon = fields.number("layer_norm_eps", 1e-12);
    o.attention_scale = 1 / std::sqrt(static_cast<double>(o.head_dim));
    o.causal = o.norm_first = o.final_norm = false;
    o.embedding_norm = o.head_transform = o.head_bias = true;
    o.tied_head = fields.flag("tie_word_embeddings", true);
    if (fields.flag("is_decoder")) fields.wrong("is_decoder", "false");
    if (fields.string("position_embedding_type", "absolute") != "absolute")
        fields.wrong("position_embedding_type", "\"absolute\"");
    for (const char* field : {"attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout",
                              "directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers",
                              "pooler_size_per_head", "pooler_type"})
        fields.given(field);
    return o;
}

inline HuggingFaceOptions llama_options(ConfigFields& fields) {
    HuggingFaceOptions o;
    o.vocab_size = fields.integer("vocab_size");
    o.dim = o.input_dim = fields.integer("hidden_size");
    o.ffn_dim = fields.integer("intermediate_size");
    o.layers = fields.integer("num_hidden_layers");
    o.heads = fields.integer("num_attention_heads");
    o.kv_heads = fields.integer("num_key_value_heads", o.heads);
    o.head_dim =
        fields.given("head_dim") ? fields.integer("head_dim") : fields.divided("num_attention_heads", o.dim, o.heads);
    o.max_positions = fields.integer("max_position_embeddings", 2048);
    o.positions = HuggingFaceOptions::Positions::rotary;
    o.rotary_base = fields.number("rope_theta", 10000);
    for (const char* field : {"rope_parameters", "rope_scaling"}) {
        if (!fields.given(field)) continue;
        ConfigFields rope = fields.object(field);
        if (rope.string("rope_type", rope.string("type", "default")) != "default")
            rope.wrong("rope_type", "\"default\"");
        o.rotary_base = rope.number("rope_theta", o.rotary_base);
        rope.finish();
    }
    o.activation = fields.string("hidden_act", "silu");
    o.rms_norm = true;
    o.norm_epsilon = fields.number("rms_norm_eps", 1e-6);
    o.attention_scale = 1 / std::sqrt(static_cast<double>(o.head_dim));
    o.attention_bias = fields.flag("attention_bias");
    o.ffn_bias = fields.flag("mlp_bias");
    o.gated = true;
    o.tied_head = fields.flag("tie_word_embeddings");
    for (const char* field : {"attention_dropout", "pretraining_tp"}) fields.given(field);
    return o;
}

} // namespace detail

/// The options that a config's fields stand for. Throws Error for a field of the wrong type, one that asks for
/// something this model does not do, and one that is not known.
inline HuggingFaceOptions hugging_face_options(const nlohmann::json& config, const std::string& where,
                                               const HuggingFaceLoading& loading = {}) {
    detail::ConfigFields fields(JsonObject(config, where));
    const std::string type = fields.string("model_type", "");
    const std::map<std::string, HuggingFaceOptions (*)(detail::ConfigFields&)> known = {
        {"gpt2", detail::gpt2_options},
        {"opt", detail::opt_options},
        {"bert", detail::bert_options},
        {"llama", detail::llama_options}};
    const auto found = known.find(type);
    if (found == known.end())
        fail(where, ": model_type: expected \"gpt2\", \"opt\", \"bert\" or \"llama\", got ", in_quotes(type));
    detail::pass_common_fields(fields);
    for (const std::string& field : loading.ignore_fields) fields.given(field);
    HuggingFaceOptions o = found->second(fields);
    o.model_type = type;
    fields.finish();
    return o;
}

/// The model of a folder, in float32. Every defect is an Error that names the folder and the field or tensor.
inline HuggingFaceLm load_hugging_face(const std::string& folder, const HuggingFaceLoading& loading = {}) {
    const torch::NoGradGuard no_grad;
    const std::string path = folder + "/config.json";
    const HuggingFaceOptions options = hugging_face_options(parse_json(read_file(path, 1 << 20), path), path, loading);
    const TensorFolder tensors = TensorFolder::open(folder);
    detail::HuggingFaceWeights weights(tensors, options, loading);
    HuggingFaceLm model(nullptr);
    try {
        model = HuggingFaceLm(options, std::ref(weights));
    } catch (const Error& error) {
        // What the options themselves refuse does not know the file.
        const std::string_view message = error.what();
        if (message.find(folder) != message.npos) throw;
        fail(path, ": ", message.substr(message.find(' ') + 1));
    }
    weights.check_tied(model->weights().front().second);
    if (loading.unused != nullptr) *loading.unused = weights.unused();
    model->eval();
    return model;
}

} // namespace mnemo::nn
