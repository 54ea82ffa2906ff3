// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/kernels/score.hpp>

#include <algorithm>

namespace mnemo {

namespace detail {
/// Rows [first, first + M) times a piece of the matrix, of which each row is read once.
template <int M, class T> void head_rows(Rows states, index_t first, MatrixView<const T> w, MutRows logits) {
    const auto run = [&](auto loop) {
        const double norms[M] = {}; // of no interest to products
        loop(states[first].data(), states.stride, norms, w, static_cast<const index_t*>(nullptr), w.rows,
             logits[first].data(), logits.stride);
    };
#if MNEMO_X86
    if (simd_level() >= SimdLevel::avx512) return run(score_loop_avx512<InnerProduct, M, T, index_t>);
    if (simd_level() >= SimdLevel::avx2) return run(score_loop_avx2<InnerProduct, M, T, index_t>);
#endif
    run(score_loop_plain<InnerProduct, M, T, index_t>);
}
} // namespace detail

/// logits [rows, vocab] = states [rows, d] output^T, in one pass over the output matrix [vocab, d] whatever the number
/// of rows: a piece of it is multiplied with all of them while it is in the cache. At few rows the time is that of
/// reading the matrix, and a second row costs less than reading it again. The same bits as score_rows<InnerProduct>.
inline void head_logits(Rows states, const KeyRows& output, MutRows logits) {
    assert(states.cols == output.cols && logits.rows == states.rows && logits.cols == output.rows);
    constexpr index_t kPiece = 128 << 10; // bytes; half of a second-level cache
    const index_t step = std::max<index_t>(1, kPiece / std::max<index_t>(1, output.cols * size_of(output.type)));
    output.visit([&]<class T>(MatrixView<const T> w) {
        for (index_t at = 0; at < w.rows; at += step) {
            const MatrixView<const T> piece = w.slice(at, std::min(step, w.rows - at));
            const MutRows out(logits.data + at, logits.rows, piece.rows, logits.stride);
            index_t row = 0;
            for (; row + 4 <= states.rows; row += 4) detail::head_rows<4>(states, row, piece, out);
            if (row + 2 <= states.rows) detail::head_rows<2>(states, row, piece, out), row += 2;
            if (row < states.rows) detail::head_rows<1>(states, row, piece, out);
        }
    });
}

} // namespace mnemo
