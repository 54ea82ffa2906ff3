// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace mnemo {

/// Leaves words as they are.
struct NoStemmer {
    std::string_view operator()(std::string_view word) const { return word; }
};

/// English text as words to be searched for, as Lucene's analyzer of that language: letters and digits stand together,
/// 's and stop words fall away, capitals become small, and the stemmer makes one word of its forms. Bytes beyond ASCII
/// count as letters. `stem(word)` returns something a std::string_view is made of.
template <class Stemmer = NoStemmer> struct EnglishWords {
    Stemmer stem{};

    /// f(word) for each word of the text, in order; the view lives until f returns.
    void each(std::string_view text, auto&& f) const {
        std::string word;
        const auto letter = [&](std::size_t i) {
            const auto c = static_cast<unsigned char>(text[i]);
            return c >= 0x80 || c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        };
        for (std::size_t i = 0; i < text.size();) {
            if (!letter(i)) {
                ++i;
                continue;
            }
            word.clear();
            // An apostrophe or a dot between letters does not end a word, nor a comma between digits.
            const auto digit = [&](std::size_t at) { return text[at] >= '0' && text[at] <= '9'; };
            while (i < text.size()) {
                const char c = text[i];
                const bool inside = i + 1 < text.size() && !word.empty() && letter(i + 1) &&
                                    (c == '\'' || c == '.' || (c == ',' && digit(i - 1) && digit(i + 1)));
                if (!letter(i) && !inside) break;
                word += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
                ++i;
            }
            if (word.size() > 2 && word.compare(word.size() - 2, 2, "'s") == 0) word.resize(word.size() - 2);
            if (!is_stop_word(word)) f(std::string_view(stem(word)));
        }
    }

    /// Lucene's stop words of English.
    static bool is_stop_word(std::string_view word) {
        static constexpr std::array<std::string_view, 33> words{
            "a",   "an",    "and",  "are",   "as",    "at",   "be",   "but", "by",  "for",  "if",
            "in",  "into",  "is",   "it",    "no",    "not",  "of",   "on",  "or",  "such", "that",
            "the", "their", "then", "there", "these", "they", "this", "to",  "was", "will", "with"};
        return std::binary_search(words.begin(), words.end(), word);
    }
};

/// Words as ids, in the order in which they first came: what Bm25Index takes.
class WordIds {
  public:
    std::int32_t operator()(std::string_view word) {
        return ids_.try_emplace(std::string(word), static_cast<std::int32_t>(ids_.size())).first->second;
    }
    std::size_t size() const { return ids_.size(); }

  private:
    std::unordered_map<std::string, std::int32_t> ids_;
};

} // namespace mnemo
