// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/executor.hpp>
#include <mnemo/kernels/head_hits.hpp>
#include <mnemo/kernels/metric.hpp>
#include <mnemo/retrieve/exact.hpp>

#include <algorithm>
#include <utility>
#include <vector>

namespace mnemo {

/// Every head searches by itself: its part of each query [rows, heads * head_dim] among its own keys. Inner is any
/// retriever; the executor shares the heads out.
template <class RetrieverT = Exact<InnerProduct>, Executor X = Serial> struct PerHead {
    RetrieverT inner{};
    [[no_unique_address]] X executor{};

    HeadHits retrieve(const HeadedStore auto& store, Rows queries) const { return retrieve(store, queries, {}); }
    HeadHits retrieve(const HeadedStore auto& store, Rows queries, HeadHits found) const {
        const index_t d = store.head_dim();
        expect_equal("PerHead: width of the queries", queries.cols, store.heads() * d);
        found.heads.resize(static_cast<std::size_t>(store.heads()));
        // Scratch is a thread's and not a head's: it stays near, and what is kept of the search is small.
        std::vector<Arena> scratch(static_cast<std::size_t>(executor.threads()));
        const auto swap = [&] {
            for (std::size_t t = 0; t < std::min(scratch.size(), found.heads.size()); ++t)
                std::swap(scratch[t], found.heads[t].scratch());
        };
        swap();
        executor.run(store.heads(), [&](index_t h, index_t thread) {
            const Rows own(queries.data + h * d, queries.rows, d, queries.stride);
            Hits& hits = found.heads[static_cast<std::size_t>(h)];
            Arena& mine = scratch[static_cast<std::size_t>(thread)];
            std::swap(hits.scratch(), mine);
            hits = retrieve_into(inner, store.head(h), own, std::move(hits));
            std::swap(hits.scratch(), mine);
        });
        swap(); // for the next search
        return found;
    }
};
template <class RetrieverT> PerHead(RetrieverT) -> PerHead<RetrieverT>;
template <class RetrieverT, class X> PerHead(RetrieverT, X) -> PerHead<RetrieverT, X>;

} // namespace mnemo
