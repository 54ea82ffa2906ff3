// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/text/utf8.hpp>

#include <algorithm>
#include <bitset>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace mnemo {

/// Pieces of text that are one token by themselves (`<|endoftext|>`, `[MASK]`): they are cut out before anything else
/// happens to a text, the longest where several begin.
class SpecialTokens {
  public:
    struct Token {
        std::int32_t id = 0;
        bool strip_left = false, strip_right = false; // white space beside it belongs to it
    };

    void add(const std::string& content, Token token) {
        if (content.empty()) fail("special token: expected some text, got none");
        if (!tokens_.emplace(content, token).second) fail("special token: `", content, "` is there twice");
        first_bytes_.set(static_cast<unsigned char>(content[0]));
        if (std::find(lengths_.begin(), lengths_.end(), content.size()) == lengths_.end())
            lengths_.push_back(content.size());
        std::sort(lengths_.begin(), lengths_.end(), std::greater<>());
    }
    bool empty() const { return tokens_.empty(); }
    const std::map<std::string, Token, std::less<>>& tokens() const { return tokens_; }

    /// piece(std::string_view) for each stretch of ordinary text (never empty), token(id) for each special token.
    void split(std::string_view text, auto&& piece, auto&& token) const {
        std::size_t done = 0; // everything before it was handed out
        const auto text_until = [&](std::size_t end) {
            if (end > done) piece(text.substr(done, end - done));
        };
        for (std::size_t i = 0; i < text.size();) {
            std::size_t length = 0;
            const Token* const found = match(text.substr(i), length);
            if (found == nullptr) {
                ++i;
                continue;
            }
            text_until(found->strip_left ? strip_end(text, done, i) : i);
            token(found->id);
            i += length;
            while (found->strip_right && i < text.size()) {
                const CodePoint c = next_code_point(text.substr(i));
                if (!is_white_space(c.value)) break;
                i += c.size;
            }
            done = i;
        }
        text_until(text.size());
    }

  private:
    const Token* match(std::string_view text, std::size_t& length) const {
        if (!first_bytes_.test(static_cast<unsigned char>(text[0]))) return nullptr;
        for (const std::size_t n : lengths_) {
            if (n > text.size()) continue;
            const auto found = tokens_.find(text.substr(0, n));
            if (found == tokens_.end()) continue;
            length = n;
            return &found->second;
        }
        return nullptr;
    }
    // Where text [first, last) ends without the white space at its end.
    static std::size_t strip_end(std::string_view text, std::size_t first, std::size_t last) {
        while (last > first) {
            std::size_t start = last - 1;
            while (start > first && (static_cast<unsigned char>(text[start]) & 0xC0u) == 0x80) --start;
            const CodePoint c = next_code_point(text.substr(start, last - start));
            if (!is_white_space(c.value) || start + c.size != last) break;
            last = start;
        }
        return last;
    }
    std::map<std::string, Token, std::less<>> tokens_;
    std::bitset<256> first_bytes_;
    std::vector<std::size_t> lengths_; // that occur, longest first
};

} // namespace mnemo
