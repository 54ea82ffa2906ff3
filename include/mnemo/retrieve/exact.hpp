// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/error.hpp>
#include <mnemo/core/executor.hpp>
#include <mnemo/kernels/choose_format.hpp>
#include <mnemo/kernels/filter.hpp>
#include <mnemo/kernels/score.hpp>
#include <mnemo/kernels/select.hpp>
#include <mnemo/retrieve/score_candidates.hpp>

#include <algorithm>
#include <memory>
#include <utility>

namespace mnemo {

namespace detail {

// The packed copy of a store that keeps one for this metric and this machine, or an empty one.
template <MetricTag MetricT> PackedView packed_of(const auto& store) {
    if constexpr (requires { PackedView(store.packed()); }) {
        const PackedView packed = store.packed();
        if (packed.metric == MetricT::metric && packed.d == store.key_dim() && packed.rows <= store.size() &&
            packed.runs_here())
            return packed;
    }
    return {};
}

// How a search is cut into tasks: blocks of queries, and parts of the keys where there are more threads than blocks.
// Filtered blocks are large, because each reads the keys anew.
struct SearchPlan {
    static constexpr index_t kLeastPart = 4096;                      // keys that are worth a task
    static constexpr index_t kLeastFiltered = 16, kLeastFloat = 128; // queries that are worth packing the keys
    static constexpr index_t kLeastKeys = 512;                       // ... or worth a filter
    static constexpr index_t kMostFiltered = 1024;
    static constexpr index_t kDirect = 64; // queries that share one pass over the keys
    bool filtered;
    index_t threads, block, blocks, parts, part_rows;

    SearchPlan(index_t queries, index_t keys, index_t k, index_t threads_, bool has_filter, bool packed)
        : threads(threads_) {
        filtered = has_filter && keys / 4 >= k && keys >= kLeastKeys && (packed || queries >= kLeastFiltered);
        const index_t most = filtered ? std::clamp<index_t>(queries / threads, kDirect, kMostFiltered) : kDirect;
        block = std::min(most, queries);
        blocks = (queries + block - 1) / block;
        parts = std::clamp<index_t>((threads + blocks - 1) / blocks, 1, std::max<index_t>(keys / kLeastPart, 1));
        constexpr index_t whole = 192; // words of erased ids and panels
        part_rows = ((keys + parts - 1) / parts + whole - 1) / whole * whole;
    }
};

// One search: everything that its tasks share. Buffers come from the arena of the hits.
template <MetricTag MetricT, class T> class ExactSearch {
  public:
    ExactSearch(Rows queries, MatrixView<const T> keys, const PackedView& packed, IdSet erased, index_t k,
                index_t threads, Hits& hits)
        : queries_(queries), keys_(keys), packed_(packed), erased_(erased), hits_(hits),
          plan_(queries.rows, keys.rows, k, threads, Filter<MetricT>::available(keys.cols), packed.rows > 0) {
        constexpr index_t cached = 1 << 17; // bytes of keys that stay near while a block of queries passes
        const index_t row_bytes = std::max<index_t>(keys.cols * static_cast<index_t>(sizeof(T)), 1);
        tile_ = std::clamp<index_t>(cached / row_bytes, 64, 1024) / 64 * 64;
        Arena& arena = hits.scratch();
        arena.reset();
        const std::size_t capacity = Candidates::capacity_for(size(k), size(plan_.part_rows));
        scores_a_thread_ = std::max(size(plan_.block * tile_), capacity);
        ranks_a_thread_ = std::max(size(plan_.parts * k), capacity);
        scores_ = arena.take<float>(size(threads) * scores_a_thread_);
        ranks_ = arena.take<std::uint64_t>(size(threads) * 2 * ranks_a_thread_);
        cursors_ = arena.take<std::size_t>(size(threads * plan_.block));
        const index_t places = plan_.parts > 1 ? plan_.blocks : threads;
        candidates_ = arena.take<Candidates>(size(places * plan_.block * plan_.parts));
        for (Candidates& c : candidates_) c = Candidates::in(arena, size(k), size(plan_.part_rows));
        if constexpr (MNEMO_X86) {
            if (plan_.filtered) {
                filters_ = arena.take<Filter<MetricT>>(size(threads));
                for (Filter<MetricT>& f : filters_) std::construct_at(&f, arena, plan_.block, keys.cols);
                if (packed.rows > 0) {
                    centre_ = packed.centre, format_ = packed.format;
                } else {
                    const auto mean = arena.take<float>(size(keys.cols));
                    mean_of<MetricT>(keys, mean);
                    centre_ = mean.data();
                    choose_format();
                }
            }
        }
    }

    void run(const Executor auto& executor) {
        if (plan_.parts == 1)
            return executor.run(plan_.blocks, [this](index_t block, index_t thread) {
                find(block, 0, thread);
                finish(block, thread);
            });
        executor.run(plan_.blocks * plan_.parts,
                     [this](index_t task, index_t thread) { find(task / plan_.parts, task % plan_.parts, thread); });
        executor.run(plan_.blocks, [this](index_t block, index_t thread) { finish(block, thread); });
    }

  private:
    static std::size_t size(index_t n) { return static_cast<std::size_t>(n); }

    Rows block_rows(index_t block) const {
        const index_t first = block * plan_.block;
        return queries_.slice(first, std::min(plan_.block, queries_.rows - first));
    }
    // [query][part] of a block. With keys in parts all blocks are in work at once; else each thread has one.
    std::span<Candidates> candidates(index_t block, index_t thread) const {
        const index_t place = plan_.parts > 1 ? block : thread;
        return candidates_.subspan(size(place * plan_.block * plan_.parts), size(plan_.block * plan_.parts));
    }
    float* scores(index_t thread) const { return scores_.data() + size(thread) * scores_a_thread_; }
    std::size_t* cursors(index_t thread) const { return cursors_.data() + thread * plan_.block; }
    std::span<std::uint64_t> ranks(index_t thread, std::size_t which) const {
        return ranks_.subspan((2 * size(thread) + which) * ranks_a_thread_, ranks_a_thread_);
    }

    void choose_format() {
        constexpr index_t most_queries = 8;
        const index_t every = std::max<index_t>(queries_.rows / most_queries, 1);
        const Rows some(queries_.data, std::min(queries_.rows, most_queries), queries_.cols, queries_.stride * every);
        format_ = mnemo::choose_format<MetricT, T>(filters_.front(), some, keys_, centre_, candidates_);
        plan_.filtered = format_ != FilterFormat::float32 || queries_.rows >= SearchPlan::kLeastFloat;
    }

    // Leaves exact scores of the part's candidates, the k best among them.
    void find(index_t block, index_t part, index_t thread) {
        const Rows rows = block_rows(block);
        Candidates* c = candidates(block, thread).data() + part;
        const index_t first = part * plan_.part_rows, last = std::min(first + plan_.part_rows, keys_.rows);
        const auto restart = [&] {
            for (index_t q = 0; q < rows.rows; ++q) c[q * plan_.parts].restart();
        };
        restart();
        if (plan_.filtered && filter(rows, first, last, c, thread)) return;
        restart();
        score_all(rows, first, last, c, thread);
    }

    bool filter([[maybe_unused]] Rows rows, [[maybe_unused]] index_t first, [[maybe_unused]] index_t last,
                [[maybe_unused]] Candidates* c, [[maybe_unused]] index_t thread) {
        if constexpr (MNEMO_X86) {
            Filter<MetricT>& filter = filters_[size(thread)];
            const Sample sample(c->k);
            const index_t parts = sample.pays(rows.rows, last - first, c->k) ? sample.parts(c->k) : 1;
            if (!filter.use(rows, format_, centre_)) return false;
            if (!guess_thresholds(rows, first, last, c, thread) || !scan(rows, first, last, c, thread, 1, parts))
                return false;
            score_likely(rows, first, last, c, thread);
            // A guess that was too high: those queries again, without.
            for (index_t q = 0; q < rows.rows; q += kGroup) {
                const index_t n = std::min(kGroup, rows.rows - q);
                Candidates* mine = c + q * plan_.parts;
                bool settled = true;
                for (index_t i = 0; i < n; ++i) settled = mine[i * plan_.parts].settle() && settled;
                if (settled) continue;
                for (index_t i = 0; i < n; ++i) mine[i * plan_.parts].restart();
                if (!filter.use(rows.slice(q, n), format_, centre_) ||
                    !scan(rows.slice(q, n), first, last, mine, thread))
                    return false;
                score_likely(rows.slice(q, n), first, last, mine, thread);
                for (index_t i = 0; i < n; ++i) mine[i * plan_.parts].settle();
            }
            score_candidates<MetricT, T>(rows, keys_, first, last, c, plan_.parts, true, cursors(thread));
            for (index_t q = 0; q < rows.rows; ++q) c[q * plan_.parts].threshold = kLowest; // it was one of bounds
        }
        return true;
    }
    void score_likely(Rows rows, index_t first, index_t last, Candidates* c, index_t thread) const {
        for (index_t q = 0; q < rows.rows; ++q) c[q * plan_.parts].split(ranks(thread, 0));
        score_candidates<MetricT, T>(rows, keys_, first, last, c, plan_.parts, false, cursors(thread));
    }

    // The first pass over keys [first, last), packed before as far as they are, for queries in use. After each but the
    // last of so many parts of them, a power of two, the k best so far give a guess.
    bool scan(Rows rows, index_t first, index_t last, Candidates* c, index_t thread, index_t step = 1,
              index_t parts = 1) {
        Filter<MetricT>& filter = filters_[size(thread)];
        const auto full = [&](index_t q) {
            detail::cut_exactly<MetricT, T>(rows[q], keys_, c[q * plan_.parts], scores(thread), ranks(thread, 0),
                                            ranks(thread, 1));
        };
        for (index_t begin = first; begin < last; parts /= 2) {
            const index_t end = parts <= 1 ? last : first + (last - first) / parts / kPanel * kPanel;
            const index_t middle = std::clamp(packed_.rows, begin, end);
            if (middle > begin && !filter.scan(packed_, erased_, begin, middle, c, plan_.parts, full, step))
                return false;
            if (end > middle && !filter.scan(keys_, erased_, middle, end, c, plan_.parts, full, step)) return false;
            begin = end;
            for (index_t q = 0; q < rows.rows; ++q)
                end < last ? c[q * plan_.parts].guess() : c[q * plan_.parts].raise(0);
        }
        return true;
    }

    // Thresholds to start with are guessed from every step-th panel: the score that `best` of them reach. Most keys
    // then never become candidates.
    struct Sample {
        index_t step;
        std::size_t best;

        // Of the k best so many are expected in the sample, give or take the root: with this many more one query in
        // some ten thousand has a guess that is too high.
        explicit Sample(std::size_t k) : step(k < 128 ? 16 : 32) {
            const auto expected = static_cast<float>(k) / static_cast<float>(step);
            best = static_cast<std::size_t>(expected + 4 * std::sqrt(expected) + 3);
        }
        bool pays(index_t queries, index_t keys, std::size_t k) const {
            return queries >= kGroup && keys >= 16 * step * kPanel && size(keys) >= 8 * k;
        }
        // Parts of the keys after which the k best so far are a better guess.
        index_t parts(std::size_t k) const {
            index_t n = 1;
            while (8 * k * size(n) <= 3 * best * size(step)) n *= 2;
            return n;
        }
    };
    // False where the filter fails.
    bool guess_thresholds(Rows rows, index_t first, index_t last, Candidates* c, index_t thread) {
        const std::size_t k = c->k;
        const Sample sample(k);
        if (!sample.pays(rows.rows, last - first, k)) return true;
        for (index_t q = 0; q < rows.rows; ++q) c[q * plan_.parts].k = sample.best;
        const bool done = scan(rows, first, last, c, thread, sample.step);
        for (index_t q = 0; q < rows.rows; ++q) {
            Candidates& mine = c[q * plan_.parts];
            mine.restart_with(mine.proven ? mine.estimate() : kLowest);
            mine.k = k;
        }
        return done;
    }

    void score_all(Rows rows, index_t first, index_t last, Candidates* c, index_t thread) {
        constexpr auto chunk = static_cast<index_t>(Candidates::kSlack);
        float* out = scores(thread); // [rows, tile]
        for (index_t begin = first; begin < last; begin += tile_) {
            const index_t n = std::min(tile_, last - begin);
            score<MetricT, T>(rows, keys_.slice(begin, n), kAllRows, n, out, tile_);
            leave_out_erased(begin, n, out, rows.rows);
            for (index_t q = 0; q < rows.rows; ++q) {
                Candidates& mine = c[q * plan_.parts];
                for (index_t i = 0; i < n; i += chunk) {
                    const std::size_t count = size(std::min(chunk, n - i));
                    if (!mine.has_room_for(count)) mine.raise();
                    if (!mine.has_room_for(count)) mine.cut();
                    mine.append(out + q * tile_ + i, count, static_cast<std::uint32_t>(begin + i));
                }
            }
        }
    }
    void leave_out_erased(index_t begin, index_t n, float* out, index_t rows) const {
        for (index_t i = 0; i < n; i += 64) {
            const std::size_t word = size(begin + i) / 64;
            if (word >= erased_.words.size()) return;
            for (std::uint64_t bits = erased_.words[word]; bits != 0; bits &= bits - 1) {
                const index_t j = i + std::countr_zero(bits);
                for (index_t q = 0; q < rows && j < n; ++q)
                    out[q * tile_ + j] = -std::numeric_limits<float>::infinity();
            }
        }
    }

    void finish(index_t block, index_t thread) {
        const auto c = candidates(block, thread);
        for (index_t q = 0; q < block_rows(block).rows; ++q) {
            const index_t row = block * plan_.block + q;
            const std::size_t n = write_best(c.subspan(size(q * plan_.parts), size(plan_.parts)), ranks(thread, 0),
                                             ranks(thread, 1), hits_.room_for_ids(row), hits_.room_for_scores(row));
            hits_.set_size(row, static_cast<index_t>(n));
        }
    }

    Rows queries_;
    MatrixView<const T> keys_;
    PackedView packed_;
    IdSet erased_;
    Hits& hits_;
    SearchPlan plan_;
    index_t tile_; // keys that are scored together: whole words of erased ids
    std::size_t scores_a_thread_, ranks_a_thread_;
    std::span<float> scores_;        // [threads, scores_a_thread]
    std::span<std::uint64_t> ranks_; // [threads, 2, ranks_a_thread]
    std::span<std::size_t> cursors_; // [threads, block]
    std::span<Candidates> candidates_;
    const float* centre_ = nullptr; // [d], of the filter
    FilterFormat format_ = FilterFormat::float32;
    std::span<Filter<MetricT>> filters_; // [threads]
};

} // namespace detail

/// The k nearest keys by canonical score (kernels/score.hpp): best first, ties by lower id, erased entries left out. A
/// row holds fewer hits where the store has fewer entries; a key at -inf (its score overflowed) or a query with a NaN
/// finds nothing there. The result does not depend on the executor, the batch or the instruction set: batches go
/// through a first pass over rounded keys with a proven bound (kernels/filter.hpp), and what it leaves is scored
/// exactly. Handed its Hits back it allocates nothing once it has seen the batch size. Stores of up to 2^32 - 1
/// entries.
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
            keys.visit([&]<class T>(MatrixView<const T> rows) {
                const PackedView packed = detail::packed_of<MetricT>(store);
                detail::ExactSearch<MetricT, T>(queries, rows, packed, erased_ids(store), width, executor.threads(),
                                                hits)
                    .run(executor);
            });
        hits.scratch().reset(); // one block from now on
        return hits;
    }
};
static_assert(Retriever<Exact<L2>> && Retriever<Exact<InnerProduct, Threads>> && Retriever<Exact<Cosine>>);

} // namespace mnemo
