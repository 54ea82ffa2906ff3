// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/nn/tensor.hpp>

#include <cmath>
#include <cstdint>
#include <vector>

namespace mnemo::nn {

/// How steeply each head of a model with ALiBi forgets (Press et al. 2022): 2^(-8/n), 2^(-16/n), ... for a power of
/// two; else those of the next lower power, then every second one of the next higher.
inline std::vector<double> alibi_slopes(std::int64_t heads) {
    if (heads < 1) fail("ALiBi: expected at least 1 head, got ", heads);
    std::int64_t power = 1;
    while (2 * power <= heads) power *= 2;
    std::vector<double> slopes;
    for (std::int64_t i = 0; i < heads; ++i) {
        const bool own = i < power;
        const auto step = static_cast<double>(own ? i + 1 : 2 * (i - power) + 1);
        slopes.push_back(std::exp2(-8 * step / static_cast<double>(own ? power : 2 * power)));
    }
    return slopes;
}

/// ALiBi as BLOOM adds it to the scores of its columns: slope * position, where positions count the tokens that are not
/// padding. mask [batch, columns], 0 is padding -> [batch, heads, 1, columns].
inline at::Tensor alibi_bias(const at::Tensor& mask, std::int64_t heads) {
    if (mask.dim() != 2) fail("mask: expected [batch, columns], got ", describe(mask));
    const at::Tensor real = mask.ne(0).to(at::kFloat), positions = (real.cumsum(1) - 1) * real;
    const at::Tensor slopes = at::tensor(alibi_slopes(heads), mask.options().dtype(at::kFloat));
    return slopes.view({1, heads, 1, 1}) * positions.view({mask.size(0), 1, 1, mask.size(1)});
}

} // namespace mnemo::nn
