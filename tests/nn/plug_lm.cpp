// SPDX-License-Identifier: MIT
#include "../folder.hpp"

#include <catch.hpp>
#include <mnemo/nn/plug_lm_train.hpp>
#include <mnemo/nn/task_head.hpp>

#include <torch/torch.h>

using namespace mnemo;

namespace {

nn::PlugLmConfig small_config() {
    nn::PlugLmConfig config;
    auto& b = config.bert;
    b.model_type = "bert", b.vocab_size = 40, b.dim = b.input_dim = 16, b.ffn_dim = 24, b.layers = 2;
    b.heads = b.kv_heads = 4, b.head_dim = 4, b.max_positions = 16, b.segments = 2, b.activation = "gelu";
    b.causal = b.norm_first = b.final_norm = false, b.embedding_norm = true, b.norm_epsilon = 1e-12;
    b.attention_scale = 0.5, b.dropout = b.attention_dropout = 0.1;
    config.memory.memory_ffn_dim = 16, config.memory.memory_k = 3, config.memory.query_size = 8;
    config.memory.refreshing_steps = 3;
    return config;
}
nn::PlugLm small_model(const nn::PlugLmConfig& config, std::uint64_t seed = 1) {
    torch::manual_seed(seed);
    return nn::PlugLm(config, nn::fresh_plug_lm(0.25));
}
DocumentRows some_documents(index_t n) {
    torch::manual_seed(9);
    const at::Tensor ids = at::randint(1, 40, {n, 6}, at::kLong);
    DocumentRows out;
    out.length = 6;
    for (index_t i = 0; i < n * 6; ++i)
        out.tokens.push_back(i % 6 < 3 + (i / 6) % 4 ? static_cast<std::uint16_t>(ids.data_ptr<std::int64_t>()[i]) : 0);
    return out;
}
nn::MaskedTensors some_batch(index_t n) {
    std::mt19937_64 random(static_cast<std::uint64_t>(n));
    std::vector<std::vector<std::int32_t>> lines(4, std::vector<std::int32_t>(5));
    for (auto& line : lines)
        for (auto& id : line) id = 5 + static_cast<std::int32_t>(random() % 35);
    std::vector<TokenPair> pairs;
    for (const auto& line : lines) pairs.push_back({line, {}});
    MaskingOptions options;
    options.cls = 1, options.sep = 2, options.mask = 3, options.vocab_size = 40, options.probability = 0.4;
    MaskedBatch batch = collate_pairs(pairs, options);
    MaskingDraws draws{random};
    mask_dynamically(batch, options, draws);
    return nn::tensors_of(batch);
}
double distance(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>(); }

} // namespace

TEST_CASE("plug_lm: a resumed run is the uninterrupted one, bit for bit") {
    const Folder folder;
    const std::string path = folder.path() + "/model.safetensors";
    nn::PlugLmTraining options;
    options.decay = {5e-3, 0.2, 0.5, 10}, options.accumulation = 2;
    const auto retriever = plug_lm_retriever(3);
    nn::PlugLmTrainer straight(small_model(small_config()), some_documents(20), options);
    nn::PlugLmTrainer resumed(small_model(small_config(), 2), some_documents(20), options);
    double first = 0, last = 0;
    for (int i = 0; i < 10; ++i) {
        last = straight.step(some_batch, retriever);
        if (i == 0) first = last;
        if (i == 4) { // two steps after a refresh: the stored keys are not those of the weights
            REQUIRE(straight.staleness() == 2);
            straight.save(path);
        }
    }
    REQUIRE(std::isfinite(first));
    resumed.resume(path);
    REQUIRE(resumed.done() == 5);
    while (resumed.done() < 10) REQUIRE(std::isfinite(resumed.step(some_batch, retriever)));
    const auto &a = straight.model()->weights(), &b = resumed.model()->weights();
    for (std::size_t i = 0; i < a.size(); ++i) {
        INFO(a[i].first);
        REQUIRE(at::equal(a[i].second, b[i].second));
    }
    for (std::size_t i = 0; i < straight.model()->running().size(); ++i)
        REQUIRE(at::equal(straight.model()->running()[i].second, resumed.model()->running()[i].second));
    REQUIRE_THROWS_AS(straight.step(some_batch, retriever), Error); // all steps are done: no step of rate NaN

    nn::PlugLmTraining other = options;
    other.decay.base = 1;
    nn::PlugLmTrainer wrong(small_model(small_config()), some_documents(20), other);
    REQUIRE_THROWS_AS(wrong.resume(path), Error);
    nn::PlugLmTrainer elsewhere(small_model(small_config()), some_documents(21), options);
    REQUIRE_THROWS_AS(elsewhere.resume(path), Error);

    // The checkpoint is a folder that the model is read from.
    const auto read = std::make_shared<const TensorFolder>(TensorFolder::open(folder.path()));
    const nn::PlugLm loaded(small_config(), nn::plug_lm_from_folder(read));
    REQUIRE(loaded->weights().size() == a.size());
}

TEST_CASE("plug_lm: mixed precision is near, trains, resumes, and ends with its scope") {
    const Folder folder;
    const std::string path = folder.path() + "/mixed.safetensors";
    nn::PlugLmTraining options;
    options.decay = {5e-3, 0.2, 0.5, 6};
    auto config = small_config();
    config.memory.memory_k = 20; // all entries: which ones are chosen may differ
    const auto retriever = plug_lm_retriever(20);
    nn::PlugLmTrainer full(small_model(config), some_documents(20), options);
    options.mixed_precision = true;
    nn::PlugLmTrainer mixed(small_model(config), some_documents(20), options);
    const double a = full.step(some_batch, retriever), b = mixed.step(some_batch, retriever);
    REQUIRE(a != b); // products were of bfloat16
    REQUIRE(std::abs(a - b) < 0.02 * a);
    double difference = 0, whole = 0; // of the gradient: of one number of it rounding may be most
    for (std::size_t i = 0; i < mixed.model()->weights().size(); ++i) {
        const at::Tensor g = mixed.model()->weights()[i].second.grad(),
                         expected = full.model()->weights()[i].second.grad();
        INFO(mixed.model()->weights()[i].first);
        REQUIRE(g.defined() == expected.defined());
        if (!g.defined()) continue;
        REQUIRE(g.scalar_type() == at::kFloat);
        difference += (g.to_dense() - expected.to_dense()).square().sum().item<double>();
        whole += expected.to_dense().square().sum().item<double>();
    }
    INFO("gradient " << std::sqrt(whole) << ", differs by " << std::sqrt(difference));
    REQUIRE(std::sqrt(difference) < 0.05 * std::sqrt(whole));
    mixed.save(path);
    nn::PlugLmTrainer resumed(small_model(config, 2), some_documents(20), options);
    resumed.resume(path);
    while (mixed.done() < 6) REQUIRE(mixed.step(some_batch, retriever) == resumed.step(some_batch, retriever));
    REQUIRE_THROWS_AS(full.resume(path), Error); // of another precision
    const at::Tensor x = at::ones({2, 2});
    REQUIRE(at::mm(x, x).scalar_type() == at::kFloat);
    {
        const nn::Autocast autocast(true);
        REQUIRE(at::mm(x, x).scalar_type() == at::kBFloat16);
        REQUIRE(nn::linear(x, x, {}).scalar_type() == at::kFloat);
    }
    REQUIRE(at::mm(x, x).scalar_type() == at::kFloat);
}

TEST_CASE("plug_lm: two refreshes without a step between them store the same keys") {
    nn::PlugLmTraining options;
    options.decay.total = 4;
    nn::PlugLmTrainer trainer(small_model(small_config()), some_documents(30), options);
    trainer.refresh();
    const auto a = trainer.store().snapshot();
    trainer.refresh();
    const auto b = trainer.store().snapshot();
    for (index_t row = 0; row < 30; ++row)
        REQUIRE(std::equal(a->key(row).begin(), a->key(row).end(), b->key(row).begin(), b->key(row).end()));
}

TEST_CASE("plug_lm: folded projections give what plain ones give, with gradients") {
    torch::manual_seed(3);
    const std::int64_t b = 2, t = 30, d = 24, heads = 3, k = 2, q = 5;
    for (const auto merge : {HeadMerge::per_token, HeadMerge::reference}) {
        nn::KnowledgeAttention attention(d, heads, KnowledgeAttentionType::multi_head, merge,
                                         [](const std::string&, at::IntArrayRef s) { return at::randn(s) * 0.3; });
        std::vector<at::Tensor> results;
        const at::Tensor x = at::randn({b, t, d}), query = at::randn({b, q}), keys = at::randn({b, k, q}),
                         values = at::randn({b, k, d}), weight = at::randn({b, t, d});
        for (const auto fold : {nn::FoldProjections::automatic, nn::FoldProjections::never}) {
            attention->fold = fold;
            attention->zero_grad();
            const at::Tensor in = x.clone().requires_grad_(), value = values.clone().requires_grad_();
            const auto read = attention->forward(in, query, keys, value);
            REQUIRE((read.merged.defined() == (fold == nn::FoldProjections::never || merge == HeadMerge::reference)));
            (read.hidden * weight).sum().backward();
            results.push_back(read.hidden.detach());
            results.push_back(in.grad()), results.push_back(value.grad());
            for (const at::Tensor& p : attention->parameters()) results.push_back(p.grad().clone());
        }
        const std::size_t n = results.size() / 2;
        for (std::size_t i = 0; i < n; ++i) REQUIRE(distance(results[i], results[n + i]) < 2e-4);
    }
}

TEST_CASE("plug_lm: every attention type learns from its values, single_head too; no entries read zeros") {
    torch::manual_seed(4);
    for (const auto type : {KnowledgeAttentionType::multi_head, KnowledgeAttentionType::sentence_level,
                            KnowledgeAttentionType::single_head}) {
        nn::KnowledgeAttention attention(8, 2, type, HeadMerge::per_token,
                                         [](const std::string&, at::IntArrayRef s) { return at::randn(s); });
        const at::Tensor x = at::randn({2, 3, 8}), query = at::randn({2, 4});
        const at::Tensor values = at::randn({2, 5, 8}).requires_grad_();
        const auto read = attention->forward(x, query, at::randn({2, 5, 4}), values);
        REQUIRE(read.hidden.sizes() == x.sizes());
        read.hidden.sum().backward();
        REQUIRE(values.grad().abs().sum().item<double>() > 0);
        const auto none = attention->forward(x, query, at::zeros({2, 0, 4}), at::zeros({2, 0, 8}));
        REQUIRE(none.hidden.abs().max().item<double>() == 0);
    }
}

TEST_CASE("plug_lm: what did not fire changes nothing; the order of the store neither") {
    const torch::NoGradGuard no_grad;
    nn::PlugLmConfig config = small_config();
    config.memory.memory_layers = 2;
    nn::PlugLm model = small_model(config);
    model->eval();
    model->read_stored(true);
    const DocumentRows documents = some_documents(24);
    KnowledgeStore store(8, 16, 6), reversed(8, 16, 6);
    nn::encode_knowledge(store, model->encoder(), documents.view());
    for (index_t i = 23; i >= 0; --i) nn::encode_knowledge(reversed, model->encoder(), documents.view().slice(i, 1));
    const auto batch = some_batch(1);
    const auto read = [&](const KnowledgeStore& s) {
        return model->forward(batch.tokens, batch.info, *s.snapshot(), plug_lm_retriever(3));
    };
    const auto before = read(store);
    REQUIRE(before.layers.size() == 2);
    REQUIRE(distance(before.hidden, read(reversed).hidden) < 1e-5);
    std::set<index_t> fired;
    for (const auto& layer : before.layers)
        for (index_t i = 0; i < layer.hits.rows(); ++i)
            for (const index_t row : layer.hits.ids(i)) fired.insert(row);
    index_t quiet = 0;
    while (fired.contains(quiet)) ++quiet;
    REQUIRE(quiet < 24);
    store.erase(quiet);
    REQUIRE(at::equal(before.hidden, read(store).hidden));
    store.erase(*fired.begin());
    REQUIRE(!at::equal(before.hidden, read(store).hidden));
}

TEST_CASE("plug_lm: keys that are fixed select and weigh, values are encoded anew") {
    nn::PlugLmConfig config = small_config();
    config.memory.fix_keys = true;
    nn::PlugLm model = small_model(config);
    for (const auto& [name, t] : model->weights()) REQUIRE(name.find("key_proj") == name.npos);
    const DocumentRows documents = some_documents(12);
    KnowledgeStore store(8, 0, 6);
    const at::Tensor keys = at::randn({12, 8});
    store.append(nn::as_rows(keys), Rows(nullptr, 12, 0), {}, documents.view());
    const auto batch = some_batch(2);
    const auto out = model->forward(batch.tokens, batch.info, *store.snapshot(), plug_lm_retriever(3));
    model->mlm_loss(out.prehead, batch.labels).backward();
    for (const auto& [name, t] : model->weights())
        if (name.find("value_proj.weight") != name.npos) REQUIRE(t.grad().abs().sum().item<double>() > 0);
    KnowledgeStore without(8, 0, 0);
    without.append(nn::as_rows(keys), Rows(nullptr, 12, 0));
    REQUIRE_THROWS_AS(model->forward(batch.tokens, batch.info, *without.snapshot(), plug_lm_retriever(3)), Error);
    config.memory.fix_keys = false, config.memory.fix_values = true;
    REQUIRE_THROWS_AS(small_model(config), Error);
}

TEST_CASE("plug_lm: configs that ask for what does not exist are refused by field") {
    nlohmann::json good = nn::plug_lm_json(small_config());
    REQUIRE(nn::plug_lm_json(nn::plug_lm_config(good, "config")) == good);
    for (const auto& [field, value] : std::map<std::string, nlohmann::json>{{"document_encoder_type", "first_n"},
                                                                            {"memory_pooler_type", "cls"},
                                                                            {"knowledge_attention_type", "dense"},
                                                                            {"memory_k", "five"},
                                                                            {"knowledge_head_merge", "both"}}) {
        nlohmann::json bad = good;
        bad["model_args"][field] = value;
        REQUIRE_THROWS_WITH(nn::plug_lm_config(bad, "config"), Catch::Contains(field));
    }
}

TEST_CASE("plug_lm: a training batch of one sequence is refused where batch norm couples queries") {
    nn::PlugLm model = small_model(small_config());
    KnowledgeStore store(8, 0, 6);
    const auto batch = some_batch(2);
    REQUIRE_THROWS_WITH(model->forward(batch.tokens.narrow(0, 0, 1), {}, *store.snapshot(), plug_lm_retriever(3)),
                        Catch::Contains("batch norm"));
}
