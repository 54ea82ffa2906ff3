// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <error_of.hpp>
#include <mnemo/text/llama_tokenizer.hpp>
#include <mnemo/text/special_tokens.hpp>
#include <mnemo/text/word_dictionary.hpp>

#include <cstring>
#include <random>

using namespace mnemo;

namespace {
std::string llama_file(const std::vector<std::pair<std::string, float>>& tokens) {
    std::string out(4, '\0');
    for (const auto& [piece, score] : tokens) {
        char head[8];
        const auto length = static_cast<std::int32_t>(piece.size());
        std::memcpy(head, &score, 4), std::memcpy(head + 4, &length, 4);
        out.append(head, 8).append(piece);
    }
    return out;
}
std::vector<std::pair<std::string, float>> byte_vocabulary() {
    std::vector<std::pair<std::string, float>> tokens{{"<unk>", 0.0f}, {"\n<s>\n", 0.0f}, {"\n</s>\n", 0.0f}};
    char name[8];
    for (unsigned b = 0; b < 256; ++b) {
        std::snprintf(name, sizeof name, "<0x%02X>", b);
        tokens.emplace_back(name, 0.0f);
    }
    return tokens;
}
} // namespace

TEST_CASE("code points are read as Unicode recommends") {
    const auto read = [](std::string_view s) { return next_code_point(s); };
    REQUIRE(read("a").value == U'a');
    REQUIRE(read("\xC3\xA4").value == 0xE4);
    REQUIRE(read("\xF0\x9F\x98\x80z").value == 0x1F600);
    REQUIRE(read("\xF4\x8F\xBF\xBF").value == 0x10FFFF);
    for (const std::string_view bad : {"\x80", "\xC0\x80", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xFF",
                                       "\xF5\x80\x80\x80", "\xC1\xBF", "\xF0\x8F\xBF\xBF"}) {
        REQUIRE_FALSE(read(bad).valid);
        REQUIRE_FALSE(read(bad).cut);
        REQUIRE(read(bad).size == 1);
    }
    REQUIRE(read("\xF0\x9F\x98").cut);
    REQUIRE(read("\xF0\x9F\x98").size == 3);
    REQUIRE_FALSE(read("\xE2\x82z").cut);
    REQUIRE(read("\xE2\x82z").size == 2);
    REQUIRE(first_not_utf8("ok\xC3") == 2);
    for (const char32_t c : {U'\0', U'a', U'\x7F', U'\x80', U'\u07FF', U'\u0800', U'\uFFFD', U'\U00010000'}) {
        std::string s;
        append_utf8(s, c);
        REQUIRE(read(s).value == c);
        REQUIRE(read(s).size == s.size());
    }
}

TEST_CASE("a stream of bytes is shown as soon as its characters are complete") {
    const std::string all = "a\xC3\xA4\xE2\x82\xAC\xF0\x9F\x98\x80z";
    for (std::size_t piece = 1; piece < 6; ++piece) {
        Utf8Stream stream;
        std::string out;
        for (std::size_t i = 0; i < all.size(); i += piece) {
            out += stream.add(std::string_view(all).substr(i, piece));
            REQUIRE(first_not_utf8(out) == out.size());
        }
        REQUIRE(out + stream.finish() == all);
    }
    Utf8Stream stream;
    REQUIRE(stream.add("\xE2\x82") == "");
    REQUIRE(stream.add("x") == "\xEF\xBF\xBDx"); // it cannot be completed any more
    REQUIRE(stream.add("\xF0") == "");
    REQUIRE(stream.finish() == "\xEF\xBF\xBD");
    REQUIRE(stream.finish() == "");
}

TEST_CASE("special tokens are cut out, the longest first, with the space that is theirs") {
    SpecialTokens specials;
    specials.add("<a>", {1});
    specials.add("<a><b>", {2});
    specials.add("<mask>", {3, true, true});
    const auto cut = [&](std::string_view text) {
        std::string out;
        specials.split(
            text, [&](std::string_view piece) { out += "[" + std::string(piece) + "]"; },
            [&](std::int32_t id) { out += std::to_string(id); });
        return out;
    };
    REQUIRE(cut("") == "");
    REQUIRE(cut("x<a>y") == "[x]1[y]");
    REQUIRE(cut("<a><b><a>") == "21");
    REQUIRE(cut("<a <a>") == "[<a ]1");
    REQUIRE(cut("x \xC2\xA0<mask>\n y") == "[x]3[y]");
    REQUIRE(cut("<mask> <mask>") == "33");
    REQUIRE_THROWS_AS(specials.add("<a>", {4}), Error);
    REQUIRE_THROWS_AS(specials.add("", {4}), Error);
}

TEST_CASE("llama's tokenizer merges by score and spells what it does not know") {
    auto tokens = byte_vocabulary(); // 259 ids
    for (const auto& [piece, score] : std::initializer_list<std::pair<std::string, float>>{
             {" ", -1.0f}, {"a", -1.0f}, {"b", -1.0f}, {"ab", -3.0f}, {"bb", -2.0f}, {" a", -5.0f}, {"abb", -1e11f}})
        tokens.emplace_back(piece, score);
    const auto t = LlamaTokenizer::parse(llama_file(tokens), 266);
    REQUIRE(t.encode("") == std::vector<std::int32_t>{1});
    REQUIRE(t.encode("ab") == std::vector<std::int32_t>{1, 259, 262});
    REQUIRE(t.encode("abb", false) == std::vector<std::int32_t>{264, 263}); // bb first; abb scores too little to be one
    REQUIRE(t.encode("\xC3\xA4", false) == std::vector<std::int32_t>{259, 3 + 0xC3, 3 + 0xA4});
    for (const std::string& text : std::vector<std::string>{"ab ba", "\xC3\xA4\xC3", "", " a", std::string("\0b", 2)})
        REQUIRE(t.decode(t.encode(text)) == text);
    REQUIRE_THROWS_AS(t.piece(266), Error);
    REQUIRE_THROWS_AS(t.decode(std::vector<std::int32_t>{-1}), Error);

    REQUIRE(error_of([&] { LlamaTokenizer::parse(llama_file(tokens), 267, "f"); }).find("token 266") !=
            std::string::npos);
    REQUIRE(error_of([&] { LlamaTokenizer::parse(llama_file(tokens), 265, "f"); }).find("another model") !=
            std::string::npos);
    // Without tokens for the bytes nothing is lost silently.
    const auto small = LlamaTokenizer::parse(llama_file({{"<unk>", 0.0f}, {"a", 0.0f}, {" ", 0.0f}}));
    REQUIRE(small.encode("a", false) == std::vector<std::int32_t>{2, 1});
    REQUIRE(error_of([&] { small.encode("c"); }).find("byte 99") != std::string::npos);
}

TEST_CASE("a long word of llama's tokenizer takes no quadratic time") {
    auto tokens = byte_vocabulary();
    std::string piece = "a";
    for (int i = 0; i < 10; ++i, piece += piece) tokens.emplace_back(piece, static_cast<float>(i));
    const auto t = LlamaTokenizer::parse(llama_file(tokens));
    const std::string word(100000, 'a');
    const auto ids = t.encode(word);
    REQUIRE(ids.size() < 300);
    REQUIRE(t.decode(ids) == " " + word); // this vocabulary has no space, so it is a byte that stays
}

TEST_CASE("fairseq's dictionary cuts lines as Python does") {
    const auto d = WordDictionary::parse("the 5\na b 3\ncaf\xC3\xA9 1\r\n");
    REQUIRE(d.size() == 7);
    REQUIRE(d.id("a b") == 5);
    REQUIRE(d.encode_line(" the\t\xC2\xA0"
                          "caf\xC3\xA9\x1C<pad> \xE2\x80\x8Bthe") ==
            std::vector<std::int32_t>{4, 6, 1, 3, 2}); // a zero-width space is no space
    REQUIRE(d.encode_line("") == std::vector<std::int32_t>{2});
    REQUIRE(d.decode(std::vector<std::int32_t>{4, 3, 2}) == "the <unk>");
    REQUIRE_THROWS_AS(d.word(7), Error);
    for (const std::string bad :
         {"the\n", "the x\n", "the -1\n", " 3\n", "a 1\na 2\n", "<pad> 3\n", "\xFF 3\n", "\n"}) {
        const std::string message = error_of([&] { WordDictionary::parse(bad, "dict"); });
        INFO(bad);
        REQUIRE(message.find("dict, line ") != std::string::npos);
    }
}

TEST_CASE("a llama2.c vocabulary of learned merges encodes every text and survives its file") {
    const std::string text = "the cat sat on the mat; the caf\u00e9 of the cats. the the the\n";
    const Bpe learned = Bpe::learn(text, 275);
    const auto made = LlamaTokenizer::from_merges(learned);
    const auto read = LlamaTokenizer::parse(made.serialized(), made.vocab_size());
    REQUIRE(made.vocab_size() > 3 + 256 + 126);
    REQUIRE(read.vocab_size() == made.vocab_size());
    REQUIRE(read.encode("the").size() == 2); // `bos` and one word
    for (const std::string& s : {text, std::string("something else: \x01\u4e2d\xff?"), std::string()}) {
        const auto ids = made.encode(s);
        REQUIRE(ids == read.encode(s));
        REQUIRE(read.decode(ids) == s);
    }
}
