// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/text/merge_pairs.hpp>

#include <map>
#include <random>
#include <utility>

using namespace mnemo;

namespace {
// The definition, word for word: scan for the smallest order, merge it, begin again.
std::vector<std::int32_t> merged_slowly(std::vector<std::int32_t> word, const auto& rule) {
    for (;;) {
        PairMerge best;
        std::size_t at = 0;
        for (std::size_t i = 0; i + 1 < word.size(); ++i)
            if (const PairMerge m = rule(word[i], word[i + 1]); m.order < best.order) best = m, at = i;
        if (!(best.order < std::numeric_limits<double>::infinity())) return word;
        word[at] = best.symbol;
        word.erase(word.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    }
}
} // namespace

TEST_CASE("pairs are merged in the order of their ranks, the leftmost first") {
    std::mt19937 random(5);
    PairMerger merger;
    for (int round = 0; round < 300; ++round) {
        std::map<std::pair<std::int32_t, std::int32_t>, PairMerge> rules; // of any order: ties, and late pairs first
        for (std::int32_t id = 4; id < 30; ++id) {
            const auto symbol = [&] { return static_cast<std::int32_t>(random() % static_cast<unsigned>(id)); };
            rules.try_emplace({symbol(), symbol()}, PairMerge{static_cast<double>(random() % 12), id});
        }
        const auto rule = [&](std::int32_t a, std::int32_t b) {
            const auto found = rules.find({a, b});
            return found == rules.end() ? PairMerge{} : found->second;
        };
        std::vector<std::int32_t> word(random() % 40);
        for (auto& s : word) s = static_cast<std::int32_t>(random() % 4);
        const auto got = merger.merge(word, rule);
        REQUIRE(std::vector<std::int32_t>(got.begin(), got.end()) == merged_slowly(word, rule));
    }
}

TEST_CASE("the rules of merging are asked a few times a symbol, however long the word is") {
    std::size_t asked = 0;
    const auto rule = [&](std::int32_t a, std::int32_t b) {
        ++asked;
        return a == b && a < 20 ? PairMerge{static_cast<double>(a), a + 1} : PairMerge{};
    };
    PairMerger merger;
    const std::vector<std::int32_t> word(100000, 0);
    REQUIRE(merger.merge(word, rule).size() == 6); // 100000 = 65536 + 32768 + 1024 + 512 + 128 + 32
    REQUIRE(asked < 10 * 100000);
}
