// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/core/matrix_view.hpp>
#include <mnemo/kernels/log_sum_exp.hpp>
#include <mnemo/kernels/score.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace mnemo {

/// One input of a LambdaNetwork. `context` is the host's state and goes in as it is; every other feature first passes
/// a small network of its own, so that a single number is not lost beside a long vector.
struct LambdaFeature {
    std::string name;
    index_t width = 1;
    bool context = false;
};

struct LambdaNetworkOptions {
    std::vector<LambdaFeature> features; // columns of a row of features, in this order
    index_t hidden = 128, layers = 5;
    float dropout = 0.2f;          // in training
    index_t without_context = 512; // what the small networks share if no feature is a context
};

/// The weight of the memory as a function of what is known before anything is retrieved (He, Neubig, Berg-Kirkpatrick
/// 2021, section 4.1): a perceptron whose two outputs are log(1 - lambda) and log(lambda).
///
///     x = [context, Linear(LeakyReLU(Linear(f))) for every other feature f]
///     x = ReLU(dropout(Linear(x)))     `layers` times
///     (log(1 - lambda), log lambda) = log_softmax(Linear(x))
///
/// Small networks have the width floor(context / other features). Names of parameters are the reference's
/// (jxhe/efficient-knnlm, moe_modules/mlp.py). Reading is const and re-entrant.
class LambdaNetwork {
  public:
    /// Weights are drawn as torch.nn.Linear draws them. Throws Error for options that make no network.
    explicit LambdaNetwork(LambdaNetworkOptions options, std::uint64_t seed = 1) : options_(std::move(options)) {
        index_t others = 0, context = 0;
        for (const LambdaFeature& f : options_.features) {
            if (f.width < 1) fail("LambdaNetwork: feature ", f.name, ": expected a width of at least 1, got ", f.width);
            width_ += f.width;
            f.context ? context += f.width : ++others;
        }
        if (options_.features.empty() || options_.hidden < 1 || options_.layers < 1)
            fail("LambdaNetwork: expected features, a hidden width and layers");
        if (!(options_.dropout >= 0 && options_.dropout < 1))
            fail("LambdaNetwork: dropout: expected a share below 1, got ", options_.dropout);
        const index_t small = others == 0 ? 0 : (context > 0 ? context : options_.without_context) / others;
        if (others > 0 && small < 1)
            fail("LambdaNetwork: expected a context of at least ", others, " columns beside ", others,
                 " features, got ", context);
        for (const LambdaFeature& f : options_.features) {
            if (f.context) continue;
            layers_.push_back(layer("input_layer." + f.name + ".model.0", f.width, small));
            layers_.push_back(layer("input_layer." + f.name + ".model.2", small, small));
        }
        joined_ = context + others * small;
        trunk_ = layers_.size();
        for (index_t l = 0; l <= options_.layers; ++l)
            layers_.push_back(layer(text("model.", 3 * l), l == 0 ? joined_ : options_.hidden,
                                    l == options_.layers ? 2 : options_.hidden));
        std::mt19937_64 random(seed);
        for (const Layer& l : layers_) {
            const float bound = 1 / std::sqrt(static_cast<float>(l.in));
            for (float& x : std::span(parameters_).subspan(l.weight, size(l.out * l.in + l.out)))
                x = bound * (2 * static_cast<float>(random() >> 40) * 0x1p-24f - 1);
        }
    }

    const LambdaNetworkOptions& options() const { return options_; }
    index_t width() const { return width_; } // of a row of features
    std::span<float> parameters() { return parameters_; }
    std::span<const float> parameters() const { return parameters_; }
    /// f(name, shape, span of the part of `all`) for each tensor, where `all` is laid out as parameters() are.
    template <class T> void visit(std::span<T> all, auto&& f) const {
        for (const Layer& l : layers_) {
            f(l.name + ".weight", std::vector<index_t>{l.out, l.in}, all.subspan(l.weight, size(l.out * l.in)));
            f(l.name + ".bias", std::vector<index_t>{l.out}, all.subspan(l.weight + size(l.out * l.in), size(l.out)));
        }
    }

    /// out [rows, 2]: log(1 - lambda) and log(lambda) for features [rows, width].
    void log_weights(Rows features, MutRows out) const {
        expect_equal("LambdaNetwork: width of the features", features.cols, width_);
        expect_equal("LambdaNetwork: rows of the weights", out.rows, features.rows);
        expect_equal("LambdaNetwork: columns of the weights", out.cols, index_t{2});
        Pass pass;
        for (index_t first = 0; first < features.rows; first += kRows) {
            const index_t n = std::min(kRows, features.rows - first);
            forward(features.slice(first, n), pass, nullptr);
            for (index_t i = 0; i < n; ++i) {
                out[first + i][0] = pass.log_weights[i][0];
                out[first + i][1] = pass.log_weights[i][1];
            }
        }
    }

    /// mean of -log(exp(w_0 + log_p_host) + exp(w_1 + log_p_memory)) + l1 * mean of lambda, w the log weights. Its
    /// gradient is added to `gradient` (as parameters()) unless that is empty. With `dropout`, hidden units are left
    /// out at random. Throws Error where neither the host nor the memory gives the target a probability.
    double loss(Rows features, std::span<const float> host, std::span<const float> memory, double l1,
                std::span<float> gradient = {}, std::mt19937_64* dropout = nullptr) const {
        expect_equal("LambdaNetwork: width of the features", features.cols, width_);
        expect_equal("LambdaNetwork: host's log-probabilities", static_cast<index_t>(host.size()), features.rows);
        expect_equal("LambdaNetwork: memory's log-probabilities", static_cast<index_t>(memory.size()), features.rows);
        if (!gradient.empty())
            expect_equal("LambdaNetwork: gradient", static_cast<index_t>(gradient.size()),
                         static_cast<index_t>(parameters_.size()));
        Pass pass;
        double total = 0;
        const auto rows = static_cast<double>(features.rows);
        for (index_t first = 0; first < features.rows; first += kRows) {
            const index_t n = std::min(kRows, features.rows - first);
            forward(features.slice(first, n), pass, dropout);
            Matrix d(n, 2);
            for (index_t i = 0; i < n; ++i) {
                const auto row = size(first + i);
                const double w0 = pass.log_weights[i][0], w1 = pass.log_weights[i][1];
                const double log_p = log_add_double(w0 + host[row], w1 + memory[row]);
                if (!std::isfinite(log_p))
                    fail("LambdaNetwork: row ", row, ": expected a target with a probability, got log p = ", log_p);
                const double lambda = std::exp(w1);
                total += (-log_p + l1 * lambda) / rows;
                // d(-log p) = weight - share of the mixture; d lambda = lambda (1 - lambda).
                const double of_memory = lambda - std::exp(w1 + memory[row] - log_p) + l1 * lambda * std::exp(w0);
                d[i][1] = static_cast<float>(of_memory / rows);
                d[i][0] = -d[i][1];
            }
            if (!gradient.empty()) backward(features.slice(first, n), pass, d, gradient);
        }
        return total;
    }

  private:
    static constexpr index_t kRows = 64; // computed at a time
    static constexpr float kLeak = 0.01f;
    struct Layer {
        std::string name;
        index_t in, out;
        std::size_t weight; // [out, in] in parameters_, the bias [out] behind it
    };
    struct Pass {
        std::vector<Matrix> small;  // a feature: [n, small] before and after its activation
        std::vector<Matrix> inputs; // of each layer of the trunk; those of later ones are activations
        Matrix log_weights;         // [n, 2]
        float scale = 1;            // of the units that dropout left
    };
    static std::size_t size(index_t n) { return static_cast<std::size_t>(n); }
    static double log_add_double(double a, double b) {
        const double high = std::max(a, b);
        return std::isinf(high) ? high : high + std::log1p(std::exp(std::min(a, b) - high));
    }

    Layer layer(std::string name, index_t in, index_t out) {
        const Layer l{std::move(name), in, out, parameters_.size()};
        parameters_.resize(parameters_.size() + size(out * in + out));
        return l;
    }
    Rows weight(const Layer& l) const { return {parameters_.data() + l.weight, l.out, l.in}; }
    void apply(const Layer& l, Rows x, MutRows out) const {
        score_rows<InnerProduct>(x, weight(l), out);
        const float* bias = parameters_.data() + l.weight + size(l.out * l.in);
        for (index_t i = 0; i < x.rows; ++i)
            for (index_t j = 0; j < l.out; ++j) out[i][size(j)] += bias[j];
    }
    // d_x (if any rows) = d_y W; the parameters' gradient is added.
    void apply_backward(const Layer& l, Rows x, Rows d_y, MutRows d_x, std::span<float> gradient) const {
        float* d_weight = gradient.data() + l.weight;
        float* d_bias = d_weight + l.out * l.in;
        const Rows w = weight(l);
        for (index_t i = 0; i < x.rows; ++i)
            for (index_t o = 0; o < l.out; ++o) {
                const float d = d_y[i][size(o)];
                if (d == 0) continue;
                d_bias[o] += d;
                const float* row = x[i].data();
                for (index_t j = 0; j < l.in; ++j) d_weight[o * l.in + j] += d * row[j];
                if (d_x.rows == 0) continue;
                float* out = d_x[i].data();
                const float* of_w = w[o].data();
                for (index_t j = 0; j < l.in; ++j) out[j] += d * of_w[j];
            }
    }

    void forward(Rows features, Pass& pass, std::mt19937_64* dropout) const {
        const index_t n = features.rows;
        pass.small.clear();
        pass.inputs.assign(1, Matrix(n, joined_));
        std::size_t l = 0;
        index_t from = 0, to = 0;
        for (const LambdaFeature& f : options_.features) {
            const Rows columns{features.data + from, n, f.width, features.stride};
            if (f.context) {
                for (index_t i = 0; i < n; ++i)
                    std::copy_n(columns[i].begin(), f.width, pass.inputs[0][i].begin() + to);
                to += f.width;
            } else {
                const Layer &first = layers_[l], &second = layers_[l + 1];
                Matrix before(n, first.out);
                apply(first, columns, before);
                Matrix after = before;
                for (float& x : after.data) x = x > 0 ? x : kLeak * x;
                apply(second, after, {pass.inputs[0].data.data() + to, n, second.out, joined_});
                pass.small.push_back(std::move(before)), pass.small.push_back(std::move(after));
                l += 2, to += second.out;
            }
            from += f.width;
        }
        for (l = trunk_; l + 1 < layers_.size(); ++l) {
            Matrix y(n, layers_[l].out);
            apply(layers_[l], pass.inputs.back(), y);
            const float keep = 1 - options_.dropout;
            for (float& x : y.data) {
                x = x > 0 ? x : 0;
                if (dropout != nullptr) // scaling a unit before or behind its ReLU is the same
                    x = static_cast<float>((*dropout)() >> 40) * 0x1p-24f < keep ? x / keep : 0;
            }
            pass.inputs.push_back(std::move(y));
        }
        pass.log_weights = Matrix(n, 2);
        apply(layers_.back(), pass.inputs.back(), pass.log_weights);
        for (index_t i = 0; i < n; ++i) log_softmax(pass.log_weights[i]);
        pass.scale = dropout != nullptr ? 1 / (1 - options_.dropout) : 1;
    }
    void backward(Rows features, const Pass& pass, Matrix d, std::span<float> gradient) const {
        const index_t n = features.rows;
        for (std::size_t l = layers_.size(); l-- > trunk_;) {
            const Matrix& x = pass.inputs[l - trunk_];
            Matrix d_x(n, x.cols);
            apply_backward(layers_[l], x, d, d_x, gradient);
            if (l > trunk_)
                for (std::size_t j = 0; j < d_x.data.size(); ++j)
                    d_x.data[j] = x.data[j] > 0 ? d_x.data[j] * pass.scale : 0;
            d = std::move(d_x);
        }
        std::size_t l = 0;
        index_t from = 0, to = 0;
        for (const LambdaFeature& f : options_.features) {
            if (f.context) {
                to += f.width;
            } else {
                const Matrix &before = pass.small[l], &after = pass.small[l + 1];
                Matrix d_after(n, before.cols);
                apply_backward(layers_[l + 1], after, {d.data.data() + to, n, before.cols, joined_}, d_after, gradient);
                for (std::size_t j = 0; j < d_after.data.size(); ++j) d_after.data[j] *= before.data[j] > 0 ? 1 : kLeak;
                apply_backward(layers_[l], {features.data + from, n, f.width, features.stride}, d_after, {}, gradient);
                to += before.cols, l += 2;
            }
            from += f.width;
        }
    }

    LambdaNetworkOptions options_;
    index_t width_ = 0, joined_ = 0;
    std::size_t trunk_ = 0; // the first layer behind the small networks
    std::vector<Layer> layers_;
    std::vector<float> parameters_;
};

/// The lambda of Interpolate that a network gives: of a base with `features` [rows, network's width]. Where
/// log(1 - lambda) reaches `threshold` the weight is 0: the host alone, and nothing needs to be retrieved
/// (worth_asking).
struct LearnedLambda {
    const LambdaNetwork* network = nullptr; // borrowed
    float threshold = std::numeric_limits<float>::infinity();

    float operator()(const auto& base, index_t row) const {
        float weights[2];
        network->log_weights(Rows(base.features).slice(row, 1), MutRows(weights, 1, 2));
        return weights[0] >= threshold ? 0.0f : std::min(std::exp(weights[1]), 1.0f);
    }
};

/// TargetLogProbs, and log-probabilities [rows, vocab], with what a LearnedLambda looks at.
struct FeaturedTargets {
    std::span<const std::int32_t> targets;
    std::span<float> log_p;
    Rows features; // [rows, network's width]
};
struct FeaturedLogProbs {
    MutRows log_probs;
    Rows features;
};

/// Which rows are worth a search, [rows] of 0 and 1: those whose log(1 - lambda) stays below `threshold`.
inline std::vector<std::uint8_t> worth_asking(const LambdaNetwork& network, Rows features, float threshold) {
    Matrix weights(features.rows, 2);
    network.log_weights(features, weights);
    std::vector<std::uint8_t> out;
    for (index_t i = 0; i < features.rows; ++i) out.push_back(weights[i][0] >= threshold ? 0 : 1);
    return out;
}

/// The threshold at which a share `skip` of these rows is not asked for, for worth_asking and LearnedLambda.
inline float skip_threshold(const LambdaNetwork& network, Rows features, double skip) {
    if (!(skip >= 0 && skip <= 1)) fail("skip_threshold: expected a share in [0, 1], got ", skip);
    Matrix weights(features.rows, 2);
    network.log_weights(features, weights);
    std::vector<float> of_host;
    for (index_t i = 0; i < features.rows; ++i) of_host.push_back(weights[i][0]);
    std::sort(of_host.begin(), of_host.end());
    const auto kept = static_cast<std::size_t>((1 - skip) * static_cast<double>(of_host.size()) + 0.5);
    return kept >= of_host.size() ? std::numeric_limits<float>::infinity() : of_host[kept];
}

} // namespace mnemo
