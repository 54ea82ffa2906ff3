// SPDX-License-Identifier: MIT
#include "fuzz.hpp"

#include <mnemo/io/tensor_folder.hpp>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz::reads_or_refuses([&] {
        for (const auto& [tensor, file] : mnemo::TensorFolder::parse_index(fuzz::as_text(data, size), "file"))
            fuzz::require(!file.empty() && file.find('/') == file.npos && file != "..");
    });
    return 0;
}
