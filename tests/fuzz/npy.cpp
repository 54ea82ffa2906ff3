// SPDX-License-Identifier: MIT
#include "fuzz.hpp"

#include <mnemo/io/npy.hpp>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::span bytes(reinterpret_cast<const std::byte*>(data), size);
    fuzz::reads_or_refuses([&] {
        const mnemo::NpyHeader header = mnemo::parse_npy(bytes, "file", {});
        mnemo::index_t count = 1;
        for (const mnemo::index_t extent : header.shape) fuzz::require(extent >= 0), count *= extent;
        fuzz::require(static_cast<std::uint64_t>(count) == header.count);
        const auto data_bytes = static_cast<std::size_t>(header.count) * static_cast<std::size_t>(header.item_size);
        fuzz::require(header.data_offset <= size && data_bytes <= size - header.data_offset);
    });
    return 0;
}
