// SPDX-License-Identifier: MIT
#include "../io/files.hpp"

#include <catch.hpp>
#include <count_allocations.hpp>
#include <mnemo/host/llama2c_decoder.hpp>
#include <mnemo/host/llama2c_sampler.hpp>
#include <mnemo/mnemo.hpp>

#include <random>

using namespace mnemo;

TEST_CASE("a decoding step with a memory of 100 000 entries allocates nothing after the first") {
    const auto model = Llama2cModel::open(golden("hosts/llama2c_shared.bin"));
    const Llama2cConfig& config = model.config();
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::uniform_int_distribution<std::int32_t> token(0, static_cast<std::int32_t>(config.vocab_size - 1));
    TokenStore<half> store(config.dim);
    Matrix keys(1000, config.dim);
    std::vector<std::int32_t> tokens(1000);
    for (int part = 0; part < 100; ++part) {
        for (float& x : keys.data) x = normal(random);
        for (auto& t : tokens) t = token(random);
        store.append(keys, tokens);
    }
    REQUIRE(store.size() == 100000);
    const KnnLm<TokenStore<half>, Exact<L2>> memory({}, std::move(store), {.k = 1024},
                                                    {.evidence = {.temperature = 3}, .lambda = {0.3f}});
    Session<const decltype(memory), Rows> session(memory);
    Llama2cDecoder decoder(model.weights());
    Llama2cSampler sample(0.8f, 0.9f, 7);
    std::int32_t next = 1;
    const auto step = [&] {
        decoder.forward(next);
        session.read(Rows(decoder.ffn_in().data(), 1, config.dim),
                     Logits{MutRows(decoder.logits().data(), 1, config.vocab_size)});
        next = sample(decoder.logits());
    };
    step();
    const long before = allocations_so_far();
    for (int i = 0; i < 12; ++i) step();
    CHECK(allocations_so_far() == before);
    CHECK((next >= 0 && next < config.vocab_size));
}
