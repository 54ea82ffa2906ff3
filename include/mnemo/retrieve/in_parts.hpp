// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/error.hpp>

#include <algorithm>
#include <utility>
#include <vector>

namespace mnemo {

/// Searches a store part by part and keeps the k best of all: what a store larger than memory needs. A store that has
/// `release(first, n)` is told after each part that its keys may leave memory. The result is that of one search.
template <class RetrieverT> struct InParts {
    RetrieverT inner;
    index_t k = 1024;       // hits of a row
    index_t part = 1 << 16; // entries of a part, a multiple of 64

    Hits retrieve(const KeyedStore auto& store, Rows queries) const {
        if (k < 0 || part < 1 || part % 64 != 0)
            fail("InParts: expected k >= 0 and parts of a multiple of 64 entries, got ", k, " and ", part);
        using Best = std::vector<std::pair<float, index_t>>;
        std::vector<Best> best(static_cast<std::size_t>(queries.rows));
        Best both;
        const auto nearer = [](const auto& a, const auto& b) {
            return a.first > b.first || (a.first == b.first && a.second < b.second);
        };
        for (index_t first = 0; first < store.size(); first += part) {
            const Part view{store, first, std::min(part, store.size() - first)};
            const Hits hits = inner.retrieve(view, queries);
            for (index_t row = 0; row < queries.rows; ++row) {
                Best& mine = best[static_cast<std::size_t>(row)];
                const auto ids = hits.ids(row);
                const auto scores = hits.scores(row);
                both.assign(mine.begin(), mine.end());
                for (std::size_t i = 0; i < ids.size(); ++i)
                    both.emplace_back(scores[i], static_cast<index_t>(ids[i]) + first);
                std::inplace_merge(both.begin(), both.begin() + static_cast<std::ptrdiff_t>(mine.size()), both.end(),
                                   nearer);
                mine.assign(both.begin(), both.begin() + std::min<std::ptrdiff_t>(std::ptrdiff_t{k}, std::ssize(both)));
            }
            if constexpr (requires { store.release(first, part); }) store.release(view.first, view.n);
        }
        Hits out;
        for (const Best& row : best) {
            for (const auto& [score, id] : row) out.push(id, score);
            out.end_row();
        }
        return out;
    }

  private:
    template <class S> struct Part {
        using value_type = typename S::value_type;
        const S& store;
        index_t first, n;
        index_t key_dim() const { return store.key_dim(); }
        index_t size() const { return n; }
        value_type value(index_t id) const { return store.value(first + id); }
        auto keys() const { return store.keys().slice(first, n); }
        IdSet erased() const {
            if constexpr (MarksErased<S>) {
                const auto words = store.erased().words;
                const auto from = std::min(static_cast<std::size_t>(first) / 64, words.size());
                return {words.subspan(from, std::min(words.size() - from, static_cast<std::size_t>(n + 63) / 64))};
            }
            return {};
        }
    };
    template <class S> Part(const S&, index_t, index_t) -> Part<S>;
};

} // namespace mnemo
