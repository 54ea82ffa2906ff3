// SPDX-License-Identifier: MIT
#pragma once

// Stores whose entries tests spread over ranks, and what they compare.
#include "processes.hpp"

#include <mnemo/core/recall.hpp>
#include <mnemo/store/tokens.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string_view>
#include <utility>

using namespace mnemo;
using namespace mnemo::nn;

inline constexpr index_t kDim = 24;

// Small integers: ties are many, in every shard and between them. Others: no two scores are alike.
inline Matrix random_rows(index_t rows, unsigned seed, bool ties, index_t cols = kDim) {
    std::mt19937 random(seed);
    Matrix m(rows, cols);
    for (float& x : m.data) {
        const auto number = static_cast<float>(random() >> 8) / (1 << 24);
        x = ties ? std::floor(5 * number) - 2 : 2 * number - 1;
    }
    return m;
}
inline std::int32_t token_of(index_t id) { return static_cast<std::int32_t>((id * 7919) % 50021); }

// Rows [first, last) of the whole, those that are erased there erased here.
template <class Key> TokenStore<Key> store_of(Rows keys, index_t first, index_t last) {
    TokenStore<Key> store(keys.cols);
    std::vector<std::int32_t> tokens;
    for (index_t id = first; id < last; ++id) tokens.push_back(token_of(id));
    store.append(keys.slice(first, last - first), tokens);
    for (index_t id = first; id < last; ++id)
        if (id % 11 == 3) store.erase(id - first);
    return store;
}

// How many entries each rank has.
inline std::vector<index_t> split(const char* how, index_t rows, int world) {
    const auto n = static_cast<std::size_t>(world);
    std::vector<index_t> out(n, 0);
    const std::string_view s(how);
    if (s == "even") {
        for (std::size_t r = 0; r < n; ++r)
            out[r] = rows * static_cast<index_t>(r + 1) / world - rows * static_cast<index_t>(r) / world;
    } else if (s == "uneven") { // each half of what is left, the last one the rest
        for (std::size_t r = 0; r + 1 < n; ++r) rows -= out[r] = rows / 2;
        out[n - 1] = rows;
    } else if (s == "one empty") {
        for (std::size_t r = 0; r < n; ++r)
            if (r != n / 2 || n == 1) rows -= out[r] = rows / static_cast<index_t>(n - r);
        out[n - 1] += rows;
    } else { // all with the last
        out[n - 1] = rows;
    }
    return out;
}
inline std::pair<index_t, index_t> range_of(const std::vector<index_t>& sizes, int rank) {
    index_t first = 0;
    for (int r = 0; r < rank; ++r) first += sizes[static_cast<std::size_t>(r)];
    return {first, first + sizes[static_cast<std::size_t>(rank)]};
}

inline void require_same(const Hits& found, const Hits& expected, const std::string& what) {
    require(found.rows() == expected.rows(), what + ": as many rows");
    for (index_t q = 0; q < found.rows(); ++q) {
        const auto ids = found.ids(q), other = expected.ids(q);
        require(std::equal(ids.begin(), ids.end(), other.begin(), other.end()), what + ": the ids of one store");
        const std::span<const float> a = found.scores(q), b = expected.scores(q);
        require(a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size_bytes()) == 0),
                what + ": the scores of one store, bit for bit");
    }
}

// A rank's own queries, in number and in value.
inline Matrix queries_of(int rank, bool ties, int round) {
    const index_t counts[] = {37, 0, 5, 64, 1, 18, 0, 9};
    return random_rows(counts[(rank + round) % 8], static_cast<unsigned>(1000 + 10 * round + rank), ties);
}
