// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/core/matrix_view.hpp>

#include <algorithm>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

namespace mnemo {

/// Entries in clusters: which cluster an entry belongs to, and who else does.
class Clusters {
  public:
    Clusters() = default;
    /// `cluster_of` [entries], each at least 0. Throws Error for a negative one, and for numbers far beyond the number
    /// of entries.
    explicit Clusters(std::vector<std::int32_t> cluster_of) : cluster_of_(std::move(cluster_of)) {
        std::int32_t last = -1;
        for (std::size_t i = 0; i < cluster_of_.size(); ++i) {
            if (cluster_of_[i] < 0 || cluster_of_[i] >= index_t{1} << 30)
                fail("Clusters: entry ", i, ": expected a cluster from 0 to 2^30 - 1, got ", cluster_of_[i]);
            last = std::max(last, cluster_of_[i]);
        }
        if (static_cast<std::size_t>(last) + 1 >
            2 * cluster_of_.size() + 1024) // a broken file must not fill the memory
            fail("Clusters: expected no more clusters than entries, got ", last + 1, " for ", cluster_of_.size());
        first_.assign(static_cast<std::size_t>(last) + 2, 0);
        for (const std::int32_t c : cluster_of_) ++first_[static_cast<std::size_t>(c) + 1];
        std::partial_sum(first_.begin(), first_.end(), first_.begin());
        std::vector<std::size_t> next(first_.begin(), first_.end() - 1);
        members_.resize(cluster_of_.size());
        for (std::size_t i = 0; i < cluster_of_.size(); ++i)
            members_[next[static_cast<std::size_t>(cluster_of_[i])]++] = static_cast<index_t>(i);
    }

    index_t entries() const { return static_cast<index_t>(cluster_of_.size()); }
    index_t count() const { return first_.empty() ? 0 : static_cast<index_t>(first_.size()) - 1; }
    std::int32_t of(index_t id) const { return cluster_of_[static_cast<std::size_t>(id)]; }
    std::span<const std::int32_t> assignment() const { return cluster_of_; } // [entries]
    /// Ids of the entries of a cluster, ascending.
    std::span<const index_t> members(std::int32_t cluster) const {
        const std::size_t from = first_[static_cast<std::size_t>(cluster)],
                          to = first_[static_cast<std::size_t>(cluster) + 1];
        return std::span(members_).subspan(from, to - from);
    }

  private:
    std::vector<std::int32_t> cluster_of_; // [entries]
    std::vector<std::size_t> first_;       // [clusters + 1], into members_
    std::vector<index_t> members_;         // [entries]
};

} // namespace mnemo
