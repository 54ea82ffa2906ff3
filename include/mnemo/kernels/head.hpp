// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/kernels/score.hpp>

#include <algorithm>

namespace mnemo {

/// logits [rows, vocab] = states [rows, d] output^T, in one pass over the output matrix [vocab, d] whatever the number
/// of rows: a piece of it is multiplied with all of them while it is in the cache. At few rows the time is that of
/// reading the matrix, and further rows are nearly free. The same bits as score_rows<InnerProduct>.
inline void head_logits(Rows states, const KeyRows& output, MutRows logits) {
    assert(states.cols == output.cols && logits.rows == states.rows && logits.cols == output.rows);
    constexpr index_t kPiece = 128 << 10; // bytes; half of a second-level cache
    const index_t step = std::max<index_t>(1, kPiece / std::max<index_t>(1, output.cols * size_of(output.type)));
    output.visit([&]<class T>(MatrixView<const T> w) {
        for (index_t first = 0; first < w.rows; first += step) {
            const index_t n = std::min(step, w.rows - first);
            score_rows<InnerProduct>(states, w.slice(first, n),
                                     MutRows(logits.data + first, logits.rows, n, logits.stride));
        }
    });
}

} // namespace mnemo
