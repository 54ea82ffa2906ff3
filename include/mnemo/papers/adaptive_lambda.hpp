// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/combine/lambda_network.hpp>
#include <mnemo/papers/knn_lm.hpp>
#include <mnemo/retrieve/selected.hpp>
#include <mnemo/retrieve/weighted.hpp>
#include <mnemo/text/ngram_counts.hpp>

#include <numeric>

// Adaptive retrieval (He, Neubig, Berg-Kirkpatrick, 2021, arXiv 2109.04212): the weight of the memory is a function of
// the context, learned on held-out text, and the memory is not asked where that weight is small.

namespace mnemo {

/// kNN-LM with a learned weight. Bases carry features: FeaturedTargets, FeaturedLogProbs.
template <class StoreT, class RetrieverT, Executor X = Serial>
using AdaptiveKnnLm = Memory<LastHidden, StoreT, RetrieverT, Interpolate<TokenVotes, LearnedLambda, X>, Nll>;
/// ... that asks only for the rows worth it; its states are SelectedQueries.
template <class StoreT, class RetrieverT, Executor X = Serial>
using SkippingKnnLm = AdaptiveKnnLm<StoreT, Selected<RetrieverT>, X>;

/// The reference's figures (jxhe/efficient-knnlm).
namespace adaptive_lambda_knobs {
inline constexpr index_t hidden = 128, layers = 5; // --hidden-units, --nlayers
inline constexpr float dropout = 0.2f;             // --dropout
inline constexpr double l1 = 0.05;                 // --l1
inline constexpr double learning_rate = 5e-4;      // --lr
inline constexpr index_t batch = 64;               // --batch-size
inline constexpr index_t ngrams = 4;
inline constexpr double skip = 0.5;            // share of the tokens that are not asked for
inline constexpr index_t pca_dimensions = 512; // FaissBuild{.factory = "PCA512,IVF4096,PQ64"}
} // namespace adaptive_lambda_knobs

/// The features in the reference's order: state, n-gram frequencies, entropy and confidence of the host, fertilities.
inline std::vector<LambdaFeature> lambda_features(index_t key_dim, index_t ngrams) {
    return {{"ctxt", key_dim, true}, {"freq", ngrams}, {"lm_ent", 1}, {"lm_max", 1}, {"fert", ngrams}};
}
/// One row of them: `out` [key_dim + 2 order + 2]. `context` ends with the token before the target; `log_probs` [vocab]
/// is the host's distribution of the target.
inline void write_lambda_features(std::span<const float> key, std::span<const std::int32_t> context,
                                  const NgramCounts& counts, std::span<const float> log_probs, std::span<float> out) {
    const auto n = static_cast<std::size_t>(counts.order());
    expect_equal("write_lambda_features: width", static_cast<index_t>(out.size()),
                 static_cast<index_t>(key.size() + 2 * n + 2));
    std::copy(key.begin(), key.end(), out.begin());
    const auto rest = out.subspan(key.size());
    counts.features(context, rest.first(n), rest.subspan(n + 2));
    double entropy = 0;
    for (const float x : log_probs)
        if (x > kLogZero) entropy -= std::exp(double{x}) * double{x};
    rest[n] = static_cast<float>(entropy);
    rest[n + 1] = max_value(log_probs);
}

/// What a network learns from: tokens of held-out text.
struct LambdaSample {
    Matrix features;           // [n, network's width]
    std::vector<float> host;   // [n], log-probabilities of the targets
    std::vector<float> memory; // [n], the memory's own; parity with the reference: -10000 where it knows nothing
};

/// The memory's own log-probabilities of the targets, for a LambdaSample.
template <AssociativeRecall R, TokenValued S>
std::vector<float> memory_log_probs(const R& recall, const S& store, std::span<const std::int32_t> targets,
                                    TokenVotes votes) {
    votes.floor = TokenVotes::kReferenceFloor;
    Arena scratch;
    const Rows none;
    const Reading reading{none, recall, store, scratch};
    std::vector<float> out;
    for (std::size_t i = 0; i < targets.size(); ++i)
        out.push_back(
            votes.log_prob(reading, static_cast<index_t>(i), targets[i]).value_or(TokenVotes::kReferenceFloor));
    return out;
}

struct LambdaTraining {
    index_t epochs = 10, batch = adaptive_lambda_knobs::batch;
    double learning_rate = adaptive_lambda_knobs::learning_rate, l1 = adaptive_lambda_knobs::l1;
    std::uint64_t seed = 1;
};

/// Trains on `train` with Adam and keeps the weights of the epoch that is best on `valid` (mixture loss without l1).
/// Returns the losses on `valid` [epochs + 1], the first before any step. `progress(done, total)` counts steps.
template <ProgressReport P = NoProgress>
std::vector<double> train_lambda(LambdaNetwork& network, const LambdaSample& train, const LambdaSample& valid,
                                 const LambdaTraining& options, P&& progress = {}) {
    const index_t n = train.features.rows, batches = (n + options.batch - 1) / options.batch;
    if (n < 1 || options.batch < 1) fail("train_lambda: expected tokens and batches of at least one");
    std::mt19937_64 random(options.seed);
    std::vector<std::size_t> order(static_cast<std::size_t>(n));
    std::iota(order.begin(), order.end(), std::size_t{0});
    const auto parameters = network.parameters();
    std::vector<float> gradient(parameters.size()), mean(parameters.size()), square(parameters.size());
    std::vector<float> best(parameters.begin(), parameters.end());
    std::vector<double> losses{network.loss(valid.features, valid.host, valid.memory, 0)};
    double lowest = losses[0], mean_power = 1, square_power = 1;
    for (index_t epoch = 0; epoch < options.epochs; ++epoch) {
        for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
        for (index_t b = 0; b < batches; ++b) {
            const auto rows =
                std::span(order).subspan(static_cast<std::size_t>(b * options.batch),
                                         static_cast<std::size_t>(std::min(options.batch, n - b * options.batch)));
            Matrix features(static_cast<index_t>(rows.size()), network.width());
            std::vector<float> host, memory;
            for (std::size_t i = 0; i < rows.size(); ++i) {
                const auto row = train.features[static_cast<index_t>(rows[i])];
                std::copy(row.begin(), row.end(), features[static_cast<index_t>(i)].begin());
                host.push_back(train.host[rows[i]]), memory.push_back(train.memory[rows[i]]);
            }
            std::fill(gradient.begin(), gradient.end(), 0.0f);
            network.loss(features, host, memory, options.l1, gradient, &random);
            constexpr float kMean = 0.9f, kSquare = 0.999f, kEpsilon = 1e-8f; // Adam's
            mean_power *= kMean, square_power *= kSquare;
            const auto rate = static_cast<float>(options.learning_rate / (1 - mean_power));
            const auto correction = static_cast<float>(1 / std::sqrt(1 - square_power));
            for (std::size_t i = 0; i < gradient.size(); ++i) {
                mean[i] = kMean * mean[i] + (1 - kMean) * gradient[i];
                square[i] = kSquare * square[i] + (1 - kSquare) * gradient[i] * gradient[i];
                parameters[i] -= rate * mean[i] / (std::sqrt(square[i]) * correction + kEpsilon);
            }
            progress(epoch * batches + b + 1, options.epochs * batches);
        }
        losses.push_back(network.loss(valid.features, valid.host, valid.memory, 0));
        if (losses.back() < lowest) {
            lowest = losses.back();
            best.assign(parameters.begin(), parameters.end());
        }
    }
    std::copy(best.begin(), best.end(), parameters.begin());
    return losses;
}

} // namespace mnemo
