// SPDX-License-Identifier: MIT
#include "tensors.hpp"

#include <mnemo/io/knowledge_files.hpp>
#include <mnemo/nn/knowledge_encoder.hpp>
#include <mnemo/nn/plug_lm.hpp>
#include <mnemo/nn/plug_lm_model.hpp>
#include <mnemo/nn/task_head.hpp>

#include <torch/torch.h>
#include <unistd.h>

namespace {

using namespace mnemo;
using golden::Check;
using golden::Fixture;
using golden::floats_of;

constexpr golden::Tolerance kOutput{1e-5, 1e-5}, kGradient{1e-4, 1e-4};

/// The fixture's weights, kept by name so that their gradients can be compared.
struct Weights {
    const Fixture& fixture;
    std::map<std::string, at::Tensor> used;

    nn::SourcedModule::Source source(const std::string& prefix = {}) {
        return [this, prefix](const std::string& name, at::IntArrayRef) {
            const std::string full = prefix + name;
            const bool buffer = full.find("running_") != std::string::npos;
            at::Tensor t = tensor_of(fixture, "w." + full);
            if (!buffer) used[full] = t.requires_grad_();
            return t;
        };
    }
    at::Tensor operator()(const std::string& name) { return source()(name, {}); }
};

/// Every `grad.*` of the fixture against what was computed; a weight without one must have none, or zeros, unless the
/// fixture leaves some out.
void compare_gradients(const Fixture& fixture, Check& check, const std::map<std::string, at::Tensor>& of,
                       bool complete = true) {
    for (const auto& name : fixture.names("grad.")) {
        const auto found = of.find(name.substr(5));
        if (found == of.end()) {
            check.failed(name + ": nothing of that name was computed");
            continue;
        }
        const at::Tensor gradient = found->second.grad();
        if (!gradient.defined())
            check.failed(name + ": expected a gradient, got none");
        else
            check.close(name, floats_of(gradient), kGradient);
    }
    for (const auto& [name, tensor] : of)
        if (complete && !fixture.has("grad." + name) && tensor.grad().defined() &&
            tensor.grad().abs().max().item<float>() > 1e-6f)
            check.failed("grad." + name + ": expected none, got one");
}

KnowledgeAttentionType attention_type(const Fixture& fixture) {
    const std::string& word = fixture.text("knowledge_attention_type");
    for (const auto type : {KnowledgeAttentionType::multi_head, KnowledgeAttentionType::sentence_level})
        if (name(type) == word) return type;
    fail("knowledge_attention_type: expected multi_head or sentence_level, got ", word);
}

} // namespace

GOLDEN("pluglm.knowledge_attention") {
    for (const auto fold : {nn::FoldProjections::automatic, nn::FoldProjections::never}) {
        Weights weights{fixture, {}};
        nn::KnowledgeAttention attention(fixture.integer("hidden_size"), fixture.integer("num_attention_heads"),
                                         attention_type(fixture), HeadMerge::reference, weights.source());
        attention->fold = fold;
        std::map<std::string, at::Tensor> leaves = weights.used;
        for (const char* name : {"hidden", "query", "keys", "values"})
            leaves[name] = tensor_of(fixture, text("in.", name)).requires_grad_();
        const nn::KnowledgeRead read =
            attention->forward(leaves["hidden"], leaves["query"], leaves["keys"], leaves["values"]);
        (read.hidden * tensor_of(fixture, "in.grad_out")).sum().backward();
        check.close("out.hidden", floats_of(read.hidden), kOutput);
        check.close("out.similarity", floats_of(read.similarity), kOutput);
        check.close("out.probs", floats_of(read.probs), kOutput);
        if (fixture.has("out.merged")) check.close("out.merged", floats_of(read.merged), kOutput);
        compare_gradients(fixture, check, leaves);
    }
}

GOLDEN("pluglm.memory_layer") {
    Weights weights{fixture, {}};
    PlugLmOptions options;
    options.query_size = fixture.integer("query_size");
    options.memory_k = fixture.integer("memory_k");
    options.query_batchnorm = fixture.flag("query_batchnorm");
    options.attention = attention_type(fixture);
    options.merge = HeadMerge::reference;
    nn::MemoryLayer layer(fixture.integer("hidden_size"), fixture.integer("num_attention_heads"), options,
                          weights.source());
    layer->train(fixture.flag("train"));
    const Matrix keys = fixture.matrix("in.keys"), values = fixture.matrix("in.values");
    KnowledgeStore store(keys.cols, values.cols);
    store.append(keys, values);
    std::map<std::string, at::Tensor> leaves = weights.used;
    leaves["hidden"] = tensor_of(fixture, "in.hidden").requires_grad_();
    const auto out = layer->forward(leaves["hidden"], ids_of(fixture, "in.attention_mask"), *store.snapshot(),
                                    plug_lm_retriever(options.memory_k));
    (out.read.hidden * tensor_of(fixture, "in.grad_out")).sum().backward();
    std::vector<index_t> ids;
    for (index_t i = 0; i < out.hits.rows(); ++i)
        for (const index_t row : out.hits.ids(i)) ids.push_back(row);
    check.equal("out.I", ids);
    check.close("out.query", floats_of(out.query), kOutput);
    check.close("out.hidden", floats_of(out.read.hidden), kOutput);
    if (fixture.has("out.running_mean")) {
        check.close("out.running_mean", floats_of(layer->running_mean()), kOutput);
        check.close("out.running_var", floats_of(layer->running_var()), kOutput);
    }
    compare_gradients(fixture, check, leaves);
}

GOLDEN("pluglm.encode_knowledge") {
    Weights weights{fixture, {}};
    const std::string embedding = "document_encoder.embedding.";
    const nn::DocumentEmbeddings embeddings{
        weights(embedding + "word_embeddings.weight"), weights(embedding + "token_type_embeddings.weight"),
        weights(embedding + "position_embeddings.weight"), weights(embedding + "LayerNorm.weight"),
        weights(embedding + "LayerNorm.bias")};
    nn::KnowledgeEncoder encoder(embeddings, fixture.size("out.keys_fp32", 1), weights.source());
    const at::Tensor ids = ids_of(fixture, "in.token_ids");
    const auto encoded = encoder->forward(ids);
    ((encoded.key * tensor_of(fixture, "in.grad_keys")).sum() +
     (encoded.value * tensor_of(fixture, "in.grad_values")).sum())
        .backward();
    check.close("out.doc", floats_of(encoded.document), kOutput);
    check.close("out.keys_fp32", floats_of(encoded.key), kOutput);
    check.close("out.values_fp32", floats_of(encoded.value), kOutput);
    compare_gradients(fixture, check, weights.used);

    const auto refreshed = encoder->refresh(ids, 4);
    check.close("out.keys_fp32", floats_of(refreshed.key), kOutput);
    check.close("out.values_fp32", floats_of(refreshed.value), kOutput);

    const auto tokens = fixture.values<std::uint16_t>("in.token_ids");
    KnowledgeStore store(encoded.key.size(1), encoded.value.size(1), ids.size(1));
    nn::encode_knowledge(store, encoder, {tokens.data(), ids.size(0), ids.size(1)}, "all",
                         fixture.integer("batch_size"));
    std::vector<float> keys, values;
    for (index_t row = 0; row < store.snapshot()->size(); ++row) {
        for (const half x : store.snapshot()->key(row)) keys.push_back(to_float(x));
        for (const half x : store.snapshot()->value(row)) values.push_back(to_float(x));
    }
    check.close("out.keys", keys, {1e-7, 0x1p-10}); // one unit in the last place
    check.close("out.values", values, {1e-7, 0x1p-10});
}

namespace {

/// Options of a fixture's metadata, whose Booleans are Python's.
nn::PlugLmConfig config_of(const Fixture& fixture) {
    nn::PlugLmConfig config;
    auto& b = config.bert;
    b.model_type = "bert";
    b.vocab_size = fixture.integer("vocab_size");
    b.dim = b.input_dim = fixture.integer("hidden_size");
    b.ffn_dim = fixture.integer("intermediate_size");
    b.layers = fixture.integer("num_hidden_layers");
    b.heads = b.kv_heads = fixture.integer("num_attention_heads");
    b.head_dim = b.dim / b.heads;
    b.max_positions = fixture.integer("max_position_embeddings");
    b.segments = fixture.integer("type_vocab_size");
    b.activation = fixture.text("hidden_act");
    b.norm_epsilon = fixture.number("layer_norm_eps");
    b.attention_scale = 1 / std::sqrt(static_cast<double>(b.head_dim));
    b.causal = b.norm_first = b.final_norm = false;
    b.embedding_norm = true;
    auto& m = config.memory;
    m.memory_layers = fixture.integer("num_memory_layers");
    m.memory_ffn_dim = fixture.integer("memory_layer_ffn_dim");
    m.memory_k = fixture.integer("memory_k");
    m.query_size = fixture.integer("query_size");
    m.query_batchnorm = fixture.flag("query_batchnorm");
    m.attention = attention_type(fixture);
    m.merge = HeadMerge::reference;
    m.fix_keys = fixture.flag("fix_keys"), m.fix_values = fixture.flag("fix_values");
    return config;
}
nn::TokenInfo info_of(const Fixture& fixture) {
    nn::TokenInfo info;
    info.mask = ids_of(fixture, "in.attention_mask"), info.segments = ids_of(fixture, "in.token_type_ids");
    return info;
}
std::vector<float> numbers(const std::vector<half>& rows) {
    std::vector<float> out;
    for (const half x : rows) out.push_back(to_float(x));
    return out;
}
/// Ids [B, m, k] of what fired.
std::vector<index_t> fired_ids(const nn::PlugLmImpl::Output& out, const KnowledgeSnapshot& snapshot) {
    std::vector<index_t> ids;
    for (index_t i = 0; !out.layers.empty() && i < out.layers[0].hits.rows(); ++i)
        for (const auto& layer : out.layers)
            for (const index_t row : layer.hits.ids(i)) ids.push_back(snapshot.id(row));
    return ids;
}

} // namespace

GOLDEN("pluglm.layer") {
    nn::PlugLmConfig config = config_of(fixture);
    Weights weights{fixture, {}};
    // Rows of any numbers go in as embeddings of as many words, without positions, segments and norm.
    const at::Tensor hidden = tensor_of(fixture, "in.hidden");
    const std::int64_t batch = hidden.size(0), rows = hidden.size(1), d = hidden.size(2);
    auto& b = config.bert;
    b.layers = 1, b.vocab_size = batch * rows + 1, b.segments = 0, b.embedding_norm = false, b.max_positions = rows;
    b.ffn_dims = {config.memory.memory_ffn_dim};
    const at::Tensor words = at::cat({at::zeros({1, d}), hidden.view({-1, d})});
    const nn::HuggingFaceLm host(b, [&](const std::string& name, at::IntArrayRef shape) -> at::Tensor {
        if (name == "tokens.weight") return words;
        if (name == "positions.weight") return at::zeros(shape);
        const std::string prefix = "bert.encoder.layer.0.";
        return weights(nn::plug_lm_name(name, 0).substr(prefix.size()));
    });
    nn::MemoryLayer layer(d, b.heads, config.memory, weights.source("memory_layer."));
    layer->train(fixture.flag("train"));
    const Matrix keys = fixture.matrix("in.keys"), values = fixture.matrix("in.values");
    KnowledgeStore store(keys.cols, values.cols);
    store.append(keys, values);
    nn::TokenInfo info;
    info.mask = ids_of(fixture, "in.attention_mask");
    nn::MemoryLayerImpl::Output out;
    const auto states = host->states(
        at::arange(1, batch * rows + 1, at::kLong).view({batch, rows}), {{nn::Tap::ffn_in, 0}, {nn::Tap::hidden, 1}},
        nullptr, info, [&](std::int64_t, const at::Tensor& in) {
            out = layer->forward(in, info.mask, *store.snapshot(), plug_lm_retriever(config.memory.memory_k));
            return out.read.hidden;
        });
    (states[1] * tensor_of(fixture, "in.grad_out")).sum().backward();
    check.close("out.attention_output", floats_of(states[0]), kOutput);
    check.close("out.hidden", floats_of(states[1]), kOutput);
    check.close("out.query", floats_of(out.query), kOutput);
    std::vector<index_t> ids;
    for (index_t i = 0; i < out.hits.rows(); ++i) ids.insert(ids.end(), out.hits.ids(i).begin(), out.hits.ids(i).end());
    check.equal("out.I", ids);
    if (fixture.has("out.running_mean")) {
        check.close("out.running_mean", floats_of(layer->running_mean()), kOutput);
        check.close("out.running_var", floats_of(layer->running_var()), kOutput);
    }
    std::map<std::string, at::Tensor> leaves = weights.used;
    at::Tensor of_hidden = at::zeros({0}).requires_grad_();
    of_hidden = hidden.detach().clone().requires_grad_();
    of_hidden.mutable_grad() = words.grad().narrow(0, 1, batch * rows).view(hidden.sizes());
    leaves["hidden"] = of_hidden;
    compare_gradients(fixture, check, leaves);
}

GOLDEN("pluglm.model") {
    const nn::PlugLmConfig config = config_of(fixture);
    Weights weights{fixture, {}};
    nn::PlugLm model(config, weights.source());
    model->train(fixture.flag("train"));
    const Matrix keys = fixture.matrix("in.keys");
    const Matrix values = fixture.has("in.values") ? fixture.matrix("in.values") : Matrix(keys.rows, 0);
    const bool documents = fixture.has("in.token_docs");
    const index_t length = documents ? fixture.size("in.token_docs", 1) : 0;
    const auto tokens = documents ? fixture.values<std::uint16_t>("in.token_docs") : std::vector<std::uint16_t>();
    KnowledgeStore store(keys.cols, values.cols, length);
    store.append(keys, values, "all", {tokens.data(), length == 0 ? 0 : keys.rows, length});
    const auto snapshot = store.snapshot();
    const auto out = model->forward(ids_of(fixture, "in.input_ids"), info_of(fixture), *snapshot,
                                    plug_lm_retriever(config.memory.memory_k));
    check.close("out.hidden", floats_of(out.hidden), kOutput);
    check.close("out.logits", floats_of(model->mlm_logits(out.prehead)), kOutput);
    const at::Tensor loss = model->mlm_loss(out.prehead, ids_of(fixture, "in.labels"));
    check.close("out.loss", floats_of(loss), kOutput);
    loss.backward();
    if (fixture.has("out.I")) {
        check.equal("out.I", fired_ids(out, *snapshot));
        std::vector<at::Tensor> queries;
        for (const auto& layer : out.layers) queries.push_back(layer.query);
        check.close("out.queries", floats_of(at::stack(queries, 1)), kOutput);
    }
    for (const auto& [name, tensor] : model->running()) {
        const std::string at = name.substr(std::string("bert.encoder.layer.").size());
        const std::string layer = at.substr(0, at.find('.'));
        for (const char* what : {"running_mean", "running_var"})
            if (const std::string expected = text("out.", what, ".", layer);
                name.find(what) != name.npos && fixture.has(expected))
                check.close(expected, floats_of(tensor), kOutput);
    }
    compare_gradients(fixture, check, weights.used);
}

GOLDEN("pluglm.head") {
    const nn::PlugLmConfig config = config_of(fixture);
    Weights weights{fixture, {}};
    nn::PlugLm model(config, weights.source(), false);
    model->eval();
    const std::map<std::string, nn::Task> tasks = {{"regression", nn::Task::regression},
                                                   {"single_label", nn::Task::single_label},
                                                   {"multi_label", nn::Task::multi_label},
                                                   {"token", nn::Task::token},
                                                   {"qa", nn::Task::span},
                                                   {"yesno", nn::Task::yes_no}};
    const auto task = tasks.find(fixture.text("task"));
    if (task == tasks.end()) fail("task: ", fixture.text("task"), " is not handled");
    nn::TaskHead head(task->second, config.bert.dim, fixture.integer("num_labels"), weights.source());
    const Matrix keys = fixture.matrix("in.keys"), values = fixture.matrix("in.values");
    KnowledgeStore store(keys.cols, values.cols);
    store.append(keys, values);
    const auto out = model->forward(ids_of(fixture, "in.input_ids"), info_of(fixture), *store.snapshot(),
                                    plug_lm_retriever(config.memory.memory_k));
    const at::Tensor logits = head->forward(out.hidden);
    at::Tensor labels;
    if (task->second == nn::Task::span) {
        labels = at::stack({ids_of(fixture, "in.start_positions"), ids_of(fixture, "in.end_positions")}, 1);
        check.close("out.start_logits", floats_of(logits.select(2, 0)), kOutput);
        check.close("out.end_logits", floats_of(logits.select(2, 1)), kOutput);
    } else {
        const bool numbers = task->second == nn::Task::regression || task->second == nn::Task::multi_label;
        labels = numbers ? tensor_of(fixture, "in.labels") : ids_of(fixture, "in.labels");
        check.close("out.logits", floats_of(logits), kOutput);
    }
    const at::Tensor loss = head->loss(logits, labels);
    check.close("out.loss", floats_of(loss), kOutput);
    check.equal("out.I", fired_ids(out, *store.snapshot()));
    loss.backward();
    compare_gradients(fixture, check, weights.used, false);
}

GOLDEN("pluglm.edit") {
    const nn::PlugLmConfig config = config_of(fixture);
    Weights weights{fixture, {}};
    nn::PlugLm model(config, weights.source());
    model->eval();
    const torch::NoGradGuard no_grad;
    const Matrix keys = fixture.matrix("in.keys"), values = fixture.matrix("in.values");
    const Matrix edit_keys = fixture.has("in.edit_keys") ? fixture.matrix("in.edit_keys") : Matrix();
    const Matrix edit_values = fixture.has("in.edit_values") ? fixture.matrix("in.edit_values") : Matrix();
    KnowledgeStore store(keys.cols, values.cols);
    store.append(keys, values, "first");
    const auto read = [&](const std::string& when) {
        const auto snapshot = store.snapshot();
        const auto out = model->forward(ids_of(fixture, "in.input_ids"), info_of(fixture), *snapshot,
                                        plug_lm_retriever(config.memory.memory_k));
        check.close("out.logits_" + when, floats_of(model->mlm_logits(out.prehead)), kOutput);
        // The arrays of the reference have no gaps: its numbers are places among the entries that are left.
        store.compact();
        const auto compact = store.snapshot();
        std::map<index_t, index_t> place;
        for (index_t row = 0; row < compact->size(); ++row) place[compact->id(row)] = row;
        std::vector<index_t> ids, sources;
        for (const index_t id : fired_ids(out, *snapshot)) {
            ids.push_back(place.at(id));
            sources.push_back(compact->source_of(id));
        }
        check.equal("out.I_" + when, ids);
        return sources;
    };
    read("before");
    const std::string& op = fixture.text("op");
    if (op == "append") {
        store.append(edit_keys, edit_values, "second");
    } else if (op == "swap") {
        KnowledgeStore fresh(keys.cols, values.cols);
        fresh.append(edit_keys, edit_values, "other");
        store.swap_base(std::move(fresh));
    } else if (op == "replace" || op == "replace_values" || op == "delete") {
        const auto rows = fixture.ids("in.edit_rows");
        for (std::size_t i = 0; i < rows.size(); ++i) {
            const auto n = static_cast<index_t>(i);
            if (op == "delete")
                store.erase(rows[i]);
            else
                store.replace(rows[i], op == "replace" ? edit_keys[n] : keys[rows[i]], edit_values[n]);
        }
    } else {
        fail("op: ", op, " is not handled");
    }
    check.equal("out.source_after", read("after"));
    const auto snapshot = store.snapshot();
    std::vector<half> keys_after, values_after;
    for (index_t row = 0; row < snapshot->size(); ++row) {
        keys_after.insert(keys_after.end(), snapshot->key(row).begin(), snapshot->key(row).end());
        values_after.insert(values_after.end(), snapshot->value(row).begin(), snapshot->value(row).end());
    }
    check.close("out.keys_after", numbers(keys_after), {});
    check.close("out.values_after", numbers(values_after), {});
}

GOLDEN("pluglm.artefacts") {
    const auto folder = fixture.file().parent_path();
    const auto in = [&](const char* file) { return (folder / file).string(); };
    const auto scratch = std::filesystem::temp_directory_path() / text("mnemo_pluglm_", ::getpid());
    std::filesystem::create_directories(scratch);
    const auto same = [&](const char* file) { return read_file(in(file)) == read_file((scratch / file).string()); };

    const std::string path = in("config.json");
    nn::PlugLmConfig config = nn::plug_lm_config(parse_json(read_file(path, 1 << 20), path), path);
    const nlohmann::json again = nn::plug_lm_json(config);
    if (nn::plug_lm_json(nn::plug_lm_config(again, "again")) != again) check.failed("config.json: not the same again");
    config.memory.fix_keys = config.memory.fix_values = true;

    const auto files = KnowledgeFiles::open(in("keys.npy"), in("values.npy"), true);
    const DocumentRows documents = read_documents(in("tokenized_documents.npy"));
    KnowledgeStore store(files->keys().cols, files->values().cols, documents.length);
    store.append(files->keys(), files->values(), files, "reference", documents.view());
    const auto snapshot = store.snapshot();
    write_knowledge(scratch.string(), *snapshot);
    for (const char* file : {"keys.npy", "values.npy", "tokenized_documents.npy"})
        if (!same(file)) check.failed(text(file, ": expected the same bytes when written again"));
    std::filesystem::remove_all(scratch);

    Weights weights{fixture, {}};
    nn::PlugLm model(config, weights.source());
    model->eval();
    const torch::NoGradGuard no_grad;
    const auto out = model->forward(ids_of(fixture, "in.input_ids"), info_of(fixture), *snapshot,
                                    plug_lm_retriever(config.memory.memory_k));
    check.close("out.logits", floats_of(model->mlm_logits(out.prehead)), kOutput);
    check.equal("out.I", fired_ids(out, *snapshot));
}

namespace {
/// LibTorch's generator, in place of the library's own.
struct TorchDraws {
    index_t rows, cols;

    void truths(std::span<const float> p, std::span<std::uint8_t> out) {
        const at::Tensor probability = at::empty({rows, cols});
        std::copy(p.begin(), p.end(), probability.data_ptr<float>());
        const at::Tensor drawn = at::bernoulli(probability);
        for (std::size_t i = 0; i < out.size(); ++i) out[i] = drawn.data_ptr<float>()[i] != 0 ? 1 : 0;
    }
    void ids(std::int32_t end, std::span<std::int32_t> out) {
        const at::Tensor drawn = at::randint(end, {rows, cols}, at::kLong);
        for (std::size_t i = 0; i < out.size(); ++i)
            out[i] = static_cast<std::int32_t>(drawn.data_ptr<std::int64_t>()[i]);
    }
};
} // namespace

GOLDEN("pluglm.mlm_collate") {
    MaskingOptions options;
    const auto id = [&](const char* field) { return static_cast<std::int32_t>(fixture.integer(field)); };
    options.cls = id("cls_id"), options.sep = id("sep_id"), options.mask = id("mask_id");
    options.vocab_size = id("vocab_size"), options.ignore = id("ignore_index");
    options.probability = fixture.number("mlm_probability");
    options.alignment = fixture.integer("alignment");
    const auto rows_of = [&](const std::string& name) {
        std::vector<std::vector<std::int32_t>> rows(static_cast<std::size_t>(fixture.size(name, 0)));
        const auto values = fixture.tokens(name);
        const auto width = static_cast<std::size_t>(fixture.size(name, 1));
        for (std::size_t i = 0; i < rows.size(); ++i)
            for (std::size_t j = 0; j < width; ++j)
                if (values[i * width + j] != -1) rows[i].push_back(values[i * width + j]);
        return rows;
    };
    const auto a = rows_of("in.tokens_a"), b = rows_of("in.tokens_b");
    std::vector<TokenPair> pairs;
    for (std::size_t i = 0; i < a.size(); ++i) pairs.push_back({a[i], b.at(i)});
    MaskedBatch batch = collate_pairs(pairs, options);
    if (fixture.flag("dynamic")) {
        check.equal("out.unmasked_input_ids", batch.tokens);
        check.equal("out.special_tokens_mask", batch.special);
        torch::manual_seed(static_cast<std::uint64_t>(fixture.integer("mask_seed")));
        TorchDraws draws{batch.rows, batch.cols};
        mask_dynamically(batch, options, draws);
    } else {
        const auto positions = rows_of("in.masked_positions"), labels = rows_of("in.masked_labels");
        for (std::size_t i = 0; i < positions.size(); ++i) {
            const std::vector<index_t> places(positions[i].begin(), positions[i].end());
            set_targets(batch, static_cast<index_t>(i), places, labels.at(i));
        }
    }
    check.equal("out.input_ids", batch.tokens);
    check.equal("out.token_type_ids", batch.segments);
    check.equal("out.attention_mask", batch.attention);
    check.equal("out.labels", batch.labels);
}
