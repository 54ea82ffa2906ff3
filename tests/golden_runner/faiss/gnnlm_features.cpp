// SPDX-License-Identifier: MIT
#include "golden.hpp"

#include <mnemo/faiss/quantizer.hpp>

#include <numeric>

namespace {

using namespace mnemo;

double distance(std::span<const float> a, const ProductQuantizer& q, std::span<const std::uint8_t> codes) {
    Matrix decoded(1, q.dim);
    q.decode({codes.data(), 1, q.parts}, decoded);
    double sum = 0;
    for (std::size_t j = 0; j < a.size(); ++j)
        sum += (double{a[j]} - decoded.data[j]) * (double{a[j]} - decoded.data[j]);
    return sum;
}

} // namespace

GOLDEN("gnnlm.pq_features") {
    if (fixture.integer("nbits") != 8) fail("nbits: expected 8");
    ProductQuantizer weights;
    const auto shape = fixture.shape("w.centroids");
    weights.parts = shape.at(0), weights.centroids_a_part = shape.at(1), weights.width = shape.at(0) * shape.at(2);
    weights.centroids = fixture.floats("w.centroids");
    if (fixture.has("w.A")) weights.rotation = fixture.floats("w.A");
    if (fixture.has("w.b")) weights.shift = fixture.floats("w.b");
    const Matrix x = fixture.matrix("in.x");
    weights.dim = x.cols;
    weights.check();
    const ProductQuantizer loaded = load_quantizer(fixture.companion("index_file"));
    check.close("w.centroids", loaded.centroids, golden::Tolerance{1e-6, 1e-6});

    const auto expected = fixture.values<std::uint8_t>("out.codes");
    const auto row_of = [&](const std::vector<std::uint8_t>& codes, index_t row) {
        return std::span(codes).subspan(static_cast<std::size_t>(row * weights.parts),
                                        static_cast<std::size_t>(weights.parts));
    };
    for (const ProductQuantizer& q : {weights, loaded}) {
        std::vector<std::uint8_t> codes(static_cast<std::size_t>(x.rows * q.parts));
        q.encode(x, {codes.data(), x.rows, q.parts});
        bool same = codes.size() == expected.size();
        for (index_t i = 0; same && i < x.rows; ++i) // other codes only where both are equally near
            if (!std::ranges::equal(row_of(codes, i), row_of(expected, i)))
                same = std::abs(distance(x[i], q, row_of(codes, i)) - distance(x[i], q, row_of(expected, i))) < 1e-5;
        check.that("out.codes", same, "the same codes, up to ties");
        Matrix decoded(x.rows, x.cols);
        q.decode({expected.data(), x.rows, q.parts}, decoded);
        check.close("out.decoded", decoded.data, {1e-5, 1e-5});
    }
}
