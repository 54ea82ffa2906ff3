// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/text/utf8.hpp>

#include <algorithm>
#include <iterator>
#include <utility>

namespace mnemo {

/// What Python's str.split() takes for white space: Unicode's and the file separators.
constexpr bool is_python_space(char32_t c) { return is_white_space(c) || (c >= 28 && c <= 31); }

/// Letters, digits and the underscore, as \w of Python's re: exactly in ASCII and Latin-1, by blocks beyond it (the
/// blocks of combining marks, punctuation, symbols and private use are no words).
inline bool is_word_character(char32_t c) {
    if (c < 0x80) return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_';
    if (c < 0x100) {
        constexpr char32_t others[] = {0xaa, 0xb2, 0xb3, 0xb5, 0xb9, 0xba, 0xbc, 0xbd, 0xbe};
        return (c >= 0xc0 && c != 0xd7 && c != 0xf7) ||
               std::find(std::begin(others), std::end(others), c) != std::end(others);
    }
    constexpr std::pair<char32_t, char32_t> outside[] = {
        {0x2b9, 0x2df},     {0x300, 0x36f},       {0x483, 0x489},   {0x591, 0x5cf},   {0x60c, 0x61f},
        {0x64b, 0x65f},     {0x2000, 0x206f},     {0x20a0, 0x20ff}, {0x2190, 0x245f}, {0x2500, 0x2bff},
        {0x2e00, 0x2fff},   {0x3000, 0x3004},     {0x3008, 0x3020}, {0xd800, 0xf8ff}, {0xfe00, 0xfe6f},
        {0xff00, 0xff0f},   {0xff1a, 0xff20},     {0xff3b, 0xff40}, {0xff5b, 0xff65}, {0xfff0, 0xffff},
        {0x1f000, 0x1faff}, {0xe0000, 0xffffffff}};
    return std::none_of(std::begin(outside), std::end(outside),
                        [&](const auto& range) { return c >= range.first && c <= range.second; });
}

} // namespace mnemo
