// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

/// The largest difference of two numbers of a and b at the same place; 1e9 where the sizes differ.
inline double difference(const at::Tensor& a, const at::Tensor& b) {
    return a.sizes() == b.sizes() ? (a - b).abs().max().item<double>() : 1e9;
}
