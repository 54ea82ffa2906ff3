// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/safetensors.hpp>
#include <mnemo/nn/config_fields.hpp>
#include <mnemo/nn/transformer_lm.hpp>

#include <filesystem>
#include <set>

namespace mnemo::nn {

// A model folder holds config.json (the fields of fairseq's args, model_type "fairseq_transformer_lm") and
// model.safetensors (fairseq's names).

namespace detail {

/// Number of parameters, before anything of that size is allocated.
inline double parameter_count(const TransformerLmOptions& o) {
    const auto real = [](std::int64_t n) { return static_cast<double>(n); };
    const double d = real(o.dim()), v = real(o.vocab_size());
    double n = real(o.layers()) * (4 * d * d + 2 * d * real(o.ffn_dim()) + 9 * d + real(o.ffn_dim()));
    if (!o.adaptive_input()) n += v * real(o.input_dim() == 0 ? o.dim() : o.input_dim());
    if (o.adaptive_input()) n += v; // at least
    if (o.positions() && o.learned_positions()) n += real(o.max_positions()) * d;
    return n;
}

} // namespace detail

/// The options that a config's fields stand for. Throws Error for a field of the wrong type, one that asks for
/// something this model does not do, and one that is not known.
inline TransformerLmOptions fairseq_options(const nlohmann::json& config, const std::string& where) {
    detail::ConfigFields fields(JsonObject(config, where));
    if (const auto type = fields.string("model_type", ""); type != "fairseq_transformer_lm")
        fields.wrong("model_type", "\"fairseq_transformer_lm\"");
    TransformerLmOptions o;
    o.vocab_size(fields.integer("vocab_size"));
    o.dim(fields.integer("decoder_embed_dim"));
    o.input_dim(fields.integer("decoder_input_dim", o.dim()));
    o.output_dim(fields.integer("decoder_output_dim", o.dim()));
    o.ffn_dim(fields.integer("decoder_ffn_embed_dim"));
    o.layers(fields.integer("decoder_layers"));
    o.heads(fields.integer("decoder_attention_heads"));
    o.activation(fields.string("activation_fn", "relu"));
    o.max_positions(fields.integer("max_target_positions", fields.integer("tokens_per_sample", 1024)));
    o.positions(!fields.flag("no_token_positional_embeddings"));
    o.learned_positions(fields.flag("decoder_learned_pos"));
    o.scale_embedding(!fields.flag("no_scale_embedding"));
    o.layernorm_embedding(fields.flag("layernorm_embedding"));
    o.final_norm(!fields.flag("no_decoder_final_norm"));
    o.share_embeddings(fields.flag("share_decoder_input_output_embed"));
    o.adaptive_input(fields.flag("adaptive_input"));
    o.adaptive_input_cutoff(fields.cutoffs("adaptive_input_cutoff"));
    o.adaptive_input_factor(fields.number("adaptive_input_factor", 4));
    o.adaptive_softmax_cutoff(fields.cutoffs("adaptive_softmax_cutoff"));
    o.adaptive_softmax_factor(fields.number("adaptive_softmax_factor", 4));
    o.tie_adaptive_weights(fields.flag("tie_adaptive_weights"));
    o.tie_adaptive_proj(fields.flag("tie_adaptive_proj"));
    if (fields.given("no_tie_adaptive_proj")) { // written by older versions, which had no final norm
        o.final_norm(false);
        if (!fields.flag("no_tie_adaptive_proj")) o.tie_adaptive_proj(true);
    }
    o.dropout(fields.number("dropout", 0));
    o.pad(fields.integer("pad", 1));
    if (fields.flag("character_embeddings")) fields.wrong("character_embeddings", "false");
    if (fields.flag("cross_self_attention")) fields.wrong("cross_self_attention", "false");
    if (!o.adaptive_input() && !o.adaptive_input_cutoff().empty()) o.adaptive_input_cutoff({});
    // No effect on what the model computes.
    for (const char* field : {"arch", "bos", "eos", "unk", "attention_dropout", "activation_dropout", "relu_dropout",
                              "adaptive_softmax_dropout", "decoder_layerdrop", "decoder_normalize_before",
                              "tokens_per_sample", "character_embedding_dim", "character_filters"})
        fields.given(field);
    fields.finish();
    return o;
}

/// The fields of the options, as fairseq_options reads them.
inline nlohmann::ordered_json fairseq_config(const TransformerLmOptions& o) {
    const auto cutoffs = [](const std::vector<std::int64_t>& ids) {
        return ids.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(ids);
    };
    return {{"model_type", "fairseq_transformer_lm"},
            {"vocab_size", o.vocab_size()},
            {"decoder_embed_dim", o.dim()},
            {"decoder_input_dim", o.input_dim()},
            {"decoder_output_dim", o.output_dim()},
            {"decoder_ffn_embed_dim", o.ffn_dim()},
            {"decoder_layers", o.layers()},
            {"decoder_attention_heads", o.heads()},
            {"activation_fn", o.activation()},
            {"max_target_positions", o.max_positions()},
            {"no_token_positional_embeddings", !o.positions()},
            {"decoder_learned_pos", o.learned_positions()},
            {"no_scale_embedding", !o.scale_embedding()},
            {"layernorm_embedding", o.layernorm_embedding()},
            {"no_decoder_final_norm", !o.final_norm()},
            {"share_decoder_input_output_embed", o.share_embeddings()},
            {"adaptive_input", o.adaptive_input()},
            {"adaptive_input_cutoff", cutoffs(o.adaptive_input_cutoff())},
            {"adaptive_input_factor", o.adaptive_input_factor()},
            {"adaptive_softmax_cutoff", cutoffs(o.adaptive_softmax_cutoff())},
            {"adaptive_softmax_factor", o.adaptive_softmax_factor()},
            {"tie_adaptive_weights", o.tie_adaptive_weights()},
            {"tie_adaptive_proj", o.tie_adaptive_proj()},
            {"dropout", o.dropout()},
            {"pad", o.pad()}};
}

/// Fills a model with the tensors whose names begin with `prefix`. Takes F32, F16 and BF16, the names of old and new
/// fairseq versions, tied tensors written twice (if they are equal) and fairseq's markers. Throws Error naming a tensor
/// that is missing, unknown or of another shape.
inline void load_weights(TransformerLmImpl& model, const SafeTensors& file, const std::string& prefix = "") {
    const torch::NoGradGuard no_grad;
    std::set<std::string> used;
    const auto read = [&](const std::string& name, at::IntArrayRef shape) {
        const Entry& entry = file.at(name);
        used.insert(name);
        if (at::IntArrayRef(entry.shape) != shape)
            fail(file.path(), ": tensor ", in_quotes(name), ": expected shape ", shape_text(shape), ", got ",
                 shape_text(entry.shape));
        auto values = file.values<float>(name);
        return at::from_blob(values.data(), shape, at::kFloat).clone();
    };
    const auto replaced = [](std::string name, std::string_view part, std::string_view by) {
        if (const auto at = name.find(part); at != name.npos) name.replace(at, part.size(), by);
        return name;
    };
    for (const auto& [name, tensor] : model.weights()) {
        // Old versions stacked the three projections and numbered the norms; new ones renamed embed_out.
        std::string found = prefix + name;
        for (const auto& [now, then] : {std::pair{".self_attn_layer_norm.", ".layer_norms.0."},
                                        {".final_layer_norm.", ".layer_norms.2."},
                                        {"decoder.embed_out", "decoder.output_projection.weight"}})
            if (file.find(found) == nullptr && file.find(replaced(found, now, then)) != nullptr)
                found = replaced(found, now, then);
        std::int64_t third = 0;
        if (file.find(found) == nullptr)
            for (const char* part : {".q_proj.", ".k_proj.", ".v_proj."}) {
                const std::string stacked = replaced(found, part, ".in_proj_");
                if (stacked != found && file.find(stacked) != nullptr) {
                    auto shape = tensor.sizes().vec();
                    shape[0] *= 3;
                    tensor.copy_(read(stacked, shape).narrow(0, third * tensor.size(0), tensor.size(0)));
                    found.clear();
                }
                ++third;
            }
        if (!found.empty()) tensor.copy_(read(found, tensor.sizes()));
    }
    for (const auto& [name, tensor] : model.aliases())
        for (const std::string& alias :
             {prefix + name, prefix + replaced(name, "embed_out", "output_projection.weight")})
            if (file.find(alias) != nullptr && !used.contains(alias) &&
                !at::equal(read(alias, tensor.sizes()), tensor.detach().cpu()))
                fail(file.path(), ": tensor ", in_quotes(alias),
                     ": expected the same as the tied embedding, got other values");
    for (const Entry& entry : file.entries()) {
        const std::string_view name = entry.name;
        const bool ours = name.substr(0, prefix.size()) == prefix;
        const bool marker = name.ends_with("._float_tensor") || name.ends_with("decoder.embed_positions.weights") ||
                            name.ends_with("decoder.version") || name.ends_with("adaptive_softmax.version");
        if (ours && !marker && !used.contains(entry.name))
            fail(file.path(), ": tensor ", in_quotes(name), ": the model of this config has none of that name");
    }
}

/// The model of a folder. Every defect is an Error that names the file and the field or tensor.
inline TransformerLm load_transformer_lm(const std::string& folder) {
    const std::string config_path = folder + "/config.json";
    const auto config = parse_json(read_file(config_path, 1 << 20), config_path);
    TransformerLmOptions options = fairseq_options(config, config_path);
    const SafeTensors file = SafeTensors::open(folder + "/model.safetensors");
    double elements = 0;
    for (const Entry& entry : file.entries()) elements += static_cast<double>(entry.size());
    if (const double expected = detail::parameter_count(options); expected > elements)
        fail(file.path(), ": expected at least ", expected, " parameters for this config, got ", elements);
    // Versions up to 2 had no norm after the last layer, whatever the config says.
    if (const Entry* version = file.find("decoder.version"); version != nullptr) {
        const auto values = file.values<float>("decoder.version");
        if (!values.empty() && values[0] <= 2) options.final_norm(false);
    } else if (file.find("decoder.layer_norm.weight") == nullptr) {
        options.final_norm(false);
    }
    TransformerLm model(options);
    load_weights(*model, file);
    model->eval();
    return model;
}

/// Writes the folder (made if it is not there), each file at once.
inline void save_transformer_lm(const TransformerLmImpl& model, const std::string& folder) {
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (error) fail(folder, ": cannot be made: ", error.message());
    std::vector<at::Tensor> kept; // what the entries borrow
    std::vector<Entry> entries;
    const auto add = [&](const std::string& name, const at::Tensor& tensor) {
        kept.push_back(tensor.detach().to(at::kCPU, at::kFloat).contiguous());
        const at::Tensor& t = kept.back();
        entries.push_back(tensor_entry(
            name, t.sizes().vec(), std::span<const float>(t.data_ptr<float>(), static_cast<std::size_t>(t.numel()))));
    };
    for (const auto& [name, tensor] : model.weights()) add(name, tensor);
    add("decoder.version", at::full({1}, 3.0));
    write_safetensors(folder + "/model.safetensors", entries, {{"format", "pt"}});
    atomic_write(folder + "/config.json", fairseq_config(model.options()).dump(1) + "\n");
}

} // namespace mnemo::nn
