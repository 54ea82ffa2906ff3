// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/error.hpp>
#include <mnemo/kernels/score.hpp>

#include <utility>

namespace mnemo {

/// A parametric memory: y = scale * B A q, with A [rank, d] and B [width, rank]. It holds no entries; whoever trained A
/// and B put into them what is remembered. Reading is const and re-entrant.
class LowRankMap {
  public:
    /// Throws Error if the shapes do not fit, or for numbers that are not finite.
    LowRankMap(Matrix a, Matrix b, float scale) : a_(std::move(a)), b_(std::move(b)), scale_(scale) {
        if (a_.rows < 1 || a_.cols < 1) fail("LowRankMap: A: expected [rank, d], got [", a_.rows, ", ", a_.cols, "]");
        expect_equal("LowRankMap: columns of B", b_.cols, a_.rows);
        for (const Matrix* m : {&a_, &b_})
            for (std::size_t i = 0; i < m->data.size(); ++i)
                if (!std::isfinite(m->data[i]))
                    fail("LowRankMap: ", m == &a_ ? "A" : "B", ": row ", static_cast<index_t>(i) / m->cols,
                         ": expected finite numbers");
        if (!std::isfinite(scale_)) fail("LowRankMap: scale: expected a finite number");
    }

    index_t key_dim() const { return a_.cols; }
    index_t rank() const { return a_.rows; }
    index_t width() const { return b_.rows; }
    float scale() const { return scale_; }
    const Matrix& a() const { return a_; }
    const Matrix& b() const { return b_; }

    /// z [rows, rank] = scale * A q.
    Matrix compress(Rows queries) const {
        expect_equal("LowRankMap: width of the queries", queries.cols, key_dim());
        Matrix z(queries.rows, rank());
        score_rows<InnerProduct>(queries, Rows(a_), z);
        for (float& x : z.data) x *= scale_;
        return z;
    }
    /// One vector [width] for each query.
    Vectors recite(Rows queries) const {
        Vectors y{Matrix(queries.rows, width())};
        score_rows<InnerProduct>(compress(queries), Rows(b_), y.values);
        return y;
    }

  private:
    Matrix a_, b_;
    float scale_;
};
static_assert(MemoryStore<LowRankMap> && ParametricStoreFor<LowRankMap, Rows>);

} // namespace mnemo
