// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/dist/sharded_datastore.hpp>
#include <mnemo/papers/knn_lm.hpp>

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

namespace mnemo::nn {

/// build_datastore() by all ranks together: each computes the keys of a contiguous part of the batches and appends them
/// to its shard, so that ids are those of one process. All commit after every `commit_every` batches of a rank, and at
/// the end. Goes on where an interrupted run has ended, rank by rank; the batches must be cut as they were.
template <KeyHost H, ProgressReport P = NoProgress>
BuiltDatastore build_datastore(Ranks& ranks, H& host, ContextWindows& windows, ShardedDatastoreWriter& writer,
                               index_t min_context = 0, index_t commit_every = 256, P&& progress = {}) {
    if (commit_every < 1) fail("build_datastore: commit_every: expected at least 1, got ", commit_every);
    const index_t batches = windows.batches(), world = ranks.size();
    const auto first_of = [&](index_t rank) { return batches * rank / world; };
    index_t most = 0; // batches of a rank
    for (index_t r = 0; r < world; ++r) most = std::max(most, first_of(r + 1) - first_of(r));
    const index_t first = first_of(ranks.rank()), last = first_of(ranks.rank() + 1), before = writer.local_size();
    BuiltDatastore built;
    WindowBatch batch;
    windows.rewind();
    for (index_t i = 0; i < first; ++i) windows.next(batch); // no keys are computed for them
    for (index_t i = 0; i < most; ++i) {
        if (first + i < last) {
            windows.next(batch);
            std::vector<std::int32_t> values;
            std::vector<std::pair<index_t, index_t>> pieces; // of the batch's keys: first, count
            const index_t scored = batch.scored();
            mnemo::detail::for_each_kept(batch, min_context, [&](index_t at, std::span<const std::int32_t> of_row) {
                pieces.emplace_back(at, static_cast<index_t>(of_row.size()));
                values.insert(values.end(), of_row.begin(), of_row.end());
            });
            built.skipped += scored - static_cast<index_t>(values.size());
            built.written += static_cast<index_t>(values.size());
            if (built.written > before) { // else an earlier run has written it
                if (built.written - static_cast<index_t>(values.size()) < before)
                    fail("build_datastore: shard ", ranks.rank(), ": expected the ", before,
                         " rows that are there to end with a batch: it was cut differently");
                const Rows keys = host.keys(batch);
                expect_equal("build_datastore: keys of a batch", keys.rows, scored);
                Matrix chosen(static_cast<index_t>(values.size()), keys.cols);
                index_t to = 0;
                for (const auto& [from, n] : pieces)
                    for (index_t row = from; row < from + n; ++row)
                        std::copy(keys[row].begin(), keys[row].end(), chosen[to++].begin());
                writer.append(Rows(chosen), values);
            }
            progress(built.written + built.skipped, static_cast<index_t>(windows.tokens()) / world);
        }
        if (i % commit_every == commit_every - 1) writer.commit();
    }
    writer.commit();
    return built;
}

/// evaluate() by all ranks together, each of which scores its share of the batches with a memory that is spread over
/// them: batch i is rank (i mod ranks)'s. All ranks have the same text, and get the same result: scores are summed in
/// the order of the text, so that every digit is that of a single process.
template <class M, ScoringHost H, WindowSource W, ProgressReport P = NoProgress>
KnnLmScores evaluate(Ranks& ranks, const M& memory, H& host, W& windows, P&& progress = {}) {
    KnnLmScores scores;
    Session<const M, Rows> session(memory);
    std::vector<std::int32_t> targets;
    std::vector<float> log_p; // of the host, then combined
    WindowBatch batch, mine;
    index_t done = 0;
    for (;;) {
        int dealt = 0;
        bool have = false;
        std::vector<std::int64_t> counts; // scored tokens of each rank's batch
        for (; dealt < ranks.size() && windows.next(batch); ++dealt) {
            counts.push_back(batch.scored());
            if (dealt == ranks.rank()) std::swap(batch, mine), have = true;
        }
        if (dealt == 0) return scores;
        counts.resize(static_cast<std::size_t>(ranks.size()), 0);
        targets.clear(), log_p.clear();
        Rows keys(nullptr, 0, memory.store().key_dim());
        if (have) {
            const ScoredTokens scored = mnemo::detail::score_batch(host, mine, targets);
            log_p.assign(scored.log_p.begin(), scored.log_p.end());
            keys = scored.keys;
        }
        const auto n = static_cast<std::int64_t>(log_p.size());
        const at::Tensor both = at::empty({n, 2}, at::kFloat); // host, combined
        for (std::int64_t i = 0; i < n; ++i) both.data_ptr<float>()[2 * i] = log_p[static_cast<std::size_t>(i)];
        session.read(keys, TargetLogProbs{targets, log_p});
        for (std::int64_t i = 0; i < n; ++i) both.data_ptr<float>()[2 * i + 1] = log_p[static_cast<std::size_t>(i)];
        for (const at::Tensor& rows : ranks.gather(both, counts))
            for (std::int64_t i = 0; i < rows.size(0); ++i) {
                scores.host.add(rows.data_ptr<float>()[2 * i]);
                scores.combined.add(rows.data_ptr<float>()[2 * i + 1]);
                ++done;
            }
        progress(done, static_cast<index_t>(windows.tokens()));
    }
}

} // namespace mnemo::nn
