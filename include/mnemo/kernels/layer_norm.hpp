// SPDX-License-Identifier: MIT
#pragma once

#include <cassert>
#include <cmath>
#include <span>
#include <vector>

namespace mnemo {

/// y = (x - mean(x)) / sqrt(var(x) + epsilon) * weight + bias, with the population's variance. Sums in double.
struct LayerNorm {
    std::vector<float> weight, bias; // [d]; both empty: no norm, y = x
    float epsilon = 1e-5f;

    void operator()(std::span<const float> x, std::span<float> y) const {
        assert(x.size() == y.size() && (weight.empty() || weight.size() == x.size()) && weight.size() == bias.size());
        if (weight.empty()) {
            for (std::size_t j = 0; j < x.size(); ++j) y[j] = x[j];
            return;
        }
        const auto d = static_cast<double>(x.size());
        double sum = 0, squares = 0;
        for (const float v : x) sum += static_cast<double>(v);
        const double mean = sum / d;
        for (const float v : x) squares += (static_cast<double>(v) - mean) * (static_cast<double>(v) - mean);
        const double scale = 1 / std::sqrt(squares / d + static_cast<double>(epsilon));
        for (std::size_t j = 0; j < x.size(); ++j)
            y[j] = static_cast<float>((static_cast<double>(x[j]) - mean) * scale) * weight[j] + bias[j];
    }
};

} // namespace mnemo
