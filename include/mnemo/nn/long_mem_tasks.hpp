// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/nn/long_mem.hpp>
#include <mnemo/papers/long_mem_tasks.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mnemo::nn {

/// How demonstrations are laid out.
struct InContextOptions {
    index_t segment = long_mem_knobs::segment; // tokens of demonstrations that are read at a time
    index_t most = 0;                          // tokens of a prompt: longer ones lose their beginning; 0: any
    bool tail = false;                         // of the remembered ones, less than a segment; the reference drops it
    std::int32_t begin = 0, end = 2;           // stand around every example; -1: nothing
};

/// What came of a task's queries.
struct InContextFigures {
    index_t queries = 0;
    index_t begins = 0; // as published: the most probable token begins the label
    index_t ranks = 0;  // of all labels, the right one is the most probable
    double published_accuracy() const { return static_cast<double>(begins) / static_cast<double>(queries); }
    double label_accuracy() const { return static_cast<double>(ranks) / static_cast<double>(queries); }
};

/// A task by demonstrations in the memory and in the prompt (Wang et al. 2023, section 3.4; the published evaluation's
/// order). The tokenizer has encode(text, ids) and decode(ids). The model's bank is of one row.
template <class BanksT, class Tokenizer> class InContext {
  public:
    InContext(LongMem<BanksT>& model, const InContextTask& task, const Tokenizer& tokenizer,
              InContextOptions options = {})
        : model_(&model), task_(task), tokenizer_(&tokenizer), options_(options) {
        if (options.segment < 1) fail("in-context task: expected a segment of at least 1 token, got ", options.segment);
        if (model.banks().batch() != 1) fail("in-context task: expected a batch of 1, got ", model.banks().batch());
        if (task.classes < 1 || task.classes > task.labels.size())
            fail("in-context task: expected 1 to ", task.labels.size(), " labels, got ", task.classes);
    }

    /// Forgets all and remembers these, one stream in segments; each segment reads those before it.
    void remember(std::span<const InContextExample> examples) {
        model_->banks().clear();
        std::vector<std::int32_t> stream;
        for (const InContextExample& e : examples) add(demonstration(task_, e.text, e.label), true, stream);
        const at::NoGradGuard no_grad;
        model_->side().ptr()->eval();
        const std::size_t segment = static_cast<std::size_t>(options_.segment);
        for (std::size_t first = 0; first < stream.size(); first += segment) {
            const std::size_t n = std::min(segment, stream.size() - first);
            if (n < segment && !options_.tail) break;
            model_->forward(tensor(std::span(stream).subspan(first, n)));
            model_->remember();
        }
    }
    /// The prompt of a query: demonstrations `shown`, then the text up to its label.
    std::vector<std::int32_t> prompt(std::span<const InContextExample> shown, std::string_view text) const {
        std::vector<std::int32_t> ids;
        for (const InContextExample& e : shown) add(demonstration(task_, e.text, e.label), true, ids);
        add(in_context_query(task_, text), false, ids);
        return ids;
    }
    /// Log-probabilities [vocab_size] of the token behind a prompt, which is read and not remembered.
    at::Tensor next(std::span<const std::int32_t> prompt) const {
        const at::NoGradGuard no_grad;
        model_->side().ptr()->eval();
        const at::Tensor states = model_->forward(tensor(end_of(prompt)));
        return at::log_softmax(model_->logits(states.narrow(1, states.size(1) - 1, 1)).to(at::kFloat), -1).view({-1});
    }
    /// Log-probability of each label of the task behind a prompt.
    std::vector<double> label_log_probs(std::span<const std::int32_t> prompt) const {
        const at::NoGradGuard no_grad;
        model_->side().ptr()->eval();
        std::vector<double> out;
        for (std::size_t c = 0; c < task_.classes; ++c) {
            std::vector<std::int32_t> label, all(prompt.begin(), prompt.end());
            tokenizer_->encode(" " + std::string(task_.labels[c]), label);
            all.insert(all.end(), label.begin(), label.end());
            const at::Tensor inputs = tensor(end_of(std::span(all).first(all.size() - 1)));
            const auto n = static_cast<std::int64_t>(label.size());
            const at::Tensor states = model_->forward(inputs);
            const at::Tensor targets = tensor(label);
            const at::Tensor log_p =
                model_->log_prob_target(states.narrow(1, inputs.size(1) - n, n).contiguous(), targets);
            out.push_back(log_p.sum().item<double>());
        }
        return out;
    }
    /// Asks for the labels of `asked`, each behind the same demonstrations.
    InContextFigures score(std::span<const InContextExample> shown, std::span<const InContextExample> asked) const {
        InContextFigures figures;
        for (const InContextExample& e : asked) {
            const auto ids = prompt(shown, e.text);
            const at::Tensor log_p = next(ids);
            const auto best = static_cast<std::int32_t>(log_p.argmax().item<std::int64_t>());
            const std::vector<double> labels = label_log_probs(ids);
            const auto top = static_cast<std::size_t>(std::max_element(labels.begin(), labels.end()) - labels.begin());
            ++figures.queries;
            figures.begins += begins_label(tokenizer_->decode(std::span(&best, 1)), e.label) ? 1 : 0;
            figures.ranks += task_.labels[top] == e.label ? 1 : 0;
        }
        return figures;
    }

  private:
    void add(const std::string& text, bool ends, std::vector<std::int32_t>& ids) const {
        if (options_.begin >= 0) ids.push_back(options_.begin);
        tokenizer_->encode(text, ids);
        if (ends && options_.end >= 0) ids.push_back(options_.end);
    }
    std::span<const std::int32_t> end_of(std::span<const std::int32_t> ids) const {
        const auto most = static_cast<std::size_t>(options_.most);
        return most == 0 || ids.size() <= most ? ids : ids.last(most);
    }
    static at::Tensor tensor(std::span<const std::int32_t> ids) {
        const at::Tensor out = at::empty({1, static_cast<std::int64_t>(ids.size())}, at::kLong);
        std::copy(ids.begin(), ids.end(), out.data_ptr<std::int64_t>());
        return out;
    }

    LongMem<BanksT>* model_;
    InContextTask task_;
    const Tokenizer* tokenizer_;
    InContextOptions options_;
};

} // namespace mnemo::nn
