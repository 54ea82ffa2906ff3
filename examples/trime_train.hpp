// SPDX-License-Identifier: MIT
#pragma once

// The trainings and the scoring of examples/trime.cpp.
#include <mnemo/mnemo.hpp>
#include <mnemo/nn/transformer_lm.hpp>
#include <mnemo/nn/trime.hpp>
#include <mnemo/nn/trime_scorer.hpp>

#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/adamw.h>

#include <functional>
#include <numbers>
#include <numeric>
#include <random>
#include <set>

using namespace mnemo;

// A text in segments of equal length: inputs and, one further, targets.
struct Segments {
    std::span<const std::int32_t> tokens;
    index_t length;
    index_t count() const { return (static_cast<index_t>(tokens.size()) - 1) / length; }
    at::Tensor rows(std::span<const index_t> ids, index_t shift) const { // Long [ids, length]
        const at::Tensor out = at::empty({static_cast<std::int64_t>(ids.size()), length}, at::kLong);
        auto* to = out.data_ptr<std::int64_t>();
        for (const index_t id : ids) to = std::copy_n(tokens.begin() + id * length + shift, length, to);
        return out;
    }
};

inline std::vector<index_t> consecutive(index_t count) {
    std::vector<index_t> order(static_cast<std::size_t>(count));
    std::iota(order.begin(), order.end(), index_t{0});
    return order;
}
inline std::vector<index_t> shuffled(std::vector<index_t> order, std::uint64_t seed) {
    std::mt19937_64 generator(seed);
    for (std::size_t i = order.size(); i-- > 1;) std::swap(order[i], order[generator() % (i + 1)]);
    return order;
}
// Segments that share rare words stand beside each other. Tokens are the words; those of every other segment say
// nothing.
inline std::vector<index_t> by_bm25(const Segments& segments, index_t neighbours) {
    const auto count = static_cast<std::size_t>(segments.count());
    const auto length = static_cast<std::size_t>(segments.length);
    const auto words = segments.tokens.first(count * length);
    std::vector<std::size_t> in_segments; // of each word
    for (std::size_t i = 0; i < count; ++i) {
        const auto segment = words.subspan(i * length, length);
        for (const std::int32_t word : std::set(segment.begin(), segment.end())) {
            if (static_cast<std::size_t>(word) >= in_segments.size())
                in_segments.resize(static_cast<std::size_t>(word) + 1);
            ++in_segments[static_cast<std::size_t>(word)];
        }
    }
    std::vector<std::int32_t> kept;
    std::vector<index_t> sizes;
    for (std::size_t i = 0; i < count; ++i) {
        const std::size_t before = kept.size();
        for (const std::int32_t word : words.subspan(i * length, length))
            if (in_segments[static_cast<std::size_t>(word)] * 5 < count) kept.push_back(word);
        sizes.push_back(static_cast<index_t>(kept.size() - before));
    }
    const Bm25Index index(kept, sizes);
    Bm25Index::Scratch scratch;
    std::vector<std::vector<index_t>> found;
    std::size_t first = 0;
    for (const index_t size : sizes) {
        const auto query = std::span(kept).subspan(first, static_cast<std::size_t>(size));
        first += query.size();
        std::vector<index_t>& ids = found.emplace_back();
        for (const Bm25Hit& hit : index.search(query, neighbours, scratch)) ids.push_back(hit.id);
    }
    return chain_neighbours(found);
}

// How a model is trained: what a batch holds, and what a token of it sees.
struct Method {
    enum Memory { none, own_segment, earlier_segments, other_segments } memory;
    const char* name;
    const std::vector<index_t>* order; // of segments; batches are cut from it and then shuffled
};

struct Training {
    index_t steps = 800, batch = 16; // segments a step
    double learning_rate = 3e-3;
    double warm_up = 0.2;        // share of the steps that are plain cross-entropy
    double cross_sentence = 0.9; // share of the batches whose tokens see other segments only
};

template <class ModelT>
void train(ModelT model, const Segments& segments, const Method& method, const Training& training, std::uint64_t seed,
           const std::function<void()>& tick) {
    torch::optim::AdamW optimizer(model->parameters(),
                                  torch::optim::AdamWOptions().betas({0.9, 0.95}).weight_decay(0.1));
    const index_t batches = static_cast<index_t>(method.order->size()) / training.batch;
    std::vector<index_t> steps;
    nn::CrossSentenceDraw cross_only(training.cross_sentence, seed);
    const std::vector<nn::Tap> taps{model->tap("ffn_in"), model->tap("prehead")};
    model->train();
    for (index_t step = 0; step < training.steps; ++step, tick()) {
        if (step % batches == 0) steps = shuffled(consecutive(batches), seed + static_cast<std::uint64_t>(step));
        const auto at = static_cast<std::size_t>(steps[static_cast<std::size_t>(step % batches)] * training.batch);
        const auto ids = std::span(*method.order).subspan(at, static_cast<std::size_t>(training.batch));
        const double part = double(step) / double(training.steps);
        const double rate =
            training.learning_rate * std::min(double(step + 1) / 50, 0.55 + 0.45 * std::cos(std::numbers::pi * part));
        for (auto& group : optimizer.param_groups()) group.options().set_lr(rate);

        const auto states = model->states(segments.rows(ids, 0), taps);
        const nn::TrimeBatch batch{states[1], states[0], segments.rows(ids, 1)};
        const nn::TrimeOptions options{.cross_entropy = method.memory == Method::none || part < training.warm_up};
        const nn::OutputLayer output = model->output_layer();
        const nn::TrimeLoss loss =
            method.memory == Method::earlier_segments ? nn::trime_long_loss_same_device(batch, output, options)
            : method.memory == Method::other_segments ? nn::trime_ext_loss(batch, output, options, cross_only())
                                                      : nn::trime_loss(batch, output, options);
        optimizer.zero_grad();
        (loss.loss / static_cast<double>(loss.tokens)).backward();
        torch::nn::utils::clip_grad_norm_(model->parameters(), 1.0);
        optimizer.step();
    }
    model->eval();
}

// A held-out text as the model sees it: computed once, scored with every memory.
struct Scored {
    std::vector<nn::TrimeWindow> windows;
    Hits found{}; // in the datastore, for the scored tokens one after another

    template <class ModelT>
    Scored(const ModelT& model, std::span<const std::int32_t> tokens, const WindowOptions& options) {
        const at::NoGradGuard no_grad;
        ContextWindows source({tokens, {}}, options);
        WindowBatch batch;
        index_t id = 0;
        while (source.next(batch)) {
            const at::Tensor inputs = at::tensor(std::vector<std::int64_t>(batch.inputs.begin(), batch.inputs.end()));
            const at::Tensor rows = inputs.view({batch.rows, batch.width});
            const auto states = model->states(rows, {model->tap("ffn_in"), model->tap("prehead")});
            for (index_t row = 0; row < batch.rows; ++row) {
                const index_t start = batch.start[static_cast<std::size_t>(row)],
                              length = batch.length[static_cast<std::size_t>(row)];
                const auto targets = batch.scored_targets(row);
                windows.push_back({states[1].select(0, row).narrow(0, start, length - start),
                                   states[0].select(0, row).narrow(0, 0, length),
                                   rows.select(0, row).narrow(0, 0, length),
                                   at::tensor(std::vector<std::int64_t>(targets.begin(), targets.end())), start, id++});
            }
        }
    }
    // Searches once for what every setting of the external memory uses.
    void search(const TokenStore<>& store, index_t k) {
        std::vector<at::Tensor> scored;
        for (const auto& w : windows) scored.push_back(w.keys.narrow(0, w.start, w.targets.size(0)));
        const at::Tensor queries = at::cat(scored).contiguous();
        found = Exact<InnerProduct>{k}.retrieve(store, nn::as_rows(queries));
    }
};

// A retriever that has searched before.
struct FoundBefore {
    const Hits& hits;
    index_t first;
    Hits retrieve(const MemoryStore auto& /*store*/, Rows queries) const {
        Hits out;
        for (index_t i = first; i < first + queries.rows; ++i) {
            for (std::size_t j = 0; j < hits.ids(i).size(); ++j) out.push(hits.ids(i)[j], hits.scores(i)[j]);
            out.end_row();
        }
        return out;
    }
};

inline double perplexity(const Scored& text, const nn::OutputLayer& output, const nn::TrimeScoring& scoring,
                         const TokenStore<>* store = nullptr) {
    nn::TrimeScorer scorer(output, scoring, text.windows[0].keys.size(1));
    Perplexity sum;
    for (const nn::TrimeWindow& w : text.windows) {
        const auto first = sum.count();
        const at::Tensor log_p =
            (store == nullptr ? scorer.score(w) : scorer.score(w, FoundBefore{text.found, first}, *store))
                .log_p.contiguous();
        sum.add(std::span(log_p.data_ptr<float>(), static_cast<std::size_t>(log_p.numel())));
    }
    return sum.perplexity();
}

// The states of the first `entries` tokens of the training text with what followed.
template <class ModelT> TokenStore<> remember(const ModelT& model, const Segments& segments, index_t entries) {
    const at::NoGradGuard no_grad;
    TokenStore<> store(model->width(model->tap("ffn_in")));
    for (index_t i = 0; i < segments.count() && store.size() < entries; ++i) {
        const at::Tensor keys =
            model->states(segments.rows(std::span(&i, 1), 0), {model->tap("ffn_in")})[0].select(0, 0).contiguous();
        store.append(nn::as_rows(keys), segments.tokens.subspan(static_cast<std::size_t>(i * segments.length + 1),
                                                                static_cast<std::size_t>(segments.length)));
    }
    return store;
}
