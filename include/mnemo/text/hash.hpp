// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>

namespace mnemo {

/// FNV-1a of 64 bits, the same on every machine: tells versions of a file or model apart, no more. About 1 GB/s.
class Hash64 {
  public:
    Hash64& add(std::span<const std::byte> bytes) {
        for (const std::byte b : bytes) value_ = (value_ ^ static_cast<std::uint64_t>(b)) * 0x100000001b3u;
        return *this;
    }
    Hash64& add(std::string_view s) { return add(std::as_bytes(std::span<const char>(s.data(), s.size()))); }
    std::uint64_t value() const { return value_; }
    /// 16 hexadecimal digits.
    std::string text() const {
        char digits[17];
        std::snprintf(digits, sizeof digits, "%016llx", static_cast<unsigned long long>(value_));
        return digits;
    }

  private:
    std::uint64_t value_ = 0xcbf29ce484222325u;
};

} // namespace mnemo
