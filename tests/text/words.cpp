// SPDX-License-Identifier: MIT
#include "catch.hpp"

#include <mnemo/text/words.hpp>

using namespace mnemo;

TEST_CASE("English text becomes words") {
    const auto words = [](std::string_view text) {
        std::vector<std::string> out;
        EnglishWords<>{}.each(text, [&](std::string_view word) { out.emplace_back(word); });
        return out;
    };
    using Words = std::vector<std::string>;
    REQUIRE(words("The U.S. Navy's 1,024 ships, don't they?") == Words{"u.s", "navy", "1,024", "ships", "don't"});
    REQUIRE(words(" -- 'quoted' ... x_1 \n\t") == Words{"quoted", "x_1"});
    REQUIRE(words("Gr\u00f6\u00dfe na\u00efve") == Words{"gr\u00f6\u00dfe", "na\u00efve"});
    REQUIRE(words("").empty());
    REQUIRE(words("a it's").empty()); // "it" is what stays of it
    for (const char* stop : {"a", "if", "in", "into", "such", "with"}) REQUIRE(words(stop).empty());
}

TEST_CASE("words have ids in the order of their coming") {
    WordIds ids;
    REQUIRE(ids("b") == 0);
    REQUIRE(ids("a") == 1);
    REQUIRE(ids("b") == 0);
    REQUIRE(ids.size() == 2);
}
