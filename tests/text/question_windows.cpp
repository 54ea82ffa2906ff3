// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/text/question_windows.hpp>

#include <numeric>
#include <string>

using namespace mnemo;

TEST_CASE("question_windows: the context is covered, neighbours share the stride, answers are found again") {
    const std::vector<std::int32_t> question = {7, 8};
    for (const index_t n : {0, 1, 4, 5, 6, 9, 23}) {
        std::vector<std::int32_t> context(static_cast<std::size_t>(n));
        std::iota(context.begin(), context.end(), 1000);
        const auto windows = question_windows(question, context, {.length = 10, .stride = 2}); // room for 5
        index_t covered = 0;
        for (std::size_t w = 0; w < windows.size(); ++w) {
            const QuestionWindow& one = windows[w];
            REQUIRE(one.first == static_cast<index_t>(w) * 3);
            REQUIRE(one.first <= covered);
            covered = one.first + one.count;
            REQUIRE(one.tokens.size() <= 10);
            REQUIRE(one.tokens.size() == one.segments.size());
            REQUIRE(one.tokens.size() == one.allowed.size());
            REQUIRE((one.tokens.front() == 101 && one.tokens[3] == 102 && one.tokens.back() == 102));
            for (index_t i = 0; i < one.count; ++i) {
                const auto at = static_cast<std::size_t>(one.begin + i);
                REQUIRE(one.tokens[at] == 1000 + one.first + i);
                REQUIRE((one.allowed[at] == 1 && one.segments[at] == 1));
            }
            REQUIRE(std::accumulate(one.allowed.begin(), one.allowed.end(), index_t{0}) == one.count);
        }
        REQUIRE(covered == n);
        REQUIRE((windows.size() == 1 || windows[windows.size() - 2].first + 5 < n)); // none too many
    }
    REQUIRE_THROWS_AS(question_windows(question, question, {.length = 7, .stride = 2}), Error);
    REQUIRE_THROWS_AS(question_windows(question, question, {.length = 4, .stride = 0}), Error);
}

TEST_CASE("question_windows: an answer's place, there and back") {
    const std::string text = "The tower (1889) stands in Paris, France.";
    const auto by_word = [](std::string_view word, std::vector<std::int32_t>& ids) { // two pieces a long word
        ids.push_back(static_cast<std::int32_t>(word[0]));
        if (word.size() > 5) ids.push_back(static_cast<std::int32_t>(word.back()));
    };
    const PlacedTokens placed = placed_tokens(text, by_word);
    REQUIRE(placed.tokens.size() == 13); // The tower ( 1889 ) stan ds in Paris , Fran ce .
    const std::size_t begin = text.find("Paris");
    const auto [first, last] = placed.tokens_of(begin, begin + 13);
    REQUIRE(placed.text_of(text, first, last) == "Paris, France");
    REQUIRE(placed.tokens_of(text.size(), text.size() + 5) == std::pair<index_t, index_t>{-1, -1});

    const std::vector<std::int32_t> question = {1};
    const auto windows = question_windows(question, placed.tokens, {.length = 10, .stride = 3});
    std::vector<std::vector<float>> start, end;
    index_t holding = 0;
    for (const QuestionWindow& w : windows) {
        const auto [a, b] = w.positions_of(first, last);
        start.emplace_back(12, 0.0f), end.emplace_back(12, 0.0f); // two of padding
        start.back()[0] = end.back()[0] = 9;                      // [CLS] is no answer
        if (a == 0) continue;
        ++holding;
        start.back()[static_cast<std::size_t>(a)] = end.back()[static_cast<std::size_t>(b)] = 4;
    }
    REQUIRE(holding >= 1);
    const auto best = best_answers(
        windows, [&](std::size_t w) { return std::span<const float>(start[w]); },
        [&](std::size_t w) { return std::span<const float>(end[w]); });
    REQUIRE(placed.text_of(text, best[0].first, best[0].last) == "Paris, France");
    REQUIRE(best[0].score == 8);
    for (std::size_t i = 1; i < best.size(); ++i)
        REQUIRE((best[i].first != best[0].first || best[i].last != best[0].last));
}
