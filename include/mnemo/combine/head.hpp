// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/error.hpp>
#include <mnemo/kernels/head.hpp>
#include <mnemo/kernels/layer_norm.hpp>
#include <mnemo/kernels/log_sum_exp.hpp>

#include <span>
#include <vector>

namespace mnemo {

/// Evidence from recalled vectors: a host's own output head over them, softmax(output norm(vector)).
///
/// The output matrix is the host's, borrowed and not copied: it must outlive this. Each row reads all of it; where the
/// host's own logits are needed too, head_logits makes both in one pass.
struct HeadEvidence {
    LayerNorm norm{};
    KeyRows output{}; // [vocab, d], float, half or bfloat16

    template <class Q, ParametricRecall R, class S>
    void log_probs(const Reading<Q, R, S>& reading, index_t row, std::span<float> out) const {
        const std::span<const float> vector = reading.recall.vector(row);
        expect_equal("HeadEvidence: width of the recalled vectors", static_cast<index_t>(vector.size()), output.cols);
        expect_equal("HeadEvidence: vocabulary", static_cast<index_t>(out.size()), output.rows);
        std::vector<float> state(vector.size());
        norm(vector, state);
        head_logits(Rows(state.data(), 1, output.cols), output, MutRows(out.data(), 1, output.rows));
        log_softmax(out);
    }
};

} // namespace mnemo
