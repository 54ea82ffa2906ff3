// SPDX-License-Identifier: MIT
#include "catch.hpp"

#include <mnemo/stemmer/stemmer.hpp>
#include <mnemo/text/bm25.hpp>
#include <mnemo/text/words.hpp>

using namespace mnemo;

TEST_CASE("Porter's stems, as published") {
    const SnowballStemmer stem;
    const std::pair<const char*, const char*> pairs[] = {{"caresses", "caress"}, {"ponies", "poni"},
                                                         {"motoring", "motor"},  {"relational", "relat"},
                                                         {"hopping", "hop"},     {"", ""}};
    for (const auto& [word, expected] : pairs) REQUIRE(stem(word) == expected);
    REQUIRE_THROWS_WITH(SnowballStemmer("klingon"), Catch::Contains("klingon"));
}

TEST_CASE("forms of a word find one another") {
    const char* documents[] = {"The engineers were building bridges.", "He likes cats.",
                               "A bridge was built by an engineer"};
    WordIds ids;
    std::vector<std::int32_t> words;
    std::vector<index_t> sizes;
    const EnglishWords<SnowballStemmer> english;
    for (const char* document : documents) {
        const std::size_t before = words.size();
        english.each(document, [&](std::string_view word) { words.push_back(ids(word)); });
        sizes.push_back(static_cast<index_t>(words.size() - before));
    }
    Bm25Index::Scratch scratch;
    const auto found =
        Bm25Index(words, sizes).search(std::span(words).first(static_cast<std::size_t>(sizes[0])), 5, scratch);
    REQUIRE(found.size() == 2);
    REQUIRE(found[1].id == 2);
}
