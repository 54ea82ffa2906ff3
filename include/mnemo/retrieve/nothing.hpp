// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>

namespace mnemo {

/// Finds nothing, from any store: for evidence that does not look at the hits.
struct Nothing {
    Hits retrieve(const MemoryStore auto& /*store*/, Rows queries, Hits spare = {}) const {
        spare.clear();
        for (index_t row = 0; row < queries.rows; ++row) spare.end_row();
        return spare;
    }
};
static_assert(Retriever<Nothing>);

} // namespace mnemo
