// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/core/recall.hpp>

#include <algorithm>
#include <span>
#include <unordered_map>
#include <vector>

namespace mnemo {

/// Which entries of a corpus become nodes around a text.
struct NeighbourGraphOptions {
    index_t left = 1, right = 1; // entries before and behind a neighbour
    index_t own_text = 0;        // neighbours nearer than this to the target's own place are left out (training)
    bool shared = false;         // one node for an entry that several windows hold, so that windows join
};

/// A block of text and its neighbours in a corpus (Meng et al. 2022, section 3.1). Neighbours and the entries around
/// them are nodes; a neighbour, the centre of its window, is an edge to its target, and nodes whose entries stand
/// beside each other in the corpus are edges in both directions. Every node also is an edge to itself, so a node has at
/// most three sources: a band instead of a general graph.
struct NeighbourGraph {
    std::vector<index_t> rows;          // [nodes], their entries in the corpus
    std::vector<index_t> before, after; // [nodes], the node of the entry before and behind, -1: none
    std::vector<index_t> centres;       // nodes, target after target
    std::vector<std::size_t> first;     // [targets + 1], into centres

    index_t nodes() const { return static_cast<index_t>(rows.size()); }
    index_t targets() const { return static_cast<index_t>(first.size()) - 1; }
    std::span<const index_t> centres_of(index_t target) const {
        const auto t = static_cast<std::size_t>(target);
        return std::span(centres).subspan(first[t], first[t + 1] - first[t]);
    }
};

/// `neighbours` [targets, k] are entries of a corpus of `corpus` entries, -1: none. `places` [targets] is where the
/// targets stand in that corpus, for own_text; of another text it is not read. Throws Error for an entry that the
/// corpus does not have.
inline NeighbourGraph build_neighbour_graph(MatrixView<const index_t> neighbours, std::span<const index_t> places,
                                            index_t corpus, const NeighbourGraphOptions& options) {
    if (options.left < 0 || options.right < 0)
        fail("NeighbourGraph: expected contexts of at least 0, got ", options.left, " and ", options.right);
    if (options.own_text > 0)
        expect_equal("NeighbourGraph: places", static_cast<index_t>(places.size()), neighbours.rows);
    NeighbourGraph graph;
    std::unordered_map<index_t, index_t> known; // entry -> node, if nodes are shared
    const auto node_of = [&](index_t row) {
        if (options.shared) {
            const auto [at, is_new] = known.try_emplace(row, graph.nodes());
            if (!is_new) return at->second;
        }
        graph.rows.push_back(row);
        graph.before.push_back(-1), graph.after.push_back(-1);
        return graph.nodes() - 1;
    };
    const auto join = [&](index_t left, index_t right) {
        graph.after[static_cast<std::size_t>(left)] = right;
        graph.before[static_cast<std::size_t>(right)] = left;
    };
    graph.first.push_back(0);
    std::vector<index_t> window;
    for (index_t t = 0; t < neighbours.rows; ++t) {
        for (const index_t row : neighbours[t]) {
            if (row == -1) continue;
            if (row < 0 || row >= corpus)
                fail("NeighbourGraph: target ", t, ": expected entries of a corpus of ", corpus, ", got ", row);
            if (options.own_text > 0 && std::abs(places[static_cast<std::size_t>(t)] - row) < options.own_text)
                continue;
            const index_t begin = std::max<index_t>(0, row - options.left),
                          end = std::min(corpus, row + 1 + options.right);
            const index_t centre = node_of(row); // nodes in the reference's order: the centre, left, right
            window.clear();
            for (index_t r = begin; r < end; ++r) window.push_back(r == row ? centre : node_of(r));
            for (std::size_t j = 1; j < window.size(); ++j) join(window[j - 1], window[j]);
            graph.centres.push_back(centre);
        }
        graph.first.push_back(graph.centres.size());
    }
    if (options.shared) // windows that touch without overlapping
        for (index_t node = 0; node < graph.nodes(); ++node)
            if (const auto next = known.find(graph.rows[static_cast<std::size_t>(node)] + 1); next != known.end())
                join(node, next->second);
    return graph;
}

/// What was found for each query as a table [rows, k], -1 where less was found.
inline std::vector<index_t> neighbour_table(const AssociativeRecall auto& recall, index_t k) {
    std::vector<index_t> table(static_cast<std::size_t>(index_t{recall.rows()} * k), -1);
    for (index_t row = 0; row < recall.rows(); ++row) {
        index_t n = 0;
        for_each_hit(recall, row, [&](index_t id, float) {
            if (n < k) table[static_cast<std::size_t>(row * k + n++)] = id;
        });
    }
    return table;
}

} // namespace mnemo
