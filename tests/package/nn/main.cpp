// SPDX-License-Identifier: MIT
// A stranger's program: tensors in, a memory's result out, without a copy.
#include <mnemo/mnemo.hpp>
#include <mnemo/nn/tensor.hpp>

#include <ATen/Functions.h>
#include <cstdio>

int main() {
    at::Tensor hidden = at::ones({2, 4}), log_p = at::log_softmax(at::zeros({2, 8}), -1);
    mnemo::Memory memory(mnemo::LastHidden{}, mnemo::TokenStore<>(4), mnemo::Exact<mnemo::L2>{.k = 2},
                         mnemo::Interpolate<mnemo::TokenVotes>{{}, {0.5f}});
    const std::int32_t next[] = {3, 3};
    memory.write(mnemo::nn::as_rows(hidden), std::span<const std::int32_t>(next));
    memory.read(mnemo::nn::as_rows(hidden), mnemo::nn::as_mut_rows(log_p));
    const float p = log_p[0][3].exp().item<float>();
    std::printf("p(3) = %.4f\n", static_cast<double>(p));
    return p > 0.56f && p < 0.57f ? 0 : 1;
}
