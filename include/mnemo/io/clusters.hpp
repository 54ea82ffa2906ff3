// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/npy.hpp>
#include <mnemo/kernels/clusters.hpp>

namespace mnemo {

/// Writes which cluster each entry belongs to: an npy file, int32 [entries].
inline void save_clusters(const std::string& path, const Clusters& clusters) {
    const index_t shape[] = {clusters.entries()};
    write_npy<std::int32_t>(path, shape, clusters.assignment());
}

/// Reads it back, for a store of `entries` entries. Throws Error, with the file's name, for anything else.
inline Clusters load_clusters(const std::string& path, index_t entries) {
    const Npy file = Npy::open(path);
    if (file.shape().size() != 1 || file.shape()[0] != entries)
        fail(path, ": expected the clusters of ", entries, " entries, got another shape");
    std::vector<std::int32_t> cluster_of = file.values<std::int32_t>();
    try {
        return Clusters(std::move(cluster_of));
    } catch (const Error& e) {
        fail(path, ": ", e.what());
    }
}

} // namespace mnemo
