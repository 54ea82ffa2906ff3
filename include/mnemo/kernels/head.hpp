// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/kernels/score.hpp>

#include <algorithm>

namespace mnemo {

namespace detail {
// Rows [first, first + M) times a piece of the matrix, of which each row is read once. Nothing is fetched ahead for one
// row: the processor's own fetching already keeps up with it.
#define MNEMO_HEAD_ROWS(level, target)                                                                                 \
    template <int M, class T>                                                                                          \
    target void head_rows_##level(Rows states, index_t first, MatrixView<const T> w, MutRows logits) {                 \
        for (index_t i = 0; i < w.rows; ++i) {                                                                         \
            float sum[M];                                                                                              \
            sum_##level<Sum::products, M, (M > 1)>(states[first].data(), states.stride, w.data + i * w.stride, w.cols, \
                                                   sum);                                                               \
            for (int m = 0; m < M; ++m) logits[first + m][static_cast<std::size_t>(i)] = sum[m] + 0.0f;                \
        }                                                                                                              \
    }
MNEMO_HEAD_ROWS(plain, )
#if MNEMO_X86
MNEMO_HEAD_ROWS(avx2, MNEMO_AVX2)
MNEMO_HEAD_ROWS(avx512, MNEMO_AVX512)
#endif
#undef MNEMO_HEAD_ROWS

template <int M, class T> void head_rows(Rows states, index_t first, MatrixView<const T> w, MutRows logits) {
#if MNEMO_X86
    if (simd_level() >= SimdLevel::avx512) return head_rows_avx512<M>(states, first, w, logits);
    if (simd_level() >= SimdLevel::avx2) return head_rows_avx2<M>(states, first, w, logits);
#endif
    head_rows_plain<M>(states, first, w, logits);
}
} // namespace detail

/// logits [rows, vocab] = states [rows, d] output^T, in one pass over the output matrix [vocab, d] whatever the number
/// of rows: a piece of it is multiplied with all of them while it is in the cache. The time is that of reading the
/// matrix, for two rows as for one. The same bits as score_rows<InnerProduct>.
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
