// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/matrix_view.hpp>

#include <random>

/// rows x cols numbers between -1 and 1.
inline mnemo::Matrix noise(mnemo::index_t rows, mnemo::index_t cols, std::uint32_t seed) {
    std::mt19937 random(seed);
    mnemo::Matrix out(rows, cols);
    for (float& x : out.data) x = std::uniform_real_distribution<float>(-1, 1)(random);
    return out;
}
