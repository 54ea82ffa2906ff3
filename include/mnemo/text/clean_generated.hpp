// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/text/word_characters.hpp>

#include <span>
#include <string>
#include <string_view>

namespace mnemo {

namespace detail {
/// Without the copies of a word that follow it at once, one blank apart: re.sub(r"\b(\w+)[ ]\1\b", r"\1") until
/// nothing changes.
inline std::string without_repeated_words(std::string_view line) {
    std::string out;
    std::string_view before; // the last word, if nothing but one blank has followed it
    bool blank = false;      // ... and whether the blank has
    for (std::size_t i = 0; i < line.size();) {
        std::size_t end = i;
        while (end < line.size()) {
            const auto [code, size, valid, cut] = next_code_point(line.substr(end));
            if (!is_word_character(code)) break;
            end += size;
        }
        if (end > i) {
            const std::string_view word = line.substr(i, end - i);
            if (blank && word == before)
                out.pop_back(); // the blank goes with the copy
            else
                out += word;
            before = word, blank = false;
            i = end;
        } else {
            const std::size_t size = next_code_point(line.substr(i)).size;
            blank = line[i] == ' ' && !before.empty() && !blank;
            if (!blank) before = {};
            out += line.substr(i, size);
            i += size;
        }
    }
    return out;
}
} // namespace detail

/// What a model's output line loses before it is scored: everything from the first `from` through the last `through`,
/// or, if that is empty, through the end of the line.
struct CutPattern {
    std::string_view from, through;
};

/// The patterns of agwaBom/PEMA's postprocess_generated_opt.py, in its order.
inline constexpr CutPattern kOptPatterns[] = {{" I'm not sure", {}},
                                              {" I'm\" ", {}},
                                              {" I'm", {}},
                                              {" I 50%", {}},
                                              {"Convert the following informal sentence ", "Formal:"},
                                              {"Translate this from English to German:", {}},
                                              {" I.", {}},
                                              {" ......", {}}};

/// A file of output lines, cleaned: patterns in their order, then words that are repeated at once. The last line break
/// of the file is dropped.
inline std::string clean_generated(std::string_view text, std::span<const CutPattern> patterns = kOptPatterns) {
    std::string out;
    while (!text.empty()) {
        const std::size_t newline = text.find('\n');
        std::string line(text.substr(0, newline));
        const bool ended = newline != std::string_view::npos;
        text.remove_prefix(ended ? newline + 1 : text.size());
        for (const auto& [from, through] : patterns) {
            const std::size_t begin = line.find(from);
            if (begin == std::string::npos) continue;
            if (through.empty()) {
                line.erase(begin);
                continue;
            }
            const std::size_t last = line.rfind(through);
            if (last != std::string::npos && last >= begin + from.size())
                line.erase(begin, last + through.size() - begin);
        }
        out += detail::without_repeated_words(line);
        if (ended) out += '\n';
    }
    if (!out.empty() && out.back() == '\n') out.pop_back();
    return out;
}

} // namespace mnemo
