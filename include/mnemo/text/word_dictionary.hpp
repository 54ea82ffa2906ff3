// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/core/matrix_view.hpp>
#include <mnemo/text/utf8.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace mnemo {

/// A vocabulary of whole words: fairseq's dict.txt. Ids 0 to 3 are `<s>`, `<pad>`, `</s>`, `<unk>`, then one word a
/// line. Special symbols that a text spells out are words like any other.
class WordDictionary {
  public:
    static constexpr std::int32_t bos = 0, pad = 1, eos = 2, unk = 3;

    WordDictionary() {
        for (const char* const special : {"<s>", "<pad>", "</s>", "<unk>"}) add(special);
    }

    /// The contents of a dict.txt: lines `word count`, of which the last space separates. Throws Error naming `source`
    /// and the line for a line without count, bytes that are no UTF-8 and a word that is there twice (fairseq moves
    /// the ids of all that follow, silently).
    static WordDictionary parse(std::string_view contents, std::string_view source = "dict.txt") {
        WordDictionary dictionary;
        std::size_t number = 0;
        while (!contents.empty()) {
            const std::size_t end = std::min(contents.find('\n'), contents.size());
            std::string_view line = contents.substr(0, end);
            contents.remove_prefix(std::min(end + 1, contents.size()));
            ++number;
            if (line.ends_with('\r')) line.remove_suffix(1);
            if (first_not_utf8(line) != line.size()) fail(source, ", line ", number, ": expected UTF-8");
            const std::size_t space = line.rfind(' ');
            const bool counted = space != line.npos && space + 1 < line.size() &&
                                 line.find_first_not_of("0123456789", space + 1) == line.npos;
            if (!counted || space == 0)
                fail(source, ", line ", number, ": expected `word count`, got `", line.substr(0, 40), "`");
            if (dictionary.size() > INT32_MAX - 1) fail(source, ": expected at most 2^31 words");
            if (!dictionary.add(line.substr(0, space)))
                fail(source, ", line ", number, ": the word `", line.substr(0, std::min<std::size_t>(space, 40)),
                     "` is there twice");
        }
        return dictionary;
    }

    index_t size() const { return static_cast<index_t>(words_.size()); }
    /// The id of a word; `unk` if it is none.
    std::int32_t id(std::string_view word) const {
        const auto found = ids_.find(std::string(word));
        return found == ids_.end() ? unk : found->second;
    }
    /// Throws Error for an id out of range.
    const std::string& word(index_t id) const {
        if (id < 0 || id >= size()) fail("word id: expected 0 to ", size() - 1, ", got ", id);
        return words_[static_cast<std::size_t>(id)];
    }

    /// A line as ids: its words, cut where Python's str.split() cuts, then `eos`.
    std::vector<std::int32_t> encode_line(std::string_view line) const {
        std::vector<std::int32_t> ids;
        std::size_t word = 0; // where the current one began
        for (std::size_t i = 0; i <= line.size();) {
            const CodePoint c = i < line.size() ? next_code_point(line.substr(i)) : CodePoint{U' ', 1, true};
            // Python counts the four separators as spaces, Unicode does not.
            if (is_white_space(c.value) || (c.value >= 0x1C && c.value <= 0x1F)) {
                if (i > word) ids.push_back(id(line.substr(word, i - word)));
                word = i + c.size;
            }
            i += c.size;
        }
        ids.push_back(eos);
        return ids;
    }
    /// Words with a space between them, `eos` left out.
    std::string decode(std::span<const std::int32_t> ids) const {
        std::string out;
        for (const std::int32_t id : ids)
            if (id != eos) out += (out.empty() ? "" : " ") + word(id);
        return out;
    }

  private:
    bool add(std::string_view word) {
        if (!ids_.emplace(word, static_cast<std::int32_t>(words_.size())).second) return false;
        words_.emplace_back(word);
        return true;
    }
    std::vector<std::string> words_;
    std::unordered_map<std::string, std::int32_t> ids_;
};

} // namespace mnemo
