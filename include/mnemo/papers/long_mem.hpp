// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/combine/gated_attention.hpp>
#include <mnemo/retrieve/per_head.hpp>
#include <mnemo/store/chunk_ring.hpp>

#include <concepts>
#include <cstdint>
#include <utility>
#include <vector>

// LongMem (Wang et al. 2023): a frozen language model's attention keys and values are remembered in chunks; a side
// network beside it searches them with queries of its own, head by head. Here: what needs no tensors.

namespace mnemo {

/// What was published.
namespace long_mem_knobs {
inline constexpr index_t memory_tokens = 65'536, chunk = 4, k = 64; // k: tokens a query and head reads
inline constexpr index_t retrieval_layer = 17, layer_reduction = 2; // the memory layer is their quotient
inline constexpr index_t segment = 1024;
inline constexpr index_t in_context_chunk = 2; // of the in-context learning experiments
} // namespace long_mem_knobs

struct LongMemOptions {
    index_t heads = 1, head_dim = 1;
    index_t memory_tokens = long_mem_knobs::memory_tokens;
    index_t chunk = long_mem_knobs::chunk;
    index_t k = long_mem_knobs::k; // tokens, a multiple of chunk
    /// The published implementation's memory: one bank for all rows of a batch, padding and all; its way of forgetting
    /// (ChunkRingOptions); zeros in place of chunks that a young memory does not have.
    bool reference = false;
};

/// The banks of a batch: one for each of its rows, or one for all in the reference's way. Keys and values are kept as T
/// (float, half or bfloat16); RetrieverT finds chunks by their means for all heads: PerHead of any retriever. Recall
/// first, remember when the gradients are done: a token never sees its own segment, and what was recalled stays where
/// it was.
template <KeyElement T = half, class RetrieverT = PerHead<Exact<InnerProduct>>> class LongMemBanks {
  public:
    using Element = T;
    using Ring = ChunkRing<T>;
    /// Queries [first, first + rows) recalled from `ring`.
    struct Recalled {
        const Ring* ring;
        HeadHits hits;
        index_t first, rows;
    };

    /// Exact search for the k / chunk best.
    LongMemBanks(LongMemOptions options, index_t batch)
        requires std::same_as<RetrieverT, PerHead<Exact<InnerProduct>>>
        : LongMemBanks(options, batch, {{.k = options.chunk > 0 ? options.k / options.chunk : 0}}) {}
    /// A retriever that knows itself how many chunks it finds; k is what GatedAttention may expect.
    LongMemBanks(LongMemOptions options, index_t batch, RetrieverT retriever)
        : options_(options), batch_(batch), retriever_(std::move(retriever)) {
        if (options.k < 1 || options.chunk < 1 || options.k % options.chunk != 0)
            fail("LongMem: expected k to be a multiple of chunk, got ", options.k, " and ", options.chunk);
        if (batch < 1) fail("LongMem: expected at least 1 row in a batch, got ", batch);
        rings_.assign(static_cast<std::size_t>(options.reference ? 1 : batch),
                      Ring({.heads = options.heads,
                            .head_dim = options.head_dim,
                            .chunk = options.chunk,
                            .memory_tokens = options.memory_tokens,
                            .reference = options.reference}));
    }

    const LongMemOptions& options() const { return options_; }
    index_t batch() const { return batch_; }
    /// For GatedAttention.
    index_t filled_to() const { return options_.reference ? options_.k / options_.chunk : 0; }
    const std::vector<Ring>& rings() const { return rings_; }
    std::vector<Ring>& rings() { return rings_; }

    /// What queries [batch * tokens, heads * head_dim], row after row, find. With `documents` (one a query) a query
    /// finds nothing in a bank of another document.
    std::vector<Recalled> recall(Rows queries, std::span<const index_t> documents = {}) const {
        std::vector<Recalled> out;
        const auto add = [&](const Ring& ring, index_t first, index_t rows) {
            out.push_back({&ring, retriever_.retrieve(ring, queries.slice(first, rows)), first, rows});
        };
        if (options_.reference) {
            add(rings_.front(), 0, queries.rows);
            return out;
        }
        for_runs(queries.rows, documents, {}, [&](index_t row, index_t first, index_t n) {
            const auto& ring = rings_[static_cast<std::size_t>(row)];
            if (documents.empty() || documents[static_cast<std::size_t>(first)] == ring.document()) add(ring, first, n);
        });
        return out;
    }

    /// Remembers keys and values [batch * tokens, heads * head_dim]. Tokens whose `real` is 0 are padding. Where a
    /// document ends, its row's bank forgets it.
    void remember(Rows keys, Rows values, std::span<const std::uint8_t> real = {},
                  std::span<const index_t> documents = {}) {
        expect_equal("LongMem: rows of the values", values.rows, keys.rows);
        if (options_.reference) return rings_.front().append(keys, values);
        for_runs(keys.rows, documents, real, [&](index_t row, index_t first, index_t n) {
            auto& ring = rings_[static_cast<std::size_t>(row)];
            if (!real.empty() && real[static_cast<std::size_t>(first)] == 0) return;
            if (!documents.empty()) ring.start_document(documents[static_cast<std::size_t>(first)]);
            ring.append(keys.slice(first, n), values.slice(first, n));
        });
    }
    void clear() {
        for (auto& ring : rings_) ring.clear();
    }
    /// Bytes of all banks, now and at most.
    index_t bytes() const {
        index_t sum = 0;
        for (const auto& ring : rings_) sum += ring.bytes();
        return sum;
    }
    index_t most_bytes() const {
        index_t sum = 0;
        for (const auto& ring : rings_) sum += ring.most_bytes();
        return sum;
    }

  private:
    // f(row of the batch, first, n) for runs of one row, one document and one kind of token.
    void for_runs(index_t rows, std::span<const index_t> documents, std::span<const std::uint8_t> real,
                  auto&& f) const {
        if (rows % batch_ != 0) fail("LongMem: expected as many tokens for each of ", batch_, " rows, got ", rows);
        if (!documents.empty()) expect_equal("LongMem: documents", static_cast<index_t>(documents.size()), rows);
        if (!real.empty()) expect_equal("LongMem: padding", static_cast<index_t>(real.size()), rows);
        const index_t tokens = rows / batch_;
        for (index_t row = 0; row < batch_; ++row)
            for (index_t i = row * tokens, end = i + tokens; i < end;) {
                const auto at = static_cast<std::size_t>(i);
                index_t n = 1;
                for (; i + n < end; ++n) {
                    const auto next = static_cast<std::size_t>(i + n);
                    if (!documents.empty() && documents[next] != documents[at]) break;
                    if (!real.empty() && (real[next] != 0) != (real[at] != 0)) break;
                }
                f(row, i, n);
                i += n;
            }
    }

    LongMemOptions options_;
    index_t batch_;
    RetrieverT retriever_;
    std::vector<Ring> rings_;
};

} // namespace mnemo
