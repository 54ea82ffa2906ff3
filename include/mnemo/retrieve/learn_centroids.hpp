// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/kernels/metric.hpp>
#include <mnemo/kernels/score.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/store/tokens.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <utility>
#include <vector>

namespace mnemo::detail {

/// Keys first, first + step, ... as floats into `out`; normalised for Cosine.
template <MetricTag MetricT> void read_keys(const KeyRows& keys, index_t first, index_t step, MutRows out) {
    for (index_t i = 0; i < out.rows; ++i) {
        keys.read(first + i * step, out[i]);
        if constexpr (MetricT::metric == Metric::cosine) {
            const std::span<const float> row = out[i];
            const float squares = mnemo::score<InnerProduct>(row, row);
            const float factor = squares > 0 ? 1 / std::sqrt(squares) : 0.0f;
            for (float& x : out[i]) x *= factor;
        }
    }
}

/// Appends the centroid that is nearest to each row.
template <Executor X>
void append_nearest(const Matrix& centroids, Rows rows, const X& executor, std::vector<std::int32_t>& out) {
    TokenStore<> store(centroids.cols);
    store.append(centroids, std::vector<std::int32_t>(static_cast<std::size_t>(centroids.rows)));
    const Hits hits = Exact<L2, X>{1, executor}.retrieve(store, rows);
    for (index_t i = 0; i < rows.rows; ++i)
        out.push_back(hits.ids(i).empty() ? 0 : static_cast<std::int32_t>(hits.ids(i)[0]));
}

/// Adds each row to the sums of the centroid that is nearest to it: sums [centroids, d + 1], the last one counts.
inline void add_to_nearest(Rows rows, std::span<const std::int32_t> nearest, double* sums) {
    const auto d = static_cast<std::size_t>(rows.cols);
    for (index_t i = 0; i < rows.rows; ++i) {
        double* of_list = sums + static_cast<std::size_t>(nearest[static_cast<std::size_t>(i)]) * (d + 1);
        for (std::size_t j = 0; j < d; ++j) of_list[j] += rows[i][j];
        ++of_list[d];
    }
}

/// A round of k-means; without centroids, they are first drawn from the sample, `lists` of them. A centroid that lost
/// all its keys moves to one that is drawn by chance. The sample tells rows() and hands out
///   at(some rows) -> Matrix, in the order asked for;
///   sums(centroids) -> [lists, d + 1] as add_to_nearest, rows added in their order.
void learn_centroids(const auto& sample, index_t lists, std::uint64_t seed, Matrix& centroids) {
    std::mt19937_64 gen(seed);
    const auto n = static_cast<std::size_t>(sample.rows()), many = static_cast<std::size_t>(lists);
    if (centroids.rows == 0) {
        std::vector<index_t> rows(n), drawn;
        for (std::size_t i = 0; i < n; ++i) rows[i] = static_cast<index_t>(i);
        for (std::size_t l = 0; l < many; ++l) {
            std::swap(rows[l % n], rows[l % n + gen() % (n - l % n)]);
            drawn.push_back(rows[l % n]);
        }
        centroids = sample.at(drawn);
    }
    const auto sums = sample.sums(std::as_const(centroids));
    const auto d = static_cast<std::size_t>(centroids.cols);
    std::vector<index_t> lost, chosen;
    for (std::size_t l = 0; l < many; ++l) {
        const auto by_chance = static_cast<index_t>(gen() % n);
        const double* of_list = sums.data() + l * (d + 1);
        if (of_list[d] > 0)
            for (std::size_t j = 0; j < d; ++j)
                centroids[static_cast<index_t>(l)][j] = static_cast<float>(of_list[j] / of_list[d]);
        else
            lost.push_back(static_cast<index_t>(l)), chosen.push_back(by_chance);
    }
    if (lost.empty()) return;
    const Matrix moved = sample.at(chosen);
    for (std::size_t i = 0; i < lost.size(); ++i) {
        const auto from = moved[static_cast<index_t>(i)];
        std::copy(from.begin(), from.end(), centroids[lost[i]].begin());
    }
}

} // namespace mnemo::detail
