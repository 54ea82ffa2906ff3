// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/recall.hpp>
#include <mnemo/store/knowledge.hpp>

#include <algorithm>
#include <span>
#include <vector>

namespace mnemo {

/// An entry that was read.
struct Fired {
    index_t sequence = 0, layer = 0; // who read it
    index_t rank = 0;                // 0: the best
    index_t row = 0, id = 0, source = 0;
    float score = 0;
};

/// Which entries fired for which sequence and layer. The entries' documents are snapshot.document(row), in the snapshot
/// that they were recalled from.
class Attribution {
  public:
    /// One row of `recall` for each sequence from `first_sequence` on. Throws Error for a row that is not in
    /// `snapshot`.
    void add(index_t first_sequence, index_t layer, const AssociativeRecall auto& recall,
             const KnowledgeSnapshot& snapshot) {
        for (index_t i = 0; i < recall.rows(); ++i) {
            index_t rank = 0;
            for_each_hit(recall, i, [&](index_t row, float score) {
                const index_t id = snapshot.id(row);
                fired_.push_back({first_sequence + i, layer, rank++, row, id, snapshot.source_of(id), score});
            });
        }
    }
    std::span<const Fired> fired() const { return fired_; }

    /// How often entries of a source were read, and by how many different sequences.
    struct Use {
        index_t total = 0, sequences = 0;
    };
    /// For each of `sources` sources.
    std::vector<Use> uses(index_t sources) const {
        std::vector<Use> out(static_cast<std::size_t>(sources));
        std::vector<std::pair<index_t, index_t>> pairs; // (source, sequence)
        for (const Fired& f : fired_) {
            if (f.source >= sources) fail("Attribution: expected sources below ", sources, ", got ", f.source);
            ++out[static_cast<std::size_t>(f.source)].total;
            pairs.emplace_back(f.source, f.sequence);
        }
        std::sort(pairs.begin(), pairs.end());
        pairs.erase(std::unique(pairs.begin(), pairs.end()), pairs.end());
        for (const auto& [source, sequence] : pairs) ++out[static_cast<std::size_t>(source)].sequences;
        return out;
    }
    void clear() { fired_.clear(); }

  private:
    std::vector<Fired> fired_;
};

} // namespace mnemo
