// SPDX-License-Identifier: MIT
#include <mnemo/loss/label_metrics.hpp>
#include <mnemo/nn/plug_lm_fine_tune.hpp>

#include <catch.hpp>

using namespace mnemo;

namespace {
nn::PlugLm small_model() {
    nn::PlugLmConfig config;
    auto& b = config.bert;
    b.model_type = "bert", b.vocab_size = 30, b.dim = b.input_dim = 16, b.ffn_dim = 24, b.layers = 2;
    b.heads = b.kv_heads = 4, b.head_dim = 4, b.max_positions = 16, b.segments = 2, b.activation = "gelu";
    b.causal = b.norm_first = b.final_norm = false, b.embedding_norm = true, b.attention_scale = 0.5;
    config.memory.memory_ffn_dim = 16, config.memory.memory_k = 2, config.memory.query_size = 8;
    config.memory.fix_keys = config.memory.fix_values = true;
    torch::manual_seed(1);
    return nn::PlugLm(config, nn::fresh_plug_lm(0.25), false);
}
} // namespace

TEST_CASE("plug_lm: fine-tuning learns labels of texts, of tokens and of spans") {
    const at::Tensor keys = at::randn({6, 8}), values = at::randn({6, 16});
    KnowledgeStore store(8, 16);
    store.append(nn::as_rows(keys), nn::as_rows(values));
    const auto knowledge = store.snapshot();
    // The answer is where word 7 is: before or after the middle, its place, the span from it to the next word.
    std::vector<std::vector<std::int32_t>> lines(12, {10, 11, 12, 13, 14, 15});
    std::vector<std::int64_t> side;
    const at::Tensor token_labels = at::full({12, 16}, -100, at::kLong), spans = at::zeros({12, 2}, at::kLong);
    for (std::size_t i = 0; i < lines.size(); ++i) {
        const std::size_t place = i % 5;
        lines[i][place] = 7;
        side.push_back(place < 3 ? 0 : 1);
        const auto row = static_cast<std::int64_t>(i), at = static_cast<std::int64_t>(place) + 1;
        for (std::int64_t j = 1; j < 7; ++j) token_labels[row][j] = j == at ? 1 : 0;
        spans[row][0] = at, spans[row][1] = at + 1;
    }
    std::vector<TokenPair> texts;
    for (const auto& line : lines) texts.push_back({line, {}});
    nn::TaskBatch batch = nn::collate_texts(texts, 1, 2);
    REQUIRE(batch.tokens.size(1) == 16); // 8 tokens: a multiple of 8 gains 8 more
    REQUIRE(batch.info.mask[0].sum().item<std::int64_t>() == 8);
    const auto retriever = plug_lm_retriever(2);
    for (const auto task : {nn::Task::single_label, nn::Task::token, nn::Task::span}) {
        batch.labels = task == nn::Task::single_label ? at::tensor(side)
                       : task == nn::Task::token      ? token_labels
                                                      : spans;
        nn::TaskHead head(task, 16, 2, nn::fresh_plug_lm(0.25));
        nn::PlugLmFineTuner tuner(small_model(), head, {150, 5e-3});
        const double first = tuner.step(batch, *knowledge, retriever);
        double last = first;
        while (tuner.done() < 150) last = tuner.step(batch, *knowledge, retriever);
        INFO(name(task) << ": " << first << " to " << last);
        REQUIRE(last < 0.1 * first);
        REQUIRE_THROWS_AS(tuner.step(batch, *knowledge, retriever), Error);
        if (task != nn::Task::single_label) continue;
        const at::Tensor best = tuner.predict(batch, *knowledge, retriever).argmax(1);
        const std::vector<std::int64_t> predicted(best.data_ptr<std::int64_t>(), best.data_ptr<std::int64_t>() + 12);
        REQUIRE(accuracy(side, predicted) == 1);
        // Another base, without training: the model answers from what is there now.
        KnowledgeStore none(8, 16);
        REQUIRE(
            !at::equal(tuner.predict(batch, *none.snapshot(), retriever), tuner.predict(batch, *knowledge, retriever)));
    }
}

TEST_CASE("plug_lm: the first piece of a word has its label") {
    const std::vector<index_t> pieces = {1, 3, 0, 2};
    const std::vector<std::int64_t> labels = {4, 5, 6, 7};
    REQUIRE(nn::first_piece_labels(pieces, labels, 9) ==
            std::vector<std::int64_t>{-100, 4, 5, -100, -100, 7, -100, -100, -100});
    REQUIRE(nn::first_piece_labels(pieces, labels, 5)[2] == 5);
    REQUIRE_THROWS_AS(nn::first_piece_labels(pieces, std::vector<std::int64_t>{1}, 9), Error);
}
