// SPDX-License-Identifier: MIT
#pragma once

// Phrases from the comments of installed headers: real text that needs no download.
#include <mnemo/text/corpus.hpp>

#include <algorithm>
#include <set>
#include <sstream>
#include <string>
#include <vector>

// Runs of `least` to `most` words in comments, each once, in the files' order.
inline std::vector<std::vector<std::string>> phrases_of(const std::vector<mnemo::TextFile>& files,
                                                        std::size_t least = 3, std::size_t most = 8) {
    std::vector<std::vector<std::string>> out;
    std::set<std::vector<std::string>> seen;
    const auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
    for (const mnemo::TextFile& file : files) {
        std::istringstream lines(file.text);
        for (std::string line; std::getline(lines, line);) {
            const std::size_t begin = line.find_first_not_of(" \t");
            if (begin == std::string::npos || (line.compare(begin, 2, "//") != 0 && line[begin] != '*')) continue;
            std::vector<std::string> words(1);
            const auto finish = [&] {
                if (words.back().empty()) words.pop_back();
                const bool plain =
                    std::all_of(words.begin(), words.end(), [](const auto& w) { return w.size() > 1 || w == "a"; });
                if (plain && words.size() >= least && words.size() <= most && seen.insert(words).second)
                    out.push_back(words);
                words.assign(1, "");
            };
            for (const char c : line.substr(line.find_first_not_of("/*<!", begin) == std::string::npos
                                                ? line.size()
                                                : line.find_first_not_of("/*<!", begin))) {
                if (letter(c))
                    words.back() += static_cast<char>(c | 0x20);
                else if (c != ' ')
                    finish();
                else if (!words.back().empty())
                    words.emplace_back();
            }
            finish();
        }
    }
    return out;
}
