// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/matrix_view.hpp>

#include <cmath>
#include <random>
#include <span>

/// rows x cols normal numbers of this spread.
inline mnemo::Matrix normal_rows(mnemo::index_t rows, mnemo::index_t cols, unsigned seed, float spread = 1) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0, spread);
    mnemo::Matrix m(rows, cols);
    for (float& x : m.data) x = normal(random);
    return m;
}

/// The sum of the probabilities.
inline double total(std::span<const float> log_p) {
    double sum = 0;
    for (const float x : log_p) sum += std::exp(double{x});
    return sum;
}
