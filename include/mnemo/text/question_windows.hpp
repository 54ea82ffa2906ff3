// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/core/matrix_view.hpp>
#include <mnemo/text/answer_metrics.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace mnemo {

/// A text as tokens, each with the bytes [begin, end) of the word or sign that it is a piece of.
struct PlacedTokens {
    std::vector<std::int32_t> tokens;
    std::vector<std::pair<std::size_t, std::size_t>> places;

    /// The bytes of `text` that tokens [first, last] stand for.
    std::string_view text_of(std::string_view text, index_t first, index_t last) const {
        const std::size_t begin = places.at(static_cast<std::size_t>(first)).first;
        return text.substr(begin, places.at(static_cast<std::size_t>(last)).second - begin);
    }
    /// Tokens [first, last] of the bytes [begin, end), or {-1, -1} where there are none.
    std::pair<index_t, index_t> tokens_of(std::size_t begin, std::size_t end) const {
        std::pair<index_t, index_t> out{-1, -1};
        for (std::size_t i = 0; i < places.size(); ++i) {
            if (places[i].second <= begin || places[i].first >= end) continue;
            if (out.first < 0) out.first = static_cast<index_t>(i);
            out.second = static_cast<index_t>(i);
        }
        return out;
    }
};
/// Words are cut at white space and at ASCII's signs, as BERT's tokenizers do before they look up pieces:
/// `encode(word, ids)` appends the pieces of one.
PlacedTokens placed_tokens(std::string_view text, auto&& encode) {
    const auto is_space = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
    const auto is_sign = [](char c) {
        return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
    };
    PlacedTokens out;
    for (std::size_t begin = 0, end; begin < text.size(); begin = end) {
        end = begin + 1;
        if (is_space(text[begin])) continue;
        if (!is_sign(text[begin]))
            while (end < text.size() && !is_space(text[end]) && !is_sign(text[end])) ++end;
        encode(text.substr(begin, end - begin), out.tokens);
        out.places.resize(out.tokens.size(), {begin, end});
    }
    return out;
}

struct QuestionWindowOptions {
    index_t length = 384; // of a window, its question and three signs included
    index_t stride = 128; // tokens of the context that two neighbours share
    std::int32_t cls = 101, sep = 102;
};

/// A question with one part of its context: `[CLS] question [SEP] part [SEP]`.
struct QuestionWindow {
    std::vector<std::int32_t> tokens, segments;
    std::vector<std::uint8_t> allowed; // 1 for tokens of the context
    index_t begin = 0;                 // position of the part's first token
    index_t first = 0, count = 0;      // tokens of the context that are here

    /// Positions of the context's tokens [from, to]; {0, 0}, the place of [CLS], where not all are here.
    std::pair<index_t, index_t> positions_of(index_t from, index_t to) const {
        if (from < first || to >= first + count || to < from) return {0, 0};
        return {begin + from - first, begin + to - first};
    }
};

/// The windows of a context of any length, each `length - stride - question - 3` tokens after the one before; the last
/// one ends with the context. Throws Error where the question leaves no room for more than `stride` tokens.
inline std::vector<QuestionWindow> question_windows(std::span<const std::int32_t> question,
                                                    std::span<const std::int32_t> context,
                                                    const QuestionWindowOptions& options = {}) {
    const auto asked = static_cast<index_t>(question.size()), all = static_cast<index_t>(context.size());
    const index_t room = options.length - asked - 3;
    if (options.stride < 0 || room <= options.stride)
        fail("question_windows: expected room for more than ", options.stride, " tokens of the context in ",
             options.length, ", got ", room, " beside a question of ", asked);
    std::vector<QuestionWindow> out;
    for (index_t first = 0;; first += room - options.stride) {
        QuestionWindow w;
        w.begin = asked + 2, w.first = first, w.count = std::min(room, all - first);
        w.tokens.push_back(options.cls);
        w.tokens.insert(w.tokens.end(), question.begin(), question.end());
        w.tokens.push_back(options.sep);
        w.segments.assign(w.tokens.size(), 0);
        w.allowed.assign(w.tokens.size(), 0);
        const auto part = context.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(w.count));
        w.tokens.insert(w.tokens.end(), part.begin(), part.end());
        w.allowed.resize(w.tokens.size(), 1);
        w.tokens.push_back(options.sep);
        w.allowed.push_back(0);
        w.segments.resize(w.tokens.size(), 1);
        out.push_back(std::move(w));
        if (first + room >= all) return out;
    }
}

/// The best answers of all windows as tokens of the context, best first, each place once. start and end: the logits of
/// a window's positions, padding or not behind them.
inline std::vector<AnswerSpan> best_answers(std::span<const QuestionWindow> windows, auto&& start, auto&& end,
                                            index_t most = 20, index_t longest = 30) {
    std::vector<AnswerSpan> out;
    for (std::size_t w = 0; w < windows.size(); ++w) {
        const auto n = windows[w].tokens.size();
        const std::span<const float> starts = start(w), ends = end(w);
        if (starts.size() < n || ends.size() < n)
            fail("best_answers: window ", w, ": expected logits of ", n, " positions, got ", starts.size(), " and ",
                 ends.size());
        for (AnswerSpan s : best_spans(starts.first(n), ends.first(n), windows[w].allowed, most, longest)) {
            const index_t shift = windows[w].first - windows[w].begin;
            s.first += shift, s.last += shift;
            out.push_back(s);
        }
    }
    std::sort(out.begin(), out.end(), better_answer);
    std::vector<AnswerSpan> once;
    for (const AnswerSpan& s : out) {
        if (static_cast<index_t>(once.size()) >= most) break;
        const bool known = std::any_of(once.begin(), once.end(),
                                       [&](const AnswerSpan& o) { return o.first == s.first && o.last == s.last; });
        if (!known) once.push_back(s);
    }
    return once;
}

} // namespace mnemo
