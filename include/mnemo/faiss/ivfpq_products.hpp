// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/executor.hpp>
#include <mnemo/core/huge_pages.hpp>
#include <mnemo/faiss/index.hpp>
#include <mnemo/kernels/filter.hpp>
#include <mnemo/retrieve/exact.hpp>

#include <algorithm>
#include <array>
#include <cstring>
#include <faiss/IndexFlat.h>
#include <functional>
#include <memory>
#include <utility>

namespace mnemo {

/// FAISS's inverted lists of product-quantised residuals (IVFPQ, L2, 8 bits), searched for a batch at a time: the codes
/// of a list are decoded once, to bfloat16 where the processor multiplies it, and multiplied with all queries that look
/// at the list. With c the list's centroid and r the decoded residual,
///
///     |q - c - r|^2 = |q - c|^2 + (|r|^2 + 2 c.r) - 2 q.r
///
/// where the first term comes from the search for lists and the second is known for each code. What rounding does to
/// q.r is far less than what the codes have lost, but neighbours at nearly the same distance may change places with
/// those of FaissIndex, which sums FAISS's own tables. It pays from some 8 queries a list on; for a few queries take
/// FaissIndex. nprobe is the index's; 4 bytes a code are kept beside it. Scores are negated distances. The result does
/// not depend on the executor where the centroids lie in an IndexFlat, as they do unless asked otherwise; else on the
/// executor and the batch as far as FAISS's search for lists does.
template <Executor X = Serial> class IvfPqProducts {
  public:
    index_t k = 1024;
    [[no_unique_address]] X executor{};

    /// Throws Error for another kind of index. The index must not be added to afterwards.
    explicit IvfPqProducts(FaissIndex index, X x = {}) : executor(x), index_(std::move(index)) {
        k = index_.k;
        const ::faiss::IndexIVFPQ& ivf = this->ivf();
        const std::size_t width = ivf.pq.M, part = ivf.pq.dsub;
        bfloat16_ = simd_level() >= SimdLevel::avx512_bf16 && part % 2 == 0;
        entry_ = static_cast<index_t>(bfloat16_ ? part / 2 : part);
        codebook_.resize(width * 256 * static_cast<std::size_t>(entry_));
#if MNEMO_X86
        choose_decode<1, 2, 4, 8, 16>();
#endif
        for (std::size_t i = 0; i < width * 256 * part; ++i) {
            const float x_i = ivf.pq.centroids[i];
            if (bfloat16_) {
                const bfloat16 rounded = to_bfloat16(x_i);
                std::memcpy(reinterpret_cast<std::byte*>(codebook_.data()) + 2 * i, &rounded, 2);
            } else {
                std::memcpy(codebook_.data() + i, &x_i, 4);
            }
        }
        first_.assign(1, 0);
        for (std::size_t list = 0; list < ivf.nlist; ++list)
            first_.push_back(first_.back() + static_cast<index_t>(ivf.invlists->list_size(list)));
        bias_.resize(static_cast<std::size_t>(first_.back()));
        for (std::size_t list = 0; list < ivf.nlist; ++list) {
            const auto n = static_cast<std::size_t>(first_[list + 1] - first_[list]);
            if (n == 0) continue;
            ::faiss::InvertedLists::ScopedCodes codes(ivf.invlists, list);
            ::faiss::InvertedLists::ScopedIds ids(ivf.invlists, list);
            for (std::size_t i = 0; i < n; ++i)
                if (ids.get()[i] < 0 || ids.get()[i] >= ivf.ntotal)
                    fail("IvfPqProducts: expected ids below ", ivf.ntotal, ", got ", ids.get()[i]);
            float* bias = bias_.data() + first_[list];
            detail::sum_codes(codes.get(), n, width, ivf.precomputed_table.get() + list * width * 256, bias);
            for (std::size_t i = 0; i < n; ++i) bias[i] *= -0.5f;
        }
    }

    Hits retrieve(const MemoryStore auto& store, Rows queries) const { return retrieve(store, queries, Hits{}); }
    Hits retrieve(const MemoryStore auto& store, Rows queries, Hits hits) const {
        const ::faiss::IndexIVFPQ& ivf = this->ivf();
        expect_equal("IvfPqProducts: rows, as when it was made", index_.size(), first_.back());
        expect_equal("IvfPqProducts: width of the keys", index_.key_dim(), static_cast<index_t>(store.key_dim()));
        expect_equal("IvfPqProducts: width of the queries", queries.cols, index_.key_dim());
        if constexpr (requires { store.size(); })
            expect_equal("IvfPqProducts: rows, as the store has entries", index_.size(),
                         static_cast<index_t>(store.size()));
        if (k < 0) fail("IvfPqProducts: expected k >= 0, got ", k);
        const index_t width = std::min(k, index_.size());
        if (!Filter<L2>::available(ivf.d) || !all_usable(queries)) {
            FaissIndex plain = index_;
            plain.k = k;
            return plain.retrieve(store, queries, std::move(hits));
        }
        hits.resize(queries.rows, width);
        if (width == 0 || queries.rows == 0) return hits;
#if MNEMO_X86
        Search search(*this, queries, width, erased_ids(store), hits);
        executor.run(search.blocks, [&](index_t block, index_t thread) { search.block(block, thread); });
#endif
        return hits;
    }

  private:
    const ::faiss::IndexIVFPQ& ivf() const {
        const ::faiss::IndexIVFPQ* found = detail::searchable_ivfpq(index_.index());
        if (!found || index_.metric() != Metric::l2)
            fail("IvfPqProducts: expected an index \"IVF...,PQ...\" of squared L2 with 8 bits a code, residuals and "
                 "precomputed tables");
        return *found;
    }

    // Products of vectors that are too large, or not numbers, tell nothing.
    static bool all_usable(Rows queries) {
        for (index_t i = 0; i < queries.rows; ++i)
            if (!(score<InnerProduct>(queries[i], queries[i]) < detail::kMostNorm * detail::kMostNorm)) return false;
        return true;
    }

#if MNEMO_X86
    // One search: what its tasks share. A task is a block of queries.
    struct Search {
        struct Thread {
            std::span<std::uint32_t> ends, queries; // [lists], [block * probes]: the queries of each list
            std::span<float> offsets;               // beside them, -|q - c|^2 / 2
            std::span<std::uint64_t> keys;          // [2 k]
            std::span<Candidates> candidates;       // [block]
            Filter<L2>* filter;
        };
        Search(const IvfPqProducts& owner, Rows rows, index_t k, IdSet erased_, Hits& hits_)
            : of(owner), ivf(owner.ivf()), queries(rows), erased(erased_), hits(hits_),
              probes(std::min(ivf.nprobe, ivf.nlist)), best(size(k)) {
            const index_t threads = of.executor.threads();
            block_rows = std::clamp<index_t>((rows.rows + threads - 1) / threads, 1, kMostRows);
            blocks = (rows.rows + block_rows - 1) / block_rows;
            Arena& arena = hits.scratch();
            arena.reset();
            const std::size_t pairs = size(block_rows) * probes;
            near = arena.take<float>(size(rows.rows) * probes);
            lists = arena.take<index_t>(size(rows.rows) * probes);
            find_near(arena, threads);
            zeros = arena.take<float>(size(rows.cols));
            std::fill(zeros.begin(), zeros.end(), 0.0f);
            each = arena.take<Thread>(size(threads));
            for (Thread& t : each) {
                t.ends = arena.take<std::uint32_t>(ivf.nlist);
                t.queries = arena.take<std::uint32_t>(pairs);
                t.offsets = arena.take<float>(pairs);
                t.keys = arena.take<std::uint64_t>(2 * best);
                t.candidates = arena.take<Candidates>(size(block_rows));
                for (Candidates& c : t.candidates) c = Candidates::in(arena, best, size(of.first_.back()));
                t.filter = arena.take<Filter<L2>>(1).data();
                std::construct_at(t.filter, arena, block_rows, rows.cols);
            }
        }

        void block(index_t b, index_t thread) const {
            const index_t first = b * block_rows;
            const Rows rows = queries.slice(first, std::min(block_rows, queries.rows - first));
            const Thread& t = each[size(thread)];
            find_lists(first, rows.rows, t);
            for (index_t q = 0; q < rows.rows; ++q) t.candidates[size(q)].restart();
            const auto format = of.bfloat16_ ? FilterFormat::bfloat16 : FilterFormat::float32;
            t.filter->use(rows, format, zeros.data(), false);
            for (std::size_t l = 0, from = 0; l < t.ends.size(); from = t.ends[l++])
                if (t.ends[l] > from) scan(l, from, t);
            for (index_t q = 0; q < rows.rows; ++q) write(first + q, t.candidates[size(q)], t);
        }

      private:
        struct Centroids { // as a store, to search in
            using value_type = std::int32_t;
            Rows rows;
            index_t key_dim() const { return rows.cols; }
            index_t size() const { return rows.rows; }
            std::int32_t value(index_t) const { return 0; }
            Rows keys() const { return rows; }
        };
        // By exact search among centroids that lie side by side: the sums of FAISS's come from its BLAS, and with some
        // they depend on the number of threads. Other ways to the lists are FAISS's own.
        void find_near(Arena& arena, index_t threads) {
            const auto* flat = dynamic_cast<const ::faiss::IndexFlat*>(ivf.quantizer);
            if (!flat || flat->metric_type != ::faiss::METRIC_L2) {
                if (queries.stride != queries.cols) { // FAISS wants rows that follow each other
                    const auto copy = arena.take<float>(size(queries.rows * queries.cols));
                    for (index_t i = 0; i < queries.rows; ++i)
                        std::copy(queries[i].begin(), queries[i].end(), copy.begin() + i * queries.cols);
                    queries = Rows(copy.data(), queries.rows, queries.cols);
                }
                const detail::OmpThreads omp(static_cast<int>(threads)); // one call: its sums depend on the batch
                return detail::with_faiss("IvfPqProducts", [&] {
                    ivf.quantizer->search(queries.rows, queries.data, static_cast<index_t>(probes), near.data(),
                                          lists.data());
                });
            }
            const Hits found = Exact<L2, X>{static_cast<index_t>(probes), of.executor}.retrieve(
                Centroids{Rows(flat->get_xb(), flat->ntotal, queries.cols)}, queries);
            std::ranges::fill(lists, -1);
            for (index_t q = 0; q < queries.rows; ++q) {
                const std::size_t first = size(q) * probes;
                std::ranges::copy(found.ids(q), lists.begin() + first);
                std::ranges::transform(found.scores(q), near.begin() + first, std::negate<>());
            }
        }

        static constexpr index_t kMostRows = 2048; // queries that share the decoding
        static std::size_t size(index_t n) { return static_cast<std::size_t>(n); }

        // The nearest lists of every query, turned into the queries of every list.
        void find_lists(index_t first, index_t rows, const Thread& t) const {
            const auto of_queries = lists.subspan(size(first) * probes, size(rows) * probes);
            const auto distances = near.subspan(size(first) * probes, size(rows) * probes);
            std::fill(t.ends.begin(), t.ends.end(), 0u);
            for (const index_t list : of_queries)
                if (list >= 0) ++t.ends[size(list)];
            for (std::uint32_t total = 0; std::uint32_t & end : t.ends) total += std::exchange(end, total);
            for (std::size_t p = 0; p < of_queries.size(); ++p) {
                if (of_queries[p] < 0) continue;
                const std::uint32_t at = t.ends[size(of_queries[p])]++;
                t.queries[at] = static_cast<std::uint32_t>(p / probes);
                t.offsets[at] = -0.5f * distances[p];
            }
        }

        void scan(std::size_t list, std::size_t from, const Thread& t) const {
            const index_t n = of.first_[list + 1] - of.first_[list];
            if (n == 0) return;
            ::faiss::InvertedLists::ScopedCodes codes(ivf.invlists, list);
            t.filter->gather(t.queries.data() + from, static_cast<index_t>(t.ends[list] - from));
            ::faiss::InvertedLists::ScopedIds ids(ivf.invlists, list);
            const auto decode = [&](index_t at, index_t count, std::uint32_t* out, float* bias,
                                    std::uint32_t* out_ids) {
                const std::uint8_t* code = codes.get() + size(at) * ivf.code_size;
                const index_t words = t.filter->words();
                (of.*of.decode_)(code, ivf.pq.M, count, words, out);
                std::copy_n(of.bias_.data() + of.first_[list] + at, count, bias);
                for (index_t l = 0; l < count; ++l) out_ids[l] = static_cast<std::uint32_t>(ids.get()[at + l]);
            };
            t.filter->scan_made(n, erased, t.offsets.data() + from, t.candidates.data(), 1, decode,
                                [&](index_t q) { t.candidates[size(q)].cut(); });
        }

        void write(index_t row, Candidates& c, const Thread& t) const {
            const auto ids = hits.room_for_ids(row);
            const auto scores = hits.room_for_scores(row);
            const std::size_t found = write_best({&c, 1}, t.keys.first(best), t.keys.subspan(best), ids, scores);
            for (float& score : scores.first(found)) score *= 2;
            hits.set_size(row, static_cast<index_t>(found));
        }

      public:
        index_t blocks = 0;

      private:
        const IvfPqProducts& of;
        const ::faiss::IndexIVFPQ& ivf;
        Rows queries;
        IdSet erased;
        Hits& hits;
        std::size_t probes, best;
        index_t block_rows = 1;
        std::span<float> near;    // [rows, probes], |q - c|^2
        std::span<index_t> lists; // [rows, probes]
        std::span<float> zeros;   // [d]
        std::span<Thread> each;
    };

    // out [count, words]: the codebook's entries side by side, of a constant size so that they are copied in registers.
    template <int Entry>
    void decode(const std::uint8_t* code, std::size_t parts, index_t count, index_t words, std::uint32_t* out) const {
        const index_t entry = Entry > 0 ? Entry : entry_;
        for (index_t l = 0; l < count; ++l, code += parts) {
            std::uint32_t* row = out + l * words;
            const std::uint32_t* of_part = codebook_.data();
            for (std::size_t m = 0; m < parts; ++m, of_part += 256 * entry, row += entry)
                std::memcpy(row, of_part + code[m] * entry, static_cast<std::size_t>(entry) * 4);
            std::fill(row, out + l * words + words, 0u);
        }
    }
    // The common sizes of an entry; others are decoded by decode<0>.
    template <int... Entries> void choose_decode() {
        (void)((entry_ == Entries && (decode_ = &IvfPqProducts::decode<Entries>, true)) || ...);
    }
    using Decode = void (IvfPqProducts::*)(const std::uint8_t*, std::size_t, index_t, index_t, std::uint32_t*) const;
    Decode decode_ = &IvfPqProducts::decode<0>;
#endif

    FaissIndex index_;
    bool bfloat16_ = false;
    index_t entry_ = 0;                  // 32-bit words of a codebook entry
    HugeVector<std::uint32_t> codebook_; // [parts, 256, entry_]
    std::vector<index_t> first_;         // [lists + 1]: the first code of each list
    HugeVector<float> bias_;             // [codes], -(|r|^2 + 2 c.r) / 2
};
static_assert(Retriever<IvfPqProducts<>>);

} // namespace mnemo
