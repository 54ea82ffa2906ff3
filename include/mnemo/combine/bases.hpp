// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/matrix_view.hpp>

#include <span>
#include <vector>

namespace mnemo {

// What a host hands to an output-level combiner. MutRows is the plainest one: log-probabilities [rows, vocab], combined
// in place. A base of one's own that adds fields (positions, lengths) works wherever it has the same members.

/// Scoring a text: the log-probabilities of the targets only, so no [rows, vocab] matrix exists and an adaptive softmax
/// computes only what the targets need.
struct TargetLogProbs {
    std::span<const std::int32_t> targets; // [rows]
    std::span<float> log_p;                // [rows], in: the host's, out: the combination's
};

/// A host's raw logits [rows, vocab], combined in place; the result is logits again, not normalised.
struct Logits {
    MutRows logits;
};

/// Log-probabilities [rows, vocab] of sequences, combined in place, for weights that depend on the position: row i is
/// step steps[i] of its output, counted from 0, and its sequence will be about lengths[i] tokens long.
struct PositionedLogProbs {
    MutRows log_probs;
    std::span<const index_t> steps, lengths; // [rows]
};

/// What the memory alone says, for hosts that combine by themselves (logits on another device): row i has the distinct
/// tokens[offsets[i] .. offsets[i + 1]) with their log-probabilities, which sum to one, and its weight. A row that
/// recalled nothing is empty and has weight 0. Buffers are reused.
struct SparseLogProbs {
    std::vector<std::size_t> offsets;
    std::vector<std::int32_t> tokens;
    std::vector<float> log_p;
    std::vector<float> lambda; // [rows]
};

} // namespace mnemo
