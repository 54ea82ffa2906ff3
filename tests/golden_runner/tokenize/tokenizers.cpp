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

BAD_FILES("tokenizer_gpt2") {
    const std::string contents = mnemo::read_file(file.string()), name = file.string();
    if (file.extension() == ".txt") // the manifest's vocabulary for merges
        return {{"size", mnemo::ByteLevelBpe::parse(R"({"a": 0, "b": 1, "ab": 2})", contents, {}, "vocab.json", name)
                             .vocab_size()}};
    const auto tokenizer = mnemo::ByteLevelBpe::parse(contents, "", {}, name);
    // An id that is missing is an Error when it is asked for.
    nlohmann::json tokens;
    for (mnemo::index_t id = 0; id < tokenizer.vocab_size(); ++id) try {
            tokens.push_back(tokenizer.token(id));
        } catch (const mnemo::Error&) {
            tokens.push_back(nullptr);
        }
    return {{"tokens", tokens}};
}
