// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/io/checksum.hpp>

#include <random>
#include <string_view>

using namespace mnemo;

namespace {
std::span<const std::byte> bytes(std::string_view s) { return std::as_bytes(std::span(s.data(), s.size())); }

/// Bit by bit, as the polynomial says.
std::uint32_t by_bits(std::span<const std::byte> data) {
    std::uint32_t crc = ~0u;
    for (const std::byte b : data) {
        crc ^= std::to_integer<std::uint32_t>(b);
        for (int i = 0; i < 8; ++i) crc = (crc & 1u) != 0 ? crc >> 1 ^ 0x82f63b78u : crc >> 1;
    }
    return ~crc;
}
} // namespace

TEST_CASE("CRC-32C is the published one, with and without the processor's instruction") {
    std::mt19937 random(1);
    std::vector<std::byte> data(1000);
    for (std::byte& b : data) b = static_cast<std::byte>(random());
    const SimdLevel before = simd_level();
    for (const SimdLevel level : {SimdLevel::plain, SimdLevel::avx2}) {
        use_simd_level(level);
        REQUIRE(crc32c(bytes("123456789")) == 0xe3069283u);
        REQUIRE(crc32c({}) == 0);
        REQUIRE(crc32c(std::vector<std::byte>(32)) == 0x8a9136aau);                 // RFC 3720, B.4: 32 zero bytes
        REQUIRE(crc32c(std::vector<std::byte>(32, std::byte{255})) == 0x62a8ab43u); // and 32 bytes of ones
        for (std::size_t n = 0; n < 70; ++n) {
            const auto piece = std::span(data).subspan(n, 10 * n);
            REQUIRE(crc32c(piece) == by_bits(piece));
        }
    }
    use_simd_level(before);
}

TEST_CASE("a checksum continues from its value") {
    std::mt19937 random(2);
    std::vector<std::byte> data(500);
    for (std::byte& b : data) b = static_cast<std::byte>(random());
    for (std::size_t cut = 0; cut <= data.size(); ++cut) {
        Crc32c first;
        first.add(std::span(data).first(cut));
        Crc32c second = Crc32c::resume(first.value());
        second.add(std::span(data).subspan(cut));
        REQUIRE(second.value() == crc32c(data));
    }
}

TEST_CASE("checksums of blocks do not depend on how the rows came") {
    std::mt19937 random(3);
    const index_t row = 6, block = 5, rows = 23;
    std::vector<std::byte> data(static_cast<std::size_t>(rows * row));
    for (std::byte& b : data) b = static_cast<std::byte>(random());
    std::vector<std::uint32_t> expected;
    for (std::size_t at = 0; at < data.size(); at += 30)
        expected.push_back(crc32c(std::span(data).subspan(at, std::min<std::size_t>(30, data.size() - at))));
    BlockChecksums whole(block, row);
    whole.add(data);
    REQUIRE(whole.sums() == expected);
    for (index_t cut = 0; cut <= rows; ++cut) {
        BlockChecksums first(block, row);
        first.add(std::span(data).first(static_cast<std::size_t>(cut * row)));
        BlockChecksums second(block, row, cut, first.sums());
        for (std::size_t i = static_cast<std::size_t>(cut * row); i < data.size(); i += 6)
            second.add(std::span(data).subspan(i, 6));
        REQUIRE(second.sums() == expected);
    }
}
