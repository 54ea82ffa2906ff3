// SPDX-License-Identifier: MIT
#include "fuzz.hpp"

#include <mnemo/io/safetensors.hpp>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::span bytes(reinterpret_cast<const std::byte*>(data), size);
    for (const bool lenient : {false, true})
        fuzz::reads_or_refuses([&] {
            const auto index = mnemo::parse_safetensors(bytes, "file", {.allow_trailing_bytes = lenient});
            for (const mnemo::Entry& entry : index.entries) {
                // Every byte of every tensor is the file's.
                fuzz::require(entry.bytes.empty() || (entry.bytes.data() >= bytes.data() &&
                                                      entry.bytes.data() + entry.bytes.size() <= bytes.data() + size));
                fuzz::require(entry.size() >= 0);
            }
        });
    return 0;
}
