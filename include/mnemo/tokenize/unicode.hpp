// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/text/utf8.hpp>

#include <algorithm>
#include <cstddef>
#include <string>

#include <utf8proc.h>

// What tokenizers ask of Unicode, answered by libutf8proc. Which code points are assigned depends on its version.

namespace mnemo {

/// General category L (letters), N (numbers), P (punctuation).
inline bool is_letter(char32_t c) {
    const utf8proc_category_t k = utf8proc_category(static_cast<utf8proc_int32_t>(c));
    return k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO;
}
inline bool is_number(char32_t c) {
    const utf8proc_category_t k = utf8proc_category(static_cast<utf8proc_int32_t>(c));
    return k >= UTF8PROC_CATEGORY_ND && k <= UTF8PROC_CATEGORY_NO;
}
inline bool is_punctuation(char32_t c) {
    const utf8proc_category_t k = utf8proc_category(static_cast<utf8proc_int32_t>(c));
    return k >= UTF8PROC_CATEGORY_PC && k <= UTF8PROC_CATEGORY_PO;
}
/// Category Mn: accents and the like.
inline bool is_nonspacing_mark(char32_t c) {
    return utf8proc_category(static_cast<utf8proc_int32_t>(c)) == UTF8PROC_CATEGORY_MN;
}
/// Category C: controls, formats, private use, not assigned.
inline bool is_other(char32_t c) {
    const utf8proc_category_t k = utf8proc_category(static_cast<utf8proc_int32_t>(c));
    return k == UTF8PROC_CATEGORY_CN || k >= UTF8PROC_CATEGORY_CC;
}

/// Appends the full lower-case form of one code point, which may be several.
inline void append_lower(std::u32string& out, char32_t c) {
    if (c == 0x130) { // the one letter whose lower-case form is longer than itself
        out += U"i\u0307";
        return;
    }
    out += static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)));
}

/// The canonical decomposition (NFD).
inline std::u32string decomposed(const std::u32string& text) {
    std::u32string out;
    utf8proc_int32_t buffer[64]; // the longest decomposition of one code point is 4
    for (const char32_t c : text) {
        int last_class = 0;
        const auto n =
            utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), buffer, 64, UTF8PROC_DECOMPOSE, &last_class);
        for (utf8proc_ssize_t i = 0; i < n && i < 64; ++i) out += static_cast<char32_t>(buffer[i]);
    }
    // Marks after a letter in the order of their classes, equal ones as they stand.
    const auto mark_class = [](char32_t c) {
        return utf8proc_get_property(static_cast<utf8proc_int32_t>(c))->combining_class;
    };
    const auto before = [&](char32_t a, char32_t b) { return mark_class(a) < mark_class(b); };
    for (std::size_t i = 0; i < out.size();) {
        if (mark_class(out[i]) == 0) {
            ++i;
            continue;
        }
        std::size_t end = i;
        while (end < out.size() && mark_class(out[end]) != 0) ++end;
        std::stable_sort(out.begin() + static_cast<std::ptrdiff_t>(i), out.begin() + static_cast<std::ptrdiff_t>(end),
                         before);
        i = end;
    }
    return out;
}

} // namespace mnemo
