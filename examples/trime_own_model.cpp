// SPDX-License-Identifier: MIT
// TRIME for a model of one's own: any torch::nn::Module that has hidden states and an output matrix. Two things change:
// the loss while training, and the scoring of text. Here the model is a GRU that reads a toy language in which every
// text has names of its own, so that what was said before is worth remembering.
#include <mnemo/nn/trime.hpp>
#include <mnemo/nn/trime_scorer.hpp>

#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/rnn.h>
#include <torch/optim/adam.h>

#include <cstdio>

using namespace mnemo;

// The user's model, as it was.
struct GruLmImpl : torch::nn::Module {
    torch::nn::Embedding embedding{nullptr};
    torch::nn::GRU gru{nullptr};
    torch::nn::Linear output{nullptr};
    GruLmImpl(std::int64_t vocab, std::int64_t dim) {
        embedding = register_module("embedding", torch::nn::Embedding(vocab, dim));
        gru = register_module("gru", torch::nn::GRU(torch::nn::GRUOptions(dim, dim).batch_first(true)));
        output = register_module("output", torch::nn::Linear(torch::nn::LinearOptions(dim, vocab).bias(false)));
    }
    at::Tensor states(const at::Tensor& tokens) { return std::get<0>(gru(embedding(tokens))); } // [batch, length, dim]
};
TORCH_MODULE(GruLm);

constexpr std::int64_t kVocab = 200, kDim = 32, kLength = 48, kBatch = 16;

// Texts [count, kLength + 1] of "subject verb object" with four verbs: after a subject its verb, after it the object
// that this text pairs with the subject.
at::Tensor texts(std::int64_t count) {
    const at::Tensor subjects = at::randint(10, 110, {count, 4}), objects = at::randint(110, kVocab, {count, 4});
    const at::Tensor which = at::randint(4, {count, kLength / 3 + 1});
    return at::stack({subjects.gather(1, which), which + 2, objects.gather(1, which)}, 2)
        .view({count, -1})
        .narrow(1, 0, kLength + 1);
}

// Trains with memory, or without for comparison; returns perplexity of new texts with and without memory.
std::pair<double, double> run(bool memory, int steps) {
    torch::manual_seed(1);
    GruLm model(kVocab, kDim);
    torch::optim::Adam optimizer(model->parameters(), torch::optim::AdamOptions(5e-3));
    for (int step = 0; step < steps; ++step) {
        const at::Tensor text = texts(kBatch);
        const at::Tensor states = model->states(text.narrow(1, 0, kLength));
        // ---- The change: keys are the states, plain tensors go in, a scalar comes out.
        const nn::TrimeLoss loss = nn::trime_loss({states, states, text.narrow(1, 1, kLength).contiguous()},
                                                  {model->output->weight, {}, {}}, {.cross_entropy = !memory});
        optimizer.zero_grad();
        (loss.loss / static_cast<double>(loss.tokens)).backward();
        optimizer.step();
    }
    // ---- And scoring: one softmax over the vocabulary and the text so far.
    const at::NoGradGuard no_grad;
    const auto perplexity = [&](bool local) {
        torch::manual_seed(2);
        nn::TrimeScorer scorer({model->output->weight, {}, {}}, {.local = local}, kDim);
        double sum = 0;
        const at::Tensor text = texts(50), states = model->states(text.narrow(1, 0, kLength));
        for (std::int64_t i = 0; i < text.size(0); ++i)
            sum -= scorer.score({states[i], states[i], text[i].narrow(0, 0, kLength), text[i].narrow(0, 1, kLength)})
                       .log_p.mean()
                       .item<double>();
        return std::exp(sum / static_cast<double>(text.size(0)));
    };
    return {perplexity(true), perplexity(false)};
}

int main() {
    const auto [cache, alone] = run(false, 150);
    const auto [with, without] = run(true, 150);
    std::printf("perplexity of new texts        with memory  without\n"
                "trained with cross-entropy %15.2f %8.2f\n"
                "trained with memory        %15.2f %8.2f\n",
                cache, alone, with, without);
    return with < cache && with < alone ? 0 : 1;
}
