// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/half.hpp>
#include <mnemo/core/matrix_view.hpp>

#include <cmath>
#include <numeric>
#include <random>
#include <vector>

/// Rows in clusters of different sizes with a common offset, as the hidden states of language models are.
inline mnemo::Matrix clustered(mnemo::index_t rows, mnemo::index_t cols, unsigned seed) {
    std::mt19937 gen(seed);
    std::normal_distribution<float> normal;
    const mnemo::index_t clusters = std::max<mnemo::index_t>(rows / 50, 1);
    std::mt19937 shared(99); // the same centres for keys and queries
    mnemo::Matrix centres(clusters, cols), out(rows, cols);
    for (float& x : centres.data) x = 1 + 2 * normal(shared);
    for (mnemo::index_t i = 0; i < rows; ++i) {
        const double u = std::uniform_real_distribution<>()(gen);
        const auto c = std::min(clusters - 1, static_cast<mnemo::index_t>(u * u * static_cast<double>(clusters)));
        for (mnemo::index_t j = 0; j < cols; ++j)
            out.data[static_cast<std::size_t>(i * cols + j)] =
                centres.data[static_cast<std::size_t>(c * cols + j)] + 0.7f * normal(gen);
    }
    return out;
}

inline std::vector<std::int32_t> numbered(mnemo::index_t n) {
    std::vector<std::int32_t> out(static_cast<std::size_t>(n));
    std::iota(out.begin(), out.end(), 0);
    return out;
}
