// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/key_rows.hpp>
#include <mnemo/kernels/product_quantizer.hpp>
#include <mnemo/nn/graph_layer.hpp>
#include <mnemo/nn/joint.hpp>
#include <mnemo/nn/output_layer.hpp>

#include <torch/csrc/autograd/autograd.h>

#include <functional>
#include <numeric>
#include <random>
#include <unordered_map>

// GNN-LM (Meng et al., 2022, arXiv 2110.08743): a trained language model, unchanged, whose states attend through graph
// layers to the states that an index found in the training text, and to those around them. The model's own output layer
// reads the result, and kNN-LM may be mixed in on top.

namespace mnemo::nn {

/// The published figures; the flag of the reference (ShannonAI/GNN-LM) stands behind each.
namespace gnn_lm_knobs {
inline constexpr index_t k = 128;                    // --gcn-k
inline constexpr index_t context = 2;                // --neighbor-context, to both sides
inline constexpr index_t own_text = 3072;            // --invalid-neighbor-context
inline constexpr std::int64_t layers = 3, heads = 8; // --graph_layer
inline constexpr index_t code_parts = 128;           // bytes of a stored state of 1024 numbers
inline constexpr float temperature = 0.01f;          // of kNN on top, with cosine
inline constexpr float lambda = 0.15f;               // 0.1 to 0.2
} // namespace gnn_lm_knobs

// ---- The frozen output layer ----

/// log p(target) [n] of features [n, d].
inline at::Tensor log_prob(const OutputLayer& output, const at::Tensor& features, const at::Tensor& targets) {
    const Sums sums = vocabulary_sums(features, output, targets);
    return sums.target - sums.all;
}
/// Log-probabilities [n, vocab] of features [n, d].
inline at::Tensor log_prob_all(const OutputLayer& output, const at::Tensor& features) {
    output.check(features.size(1));
    at::Tensor head = at::linear(features, output.words);
    if (output.bands.empty()) return at::log_softmax(head, 1);
    head = at::log_softmax(at::cat({head, at::linear(features, output.classes)}, 1), 1);
    const std::int64_t words = output.words.size(0);
    std::vector<at::Tensor> parts{head.narrow(1, 0, words)};
    for (std::size_t i = 0; i < output.bands.size(); ++i) {
        const auto& [projection, embedding] = output.bands[i];
        parts.push_back(at::log_softmax(at::linear(at::linear(features, projection), embedding), 1) +
                        head.narrow(1, words + static_cast<std::int64_t>(i), 1));
    }
    return at::cat(parts, 1);
}

namespace detail {
inline at::Tensor mix_probs(const at::Tensor& graph, const at::Tensor& host, double share) {
    return at::logaddexp(graph + std::log1p(-share), host + std::log(share));
}
inline void check_share(double share) {
    if (!(share >= 0 && share <= 1)) fail("GNN-LM: share of the model alone: expected 0 to 1, got ", share);
}
} // namespace detail

/// log p(target) [n] under share * p_model + (1 - share) * p_graph (--orig_prob_ratio), from the states of both.
inline at::Tensor graph_log_prob(const OutputLayer& output, const at::Tensor& graph, const at::Tensor& model,
                                 const at::Tensor& targets, double share = 0) {
    detail::check_share(share);
    if (share == 1) return log_prob(output, model, targets);
    const at::Tensor of_graph = log_prob(output, graph, targets);
    return share > 0 ? detail::mix_probs(of_graph, log_prob(output, model, targets), share) : of_graph;
}
/// The same over the vocabulary, [n, vocab].
inline at::Tensor graph_log_prob_all(const OutputLayer& output, const at::Tensor& graph, const at::Tensor& model,
                                     double share = 0) {
    detail::check_share(share);
    if (share == 1) return log_prob_all(output, model);
    const at::Tensor of_graph = log_prob_all(output, graph);
    return share > 0 ? detail::mix_probs(of_graph, log_prob_all(output, model), share) : of_graph;
}

// ---- States of retrieved entries: f(entries) -> Float [entries, d] ----

/// ... from a store's keys.
struct StoredStates {
    KeyRows keys;
    at::Tensor operator()(std::span<const index_t> rows) const {
        const at::Tensor out = at::empty({static_cast<std::int64_t>(rows.size()), keys.cols}, at::kFloat);
        const MutRows to = as_mut_rows(out);
        for (std::size_t i = 0; i < rows.size(); ++i) keys.read(rows[i], to[static_cast<index_t>(i)]);
        return out;
    }
};

/// ... from their codes [entries, parts]. A row is decoded once however often it is asked for, and all are rotated by
/// one product of matrices.
struct CodedStates {
    const ProductQuantizer* quantizer; // borrowed
    MatrixView<const std::uint8_t> codes;

    at::Tensor operator()(std::span<const index_t> rows) const {
        std::unordered_map<index_t, std::int64_t> known;
        std::vector<index_t> distinct;
        const at::Tensor which = at::empty({static_cast<std::int64_t>(rows.size())}, at::kLong);
        for (std::size_t i = 0; i < rows.size(); ++i) {
            if (rows[i] < 0 || rows[i] >= codes.rows)
                fail("CodedStates: expected entries below ", codes.rows, ", got ", rows[i]);
            const auto [at, is_new] = known.try_emplace(rows[i], static_cast<std::int64_t>(distinct.size()));
            if (is_new) distinct.push_back(rows[i]);
            which.data_ptr<std::int64_t>()[i] = at->second;
        }
        at::Tensor decoded = at::empty({static_cast<std::int64_t>(distinct.size()), quantizer->width}, at::kFloat);
        const MutRows to = as_mut_rows(decoded);
        for (std::size_t i = 0; i < distinct.size(); ++i)
            quantizer->look_up(codes[distinct[i]], to[static_cast<index_t>(i)]);
        if (!quantizer->rotation.empty())
            decoded = at::mm(decoded, at::from_blob(const_cast<float*>(quantizer->rotation.data()), // read only
                                                    {quantizer->width, quantizer->dim}, at::kFloat));
        return decoded.index_select(0, which);
    }
};

// ---- A text with its neighbours ----

/// A text as the model saw it, and what an index found for it in a corpus. Everything is borrowed.
struct GraphText {
    Rows states;                           // [tokens, d], the model's
    std::span<const std::int32_t> targets; // [tokens]
    MatrixView<const index_t> neighbours;  // [tokens, k], entries of the corpus, -1: none; a NeighbourTable's rows
    index_t corpus = 0;                    // entries of the corpus
    index_t place = -1;                    // of the first token, if this text is a part of the corpus

    index_t tokens() const { return states.rows; }
};

/// A part of it, ready for a GraphDecoder.
struct GraphBlock {
    at::Tensor states;  // [tokens, d]
    at::Tensor targets; // Long [tokens]
    at::Tensor nodes;   // [nodes, d]
    GraphEdges edges;
};

/// Tokens [first, first + count) of a text. Neighbours nearer than options.own_text to their own token are left out if
/// the text is a part of the corpus. `window`: as edges_of.
template <class StatesOf>
GraphBlock graph_block(const GraphText& text, index_t first, index_t count, const StatesOf& states_of,
                       NeighbourGraphOptions options, std::int64_t window = 0) {
    if (first < 0 || count < 1 || first + count > text.tokens())
        fail("graph block: expected tokens below ", text.tokens(), ", got ", first, " to ", first + count - 1);
    expect_equal("graph block: rows of the neighbours", text.neighbours.rows, text.tokens());
    expect_equal("graph block: targets", static_cast<index_t>(text.targets.size()), text.tokens());
    std::vector<index_t> places(static_cast<std::size_t>(count));
    std::iota(places.begin(), places.end(), text.place + first);
    if (text.place < 0) options.own_text = 0;
    const NeighbourGraph graph =
        build_neighbour_graph(text.neighbours.slice(first, count), places, text.corpus, options);
    GraphBlock out;
    out.states = at::empty({count, text.states.cols}, at::kFloat);
    const MutRows to = as_mut_rows(out.states);
    out.targets = at::empty({count}, at::kLong);
    for (index_t i = 0; i < count; ++i) {
        std::copy_n(text.states[first + i].begin(), to.cols, to[i].begin());
        out.targets.data_ptr<std::int64_t>()[i] = text.targets[static_cast<std::size_t>(first + i)];
    }
    out.nodes = states_of(std::span<const index_t>(graph.rows));
    if (out.nodes.size(0) == 0) out.nodes = at::empty({0, text.states.cols}, at::kFloat);
    out.edges = edges_of(graph, window);
    return out;
}

// ---- Training ----

/// How the graph layers are trained; the model's weights are not touched.
struct GraphTrainOptions {
    std::int64_t steps = 1000;
    std::int64_t blocks_a_step = 3; // --update-freq, batches of one block
    double learning_rate = 2e-5;    // at its peak
    std::int64_t warm_up = 2000;    // then it falls with the root of the step
    double beta1 = 0.9, beta2 = 0.98, epsilon = 1e-8;
    double clip = 0.1;      // of the gradient's norm
    double share = 0;       // of the model alone in the mixture that is trained
    std::uint64_t seed = 1; // of the order of blocks
};

/// Adam on the mean cross-entropy of blocks; block(i) gives the i-th of `count`, in an order that is drawn anew each
/// time through. `progress(done, total, loss)` is called after each step. Leaves the decoder in evaluation.
inline void train_graph(GraphDecoder decoder, const OutputLayer& output,
                        const std::function<GraphBlock(index_t)>& block, index_t count,
                        const GraphTrainOptions& options,
                        const std::function<void(std::int64_t, std::int64_t, double)>& progress = {}) {
    if (count < 1 || options.blocks_a_step < 1) fail("train_graph: expected blocks, got none");
    const at::AutoGradMode with_gradients(true);
    OutputLayer frozen{output.words.detach(), output.classes.defined() ? output.classes.detach() : at::Tensor{}, {}};
    for (const auto& band : output.bands) frozen.bands.push_back({band.projection.detach(), band.embedding.detach()});
    const std::vector<at::Tensor> parameters = decoder->parameters();
    std::vector<at::Tensor> mean, square;
    for (const at::Tensor& p : parameters) mean.push_back(at::zeros_like(p)), square.push_back(at::zeros_like(p));
    std::vector<index_t> order(static_cast<std::size_t>(count));
    std::iota(order.begin(), order.end(), index_t{0});
    std::mt19937_64 random(options.seed);
    at::manual_seed(options.seed); // dropout's
    std::size_t next = order.size();
    decoder->train();
    for (std::int64_t step = 1; step <= options.steps; ++step) {
        std::vector<at::Tensor> gradient;
        double loss_of_step = 0;
        for (std::int64_t b = 0; b < options.blocks_a_step; ++b) {
            if (next == order.size()) {
                next = 0;
                for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
            }
            const GraphBlock part = block(order[next++]);
            const at::Tensor states = decoder->forward(part.states, part.nodes, part.edges).text;
            const at::Tensor loss = -graph_log_prob(frozen, states, part.states, part.targets, options.share).mean() /
                                    static_cast<double>(options.blocks_a_step);
            loss_of_step += loss.item<double>();
            auto part_gradient = torch::autograd::grad({loss}, parameters, {}, false, false, true);
            if (gradient.empty()) gradient.resize(part_gradient.size());
            for (std::size_t i = 0; i < gradient.size(); ++i)
                if (part_gradient[i].defined())
                    gradient[i] = gradient[i].defined() ? gradient[i] + part_gradient[i] : part_gradient[i];
        }
        if (!std::isfinite(loss_of_step)) fail("train_graph, step ", step, ": the loss is not finite");
        const at::NoGradGuard no_grad;
        double squares = 0;
        for (const at::Tensor& g : gradient)
            if (g.defined()) squares += g.square().sum().item<double>();
        const double scale = options.clip > 0 ? std::min(1.0, options.clip / (std::sqrt(squares) + 1e-6)) : 1.0;
        const auto n = static_cast<double>(step),
                   warm = static_cast<double>(std::max<std::int64_t>(options.warm_up, 1));
        const double rate = options.learning_rate * std::min(n / warm, std::sqrt(warm / n)) *
                            std::sqrt(1 - std::pow(options.beta2, n)) / (1 - std::pow(options.beta1, n));
        for (std::size_t i = 0; i < parameters.size(); ++i) {
            if (!gradient[i].defined()) continue; // what the last layer does not use
            const at::Tensor g = gradient[i] * scale;
            mean[i].mul_(options.beta1).add_(g, 1 - options.beta1);
            square[i].mul_(options.beta2).addcmul_(g, g, 1 - options.beta2);
            at::Tensor p = parameters[i];
            p.addcdiv_(mean[i], square[i].sqrt().add_(options.epsilon), -rate);
        }
        if (progress) progress(step, options.steps, loss_of_step);
    }
    decoder->eval();
}

/// log p(target) of every token of a text, block by block: what kNN-LM's Interpolate then takes as the host's.
template <class StatesOf>
std::vector<float> graph_log_probs(GraphDecoder decoder, const OutputLayer& output, const GraphText& text,
                                   const StatesOf& states_of, index_t block, const NeighbourGraphOptions& options,
                                   double share = 0) {
    const at::NoGradGuard no_grad;
    decoder->eval();
    std::vector<float> out;
    for (index_t first = 0; first < text.tokens(); first += block) {
        const GraphBlock part = graph_block(text, first, std::min(block, text.tokens() - first), states_of, options);
        const at::Tensor states = decoder->forward(part.states, part.nodes, part.edges).text;
        const at::Tensor log_p = graph_log_prob(output, states, part.states, part.targets, share).contiguous();
        out.insert(out.end(), log_p.data_ptr<float>(), log_p.data_ptr<float>() + log_p.numel());
    }
    return out;
}

} // namespace mnemo::nn
