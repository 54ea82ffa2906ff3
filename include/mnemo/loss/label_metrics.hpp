// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/core/matrix_view.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <numeric>
#include <set>
#include <span>
#include <vector>

namespace mnemo {

// Scores of predicted labels and numbers, as scikit-learn and SciPy define them. Labels are compared by value. What is
// divided by zero is 0. Both spans have one element a sample; other sizes and no samples are an Error.

namespace detail {
inline double samples(std::size_t gold, std::size_t predicted) {
    expect_equal("metric: predictions", predicted, gold);
    if (gold == 0) fail("metric: expected at least one sample");
    return static_cast<double>(gold);
}
inline double ratio(double a, double b) { return b == 0 ? 0 : a / b; }
/// Numbers of a label: right, in the predictions, in the gold.
struct LabelCounts {
    double right = 0, predicted = 0, gold = 0;
    double f1() const { return ratio(2 * right, predicted + gold); }
};
inline std::map<std::int64_t, LabelCounts> counts(std::span<const std::int64_t> gold,
                                                  std::span<const std::int64_t> predicted) {
    samples(gold.size(), predicted.size());
    std::map<std::int64_t, LabelCounts> out;
    for (std::size_t i = 0; i < gold.size(); ++i) {
        ++out[gold[i]].gold, ++out[predicted[i]].predicted;
        if (gold[i] == predicted[i]) ++out[gold[i]].right;
    }
    return out;
}
/// Places in ascending order from 1 on; equal numbers share the mean of theirs.
inline std::vector<double> ranks(std::span<const double> x) {
    std::vector<std::size_t> order(x.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return x[a] < x[b]; });
    std::vector<double> out(x.size());
    for (std::size_t i = 0, end = 0; i < order.size(); i = end) {
        while (end < order.size() && x[order[end]] == x[order[i]]) ++end;
        for (std::size_t j = i; j < end; ++j) out[order[j]] = static_cast<double>(i + 1 + end) / 2;
    }
    return out;
}
} // namespace detail

/// Share of samples whose label is right; so is micro_f1 where each sample has one label.
inline double accuracy(std::span<const std::int64_t> gold, std::span<const std::int64_t> predicted) {
    const double n = detail::samples(gold.size(), predicted.size());
    double right = 0;
    for (std::size_t i = 0; i < gold.size(); ++i) right += gold[i] == predicted[i] ? 1 : 0;
    return right / n;
}
inline double micro_f1(std::span<const std::int64_t> gold, std::span<const std::int64_t> predicted) {
    return accuracy(gold, predicted);
}
/// F1 of one label.
inline double binary_f1(std::span<const std::int64_t> gold, std::span<const std::int64_t> predicted,
                        std::int64_t positive = 1) {
    return detail::counts(gold, predicted)[positive].f1();
}
/// Mean F1 of the labels that occur on either side.
inline double macro_f1(std::span<const std::int64_t> gold, std::span<const std::int64_t> predicted) {
    const auto counts = detail::counts(gold, predicted);
    double sum = 0;
    for (const auto& [label, c] : counts) sum += c.f1();
    return sum / static_cast<double>(counts.size());
}
/// Matthews' correlation coefficient for any number of labels.
inline double matthews_correlation(std::span<const std::int64_t> gold, std::span<const std::int64_t> predicted) {
    const double n = detail::samples(gold.size(), predicted.size());
    double right = 0, both = 0, of_predicted = 0, of_gold = 0;
    for (const auto& [label, c] : detail::counts(gold, predicted)) {
        right += c.right, both += c.predicted * c.gold;
        of_predicted += c.predicted * c.predicted, of_gold += c.gold * c.gold;
    }
    return detail::ratio(right * n - both, std::sqrt((n * n - of_predicted) * (n * n - of_gold)));
}
/// Pearson's correlation.
inline double pearson(std::span<const double> gold, std::span<const double> predicted) {
    const double n = detail::samples(gold.size(), predicted.size());
    const double mean_a = std::accumulate(gold.begin(), gold.end(), 0.0) / n;
    const double mean_b = std::accumulate(predicted.begin(), predicted.end(), 0.0) / n;
    double ab = 0, aa = 0, bb = 0;
    for (std::size_t i = 0; i < gold.size(); ++i) {
        const double a = gold[i] - mean_a, b = predicted[i] - mean_b;
        ab += a * b, aa += a * a, bb += b * b;
    }
    return detail::ratio(ab, std::sqrt(aa * bb));
}
/// Spearman's rank correlation.
inline double spearman(std::span<const double> gold, std::span<const double> predicted) {
    detail::samples(gold.size(), predicted.size());
    return pearson(detail::ranks(gold), detail::ranks(predicted));
}

} // namespace mnemo
