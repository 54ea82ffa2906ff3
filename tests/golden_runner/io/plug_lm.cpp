// SPDX-License-Identifier: MIT
#include "golden.hpp"

#include <mnemo/papers/plug_lm.hpp>

#include <algorithm>
#include <cmath>

using mnemo::index_t;

GOLDEN("pluglm.retrieve") {
    const auto keys = fixture.matrix("in.keys"), values = fixture.matrix("in.values"),
               queries = fixture.matrix("in.queries");
    const index_t k = fixture.integer("memory_k");
    mnemo::expect_equal("entries", keys.rows, fixture.integer("entries"));
    mnemo::KnowledgeStore store(keys.cols, values.cols);
    store.append(keys, values);
    const auto snapshot = store.snapshot();
    const mnemo::Hits hits = mnemo::plug_lm_retriever(k).retrieve(*snapshot, queries);
    std::vector<index_t> ids;
    std::vector<float> scores, found_keys, found_values;
    // Equal scores come in any order: ids are compared in the fixture's order within each run of them.
    const auto expected_ids = fixture.ids("out.I");
    const auto expected_scores = fixture.floats("out.scores");
    for (index_t q = 0; q < queries.rows; ++q) {
        const auto row_ids = hits.ids(q);
        mnemo::expect_equal("hits of a query", static_cast<index_t>(row_ids.size()), k);
        std::vector<index_t> ordered(row_ids.begin(), row_ids.end());
        const auto first = static_cast<std::size_t>(q * k);
        for (std::size_t i = 0; i < ordered.size(); ++i) {
            const auto same =
                std::find(ordered.begin() + static_cast<std::ptrdiff_t>(i), ordered.end(), expected_ids.at(first + i));
            if (same == ordered.end()) continue;
            const auto at = static_cast<std::size_t>(same - ordered.begin());
            if (hits.scores(q)[at] == hits.scores(q)[i]) std::swap(ordered[i], ordered[at]);
        }
        for (std::size_t i = 0; i < ordered.size(); ++i) {
            ids.push_back(snapshot->id(ordered[i]));
            scores.push_back(hits.scores(q)[i]);
            for (const mnemo::half x : snapshot->key(ordered[i])) found_keys.push_back(mnemo::to_float(x));
            for (const mnemo::half x : snapshot->value(ordered[i])) found_values.push_back(mnemo::to_float(x));
        }
    }
    check.equal("out.I", ids);
    check.close("out.scores", scores, expected_scores, {1e-5, 1e-5});
    check.close("out.key", found_keys, {});
    check.close("out.value", found_values, {});
}

GOLDEN("pluglm.lr_poly") {
    const mnemo::PolynomialDecay decay{fixture.number("base_lr"), fixture.number("warmup"), fixture.number("degree"),
                                       fixture.integer("total_steps")};
    std::vector<double> got, expected;
    const auto updates = fixture.ids("in.finished_updates");
    const auto rates = fixture.values<double>("out.lr");
    for (std::size_t i = 0; i < updates.size(); ++i) {
        const double rate = decay.at(updates[i]);
        check.that("out.lr", std::isfinite(rate), "finite learning rates");
        if (std::isnan(rates.at(i))) { // the reference's step behind the last: the root of a negative number
            check.that("out.lr", rate == 0, "0 behind the last step");
            continue;
        }
        got.push_back(rate), expected.push_back(rates[i]);
    }
    check.close("out.lr", got, expected, {1e-12, 1e-6});
}
