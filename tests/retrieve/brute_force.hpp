// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/kernels/score.hpp>

#include <algorithm>
#include <limits>
#include <vector>

struct Hit {
    mnemo::index_t id;
    float score;
    friend bool operator==(const Hit&, const Hit&) = default;
};
using Answer = std::vector<std::vector<Hit>>; // a row a query

inline Answer answer(const mnemo::Hits& hits) {
    Answer out(static_cast<std::size_t>(hits.rows()));
    for (mnemo::index_t row = 0; row < hits.rows(); ++row)
        for (std::size_t j = 0; j < hits.ids(row).size(); ++j)
            out[static_cast<std::size_t>(row)].push_back({hits.ids(row)[j], hits.scores(row)[j]});
    return out;
}

/// Every key's canonical score, sorted whole: by score, then by id.
template <class MetricT> Answer brute_force(const auto& store, mnemo::Rows queries, mnemo::index_t k) {
    Answer out;
    const mnemo::KeyRows keys = store.keys();
    mnemo::Matrix scores(queries.rows, keys.rows);
    mnemo::score_rows<MetricT>(queries, keys, scores);
    for (mnemo::index_t row = 0; row < queries.rows; ++row) {
        std::vector<Hit> all;
        for (mnemo::index_t id = 0; id < keys.rows; ++id)
            if (const float s = scores[row][static_cast<std::size_t>(id)];
                !erased_ids(store).contains(id) && s > -std::numeric_limits<float>::infinity())
                all.push_back({id, s});
        std::sort(all.begin(), all.end(),
                  [](Hit a, Hit b) { return a.score != b.score ? a.score > b.score : a.id < b.id; });
        all.resize(std::min(all.size(), static_cast<std::size_t>(k)));
        out.push_back(all);
    }
    return out;
}
