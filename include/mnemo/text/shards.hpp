// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/core/matrix_view.hpp>

#include <numeric>
#include <random>
#include <vector>

namespace mnemo {

// Which rank takes which batch in which step. Ranks take equally many steps; -1 is an empty batch.

/// Rank r takes batches r, r + world, ...
inline std::vector<index_t> interleaved_shard(index_t batches, index_t world, index_t rank) {
    if (world < 1 || rank < 0 || rank >= world) fail("shard: expected a rank below ", world, ", got ", rank);
    std::vector<index_t> out;
    for (index_t first = 0; first < batches; first += world) out.push_back(first + rank < batches ? first + rank : -1);
    return out;
}

/// Batches in order (`--keep-order`): the ranks are cut into groups of `group`, each group owns a contiguous run, and
/// its ranks take turns. So at each step a group holds `group` consecutive batches, and follows its run from step to
/// step.
inline std::vector<index_t> sequential_shard(index_t batches, index_t world, index_t rank, index_t group = 1) {
    if (world < 1 || rank < 0 || rank >= world || group < 1 || world % group != 0)
        fail("shard: expected a rank below ", world, " and groups of equally many ranks, got rank ", rank,
             " and groups of ", group);
    const index_t groups = world / group, run = (batches + groups - 1) / groups, begin = rank / group * run;
    std::vector<index_t> out;
    for (index_t first = 0; first < run; first += group) {
        const index_t i = first + rank % group;
        out.push_back(i < run && begin + i < batches ? begin + i : -1);
    }
    return out;
}

/// Batches of a predefined order (`--predefined-batches`), shuffled by groups of `world` that stay together: what a
/// step of all ranks holds does not change, only the order of steps.
inline std::vector<index_t> shuffle_steps(index_t batches, index_t world, std::uint64_t seed) {
    if (world < 1) fail("shuffle_steps: expected at least 1 rank, got ", world);
    std::vector<index_t> steps(static_cast<std::size_t>((batches + world - 1) / world));
    std::iota(steps.begin(), steps.end(), index_t{0});
    std::mt19937_64 generator(seed);
    for (std::size_t i = steps.size(); i-- > 1;) std::swap(steps[i], steps[generator() % (i + 1)]);
    std::vector<index_t> out;
    for (const index_t step : steps)
        for (index_t i = step * world; i < std::min(batches, (step + 1) * world); ++i) out.push_back(i);
    return out;
}

/// Throws Error unless `order` holds each of 0 .. segments - 1 once: a file of another length is not passed over.
inline void check_order(const std::vector<index_t>& order, index_t segments) {
    expect_equal("predefined order: segments", static_cast<index_t>(order.size()), segments);
    std::vector<bool> seen(order.size());
    for (const index_t id : order) {
        if (id < 0 || id >= segments || seen[static_cast<std::size_t>(id)])
            fail("predefined order: expected each of ", segments, " segments once, got ", id,
                 id >= 0 && id < segments ? " twice" : "");
        seen[static_cast<std::size_t>(id)] = true;
    }
}

} // namespace mnemo
