// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/kernels/key_lists.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/retrieve/recall_report.hpp>
#include <mnemo/retrieve/score_candidates.hpp>

#include <algorithm>
#include <array>
#include <memory>
#include <utility>

namespace mnemo {

/// How much of the lists a search looks at.
enum class Probe : std::uint8_t {
    first_pass, // the nearest lists, by rounded keys alone: the fastest; scores are off by the rounding
    rescored,   // the nearest lists; exact scores, and the exact order, of what is in them
    exact       // ... and every other list that bounds do not prove too far: what Exact finds
};

namespace detail {

// One search: everything that its tasks share. A task is a block of queries: each list that any of them looks at is
// scanned once, for all of these.
template <MetricTag MetricT, class T> class ListSearch {
  public:
    ListSearch(Rows queries, MatrixView<const T> keys, const ListsView& lists, IdSet erased, const Hits& nearest,
               Probe probe, index_t k, index_t threads, Hits& hits)
        : queries_(queries), keys_(keys), lists_(lists), erased_(erased), nearest_(nearest), probe_(probe),
          hits_(hits) {
        const bool exact = probe == Probe::exact;
        block_ = std::clamp<index_t>((queries.rows + threads - 1) / threads, 1, exact ? 256 : 1024);
        blocks_ = (queries.rows + block_ - 1) / block_;
        for (index_t row = 0; row < nearest.rows(); ++row) probes_ = std::max(probes_, nearest.ids(row).size());
        if constexpr (MNEMO_X86)
            filtered_ = lists.keys.words && lists.keys.runs_here() && Filter<MetricT>::available(keys.cols);
        const std::size_t rows = size(block_), pairs = rows * (exact ? size(lists.lists) : probes_);
        const std::size_t capacity = Candidates::capacity_for(size(k), size(keys.rows));
        Arena& arena = hits.scratch();
        arena.reset();
        threads_ = arena.take<Thread>(size(threads));
        for (Thread& t : threads_) {
            std::construct_at(&t);
            t.scores = arena.take<float>(capacity);
            for (auto& ranks : t.ranks) ranks = arena.take<std::uint64_t>(std::max(capacity, 2 * size(k)));
            t.cursors = arena.take<std::size_t>(rows);
            t.ends = arena.take<std::uint32_t>(size(lists.lists));
            t.sorted = arena.take<std::uint32_t>(pairs);
            t.pairs = arena.take<Pair>(pairs);
            t.centroids = arena.take<float>(size(exact ? lists.lists : 0));
            t.candidates = arena.take<Candidates>(2 * rows);
            for (std::size_t i = 0; i < 2 * rows; ++i)
                if (i % 2 == kNear || exact) t.candidates[i] = Candidates::in(arena, size(k), size(keys.rows));
            if constexpr (MNEMO_X86) {
                t.filter = arena.take<Filter<MetricT>>(1).data();
                if (filtered_) std::construct_at(t.filter, arena, block_, keys.cols);
            }
        }
        if (exact) find_norms(arena);
    }

    void run(const Executor auto& executor) {
        executor.run(blocks_, [this](index_t block, index_t thread) {
            const index_t first = block * block_;
            const Rows rows = queries_.slice(first, std::min(block_, queries_.rows - first));
            Thread& t = threads_[size(thread)];
            if (!(filtered_ && search(rows, first, t, true))) search(rows, first, t, false);
            const std::size_t parts = probe_ == Probe::exact ? 2 : 1;
            for (index_t q = 0; q < rows.rows; ++q) {
                const std::size_t n = write_best(t.candidates.subspan(2 * size(q), parts), t.ranks[0], t.ranks[1],
                                                 hits_.room_for_ids(first + q), hits_.room_for_scores(first + q));
                hits_.set_size(first + q, static_cast<index_t>(n));
            }
        });
    }

  private:
    static constexpr std::size_t kNear = 0, kBehind = 1; // candidates from the nearest lists, and from those behind
    struct Pair {
        std::uint32_t list, query;
    };
    struct Thread {
        std::span<float> scores;                       // [capacity]
        std::array<std::span<std::uint64_t>, 2> ranks; // [capacity]
        std::span<std::size_t> cursors;                // [block]
        std::span<std::uint32_t> ends, sorted;         // [lists], [pairs]
        std::span<Pair> pairs;                         // lists to scan, and for whom
        std::size_t pair_count = 0;
        std::span<float> centroids;       // [lists], scores
        std::span<Candidates> candidates; // [block, 2]
        [[maybe_unused]] Filter<MetricT>* filter = nullptr;
    };
    static std::size_t size(index_t n) { return static_cast<std::size_t>(n); }

    // With the filter, candidates hold bounds until they are settled; without, exact scores all along. False where a
    // vector is too large for the filter.
    bool search(Rows rows, index_t first, Thread& t, bool filter) {
        for (Candidates& c : t.candidates.first(2 * size(rows.rows))) c.restart();
        if constexpr (MNEMO_X86)
            if (filter && !t.filter->use(rows, lists_.keys.format, lists_.keys.centre, probe_ != Probe::first_pass))
                return false;
        // The nearest lists of every query first: thresholds rise early.
        const std::size_t near = std::max<std::size_t>(1, probes_ / 8);
        for (std::size_t from = 0, to = near; from < probes_; from = to, to = probes_) {
            t.pair_count = 0;
            for (index_t q = 0; q < rows.rows; ++q) {
                const auto ids = nearest_.ids(first + q);
                for (std::size_t p = from; p < std::min(to, ids.size()); ++p) add(t, ids[p], q);
            }
            if (!scan(rows, t, kNear, filter)) return false;
        }
        if (!scan_appended(rows, t, filter)) return false;
        settle(rows, t, kNear, filter);
        if (probe_ != Probe::exact) return true;
        t.pair_count = 0;
        for (index_t q = 0; q < rows.rows; ++q) add_behind(rows, first, q, t, filter);
        if (!scan(rows, t, kBehind, filter)) return false;
        settle(rows, t, kBehind, filter);
        return true;
    }
    static void add(Thread& t, index_t list, index_t query) {
        t.pairs[t.pair_count++] = {static_cast<std::uint32_t>(list), static_cast<std::uint32_t>(query)};
    }

    // Scans the lists of all pairs, each once.
    bool scan(Rows rows, Thread& t, std::size_t which, bool filter) {
        std::fill(t.ends.begin(), t.ends.end(), 0u);
        for (const Pair p : t.pairs.first(t.pair_count)) ++t.ends[p.list];
        for (std::uint32_t total = 0; std::uint32_t & end : t.ends) total += std::exchange(end, total);
        for (const Pair p : t.pairs.first(t.pair_count)) t.sorted[t.ends[p.list]++] = p.query;
        for (std::size_t l = 0, from = 0; l < t.ends.size(); from = t.ends[l++]) {
            const auto queries = t.sorted.subspan(from, t.ends[l] - from);
            if (!queries.empty() && !scan_list(rows, t, which, filter, queries, lists_.first[l], lists_.first[l + 1]))
                return false;
        }
        return true;
    }
    bool scan_list(Rows rows, Thread& t, std::size_t which, bool filter, std::span<const std::uint32_t> queries,
                   index_t first, index_t last) {
        if constexpr (MNEMO_X86)
            if (filter) {
                t.filter->gather(queries.data(), static_cast<index_t>(queries.size()));
                return t.filter->scan(lists_.keys, erased_, first, last, t.candidates.data() + which, 2,
                                      cut(rows, t, which), 1, lists_.ids);
            }
        for (const std::uint32_t q : queries)
            for (index_t place = first; place < last; place += kPanel)
                score_some(rows, q, t, which, std::span(lists_.ids + place, size(kPanel)));
        return true;
    }
    // What the store has got since the lists were made belongs to every query's candidates.
    bool scan_appended(Rows rows, Thread& t, bool filter) {
        if (lists_.entries == keys_.rows) return true;
        if constexpr (MNEMO_X86)
            if (filter) {
                t.filter->gather(nullptr, rows.rows);
                return t.filter->scan(keys_, erased_, lists_.entries, keys_.rows, t.candidates.data() + kNear, 2,
                                      cut(rows, t, kNear));
            }
        std::array<std::uint32_t, 64> ids;
        for (index_t id = lists_.entries; id < keys_.rows; id += 64) {
            const index_t n = std::min<index_t>(64, keys_.rows - id);
            for (index_t i = 0; i < n; ++i) ids[size(i)] = static_cast<std::uint32_t>(id + i);
            for (index_t q = 0; q < rows.rows; ++q) score_some(rows, q, t, kNear, std::span(ids).first(size(n)));
        }
        return true;
    }
    auto cut(Rows rows, Thread& t, std::size_t which) const {
        return [this, rows, &t, which](index_t q) {
            cut_exactly<MetricT, T>(rows[q], keys_, t.candidates[2 * size(q) + which], t.scores.data(), t.ranks[0],
                                    t.ranks[1]);
        };
    }
    void score_some(Rows rows, index_t q, Thread& t, std::size_t which, std::span<const std::uint32_t> from) const {
        std::array<std::uint32_t, 64> ids;
        std::array<float, 64> scores;
        std::size_t n = 0;
        for (const std::uint32_t id : from)
            if (id != ListsView::kNone && !erased_.contains(id)) ids[n++] = id;
        score<MetricT, T>(rows.slice(q, 1), keys_, ids.data(), static_cast<index_t>(n), scores.data(), 0);
        Candidates& c = t.candidates[2 * size(q) + which];
        if (!c.has_room_for(n)) c.raise();
        if (!c.has_room_for(n)) c.cut();
        for (std::size_t i = 0; i < n; ++i)
            if (scores[i] >= c.threshold) c.scores[c.count] = scores[i], c.ids[c.count++] = ids[i];
    }

    // Turns bounds into scores: exact ones, or what the first pass has seen.
    void settle(Rows rows, Thread& t, std::size_t which, bool filter) {
        if (!filter) return;
        Candidates* c = t.candidates.data() + which;
        for (index_t q = 0; q < rows.rows; ++q) {
            Candidates& mine = c[2 * q];
            mine.raise(0);
            if (probe_ == Probe::first_pass) {
                for (std::size_t i = 0; i < mine.count; ++i)
                    mine.scores[i] = (mine.scores[i] - mine.shift) / mine.factor;
            } else {
                sort_by_id(mine, t);
                mine.split(t.ranks[0]);
            }
            mine.threshold = kLowest; // it was one of bounds
        }
        if (probe_ == Probe::first_pass) return;
        score_candidates<MetricT, T>(rows, keys_, 0, keys_.rows, c, 2, false, t.cursors.data());
        for (index_t q = 0; q < rows.rows; ++q) c[2 * q].settle();
        score_candidates<MetricT, T>(rows, keys_, 0, keys_.rows, c, 2, true, t.cursors.data());
    }
    void sort_by_id(Candidates& c, Thread& t) const {
        const auto order = t.ranks[0].first(c.count);
        for (std::size_t i = 0; i < c.count; ++i)
            order[i] = std::uint64_t{c.ids[i]} << 32 | std::bit_cast<std::uint32_t>(c.scores[i]);
        sort_keys(order, t.ranks[1].first(c.count));
        for (std::size_t i = 0; i < c.count; ++i) {
            c.ids[i] = static_cast<std::uint32_t>(order[i] >> 32);
            c.scores[i] = std::bit_cast<float>(static_cast<std::uint32_t>(order[i]));
        }
    }

    // ---- Exactly: which lists can hold one of the k best? ----

    void find_norms(Arena& arena) {
        centroid_norms_ = arena.take<float>(size(lists_.lists));
        const Rows centroids = lists_.centroid_rows();
        for (index_t l = 0; l < lists_.lists; ++l)
            centroid_norms_[size(l)] = std::sqrt(mnemo::score<InnerProduct>(centroids[l], centroids[l]));
    }
    // The lists that were not scanned yet and may hold a key that is at least as near as the k-th one found so far.
    void add_behind(Rows rows, index_t first, index_t q, Thread& t, bool filter) {
        Candidates& near = t.candidates[2 * size(q) + kNear];
        Candidates& behind = t.candidates[2 * size(q) + kBehind];
        float kth = kLowest;
        if (near.count >= near.k) {
            kth = threshold_for(near.scores, near.count, near.k, 0);
            behind.threshold = filter ? near.factor * kth + near.shift - 0x1p-21f * std::abs(kth) : kth;
            behind.proven = true;
        }
        const Rows centroids = lists_.centroid_rows();
        score<MetricT, float>(rows.slice(q, 1), centroids, kAllRows, lists_.lists, t.centroids.data(), 0);
        const auto query = rows[q];
        const float norm =
            MetricT::metric == Metric::inner_product ? std::sqrt(mnemo::score<InnerProduct>(query, query)) : 1.0f;
        const auto ids = nearest_.ids(first + q);
        for (const index_t l : ids) t.centroids[size(l)] = std::numeric_limits<float>::quiet_NaN(); // was scanned
        for (index_t l = 0; l < lists_.lists; ++l)
            if (!std::isnan(t.centroids[size(l)]) && !(most_in_list(l, t.centroids[size(l)], norm) < kth)) add(t, l, q);
    }
    // An upper bound of the scores in a list, by the triangle inequality; `margin` covers the rounding.
    float most_in_list(index_t l, float score_of_centroid, float norm) const {
        const float margin = (static_cast<float>(keys_.cols) / 64 + 16) * 0x1p-22f, radius = lists_.radius[l];
        if constexpr (MetricT::metric == Metric::l2) {
            const float gap = std::sqrt(-score_of_centroid) * (1 - margin) - radius;
            return gap > 0 ? -gap * gap * (1 - margin) : 0.0f;
        } else if constexpr (MetricT::metric == Metric::inner_product) {
            const float most = score_of_centroid + norm * radius;
            return most + margin * norm * (centroid_norms_[size(l)] + radius);
        } else {
            const float length = centroid_norms_[size(l)];
            return score_of_centroid * length + radius + margin * (length + radius + 1);
        }
    }

    Rows queries_;
    MatrixView<const T> keys_;
    ListsView lists_;
    IdSet erased_;
    const Hits& nearest_;
    Probe probe_;
    Hits& hits_;
    index_t block_ = 1, blocks_ = 0;
    std::size_t probes_ = 0;
    bool filtered_ = false;
    std::span<Thread> threads_;
    std::span<float> centroid_norms_; // [lists]
};

} // namespace detail

/// The k nearest keys among those of the `nprobe` nearest lists (kernels/key_lists.hpp; who builds them:
/// retrieve/build_lists.hpp), or, with Probe::exact, of the whole store. Batches are fast: a list is read once for all
/// queries of a block. Entries that were appended since the lists were made are scanned like a list of everybody's;
/// erased ones are left out; after a replacement make the lists again. The result does not depend on the executor or
/// the batch. `lists` must outlive it. Handed its Hits back it allocates little.
template <MetricTag MetricT, Executor X = Serial> struct Lists {
    ListsView lists;
    index_t k = 1024;
    index_t nprobe = 32;
    Probe probe = Probe::rescored;
    [[no_unique_address]] X executor{};

    Hits retrieve(const KeyedStore auto& store, Rows queries) const { return retrieve(store, queries, Hits{}); }

    Hits retrieve(const KeyedStore auto& store, Rows queries, Hits hits) const {
        const KeyRows keys = store.keys();
        expect_equal("Lists: width of the queries", queries.cols, keys.cols);
        expect_equal("Lists: width of the keys in lists", lists.keys.d, keys.cols);
        if (lists.keys.metric != MetricT::metric)
            fail("Lists: expected lists for ", name(MetricT::metric), ", got ", name(lists.keys.metric));
        if (lists.entries > keys.rows)
            fail("Lists: expected lists of up to ", keys.rows, " entries, got ", lists.entries);
        if (k < 0 || nprobe < 1) fail("Lists: expected k >= 0 and nprobe >= 1, got ", k, " and ", nprobe);
        const index_t width = std::min(k, keys.rows);
        hits.resize(queries.rows, width);
        if (width == 0 || queries.rows == 0) return hits;
        const Hits nearest = Exact<MetricT, X>{nprobe, executor}.retrieve(Centroids{lists}, queries);
        keys.visit([&]<class T>(MatrixView<const T> rows) {
            detail::ListSearch<MetricT, T>(queries, rows, lists, erased_ids(store), nearest, probe, width,
                                           executor.threads(), hits)
                .run(executor);
        });
        return hits;
    }

  private:
    struct Centroids { // as a store, to search in
        using value_type = std::int32_t;
        const ListsView& lists;
        index_t key_dim() const { return lists.keys.d; }
        index_t size() const { return lists.lists; }
        std::int32_t value(index_t) const { return 0; }
        Rows keys() const { return lists.centroid_rows(); }
    };
};

/// The least nprobe, in steps of a sixteenth, with which `retriever` finds `recall` of what exact search finds for
/// these queries: hand it some of your own, 100 or more. Returns the number of lists where no smaller one does.
template <MetricTag MetricT, Executor X>
index_t tune_nprobe(Lists<MetricT, X> retriever, const KeyedStore auto& store, Rows queries, double recall) {
    const Hits exact = Exact<MetricT, X>{retriever.k, retriever.executor}.retrieve(store, queries);
    const auto enough = [&](index_t nprobe) {
        retriever.nprobe = nprobe;
        return compare(retriever.retrieve(store, queries), exact).recall >= recall;
    };
    index_t least = 0, most = 1; // too few; enough
    while (most < retriever.lists.lists && !enough(most)) least = most, most *= 2;
    most = std::min(most, retriever.lists.lists);
    while (most - least > std::max<index_t>(1, most / 16)) {
        const index_t middle = least + (most - least) / 2;
        (enough(middle) ? most : least) = middle;
    }
    return most;
}

} // namespace mnemo
