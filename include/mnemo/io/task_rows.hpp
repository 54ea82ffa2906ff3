// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/json.hpp>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mnemo {

// Task data as PlugLM's fine-tuning reads it: one JSON object a line.

/// A text, or two, and its label as it is written: a word, or a number's text.
struct LabelledText {
    std::string first, second, label;
};
/// A sentence's words, each with a tag.
struct TaggedWords {
    std::vector<std::string> words, tags;
};
/// A question about a context; `starts` are byte offsets of the answers in it.
struct QuestionRow {
    std::string id, question, context;
    std::vector<std::string> answers;
    std::vector<index_t> starts;
};

namespace detail {
template <class F> void for_each_json_line(const std::string& path, const F& f) {
    const std::string source = read_file(path);
    index_t number = 0;
    for (std::size_t at = 0; at < source.size();) {
        const std::size_t end = std::min(source.find('\n', at), source.size());
        const std::string_view line = std::string_view(source).substr(at, end - at);
        at = end + 1, ++number;
        if (line.find_first_not_of(" \t\r") == line.npos) continue;
        f(JsonObject::parse(line, text(path, ": line ", number)));
    }
}
inline std::vector<std::string> strings(const JsonObject& row, const std::string& field) {
    std::vector<std::string> out;
    for (const auto& item : row.list(field)) {
        if (!item.is_string() && !item.is_number_integer()) row.wrong(field, "a list of strings");
        out.push_back(item.is_string() ? item.get<std::string>() : item.dump());
    }
    return out;
}
} // namespace detail

/// Rows of classification and regression. Each has `label` and one of: text (after `headline`, which is the first text
/// then), sentence, or a pair premise/hypothesis, sentence1/sentence2, question/sentence, question1/question2; `id`,
/// `idx` and `metadata` are left out. Other fields, or none of these, are an Error that names file and line.
inline std::vector<LabelledText> read_labelled_texts(const std::string& path) {
    static const std::map<std::set<std::string>, std::pair<const char*, const char*>> known = {
        {{"text"}, {"text", ""}},
        {{"headline", "text"}, {"headline", "text"}},
        {{"sentence"}, {"sentence", ""}},
        {{"premise", "hypothesis"}, {"premise", "hypothesis"}},
        {{"sentence1", "sentence2"}, {"sentence1", "sentence2"}},
        {{"question", "sentence"}, {"question", "sentence"}},
        {{"question1", "question2"}, {"question1", "question2"}}};
    std::vector<LabelledText> out;
    detail::for_each_json_line(path, [&](const JsonObject& row) {
        std::set<std::string> fields;
        for (const auto& [field, value] : row.raw().items())
            if (field != "label" && field != "id" && field != "idx" && field != "metadata") fields.insert(field);
        const auto found = known.find(fields);
        if (found == known.end()) {
            std::string got;
            for (const std::string& field : fields) got += (got.empty() ? "" : ", ") + field;
            fail(row.where(),
                 ": expected text, headline and text, sentence, premise and hypothesis, sentence1 and "
                 "sentence2, question and sentence, or question1 and question2, got ",
                 got.empty() ? "none" : got);
        }
        LabelledText item;
        item.first = row.string(found->second.first);
        if (*found->second.second != '\0') item.second = row.string(found->second.second);
        const nlohmann::json label = row.raw().value("label", nlohmann::json());
        if (!label.is_string() && !label.is_number() && !label.is_boolean()) row.wrong("label", "a string or a number");
        item.label = label.is_string() ? label.get<std::string>() : label.dump();
        out.push_back(std::move(item));
    });
    return out;
}

/// The labels that occur, sorted; a label's number is its place.
inline std::vector<std::string> label_names(const std::vector<LabelledText>& rows) {
    std::set<std::string> names;
    for (const LabelledText& row : rows) names.insert(row.label);
    return {names.begin(), names.end()};
}

/// Rows with `tokens` and `ner_tags`, of one length each.
inline std::vector<TaggedWords> read_tagged_words(const std::string& path) {
    std::vector<TaggedWords> out;
    detail::for_each_json_line(path, [&](const JsonObject& row) {
        TaggedWords item{detail::strings(row, "tokens"), detail::strings(row, "ner_tags")};
        expect_equal(text(row.where(), ": ner_tags"), item.tags.size(), item.words.size());
        out.push_back(std::move(item));
    });
    return out;
}

/// Rows with id, question, context and answers {text [], answer_start []}; `answer_start` counts code points, as
/// Python does. An answer that is not where it is said to be is an Error.
inline std::vector<QuestionRow> read_questions(const std::string& path) {
    std::vector<QuestionRow> out;
    detail::for_each_json_line(path, [&](const JsonObject& row) {
        QuestionRow item{row.string("id"), row.string("question"), row.string("context"), {}, {}};
        const JsonObject answers = row.object("answers");
        item.answers = detail::strings(answers, "text");
        const auto& starts = answers.list("answer_start");
        if (starts.size() != item.answers.size())
            answers.wrong("answer_start", text("a list of ", item.answers.size(), " numbers"));
        for (std::size_t i = 0; i < starts.size(); ++i) {
            if (!starts[i].is_number_integer() || starts[i] < 0) answers.wrong("answer_start", "numbers from 0 on");
            std::size_t at = 0;
            const auto continues = [&] { return at < item.context.size() && (item.context[at] & 0xc0) == 0x80; };
            for (index_t left = starts[i].get<index_t>(); left > 0 && at < item.context.size(); --left) do
                    ++at;
                while (continues());
            if (item.context.compare(at, item.answers[i].size(), item.answers[i]) != 0)
                fail(row.where(), ": answer ", i, ": expected ", in_quotes(item.answers[i]), " at its answer_start");
            item.starts.push_back(static_cast<index_t>(at));
        }
        out.push_back(std::move(item));
    });
    return out;
}

} // namespace mnemo
