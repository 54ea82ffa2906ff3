// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/kernels/log_sum_exp.hpp>

#include <algorithm>
#include <cassert>
#include <cmath>
#include <span>

namespace mnemo {

/// A token and its log-probability.
struct BestToken {
    std::int32_t token = 0;
    float log_p = kLogZero;
};

/// The best token of (1 - lambda) softmax(a) + lambda softmax(b), from logits [vocab], without writing the mixture: a
/// pass over each for its log-sum-exp, and a last one that compares and computes next to nothing. Whatever is below
/// half of a known probability in both parts cannot be the best. Of equal ones the lowest token.
inline BestToken best_of_mixture(std::span<const float> a, std::span<const float> b, float lambda) {
    assert(a.size() == b.size() && lambda >= 0 && lambda <= 1);
    const auto alone = [](std::span<const float> x) {
        const auto best = std::max_element(x.begin(), x.end());
        return BestToken{static_cast<std::int32_t>(best - x.begin()),
                         static_cast<float>(double{*best} - log_sum_exp(x))};
    };
    if (a.empty()) return {};
    if (lambda == 0) return alone(a);
    if (lambda == 1) return alone(b);
    const double shift_a = std::log1p(-double{lambda}) - log_sum_exp(a);
    const double shift_b = std::log(double{lambda}) - log_sum_exp(b);
    const auto mixed = [&](std::size_t v) { return log_add(shift_a + double{a[v]}, shift_b + double{b[v]}); };
    const float high_a = max_value(a), high_b = max_value(b);
    // The best of one part is in the mixture with at least its share.
    const double known = std::max(shift_a + double{high_a}, shift_b + double{high_b});
    const auto bound = [&](double shift) { // half of it, and a little below for the rounding
        return static_cast<float>(known - 0.69315 - shift - 1e-4 - 1e-5 * std::abs(known - shift));
    };
    const float bound_a = bound(shift_a), bound_b = bound(shift_b);
    BestToken best;
    constexpr std::size_t kPiece = 64;
    for (std::size_t first = 0; first < a.size(); first += kPiece) {
        const std::size_t end = std::min(first + kPiece, a.size());
        int any = 0; // without branches, so that it is done by vectors
        for (std::size_t v = first; v < end; ++v) any |= int{a[v] >= bound_a} | int{b[v] >= bound_b};
        if (any == 0) continue;
        for (std::size_t v = first; v < end; ++v) {
            if (a[v] < bound_a && b[v] < bound_b) continue;
            const float log_p = mixed(v);
            if (log_p > best.log_p) best = {static_cast<std::int32_t>(v), log_p};
        }
    }
    return best;
}

/// a [vocab] <- log((1 - lambda) softmax(a) + lambda softmax(b)), from logits; b is overwritten.
inline void mix_logits(std::span<float> a, std::span<float> b, float lambda) {
    assert(a.size() == b.size() && lambda >= 0 && lambda <= 1);
    if (lambda == 1) {
        log_softmax(b);
        std::copy(b.begin(), b.end(), a.begin());
        return;
    }
    if (lambda == 0) return log_softmax(a);
    add_each(a, static_cast<float>(std::log1p(-double{lambda}) - log_sum_exp(a)));
    add_each(b, static_cast<float>(std::log(double{lambda}) - log_sum_exp(b)));
    log_add_each(a, b);
}

} // namespace mnemo
