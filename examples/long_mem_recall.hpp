// SPDX-License-Identifier: MIT
#pragma once

// The first part of examples/long_mem.cpp: a text that only memory can foretell. Names stand before their values, name
// by name at random; which value a name has is drawn anew for each document, so that it must be remembered.
#include <mnemo/nn/long_mem_train.hpp>

#include <torch/optim/adamw.h>
#include <torch/utils.h>

#include <functional>
#include <random>

using namespace mnemo;

using Tick = std::function<void()>; // called once a step, for progress

struct RecallTask {
    index_t names = 64, values = 32, of_document = 32, first_name = 4;
    index_t vocab() const { return first_name + names + values; }

    // name value name value ..., of `most` names at most
    std::vector<std::int32_t> document(std::mt19937_64& draw, index_t tokens, index_t most) const {
        std::vector<std::int32_t> all(static_cast<std::size_t>(names)), text;
        for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::int32_t>(first_name) + int(i);
        std::shuffle(all.begin(), all.end(), draw);
        std::vector<std::int32_t> value(static_cast<std::size_t>(most));
        for (std::int32_t& v : value) v = static_cast<std::int32_t>(first_name + names) + int(draw() % size(values));
        while (static_cast<index_t>(text.size()) < tokens) {
            const std::size_t i = draw() % size(most);
            text.push_back(all[i]), text.push_back(value[i]);
        }
        return text;
    }
    static std::size_t size(index_t n) { return static_cast<std::size_t>(n); }
};

struct RecallSettings {
    index_t dim = 64, heads = 4, layers = 4, reduction = 2, segment = 48, segments = 8;
    index_t backbone_steps = 1800, rows = 16, side_documents = 720, side_rows = 4, tests = 40;
    LongMemOptions bank{.heads = 4, .head_dim = 16, .memory_tokens = 2048, .chunk = 2, .k = 16};
};

// Rows of documents as tokens and targets.
inline std::pair<at::Tensor, at::Tensor> recall_rows(const std::vector<std::vector<std::int32_t>>& rows, index_t first,
                                                     index_t n) {
    const auto batch = static_cast<std::int64_t>(rows.size());
    const at::Tensor tokens = at::empty({batch, n}, at::kLong), targets = at::empty({batch, n}, at::kLong);
    for (std::int64_t r = 0; r < batch; ++r) {
        const auto from = rows[static_cast<std::size_t>(r)].begin() + first;
        std::copy_n(from, n, tokens[r].data_ptr<std::int64_t>());
        std::copy_n(from + 1, n, targets[r].data_ptr<std::int64_t>());
    }
    return {tokens, targets};
}

inline nn::HuggingFaceLm recall_backbone(const RecallTask& task, const RecallSettings& set, std::uint64_t seed,
                                         const Tick& tick) {

    nn::HuggingFaceLm backbone =
        nn::random_backbone(nn::long_mem_backbone_options(task.vocab(), set.dim, set.layers, set.heads), 0.08, seed);
    torch::optim::AdamW optimizer(backbone->parameters(), torch::optim::AdamWOptions(2e-3).weight_decay(0.01));
    std::mt19937_64 draw(seed);
    for (index_t step = 0; step < set.backbone_steps; ++step) {
        std::vector<std::vector<std::int32_t>> rows;
        for (index_t r = 0; r < set.rows; ++r)
            rows.push_back(task.document(draw, set.segment + 1, 4 + index_t(draw() % 13)));
        const auto [tokens, targets] = recall_rows(rows, 0, set.segment);
        optimizer.zero_grad();
        (-backbone->log_prob_target(backbone->forward(tokens), targets).mean()).backward();
        optimizer.step();
        tick();
    }
    return backbone;
}

inline nn::LongMem<> recall_model(const nn::HuggingFaceLm& backbone, const RecallSettings& set, index_t layer) {
    return {backbone, nn::side_network_from(backbone, set.reduction, layer), set.reduction, layer,
            LongMemBanks(set.bank, set.side_rows)};
}

// The side network, on documents of several segments; `remember` false: it never sees a memory.
inline void train_recall(nn::LongMem<>& model, const RecallTask& task, const RecallSettings& set, bool remember,
                         std::uint64_t seed, const Tick& tick) {
    std::vector<at::Tensor> parameters;
    for (const auto& [name, weight] : model.side()->weights()) parameters.push_back(weight);
    torch::optim::AdamW optimizer(parameters, torch::optim::AdamWOptions(1e-3).weight_decay(0.01));
    std::mt19937_64 draw(seed + 1000);
    const index_t batch = model.banks().batch();
    for (index_t document = 0; document < set.side_documents; document += batch) {
        std::vector<std::vector<std::int32_t>> rows;
        for (index_t r = 0; r < batch; ++r)
            rows.push_back(task.document(draw, set.segment * set.segments + 1, task.of_document));
        model.banks().clear();
        for (index_t s = 0; s < set.segments; ++s) {
            const auto [tokens, targets] = recall_rows(rows, s * set.segment, set.segment);
            optimizer.zero_grad();
            (-model.log_prob_target(model.forward(tokens), targets).mean()).backward();
            optimizer.step();
            if (remember) model.remember();
        }
        tick();
    }
}

// Share of the values that are foretold, by segment.
inline std::vector<double> recall_accuracy(nn::LongMem<>& model, const RecallTask& task, const RecallSettings& set,
                                           bool remember, std::uint64_t seed) {
    const at::NoGradGuard no_grad;
    model.side().ptr()->eval();
    std::mt19937_64 draw(seed + 2000);
    std::vector<double> right(static_cast<std::size_t>(set.segments)), all(right.size());
    const index_t batch = model.banks().batch();
    for (index_t document = 0; document < set.tests; document += batch) {
        std::vector<std::vector<std::int32_t>> rows;
        for (index_t r = 0; r < batch; ++r)
            rows.push_back(task.document(draw, set.segment * set.segments + 1, task.of_document));
        model.banks().clear();
        for (index_t s = 0; s < set.segments; ++s) {
            const auto [tokens, targets] = recall_rows(rows, s * set.segment, set.segment);
            const at::Tensor best = model.logits(model.forward(tokens)).argmax(-1);
            const at::Tensor value = targets.ge(task.first_name + task.names);
            right[static_cast<std::size_t>(s)] += best.eq(targets).logical_and(value).sum().item<double>();
            all[static_cast<std::size_t>(s)] += value.sum().item<double>();
            if (remember) model.remember();
        }
    }
    for (std::size_t s = 0; s < right.size(); ++s) right[s] /= all[s];
    return right;
}
