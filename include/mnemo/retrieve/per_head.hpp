// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/kernels/head_hits.hpp>
#include <mnemo/kernels/metric.hpp>
#include <mnemo/retrieve/exact.hpp>

#include <utility>

namespace mnemo {

/// Every head searches by itself: its part of each query [rows, heads * head_dim] among its own keys. Inner is any
/// retriever.
template <class RetrieverT = Exact<InnerProduct>> struct PerHead {
    RetrieverT inner{};

    HeadHits retrieve(const HeadedStore auto& store, Rows queries) const { return retrieve(store, queries, {}); }
    HeadHits retrieve(const HeadedStore auto& store, Rows queries, HeadHits found) const {
        const index_t d = store.head_dim();
        expect_equal("PerHead: width of the queries", queries.cols, store.heads() * d);
        found.heads.resize(static_cast<std::size_t>(store.heads()));
        for (index_t h = 0; h < store.heads(); ++h) {
            const Rows own(queries.data + h * d, queries.rows, d, queries.stride);
            Hits& hits = found.heads[static_cast<std::size_t>(h)];
            hits = retrieve_into(inner, store.head(h), own, std::move(hits));
        }
        return found;
    }
};
template <class RetrieverT> PerHead(RetrieverT) -> PerHead<RetrieverT>;

} // namespace mnemo
