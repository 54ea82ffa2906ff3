// SPDX-License-Identifier: MIT
#include <mnemo/nn/gated_attention.hpp>
#include <mnemo/retrieve/per_head.hpp>
#include <mnemo/store/chunk_ring.hpp>

#include <catch.hpp>

#include <torch/utils.h>

using namespace mnemo;

namespace {
// Keys or values of what a part found, gathered: [rows, heads, k, head_dim].
template <class T> at::Tensor gathered(const ChunkRing<T>& ring, const nn::MemoryReading::Part& part, bool values) {
    const index_t c = ring.options().chunk, d = ring.head_dim(),
                  k = static_cast<index_t>(part.hits[0].ids(0).size()) * c;
    const at::Tensor out = at::empty({part.rows, ring.heads(), k, d});
    float* to = out.data_ptr<float>();
    for (index_t i = 0; i < part.rows; ++i)
        for (index_t h = 0; h < ring.heads(); ++h)
            for (const index_t slot : part.hits[h].ids(i))
                for (index_t t = 0; t < c; ++t)
                    for (const T x : (values ? ring.values(h) : ring.keys(h))[slot * c + t]) *to++ = to_float(x);
    return out;
}
} // namespace

TEMPLATE_TEST_CASE("gated attention on tensors is its composition, forward and backward", "", half, bfloat16, float) {
    torch::manual_seed(3);
    const index_t heads = 3, d = 5, width = heads * d, rows = 4;
    std::vector<ChunkRing<TestType>> rings;
    rings.reserve(2);
    const at::Tensor queries = at::randn({2 * rows, width}), local = at::randn({2 * rows, width});
    const at::Tensor gates = at::randn({heads}), upstream = at::randn({2 * rows, width});
    const auto reading = c10::make_intrusive<nn::ReadingOf<ChunkRing<TestType>>>();
    std::vector<at::Tensor> keys, values;
    for (index_t b = 0; b < 2; ++b) {
        rings.emplace_back(ChunkRingOptions{.heads = heads, .head_dim = d, .chunk = 2, .memory_tokens = 12});
        const at::Tensor k = at::randn({17, width}), v = at::randn({17, width});
        rings.back().append(nn::as_rows(k), nn::as_rows(v));
        const Rows own = nn::as_rows(queries).slice(b * rows, rows);
        reading->add(rings.back(), PerHead{Exact<InnerProduct>{.k = 3}}.retrieve(rings.back(), own), b * rows, rows);
        keys.push_back(gathered(rings.back(), reading->parts.back(), false));
        values.push_back(gathered(rings.back(), reading->parts.back(), true));
    }
    CHECK(!reading->empty());
    const auto run = [&](auto&& attend) {
        std::vector<at::Tensor> leaves;
        for (const at::Tensor& t : {local, queries, gates}) leaves.push_back(t.clone().requires_grad_(true));
        const at::Tensor out = attend(leaves[0], leaves[1], leaves[2]);
        out.backward(upstream);
        std::vector<at::Tensor> results = {out.detach()};
        for (const at::Tensor& leaf : leaves) results.push_back(leaf.grad());
        return results;
    };
    const auto fused = run([&](const at::Tensor& l, const at::Tensor& q, const at::Tensor& g) {
        return nn::gated_attention(l, q, g, reading);
    });
    const auto composed = run([&](const at::Tensor& l, const at::Tensor& q, const at::Tensor& g) {
        return nn::gated_attention_composed(l, q, g, at::cat(keys), at::cat(values));
    });
    for (std::size_t i = 0; i < fused.size(); ++i) CHECK(at::allclose(fused[i], composed[i], 1e-5, 1e-5));
    CHECK_THROWS_AS(nn::gated_attention(local, queries.narrow(0, 0, 3), gates, reading), Error);
}

TEST_CASE("rows in no part keep local attention and its gradient") {
    const at::Tensor local = at::randn({3, 4}).requires_grad_(true), queries = at::randn({3, 4}).requires_grad_(true);
    const at::Tensor gates = at::zeros({2}).requires_grad_(true), upstream = at::randn({3, 4});
    const auto reading = c10::make_intrusive<nn::ReadingOf<ChunkRing<half>>>();
    CHECK(reading->empty());
    const at::Tensor out = nn::gated_attention(local, queries, gates, reading);
    CHECK(at::equal(out, local));
    out.backward(upstream);
    CHECK(at::equal(local.grad(), upstream));
    CHECK(queries.grad().eq(0).all().item<bool>());
}
