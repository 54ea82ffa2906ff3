// SPDX-License-Identifier: MIT
#include "../io/files.hpp"

#include <catch.hpp>
#include <mnemo/io/safetensors.hpp>
#include <mnemo/io/tokenizer_files.hpp>
#include <mnemo/sentence_piece/sentence_piece.hpp>

using namespace mnemo;

TEST_CASE("SentencePiece gives its reference's ids, and those of llama2.c's file of the same model") {
    const auto fixture = SafeTensors::open(golden("hosts/tokenizer_llama2c.safetensors"));
    const auto tokenizer = SentencePiece::load(golden("hosts/tokenizer_llama2c.model"));
    const auto llama = load_llama_tokenizer(golden("hosts/tokenizer_llama2c.bin"));
    REQUIRE(tokenizer.vocab_size() == llama.vocab_size());
    REQUIRE(tokenizer.bos() == LlamaTokenizer::bos);
    const auto bytes = fixture.values<std::uint8_t>("in.text");
    const auto begin = fixture.values<std::int64_t>("in.text_offsets"),
               ids_begin = fixture.values<std::int64_t>("out.sentencepiece_ids_offsets");
    const auto ids = fixture.values<std::int32_t>("out.sentencepiece_ids");
    REQUIRE(begin.size() > 10);
    for (std::size_t i = 0; i + 1 < begin.size(); ++i) {
        const std::string text(bytes.begin() + begin[i], bytes.begin() + begin[i + 1]);
        const std::vector<std::int32_t> expected(ids.begin() + ids_begin[i], ids.begin() + ids_begin[i + 1]);
        INFO(text);
        CHECK(tokenizer.encode(text) == expected);
        CHECK(tokenizer.encode(text) == llama.encode(text));
    }
    CHECK(tokenizer.decode(tokenizer.encode("hello, hello")) == "hello, hello");
}

TEST_CASE("SentencePiece refuses what is no model and ids that it has not") {
    const std::string path = golden("hosts/tokenizer_llama2c.model"), model = read_file(path);
    CHECK(error_of([&] { (void)SentencePiece::parse("", "x.model"); }).find("x.model: not a SentencePiece model") !=
          std::string::npos);
    CHECK(error_of([&] { (void)SentencePiece::parse("no model", "x.model"); }).find("x.model") != std::string::npos);
    CHECK(error_of([&] { (void)SentencePiece::parse(std::string_view(model).substr(0, 1000)); }).find("model") !=
          std::string::npos);
    const auto tokenizer = SentencePiece::parse(model);
    CHECK_THROWS_AS(tokenizer.piece(-1), Error);
    CHECK_THROWS_AS(tokenizer.piece(static_cast<std::int32_t>(tokenizer.vocab_size())), Error);
    CHECK_THROWS_AS(tokenizer.decode(std::vector<std::int32_t>{1 << 20}), Error);
    CHECK(tokenizer.piece(1) == "<s>");
}
