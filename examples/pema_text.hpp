// SPDX-License-Identifier: MIT
#pragma once

// The text of examples/pema.cpp: phrases from the comments of installed headers, and a house style for them.
#include "comment_phrases.hpp"

#include <mnemo/mnemo.hpp>

#include <algorithm>
#include <filesystem>
#include <map>
#include <random>
#include <set>
#include <sstream>

using namespace mnemo;
namespace fs = std::filesystem;

using Line = std::vector<std::int32_t>;

// Ids of the little language: a blank, padding, the end of a line, the sign between a phrase and its copy; then words.
constexpr std::int32_t kBlank = 0, kPad = 1, kEnd = 2, kCopy = 3, kFirstWord = 4;
constexpr std::size_t kWords = 8; // of a phrase, at most

// A phrase as the model reads it: in a frame of one size, so that a tiny model finds each word's place.
inline Line prompt_of(Line line) {
    line.resize(kWords, kBlank), line.push_back(kCopy);
    return line;
}

// The most frequent words, the phrases made of nothing else, and a house style: some words are written as others.
struct Language {
    std::vector<std::string> words; // by frequency
    std::vector<Line> phrases;
    std::map<std::int32_t, std::int32_t> style;

    static Language of(const std::vector<std::vector<std::string>>& phrases, std::size_t size, std::size_t replaced) {
        std::map<std::string, index_t> counts;
        for (const auto& p : phrases)
            for (const std::string& w : p) ++counts[w];
        std::vector<std::pair<index_t, std::string>> order;
        for (const auto& [word, n] : counts) order.emplace_back(-n, word);
        std::sort(order.begin(), order.end());
        order.resize(std::min(order.size(), size));
        Language out;
        std::map<std::string, std::int32_t> ids;
        for (const auto& [n, word] : order) {
            ids[word] = kFirstWord + static_cast<std::int32_t>(out.words.size());
            out.words.push_back(word);
        }
        for (const auto& p : phrases) {
            Line line;
            for (const std::string& w : p)
                if (ids.count(w) != 0) line.push_back(ids[w]);
            if (line.size() == p.size()) out.phrases.push_back(line);
        }
        Line nouns; // words of some length stand for nouns
        for (const std::string& w : out.words)
            if (w.size() >= 5) nouns.push_back(ids[w]);
        for (std::size_t i = 0; i < std::min(replaced, nouns.size() / 2); ++i)
            out.style[nouns[i]] = *(nouns.end() - 1 - static_cast<std::ptrdiff_t>(i));
        return out;
    }
    std::int32_t vocab() const { return kFirstWord + static_cast<std::int32_t>(words.size()); }
    Line in_style(Line line) const {
        for (std::int32_t& id : line)
            if (style.count(id) != 0) id = style.at(id);
        return line;
    }
    bool needs_style(const Line& line) const { return in_style(line) != line; }
    std::string text(const Line& line) const {
        std::string out;
        for (const std::int32_t id : line)
            if (id >= kFirstWord) out += (out.empty() ? "" : " ") + words.at(static_cast<std::size_t>(id - kFirstWord));
        return out;
    }
};

// In an order of its own for each seed.
template <class T> std::vector<T> shuffled(std::vector<T> items, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    for (std::size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[random() % i]);
    return items;
}
