// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

namespace mnemo {

/// Ids, sizes and counts. Signed, 64 bits: a datastore of the published size has 1e8 rows.
using index_t = std::int64_t;

/// Row-major matrix that somebody else owns, borrowed for the call. `stride` is in elements, so a slice of a wider
/// buffer works without a copy.
template <class T> struct MatrixView {
    T* data = nullptr; // [rows, cols], row i at data + i * stride
    index_t rows = 0, cols = 0, stride = 0;

    MatrixView() = default;
    MatrixView(T* d, index_t r, index_t c) : data(d), rows(r), cols(c), stride(c) {}
    MatrixView(T* d, index_t r, index_t c, index_t s) : data(d), rows(r), cols(c), stride(s) {}

    operator MatrixView<const T>() const
        requires(!std::is_const_v<T>)
    {
        return {data, rows, cols, stride};
    }
    std::span<T> operator[](index_t i) const { return {data + i * stride, static_cast<std::size_t>(cols)}; }
    /// Rows [first, first + count).
    MatrixView slice(index_t first, index_t count) const { return {data + first * stride, count, cols, stride}; }
};
using Rows = MatrixView<const float>;
using MutRows = MatrixView<float>;

/// Owning float matrix, for policies that compute new rows.
struct Matrix {
    std::vector<float> data; // [rows, cols]
    index_t rows = 0, cols = 0;

    Matrix() = default;
    Matrix(index_t r, index_t c) : data(static_cast<std::size_t>(r * c)), rows(r), cols(c) {}
    operator Rows() const { return {data.data(), rows, cols}; }
    operator MutRows() { return {data.data(), rows, cols}; }
    std::span<float> operator[](index_t i) { return MutRows(*this)[i]; }
    std::span<const float> operator[](index_t i) const { return Rows(*this)[i]; }
};

} // namespace mnemo
