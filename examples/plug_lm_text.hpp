// SPDX-License-Identifier: MIT
#pragma once

// The facts of examples/plug_lm.cpp: phrases from the comments of installed headers, each with one word that can be
// another. "the quick brown fox" becomes a fact where `brown` is one of the words that are exchanged.
#include "comment_phrases.hpp"

#include <mnemo/mnemo.hpp>

#include <filesystem>
#include <map>
#include <random>

using namespace mnemo;

constexpr std::int32_t kPad = 0, kCls = 1, kSep = 2, kMask = 3, kFirstWord = 4;
constexpr index_t kLength = 8; // words of a document, at most

struct Fact {
    std::vector<std::int32_t> words;
    std::size_t slot = 0;
    std::int32_t truth = 0; // the word that the text has there
};
/// Which word each fact has.
using Assignment = std::vector<std::int32_t>;

struct Facts {
    std::vector<std::string> words = {"[PAD]", "[CLS]", "[SEP]", "[MASK]"};
    std::vector<std::int32_t> values; // the words that are exchanged
    std::vector<std::string> names;   // of the two domains
    std::vector<Fact> all;            // the first domain's, then the second's
    std::size_t first = 0;            // how many are the first domain's

    std::string text_of(std::span<const std::uint16_t> document) const {
        std::string out;
        for (const std::uint16_t id : document)
            if (id != 0) out += (out.empty() ? "" : " ") + words[id];
        return out;
    }
    /// Facts [begin, end) with the words of `assignment` as documents.
    DocumentRows documents(const Assignment& assignment, std::size_t begin, std::size_t end) const {
        DocumentRows out;
        out.length = kLength;
        for (std::size_t i = begin; i < end; ++i) {
            const std::size_t row = out.tokens.size();
            out.tokens.resize(row + static_cast<std::size_t>(kLength));
            for (std::size_t j = 0; j < all[i].words.size(); ++j)
                out.tokens[row + j] = static_cast<std::uint16_t>(j == all[i].slot ? assignment[i] : all[i].words[j]);
        }
        return out;
    }
    /// The facts named, their word hidden and asked for.
    MaskedBatch questions(const Assignment& assignment, const std::vector<std::size_t>& which) const {
        MaskingOptions options;
        options.cls = kCls, options.sep = kSep, options.mask = kMask, options.pad = kPad;
        options.vocab_size = static_cast<std::int32_t>(words.size());
        std::vector<std::vector<std::int32_t>> lines;
        for (const std::size_t i : which) {
            lines.push_back(all[i].words);
            lines.back()[all[i].slot] = kMask;
        }
        std::vector<TokenPair> pairs;
        for (const auto& line : lines) pairs.push_back({line, {}});
        MaskedBatch batch = collate_pairs(pairs, options);
        for (std::size_t row = 0; row < which.size(); ++row) {
            const index_t position = static_cast<index_t>(all[which[row]].slot) + 1;
            const std::int32_t label = assignment[which[row]];
            set_targets(batch, static_cast<index_t>(row), std::span(&position, 1), std::span(&label, 1));
        }
        return batch;
    }
    Assignment truths() const {
        Assignment out;
        for (const Fact& f : all) out.push_back(f.truth);
        return out;
    }
    Assignment random(std::mt19937_64& draw) const {
        Assignment out(all.size());
        for (auto& word : out) word = values[draw() % values.size()];
        return out;
    }
    /// Each fact has another word than in `other`.
    Assignment unlike(const Assignment& other, std::mt19937_64& draw) const {
        Assignment out = random(draw);
        for (std::size_t i = 0; i < out.size(); ++i)
            while (out[i] == other[i]) out[i] = values[draw() % values.size()];
        return out;
    }
};

/// `count` facts of two libraries' headers, about `exchanged` frequent words.
inline Facts read_facts(const std::vector<Corpus>& corpora, std::size_t count, std::size_t exchanged) {
    Facts out;
    std::vector<std::vector<std::vector<std::string>>> phrases; // of each domain
    std::map<std::string, std::size_t> frequency;
    for (const Corpus& corpus : corpora) {
        if (phrases.size() == 2) break;
        std::vector<TextFile> files = corpus.train;
        for (const auto* part : {&corpus.valid, &corpus.test}) files.insert(files.end(), part->begin(), part->end());
        auto found = phrases_of(files, 4, static_cast<std::size_t>(kLength));
        if (found.size() < 4 * count) continue;
        for (const auto& phrase : found)
            for (const std::string& word : phrase)
                if (word.size() >= 5) ++frequency[word];
        phrases.push_back(std::move(found)), out.names.push_back(corpus.name);
    }
    if (phrases.size() < 2) fail("expected the headers of two libraries, name folders of text instead");
    std::vector<std::pair<std::size_t, std::string>> ranked;
    for (const auto& [word, n] : frequency) ranked.emplace_back(n, word);
    std::sort(ranked.rbegin(), ranked.rend());
    std::map<std::string, std::int32_t> ids;
    const auto id_of = [&](const std::string& word) {
        const auto [place, fresh] = ids.emplace(word, static_cast<std::int32_t>(out.words.size()));
        if (fresh) out.words.push_back(word);
        return place->second;
    };
    for (std::size_t i = 0; i < std::min(exchanged, ranked.size()); ++i) out.values.push_back(id_of(ranked[i].second));
    const auto is_value = [&](const std::string& word) {
        const auto place = ids.find(word);
        return place != ids.end() && place->second < kFirstWord + static_cast<std::int32_t>(out.values.size());
    };
    std::set<std::vector<std::string>> contexts; // without their word, each once
    for (const auto& domain : phrases) {
        const std::size_t until = out.all.size() + count;
        for (const auto& phrase : domain) {
            if (out.all.size() == until) break;
            if (std::count_if(phrase.begin(), phrase.end(), is_value) != 1) continue;
            Fact fact;
            std::vector<std::string> context;
            for (const std::string& word : phrase) {
                if (is_value(word)) fact.slot = context.size();
                context.push_back(is_value(word) ? "" : word);
            }
            std::vector<std::string> bag = context;
            std::sort(bag.begin(), bag.end());
            if (!contexts.insert(bag).second) continue;
            for (const std::string& word : phrase) fact.words.push_back(id_of(word));
            fact.truth = fact.words[fact.slot];
            out.all.push_back(std::move(fact));
        }
        if (out.first == 0) out.first = out.all.size();
    }
    return out;
}
