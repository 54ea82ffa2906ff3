// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/text/clean_generated.hpp>

using namespace mnemo;

TEST_CASE("generated lines lose what the reference's script cuts") {
    CHECK(clean_generated("Gut. I'm not sure\nx I'm\" y\nA I'm b\nB I 50% c\n") == "Gut.\nx\nA\nB");
    CHECK(clean_generated("a Convert the following informal sentence b Formal: c Formal: d") == "a  d");
    CHECK(clean_generated("Convert the following informal sentence without the other") ==
          "Convert the following informal sentence without the other");
    CHECK(clean_generated("u Translate this from English to German: v") == "u ");
    CHECK(clean_generated("Ende ...... mehr\nEnde ..... mehr") == "Ende\nEnde ..... mehr");
    CHECK(clean_generated("").empty());
    CHECK(clean_generated("\n\n") == "\n");
}

TEST_CASE("a word that is repeated at once stands once") {
    const auto cleaned = [](std::string_view s) { return clean_generated(s, {}); };
    CHECK(cleaned("gross gross gross.") == "gross.");
    CHECK(cleaned("ja ja-ja nein nein ja") == "ja-ja nein ja");
    CHECK(cleaned("Hund hundert Hund Hunde") == "Hund hundert Hund Hunde");
    CHECK(cleaned("a  a a\ta") == "a  a\ta"); // one blank, nothing else
    CHECK(cleaned("\u00fcber \u00fcber \u201eso\u201c so so") == "\u00fcber \u201eso\u201c so");
    CHECK(cleaned("x_1 x_1 x 1 1.5 5") == "x_1 x 1.5");
    CHECK(cleaned(" a a ") == " a ");
}
