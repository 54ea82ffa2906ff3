// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>

#include <array>
#include <span>
#include <string>
#include <string_view>
#include <utility>

// LongMem's in-context learning experiments: texts and labels as the published evaluation writes and counts them.
// Demonstrations beyond the prompt are read into the memory first; the prompt is read and not remembered.

namespace mnemo {

/// A classification task in words.
struct InContextTask {
    std::string_view name;
    std::string_view form; // the first {} is the text, the second the label
    std::array<std::string_view, 5> labels{};
    std::size_t classes = 2;
    bool tab_separated = false; // lines are text, tab, label; else a digit, a space, text
};

/// The published tasks.
inline constexpr std::array<InContextTask, 5> long_mem_tasks = {{
    {"SST-2", "Review: {} Sentiment: {}. ", {"negative", "positive"}, 2, true},
    {"sst-5", "Review: {} Sentiment: {}. ", {"terrible", "bad", "okay", "good", "great"}, 5},
    {"mr", "Review: {} Sentiment: {}. ", {"negative", "positive"}, 2},
    {"mpqa", "Review: {} Sentiment: {}. ", {"negative", "positive"}, 2},
    {"subj", "Input: {} Type: {}. ", {"subjective", "objective"}, 2},
}};
inline const InContextTask& long_mem_task(std::string_view name) {
    for (const InContextTask& task : long_mem_tasks)
        if (task.name == name) return task;
    fail("task: expected SST-2, sst-5, mr, mpqa or subj, got '", name, "'");
}

/// An example of a task's file: its text and its label in words. Throws Error for a line that is not of the task's
/// form.
inline std::pair<std::string, std::string_view> in_context_example(const InContextTask& task, std::string_view line) {
    while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.remove_suffix(1);
    std::string_view example, digit;
    if (task.tab_separated) {
        const std::size_t tab = line.rfind('\t');
        if (tab != std::string_view::npos) example = line.substr(0, tab), digit = line.substr(tab + 1);
    } else if (line.size() > 2) {
        digit = line.substr(0, 1), example = line.substr(2);
    }
    const std::size_t label = digit.size() == 1 ? static_cast<std::size_t>(digit[0] - '0') : task.classes;
    if (label >= task.classes)
        fail(task.name, ": expected a text and a label from 0 to ", task.classes - 1, ", got '", line.substr(0, 80),
             "'");
    while (!example.empty() && example.back() == ' ') example.remove_suffix(1);
    return {std::string(example), task.labels[label]};
}
/// A text and its label in words.
struct InContextExample {
    std::string text;
    std::string_view label; // one of the task's
};

/// The form with text and label filled in.
inline std::string demonstration(const InContextTask& task, std::string_view text, std::string_view label) {
    const std::size_t first = task.form.find("{}"), second = task.form.find("{}", first + 2);
    std::string out(task.form.substr(0, first));
    out += text;
    out += task.form.substr(first + 2, second - first - 2);
    out += label;
    return out += task.form.substr(second + 2);
}
/// The form up to where the label begins, without the space before it: what is to be continued.
inline std::string in_context_query(const InContextTask& task, std::string_view text) {
    const std::string_view form = task.form.substr(0, task.form.rfind("{}") - 1);
    const std::size_t first = form.find("{}");
    return std::string(form.substr(0, first)) + std::string(text) + std::string(form.substr(first + 2));
}
/// Whether a predicted token counts as the label: it begins it. Nothing counts for nothing.
inline bool begins_label(std::string_view predicted, std::string_view label) {
    const std::size_t first = predicted.find_first_not_of(" \n\t\r");
    if (first == std::string_view::npos) return false;
    predicted = predicted.substr(first, predicted.find_last_not_of(" \n\t\r") - first + 1);
    return label.substr(0, predicted.size()) == predicted;
}

} // namespace mnemo
