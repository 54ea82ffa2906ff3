// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>

/// What libFuzzer calls, and replay.cpp for each file of a corpus.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace fuzz {

inline std::string_view as_text(const std::uint8_t* data, std::size_t size) {
    return {reinterpret_cast<const char*>(data), size};
}
/// Runs `read`; an Error is an answer like any other. Every other exception is a finding.
void reads_or_refuses(auto&& read) {
    try {
        read();
    } catch (const mnemo::Error&) {
    }
}
/// A property of what was read does not hold: a finding.
inline void require(bool ok) {
    if (!ok) std::abort();
}

} // namespace fuzz
