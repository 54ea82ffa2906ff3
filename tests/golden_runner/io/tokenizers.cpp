// SPDX-License-Identifier: MIT
#include "texts.hpp"

#include <mnemo/io/tokenizer_files.hpp>

GOLDEN("hosts.tokenizer_llama2c") {
    const auto tokenizer =
        mnemo::load_llama_tokenizer(fixture.companion("model").string(), fixture.integer("vocab_size"));
    golden::check_tokenizer(
        fixture, check, [&](const std::string& text) { return tokenizer.encode(text); },
        [&](const std::vector<std::int32_t>& ids) { return tokenizer.decode(ids); });
    // SentencePiece itself, on the model that the .bin was made from, says the same.
    const auto texts = golden::texts(fixture, "in.text");
    const auto reference = golden::lists<std::int32_t>(fixture, "out.sentencepiece_ids");
    check.that("out.sentencepiece_ids_offsets", reference.size() == texts.size(), "one list of ids a text");
    for (std::size_t i = 0; i < texts.size(); ++i)
        check.equal("out.sentencepiece_ids", tokenizer.encode(texts[i]), reference[i]);
}

GOLDEN("hosts.tokenizer_fairseq") {
    const auto dictionary = mnemo::load_word_dictionary(fixture.companion("model").string());
    mnemo::expect_equal("vocab_size", dictionary.size(), fixture.integer("vocab_size"));
    golden::check_tokenizer(
        fixture, check, [&](const std::string& text) { return dictionary.encode_line(text); },
        [&](const std::vector<std::int32_t>& ids) { return dictionary.decode(ids); });
}
