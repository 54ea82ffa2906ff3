// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/core/matrix_view.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <span>
#include <string>
#include <vector>

namespace mnemo {

/// One document that a query found.
struct Bm25Hit {
    index_t id = 0;
    double score = 0; // rounded to four decimals
};

/// Ranking of short documents by shared words, scored as Lucene does it: the sum over the query's words of
///     qtf * idf * tf / (tf + k1 (1 - b + b len / average len)),   idf = ln(1 + (N - df + 1/2) / (df + 1/2))
/// with document lengths kept in one byte. Words are ids; which of them are stop words or one stem is the caller's.
/// Queries may have any number of words. Searching is const and re-entrant.
class Bm25Index {
  public:
    struct Options {
        double k1 = 0.9, b = 0.4;
    };
    /// `words` of all documents one after another, `sizes` of each. Throws Error for negative words or other sizes.
    Bm25Index(std::span<const std::int32_t> words, std::span<const index_t> sizes, Options options)
        : documents_(static_cast<index_t>(sizes.size())) {
        if (documents_ > std::int64_t{1} << 31) fail("Bm25Index: expected at most 2^31 documents, got ", documents_);
        std::int32_t last = -1;
        for (const std::int32_t word : words) {
            if (word < 0) fail("Bm25Index: expected words of at least 0, got ", word);
            last = std::max(last, word);
        }
        std::size_t total = 0;
        for (const index_t size : sizes) {
            if (size < 0 || static_cast<std::size_t>(size) > words.size() - total)
                fail("Bm25Index: expected sizes that sum to ", words.size(), " words");
            total += static_cast<std::size_t>(size);
        }
        if (total != words.size()) fail("Bm25Index: expected sizes that sum to ", words.size(), " words, got ", total);

        // Postings of each word, documents in order: counted first, filled second.
        offsets_.assign(static_cast<std::size_t>(last) + 2, 0);
        std::vector<std::int32_t> sorted;
        const auto each_document = [&](auto&& f) {
            std::size_t at = 0;
            for (std::size_t d = 0; d < sizes.size(); ++d) {
                sorted.assign(words.begin() + static_cast<std::ptrdiff_t>(at),
                              words.begin() + static_cast<std::ptrdiff_t>(at + static_cast<std::size_t>(sizes[d])));
                at += sorted.size();
                std::sort(sorted.begin(), sorted.end());
                for (std::size_t i = 0, j = 0; i < sorted.size(); i = j) {
                    while (j < sorted.size() && sorted[j] == sorted[i]) ++j;
                    f(d, static_cast<std::size_t>(sorted[i]), j - i);
                }
            }
        };
        each_document([&](std::size_t, std::size_t word, std::size_t) { ++offsets_[word + 1]; });
        std::partial_sum(offsets_.begin(), offsets_.end(), offsets_.begin());
        postings_.resize(offsets_.back());
        const double average = documents_ > 0 ? static_cast<double>(total) / static_cast<double>(documents_) : 1;
        std::vector<std::size_t> next(offsets_.begin(), offsets_.end() - 1);
        each_document([&](std::size_t d, std::size_t word, std::size_t count) {
            const double tf = static_cast<double>(count), df = frequency(word), n = static_cast<double>(documents_);
            const double length = static_cast<double>(kept_length(sizes[d]));
            const double idf = std::log(1 + (n - df + 0.5) / (df + 0.5));
            const double norm = options.k1 * (1 - options.b + options.b * length / average);
            postings_[next[word]++] = {static_cast<std::uint32_t>(d), static_cast<float>(idf * tf / (tf + norm))};
        });
    }
    Bm25Index(std::span<const std::int32_t> words, std::span<const index_t> sizes)
        : Bm25Index(words, sizes, Options{}) {}

    index_t size() const { return documents_; }

    /// Buffers of a search, to be kept from query to query; one for each thread.
    struct Scratch {
        std::vector<double> scores; // of all documents; 0 between searches
        std::vector<std::uint32_t> touched;
        std::vector<std::int32_t> words;
    };
    /// The best `top` documents that share a word with the query, best first. Equal scores are ordered by the ids as
    /// text, as the reference's index does: 15 before 3.
    std::vector<Bm25Hit> search(std::span<const std::int32_t> query, index_t top, Scratch& scratch) const {
        auto& [scores, touched, words] = scratch;
        scores.resize(static_cast<std::size_t>(documents_), 0.0);
        touched.clear();
        words.assign(query.begin(), query.end());
        std::sort(words.begin(), words.end());
        for (std::size_t i = 0, j = 0; i < words.size(); i = j) {
            while (j < words.size() && words[j] == words[i]) ++j;
            const auto word = static_cast<std::size_t>(words[i]);
            if (words[i] < 0 || word + 1 >= offsets_.size()) continue;
            const double count = static_cast<double>(j - i);
            for (std::size_t p = offsets_[word]; p < offsets_[word + 1]; ++p) {
                const auto [document, weight] = postings_[p];
                if (scores[document] == 0) touched.push_back(document);
                scores[document] += count * double{weight};
            }
        }
        std::vector<Bm25Hit> hits;
        hits.reserve(touched.size());
        for (const std::uint32_t d : touched) {
            hits.push_back({static_cast<index_t>(d), std::round(scores[d] * 1e4) / 1e4});
            scores[d] = 0;
        }
        const auto kept = std::min(hits.size(), static_cast<std::size_t>(std::max<index_t>(top, 0)));
        std::partial_sort(hits.begin(), hits.begin() + static_cast<std::ptrdiff_t>(kept), hits.end(),
                          [](const Bm25Hit& a, const Bm25Hit& b) {
                              return a.score != b.score ? a.score > b.score
                                                        : std::to_string(a.id) < std::to_string(b.id);
                          });
        hits.resize(kept);
        return hits;
    }

  private:
    struct Posting {
        std::uint32_t document;
        float weight; // all of the score but the query's count
    };
    double frequency(std::size_t word) const { return static_cast<double>(offsets_[word + 1] - offsets_[word]); }
    /// Lengths as Lucene keeps them: exact below 40, above with four significant bits beyond 24.
    static index_t kept_length(index_t length) {
        if (length < 40) return length;
        const auto rest = static_cast<std::uint64_t>(length - 24);
        const int drop = static_cast<int>(std::bit_width(rest)) - 4;
        return 24 + static_cast<index_t>(rest >> drop << drop);
    }

    index_t documents_;
    std::vector<std::size_t> offsets_; // [words + 1], into postings_
    std::vector<Posting> postings_;
};

/// Python's random.Random(seed).shuffle, for orders that the reference's scripts wrote (MT19937, Matsumoto and
/// Nishimura 1998, seeded by array).
class PythonShuffle {
  public:
    explicit PythonShuffle(std::uint32_t seed) {
        state_[0] = 19650218u;
        for (std::uint32_t i = 1; i < kSize; ++i) state_[i] = 1812433253u * (state_[i - 1] ^ (state_[i - 1] >> 30)) + i;
        const auto mixed = [&](std::uint32_t i, std::uint32_t by) {
            return state_[i] ^ ((state_[i - 1] ^ (state_[i - 1] >> 30)) * by);
        };
        std::uint32_t i = 1;
        const auto step = [&] {
            if (++i >= kSize) state_[0] = state_[kSize - 1], i = 1;
        };
        for (std::uint32_t k = 0; k < kSize; ++k) state_[i] = mixed(i, 1664525u) + seed, step();
        for (std::uint32_t k = 0; k + 1 < kSize; ++k) state_[i] = mixed(i, 1566083941u) - i, step();
        state_[0] = 0x80000000u;
    }
    template <class T> void operator()(std::vector<T>& items) {
        for (std::size_t i = items.size(); i-- > 1;) std::swap(items[i], items[below(i + 1)]);
    }

  private:
    static constexpr std::uint32_t kSize = 624, kShift = 397;
    std::size_t below(std::size_t n) {
        const int bits = static_cast<int>(std::bit_width(n));
        if (bits > 32) fail("shuffle: expected at most 2^32 - 1 items, got ", n);
        for (;;)
            if (const std::size_t drawn = draw() >> (32 - bits); drawn < n) return drawn;
    }
    std::uint32_t draw() {
        if (at_ == kSize) {
            for (std::uint32_t i = 0; i < kSize; ++i) {
                const std::uint32_t y = (state_[i] & 0x80000000u) | (state_[(i + 1) % kSize] & 0x7fffffffu);
                state_[i] = state_[(i + kShift) % kSize] ^ (y >> 1) ^ ((y & 1u) != 0 ? 0x9908b0dfu : 0u);
            }
            at_ = 0;
        }
        std::uint32_t y = state_[at_++];
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c5680u;
        y ^= (y << 15) & 0xefc60000u;
        return y ^ (y >> 18);
    }
    std::uint32_t state_[kSize];
    std::uint32_t at_ = kSize;
};

/// 0 .. n - 1 in the order of random.seed(seed); random.shuffle(...).
inline std::vector<index_t> python_shuffle(index_t n, std::uint32_t seed) {
    std::vector<index_t> ids(static_cast<std::size_t>(n));
    std::iota(ids.begin(), ids.end(), index_t{0});
    PythonShuffle shuffle(seed);
    shuffle(ids);
    return ids;
}

/// All segments in an order in which like follows like: after each its best neighbour that is not used yet, else the
/// next unused one of a shuffled list. `neighbours` lists ids of each segment, best first; the first of each list,
/// normally the segment itself, is passed over. `match` = false is the reference's script for language models, which
/// compares texts with numbers, finds nothing and writes the shuffled list itself.
inline std::vector<index_t> chain_neighbours(const std::vector<std::vector<index_t>>& neighbours,
                                             std::uint32_t seed = 1, bool match = true) {
    const auto count = static_cast<index_t>(neighbours.size());
    const std::vector<index_t> shuffled = python_shuffle(count, seed);
    if (!match || count == 0) return shuffled;
    std::vector<bool> used(neighbours.size());
    std::vector<index_t> order;
    order.reserve(neighbours.size());
    const auto take = [&](index_t id) { used[static_cast<std::size_t>(id)] = true, order.push_back(id); };
    take(shuffled[0]);
    for (std::size_t spare = 1; order.size() < neighbours.size();) {
        const auto& list = neighbours[static_cast<std::size_t>(order.back())];
        const std::size_t before = order.size();
        for (std::size_t i = 1; i < list.size() && order.size() == before; ++i) {
            if (list[i] < 0 || list[i] >= count)
                fail("chain_neighbours: expected ids below ", count, ", got ", list[i]);
            if (!used[static_cast<std::size_t>(list[i])]) take(list[i]);
        }
        if (order.size() > before) continue;
        while (used[static_cast<std::size_t>(shuffled[spare])]) ++spare;
        take(shuffled[spare]);
    }
    return order;
}

} // namespace mnemo
