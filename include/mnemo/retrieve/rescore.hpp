// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/error.hpp>
#include <mnemo/core/executor.hpp>
#include <mnemo/kernels/score.hpp>

#include <algorithm>
#include <utility>

namespace mnemo {

/// What `inner` finds, with exact scores from the store's keys (kernels/score.hpp): best first, ties by lower id.
/// Missing ids, erased entries and keys at -inf or NaN are left out; an id the store does not have is an error. An
/// approximate index finds candidates well and ranks them worse: re-scoring is cheap beside the search.
template <class RetrieverT, MetricTag MetricT, Executor X = Serial> struct Rescored {
    RetrieverT inner;
    [[no_unique_address]] X executor{};

    template <KeyedStore S>
        requires RetrieverFor<RetrieverT, S, Rows>
    Hits retrieve(const S& store, Rows queries) const {
        return retrieve(store, queries, Hits{});
    }
    template <KeyedStore S>
        requires RetrieverFor<RetrieverT, S, Rows>
    Hits retrieve(const S& store, Rows queries, Hits hits) const {
        if constexpr (std::same_as<recall_t<RetrieverT, S, Rows>, Hits>) {
            hits = retrieve_into(inner, store, queries, std::move(hits));
        } else {
            const auto found = inner.retrieve(store, queries);
            hits.clear();
            for (index_t row = 0; row < found.rows(); ++row) {
                for_each_hit(found, row, [&](index_t id, float score) { hits.push(id, score); });
                hits.end_row();
            }
        }
        rescore(store.keys(), erased_ids(store), queries, hits);
        return hits;
    }

  private:
    struct Scored {
        float score;
        index_t id;
    };
    void rescore(const KeyRows& keys, IdSet erased, Rows queries, Hits& hits) const {
        expect_equal("Rescored: width of the queries", queries.cols, keys.cols);
        expect_equal("Rescored: rows that were recalled", hits.rows(), queries.rows);
        std::size_t longest = 0;
        for (index_t row = 0; row < hits.rows(); ++row) {
            longest = std::max(longest, hits.ids(row).size());
            for (const index_t id : hits.ids(row))
                if (id >= keys.rows) fail("Rescored: expected ids below ", keys.rows, ", got ", id);
        }
        hits.scratch().reset(); // the inner retriever is done with it
        const auto buffers =
            hits.scratch().template take<Scored>(longest * static_cast<std::size_t>(executor.threads()));
        executor.run(hits.rows(), [&](index_t row, index_t thread) {
            const auto buffer = buffers.subspan(longest * static_cast<std::size_t>(thread), longest);
            const auto ids = hits.room_for_ids(row).first(hits.ids(row).size());
            const auto scores = hits.scores(row);
            for (index_t& id : ids)
                if (id >= 0 && erased.contains(id)) id = detail::kMissing;
            score_ids<MetricT>(queries[row], keys, ids, scores);
            std::size_t n = 0;
            for (std::size_t j = 0; j < ids.size(); ++j)
                if (scores[j] >= std::numeric_limits<float>::lowest()) buffer[n++] = {scores[j], ids[j]};
            std::sort(buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(n),
                      [](Scored a, Scored b) { return a.score != b.score ? a.score > b.score : a.id < b.id; });
            for (std::size_t j = 0; j < n; ++j) scores[j] = buffer[j].score, ids[j] = buffer[j].id;
            hits.set_size(row, static_cast<index_t>(n));
        });
    }
};

} // namespace mnemo
