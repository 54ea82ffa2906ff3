// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/kernels/log_sum_exp.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <span>

namespace mnemo {

/// The next token of a distribution: the best at temperature 0, else drawn from p^(1 / temperature). The same seed
/// gives the same tokens on every machine. One for each sequence.
class ChooseToken {
  public:
    explicit ChooseToken(float temperature = 0, std::uint64_t seed = 0) : temperature_(temperature), random_(seed) {
        if (!(temperature >= 0) || std::isinf(temperature))
            fail("ChooseToken: temperature: expected a number of at least 0, got ", temperature);
    }

    /// `log_p` [vocab], up to a constant: logits serve as well. Of equal ones the lowest token is best. Throws Error if
    /// nothing is possible.
    std::int32_t operator()(std::span<const float> log_p) {
        const auto best = std::max_element(log_p.begin(), log_p.end());
        if (best == log_p.end() || !(*best > kLogZero))
            fail("ChooseToken: expected a token that is possible, got none");
        if (temperature_ == 0) return static_cast<std::int32_t>(best - log_p.begin());
        const float scale = 1 / temperature_;
        const double uniform = static_cast<double>(random_() >> 11) * 0x1p-53; // [0, 1)
        double left = uniform * exp_sum(log_p, *best, scale);
        std::int32_t last = 0;
        float weights[256];
        for (std::size_t first = 0; first < log_p.size(); first += std::size(weights)) {
            const auto part = log_p.subspan(first, std::min(std::size(weights), log_p.size() - first));
            const double sum = exp_sum(part, *best, scale, std::span(weights, part.size()));
            for (std::size_t i = 0; i < part.size() && sum > 0; ++i) {
                if (!(weights[i] > 0)) continue;
                last = static_cast<std::int32_t>(first + i);
                if ((left -= static_cast<double>(weights[i])) < 0) return last;
            }
        }
        return last; // what rounding left over
    }

  private:
    float temperature_;
    std::mt19937_64 random_;
};

} // namespace mnemo
