// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/matrix_view.hpp>
#include <mnemo/kernels/cpu.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace mnemo {

namespace detail {

/// The polynomial of CRC-32C (Castagnoli), bits reversed; table[k] advances a byte over k zero bytes more.
constexpr std::array<std::array<std::uint32_t, 256>, 8> crc32c_tables() {
    std::array<std::array<std::uint32_t, 256>, 8> table{};
    for (std::uint32_t i = 0; i < 256; ++i) {
        std::uint32_t c = i;
        for (int bit = 0; bit < 8; ++bit) c = (c & 1u) != 0 ? c >> 1 ^ 0x82f63b78u : c >> 1;
        table[0][i] = c;
    }
    for (std::size_t k = 1; k < 8; ++k)
        for (std::size_t i = 0; i < 256; ++i) table[k][i] = table[k - 1][i] >> 8 ^ table[0][table[k - 1][i] & 255u];
    return table;
}

inline std::uint32_t crc32c_plain(std::uint32_t crc, const unsigned char* p, std::size_t n) {
    static constexpr auto table = crc32c_tables();
    for (; n >= 8; n -= 8, p += 8) {
        std::uint64_t word;
        std::memcpy(&word, p, 8);
        word ^= crc;
        crc = 0;
        for (std::size_t k = 0; k < 8; ++k) crc ^= table[7 - k][word >> 8 * k & 255u];
    }
    for (; n > 0; --n, ++p) crc = crc >> 8 ^ table[0][(crc ^ *p) & 255u];
    return crc;
}

#if MNEMO_X86
__attribute__((target("sse4.2"))) inline std::uint32_t crc32c_sse42(std::uint32_t crc, const unsigned char* p,
                                                                    std::size_t n) {
    std::uint64_t wide = crc;
    for (; n >= 8; n -= 8, p += 8) {
        std::uint64_t word;
        std::memcpy(&word, p, 8);
        wide = _mm_crc32_u64(wide, word);
    }
    crc = static_cast<std::uint32_t>(wide);
    for (; n > 0; --n, ++p) crc = _mm_crc32_u8(crc, *p);
    return crc;
}
#endif

} // namespace detail

/// CRC-32C (Castagnoli; RFC 3720 B.4) of bytes that come in pieces. The value is also the state, so that a sum can be
/// stored and continued later.
class Crc32c {
  public:
    Crc32c() = default;
    /// Continues after the bytes whose sum is `value`.
    static Crc32c resume(std::uint32_t value) {
        Crc32c crc;
        crc.state_ = ~value;
        return crc;
    }
    void add(std::span<const std::byte> bytes) {
        const auto* p = reinterpret_cast<const unsigned char*>(bytes.data());
#if MNEMO_X86
        if (simd_level() >= SimdLevel::avx2) { // such machines have SSE4.2
            state_ = detail::crc32c_sse42(state_, p, bytes.size());
            return;
        }
#endif
        state_ = detail::crc32c_plain(state_, p, bytes.size());
    }
    std::uint32_t value() const { return ~state_; }

  private:
    std::uint32_t state_ = ~std::uint32_t{0};
};

inline std::uint32_t crc32c(std::span<const std::byte> bytes) {
    Crc32c crc;
    crc.add(bytes);
    return crc.value();
}

/// One CRC-32C for each block of rows of a table that grows.
class BlockChecksums {
  public:
    BlockChecksums() = default;
    BlockChecksums(index_t block_rows, index_t row_bytes) : BlockChecksums(block_rows, row_bytes, 0, {}) {}
    /// Continues a table of `rows` rows whose blocks, the last maybe unfinished, have `sums`.
    BlockChecksums(index_t block_rows, index_t row_bytes, index_t rows, std::vector<std::uint32_t> sums)
        : block_bytes_(static_cast<std::size_t>(block_rows * row_bytes)), sums_(std::move(sums)) {
        filled_ = static_cast<std::size_t>(rows % block_rows * row_bytes);
        if (filled_ > 0) {
            current_ = Crc32c::resume(sums_.back());
            sums_.pop_back();
        }
    }
    void add(std::span<const std::byte> bytes) {
        while (!bytes.empty()) {
            const auto piece = bytes.first(std::min(bytes.size(), block_bytes_ - filled_));
            current_.add(piece);
            filled_ += piece.size();
            bytes = bytes.subspan(piece.size());
            if (filled_ == block_bytes_) {
                sums_.push_back(current_.value());
                current_ = {};
                filled_ = 0;
            }
        }
    }
    /// The sums of all blocks, the unfinished one included.
    std::vector<std::uint32_t> sums() const {
        std::vector<std::uint32_t> out = sums_;
        if (filled_ > 0) out.push_back(current_.value());
        return out;
    }

  private:
    std::size_t block_bytes_ = 1, filled_ = 0;
    std::vector<std::uint32_t> sums_;
    Crc32c current_;
};

} // namespace mnemo
