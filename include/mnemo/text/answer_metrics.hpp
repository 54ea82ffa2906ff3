// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/core/matrix_view.hpp>

#include <algorithm>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

namespace mnemo {

/// Lower case, without punctuation and the articles a, an and the, single spaces: how SQuAD compares answers. Bytes
/// beyond ASCII stay.
inline std::string normalized_answer(std::string_view answer) {
    std::string plain;
    for (const char c : answer) {
        const bool punctuation =
            (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
        if (!punctuation) plain += c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c;
    }
    std::string out, word;
    const auto finish = [&] {
        if (!word.empty() && word != "a" && word != "an" && word != "the") out += (out.empty() ? "" : " ") + word;
        word.clear();
    };
    for (const char c : plain)
        if (c == ' ' || (c >= '\t' && c <= '\r'))
            finish();
        else
            word += c;
    finish();
    return out;
}

struct AnswerScore {
    double exact = 0, f1 = 0;
};
/// SQuAD's exact match and F1 over words against the best of the gold answers. Without gold answers only the empty
/// answer is right.
inline AnswerScore score_answer(std::string_view answer, std::span<const std::string> golds) {
    const auto words_of = [](const std::string& text) {
        std::map<std::string, int> words;
        int count = 0;
        for (std::size_t at = 0; at < text.size();) {
            const std::size_t end = std::min(text.find(' ', at), text.size());
            ++words[text.substr(at, end - at)], ++count;
            at = end + 1;
        }
        return std::pair(words, count);
    };
    const std::string mine = normalized_answer(answer);
    AnswerScore best;
    if (golds.empty()) best = {mine.empty() ? 1.0 : 0.0, mine.empty() ? 1.0 : 0.0};
    for (const std::string& gold : golds) {
        const std::string theirs = normalized_answer(gold);
        const auto [a, n] = words_of(mine);
        const auto [b, m] = words_of(theirs);
        int same = 0;
        for (const auto& [word, count] : a)
            if (const auto other = b.find(word); other != b.end()) same += std::min(count, other->second);
        const double f1 = n == 0 || m == 0 ? (n == m ? 1.0 : 0.0) : 2.0 * same / (n + m);
        best.exact = std::max(best.exact, mine == theirs ? 1.0 : 0.0);
        best.f1 = std::max(best.f1, f1);
    }
    return best;
}

/// BioASQ's scores of one ranked list of answers: first right (strict), any of the first five right (lenient), and 1 /
/// the place of the first right one among those five.
struct RankedScore {
    double strict = 0, lenient = 0, reciprocal_rank = 0;
};
inline RankedScore score_ranked(std::span<const std::string> answers, std::span<const std::string> golds) {
    for (std::size_t i = 0; i < std::min<std::size_t>(answers.size(), 5); ++i)
        for (const std::string& gold : golds)
            if (normalized_answer(answers[i]) == normalized_answer(gold))
                return {i == 0 ? 1.0 : 0.0, 1.0, 1.0 / static_cast<double>(i + 1)};
    return {};
}

/// A named piece of a sequence: words [first, last].
struct Entity {
    std::string type;
    std::size_t first = 0, last = 0;
    auto operator<=>(const Entity&) const = default;
};
/// The entities of one sentence's tags such as B-PER, I-PER, O (also E and S), as seqeval reads them: an I without a B
/// begins an entity, too, and so does another type.
inline std::vector<Entity> entities_of(std::span<const std::string> tags) {
    std::vector<Entity> out;
    char before = 'O';
    std::string type_before;
    std::size_t first = 0;
    for (std::size_t i = 0; i <= tags.size(); ++i) {
        const std::string_view tag = i < tags.size() ? std::string_view(tags[i]) : "O";
        if (tag.empty()) fail("entities: tag ", i, ": expected one such as B-PER or O, got none");
        const char now = tag[0];
        const std::size_t dash = tag.find('-');
        const std::string type(dash == tag.npos ? tag : tag.substr(dash + 1));
        const auto one_of = [](char c, std::string_view set) { return set.find(c) != set.npos; };
        const bool other = type != type_before;
        const bool ends =
            one_of(before, "ES") || (one_of(before, "BI") && one_of(now, "BSO")) || (before != 'O' && other);
        const bool begins = one_of(now, "BS") || (one_of(before, "ESO") && one_of(now, "EI")) || (now != 'O' && other);
        if (ends) out.push_back({type_before, first, i - 1});
        if (begins) first = i;
        before = now, type_before = type;
    }
    return out;
}

/// Precision, recall and F1 of entities over all sentences, those of whole entities: micro averages as seqeval's.
class EntityScore {
  public:
    void add(std::span<const std::string> gold, std::span<const std::string> predicted) {
        expect_equal("entities: predicted tags", predicted.size(), gold.size());
        const auto a = entities_of(gold), b = entities_of(predicted);
        gold_ += static_cast<double>(a.size()), predicted_ += static_cast<double>(b.size());
        for (const Entity& e : b) right_ += std::find(a.begin(), a.end(), e) != a.end() ? 1 : 0;
    }
    double precision() const { return predicted_ == 0 ? 0 : right_ / predicted_; }
    double recall() const { return gold_ == 0 ? 0 : right_ / gold_; }
    double f1() const { return gold_ + predicted_ == 0 ? 0 : 2 * right_ / (gold_ + predicted_); }

  private:
    double right_ = 0, predicted_ = 0, gold_ = 0;
};

/// An answer's place: tokens [first, last].
struct AnswerSpan {
    index_t first = 0, last = 0;
    float score = 0; // start's and end's logits, added
};
/// Whether x comes before y: by score, then the earlier start, then the shorter.
inline bool better_answer(const AnswerSpan& x, const AnswerSpan& y) {
    return std::tuple(-x.score, x.first, x.last) < std::tuple(-y.score, y.first, y.last);
}
/// The best spans of one window, best first, by the `most` best starts and ends: in `allowed` (1: a token of the
/// context), of up to `longest` tokens. Ties by the earlier start, then the shorter.
inline std::vector<AnswerSpan> best_spans(std::span<const float> start, std::span<const float> end,
                                          std::span<const std::uint8_t> allowed, index_t most = 20,
                                          index_t longest = 30) {
    expect_equal("best_spans: ends", end.size(), start.size());
    expect_equal("best_spans: allowed", allowed.size(), start.size());
    const auto best_of = [&](std::span<const float> logits) {
        std::vector<index_t> places;
        for (std::size_t i = 0; i < logits.size(); ++i) places.push_back(static_cast<index_t>(i));
        const auto score = [&](index_t i) { return logits[static_cast<std::size_t>(i)]; };
        std::stable_sort(places.begin(), places.end(), [&](index_t a, index_t b) { return score(a) > score(b); });
        places.resize(std::min(places.size(), static_cast<std::size_t>(std::max<index_t>(most, 0))));
        return places;
    };
    std::vector<AnswerSpan> out;
    for (const index_t first : best_of(start))
        for (const index_t last : best_of(end)) {
            const auto a = static_cast<std::size_t>(first), b = static_cast<std::size_t>(last);
            if (last >= first && last - first < longest && allowed[a] != 0 && allowed[b] != 0)
                out.push_back({first, last, start[a] + end[b]});
        }
    std::sort(out.begin(), out.end(), better_answer);
    out.resize(std::min(out.size(), static_cast<std::size_t>(std::max<index_t>(most, 0))));
    return out;
}

} // namespace mnemo
