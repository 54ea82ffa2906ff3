// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/kernels/packed_keys.hpp>

#include <vector>

namespace mnemo {

/// Keys in inverted lists, as a search reads them: each list holds the keys that are nearest to its centroid, packed in
/// panels of its own. In memory or in a mapped file.
struct ListsView {
    static constexpr std::uint32_t kNone = ~std::uint32_t{0}; // the id of a place that holds no key
    PackedView keys;                                          // rows: places, which are whole panels
    const std::uint32_t* ids = nullptr;                       // [places]
    index_t lists = 0, entries = 0;                           // entries: keys in all lists, the first ones of the store
    const float* centroids = nullptr;                         // [lists, d]; of normalised keys for Cosine
    const float* radius = nullptr;       // [lists], the farthest key's distance from the centroid, rounded up
    const std::int64_t* first = nullptr; // [lists + 1], places

    Rows centroid_rows() const { return {centroids, lists, keys.d}; }
    double bytes_a_key() const {
        const double place = 4.0 * static_cast<double>(detail::filter_words(keys.format, keys.d)) + 16;
        return entries > 0 ? place * static_cast<double>(keys.rows) / static_cast<double>(entries) : 0;
    }
};

/// Owns such lists. Made by ListsBuilder (retrieve/build_lists.hpp), or empty.
struct KeyLists {
    Metric metric = Metric::l2;
    FilterFormat format = FilterFormat::int8;
    index_t d = 0, entries = 0;
    std::vector<float> centre, centroids, radius, bias, scale;
    HugeVector<std::uint32_t> words;
    std::vector<std::uint32_t> ids;
    std::vector<std::int32_t> offset;
    std::vector<std::uint32_t> bound;
    std::vector<detail::Norms> norms;
    std::vector<std::int64_t> first;

    ListsView view() const {
        ListsView v;
        v.keys = {metric,
                  format,
                  static_cast<index_t>(ids.size()),
                  d,
                  centre.data(),
                  words.data(),
                  bias.data(),
                  scale.data(),
                  offset.data(),
                  bound.data(),
                  norms.data()};
        v.ids = ids.data(), v.lists = static_cast<index_t>(radius.size()), v.entries = entries;
        v.centroids = centroids.data(), v.radius = radius.data(), v.first = first.data();
        return v;
    }
};

} // namespace mnemo
