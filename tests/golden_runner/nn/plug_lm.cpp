// SPDX-License-Identifier: MIT
#include "golden.hpp"

#include <mnemo/nn/knowledge_encoder.hpp>
#include <mnemo/nn/plug_lm.hpp>

#include <torch/torch.h>

namespace {

using namespace mnemo;
using golden::Check;
using golden::Fixture;

at::Tensor tensor_in(const Fixture& fixture, const std::string& name) {
    auto values = fixture.floats(name);
    return at::from_blob(values.data(), fixture.shape(name), at::kFloat).clone();
}
at::Tensor ids_in(const Fixture& fixture, const std::string& name) {
    auto values = fixture.ids(name);
    return at::from_blob(values.data(), fixture.shape(name), at::kLong).clone();
}
std::vector<float> values_of(const at::Tensor& t) {
    const at::Tensor c = t.detach().to(at::kFloat).contiguous();
    return {c.data_ptr<float>(), c.data_ptr<float>() + c.numel()};
}
std::vector<index_t> longs_of(const at::Tensor& t) {
    const at::Tensor c = t.to(at::kLong).contiguous();
    return {c.data_ptr<std::int64_t>(), c.data_ptr<std::int64_t>() + c.numel()};
}
constexpr golden::Tolerance kOutput{1e-5, 1e-5}, kGradient{1e-4, 1e-4};

/// The fixture's weights, kept by name so that their gradients can be compared.
struct Weights {
    const Fixture& fixture;
    std::map<std::string, at::Tensor> used;

    nn::NamedWeights::Source source(const std::string& prefix = {}) {
        return [this, prefix](const std::string& name, at::IntArrayRef) {
            const std::string full = prefix + name;
            const bool buffer = full.find("running_") != std::string::npos;
            at::Tensor t = tensor_in(fixture, "w." + full);
            if (!buffer) used[full] = t.requires_grad_();
            return t;
        };
    }
    at::Tensor operator()(const std::string& name) { return source()(name, {}); }
};

/// Every `grad.*` of the fixture against what was computed; a weight without one must have none, or zeros.
void compare_gradients(const Fixture& fixture, Check& check, const std::map<std::string, at::Tensor>& of) {
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
            check.close(name, values_of(gradient), kGradient);
    }
    for (const auto& [name, tensor] : of)
        if (!fixture.has("grad." + name) && tensor.grad().defined() && tensor.grad().abs().max().item<float>() > 1e-6f)
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
    Weights weights{fixture, {}};
    nn::KnowledgeAttention attention(fixture.integer("hidden_size"), fixture.integer("num_attention_heads"),
                                     attention_type(fixture), HeadMerge::reference, weights.source());
    std::map<std::string, at::Tensor> leaves = weights.used;
    for (const char* name : {"hidden", "query", "keys", "values"})
        leaves[name] = tensor_in(fixture, text("in.", name)).requires_grad_();
    const nn::KnowledgeRead read =
        attention->forward(leaves["hidden"], leaves["query"], leaves["keys"], leaves["values"]);
    (read.hidden * tensor_in(fixture, "in.grad_out")).sum().backward();
    check.close("out.hidden", values_of(read.hidden), kOutput);
    check.close("out.similarity", values_of(read.similarity), kOutput);
    check.close("out.probs", values_of(read.probs), kOutput);
    if (fixture.has("out.merged")) check.close("out.merged", values_of(read.merged), kOutput);
    compare_gradients(fixture, check, leaves);
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
    leaves["hidden"] = tensor_in(fixture, "in.hidden").requires_grad_();
    const auto out = layer->forward(leaves["hidden"], ids_in(fixture, "in.attention_mask"), *store.snapshot(),
                                    plug_lm_retriever(options.memory_k));
    (out.read.hidden * tensor_in(fixture, "in.grad_out")).sum().backward();
    std::vector<index_t> ids;
    for (index_t i = 0; i < out.hits.rows(); ++i)
        for (const index_t row : out.hits.ids(i)) ids.push_back(row);
    check.equal("out.I", ids);
    check.close("out.query", values_of(out.query), kOutput);
    check.close("out.hidden", values_of(out.read.hidden), kOutput);
    if (fixture.has("out.running_mean")) {
        check.close("out.running_mean", values_of(layer->running_mean()), kOutput);
        check.close("out.running_var", values_of(layer->running_var()), kOutput);
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
    const at::Tensor ids = ids_in(fixture, "in.token_ids");
    const auto encoded = encoder->forward(ids);
    ((encoded.key * tensor_in(fixture, "in.grad_keys")).sum() +
     (encoded.value * tensor_in(fixture, "in.grad_values")).sum())
        .backward();
    check.close("out.doc", values_of(encoded.document), kOutput);
    check.close("out.keys_fp32", values_of(encoded.key), kOutput);
    check.close("out.values_fp32", values_of(encoded.value), kOutput);
    compare_gradients(fixture, check, weights.used);

    const auto refreshed = encoder->refresh(ids, 4);
    check.close("out.keys_fp32", values_of(refreshed.key), kOutput);
    check.close("out.values_fp32", values_of(refreshed.value), kOutput);

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
