// SPDX-License-Identifier: MIT
#include "files.hpp"

#include <catch.hpp>
#include <mnemo/io/task_rows.hpp>

using namespace mnemo;

namespace {
std::string with(const Folder& folder, const std::string& lines) {
    const std::string path = folder.path() + "/rows.json";
    atomic_write(path, lines);
    return path;
}
} // namespace

TEST_CASE("task rows: texts and pairs with their labels") {
    const Folder folder;
    const auto rows = read_labelled_texts(with(folder, R"({"id": 1, "text": "body", "headline": "head", "label": "b"}
{"metadata": {"x": 1}, "text": "alone", "label": 1}

{"premise": "p", "hypothesis": "h", "label": "a", "idx": 7}
{"sentence": "s", "label": 0.5}
)"));
    REQUIRE(rows.size() == 4);
    CHECK((rows[0].first == "head" && rows[0].second == "body" && rows[0].label == "b"));
    CHECK((rows[1].first == "alone" && rows[1].second.empty() && rows[1].label == "1"));
    CHECK((rows[2].first == "p" && rows[2].second == "h"));
    CHECK(label_names(rows) == std::vector<std::string>{"0.5", "1", "a", "b"});
    CHECK_THROWS_WITH(read_labelled_texts(with(folder, "{\"text\": \"x\", \"label\": 1}\n{\"words\": \"x\"}")),
                      Catch::Contains("line 2"));
    CHECK_THROWS_AS(read_labelled_texts(with(folder, "{\"text\": \"x\"}")), Error);
    CHECK_THROWS_AS(read_labelled_texts(with(folder, "not json")), Error);
}

TEST_CASE("task rows: words with tags") {
    const Folder folder;
    const auto rows = read_tagged_words(with(folder, R"({"tokens": ["EU", "rejects"], "ner_tags": ["B-ORG", "O"]})"));
    REQUIRE(rows.size() == 1);
    CHECK(rows[0].tags[0] == "B-ORG");
    CHECK_THROWS_AS(read_tagged_words(with(folder, R"({"tokens": ["EU"], "ner_tags": []})")), Error);
    CHECK_THROWS_AS(read_tagged_words(with(folder, R"({"tokens": "EU", "ner_tags": ["O"]})")), Error);
}

TEST_CASE("task rows: questions know where their answers are, in code points") {
    const Folder folder;
    const std::string head = R"({"id": "1", "question": "q", "context": "Zürich is far", "answers": )";
    const auto rows = read_questions(with(folder, head + R"({"text": ["is"], "answer_start": [7]}})"));
    REQUIRE(rows.size() == 1);
    CHECK(rows[0].starts == std::vector<index_t>{8}); // a byte more
    CHECK_THROWS_AS(read_questions(with(folder, head + R"({"text": ["is"], "answer_start": [6]}})")), Error);
    CHECK_THROWS_AS(read_questions(with(folder, head + R"({"text": ["is"], "answer_start": []}})")), Error);
    CHECK(read_questions(with(folder, head + R"({"text": [], "answer_start": []}})"))[0].answers.empty());
}
