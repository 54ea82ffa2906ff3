// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/core/matrix_view.hpp>
#include <mnemo/text/hash.hpp>
#include <mnemo/text/merge_pairs.hpp>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <queue>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace mnemo {

/// Length of the word that `text` (not empty) begins with; tokens never cross words. A word is a run of letters (with
/// `_` and all bytes from 128 on), of digits or of other characters, each with one space before it at most; or line
/// ends with the indentation after them; or blanks. Together the words are the text, whatever its bytes are. Longer
/// runs are cut at `max_word_bytes`, which bounds the work on text without spaces.
inline constexpr std::size_t max_word_bytes = 128;
inline std::size_t next_word(std::string_view text) {
    enum Class : unsigned char { letter, digit, sign, blank, line_end };
    static constexpr auto classes = [] {
        std::array<Class, 256> c{};
        for (std::size_t b = 0; b < c.size(); ++b) {
            if ((b | 32) - 'a' < 26u || b == '_' || b >= 128)
                c[b] = letter;
            else if (b - '0' < 10u)
                c[b] = digit;
            else if (b == '\n' || b == '\r')
                c[b] = line_end;
            else
                c[b] = b == ' ' || (b >= '\t' && b <= '\f') ? blank : sign;
        }
        return c;
    }();
    const std::size_t limit = std::min(text.size(), max_word_bytes);
    const auto class_at = [&](std::size_t i) { return classes[static_cast<unsigned char>(text[i])]; };
    const auto end_of_run = [&](std::size_t i, Class c) {
        while (i < limit && class_at(i) == c) ++i;
        return i;
    };
    const Class first = class_at(0);
    if (first == line_end) return end_of_run(end_of_run(0, line_end), blank);
    if (first != blank) return end_of_run(0, first);
    if (text[0] == ' ' && limit > 1 && class_at(1) < blank) return end_of_run(1, class_at(1));
    const std::size_t end = end_of_run(0, blank);
    // The last of several spaces belongs to the word that follows.
    const bool lends = end > 1 && end < limit && text[end - 1] == ' ' && class_at(end) < blank;
    return lends ? end - 1 : end;
}

/// Byte-level byte-pair encoding, learned from a corpus (Sennrich et al. 2016): every text has an encoding, and
/// decoding gives it back byte for byte. Ids 0 to 3 are fairseq's <s>, <pad>, </s>, <unk> and never come out of text, 4
/// to 259 are the bytes, then the merges in the order they were learned. Constant after construction, so threads may
/// share it.
class Bpe {
  public:
    static constexpr std::int32_t bos = 0, pad = 1, eos = 2, unk = 3, first_byte = 4, first_merge = 260;

    /// Bytes only: 260 ids.
    Bpe() { add_bytes(); }

    /// Learns merges until there are `vocab_size` ids (at least 260) or no pair occurs twice. The most frequent pair is
    /// merged first, of equally frequent ones that with the smaller ids, so the result depends on the corpus alone.
    static Bpe learn(std::string_view corpus, index_t vocab_size = 1024);

    index_t vocab_size() const { return static_cast<index_t>(tokens_.size()); }

    std::vector<std::int32_t> encode(std::string_view text) const {
        std::vector<std::int32_t> ids;
        encode(text, ids);
        return ids;
    }
    /// Appends to `ids`. Cheapest for long texts: equal words of one call are merged once.
    void encode(std::string_view text, std::vector<std::int32_t>& ids) const;

    /// The bytes of one id; empty for the four special ones. Throws Error for an id out of range.
    std::string_view token(index_t id) const {
        if (id < 0 || id >= vocab_size()) fail("token id: expected 0 to ", vocab_size() - 1, ", got ", id);
        return tokens_[static_cast<std::size_t>(id)];
    }
    /// Any part of an encoding; a part may end inside a UTF-8 character.
    std::string decode(std::span<const std::int32_t> ids) const {
        std::string text;
        for (const std::int32_t id : ids) text += token(id);
        return text;
    }

    /// The file as text: "mnemo bpe 1", "merges N", N lines "left right" (ids), "hash H".
    std::string to_text() const;
    /// Reads it back. Throws Error naming `source` and the line.
    static Bpe from_text(std::string_view text, std::string_view source = "bpe");
    /// Replaces the file at `path` in one step.
    void save(const std::string& path) const;
    static Bpe load(const std::string& path);

    /// Of the merges: two tokenizers with the same hash give the same ids.
    std::string hash() const {
        Hash64 hash;
        for (const auto& [left, right] : merges_) hash.add(mnemo::text(left, ' ', right, '\n'));
        return hash.text();
    }

  private:
    static std::uint64_t key(std::int32_t left, std::int32_t right) {
        return static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint32_t>(right);
    }
    void add_bytes() {
        tokens_.resize(first_byte);
        for (int b = 0; b < 256; ++b) tokens_.emplace_back(1, static_cast<char>(b));
    }
    void add_merge(std::int32_t left, std::int32_t right) {
        ids_.emplace(key(left, right), static_cast<std::int32_t>(tokens_.size()));
        merges_.emplace_back(left, right);
        tokens_.push_back(tokens_[static_cast<std::size_t>(left)] + tokens_[static_cast<std::size_t>(right)]);
    }
    static void replace_pair(std::vector<std::int32_t>& symbols, std::size_t first, std::int32_t left,
                             std::int32_t right, std::int32_t merged) {
        std::size_t out = first;
        for (std::size_t i = first; i < symbols.size(); ++i, ++out) {
            const bool pair = i + 1 < symbols.size() && symbols[i] == left && symbols[i + 1] == right;
            symbols[out] = pair ? merged : symbols[i];
            i += pair;
        }
        symbols.resize(out);
    }

    std::vector<std::string> tokens_;                           // bytes of each id
    std::vector<std::pair<std::int32_t, std::int32_t>> merges_; // of ids first_merge, first_merge + 1, ...
    std::unordered_map<std::uint64_t, std::int32_t> ids_;       // pair -> merged id, which is also its rank
};

inline Bpe Bpe::learn(std::string_view corpus, index_t vocab_size) {
    if (vocab_size < first_merge || vocab_size > 1'000'000)
        fail("bpe vocabulary: expected 260 to 1000000 ids, got ", vocab_size);
    struct Word {
        std::vector<std::int32_t> symbols;
        index_t count = 0;
    };
    std::vector<Word> words; // distinct, in order of appearance: nothing below depends on a hash table's order
    std::unordered_map<std::string_view, std::size_t> word_ids;
    for (std::size_t i = 0; i < corpus.size();) {
        const std::string_view word = corpus.substr(i, next_word(corpus.substr(i)));
        const auto [it, added] = word_ids.emplace(word, words.size());
        if (added) {
            words.emplace_back();
            for (const char c : word) words.back().symbols.push_back(first_byte + static_cast<unsigned char>(c));
        }
        ++words[it->second].count;
        i += word.size();
    }

    struct Pair {
        index_t count = 0;
        std::vector<std::size_t> words; // a superset of the words that hold the pair
    };
    std::unordered_map<std::uint64_t, Pair> pairs;
    const auto count_pairs = [&](std::size_t w, index_t sign, auto&& changed) {
        const auto& s = words[w].symbols;
        for (std::size_t i = 0; i + 1 < s.size(); ++i) {
            Pair& pair = pairs[key(s[i], s[i + 1])];
            pair.count += sign * words[w].count;
            changed(s[i], s[i + 1], pair, w);
        }
    };
    const auto remember = [](std::int32_t, std::int32_t, Pair& pair, std::size_t w) {
        if (pair.words.empty() || pair.words.back() != w) pair.words.push_back(w);
    };
    for (std::size_t w = 0; w < words.size(); ++w) count_pairs(w, 1, remember);

    // Entries go stale when a count falls; they are corrected when they come up.
    std::priority_queue<std::pair<index_t, std::uint64_t>> queue; // count, then the smaller pair: keys are complemented
    for (const auto& [pair_key, pair] : pairs) queue.emplace(pair.count, ~pair_key);
    Bpe bpe;
    while (bpe.vocab_size() < vocab_size && !queue.empty()) {
        const auto [count, complement] = queue.top();
        queue.pop();
        Pair& best = pairs[~complement];
        if (best.count != count) {
            if (best.count > 1) queue.emplace(best.count, complement);
            continue;
        }
        if (count < 2) break;
        const auto left = static_cast<std::int32_t>(~complement >> 32), right = static_cast<std::int32_t>(~complement);
        const auto merged = static_cast<std::int32_t>(bpe.vocab_size());
        bpe.add_merge(left, right);
        std::vector<std::uint64_t> created;
        for (const std::size_t w : std::exchange(best.words, {})) {
            count_pairs(w, -1, [](auto&&...) {});
            replace_pair(words[w].symbols, 0, left, right, merged);
            count_pairs(w, 1, [&](std::int32_t a, std::int32_t b, Pair& pair, std::size_t word) {
                if (a != merged && b != merged) return; // its list has this word already
                if (pair.words.empty()) created.push_back(key(a, b));
                remember(a, b, pair, word);
            });
        }
        for (const std::uint64_t k : created) queue.emplace(pairs[k].count, ~k);
    }
    return bpe;
}

inline void Bpe::encode(std::string_view text, std::vector<std::int32_t>& ids) const {
    struct Span {
        std::size_t first, size;
    };
    std::unordered_map<std::string_view, Span> known; // word -> where its ids stand in `cache`
    std::vector<std::int32_t> cache, symbols;
    PairMerger merger;
    const auto rule = [&](std::int32_t left, std::int32_t right) -> PairMerge {
        const auto found = ids_.find(key(left, right));
        return found == ids_.end() ? PairMerge{} : PairMerge{static_cast<double>(found->second), found->second};
    };
    for (std::size_t i = 0; i < text.size();) {
        const std::string_view word = text.substr(i, next_word(text.substr(i)));
        i += word.size();
        const auto [it, added] = known.try_emplace(word, Span{cache.size(), 0});
        if (added) {
            const std::size_t first = cache.size();
            symbols.clear();
            for (const char c : word) symbols.push_back(first_byte + static_cast<unsigned char>(c));
            const auto merged = merger.merge(symbols, rule);
            cache.insert(cache.end(), merged.begin(), merged.end());
            it->second.size = cache.size() - first;
        }
        const auto from = cache.begin() + static_cast<std::ptrdiff_t>(it->second.first);
        ids.insert(ids.end(), from, from + static_cast<std::ptrdiff_t>(it->second.size));
    }
}

inline std::string Bpe::to_text() const {
    std::string out = mnemo::text("mnemo bpe 1\nmerges ", merges_.size(), "\n");
    for (const auto& [left, right] : merges_) out += text(left, ' ', right, '\n');
    return out + "hash " + hash() + "\n";
}

inline Bpe Bpe::from_text(std::string_view text, std::string_view source) {
    std::size_t number = 0;
    const auto line = [&]() -> std::string_view {
        const std::size_t end = text.find('\n');
        if (end == text.npos) fail(source, ": expected line ", number + 1, ", got the end of the file");
        const std::string_view found = text.substr(0, end);
        text.remove_prefix(end + 1);
        ++number;
        return found;
    };
    const auto wrong = [&](std::string_view expected, std::string_view got) {
        fail(source, ", line ", number, ": expected ", expected, ", got '", got.substr(0, 40), "'");
    };
    // The number after `prefix`, with nothing behind it; -1 if there is none.
    const auto number_after = [](std::string_view s, std::string_view prefix) {
        std::int64_t value = -1;
        if (s.substr(0, prefix.size()) != prefix) return value;
        const char* const end = s.data() + s.size();
        const auto [stop, error] = std::from_chars(s.data() + prefix.size(), end, value);
        return error == std::errc() && stop == end ? value : -1;
    };
    if (const auto s = line(); s != "mnemo bpe 1") wrong("'mnemo bpe 1'", s);
    const auto header = line();
    const std::int64_t merges = number_after(header, "merges ");
    if (merges < 0 || merges > 1'000'000) wrong("'merges N' with N up to 1000000", header);
    Bpe bpe;
    for (std::int64_t i = 0; i < merges; ++i) {
        const auto s = line();
        const std::size_t space = std::min(s.find(' '), s.size());
        const std::int64_t left = number_after(s.substr(0, space), ""), right = number_after(s.substr(space), " ");
        for (const std::int64_t id : {left, right})
            if (id < first_byte || id >= bpe.vocab_size()) wrong("two ids from 4 on that came before", s);
        if (bpe.token(left).size() + bpe.token(right).size() > max_word_bytes)
            wrong(mnemo::text("a token of at most ", max_word_bytes, " bytes"), s);
        if (bpe.ids_.count(key(static_cast<std::int32_t>(left), static_cast<std::int32_t>(right))) != 0)
            wrong("a new pair", s);
        bpe.add_merge(static_cast<std::int32_t>(left), static_cast<std::int32_t>(right));
    }
    const auto last = line();
    const std::string all = bpe.to_text();
    if (mnemo::text(last, '\n') != std::string_view(all).substr(all.rfind("hash ")))
        wrong("the hash of the merges", last);
    if (!text.empty()) fail(source, ": expected the end of the file after line ", number, ", got more");
    return bpe;
}

inline void Bpe::save(const std::string& path) const {
    const std::string temporary = path + ".tmp";
    std::ofstream file(temporary, std::ios::binary);
    file << to_text() << std::flush;
    file.close();
    if (!file || std::rename(temporary.c_str(), path.c_str()) != 0) {
        const int reason = errno;
        std::remove(temporary.c_str());
        fail(path, ": cannot be written: ", std::string_view(std::strerror(reason)));
    }
}

inline Bpe Bpe::load(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) fail(path, ": cannot be read: ", std::string_view(std::strerror(errno)));
    std::string content;
    constexpr std::size_t limit = 32u << 20; // a million merges take less
    for (char block[1 << 16]; content.size() <= limit && (file.read(block, sizeof block), file.gcount() > 0);)
        content.append(block, static_cast<std::size_t>(file.gcount()));
    if (file.bad() || content.size() > limit) fail(path, ": expected a readable file of at most 32 MiB");
    return from_text(content, path);
}

} // namespace mnemo
