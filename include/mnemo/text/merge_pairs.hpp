// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace mnemo {

/// What two neighbouring symbols become. The smallest `order` is merged first: a rank, or a score negated.
struct PairMerge {
    double order = std::numeric_limits<double>::infinity(); // infinite: the pair stays
    std::int32_t symbol = 0;
};

/// Byte-pair merging of one word: the pair of the smallest order is merged, the leftmost of equal ones, until no pair
/// can be. O(n log n) with n symbols, whatever the word is. Its buffers are kept from word to word.
class PairMerger {
  public:
    /// The symbols that remain of `word`; valid until the next call. `rule(left, right)` gives a PairMerge.
    template <class Rule> std::span<const std::int32_t> merge(std::span<const std::int32_t> word, const Rule& rule) {
        symbols_.assign(word.begin(), word.end());
        const std::size_t n = word.size();
        previous_.resize(n), next_.resize(n);
        heap_.clear();
        for (std::size_t i = 0; i < n; ++i) previous_[i] = i - 1, next_[i] = i + 1;
        for (std::size_t i = 0; i + 1 < n; ++i) offer(i, rule);
        while (!heap_.empty()) {
            std::pop_heap(heap_.begin(), heap_.end(), later);
            const Candidate c = heap_.back();
            heap_.pop_back();
            // Merges nearby may have made the candidate stale; what replaced it was offered then.
            const std::size_t right = next_[c.left];
            if (symbols_[c.left] != c.left_symbol || right >= n || symbols_[right] != c.right_symbol) continue;
            symbols_[c.left] = c.merged;
            symbols_[right] = kGone;
            next_[c.left] = next_[right];
            if (next_[right] < n) {
                previous_[next_[right]] = c.left;
                offer(c.left, rule);
            }
            if (c.left > 0) offer(previous_[c.left], rule);
        }
        symbols_.erase(std::remove(symbols_.begin(), symbols_.end(), kGone), symbols_.end());
        return symbols_;
    }

  private:
    static constexpr std::int32_t kGone = std::numeric_limits<std::int32_t>::min();
    struct Candidate {
        double order;
        std::size_t left;
        std::int32_t left_symbol, right_symbol, merged;
    };
    static bool later(const Candidate& a, const Candidate& b) {
        return a.order != b.order ? a.order > b.order : a.left > b.left;
    }
    template <class Rule> void offer(std::size_t left, const Rule& rule) {
        const std::int32_t a = symbols_[left], b = symbols_[next_[left]];
        const PairMerge merge = rule(a, b);
        if (!(merge.order < std::numeric_limits<double>::infinity())) return;
        heap_.push_back({merge.order, left, a, b, merge.symbol});
        std::push_heap(heap_.begin(), heap_.end(), later);
    }
    std::vector<std::int32_t> symbols_;        // kGone where a symbol became part of the one before
    std::vector<std::size_t> previous_, next_; // of the symbols that remain
    std::vector<Candidate> heap_;
};

} // namespace mnemo
