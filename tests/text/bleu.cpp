// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/text/bleu.hpp>

using namespace mnemo;

namespace {

using Words = std::vector<std::string>;
Bleu bleu_of(const Words& outputs, const Words& references) {
    Bleu bleu;
    for (std::size_t i = 0; i < outputs.size(); ++i) bleu.add(outputs[i], references[i]);
    return bleu;
}

} // namespace

// Expected words and scores are sacreBLEU 2.6.0's.
TEST_CASE("13a words are sacreBLEU's") {
    CHECK(tokenize_13a("Hello, world! It's 3.14 (or 1,000,000) -- \"quoted\"...") ==
          Words{"Hello", ",", "world", "!", "It's", "3.14", "(", "or", "1,000,000", ")", "--", "\"", "quoted", "\"",
                ".", ".", "."});
    CHECK(tokenize_13a("a.. b.,c 5-6 x-y -7 10.") ==
          Words{"a", ".", ".", "b", ".", ",", "c", "5", "-", "6", "x-y", "-7", "10", "."});
    CHECK(tokenize_13a("&quot;Ja&quot; &amp;lt; 3&lt;4 <skipped>e-mail@host/path_x") ==
          Words{"\"", "Ja", "\"", "<", "3", "<", "4", "e-mail", "@", "host", "/", "path", "_", "x"});
    CHECK(tokenize_13a("Stra\u00dfe\u00a0\u201eGr\u00f6\u00dfe\u201c \u2026 1.\u00e9 .5, $4.50 ~tilde~ {x} [y] 9-") ==
          Words{"Stra\u00dfe", "\u201eGr\u00f6\u00dfe\u201c",
                "\u2026",      "1",
                ".",           "\u00e9",
                ".",           "5",
                ",",           "$",
                "4.50",        "~",
                "tilde",       "~",
                "{",           "x",
                "}",           "[",
                "y",           "]",
                "9",           "-"});
    CHECK(tokenize_13a("").empty());
    CHECK(tokenize_13a(". , -") == Words{".", ",", "-"});
    CHECK(tokenize_13a("it's a \"test\" of 1.5.2") == Words{"it's", "a", "\"", "test", "\"", "of", "1.5.2"});
}

TEST_CASE("corpus scores are sacreBLEU's") {
    const Bleu houses = bleu_of({"Das Haus ist gross.", "Ein Baum steht im Garten, nicht wahr?"},
                                {"Das Haus ist sehr gross.", "Ein Baum steht hier im Garten, nicht wahr?"});
    CHECK(houses.score() == Approx(57.04377381320254).epsilon(1e-9));
    CHECK(houses.precision(1) == Approx(100));
    CHECK(houses.precision(2) == Approx(83.33333333333333));
    CHECK(houses.precision(4) == Approx(37.5));
    CHECK(houses.brevity() == Approx(0.8668778997501817));
    const Bleu the = bleu_of({"the the the the the the the"}, {"The cat is on the mat"});
    CHECK(the.score() == Approx(6.567274736060395).epsilon(1e-9));
    CHECK(the.precision(4) == Approx(3.125));
    CHECK(bleu_of({"one two three four five", "six seven"}, {"one two three four five", "six seven"}).score() ==
          Approx(100));
    CHECK(bleu_of({"", "hello there general kenobi"}, {"something", "hello there general kenobi !"}).score() ==
          Approx(60.653065971263366).epsilon(1e-9));
    CHECK(bleu_of({"a b c", "x y"}, {"a c b", "z w"}).score() == 0); // no line of four words
    CHECK(bleu_of({"a b"}, {"a b"}).score() == 0);
    CHECK(Bleu().score() == 0);
}

TEST_CASE("token ids serve as words") {
    Bleu bleu;
    bleu.add(std::vector<int>{1, 2, 3, 4, 5}, std::vector<int>{1, 2, 3, 4, 5});
    CHECK(bleu.score() == Approx(100));
    CHECK(bleu.output_words() == 5);
}
