// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/store/knowledge.hpp>

#include <memory>
#include <utility>

namespace mnemo {

/// A snapshot of a KnowledgeStore whose entries predict a token: the first of each entry's document. Combiners of
/// tokens then read a store that is edited, published and compacted elsewhere; edits are in the next snapshot.
class KnowledgeTokens {
  public:
    using value_type = std::int32_t;

    explicit KnowledgeTokens(std::shared_ptr<const KnowledgeSnapshot> snapshot) : snapshot_(std::move(snapshot)) {
        for (const KnowledgeSegment& segment : snapshot_->segments())
            if (segment.size() > 0 && segment.document(0).empty())
                fail("KnowledgeTokens: expected a store with documents of at least one token, got one without");
    }
    index_t key_dim() const { return snapshot_->key_dim(); }
    index_t size() const { return snapshot_->size(); }
    value_type value(index_t row) const { return snapshot_->document(row)[0]; }
    auto segments() const { return snapshot_->segments(); }
    index_t first_row(std::size_t segment) const { return snapshot_->first_row(segment); }
    const KnowledgeSnapshot& snapshot() const { return *snapshot_; }

  private:
    std::shared_ptr<const KnowledgeSnapshot> snapshot_;
};
static_assert(TokenValued<KnowledgeTokens>);

} // namespace mnemo
