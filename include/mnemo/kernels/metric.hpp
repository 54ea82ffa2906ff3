// SPDX-License-Identifier: MIT
#pragma once

#include <concepts>
#include <cstdint>
#include <string_view>

namespace mnemo {

enum class Metric : std::uint8_t { l2, inner_product, cosine };

constexpr std::string_view name(Metric m) {
    return m == Metric::l2 ? "l2" : m == Metric::inner_product ? "inner_product" : "cosine";
}

// How near a key is to a query. All are similarities: larger is nearer.

/// Negated squared Euclidean distance, -sum (q_j - x_j)^2.
struct L2 {
    static constexpr Metric metric = Metric::l2;
};
/// sum q_j x_j.
struct InnerProduct {
    static constexpr Metric metric = Metric::inner_product;
};
/// Inner product of the normalised vectors, q.x / (|q| |x|). A zero vector is at 0 to everything; a norm beyond 1e19
/// overflows when squared and counts as infinite, one below 1e-23 as zero.
struct Cosine {
    static constexpr Metric metric = Metric::cosine;
};

/// One of the three tags.
template <class M>
concept MetricTag = requires {
    { M::metric } -> std::convertible_to<Metric>;
};

} // namespace mnemo
