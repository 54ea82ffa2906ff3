// SPDX-License-Identifier: MIT
#pragma once

// The model of examples/plug_lm.cpp: how it begins, what it is asked, how it learns to read a base.
#include "plug_lm_text.hpp"

#include <mnemo/app/progress.hpp>
#include <mnemo/app/svg.hpp>
#include <mnemo/nn/plug_lm_train.hpp>

struct Settings {
    std::string folder = "plug_lm.out";
    std::vector<std::string> text;
    index_t seed = 1, steps = 800, entries = 4;
    double rate = 6e-3;
    bool quick = false;
    std::size_t facts = 48, words = 12;
};

inline nn::PlugLmConfig config_of(const Settings& set, index_t vocabulary) {
    nn::PlugLmConfig config;
    auto& b = config.bert;
    b.model_type = "bert", b.vocab_size = vocabulary, b.dim = b.input_dim = 64, b.ffn_dim = 128, b.layers = 2;
    b.heads = b.kv_heads = 4, b.head_dim = 16, b.max_positions = 16, b.segments = 2, b.activation = "gelu";
    b.causal = b.norm_first = b.final_norm = false, b.embedding_norm = true, b.norm_epsilon = 1e-12;
    b.attention_scale = 0.25;
    config.memory.memory_ffn_dim = 64, config.memory.memory_k = set.entries, config.memory.query_size = 64;
    config.memory.refreshing_steps = 1; // the base changes with every step
    return config;
}

// Begins so that what shares words is near before anything is learned: queries and keys are the same map, words weigh
// more than places, and layers do next to nothing. Which entries are near has no gradient; it is found, not learned.
inline nn::PlugLm fresh_model(const nn::PlugLmConfig& config) {
    const double unit = 1 / std::sqrt(static_cast<double>(config.bert.dim));
    const auto small = nn::fresh_plug_lm(0.02), large = nn::fresh_plug_lm(unit);
    const at::Tensor shared = large("query_proj.weight", {config.memory.query_size, config.bert.dim});
    return nn::PlugLm(config, [=](const std::string& name, at::IntArrayRef shape) {
        const auto has = [&](const char* part) { return name.find(part) != name.npos; };
        if (has("query_proj.weight") || has("key_proj.weight")) return shared.clone();
        return has("word_embeddings") || has("value_proj") || has("know_attn") || has("cls.") ? large(name, shape)
                                                                                              : small(name, shape);
    });
}

inline std::vector<std::size_t> numbers(std::size_t begin, std::size_t end) {
    std::vector<std::size_t> out(end - begin);
    std::iota(out.begin(), out.end(), begin);
    return out;
}

struct Answers {
    std::vector<std::int32_t> words; // of each fact
    at::Tensor logits;               // [facts, vocabulary]
    Hits hits;
};

class Reader {
  public:
    Reader(nn::PlugLm model, const Facts& facts) : model_(std::move(model)), facts_(facts) {}

    /// A base of facts [begin, end), encoded by the model as it is.
    void encode(KnowledgeStore& store, const Assignment& words, std::size_t begin, std::size_t end) const {
        nn::encode_knowledge(store, model_->encoder(), facts_.documents(words, begin, end).view(),
                             begin == 0 ? facts_.names[0] : facts_.names[1]);
    }
    KnowledgeStore empty() const {
        return KnowledgeStore(model_->config().memory.query_size, model_->config().bert.dim, kLength);
    }
    Answers ask(const KnowledgeSnapshot& base, const std::vector<std::size_t>& which) {
        const torch::NoGradGuard no_grad;
        model_->eval();
        model_->read_stored(true);
        const auto batch = nn::tensors_of(facts_.questions(facts_.truths(), which));
        const auto out =
            model_->forward(batch.tokens, batch.info, base, plug_lm_retriever(model_->config().memory.memory_k));
        model_->read_stored(false);
        Answers answers;
        const at::Tensor rows = batch.labels.ne(-1).nonzero();
        answers.logits = model_->mlm_logits(out.prehead.index({rows.select(1, 0), rows.select(1, 1)}));
        const at::Tensor best = answers.logits.argmax(1);
        for (index_t i = 0; i < best.size(0); ++i)
            answers.words.push_back(static_cast<std::int32_t>(best[i].item<std::int64_t>()));
        answers.hits = out.layers[0].hits;
        return answers;
    }
    /// Percent of the first domain's facts whose own entry is among those recalled.
    double found(const KnowledgeSnapshot& base) {
        const Answers answers = ask(base, numbers(0, facts_.first));
        index_t right = 0;
        for (index_t i = 0; i < answers.hits.rows(); ++i)
            for (const index_t row : answers.hits.ids(i)) right += base.id(row) == i;
        return 100 * static_cast<double>(right) / static_cast<double>(facts_.first);
    }
    /// Percent of `which` that are answered as in `words`.
    double share(const KnowledgeSnapshot& base, const Assignment& words, const std::vector<std::size_t>& which) {
        const Answers answers = ask(base, which);
        std::size_t right = 0;
        for (std::size_t i = 0; i < which.size(); ++i) right += answers.words[i] == words[which[i]];
        return 100 * static_cast<double>(right) / static_cast<double>(which.size());
    }

  private:
    nn::PlugLm model_;
    const Facts& facts_;
};

struct Checks {
    bool passed = true, quick = false;
    void expect(const std::string& what, bool ok) {
        if (quick) return; // a model that has learned nothing
        fmt::print("{} {}\n", ok ? "ok  " : "FAIL", what);
        passed = passed && ok;
    }
};

inline nn::PlugLm train(const Settings& set, const Facts& facts, Series& curve) {
    torch::manual_seed(static_cast<std::uint64_t>(set.seed));
    const nn::PlugLm model = fresh_model(config_of(set, static_cast<index_t>(facts.words.size())));
    std::mt19937_64 draw(static_cast<std::uint64_t>(set.seed));
    Assignment now = facts.random(draw);
    nn::PlugLmTraining options;
    options.decay = {set.rate, 0.1, 0.5, set.steps};
    options.seed = static_cast<std::uint64_t>(set.seed);
    nn::PlugLmTrainer trainer(model, facts.documents(now, 0, facts.first), options);
    Reader reader(model, facts);
    const Assignment unseen = facts.unlike(facts.truths(), draw);
    Progress bar("pre-training", "steps");
    const auto retriever = plug_lm_retriever(model->config().memory.memory_k);
    while (trainer.done() < set.steps) {
        now = facts.random(draw); // the weights cannot know what changes with every step
        trainer.set_documents(facts.documents(now, 0, facts.first));
        trainer.step([&](index_t) { return nn::tensors_of(facts.questions(now, numbers(0, facts.first))); }, retriever);
        bar(trainer.done(), set.steps);
        if (trainer.done() % 100 != 0) continue;
        KnowledgeStore base = reader.empty();
        reader.encode(base, unseen, 0, facts.first);
        curve.x.push_back(static_cast<double>(trainer.done()));
        curve.y.push_back(reader.share(*base.snapshot(), unseen, numbers(0, facts.first)));
    }
    std::filesystem::create_directories(set.folder);
    trainer.save(set.folder + "/model.safetensors");
    atomic_write(set.folder + "/config.json", nn::plug_lm_json(model->config()).dump(4));
    return model;
}
