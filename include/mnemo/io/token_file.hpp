// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/file.hpp>

#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mnemo {

// fairseq's memory-mapped token files, <prefix>.bin and <prefix>.idx, all little-endian:
//     idx: "MMIDIDX\0\0", u64 version 1, u8 type (4: int32, 8: uint16), u64 n, int32 sizes[n], int64 offsets[n]
//     bin: the tokens of all sentences, back to back
static_assert(std::endian::native == std::endian::little);

/// Sentences with their end-of-sentence tokens, one after another: TokenStream{tokens, sentences}.
struct TokenFile {
    std::vector<std::int32_t> tokens;
    std::vector<index_t> sentences; // sizes, their sum is tokens.size()
};

namespace detail {
inline constexpr std::string_view kTokenFileMagic{"MMIDIDX\0\0", 9};
inline constexpr std::size_t kTokenFileHead = 9 + 8 + 1 + 8;
enum class TokenFileType : std::uint8_t { int32 = 4, uint16 = 8 };
} // namespace detail

/// Reads `prefix`.idx and `prefix`.bin. Throws Error for other types, sizes that do not fit the files, and offsets that
/// are not those of sentences back to back.
inline TokenFile read_token_file(const std::string& prefix) {
    const MappedFile index = MappedFile::open(prefix + ".idx"), data = MappedFile::open(prefix + ".bin");
    const std::span<const std::byte> head = index.bytes();
    const auto number = [&]<class T>(T, std::size_t at) {
        T value;
        std::memcpy(&value, head.data() + at, sizeof value);
        return value;
    };
    if (head.size() < detail::kTokenFileHead ||
        std::memcmp(head.data(), detail::kTokenFileMagic.data(), detail::kTokenFileMagic.size()) != 0)
        fail(index.path(), ": expected a file that begins with MMIDIDX, of at least ", detail::kTokenFileHead,
             " bytes, got ", head.size(), " bytes");
    if (const auto version = number(std::uint64_t{}, 9); version != 1)
        fail(index.path(), ": version: expected 1, got ", version);
    const auto type = number(std::uint8_t{}, 17);
    const auto n = number(std::uint64_t{}, 18);
    if (type != std::uint8_t(detail::TokenFileType::int32) && type != std::uint8_t(detail::TokenFileType::uint16))
        fail(index.path(), ": type: expected 4 (int32) or 8 (uint16), got ", int{type});
    const std::size_t width = type == std::uint8_t(detail::TokenFileType::int32) ? 4 : 2;
    const std::uint64_t rest = head.size() - detail::kTokenFileHead;
    if (n > rest / 12 || n * 12 != rest)
        fail(index.path(), ": expected ", n, " sizes and offsets in ", rest, " bytes: 12 bytes each");

    TokenFile out;
    out.sentences.reserve(static_cast<std::size_t>(n));
    std::uint64_t total = 0; // tokens
    for (std::uint64_t i = 0; i < n; ++i) {
        const std::size_t at = detail::kTokenFileHead + static_cast<std::size_t>(i) * 4;
        const auto size = number(std::int32_t{}, at);
        const auto offset = number(std::int64_t{}, detail::kTokenFileHead + static_cast<std::size_t>(n * 4 + i * 8));
        if (size < 0) fail(index.path(), ": sentence ", i, ": expected a size of at least 0, got ", size);
        if (offset < 0 || static_cast<std::uint64_t>(offset) != total * width)
            fail(index.path(), ": sentence ", i, ": expected offset ", total * width, ", got ", offset);
        total += static_cast<std::uint64_t>(size);
        out.sentences.push_back(size);
    }
    if (total * width != data.bytes().size())
        fail(data.path(), ": expected ", total, " tokens of ", width, " bytes, got ", data.bytes().size(), " bytes");
    out.tokens.resize(static_cast<std::size_t>(total));
    if (width == 4) {
        if (total > 0) std::memcpy(out.tokens.data(), data.bytes().data(), data.bytes().size());
    } else {
        for (std::size_t i = 0; i < out.tokens.size(); ++i) {
            std::uint16_t token;
            std::memcpy(&token, data.bytes().data() + 2 * i, 2);
            out.tokens[i] = token;
        }
    }
    return out;
}

/// Writes both files; a vocabulary below 65500 gets 16 bits a token, as in the reference. Throws Error for tokens
/// outside the vocabulary and sizes that do not sum to the tokens.
inline void write_token_file(const std::string& prefix, std::span<const std::int32_t> tokens,
                             std::span<const index_t> sentences, index_t vocab_size) {
    const bool narrow = vocab_size < 65500;
    const std::size_t width = narrow ? 2 : 4;
    std::string sizes, offsets, data;
    const auto put = [](std::string& to, auto value) {
        char bytes[sizeof value];
        std::memcpy(bytes, &value, sizeof value);
        to.append(bytes, sizeof value);
    };
    std::uint64_t total = 0;
    for (const index_t size : sentences) {
        if (size < 0 || size > std::numeric_limits<std::int32_t>::max() ||
            static_cast<std::uint64_t>(size) > tokens.size() - total)
            fail(prefix, ".idx: sentences: expected sizes that sum to ", tokens.size());
        put(sizes, static_cast<std::int32_t>(size));
        put(offsets, static_cast<std::int64_t>(total * width));
        total += static_cast<std::uint64_t>(size);
    }
    if (total != tokens.size())
        fail(prefix, ".idx: sentences: expected sizes that sum to ", tokens.size(), ", got ", total);
    data.reserve(tokens.size() * width);
    for (const std::int32_t token : tokens) {
        if (token < 0 || token >= vocab_size)
            fail(prefix, ".bin: tokens: expected ids below ", vocab_size, ", got ", token);
        if (narrow)
            put(data, static_cast<std::uint16_t>(token));
        else
            put(data, token);
    }
    std::string head(detail::kTokenFileMagic);
    put(head, std::uint64_t{1});
    put(head, narrow ? std::uint8_t{8} : std::uint8_t{4});
    put(head, static_cast<std::uint64_t>(sentences.size()));
    atomic_write(prefix + ".bin", data);
    atomic_write(prefix + ".idx", head + sizes + offsets); // last: with it the pair is complete
}

} // namespace mnemo
