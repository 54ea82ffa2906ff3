// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/json.hpp>
#include <mnemo/text/merge_pairs.hpp>
#include <mnemo/text/special_tokens.hpp>
#include <mnemo/tokenize/special_tokens_json.hpp>
#include <mnemo/tokenize/unicode.hpp>

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace mnemo {

/// How vocab.json and merges.txt are meant; tokenizer.json says it itself.
struct ByteLevelBpeOptions {
    bool add_prefix_space = false; // before each piece of text that does not begin with a space
    /// Cut out of a text, if the vocabulary has them; vocab.json does not say which tokens are special.
    std::vector<std::string> special_tokens = {"<|endoftext|>"};
};

/// GPT-2's byte-level byte-pair encoding, also that of OPT and RoBERTa: every text has an encoding and decoding gives
/// it back. Read from vocab.json and merges.txt or from tokenizer.json. Special tokens of a post-processor (`<s>` ...
/// `</s>`) are the caller's to add. Constant after construction.
class ByteLevelBpe {
  public:
    using Options = ByteLevelBpeOptions;

    /// The contents of GPT-2's two files. Throws Error naming the file for ids that are not 0, 1, 2, ... each once, and
    /// for merges of what is no token.
    static ByteLevelBpe parse(std::string_view vocab_json, std::string_view merges_txt, const Options& options,
                              const std::string& vocab_source = "vocab.json",
                              const std::string& merges_source = "merges.txt") {
        ByteLevelBpe t;
        t.add_prefix_space_ = options.add_prefix_space;
        t.read_vocabulary(parse_json(vocab_json, vocab_source), vocab_source);
        std::size_t number = 0;
        while (!merges_txt.empty()) {
            const std::size_t end = std::min(merges_txt.find('\n'), merges_txt.size());
            std::string_view line = merges_txt.substr(0, end);
            merges_txt.remove_prefix(std::min(end + 1, merges_txt.size()));
            ++number;
            if (line.ends_with('\r')) line.remove_suffix(1);
            if (line.empty() || (number == 1 && line.starts_with("#version"))) continue;
            const std::string where = text(merges_source, ", line ", number);
            t.add_merge(line, where);
        }
        for (const std::string& special : options.special_tokens)
            if (const auto found = t.names_.find(special); found != t.names_.end())
                t.specials_.add(special, {found->second});
        t.finish();
        return t;
    }
    static ByteLevelBpe load(const std::string& vocab_json, const std::string& merges_txt,
                             const Options& options = {}) {
        return parse(read_file(vocab_json), read_file(merges_txt), options, vocab_json, merges_txt);
    }

    /// The contents of a tokenizer.json. What would change the ids and is not this encoding is an Error that names it:
    /// other models, normalizers, pre-tokenizers other than ByteLevel.
    static ByteLevelBpe parse(std::string_view tokenizer_json, const std::string& source = "tokenizer.json") {
        const JsonObject all = JsonObject::parse(tokenizer_json, source), model = all.object("model");
        if (model.has("type") && model.string("type") != "BPE") model.wrong("type", "\"BPE\"");
        for (const char* const absent : {"unk_token", "continuing_subword_prefix", "end_of_word_suffix", "dropout"})
            if (model.has(absent) && !is_nothing(model.raw().at(absent))) model.wrong(absent, "null");
        for (const char* const off : {"byte_fallback", "ignore_merges"})
            if (model.has(off) && model.boolean(off)) model.wrong(off, "false");
        if (all.has("normalizer") && !all.raw().at("normalizer").is_null()) all.wrong("normalizer", "null");
        const JsonObject splitter = all.object("pre_tokenizer");
        if (splitter.string("type") != "ByteLevel") splitter.wrong("type", "\"ByteLevel\"");
        if (splitter.has("use_regex") && !splitter.boolean("use_regex")) splitter.wrong("use_regex", "true");

        ByteLevelBpe t;
        t.add_prefix_space_ = splitter.has("add_prefix_space") && splitter.boolean("add_prefix_space");
        const AddedTokens added(all, source);
        t.read_vocabulary(model.object("vocab").raw(), source + ": vocab", added.ids());
        std::size_t number = 0;
        for (const auto& merge : model.list("merges")) {
            const std::string where = text(source, ": merges[", number++, "]");
            if (merge.is_string())
                t.add_merge(merge.get<std::string>(), where);
            else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string())
                t.add_merge(merge[0].get<std::string>(), merge[1].get<std::string>(), where);
            else
                fail(where, ": expected \"a b\" or [\"a\", \"b\"], got ", in_quotes(merge.dump()));
        }
        t.specials_ = added.tokens();
        t.finish();
        return t;
    }
    static ByteLevelBpe load(const std::string& tokenizer_json) {
        return parse(read_file(tokenizer_json), tokenizer_json);
    }

    index_t vocab_size() const { return static_cast<index_t>(tokens_.size()); }
    /// The id of a token by its name in the files ("<|endoftext|>", "Ġthe"); -1 if there is none.
    std::int32_t id(const std::string& name) const {
        const auto found = names_.find(name);
        return found == names_.end() ? -1 : found->second;
    }

    /// Any bytes; what is no UTF-8 counts as signs. Throws Error if the vocabulary lacks a byte of the text.
    std::vector<std::int32_t> encode(std::string_view text) const {
        std::vector<std::int32_t> ids;
        encode(text, ids);
        return ids;
    }
    /// Appends to `ids`. Cheapest for long texts: equal words of one call are merged once.
    void encode(std::string_view text, std::vector<std::int32_t>& ids) const {
        Cache cache;
        std::string prefixed;
        specials_.split(
            text,
            [&](std::string_view piece) {
                if (add_prefix_space_ && piece[0] != ' ') piece = prefixed.assign(" ").append(piece);
                while (!piece.empty()) {
                    const std::size_t size = next_word(piece);
                    encode_word(piece.substr(0, size), cache, ids);
                    piece.remove_prefix(size);
                }
            },
            [&](std::int32_t id) { ids.push_back(id); });
    }

    /// The bytes of one token; a special token gives its name. Throws Error for an id that is none.
    const std::string& token(index_t id) const {
        if (id < 0 || id >= vocab_size() || !used_[static_cast<std::size_t>(id)])
            fail("token id: expected one of the vocabulary of ", vocab_size(), ", got ", id);
        return tokens_[static_cast<std::size_t>(id)];
    }
    /// The bytes of a part of an encoding, which may end inside a UTF-8 character: Utf8Stream shows it.
    std::string decode(std::span<const std::int32_t> ids) const {
        std::string out;
        for (const std::int32_t id : ids) out += token(id);
        return out;
    }

    /// Length of the piece that `text` (not empty) begins with, as GPT-2's expression cuts it: a contraction; letters,
    /// numbers or signs with one space before them at most; white space, of which the last belongs to what follows.
    static std::size_t next_word(std::string_view text) {
        enum Class { letter, number, white, sign };
        const auto class_of = [](const CodePoint& c) {
            return !c.valid                    ? sign
                   : is_white_space(c.value)   ? white
                   : is_letter(c.value)        ? letter
                   : mnemo::is_number(c.value) ? number
                                               : sign;
        };
        if (text[0] == '\'')
            for (const std::string_view contraction : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"})
                if (text.starts_with(contraction)) return contraction.size();
        std::size_t end = text[0] == ' ' ? 1 : 0;
        if (end < text.size()) {
            const Class first = class_of(next_code_point(text.substr(end)));
            if (first != white) {
                while (end < text.size()) {
                    const CodePoint c = next_code_point(text.substr(end));
                    if (class_of(c) != first) break;
                    end += c.size;
                }
                return end;
            }
        }
        std::size_t last = 0; // where the last of the spaces begins
        for (end = 0; end < text.size();) {
            const CodePoint c = next_code_point(text.substr(end));
            if (class_of(c) != white) return last > 0 ? last : end;
            last = end;
            end += c.size;
        }
        return end;
    }

  private:
    struct Cache {
        struct Span {
            std::size_t first, size;
        };
        std::unordered_map<std::string, Span> words;
        std::vector<std::int32_t> ids, symbols;
        PairMerger merger;
    };
    static constexpr std::size_t kCachedWord = 64; // bytes; longer ones rarely come twice

    static bool is_nothing(const nlohmann::json& value) { return value.is_null() || value == ""; }
    static std::uint64_t key(std::int32_t left, std::int32_t right) {
        return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 | static_cast<std::uint32_t>(right);
    }
    /// The character that stands for a byte in the files: itself where it is a printable character of Latin-1, else
    /// one from U+0100 on.
    static const std::array<char32_t, 256>& alphabet() {
        static const auto all = [] {
            std::array<char32_t, 256> of_byte{};
            char32_t next = 0x100;
            for (unsigned b = 0; b < 256; ++b) {
                const bool itself = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
                of_byte[b] = itself ? b : next++;
            }
            return of_byte;
        }();
        return all;
    }
    /// The bytes that a name spells; the name itself where it holds a character that stands for no byte.
    static std::string bytes_of_name(std::string_view name) {
        static const auto byte_of = [] {
            std::unordered_map<char32_t, char> all;
            for (unsigned b = 0; b < 256; ++b) all[alphabet()[b]] = static_cast<char>(b);
            return all;
        }();
        std::string out;
        for (std::size_t i = 0; i < name.size();) {
            const CodePoint c = next_code_point(name.substr(i));
            const auto found = byte_of.find(c.value);
            if (found == byte_of.end()) return std::string(name);
            out += found->second;
            i += c.size;
        }
        return out;
    }

    void read_vocabulary(const nlohmann::json& vocab, const std::string& where,
                         const std::map<std::string, std::int32_t>& added = {}) {
        if (!vocab.is_object()) fail(where, ": expected an object of tokens and ids");
        // Gaps are allowed as long as the ids are of the order of the entries: tables are that large.
        const std::size_t limit = 2 * (vocab.size() + added.size()) + 1024;
        const auto add = [&](const std::string& name, std::int64_t id, bool again) {
            if (id < 0 || static_cast<std::size_t>(id) >= limit)
                fail(where, ": id of ", in_quotes(name), ": expected 0 to ", limit - 1, ", got ", id);
            const auto at = static_cast<std::size_t>(id);
            if (at >= tokens_.size()) tokens_.resize(at + 1), used_.resize(at + 1);
            const auto [entry, is_new] = names_.emplace(name, static_cast<std::int32_t>(id));
            if (again && !is_new && entry->second == id) return;
            if (!is_new || used_[at]) fail(where, ": the id ", id, " of ", in_quotes(name), " is taken");
            used_[at] = true;
            tokens_[at] = bytes_of_name(name);
        };
        for (const auto& [name, id] : vocab.items()) {
            if (!id.is_number_integer())
                fail(where, ": id of ", in_quotes(name), ": expected an integer, got ", in_quotes(id.dump()));
            if (id.is_number_unsigned() && id.get<std::uint64_t>() > INT32_MAX)
                fail(where, ": id of ", in_quotes(name), ": expected at most ", INT32_MAX);
            add(name, id.get<std::int64_t>(), false);
        }
        for (const auto& [name, id] : added) {
            add(name, id, true);
            tokens_[static_cast<std::size_t>(id)] = name;
        }
    }
    void add_merge(std::string_view line, const std::string& where) {
        const std::size_t space = line.find(' ');
        if (space == line.npos || space == 0 || space + 1 == line.size() || line.find(' ', space + 1) != line.npos)
            fail(where, ": expected two tokens with a space between them, got ", in_quotes(line));
        add_merge(std::string(line.substr(0, space)), std::string(line.substr(space + 1)), where);
    }
    void add_merge(const std::string& left, const std::string& right, const std::string& where) {
        const auto id_of = [&](const std::string& name) {
            const auto found = names_.find(name);
            if (found == names_.end()) fail(where, ": ", in_quotes(name), " is no token of the vocabulary");
            return found->second;
        };
        const std::int32_t a = id_of(left), b = id_of(right), merged = id_of(left + right);
        const auto rank = static_cast<double>(merges_.size());
        if (!merges_.emplace(key(a, b), PairMerge{rank, merged}).second)
            fail(where, ": the merge of ", in_quotes(left), " and ", in_quotes(right), " is there twice");
    }
    void finish() {
        for (unsigned b = 0; b < 256; ++b) {
            std::string name;
            append_utf8(name, alphabet()[b]);
            byte_ids_[b] = id(name);
        }
    }
    void encode_word(std::string_view word, Cache& cache, std::vector<std::int32_t>& ids) const {
        const bool cached = word.size() <= kCachedWord;
        if (cached)
            if (const auto found = cache.words.find(std::string(word)); found != cache.words.end()) {
                const auto from = cache.ids.begin() + static_cast<std::ptrdiff_t>(found->second.first);
                ids.insert(ids.end(), from, from + static_cast<std::ptrdiff_t>(found->second.size));
                return;
            }
        cache.symbols.clear();
        for (const char c : word) {
            const std::int32_t id = byte_ids_[static_cast<unsigned char>(c)];
            if (id < 0)
                fail("ByteLevelBpe: expected a token for byte ", static_cast<int>(static_cast<unsigned char>(c)),
                     ", got a vocabulary without it");
            cache.symbols.push_back(id);
        }
        const auto merged = cache.merger.merge(cache.symbols, [&](std::int32_t left, std::int32_t right) {
            const auto found = merges_.find(key(left, right));
            return found == merges_.end() ? PairMerge{} : found->second;
        });
        ids.insert(ids.end(), merged.begin(), merged.end());
        if (cached) {
            cache.words.emplace(word, typename Cache::Span{cache.ids.size(), merged.size()});
            cache.ids.insert(cache.ids.end(), merged.begin(), merged.end());
        }
    }

    bool add_prefix_space_ = false;
    SpecialTokens specials_;
    std::vector<std::string> tokens_;                     // bytes of each id
    std::vector<bool> used_;                              // an id may be missing
    std::unordered_map<std::string, std::int32_t> names_; // as the files spell them
    std::unordered_map<std::uint64_t, PairMerge> merges_; // pair of ids -> rank and merged id
    std::array<std::int32_t, 256> byte_ids_{};            // -1: no token
};

} // namespace mnemo
