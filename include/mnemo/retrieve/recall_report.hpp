// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/error.hpp>

#include <algorithm>
#include <vector>

namespace mnemo {

/// How much of the exact answer was found. Every number is a fraction of 1.
struct RecallReport {
    index_t queries = 0;
    double recall = 1; // of all exact ids, the part that was found
    double lowest = 1; // the same of the query that came off worst
    double first = 1;  // queries whose nearest exact id was found
};

/// Compares two recalls of the same queries by their ids. A query with no exact id counts as found.
RecallReport compare(const AssociativeRecall auto& found, const AssociativeRecall auto& exact) {
    expect_equal("recall report: rows", static_cast<index_t>(found.rows()), static_cast<index_t>(exact.rows()));
    RecallReport report;
    report.queries = exact.rows();
    index_t wanted = 0, hit = 0, first = 0;
    std::vector<index_t> ids;
    for (index_t row = 0; row < report.queries; ++row) {
        ids.clear();
        for_each_hit(found, row, [&](index_t id, float) { ids.push_back(id); });
        std::sort(ids.begin(), ids.end());
        index_t row_wanted = 0, row_hit = 0;
        for_each_hit(exact, row, [&](index_t id, float) {
            const bool is_found = std::binary_search(ids.begin(), ids.end(), id);
            first += row_wanted == 0 && is_found;
            ++row_wanted, row_hit += is_found;
        });
        if (row_wanted == 0)
            ++first;
        else
            report.lowest = std::min(report.lowest, static_cast<double>(row_hit) / static_cast<double>(row_wanted));
        wanted += row_wanted, hit += row_hit;
    }
    if (wanted > 0) report.recall = static_cast<double>(hit) / static_cast<double>(wanted);
    if (report.queries > 0) report.first = static_cast<double>(first) / static_cast<double>(report.queries);
    return report;
}

/// The same for a retriever beside an exact one (Exact<MetricT>{k}), on queries of the user's own.
template <class Store, class Queries, RetrieverFor<Store, Queries> R, RetrieverFor<Store, Queries> E>
RecallReport recall_report(const R& retriever, const E& exact, const Store& store, const Queries& queries) {
    return compare(retriever.retrieve(store, queries), exact.retrieve(store, queries));
}

} // namespace mnemo
