// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/core/matrix_view.hpp>

#include <algorithm>
#include <limits>
#include <span>
#include <vector>

namespace mnemo {

/// Vectors as one byte for each part of them (Jegou, Douze, Schmid 2011), after a rotation if there is one:
///
///     x' = A x + b;  code_m = nearest of 256 centroids to part m of x';  decoded = A^T (centroids - b)
///
/// as FAISS's "PQ<parts>" and "OPQ<parts>_<width>,PQ<parts>" do; faiss/quantizer.hpp exchanges them as its files.
struct ProductQuantizer {
    index_t dim = 0;              // of the vectors
    index_t parts = 0, width = 0; // of the rotated vectors, together; width is a multiple of parts
    index_t centroids_a_part = 256;
    std::vector<float> centroids; // [parts, centroids_a_part, width / parts]
    std::vector<float> rotation;  // [width, dim], or empty: none, width = dim
    std::vector<float> shift;     // [width], or empty: none

    /// Throws Error for sizes that do not fit each other.
    void check() const {
        const auto has = [](const std::vector<float>& v, index_t n) { return static_cast<index_t>(v.size()) == n; };
        if (dim < 1 || parts < 1 || width < parts || width % parts != 0 || centroids_a_part < 1 ||
            centroids_a_part > 256 || !has(centroids, centroids_a_part * width) ||
            !(rotation.empty() ? width == dim : has(rotation, width * dim)) || !(shift.empty() || has(shift, width)))
            fail("ProductQuantizer: expected parts of a vector of ", dim, " columns, got ", parts, " of ", width,
                 " columns with ", centroids.size(), " + ", rotation.size(), " + ", shift.size(), " numbers");
    }

    /// codes [rows, parts] of x [rows, dim]; ties take the lower code.
    void encode(Rows x, MatrixView<std::uint8_t> codes) const {
        expect_equal("ProductQuantizer: width of the vectors", x.cols, dim);
        expect_equal("ProductQuantizer: parts of the codes", codes.cols, parts);
        expect_equal("ProductQuantizer: rows of the codes", codes.rows, x.rows);
        const index_t part = width / parts;
        std::vector<float> rotated(size(width));
        for (index_t i = 0; i < x.rows; ++i) {
            rotate(x[i], rotated);
            for (index_t m = 0; m < parts; ++m) {
                const float* of_part = centroids.data() + m * centroids_a_part * part;
                float best = std::numeric_limits<float>::infinity();
                for (index_t c = 0; c < centroids_a_part; ++c) {
                    float distance = 0;
                    for (index_t j = 0; j < part; ++j) {
                        const float e = rotated[size(m * part + j)] - of_part[c * part + j];
                        distance += e * e;
                    }
                    if (distance < best) best = distance, codes[i][size(m)] = static_cast<std::uint8_t>(c);
                }
            }
        }
    }

    /// The vectors that codes [rows, parts] stand for: out [rows, dim]. Throws Error for a code without a centroid.
    void decode(MatrixView<const std::uint8_t> codes, MutRows out) const {
        expect_equal("ProductQuantizer: parts of the codes", codes.cols, parts);
        expect_equal("ProductQuantizer: width of the vectors", out.cols, dim);
        expect_equal("ProductQuantizer: rows of the vectors", out.rows, codes.rows);
        std::vector<float> rotated(size(width));
        for (index_t i = 0; i < codes.rows; ++i) {
            look_up(codes[i], rotated);
            const auto row = out[i];
            if (rotation.empty()) {
                std::copy(rotated.begin(), rotated.end(), row.begin());
                continue;
            }
            std::fill(row.begin(), row.end(), 0.0f);
            for (index_t w = 0; w < width; ++w) {
                const float factor = rotated[size(w)];
                const float* from = rotation.data() + w * dim;
                for (index_t j = 0; j < dim; ++j) row[size(j)] += factor * from[j];
            }
        }
    }

    /// Centroids of one vector's codes, without the shift: what decode rotates back. out [width].
    void look_up(std::span<const std::uint8_t> codes, std::span<float> out) const {
        const index_t part = width / parts;
        for (index_t m = 0; m < parts; ++m) {
            const index_t code = codes[size(m)];
            if (code >= centroids_a_part)
                fail("ProductQuantizer: expected codes below ", centroids_a_part, ", got ", code);
            std::copy_n(centroids.data() + (m * centroids_a_part + code) * part, part, out.data() + m * part);
        }
        for (std::size_t w = 0; w < shift.size(); ++w) out[w] -= shift[w];
    }

  private:
    static std::size_t size(index_t n) { return static_cast<std::size_t>(n); }
    void rotate(std::span<const float> x, std::span<float> out) const {
        if (rotation.empty()) {
            std::copy(x.begin(), x.end(), out.begin());
        } else {
            for (index_t w = 0; w < width; ++w) {
                double sum = 0;
                for (index_t j = 0; j < dim; ++j) sum += double{rotation[size(w * dim + j)]} * x[size(j)];
                out[size(w)] = static_cast<float>(sum);
            }
        }
        for (std::size_t w = 0; w < shift.size(); ++w) out[w] += shift[w];
    }
};

} // namespace mnemo
