// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/core/executor.hpp>
#include <mnemo/kernels/attend.hpp>
#include <mnemo/kernels/head_hits.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace mnemo {

/// A store of chunks of attention keys and values by head: ChunkRing, ChunkFile. Token t of chunk s is row s * chunk +
/// t.
template <class S>
concept ChunkStore = HeadedStore<S> && requires(const S& s, index_t h) {
    { s.options().chunk } -> std::convertible_to<index_t>;
    { s.keys(h)[0] };
    { s.values(h)[0] };
};
template <ChunkStore S>
using chunk_element_t = std::remove_const_t<std::remove_pointer_t<decltype(std::declval<const S&>().keys(0).data)>>;

/// The base of a memory inside an attention layer: what local attention gave, by head, before the output projection.
struct HeadOutputs {
    MutRows rows;                 // [queries, heads * head_dim], in place
    std::span<const float> gates; // [heads], in [0, 1]: the share of memory
};

/// Gradients that go with HeadOutputs; all are added to but `local`, which is written.
struct HeadGradients {
    MutRows queries;        // [queries, heads * head_dim], of the unscaled queries
    MutRows local;          // of what local attention gave; may be the gradient of the result itself
    std::span<float> gates; // [heads]
};

/// Attention over the tokens of the recalled chunks, mixed with local attention by a gate a head:
/// (1 - gate) * local + gate * softmax(scale * q k) v. Queries that recalled nothing keep local attention alone.
/// Chunks are read by id where the ring has them. The queries are those that searched: neither scaled nor given a
/// position.
template <Executor X = Serial> struct GatedAttention {
    float scale = 0; // of the logits; 0: head_dim^-1/2
    /// Queries that recalled fewer chunks attend so many in all, keys and values of the missing ones being zero: the
    /// published implementation's way. 0: only what was recalled.
    index_t filled_to = 0;
    [[no_unique_address]] X executor{};

    /// With `keep` [probabilities(reading)] the probabilities are left there for backward, which else computes them
    /// again.
    template <ChunkStore S>
    void combine(HeadOutputs& base, const Reading<Rows, HeadHits, S>& reading, std::span<float> keep = {}) const {
        const S& ring = reading.store;
        const Kept kept(keep, reading);
        check(base.rows, base.gates.size(), reading);
        constexpr index_t block = 64; // queries of a task
        const index_t n = reading.queries.rows, blocks = (n + block - 1) / block;
        executor.run(ring.heads() * blocks, [&](index_t task, index_t) {
            const index_t head = task / blocks, first = task % blocks * block;
            Buffers<chunk_element_t<S>> buffers(ring, head);
            const float gate = base.gates[static_cast<std::size_t>(head)];
            const index_t last = std::min(first + block, n);
            buffers.foresee(reading.recall[head], first, last);
            for (index_t i = first; i < last; ++i) {
                if (!buffers.see(reading.recall[head], i, last, filled_to)) continue;
                const auto out = part(base.rows, i, head, ring.head_dim());
                for (float& x : out) x *= 1 - gate;
                buffers.scaled(part(reading.queries, i, head, ring.head_dim()), scale_for(ring));
                const auto p = kept.of(head, i, buffers.p);
                buffers.weights.resize(p.size());
                buffers.rows.forward(buffers.query, gate, out, p, buffers.weights);
            }
        });
    }

    /// Numbers that `combine` leaves for backward.
    template <ChunkStore S> static std::size_t probabilities(const Reading<Rows, HeadHits, S>& reading) {
        return static_cast<std::size_t>(reading.store.heads() * reading.queries.rows * Kept::width_of(reading));
    }

    /// `local` [queries, heads * head_dim] is what local attention gave, `grad_out` the gradient of the result, `keep`
    /// what combine left, or empty.
    template <ChunkStore S>
    void backward(Rows local, std::span<const float> gates, Rows grad_out, const Reading<Rows, HeadHits, S>& reading,
                  HeadGradients grads, std::span<float> keep = {}) const {
        const S& ring = reading.store;
        const Kept kept(keep, reading);
        check(local, gates.size(), reading), check(grad_out, grads.gates.size(), reading);
        check(grads.queries, gates.size(), reading), check(grads.local, gates.size(), reading);
        const index_t d = ring.head_dim();
        executor.run(ring.heads(), [&](index_t head, index_t) { // a gate is of one task: the same sum for any threads
            Buffers<chunk_element_t<S>> buffers(ring, head);
            std::vector<float> query_grad(static_cast<std::size_t>(d));
            const float gate = gates[static_cast<std::size_t>(head)], by = scale_for(ring);
            double gate_grad = 0;
            const index_t n = reading.queries.rows;
            buffers.foresee(reading.recall[head], 0, n);
            for (index_t i = 0; i < n; ++i) {
                const auto go = part(grad_out, i, head, d), before = part(local, i, head, d);
                const auto to = part(grads.local, i, head, d), query = part(grads.queries, i, head, d);
                if (!buffers.see(reading.recall[head], i, n, filled_to)) {
                    std::copy(go.begin(), go.end(), to.begin()); // no gate
                    continue;
                }
                const auto p = kept.of(head, i, buffers.p);
                if (keep.empty()) {
                    buffers.scaled(part(reading.queries, i, head, d), by);
                    buffers.rows.soften(buffers.query, p);
                }
                std::fill(query_grad.begin(), query_grad.end(), 0.0f);
                buffers.weights.resize(p.size());
                gate_grad += buffers.rows.backward(gate, go, query_grad, p, buffers.weights);
                for (std::size_t j = 0; j < go.size(); ++j) {
                    gate_grad -= double{go[j]} * double{before[j]};
                    query[j] += by * query_grad[j];
                    to[j] = (1 - gate) * go[j];
                }
            }
            grads.gates[static_cast<std::size_t>(head)] += static_cast<float>(gate_grad);
        });
    }

  private:
    // Probabilities of all queries: [heads, queries, width], or none.
    struct Kept {
        std::span<float> all;
        index_t queries, width;

        template <class S>
        Kept(std::span<float> keep, const Reading<Rows, HeadHits, S>& reading)
            : all(keep), queries(reading.queries.rows), width(keep.empty() ? 0 : width_of(reading)) {
            if (!keep.empty())
                expect_equal("GatedAttention: probabilities", keep.size(),
                             static_cast<std::size_t>(reading.store.heads() * queries * width));
        }
        template <class S> static index_t width_of(const Reading<Rows, HeadHits, S>& reading) {
            std::size_t most = 0;
            for (const Hits& hits : reading.recall.heads)
                for (index_t i = 0; i < hits.rows(); ++i) most = std::max(most, hits.ids(i).size());
            return static_cast<index_t>(most) * reading.store.options().chunk;
        }
        // Those of a query, or a buffer of their number.
        std::span<float> of(index_t head, index_t query, std::vector<float>& buffer) const {
            if (all.empty()) return buffer;
            return all.subspan(static_cast<std::size_t>((head * queries + query) * width), buffer.size());
        }
    };
    // One task's: the token rows that a query sees, and room for its numbers.
    template <class T> struct Buffers {
        AttendRows<T> rows;
        index_t chunk;
        std::vector<index_t> ids, next;
        std::vector<float> query, p, weights;

        Buffers(const auto& ring, index_t head)
            : rows{ring.keys(head), ring.values(head), {}, {}, 0, {}}, chunk(ring.options().chunk) {}

        // Looks up what query i will see, if it is before the last.
        void foresee(const Hits& hits, index_t i, index_t last) {
            next.clear();
            if (i >= last) return;
            for (const index_t slot : hits.ids(i))
                for (index_t t = 0; t < chunk; ++t) next.push_back(slot * chunk + t);
        }
        // Query i, which was foreseen. False where there is nothing.
        bool see(const Hits& hits, index_t i, index_t last, index_t in_all) {
            std::swap(ids, next);
            foresee(hits, i + 1, last);
            p.resize(ids.size());
            rows.ids = ids, rows.next = next;
            const bool empty = rows.keys.rows == 0; // of an empty memory nothing is missing
            rows.zeros = empty ? 0 : std::max<index_t>(in_all - static_cast<index_t>(hits.ids(i).size()), 0) * chunk;
            return !ids.empty() || rows.zeros > 0;
        }
        void scaled(std::span<const float> q, float by) {
            query.assign(q.begin(), q.end());
            for (float& x : query) x *= by;
        }
    };

    template <class T> static std::span<T> part(MatrixView<T> rows, index_t i, index_t head, index_t d) {
        return rows[i].subspan(static_cast<std::size_t>(head * d), static_cast<std::size_t>(d));
    }
    float scale_for(const auto& ring) const {
        return scale != 0 ? scale : 1 / std::sqrt(static_cast<float>(ring.head_dim()));
    }
    template <class S> static void check(Rows rows, std::size_t gates, const Reading<Rows, HeadHits, S>& reading) {
        expect_equal("GatedAttention: rows", rows.rows, reading.queries.rows);
        expect_equal("GatedAttention: width of the rows", rows.cols, reading.store.key_dim());
        expect_equal("GatedAttention: width of the queries", reading.queries.cols, reading.store.key_dim());
        expect_equal("GatedAttention: gates", static_cast<index_t>(gates), reading.store.heads());
        expect_equal("GatedAttention: recalled rows", reading.recall.rows(), reading.queries.rows);
    }
};

} // namespace mnemo
