// SPDX-License-Identifier: MIT
#include "fuzz.hpp"

#include <mnemo/io/manifest.hpp>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz::reads_or_refuses([&] {
        const auto manifest = mnemo::Manifest::parse(fuzz::as_text(data, size), "mnemo.json");
        // What was read is written as something that reads the same.
        const std::string written = manifest.to_json();
        fuzz::require(mnemo::Manifest::parse(written, "again").to_json() == written);
    });
    return 0;
}
