// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/kernels/metric.hpp>
#include <mnemo/retrieve/attribution.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/retrieve/segments.hpp>
#include <mnemo/store/knowledge.hpp>
#include <mnemo/text/document_rows.hpp>
#include <mnemo/text/masked_pairs.hpp>

#include <cmath>
#include <cstdint>
#include <string_view>

namespace mnemo {

// PlugLM ("Decouple knowledge from parameters for plug-and-play language modeling", Findings of ACL 2023): a masked
// language model whose last layers read an editable base of key and value vectors. What needs no tensors is here; the
// layers are in nn/plug_lm.hpp.

/// How a layer attends to the entries that its sequence recalled.
enum class KnowledgeAttentionType : std::uint8_t { multi_head, sentence_level, single_head };
constexpr std::string_view name(KnowledgeAttentionType t) {
    constexpr std::string_view names[] = {"multi_head", "sentence_level", "single_head"};
    return names[static_cast<std::size_t>(t)];
}

/// How the heads' results become rows again: token by token, or as the reference reads them, heads before tokens, which
/// mixes tokens and padding. Its checkpoints were trained so and need it.
enum class HeadMerge : std::uint8_t { per_token, reference };
constexpr std::string_view name(HeadMerge m) { return m == HeadMerge::per_token ? "per_token" : "reference"; }

/// The published knobs of a memory layer, with the values of the released script.
struct PlugLmOptions {
    index_t memory_layers = 1;    // the last ones
    index_t memory_ffn_dim = 768; // width of the feed-forward beside the memory; 0: none
    index_t memory_k = 5;         // entries that a sequence recalls
    index_t query_size = 128;
    bool query_batchnorm = true;
    KnowledgeAttentionType attention = KnowledgeAttentionType::multi_head;
    HeadMerge merge = HeadMerge::per_token;
    bool fix_keys = false, fix_values = false;
    index_t refreshing_steps = 200; // optimizer steps

    void check() const {
        if (memory_layers < 0 || memory_ffn_dim < 0 || memory_k < 1 || query_size < 1 || refreshing_steps < 1)
            fail("PlugLmOptions: expected memory_layers and memory_ffn_dim of at least 0, memory_k, query_size and "
                 "refreshing_steps of at least 1, got ",
                 memory_layers, ", ", memory_ffn_dim, ", ", memory_k, ", ", query_size, " and ", refreshing_steps);
        if (fix_values && !fix_keys)
            fail("PlugLmOptions: fix_values: expected fixed keys as well: stored values belong to stored keys");
    }
};

/// The learning rate rises linearly over the first `warmup` part of the steps and falls as (1 - p)^degree after it.
/// It is 0 from the last step on, where the reference takes the root of a negative number.
struct PolynomialDecay {
    double base = 6e-3, warmup = 0.2843, degree = 0.5;
    index_t total = 8000;

    double at(index_t finished_updates) const {
        if (total < 1 || finished_updates < 0)
            fail("PolynomialDecay: expected at least one step and no negative count, got ", total, " and ",
                 finished_updates);
        // In float, as the reference has it: 1 - p of the last steps depends on it.
        const float p = static_cast<float>(finished_updates + 1) / static_cast<float>(total);
        if (static_cast<double>(p) < warmup) return base * static_cast<double>(p) / warmup;
        return p >= 1 ? 0 : base * std::pow(static_cast<double>(1 - p), degree);
    }
};

/// Exact search by inner product, as published, through a knowledge store of any number of parts.
template <Executor X = Serial> RetrieveSegments<Exact<InnerProduct, X>> plug_lm_retriever(index_t k, X executor = {}) {
    return {Exact<InnerProduct, X>{k, executor}, k};
}

} // namespace mnemo
