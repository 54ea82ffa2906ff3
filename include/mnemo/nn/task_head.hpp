// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/nn/plug_lm.hpp>

#include <string_view>

namespace mnemo::nn {

/// What is asked of a text encoder: one number, one label or several labels of a text, a label for each token, the span
/// of an answer, or yes or no.
enum class Task : std::uint8_t { regression, single_label, multi_label, token, span, yes_no };
constexpr std::string_view name(Task t) {
    constexpr std::string_view names[] = {"regression", "single_label", "multi_label", "token", "span", "yes_no"};
    return names[static_cast<std::size_t>(t)];
}

/// A linear map of an encoder's hidden rows for one task, of the pooled first row where a text has one answer. Weights
/// are called as in BERT's task models.
class TaskHeadImpl : public SourcedModule {
  public:
    TaskHeadImpl(Task task, std::int64_t dim, std::int64_t labels, const Source& source, double dropout = 0)
        : task_(task), labels_(task == Task::span                                 ? 2
                               : task == Task::regression || task == Task::yes_no ? 1
                                                                                  : labels),
          dropout_(dropout) {
        if (labels_ < 1) fail("task head: expected at least one label, got ", labels);
        if (!(dropout >= 0 && dropout < 1)) fail("task head: dropout: expected a number in [0, 1), got ", dropout);
        if (pooled()) pooler_ = add_linear(source, "bert.pooler.dense", dim, dim);
        out_ = add_linear(source,
                          task == Task::span     ? "qa_outputs"
                          : task == Task::yes_no ? "regressor"
                                                 : "classifier",
                          labels_, dim);
    }

    /// hidden [B, T, d] -> [B, labels], or [B, T, labels] for token and span (start, end).
    at::Tensor forward(const at::Tensor& hidden) const {
        if (hidden.dim() != 3) fail("task head: expected hidden rows [B, T, d], got ", describe(hidden));
        at::Tensor x = pooled() ? at::tanh(pooler_(hidden.select(1, 0))) : hidden;
        if (task_ != Task::span && dropout_ > 0 && is_training()) x = at::dropout(x, dropout_, true);
        return out_(x);
    }
    /// Labels: numbers [B] (regression), Long [B] (single_label, yes_no), 0 or 1 [B, labels] (multi_label), Long [B, T]
    /// with -100 for none (token), Long [B, 2] (span: positions outside the text count as none).
    at::Tensor loss(const at::Tensor& logits, const at::Tensor& labels) const {
        switch (task_) {
        case Task::regression:
            return at::mse_loss(logits.squeeze(-1), labels.to(logits.scalar_type()));
        case Task::single_label:
            return at::cross_entropy_loss(logits, labels);
        case Task::multi_label:
            return at::binary_cross_entropy_with_logits(logits, labels.to(logits.scalar_type()));
        case Task::yes_no:
            return at::binary_cross_entropy_with_logits(logits.squeeze(-1), labels.to(logits.scalar_type()));
        case Task::token:
            return at::cross_entropy_loss(logits.reshape({-1, labels_}), labels.reshape(-1), {}, 1, -100);
        case Task::span:
            break;
        }
        const std::int64_t length = logits.size(1);
        const auto one = [&](std::int64_t end) {
            return at::cross_entropy_loss(logits.select(2, end), labels.select(1, end).clamp(0, length), {}, 1, length);
        };
        return (one(0) + one(1)) / 2;
    }

    Task task() const { return task_; }
    std::int64_t labels() const { return labels_; }

  private:
    bool pooled() const { return task_ != Task::token && task_ != Task::span; }

    Task task_;
    std::int64_t labels_;
    double dropout_;
    Linear pooler_, out_;
};
TORCH_MODULE(TaskHead);

} // namespace mnemo::nn
