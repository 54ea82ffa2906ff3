// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/nn/tensor.hpp>

#include <ATen/Functions.h>

#include <vector>

namespace mnemo::nn {

/// The weights between features and a vocabulary, as plain tensors of anybody's model, which may be tied or views.
/// Without bands an ordinary softmax; with bands an adaptive one: the head decides between its words and the bands.
struct OutputLayer {
    struct Band {
        at::Tensor projection; // [d_i, D]
        at::Tensor embedding;  // [size, d_i]
    };
    at::Tensor words;        // [c_0, D], ids 0 .. c_0 - 1
    at::Tensor classes;      // [bands, D]; undefined without bands
    std::vector<Band> bands; // ids go on from c_0

    std::int64_t vocab_size() const {
        std::int64_t n = words.size(0);
        for (const Band& band : bands) n += band.embedding.size(0);
        return n;
    }
    /// Throws Error for widths that do not fit features of width `dim`.
    void check(std::int64_t dim) const {
        const auto expect = [](const char* what, const at::Tensor& t, std::int64_t rows, std::int64_t cols) {
            if (!t.defined() || t.dim() != 2 || (rows >= 0 && t.size(0) != rows) || t.size(1) != cols)
                fail("output layer: ", what, ": expected a tensor [", rows >= 0 ? text(rows) : "any", ", ", cols,
                     "], got ", describe(t));
        };
        expect("words", words, -1, dim);
        if (!bands.empty()) expect("classes", classes, static_cast<std::int64_t>(bands.size()), dim);
        for (const Band& band : bands) {
            expect("projection of a band", band.projection, -1, dim);
            expect("embedding of a band", band.embedding, -1, band.projection.size(0));
        }
    }
};

} // namespace mnemo::nn
