// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace mnemo {

/// What stands in for bytes that are no UTF-8.
inline constexpr char32_t replacement_character = 0xFFFD;

/// A code point and how many bytes it takes. Bytes that are no UTF-8 are the replacement character and not `valid`.
struct CodePoint {
    char32_t value = replacement_character;
    std::size_t size = 1;
    bool valid = false;
    bool cut = false; // the text ends inside the character: more bytes might complete it
};

/// The code point that `text` (not empty) begins with. Overlong forms, surrogates and values beyond U+10FFFF are no
/// UTF-8; of a broken character the longest part that could have begun one is taken at once, as Unicode recommends.
inline CodePoint next_code_point(std::string_view text) {
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
    const unsigned first = byte(0);
    if (first < 0x80) return {first, 1, true};
    const std::size_t size = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
    if (first < 0xC2 || first > 0xF4) return {};
    char32_t value = first & (0xFFu >> (size + 1));
    for (std::size_t i = 1; i < size; ++i) {
        if (i == text.size()) return {replacement_character, i, false, true};
        unsigned low = 0x80, high = 0xBF;
        if (i == 1 && first == 0xE0) low = 0xA0; // shorter forms exist
        if (i == 1 && first == 0xF0) low = 0x90;
        if (i == 1 && first == 0xED) high = 0x9F; // surrogates
        if (i == 1 && first == 0xF4) high = 0x8F; // beyond U+10FFFF
        if (byte(i) < low || byte(i) > high) return {replacement_character, i, false};
        value = value << 6 | (byte(i) & 0x3Fu);
    }
    return {value, size, true};
}

/// Appends a code point, which must be one (no surrogate, at most U+10FFFF).
inline void append_utf8(std::string& out, char32_t c) {
    const auto add = [&](char32_t byte) { out += static_cast<char>(byte); };
    if (c < 0x80)
        add(c);
    else if (c < 0x800)
        add(0xC0 | c >> 6), add(0x80 | (c & 0x3F));
    else if (c < 0x10000)
        add(0xE0 | c >> 12), add(0x80 | (c >> 6 & 0x3F)), add(0x80 | (c & 0x3F));
    else
        add(0xF0 | c >> 18), add(0x80 | (c >> 12 & 0x3F)), add(0x80 | (c >> 6 & 0x3F)), add(0x80 | (c & 0x3F));
}

/// Position of the first byte that is no UTF-8, or text.size().
inline std::size_t first_not_utf8(std::string_view text) {
    for (std::size_t i = 0; i < text.size();) {
        const CodePoint c = next_code_point(text.substr(i));
        if (!c.valid) return i;
        i += c.size;
    }
    return text.size();
}

/// Unicode's White_Space: what `\s` means to GPT-2's and BERT's tokenizers. No file separators (U+001C to U+001F), no
/// zero-width characters.
constexpr bool is_white_space(char32_t c) {
    return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
           c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

/// Bytes that come in pieces, as valid UTF-8: a character that a piece cuts is held back until the rest of it came,
/// what can be no UTF-8 any more becomes U+FFFD. For showing tokens of a byte-level vocabulary while they are written.
class Utf8Stream {
  public:
    /// What can be shown after these bytes.
    std::string add(std::string_view bytes) {
        held_ += bytes;
        return take(false);
    }
    /// The end of the stream: what was held back is U+FFFD now.
    std::string finish() { return take(true); }

  private:
    std::string take(bool all) {
        std::string out;
        std::size_t i = 0;
        while (i < held_.size()) {
            const CodePoint c = next_code_point(std::string_view(held_).substr(i));
            if (c.cut && !all) break;
            append_utf8(out, c.value);
            i += c.size;
        }
        held_.erase(0, i);
        return out;
    }
    std::string held_; // at most 3 bytes between calls
};

} // namespace mnemo
