// SPDX-License-Identifier: MIT
// The first byte chooses the file format; then the file, a line `====`, and a text to encode with it.
#include "fuzz.hpp"

#include <mnemo/text/llama_tokenizer.hpp>
#include <mnemo/text/word_dictionary.hpp>
#include <mnemo/tokenize/byte_level_bpe.hpp>
#include <mnemo/tokenize/word_piece.hpp>

namespace {

constexpr std::string_view kMark = "\n====\n";

// Cuts `rest` at the next mark and returns what was before it.
std::string_view next_part(std::string_view& rest) {
    const std::size_t end = std::min(rest.find(kMark), rest.size());
    const std::string_view part = rest.substr(0, end);
    rest.remove_prefix(std::min(end + kMark.size(), rest.size()));
    return part;
}
void check_lossless(const auto& tokenizer, std::string_view text) {
    const auto ids = tokenizer.encode(text);
    const std::string decoded = tokenizer.decode(ids);
    mnemo::Utf8Stream stream;
    const std::string shown = stream.add(decoded) + stream.finish();
    fuzz::require(mnemo::first_not_utf8(shown) == shown.size());
    for (const std::int32_t id : ids) fuzz::require(id >= 0 && id < tokenizer.vocab_size());
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0) return 0;
    std::string_view rest = fuzz::as_text(data + 1, size - 1);
    const std::string_view file = next_part(rest);
    fuzz::reads_or_refuses([&] {
        switch (data[0]) {
        case 'l':
            return check_lossless(mnemo::LlamaTokenizer::parse(file), rest);
        case 'd': {
            const auto dictionary = mnemo::WordDictionary::parse(file);
            (void)dictionary.decode(dictionary.encode_line(rest));
            return;
        }
        case 'j':
            return check_lossless(mnemo::ByteLevelBpe::parse(file), rest);
        case 'g': {
            const std::string_view merges = next_part(rest);
            return check_lossless(mnemo::ByteLevelBpe::parse(file, merges, {}), rest);
        }
        case 'w':
            return check_lossless(mnemo::WordPiece::parse(file), rest);
        default:
            return check_lossless(mnemo::WordPiece::parse_vocab(file), rest);
        }
    });
    return 0;
}
