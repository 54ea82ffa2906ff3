// SPDX-License-Identifier: MIT
#include "../io/files.hpp"

#include <catch.hpp>
#include <mnemo/tokenize/byte_level_bpe.hpp>
#include <mnemo/tokenize/word_piece.hpp>

#include <random>

using namespace mnemo;

namespace {
const std::string gpt2 = golden("hosts/tokenizer_gpt2/");

std::vector<std::string> words(std::string_view text) {
    std::vector<std::string> out;
    while (!text.empty()) {
        const std::size_t n = ByteLevelBpe::next_word(text);
        out.emplace_back(text.substr(0, n));
        text.remove_prefix(n);
    }
    return out;
}
using Words = std::vector<std::string>;
} // namespace

TEST_CASE("GPT-2's expression cuts text into words") {
    REQUIRE(words("Hello world's  42x") == Words{"Hello", " world", "'s", " ", " 42", "x"});
    REQUIRE(words("a \n b") == Words{"a", " \n", " b"});
    REQUIRE(words("a\n\nb") == Words{"a", "\n", "\n", "b"});
    REQUIRE(words("a   ") == Words{"a", "   "});
    REQUIRE(words("'S don't!'ll") == Words{"'", "S", " don", "'t", "!'", "ll"});
    REQUIRE(words("x\xC2\xA0y") == Words{"x", "\xC2\xA0", "y"});
    REQUIRE(words("\xE2\x80\x8B\x1C") == Words{"\xE2\x80\x8B\x1C"});                 // neither is white space
    REQUIRE(words("\xC3\xA4\xFF\xC2\xB2") == Words{"\xC3\xA4", "\xFF", "\xC2\xB2"}); // a letter, no UTF-8, a number
}

TEST_CASE("every text has a byte-level encoding that gives it back") {
    const auto t = ByteLevelBpe::load(gpt2 + "tokenizer.json");
    REQUIRE(t.vocab_size() == 520);
    std::mt19937 random(7);
    for (int round = 0; round < 300; ++round) {
        std::string text(random() % 60, ' ');
        for (char& c : text) c = static_cast<char>(round % 2 == 0 ? random() : "a b\n'he"[random() % 7]);
        const auto ids = t.encode(text);
        REQUIRE(t.decode(ids) == text);
        Utf8Stream stream;
        std::string shown;
        for (const auto id : ids) shown += stream.add(t.token(id));
        shown += stream.finish();
        REQUIRE(first_not_utf8(shown) == shown.size());
    }
    REQUIRE(t.encode("x<|endoftext|>y")[1] == t.id("<|endoftext|>"));
    REQUIRE_THROWS_AS(t.token(520), Error);
    REQUIRE_THROWS_AS(t.token(-1), Error);
}

TEST_CASE("a word of 100 kB is encoded without quadratic time") {
    const auto t = ByteLevelBpe::load(gpt2 + "vocab.json", gpt2 + "merges.txt");
    std::string word;
    std::mt19937 random(3);
    while (word.size() < 100000) word += "theandingreo"[random() % 12];
    const auto ids = t.encode(word);
    REQUIRE(t.decode(ids) == word);
    const std::string spaces(100000, ' ');
    REQUIRE(t.decode(t.encode(spaces)) == spaces);
    const auto bert = WordPiece::load(golden("hosts/tokenizer_bert/tokenizer.json"));
    REQUIRE(bert.encode(word) == std::vector<std::int32_t>{bert.unk()});
}

TEST_CASE("tokenizer.json is read in both spellings and refused where it means something else") {
    const auto json = nlohmann::json::parse(read_file(gpt2 + "tokenizer.json"));
    auto strings = json;
    for (auto& merge : strings["model"]["merges"])
        merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
    const std::string text = "the hand and there's more 123 \n\n<|endoftext|> end";
    const auto ids = ByteLevelBpe::parse(json.dump()).encode(text);
    REQUIRE(ByteLevelBpe::parse(strings.dump()).encode(text) == ids);
    REQUIRE(ByteLevelBpe::load(gpt2 + "vocab.json", gpt2 + "merges.txt").encode(text) == ids);

    const auto refused = [&](auto&& change, const std::string& word) {
        auto changed = json;
        change(changed);
        const std::string message = error_of([&] { ByteLevelBpe::parse(changed.dump(), "t.json"); });
        INFO(message);
        REQUIRE(message.find("t.json") != std::string::npos);
        REQUIRE(message.find(word) != std::string::npos);
    };
    refused([](auto& j) { j["model"]["type"] = "Unigram"; }, "type");
    refused([](auto& j) { j["model"]["byte_fallback"] = true; }, "byte_fallback");
    refused([](auto& j) { j["model"]["unk_token"] = "<unk>"; }, "unk_token");
    refused([](auto& j) { j["normalizer"] = {{"type", "NFC"}}; }, "normalizer");
    refused([](auto& j) { j["pre_tokenizer"]["type"] = "Split"; }, "pre_tokenizer");
    refused([](auto& j) { j["pre_tokenizer"]["use_regex"] = false; }, "use_regex");
    refused([](auto& j) { j["model"]["merges"][0] = 3; }, "merges[0]");
    refused([](auto& j) { j["model"]["merges"][1] = {"qq", "qz"}; }, "no token");
    refused([](auto& j) { j["model"]["merges"].push_back(j["model"]["merges"][0]); }, "twice");
    refused([](auto& j) { j["model"]["vocab"]["new"] = 2000000000; }, "new");
    refused([](auto& j) { j["model"]["vocab"]["new"] = 7; }, "taken");
    refused([](auto& j) { j["added_tokens"][0]["single_word"] = true; }, "single_word");
    refused([](auto& j) { j["added_tokens"][0]["id"] = -1; }, "id");
}

TEST_CASE("GPT-2 files of the bad set behave as the manifest says") {
    int seen = 0;
    for (const auto& entry : bad_files("tokenizer_gpt2")) {
        const std::string file = entry.at("file");
        INFO(file);
        ++seen;
        const std::string message = error_of([&] {
            if (file.ends_with(".txt")) {
                ByteLevelBpe::parse(R"({"a": 0, "b": 1, "ab": 2})", read_file(bad_file(file)), {}, "vocab.json", file);
                return;
            }
            const auto t = ByteLevelBpe::parse(read_file(bad_file(file)), "", {}, file);
            REQUIRE(file == "vocab_gap.json");
            REQUIRE(t.token(0) == "a");
            t.token(1); // is missing
        });
        INFO(message);
        REQUIRE((message.find(file) != std::string::npos || message.find("got 1") != std::string::npos));
    }
    REQUIRE(seen == 6);
    const auto partial = ByteLevelBpe::parse(R"({"a": 0})", "", {});
    REQUIRE(error_of([&] { partial.encode("ab"); }).find("byte 98") != std::string::npos);
}

TEST_CASE("BERT's normalisation") {
    const std::string vocab = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ni\n##stanbul\ncafe\n.\n";
    const auto uncased = WordPiece::parse_vocab(vocab);
    REQUIRE(uncased.normalised("\xC4\xB0stanbul CAF\xC3\x89") == U"istanbul cafe");
    REQUIRE(uncased.normalised("a\x01\xE2\x80\x8B\t\xE4\xB8\xAD\x1C") == U"a  \u4E2D ");
    REQUIRE(uncased.encode("\xC4\xB0stanbul.[MASK]caf\xC3\xA9") == std::vector<std::int32_t>{5, 6, 8, 4, 7});
    REQUIRE(uncased.encode("istanbulx") == std::vector<std::int32_t>{1});
    const auto [ids, segments] = uncased.encode_pair("cafe", "i");
    REQUIRE(ids == std::vector<std::int32_t>{2, 7, 3, 5, 3});
    REQUIRE(segments == std::vector<std::int32_t>{0, 0, 0, 1, 1});
    const auto accents = WordPiece::parse_vocab(vocab, {.strip_accents = false});
    REQUIRE(accents.normalised("\xC4\xB0") == U"i\u0307");
    REQUIRE(accents.encode("caf\xC3\xA9") == std::vector<std::int32_t>{1});
    // Marks are put in the order of their classes before anything is dropped.
    REQUIRE(decomposed(U"\u1EAD") == U"a\u0323\u0302");
    REQUIRE(decomposed(U"a\u0302\u0323") == U"a\u0323\u0302");
    REQUIRE(decomposed(U"\uAC01") == U"\u1100\u1161\u11A8");
    REQUIRE_THROWS_AS(WordPiece::parse_vocab("[UNK]\n[CLS]\n"), Error);
    REQUIRE_THROWS_AS(WordPiece::parse_vocab("[UNK]\n[CLS]\n[SEP]\n[SEP]\n"), Error);
    REQUIRE_THROWS_AS(uncased.token(9), Error);
}
