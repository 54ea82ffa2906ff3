// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/json.hpp>
#include <mnemo/text/special_tokens.hpp>
#include <mnemo/tokenize/special_tokens_json.hpp>
#include <mnemo/tokenize/unicode.hpp>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace mnemo {

/// How a vocab.txt is meant (tokenizer_config.json: do_lower_case); tokenizer.json says it itself.
struct WordPieceOptions {
    bool lower_case = true;
    std::optional<bool> strip_accents = std::nullopt; // not said: as lower_case
    bool clean_text = true;                           // drop controls, make all white space a space
    bool split_ideographs = true;                     // each CJK ideograph is a word
    std::vector<std::string> special_tokens = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"};
};

/// BERT's tokenizer: text is cleaned and cut into words, words are cut greedily into the longest pieces of the
/// vocabulary, those after the first written with `##`. Not lossless. Constant after construction.
class WordPiece {
  public:
    using Options = WordPieceOptions;

    /// The contents of a vocab.txt: one token a line, line number = id. Throws Error naming `source` and the line for a
    /// token that is there twice, and if `[UNK]`, `[CLS]` or `[SEP]` is missing.
    static WordPiece parse_vocab(std::string_view contents, const Options& options = {},
                                 const std::string& source = "vocab.txt") {
        WordPiece t(options);
        while (!contents.empty()) {
            const std::size_t end = std::min(contents.find('\n'), contents.size());
            std::string_view line = contents.substr(0, end);
            contents.remove_prefix(std::min(end + 1, contents.size()));
            if (line.ends_with('\r')) line.remove_suffix(1);
            t.add(std::string(line), t.vocab_size(), source);
        }
        for (const std::string& special : options.special_tokens)
            if (const auto found = t.ids_.find(special); found != t.ids_.end())
                t.specials_.add(special, {found->second});
        t.finish(source);
        return t;
    }
    static WordPiece load_vocab(const std::string& vocab_txt, const Options& options = {}) {
        return parse_vocab(read_file(vocab_txt), options, vocab_txt);
    }

    /// The contents of a tokenizer.json with WordPiece, BertNormalizer and BertPreTokenizer; anything else is an Error
    /// that names it.
    static WordPiece parse(std::string_view tokenizer_json, const std::string& source = "tokenizer.json") {
        const JsonObject all = JsonObject::parse(tokenizer_json, source), model = all.object("model"),
                         normalizer = all.object("normalizer"), splitter = all.object("pre_tokenizer");
        if (model.has("type") && model.string("type") != "WordPiece") model.wrong("type", "\"WordPiece\"");
        if (normalizer.string("type") != "BertNormalizer") normalizer.wrong("type", "\"BertNormalizer\"");
        if (splitter.string("type") != "BertPreTokenizer") splitter.wrong("type", "\"BertPreTokenizer\"");
        const auto flag = [&](const char* field) { return normalizer.boolean(field); };
        Options options{.lower_case = flag("lowercase"),
                        .clean_text = flag("clean_text"),
                        .split_ideographs = flag("handle_chinese_chars")};
        if (normalizer.has("strip_accents") && !normalizer.raw().at("strip_accents").is_null())
            options.strip_accents = flag("strip_accents");
        WordPiece t(options);
        if (model.has("unk_token")) t.unk_name_ = model.string("unk_token");
        if (model.has("continuing_subword_prefix")) t.prefix_ = model.string("continuing_subword_prefix");
        if (model.has("max_input_chars_per_word"))
            t.longest_word_ = static_cast<std::size_t>(model.integer("max_input_chars_per_word", 1, 1000));
        const AddedTokens added(all, source);
        const JsonObject vocab = model.object("vocab");
        const auto limit = static_cast<index_t>(2 * (vocab.raw().size() + added.ids().size()) + 1024);
        for (const auto& [name, id] : vocab.raw().items()) t.add(name, vocab.integer(name, 0, limit), source);
        for (const auto& [name, id] : added.ids()) {
            if (id > limit)
                fail(source, ": added token ", in_quotes(name), ": expected an id up to ", limit, ", got ", id);
            if (t.id(name) != id) t.add(name, id, source);
        }
        t.specials_ = added.tokens();
        t.finish(source);
        return t;
    }
    static WordPiece load(const std::string& tokenizer_json) {
        return parse(read_file(tokenizer_json), tokenizer_json);
    }

    index_t vocab_size() const { return static_cast<index_t>(tokens_.size()); }
    /// The id of a token by its name; -1 if there is none.
    std::int32_t id(const std::string& name) const {
        const auto found = ids_.find(name);
        return found == ids_.end() ? -1 : found->second;
    }
    std::int32_t cls() const { return cls_; }
    std::int32_t sep() const { return sep_; }
    std::int32_t unk() const { return unk_; }

    /// The ids of a text alone.
    std::vector<std::int32_t> encode(std::string_view text) const {
        std::vector<std::int32_t> ids;
        encode(text, ids);
        return ids;
    }
    /// `[CLS] a [SEP]`.
    std::vector<std::int32_t> encode_single(std::string_view a) const {
        std::vector<std::int32_t> ids{cls_};
        encode(a, ids);
        ids.push_back(sep_);
        return ids;
    }
    /// `[CLS] a [SEP] b [SEP]` with the segment of each token, 0 or 1.
    std::pair<std::vector<std::int32_t>, std::vector<std::int32_t>> encode_pair(std::string_view a,
                                                                                std::string_view b) const {
        std::vector<std::int32_t> ids = encode_single(a), segments(ids.size(), 0);
        encode(b, ids);
        ids.push_back(sep_);
        segments.resize(ids.size(), 1);
        return {std::move(ids), std::move(segments)};
    }

    /// Throws Error for an id that is none.
    const std::string& token(index_t id) const {
        if (id < 0 || id >= vocab_size() || !used_[static_cast<std::size_t>(id)])
            fail("token id: expected one of the vocabulary of ", vocab_size(), ", got ", id);
        return tokens_[static_cast<std::size_t>(id)];
    }
    /// Words with spaces between them; with `cleanup` some English spaces are taken away again (before `.`, `?`, `!`,
    /// `,`, contractions), as the tokenizers library does. Special tokens are written like words.
    std::string decode(std::span<const std::int32_t> ids, bool cleanup = true) const {
        std::string out;
        for (std::size_t i = 0; i < ids.size(); ++i) {
            std::string word = token(ids[i]);
            if (i > 0) {
                if (word.starts_with(prefix_))
                    word.erase(0, prefix_.size());
                else
                    word.insert(0, " ");
            }
            if (cleanup)
                for (const auto& [from, to] : kCleanup)
                    for (std::size_t at = 0; (at = word.find(from, at)) != word.npos; at += to.size())
                        word.replace(at, from.size(), to);
            out += word;
        }
        return out;
    }

    /// A text as the words are cut from: what BERT calls normalised.
    std::u32string normalised(std::string_view text) const {
        std::u32string out;
        for (std::size_t i = 0; i < text.size();) {
            const CodePoint point = next_code_point(text.substr(i));
            char32_t c = point.value;
            i += point.size;
            if (options_.clean_text) {
                const bool space = is_white_space(c);
                const bool kept_control = c == '\t' || c == '\n' || c == '\r';
                if (c == 0 || c == replacement_character || (!kept_control && is_other(c))) continue;
                if (space) c = ' ';
            }
            if (options_.split_ideographs && is_ideograph(c))
                out += {U' ', c, U' '};
            else
                out += c;
        }
        if (options_.strip_accents.value_or(options_.lower_case)) {
            out = decomposed(out);
            std::erase_if(out, is_nonspacing_mark);
        }
        if (options_.lower_case) {
            std::u32string lower;
            for (const char32_t c : out) append_lower(lower, c);
            out = std::move(lower);
        }
        return out;
    }

  private:
    static constexpr std::pair<std::string_view, std::string_view> kCleanup[] = {
        {" .", "."},   {" ?", "?"},           {" !", "!"},   {" ,", ","},     {" ' ", "'"},   {" n't", "n't"},
        {" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};

    explicit WordPiece(Options options) : options_(std::move(options)) {}

    // The ranges of the tokenizers library: its seventh begins 0x100 later than Unicode's block.
    static bool is_ideograph(char32_t c) {
        return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x20000 && c <= 0x2A6DF) ||
               (c >= 0x2A700 && c <= 0x2B73F) || (c >= 0x2B740 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) ||
               (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
    }
    static bool splits(char32_t c) {
        return (c >= 33 && c <= 47) || (c >= 58 && c <= 64) || (c >= 91 && c <= 96) || (c >= 123 && c <= 126) ||
               is_punctuation(c);
    }
    void add(const std::string& name, index_t id, const std::string& source) {
        if (first_not_utf8(name) != name.size()) fail(source, ": token ", id, ": expected UTF-8");
        const auto at = static_cast<std::size_t>(id);
        if (at >= tokens_.size()) tokens_.resize(at + 1), used_.resize(at + 1);
        if (used_[at] || !ids_.emplace(name, static_cast<std::int32_t>(id)).second)
            fail(source, ": token ", in_quotes(name), " or its id ", id, " is there twice");
        tokens_[at] = name;
        used_[at] = true;
    }
    void finish(const std::string& source) {
        const auto needed = [&](const std::string& name) {
            const std::int32_t found = id(name);
            if (found < 0) fail(source, ": expected the token ", in_quotes(name), " in the vocabulary, got none");
            return found;
        };
        unk_ = needed(unk_name_), cls_ = needed("[CLS]"), sep_ = needed("[SEP]");
    }

    void encode(std::string_view text, std::vector<std::int32_t>& ids) const {
        specials_.split(
            text,
            [&](std::string_view piece) {
                std::u32string word;
                const auto end_of_word = [&] {
                    if (!word.empty()) encode_word(word, ids);
                    word.clear();
                };
                for (const char32_t c : normalised(piece)) {
                    if (is_white_space(c)) {
                        end_of_word();
                    } else if (splits(c)) {
                        end_of_word();
                        word = c;
                        end_of_word();
                    } else {
                        word += c;
                    }
                }
                end_of_word();
            },
            [&](std::int32_t id) { ids.push_back(id); });
    }
    void encode_word(const std::u32string& word, std::vector<std::int32_t>& ids) const {
        const std::size_t before = ids.size();
        if (word.size() > longest_word_) {
            ids.push_back(unk_);
            return;
        }
        std::string piece;
        std::vector<std::size_t> ends; // of piece, in bytes, after each character
        for (std::size_t first = 0; first < word.size();) {
            piece = first > 0 ? prefix_ : "";
            ends.clear();
            for (std::size_t i = first; i < word.size(); ++i) append_utf8(piece, word[i]), ends.push_back(piece.size());
            std::size_t length = ends.size();
            auto found = ids_.end();
            for (; length > 0; --length) {
                piece.resize(ends[length - 1]);
                if (found = ids_.find(piece); found != ids_.end()) break;
            }
            if (length == 0) { // one piece is missing: the whole word is
                ids.resize(before);
                ids.push_back(unk_);
                return;
            }
            ids.push_back(found->second);
            first += length;
        }
    }

    Options options_;
    std::string unk_name_ = "[UNK]", prefix_ = "##";
    std::size_t longest_word_ = 100; // characters
    SpecialTokens specials_;
    std::vector<std::string> tokens_;
    std::vector<bool> used_;
    std::unordered_map<std::string, std::int32_t> ids_;
    std::int32_t unk_ = 0, cls_ = 0, sep_ = 0;
};

} // namespace mnemo
