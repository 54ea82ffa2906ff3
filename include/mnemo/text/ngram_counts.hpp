// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/core/matrix_view.hpp>

#include <cmath>
#include <cstdint>
#include <span>
#include <unordered_map>

namespace mnemo {

/// How often the n-grams of a text occur, and by how many different tokens they are followed. N-grams are known by a
/// hash of 64 bits; two that share one are counted as one.
class NgramCounts {
  public:
    /// Counts n-grams of 1 to `order` tokens.
    explicit NgramCounts(index_t order) : order_(order) {
        if (order < 1) fail("NgramCounts: expected an order of at least 1, got ", order);
    }
    index_t order() const { return order_; }

    /// Counts a text; n-grams do not reach from one text into the next.
    void add(std::span<const std::int32_t> text) {
        for (std::size_t end = 1; end <= text.size(); ++end)
            for (index_t n = 1; n <= order_ + 1 && static_cast<std::size_t>(n) <= end; ++n) {
                const auto ngram = text.subspan(end - static_cast<std::size_t>(n), static_cast<std::size_t>(n));
                if (++entries_[hash(ngram)].count == 1 && n > 1)
                    ++entries_[hash(ngram.first(ngram.size() - 1))].fertility;
            }
    }
    index_t count(std::span<const std::int32_t> ngram) const { return find(ngram).count; }
    /// Different tokens that followed.
    index_t fertility(std::span<const std::int32_t> ngram) const { return find(ngram).fertility; }

    /// log(1 + count) and log(1 + fertility) of the last 1 .. order tokens of `context`; 0 where it is shorter.
    /// `frequency`, `fertility` [order].
    void features(std::span<const std::int32_t> context, std::span<float> frequency, std::span<float> fertility) const {
        expect_equal("NgramCounts: features", static_cast<index_t>(frequency.size()), order_);
        expect_equal("NgramCounts: features", static_cast<index_t>(fertility.size()), order_);
        for (std::size_t n = 1; n <= frequency.size(); ++n) {
            const Entry entry = n <= context.size() ? find(context.last(n)) : Entry{};
            frequency[n - 1] = std::log1p(static_cast<float>(entry.count));
            fertility[n - 1] = std::log1p(static_cast<float>(entry.fertility));
        }
    }

  private:
    struct Entry {
        std::uint32_t count = 0, fertility = 0;
    };
    static std::uint64_t hash(std::span<const std::int32_t> ngram) {
        std::uint64_t h = 0x9e3779b97f4a7c15u * (ngram.size() + 1);
        for (const std::int32_t token : ngram) { // splitmix64
            h += 0x9e3779b97f4a7c15u + static_cast<std::uint32_t>(token);
            h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9u;
            h = (h ^ h >> 27) * 0x94d049bb133111ebu;
            h ^= h >> 31;
        }
        return h;
    }
    Entry find(std::span<const std::int32_t> ngram) const {
        const auto found = entries_.find(hash(ngram));
        return found == entries_.end() ? Entry{} : found->second;
    }
    index_t order_;
    std::unordered_map<std::uint64_t, Entry> entries_;
};

} // namespace mnemo
