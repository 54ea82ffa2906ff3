// SPDX-License-Identifier: MIT
#include <mnemo/text/bpe.hpp>

#include <catch.hpp>
#include <error_of.hpp>

#include <map>
#include <random>

namespace {

using mnemo::Bpe;

const std::string kCorpus = [] {
    std::string s;
    for (int i = 0; i < 40; ++i)
        s += "template <class Scalar, int Rows>\nclass Matrix {\n    Scalar data_[" + std::to_string(i % 7) +
             "];\n    // the rows of the matrix\n};\n";
    return s;
}();

std::vector<std::string> words_of(std::string_view text) {
    std::vector<std::string> words;
    while (!text.empty()) {
        const std::size_t n = mnemo::next_word(text);
        REQUIRE((n > 0 && n <= std::min(text.size(), mnemo::max_word_bytes)));
        words.emplace_back(text.substr(0, n));
        text.remove_prefix(n);
    }
    return words;
}

std::string random_bytes(std::size_t n, unsigned seed) {
    std::mt19937 random(seed);
    std::string s(n, '\0');
    for (char& c : s) c = random() % 2 ? " \n\t ab_1+"[random() % 9] : static_cast<char>(random());
    return s;
}

// The definition, recounted from scratch for every merge.
std::vector<std::string> learn_slowly(std::string_view text, std::size_t merges) {
    std::vector<std::vector<int>> words;
    for (const auto& w : words_of(text)) {
        words.emplace_back();
        for (const char c : w) words.back().push_back(4 + static_cast<unsigned char>(c));
    }
    std::vector<std::string> tokens(260), learned;
    for (int b = 0; b < 256; ++b) tokens[static_cast<std::size_t>(4 + b)] = std::string(1, static_cast<char>(b));
    while (learned.size() < merges) {
        std::map<std::pair<int, int>, int> counts;
        for (const auto& w : words)
            for (std::size_t i = 0; i + 1 < w.size(); ++i) ++counts[{w[i], w[i + 1]}];
        std::pair<std::pair<int, int>, int> best{{}, 1};
        for (const auto& c : counts)
            if (c.second > best.second) best = c;
        if (best.second < 2) break;
        const int merged = static_cast<int>(tokens.size());
        tokens.push_back(tokens[static_cast<std::size_t>(best.first.first)] +
                         tokens[static_cast<std::size_t>(best.first.second)]);
        learned.push_back(tokens.back());
        for (auto& w : words)
            for (std::size_t i = 0; i + 1 < w.size(); ++i)
                if (w[i] == best.first.first && w[i + 1] == best.first.second) {
                    w[i] = merged;
                    w.erase(w.begin() + static_cast<std::ptrdiff_t>(i) + 1);
                }
    }
    return learned;
}

} // namespace

TEST_CASE("words of code and prose") {
    using Expected = std::vector<std::string>;
    CHECK(words_of("int x_1 = f(a);\n    return;") ==
          Expected{"int", " x_", "1", " =", " f", "(", "a", ");", "\n    ", "return", ";"});
    CHECK(words_of("a   b\t\tc  ") == Expected{"a", "  ", " b", "\t\t", "c", "  "});
    CHECK(words_of("\r\n\n  \n") == Expected{"\r\n\n  ", "\n"});
    CHECK(words_of("na\xc3\xafve 42 ") == Expected{"na\xc3\xafve", " 42", " "});
    CHECK(words_of(std::string(300, 'x')).size() == 3);
    for (unsigned seed = 0; seed < 20; ++seed) {
        const std::string s = random_bytes(500, seed);
        std::string all;
        for (const auto& w : words_of(s)) all += w;
        CHECK(all == s);
    }
}

TEST_CASE("merges are those of the definition") {
    for (const std::string& text : {kCorpus, random_bytes(4000, 1), std::string(500, 'a')}) {
        const Bpe bpe = Bpe::learn(text, 330);
        const auto expected = learn_slowly(text, 70);
        REQUIRE(bpe.vocab_size() == static_cast<mnemo::index_t>(260 + expected.size()));
        for (std::size_t i = 0; i < expected.size(); ++i)
            CHECK(bpe.token(260 + static_cast<mnemo::index_t>(i)) == expected[i]);
    }
    CHECK(error_of([] { Bpe::learn("abc", 100); }) == "mnemo: bpe vocabulary: expected 260 to 1000000 ids, got 100");
    CHECK(Bpe::learn("", 400).vocab_size() == 260);
}

TEST_CASE("an encoding decodes to the same bytes") {
    const Bpe bpe = Bpe::learn(kCorpus, 300);
    const auto ids = bpe.encode(kCorpus);
    CHECK(bpe.decode(ids) == kCorpus);
    CHECK(ids.size() * 2 < kCorpus.size());
    for (const std::int32_t id : ids) REQUIRE((id >= Bpe::first_byte && id < bpe.vocab_size()));
    for (unsigned seed = 0; seed < 20; ++seed) {
        const std::string s = random_bytes(1000, seed);
        CHECK(bpe.decode(bpe.encode(s)) == s);
    }
    CHECK(bpe.encode("").empty());
    CHECK(bpe.decode(std::vector<std::int32_t>{Bpe::bos, 4 + 'a', Bpe::pad, Bpe::eos}) == "a");
    std::vector<std::int32_t> appended{Bpe::eos};
    bpe.encode("class Matrix", appended);
    CHECK((appended[0] == Bpe::eos && appended.size() > 1));
    CHECK(error_of([&] { bpe.token(bpe.vocab_size()); }) == "mnemo: token id: expected 0 to 299, got 300");
    CHECK(error_of([&] { bpe.decode(std::vector<std::int32_t>{-1}); }) == "mnemo: token id: expected 0 to 299, got -1");
}

TEST_CASE("a long word costs no more than as many short ones") {
    const Bpe bpe = Bpe::learn(std::string(1000, 'a') + kCorpus, 300);
    const std::string word(3'000'000, 'a'); // a quadratic encoder would take hours
    CHECK(bpe.decode(bpe.encode(word)) == word);
    std::mt19937 random(3);
    std::string letters(200'000, ' ');
    for (char& c : letters) c = static_cast<char>('a' + random() % 26);
    CHECK(bpe.decode(bpe.encode(letters)) == letters);
}

TEST_CASE("a tokenizer is saved and read back") {
    const Bpe bpe = Bpe::learn(kCorpus, 300);
    const Bpe same = Bpe::from_text(bpe.to_text());
    CHECK(same.encode(kCorpus) == bpe.encode(kCorpus));
    CHECK(same.hash() == bpe.hash());
    CHECK(Bpe::learn(kCorpus, 299).hash() != bpe.hash());
    CHECK(Bpe::from_text(Bpe().to_text()).vocab_size() == 260);
    const std::string path = "test_bpe.txt";
    bpe.save(path);
    CHECK(Bpe::load(path).to_text() == bpe.to_text());
    std::remove(path.c_str());
    CHECK(error_of([] { Bpe::load("no/such/file"); }) ==
          "mnemo: no/such/file: cannot be read: No such file or directory");
    CHECK(error_of([&] { bpe.save("no/such/file"); }) ==
          "mnemo: no/such/file: cannot be written: No such file or directory");
}

TEST_CASE("a damaged tokenizer file is refused") {
    const auto reads = [](const std::string& s) { return error_of([&] { Bpe::from_text(s, "t.txt"); }); };
    CHECK(reads("") == "mnemo: t.txt: expected line 1, got the end of the file");
    CHECK(reads("mnemo bpe 2\n") == "mnemo: t.txt, line 1: expected 'mnemo bpe 1', got 'mnemo bpe 2'");
    CHECK(reads("mnemo bpe 1\nmerges -3\n") ==
          "mnemo: t.txt, line 2: expected 'merges N' with N up to 1000000, got 'merges -3'");
    CHECK(reads("mnemo bpe 1\nmerges 99999999999999999999\n").find("line 2") != std::string::npos);
    CHECK(reads("mnemo bpe 1\nmerges 2\n4 5\n") == "mnemo: t.txt: expected line 4, got the end of the file");
    CHECK(reads("mnemo bpe 1\nmerges 1\n4 260\n") ==
          "mnemo: t.txt, line 3: expected two ids from 4 on that came before, got '4 260'");
    CHECK(reads("mnemo bpe 1\nmerges 1\n1 5\n").find("line 3") != std::string::npos);
    CHECK(reads("mnemo bpe 1\nmerges 1\n4\n").find("line 3") != std::string::npos);
    CHECK(reads("mnemo bpe 1\nmerges 1\n4 5 6\n").find("line 3") != std::string::npos);
    CHECK(reads("mnemo bpe 1\nmerges 2\n4 5\n4 5\n") == "mnemo: t.txt, line 4: expected a new pair, got '4 5'");
    std::string doubling = "mnemo bpe 1\nmerges 60\n4 4\n"; // would be a token of 2^60 bytes
    for (int i = 260; i < 319; ++i) doubling += mnemo::text(i, ' ', i, '\n');
    CHECK(reads(doubling) == "mnemo: t.txt, line 10: expected a token of at most 128 bytes, got '266 266'");
    std::string good = Bpe::learn(kCorpus, 270).to_text();
    CHECK(reads(good + "x") == "mnemo: t.txt: expected the end of the file after line 13, got more");
    good[good.size() - 2] = good[good.size() - 2] == '0' ? '1' : '0';
    CHECK(reads(good).find("mnemo: t.txt, line 13: expected the hash of the merges, got 'hash ") == 0);
}
