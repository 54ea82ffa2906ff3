// SPDX-License-Identifier: MIT
#pragma once

#include "golden.hpp"

#include <ATen/ATen.h>

namespace golden {

inline at::Tensor tensor_of(const Fixture& fixture, const std::string& name) {
    auto values = fixture.floats(name);
    return at::from_blob(values.data(), fixture.shape(name), at::kFloat).clone();
}

inline at::Tensor ids_of(const Fixture& fixture, const std::string& name) {
    auto values = fixture.ids(name);
    return at::from_blob(values.data(), fixture.shape(name), at::kLong).clone();
}

inline std::vector<float> floats_of(const at::Tensor& t) {
    const at::Tensor dense = t.is_sparse() ? t.detach().to_dense() : t.detach(),
                     values = dense.to(at::kCPU, at::kFloat).contiguous();
    return {values.data_ptr<float>(), values.data_ptr<float>() + values.numel()};
}

} // namespace golden
