// SPDX-License-Identifier: MIT
#include <mnemo/nn/side_network.hpp>

#include <catch.hpp>

#include <torch/utils.h>

using namespace mnemo;

namespace {
std::vector<at::Tensor> run(const std::vector<at::Tensor>& inputs, const at::Tensor& upstream, auto&& attend) {
    std::vector<at::Tensor> leaves;
    for (const at::Tensor& t : inputs) leaves.push_back(t.clone().requires_grad_(true));
    const at::Tensor out = attend(leaves[0], leaves[1], leaves[2]);
    out.backward(upstream);
    std::vector<at::Tensor> results = {out.detach()};
    for (const at::Tensor& leaf : leaves) results.push_back(leaf.grad());
    return results;
}
} // namespace

TEST_CASE("local attention in blocks is its composition, forward and backward") {
    torch::manual_seed(5);
    for (const std::int64_t rows : {1, 5, 130, 300})
        for (const bool causal : {false, true})
            for (const bool padded : {false, true}) {
                const std::int64_t batch = 2, heads = 3, dim = 12;
                at::Tensor real = at::ones({batch, rows});
                if (padded && rows > 1) real[1].narrow(0, rows / 2, rows - rows / 2).zero_();
                nn::LocalBias bias = nn::causal_alibi_bias(real, heads);
                bias.causal = causal;
                CHECK(bias.mask.defined() == (padded && rows > 1));
                const at::Tensor q = at::randn({batch, rows, dim}), k = at::randn({batch, rows, dim});
                const at::Tensor v = at::randn({batch, rows, dim}), upstream = at::randn({batch, rows, dim});
                const auto fused = run({q, k, v}, upstream, [&](const auto& a, const auto& b, const auto& c) {
                    return nn::local_attention(a, b, c, bias, heads, 0.5);
                });
                const auto composed = run({q, k, v}, upstream, [&](const auto& a, const auto& b, const auto& c) {
                    return nn::local_attention_composed(a, b, c, bias, heads, 0.5);
                });
                for (std::size_t i = 0; i < fused.size(); ++i) CHECK(at::allclose(fused[i], composed[i], 1e-4, 1e-5));
            }
}

TEST_CASE("without attention and feed-forward a side network gives the backbone's last state") {
    torch::manual_seed(6);
    const std::int64_t dim = 8;
    const auto weights = [](const std::string& name, at::IntArrayRef shape) -> at::Tensor {
        const bool silent = name.find("out_proj") != std::string::npos || name.find("fc2") != std::string::npos;
        if (silent) return at::zeros(shape);
        return name == "layer_norm.weight" ? at::ones(shape)
               : name == "layer_norm.bias" ? at::zeros(shape)
                                           : at::randn(shape);
    };
    const nn::SideNetwork net(nn::SideNetworkOptions{.dim = dim, .ffn_dim = 16, .heads = 2, .layers = 2}, weights);
    std::vector<at::Tensor> hidden;
    for (int i = 0; i < 3; ++i) hidden.push_back(at::randn({2, 4, dim}));
    const at::Tensor out = net->forward(hidden, {}, {});
    CHECK(at::allclose(out, at::layer_norm(hidden[2], {dim}), 1e-4, 1e-5));
    CHECK_THROWS_AS(net->forward({hidden[0]}, {}, {}), Error);
    CHECK_THROWS_AS(nn::SideNetwork(nn::SideNetworkOptions{.dim = 8, .ffn_dim = 8, .heads = 3, .layers = 1}, weights),
                    Error);
}

TEST_CASE("padding on the left leaves finite rows and what is real alone") {
    torch::manual_seed(7);
    const std::int64_t dim = 8, rows = 6;
    const nn::SideNetwork net(nn::SideNetworkOptions{.dim = dim, .ffn_dim = 16, .heads = 2, .layers = 1},
                              [](const std::string&, at::IntArrayRef shape) { return 0.3 * at::randn(shape); });
    const at::Tensor first = at::randn({1, rows, dim}), last = at::randn({1, rows, dim});
    at::Tensor mask = at::ones({1, rows});
    mask[0].narrow(0, 0, 2).zero_();
    const at::Tensor padded = net->forward({first, last}, mask, {});
    CHECK(at::isfinite(padded).all().item<bool>());
    const at::Tensor alone = net->forward({first.narrow(1, 2, 4), last.narrow(1, 2, 4)}, {}, {});
    CHECK(at::allclose(padded.narrow(1, 2, 4), alone, 1e-4, 1e-5));
}
