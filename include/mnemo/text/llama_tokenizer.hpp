// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/core/matrix_view.hpp>
#include <mnemo/text/bpe.hpp>
#include <mnemo/text/merge_pairs.hpp>
#include <mnemo/text/utf8.hpp>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace mnemo {

/// The tokenizer of Llama and Llama 2 as llama2.c writes it to tokenizer.bin: SentencePiece's BPE with byte fallback.
/// Id 0 is `<unk>`, 1 `<s>`, 2 `</s>`, 3 to 258 the bytes. Constant after construction.
class LlamaTokenizer {
  public:
    static constexpr std::int32_t bos = 1, eos = 2, first_byte = 3;

    /// The contents of a tokenizer.bin (little-endian): the longest token's length, then score, length and bytes of
    /// each. How many there are is the model's vocabulary, which the file does not say; 0 takes all there are. Throws
    /// Error naming `source` for lengths that the file does not hold and for bytes that are left over.
    static LlamaTokenizer parse(std::string_view contents, index_t vocab_size = 0,
                                std::string_view source = "tokenizer.bin") {
        static_assert(std::endian::native == std::endian::little);
        if (vocab_size < 0) fail(source, ": vocabulary: expected at least 1, got ", vocab_size);
        LlamaTokenizer t;
        std::size_t at = 0;
        const auto read = [&](auto& value, std::string_view what) {
            if (contents.size() - at < sizeof value)
                fail(source, ": expected the ", what, " of token ", t.vocab_size(), " at byte ", at,
                     ", got the end of the file");
            std::memcpy(&value, contents.data() + at, sizeof value);
            at += sizeof value;
        };
        std::int32_t longest = 0;
        if (contents.size() < sizeof longest)
            fail(source, ": expected a tokenizer.bin, got ", contents.size(), " bytes");
        read(longest, "longest length"); // sizes buffers elsewhere; nothing here depends on it
        while (vocab_size > 0 ? t.vocab_size() < vocab_size : at < contents.size()) {
            float score = 0;
            std::int32_t length = 0;
            read(score, "score");
            read(length, "length");
            if (length < 0 || static_cast<std::size_t>(length) > contents.size() - at)
                fail(source, ": length of token ", t.vocab_size(), ": expected 0 to ", contents.size() - at, ", got ",
                     length);
            if (!(score == score)) fail(source, ": score of token ", t.vocab_size(), ": expected a number, got NaN");
            t.scores_.push_back(score);
            t.pieces_.emplace_back(contents.substr(at, static_cast<std::size_t>(length)));
            // Of equal ones the first counts.
            t.ids_.emplace(t.pieces_.back(), static_cast<std::int32_t>(t.pieces_.size() - 1));
            at += static_cast<std::size_t>(length);
        }
        if (at != contents.size())
            fail(source, ": expected ", vocab_size, " tokens in ", at, " bytes, got ", contents.size(),
                 " bytes: it belongs to another model");
        if (t.vocab_size() <= eos)
            fail(source, ": expected `<unk>`, `<s>`, `</s>` and more tokens, got a vocabulary of ", t.vocab_size());
        return t;
    }

    /// A vocabulary from what `learned` has merged: the special tokens and bytes, the ASCII characters, then the merges
    /// that are UTF-8, the earlier the better. It keeps llama2.c's rules of encoding, so its ids are not those of
    /// `learned`.
    static LlamaTokenizer from_merges(const Bpe& learned) {
        LlamaTokenizer t;
        const auto add = [&](std::string piece, float score) {
            if (!t.ids_.emplace(piece, static_cast<std::int32_t>(t.pieces_.size())).second) return;
            t.pieces_.push_back(std::move(piece));
            t.scores_.push_back(score);
        };
        for (const char* const special : {"<unk>", "\n<s>\n", "\n</s>\n"}) add(special, 0);
        const char digits[] = "0123456789ABCDEF";
        for (unsigned b = 0; b < 256; ++b) add({'<', '0', 'x', digits[b / 16], digits[b % 16], '>'}, 0);
        for (char c = 1; c < 127; ++c) add(std::string(1, c), 0);
        for (index_t id = Bpe::first_merge; id < learned.vocab_size(); ++id)
            if (const auto piece = learned.token(id); first_not_utf8(piece) == piece.size())
                add(std::string(piece), -static_cast<float>(id));
        return t;
    }
    /// The contents of its tokenizer.bin.
    std::string serialized() const {
        std::string out;
        const auto write = [&](const auto& value) { out.append(reinterpret_cast<const char*>(&value), sizeof value); };
        std::size_t longest = 0;
        for (const std::string& piece : pieces_) longest = std::max(longest, piece.size());
        write(static_cast<std::int32_t>(longest));
        for (std::size_t i = 0; i < pieces_.size(); ++i) {
            write(scores_[i]);
            write(static_cast<std::int32_t>(pieces_[i].size()));
            out += pieces_[i];
        }
        return out;
    }

    index_t vocab_size() const { return static_cast<index_t>(pieces_.size()); }

    /// The ids of a text, `bos` first unless told otherwise. A text begins with a space that it does not have; what is
    /// no token is spelled in bytes. Throws Error if the vocabulary has no room for the bytes.
    std::vector<std::int32_t> encode(std::string_view text, bool with_bos = true) const {
        std::vector<std::int32_t> symbols;
        if (!text.empty()) append_character(symbols, " ");
        for (std::size_t i = 0; i < text.size();) {
            std::size_t size = 1; // a byte and its continuations, whether or not that is UTF-8
            while (i + size < text.size() && size < 4 && (static_cast<unsigned char>(text[i + size]) & 0xC0u) == 0x80)
                ++size;
            append_character(symbols, text.substr(i, size));
            i += size;
        }
        PairMerger merger;
        std::string joined;
        const auto rule = [&](std::int32_t left, std::int32_t right) -> PairMerge {
            joined.assign(piece(left)).append(piece(right));
            const auto found = ids_.find(joined);
            // run.c starts its search for the best score at -1e10.
            if (found == ids_.end() || !(scores_[static_cast<std::size_t>(found->second)] > -1e10f)) return {};
            return {-static_cast<double>(scores_[static_cast<std::size_t>(found->second)]), found->second};
        };
        const auto merged = merger.merge(symbols, rule);
        std::vector<std::int32_t> ids(merged.begin(), merged.end());
        if (with_bos) ids.insert(ids.begin(), bos);
        return ids;
    }

    /// The vocabulary's spelling of a token. Throws Error for an id out of range.
    std::string_view piece(index_t id) const {
        if (id < 0 || id >= vocab_size()) fail("token id: expected 0 to ", vocab_size() - 1, ", got ", id);
        return pieces_[static_cast<std::size_t>(id)];
    }
    /// The bytes that a token adds to a text, after the token `previous`: the space that `encode` put before the text
    /// is taken away again. May end inside a UTF-8 character.
    std::string decode(std::int32_t previous, std::int32_t token) const {
        std::string_view out = piece(token);
        if (previous == bos && out.starts_with(' ')) out.remove_prefix(1);
        const auto digit = [&](std::size_t i) {
            const char c = out[i];
            return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        };
        if (out.size() == 6 && out.starts_with("<0x") && out[5] == '>' && digit(3) >= 0 && digit(4) >= 0)
            return std::string(1, static_cast<char>(16 * digit(3) + digit(4)));
        return std::string(out);
    }
    /// The text of ids; a `bos` at the beginning is no text.
    std::string decode(std::span<const std::int32_t> ids) const {
        std::string out;
        for (std::size_t i = 0; i < ids.size(); ++i)
            if (i > 0 || ids[i] != bos) out += decode(i > 0 ? ids[i - 1] : -1, ids[i]);
        return out;
    }

  private:
    void append_character(std::vector<std::int32_t>& ids, std::string_view character) const {
        if (const auto found = ids_.find(std::string(character)); found != ids_.end()) {
            ids.push_back(found->second);
            return;
        }
        for (const char c : character) {
            const std::int32_t id = first_byte + static_cast<unsigned char>(c);
            if (id >= vocab_size())
                fail("LlamaTokenizer: expected a token for byte ", static_cast<int>(static_cast<unsigned char>(c)),
                     ", got a vocabulary of ", vocab_size(), " without it");
            ids.push_back(id);
        }
    }
    std::vector<std::string> pieces_;
    std::vector<float> scores_;
    std::unordered_map<std::string, std::int32_t> ids_;
};

} // namespace mnemo
