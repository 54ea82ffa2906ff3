// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/error.hpp>
#include <mnemo/store/tokens.hpp>
#include <mnemo/store/weighted.hpp>

#include <cmath>
#include <utility>
#include <vector>

namespace mnemo {

/// What `inner` finds, with temperature * log weight added to each score: an entry that stands for n equal ones then
/// counts as often as they would have. `temperature` is that of the votes.
template <class RetrieverT> struct Weighted {
    RetrieverT inner;
    float temperature = 1;

    template <WeightedStore S, class Queries>
        requires RetrieverFor<RetrieverT, S, Queries>
    Hits retrieve(const S& store, const Queries& queries) const {
        const auto found = inner.retrieve(store, queries);
        Hits out;
        for (index_t row = 0; row < found.rows(); ++row) {
            for_each_hit(found, row,
                         [&](index_t id, float score) { out.push(id, score + temperature * store.log_weight(id)); });
            out.end_row();
        }
        return out;
    }
};

/// Which entries stay, and the log of how many each stands for.
struct MergedEntries {
    std::vector<index_t> kept;
    std::vector<float> log_weights; // [kept]
};

/// Greedy merging (He, Neubig, Berg-Kirkpatrick 2021, section 4.3): an entry takes in those of its nearest neighbours
/// that predict the same token and were neither taken in nor have taken in others. `retriever` says how many neighbours
/// are looked at. In the store's order; erased entries are dropped.
template <KeyedStore S, class R>
    requires TokenValued<S> && RetrieverFor<R, S, Rows>
MergedEntries merge_entries(const S& store, const R& retriever, index_t rows_at_a_time = 256) {
    const index_t n = store.size();
    std::vector<index_t> weight(static_cast<std::size_t>(n), 1); // 0: taken in
    const IdSet erased = erased_ids(store);
    Matrix rows;
    for (index_t first = 0; first < n; first += rows_at_a_time) {
        rows = Matrix(std::min(rows_at_a_time, n - first), store.key_dim());
        for (index_t i = 0; i < rows.rows; ++i) KeyRows(store.keys()).read(first + i, rows[i]);
        const auto found = retriever.retrieve(store, Rows(rows));
        for (index_t i = 0; i < rows.rows; ++i) {
            const index_t id = first + i;
            index_t& mine = weight[static_cast<std::size_t>(id)];
            if (erased.contains(id)) mine = 0;
            if (mine == 0) continue;
            for_each_hit(found, i, [&](index_t other, float) {
                index_t& its = weight[static_cast<std::size_t>(other)];
                if (other != id && its == 1 && !erased.contains(other) && store.value(other) == store.value(id))
                    its = 0, ++mine;
            });
        }
    }
    MergedEntries out;
    for (index_t id = 0; id < n; ++id)
        if (const index_t w = weight[static_cast<std::size_t>(id)]; w > 0) {
            out.kept.push_back(id);
            out.log_weights.push_back(static_cast<float>(std::log(static_cast<double>(w))));
        }
    return out;
}

/// The entries `ids` of a store, by themselves.
template <KeyElement Key = float, KeyedStore S>
    requires TokenValued<S>
TokenStore<Key> gather_entries(const S& store, std::span<const index_t> ids) {
    TokenStore<Key> out(store.key_dim());
    out.reserve(static_cast<index_t>(ids.size()));
    Matrix key(1, store.key_dim());
    for (const index_t id : ids) {
        if (id < 0 || id >= store.size()) fail("gather_entries: expected ids below ", store.size(), ", got ", id);
        KeyRows(store.keys()).read(id, key[0]);
        const auto value = static_cast<std::int32_t>(store.value(id));
        out.append(key, std::span(&value, 1));
    }
    return out;
}

} // namespace mnemo
