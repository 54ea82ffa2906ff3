// SPDX-License-Identifier: MIT
#include <golden.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/store/tokens.hpp>

#include <algorithm>
#include <limits>

using namespace mnemo;

namespace {

template <class MetricT> Hits search(const golden::Fixture& fixture) {
    const Matrix keys = fixture.matrix("in.keys");
    TokenStore<> store(keys.cols);
    store.append(keys, std::vector<std::int32_t>(static_cast<std::size_t>(keys.rows)));
    if (fixture.has("in.valid")) {
        const auto valid = fixture.ids("in.valid");
        for (std::size_t id = 0; id < valid.size(); ++id)
            if (valid[id] == 0) store.erase(static_cast<index_t>(id));
    }
    return Exact<MetricT, Threads>{fixture.integer("k"), {2}}.retrieve(store, fixture.matrix("in.queries"));
}

} // namespace

// Distances within the fixture's tolerance. Ids in order, ties by lower id; two that are no tie for us may change
// places only where their distances are as near as the fixture's own rounding.
GOLDEN("retrieval.exact") {
    const bool l2 = fixture.text("metric") == "l2";
    const Hits hits = l2 ? search<L2>(fixture) : search<InnerProduct>(fixture);
    const golden::Tolerance tolerance{fixture.number("atol"), fixture.number("rtol")};
    const index_t k = fixture.integer("k");
    const float missing = l2 ? std::numeric_limits<float>::infinity() : -std::numeric_limits<float>::infinity();
    std::vector<float> distances;
    std::vector<index_t> ids, groups;
    for (index_t row = 0; row < hits.rows(); ++row) {
        index_t group = -1;
        float before = std::numeric_limits<float>::quiet_NaN();
        for (std::size_t j = 0; j < static_cast<std::size_t>(k); ++j) {
            const bool found = j < hits.ids(row).size();
            const float score = found ? hits.scores(row)[j] : -std::numeric_limits<float>::infinity();
            distances.push_back(!found ? missing : l2 ? 0.0f - score : score);
            ids.push_back(found ? hits.ids(row)[j] : -1);
            group += score != before;
            groups.push_back(group);
            before = score;
        }
    }
    check.close("out.distances", distances, tolerance);

    const auto expected = fixture.ids("out.ids");
    const auto expected_groups = fixture.ids("out.tie_group");
    const auto near = [&](float a, float b) {
        return std::abs(double(a) - b) <= tolerance.absolute + tolerance.relative * std::abs(double(a));
    };
    for (std::size_t i = 0; i < expected.size() && expected.size() == ids.size(); ++i) {
        if (ids[i] == expected[i]) continue;
        const auto row = ids.begin() + static_cast<std::ptrdiff_t>(i - i % static_cast<std::size_t>(k));
        const auto at = static_cast<std::size_t>(std::find(row, row + k, expected[i]) - ids.begin());
        if (at < ids.size() && ids[at] == expected[i] && groups[at] != groups[i] && near(distances[at], distances[i]))
            ids[i] = expected[i], groups[i] = expected_groups[i];
    }
    check.equal("out.ids", ids);
    check.equal("out.tie_group", groups);
}
