// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/error.hpp>
#include <mnemo/core/executor.hpp>
#include <mnemo/kernels/score.hpp>
#include <mnemo/kernels/select.hpp>

#include <utility>

namespace mnemo {

namespace detail {

// How a search is cut into tasks: blocks of queries, and parts of the keys where there are more threads than blocks.
struct SearchPlan {
    static constexpr index_t kMostBlock = 64;   // queries that share one pass over the keys
    static constexpr index_t kLeastPart = 4096; // keys that are worth a task
    index_t block, blocks, parts, part_rows;

    SearchPlan(index_t queries, index_t keys, index_t threads) {
        block = std::min(kMostBlock, queries);
        blocks = (queries + block - 1) / block;
        parts = std::clamp<index_t>((threads + blocks - 1) / blocks, 1, std::max<index_t>(keys / kLeastPart, 1));
        part_rows = ((keys + parts - 1) / parts + 63) / 64 * 64; // whole words of erased ids
    }
};

// Buffers of the threads, and the candidates of the queries in work: [blocks][block][parts] where the keys are in
// parts, as there are few blocks then, else [threads][block].
struct SearchScratch {
    std::span<Candidates> candidates;
    std::span<float> scores;       // [threads][block, tile]
    std::span<std::uint64_t> keys; // [threads][2][parts * k]
    index_t tile;                  // keys, in whole words of erased ids
};

// Scores `keys` [first, last) against the block and keeps candidates. c[query * stride].
template <MetricTag MetricT, class T>
void scan_keys(Rows queries, MatrixView<const T> keys, IdSet erased, index_t first, index_t last, float* scores,
               index_t tile, Candidates* c, index_t stride) {
    constexpr auto chunk = static_cast<index_t>(Candidates::kSlack);
    for (index_t begin = first; begin < last; begin += tile) {
        const index_t n = std::min(tile, last - begin);
        score<MetricT, T>(queries, keys.slice(begin, n), nullptr, n, scores, tile);
        for (index_t i = 0; i < n; i += 64) {
            const auto word = static_cast<std::size_t>(begin + i) / 64;
            if (word >= erased.words.size()) break;
            for (std::uint64_t bits = erased.words[word]; bits != 0; bits &= bits - 1) {
                const index_t j = i + std::countr_zero(bits);
                for (index_t q = 0; q < queries.rows && j < n; ++q)
                    scores[q * tile + j] = -std::numeric_limits<float>::infinity();
            }
        }
        for (index_t q = 0; q < queries.rows; ++q) {
            Candidates& mine = c[q * stride];
            for (index_t i = 0; i < n; i += chunk) {
                const auto count = static_cast<std::size_t>(std::min(chunk, n - i));
                if (!mine.has_room_for(count)) mine.raise();
                if (!mine.has_room_for(count)) mine.cut();
                mine.append(scores + q * tile + i, count, static_cast<std::uint32_t>(begin + i));
            }
        }
    }
}

} // namespace detail

/// The k nearest keys by canonical score (kernels/score.hpp): best first, ties by lower id, erased entries left out. A
/// row holds fewer hits where the store has fewer entries; a key at -inf (its score overflowed) or a query with a NaN
/// finds nothing there. The result does not depend on the executor, the batch or the instruction set.
/// Handed its Hits back it allocates nothing once it has seen the batch size. Stores of up to 2^32 - 1 entries.
template <MetricTag MetricT, Executor X = Serial> struct Exact {
    index_t k = 1024;
    [[no_unique_address]] X executor{};

    Hits retrieve(const KeyedStore auto& store, Rows queries) const { return retrieve(store, queries, Hits{}); }

    Hits retrieve(const KeyedStore auto& store, Rows queries, Hits hits) const {
        const KeyRows keys = store.keys();
        expect_equal("Exact: width of the queries", queries.cols, keys.cols);
        if (k < 0) fail("Exact: expected k >= 0, got ", k);
        if (keys.rows >= index_t{1} << 32) fail("Exact: expected fewer than 2^32 entries, got ", keys.rows);
        const index_t width = std::min(k, keys.rows);
        hits.resize(queries.rows, width);
        if (width > 0 && queries.rows > 0)
            keys.visit([&](auto typed) { search(queries, typed, erased_ids(store), width, hits); });
        return hits;
    }

  private:
    template <class T>
    void search(Rows queries, MatrixView<const T> keys, IdSet erased, index_t width, Hits& hits) const {
        const index_t threads = executor.threads();
        const detail::SearchPlan plan(queries.rows, keys.rows, threads);
        detail::SearchScratch scratch = prepare<T>(plan, threads, keys, width, hits.scratch());
        const auto block_rows = [&](index_t block) {
            const index_t first = block * plan.block;
            return queries.slice(first, std::min(plan.block, queries.rows - first));
        };
        // Candidates of block b: [query][part].
        const auto candidates = [&](index_t block, index_t thread) {
            const index_t place = plan.parts > 1 ? block : thread;
            return scratch.candidates.subspan(static_cast<std::size_t>(place * plan.block * plan.parts),
                                              static_cast<std::size_t>(plan.block * plan.parts));
        };
        const auto scan = [&](index_t block, index_t part, index_t thread) {
            const Rows mine = block_rows(block);
            Candidates* c = candidates(block, thread).data() + part;
            for (index_t q = 0; q < mine.rows; ++q) c[q * plan.parts].restart();
            const index_t first = part * plan.part_rows, last = std::min(first + plan.part_rows, keys.rows);
            float* scores = scratch.scores.data() + thread * plan.block * scratch.tile;
            detail::scan_keys<MetricT, T>(mine, keys, erased, first, last, scores, scratch.tile, c, plan.parts);
        };
        const auto finish = [&](index_t block, index_t thread) {
            const auto c = candidates(block, thread);
            const auto parts = static_cast<std::size_t>(plan.parts), room = parts * static_cast<std::size_t>(width);
            const auto sorting = scratch.keys.subspan(static_cast<std::size_t>(thread) * 2 * room, 2 * room);
            for (index_t q = 0; q < block_rows(block).rows; ++q) {
                const index_t row = block * plan.block + q;
                const std::size_t n =
                    write_best(c.subspan(static_cast<std::size_t>(q) * parts, parts), sorting.first(room),
                               sorting.subspan(room), hits.room_for_ids(row), hits.room_for_scores(row));
                hits.set_size(row, static_cast<index_t>(n));
            }
        };
        if (plan.parts == 1)
            executor.run(plan.blocks, [&](index_t block, index_t thread) {
                scan(block, 0, thread);
                finish(block, thread);
            });
        else {
            executor.run(plan.blocks * plan.parts,
                         [&](index_t task, index_t thread) { scan(task / plan.parts, task % plan.parts, thread); });
            executor.run(plan.blocks, finish);
        }
    }

    template <class T>
    static detail::SearchScratch prepare(const detail::SearchPlan& plan, index_t threads, MatrixView<const T> keys,
                                         index_t width, Arena& arena) {
        constexpr index_t cached = 1 << 17; // bytes of keys that stay near while a block of queries passes
        detail::SearchScratch s;
        s.tile =
            std::clamp<index_t>(cached / std::max<index_t>(keys.cols * static_cast<index_t>(sizeof(T)), 1), 64, 1024) /
            64 * 64;
        arena.reset();
        s.scores = arena.take<float>(static_cast<std::size_t>(threads * plan.block * s.tile));
        s.keys = arena.take<std::uint64_t>(static_cast<std::size_t>(threads * 2 * plan.parts * width));
        const index_t places = plan.parts > 1 ? plan.blocks : threads;
        s.candidates = arena.take<Candidates>(static_cast<std::size_t>(places * plan.block * plan.parts));
        for (Candidates& c : s.candidates)
            c = Candidates::in(arena, static_cast<std::size_t>(width), static_cast<std::size_t>(plan.part_rows));
        return s;
    }
};
static_assert(Retriever<Exact<L2>> && Retriever<Exact<InnerProduct, Threads>> && Retriever<Exact<Cosine>>);

} // namespace mnemo
