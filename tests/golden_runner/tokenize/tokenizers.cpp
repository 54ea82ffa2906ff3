// SPDX-License-Identifier: MIT
#include "texts.hpp"

#include <mnemo/tokenize/byte_level_bpe.hpp>
#include <mnemo/tokenize/word_piece.hpp>

GOLDEN("hosts.tokenizer_gpt2") {
    const auto folder = fixture.file().parent_path() / fixture.text("model");
    const bool prefix = fixture.file().stem().string().ends_with("_prefix");
    const auto both = {
        mnemo::ByteLevelBpe::load((folder / (prefix ? "tokenizer_prefix_space.json" : "tokenizer.json")).string()),
        mnemo::ByteLevelBpe::load((folder / "vocab.json").string(), (folder / "merges.txt").string(),
                                  {.add_prefix_space = prefix})};
    for (const mnemo::ByteLevelBpe& tokenizer : both)
        golden::check_tokenizer(
            fixture, check, [&](const std::string& text) { return tokenizer.encode(text); },
            [&](const std::vector<std::int32_t>& ids) { return tokenizer.decode(ids); });
    check.passed_over("out.spans", "advisory: which bytes of a text a token covers is not kept");
}

GOLDEN("hosts.tokenizer_bert") {
    const auto folder = fixture.file().parent_path() / fixture.text("model");
    const bool cased = fixture.text("model").ends_with("_cased");
    const auto both = {mnemo::WordPiece::load((folder / "tokenizer.json").string()),
                       mnemo::WordPiece::load_vocab((folder / "vocab.txt").string(), {.lower_case = !cased})};
    for (const mnemo::WordPiece& tokenizer : both)
        golden::check_tokenizer(
            fixture, check, [&](const std::string& text) { return tokenizer.encode_single(text); },
            [&](const std::vector<std::int32_t>& ids) { return tokenizer.decode(ids); });
    check.passed_over("out.spans", "advisory: which bytes of a text a token covers is not kept");
}
