// SPDX-License-Identifier: MIT
#include "fuzz.hpp"

#include <mnemo/host/llama2c_decoder.hpp>

#include <cstring>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    std::vector<float> aligned(size / sizeof(float) + 1);
    if (size > 0) std::memcpy(aligned.data(), data, size);
    fuzz::reads_or_refuses([&] {
        const auto weights = mnemo::Llama2cWeights::parse(std::as_bytes(std::span(aligned)).first(size), "file");
        const auto& c = weights.config;
        fuzz::require(c.dim % c.heads == 0 && c.heads % c.kv_heads == 0);
        if (c.layers * c.seq_len * c.kv_dim() > 1 << 20) return; // whole models take their time
        mnemo::Llama2cDecoder decoder(weights);
        decoder.forward(static_cast<std::int32_t>(c.vocab_size - 1));
        if (c.seq_len > 1) decoder.forward(0);
    });
    return 0;
}
