// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/nn/plug_lm_model.hpp>
#include <mnemo/nn/task_head.hpp>

#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/adamw.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>
#include <vector>

namespace mnemo::nn {

/// A batch of a task: tokens Long [B, T], and labels as TaskHead::loss takes them.
struct TaskBatch {
    at::Tensor tokens;
    TokenInfo info;
    at::Tensor labels;
};

/// `[CLS] a [SEP]`, and `b [SEP]` where there is a second text, padded as PlugLM's fine-tuning pads: to the next
/// multiple of 8 above the longest, even where that is one already. The reference's merge of heads sees the padding.
inline TaskBatch collate_texts(std::span<const TokenPair> texts, std::int32_t cls, std::int32_t sep,
                               std::int32_t pad = 0) {
    std::size_t widest = 0;
    for (const TokenPair& t : texts) widest = std::max(widest, t.a.size() + 2 + (t.b.empty() ? 0 : t.b.size() + 1));
    const auto rows = static_cast<std::int64_t>(texts.size()), width = static_cast<std::int64_t>(widest / 8 * 8 + 8);
    TaskBatch batch;
    batch.tokens = at::full({rows, width}, pad, at::kLong);
    batch.info.mask = at::zeros({rows, width}, at::kLong), batch.info.segments = at::zeros({rows, width}, at::kLong);
    for (std::int64_t i = 0; i < rows; ++i) {
        std::int64_t at = i * width;
        const auto put = [&](std::int32_t id, std::int64_t segment) {
            batch.tokens.data_ptr<std::int64_t>()[at] = id;
            batch.info.segments.data_ptr<std::int64_t>()[at] = segment;
            batch.info.mask.data_ptr<std::int64_t>()[at++] = 1;
        };
        const TokenPair& t = texts[static_cast<std::size_t>(i)];
        put(cls, 0);
        for (const std::int32_t id : t.a) put(id, 0);
        put(sep, 0);
        for (const std::int32_t id : t.b) put(id, 1);
        if (!t.b.empty()) put(sep, 1);
    }
    return batch;
}

/// Labels of a sentence's tokens: the first piece of each word has the word's, everything else -100. `pieces` says how
/// many pieces each word has; the row begins with `[CLS]` and is `width` long, what is behind it left out.
inline std::vector<std::int64_t> first_piece_labels(std::span<const index_t> pieces,
                                                    std::span<const std::int64_t> labels, index_t width) {
    expect_equal("first_piece_labels: labels", labels.size(), pieces.size());
    std::vector<std::int64_t> out(static_cast<std::size_t>(width), -100);
    index_t at = 1;
    for (std::size_t word = 0; word < pieces.size(); ++word) {
        if (pieces[word] > 0 && at < width) out[static_cast<std::size_t>(at)] = labels[word];
        at += pieces[word];
    }
    return out;
}

struct FineTuning {
    index_t steps = 1000;
    double learning_rate = 5e-5; // falls linearly to 0, without warm-up
    double weight_decay = 0, max_norm = 1;
    std::uint64_t seed = 42;      // of dropout
    bool mixed_precision = false; // as in PlugLmTraining
};

/// Fine-tunes a model and a head for a task, with AdamW. Entries are read as they are stored; which base that is may
/// differ from step to step, and from training to use: domain adaptation hands over another snapshot.
class PlugLmFineTuner {
  public:
    PlugLmFineTuner(PlugLm model, TaskHead head, FineTuning options)
        : model_(std::move(model)), head_(std::move(head)), options_(options) {
        if (options.steps < 1) fail("fine-tuning: steps: expected at least 1, got ", options.steps);
        if (!model_->encoder().is_empty()) model_->read_stored(true);
        for (const auto& [name, p] : model_->weights())
            if (name.find("encoder.retriever.") == name.npos) parameters_.push_back(p);
        for (const at::Tensor& p : head_->parameters()) parameters_.push_back(p);
        optimizer_ = std::make_unique<torch::optim::AdamW>(
            parameters_, torch::optim::AdamWOptions(options.learning_rate).weight_decay(options.weight_decay));
    }

    /// One update; returns the loss before it. All steps done, or a loss that is not finite, is an Error.
    template <class RetrieverT>
    double step(const TaskBatch& batch, const KnowledgeSnapshot& knowledge, const RetrieverT& retriever) {
        if (done_ >= options_.steps) fail("fine-tuning: all ", options_.steps, " steps are done");
        const at::AutoGradMode with_gradients(true);
        at::manual_seed(options_.seed + static_cast<std::uint64_t>(done_));
        model_->train(), head_->train();
        const double part = static_cast<double>(done_) / static_cast<double>(options_.steps);
        for (auto& group : optimizer_->param_groups())
            static_cast<torch::optim::AdamWOptions&>(group.options()).lr(options_.learning_rate * (1 - part));
        optimizer_->zero_grad();
        const at::Tensor loss = [&] {
            const Autocast autocast(options_.mixed_precision);
            const auto out = model_->forward(batch.tokens, batch.info, knowledge, retriever);
            return head_->loss(head_->forward(out.hidden), batch.labels);
        }();
        const double value = loss.template item<double>();
        if (!std::isfinite(value)) fail("fine-tuning, step ", done_, ": the loss is not finite");
        loss.backward();
        torch::nn::utils::clip_grad_norm_(parameters_, options_.max_norm);
        optimizer_->step();
        ++done_;
        return value;
    }

    /// The head's logits, without dropout and gradients.
    template <class RetrieverT>
    at::Tensor predict(const TaskBatch& batch, const KnowledgeSnapshot& knowledge, const RetrieverT& retriever) {
        const torch::NoGradGuard no_grad;
        model_->eval(), head_->eval();
        return head_->forward(model_->forward(batch.tokens, batch.info, knowledge, retriever).hidden);
    }
    index_t done() const { return done_; }

  private:
    PlugLm model_;
    TaskHead head_;
    FineTuning options_;
    std::vector<at::Tensor> parameters_;
    std::unique_ptr<torch::optim::AdamW> optimizer_;
    index_t done_ = 0;
};

} // namespace mnemo::nn
