// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/core/matrix_view.hpp>
#include <mnemo/text/word_characters.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace mnemo {

namespace detail {
inline void replace_all(std::string& s, std::string_view from, std::string_view to) {
    for (std::size_t at = s.find(from); at != std::string::npos; at = s.find(from, at + to.size()))
        s.replace(at, from.size(), to);
}
/// Puts blanks around the parts of each pair of neighbours that `match(left, right)` takes, left to right, no byte
/// twice: what re.sub does with a pattern of two characters.
inline std::string spread_pairs(std::string_view s, bool before, bool between, bool after, auto&& match) {
    std::string out;
    for (std::size_t i = 0; i < s.size(); ++i) {
        if (i + 1 < s.size() && match(s[i], s[i + 1])) {
            if (before) out += ' ';
            out += s[i];
            if (between) out += ' ';
            out += s[++i];
            if (after) out += ' ';
        } else {
            out += s[i];
        }
    }
    return out;
}
} // namespace detail

/// The words of a line as mteval-v13a cuts them, sacreBLEU's default tokenizer ("13a").
inline std::vector<std::string> tokenize_13a(std::string_view line) {
    std::string s(line);
    detail::replace_all(s, "<skipped>", "");
    detail::replace_all(s, "-\n", "");
    std::replace(s.begin(), s.end(), '\n', ' ');
    detail::replace_all(s, "&quot;", "\"");
    detail::replace_all(s, "&amp;", "&");
    detail::replace_all(s, "&lt;", "<");
    detail::replace_all(s, "&gt;", ">");
    std::string spaced(" ");
    for (const char c : s + " ") {
        const bool symbol = (c >= '{' && c <= '~') || (c >= '[' && c <= '`') || (c >= ' ' && c <= '&') ||
                            (c >= '(' && c <= '+') || (c >= ':' && c <= '@') || c == '/';
        if (symbol) spaced += ' ';
        spaced += c;
        if (symbol) spaced += ' ';
    }
    const auto digit = [](char c) { return c >= '0' && c <= '9'; };
    const auto point = [](char c) { return c == '.' || c == ','; };
    // A point or comma stands alone unless digits are on that side; so does a dash behind a digit.
    spaced = detail::spread_pairs(spaced, false, true, true, [&](char a, char b) { return !digit(a) && point(b); });
    spaced = detail::spread_pairs(spaced, true, true, false, [&](char a, char b) { return point(a) && !digit(b); });
    spaced = detail::spread_pairs(spaced, false, true, true, [&](char a, char b) { return digit(a) && b == '-'; });
    std::vector<std::string> words;
    bool in_word = false;
    for (std::string_view rest = spaced; !rest.empty();) {
        const auto [code, size, valid, cut] = next_code_point(rest);
        const bool space = is_python_space(code);
        if (!space && !in_word) words.emplace_back();
        if (!space) words.back() += rest.substr(0, size);
        in_word = !space;
        rest.remove_prefix(size);
    }
    return words;
}

/// BLEU of a corpus, line by line against one reference each (Papineni et al. 2002), as sacreBLEU computes it by
/// default: 13a words, case matters, n-grams up to 4, n-gram orders without a match smoothed exponentially.
class Bleu {
  public:
    static constexpr std::size_t kOrder = 4;

    void add(std::string_view output, std::string_view reference) {
        add(tokenize_13a(output), tokenize_13a(reference));
    }
    /// The same for lines that are words already; words of any ordered type (token ids).
    template <class Word> void add(const std::vector<Word>& output, const std::vector<Word>& reference) {
        output_words_ += output.size(), reference_words_ += reference.size();
        for (std::size_t n = 1; n <= kOrder; ++n) {
            std::map<std::vector<Word>, index_t> known;
            for_each_gram(reference, n, [&](const std::vector<Word>& gram) { ++known[gram]; });
            for_each_gram(output, n, [&](const std::vector<Word>& gram) {
                ++total_[n - 1];
                const auto found = known.find(gram);
                if (found != known.end() && found->second-- > 0) ++correct_[n - 1];
            });
        }
    }

    /// 0 to 100.
    double score() const {
        if (correct_[0] == 0 && correct_[1] == 0 && correct_[2] == 0 && correct_[3] == 0) return 0;
        double log_sum = 0, smoothing = 1;
        for (std::size_t n = 0; n < kOrder; ++n) {
            if (total_[n] == 0) return 0; // nobody wrote a line of four words
            log_sum += std::log(precision(n, smoothing));
        }
        return brevity() * std::exp(log_sum / static_cast<double>(kOrder));
    }
    /// Precision of n-grams in percent, n from 1.
    double precision(std::size_t n) const {
        double smoothing = 1, p = 0;
        for (std::size_t i = 0; i < n; ++i) p = total_.at(i) == 0 ? 0 : precision(i, smoothing);
        return p;
    }
    double brevity() const {
        if (output_words_ >= reference_words_) return 1;
        if (output_words_ == 0) return 0;
        return std::exp(1 - static_cast<double>(reference_words_) / static_cast<double>(output_words_));
    }
    std::size_t output_words() const { return output_words_; }
    std::size_t reference_words() const { return reference_words_; }

  private:
    template <class Word> static void for_each_gram(const std::vector<Word>& words, std::size_t n, auto&& f) {
        for (std::size_t i = 0; i + n <= words.size(); ++i) {
            const auto first = words.begin() + static_cast<std::ptrdiff_t>(i);
            f(std::vector<Word>(first, first + static_cast<std::ptrdiff_t>(n)));
        }
    }
    double precision(std::size_t i, double& smoothing) const {
        const auto total = static_cast<double>(total_[i]);
        if (correct_[i] > 0) return 100 * static_cast<double>(correct_[i]) / total;
        smoothing *= 2;
        return 100 / (smoothing * total);
    }
    std::array<index_t, kOrder> correct_{}, total_{};
    std::size_t output_words_ = 0, reference_words_ = 0;
};

} // namespace mnemo
