// SPDX-License-Identifier: MIT
#include "files.hpp"

#include <catch.hpp>
#include <mnemo/io/sentence_pairs.hpp>

using namespace mnemo;

TEST_CASE("sentence pairs are read as the reference writes them, and come back") {
    const Folder folder;
    const std::string path = folder / "test.json";
    atomic_write(path,
                 "{\"en\":\"A \\/ \\\"b\\\" \\\\c\",\"du\":\"\u00dcber\"}\n{\"du\":\"\",\"en\":\"\",\"more\":1}\r\n\n");
    const auto pairs = read_sentence_pairs(path, "en", "du");
    REQUIRE(pairs.size() == 2);
    CHECK(pairs[0] == SentencePair{"A / \"b\" \\c", "\u00dcber"});
    CHECK(pairs[1] == SentencePair{"", ""});
    const std::vector<SentencePair> odd{{"tab\t \x01 / \u2028", "line\nbreak"}, {"", "x"}};
    write_sentence_pairs(path, odd, "informal", "formal");
    CHECK(read_sentence_pairs(path, "informal", "formal") == odd);
    CHECK(read_file(path).find("\\/") != std::string::npos);
}

TEST_CASE("lines that are no sentence pairs are named") {
    const Folder folder;
    const std::string path = folder / "bad.json";
    const auto message = [&](std::string_view contents) {
        atomic_write(path, contents);
        try {
            (void)read_sentence_pairs(path, "en", "du");
        } catch (const Error& e) {
            return std::string(e.what());
        }
        return std::string("no error");
    };
    const std::string good = "{\"en\":\"a\",\"du\":\"b\"}\n";
    CHECK_THAT(message(good + "{\"en\":\"a\"}\n"), Catch::Contains("line 2: expected an object with the text \"du\""));
    CHECK_THAT(message("[1]\n"), Catch::Contains("line 1: expected an object"));
    CHECK_THAT(message(good + "\n" + good), Catch::Contains("line 2: not JSON"));
    CHECK_THAT(message("{\"en\":\"a\",\"du\":\"b\""), Catch::Contains("line 1: not JSON"));
    CHECK_THAT(message("{\"en\":1,\"du\":\"b\"}"), Catch::Contains("the text \"en\""));
}
