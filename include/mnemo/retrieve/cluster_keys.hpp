// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/kernels/clusters.hpp>
#include <mnemo/retrieve/build_lists.hpp>

namespace mnemo {

/// Sorts a store's keys into clusters of near ones (k-means), as inverted lists are built: the same clusters for any
/// number of threads. `options.lists` is the number of clusters; one for 100 to 200 entries serves Follow.
template <MetricTag MetricT = L2, Executor X = Serial>
Clusters cluster_keys(const KeyedStore auto& store, const ListsOptions& options, X executor = {}) {
    ListsBuilder<MetricT, X> builder(store.keys(), options, executor);
    while (builder.step()) {
    }
    return Clusters(builder.draft().assigned);
}

} // namespace mnemo
