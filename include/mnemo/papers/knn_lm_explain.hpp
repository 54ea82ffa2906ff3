// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/error.hpp>
#include <mnemo/core/recall.hpp>
#include <mnemo/kernels/log_sum_exp.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

namespace mnemo {

/// One thing that was recalled, and what it counted for.
struct Neighbour {
    index_t id;
    std::int32_t token;
    float score, share; // share of the memory's probability; those of a row sum to one
};

/// What was recalled for `row`, best first, with each entry's weight in TokenVotes: why the memory said what it said.
template <AssociativeRecall R, TokenValued S>
std::vector<Neighbour> neighbours(const R& recall, index_t row, const S& store, float temperature) {
    std::vector<Neighbour> out;
    float high = kLogZero;
    for_each_hit(recall, row, [&](index_t id, float score) {
        out.push_back({id, static_cast<std::int32_t>(store.value(id)), score, 0});
        high = std::max(high, score);
    });
    double sum = 0;
    for (const Neighbour& n : out)
        sum += std::exp(static_cast<double>(n.score - high) / static_cast<double>(temperature));
    for (Neighbour& n : out)
        n.share =
            static_cast<float>(std::exp(static_cast<double>(n.score - high) / static_cast<double>(temperature)) / sum);
    std::stable_sort(out.begin(), out.end(), [](const Neighbour& a, const Neighbour& b) { return a.score > b.score; });
    return out;
}

/// Tokens as one line of text: line ends are written \\n. Any tokenizer with `decode`.
inline std::string one_line(const auto& tokenizer, std::span<const std::int32_t> tokens) {
    std::string out;
    for (const char c : tokenizer.decode(tokens)) out += c == '\n' ? std::string("\\n") : std::string(1, c);
    return out;
}

/// The best `count` neighbours as lines "share, score, ...text before -> [token]". The store's entries must stand in
/// the order of their text, as build_datastore writes them: the `context` values before an entry are the text before
/// it.
template <TokenValued S>
std::string explain(const std::vector<Neighbour>& found, const S& store, const auto& tokenizer, std::size_t count = 4,
                    index_t context = 12) {
    std::string out;
    for (std::size_t i = 0; i < std::min(count, found.size()); ++i) {
        const Neighbour& n = found[i];
        std::vector<std::int32_t> before;
        for (index_t id = std::max<index_t>(0, n.id - context); id < n.id; ++id)
            before.push_back(static_cast<std::int32_t>(store.value(id)));
        char figures[64];
        std::snprintf(figures, sizeof figures, "  %5.1f %%  score %8.2f  ", 100 * static_cast<double>(n.share),
                      static_cast<double>(n.score));
        out += text(std::string_view(figures), "...", one_line(tokenizer, before), " -> [",
                    one_line(tokenizer, std::span(&n.token, 1)), "]\n");
    }
    return out;
}

} // namespace mnemo
