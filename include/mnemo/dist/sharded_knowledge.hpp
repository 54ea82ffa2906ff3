// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/dist/sharded_store.hpp>
#include <mnemo/store/knowledge.hpp>

#include <array>
#include <cstring>
#include <memory>
#include <span>
#include <utility>

namespace mnemo::nn {

/// An entry of a knowledge base, whole.
struct KnowledgeEntry {
    std::span<const half> key, value;
    std::span<const std::uint16_t> document;
};

/// A snapshot whose values are whole entries: one process's part of a ShardedKnowledge.
class KnowledgePart {
  public:
    using value_type = KnowledgeEntry;

    KnowledgePart(std::shared_ptr<const KnowledgeSnapshot> entries, index_t document_length)
        : entries_(std::move(entries)), document_length_(document_length) {}
    index_t key_dim() const { return entries_->key_dim(); }
    index_t value_dim() const { return entries_->value_dim(); }
    index_t document_length() const { return document_length_; }
    index_t size() const { return entries_->size(); }
    KnowledgeEntry value(index_t row) const {
        return {entries_->key(row), entries_->value(row), entries_->document(row)};
    }
    std::span<const KnowledgeSegment> segments() const { return entries_->segments(); }
    index_t first_row(std::size_t segment) const { return entries_->first_row(segment); }

  private:
    std::shared_ptr<const KnowledgeSnapshot> entries_;
    index_t document_length_;
};

namespace detail {
/// Three widths, key, value, document.
template <> struct ValueOnWire<KnowledgeEntry> {
    using Widths = std::array<std::uint32_t, 3>;
    static index_t bytes(const KnowledgePart& part) {
        return static_cast<index_t>(sizeof(Widths)) + 2 * (part.key_dim() + part.value_dim() + part.document_length());
    }
    static void write(const KnowledgeEntry& entry, std::byte* to) {
        const Widths widths{static_cast<std::uint32_t>(entry.key.size()),
                            static_cast<std::uint32_t>(entry.value.size()),
                            static_cast<std::uint32_t>(entry.document.size())};
        std::memcpy(to, widths.data(), sizeof(Widths));
        to += sizeof(Widths);
        const auto put = [&](auto numbers) {
            if (!numbers.empty()) std::memcpy(to, numbers.data(), numbers.size_bytes());
            to += numbers.size_bytes();
        };
        put(entry.key), put(entry.value), put(entry.document);
    }
    static KnowledgeEntry read(const std::byte* from, index_t) {
        Widths widths;
        std::memcpy(widths.data(), from, sizeof(Widths));
        from += sizeof(Widths);
        const auto take = [&]<class T>(T, std::uint32_t n) {
            const std::span<const T> numbers(reinterpret_cast<const T*>(from), n);
            from += numbers.size_bytes();
            return numbers;
        };
        KnowledgeEntry entry;
        entry.key = take(half{}, widths[0]), entry.value = take(half{}, widths[1]);
        entry.document = take(std::uint16_t{}, widths[2]);
        return entry;
    }
};
} // namespace detail

/// A knowledge base that is spread over ranks, for memory layers: rows are those of the whole, rank by rank. Keys,
/// values and documents can be read of this rank's entries and of those that the last retrieval through Sharded found,
/// until the next one. The constructor is called by all ranks together.
class ShardedKnowledge : public ShardedStore<KnowledgePart> {
  public:
    using value_type = std::span<const half>;

    /// Each rank brings a snapshot of its own entries, with documents of `document_length` tokens.
    ShardedKnowledge(std::shared_ptr<Ranks> ranks, std::shared_ptr<const KnowledgeSnapshot> own,
                     index_t document_length)
        : ShardedStore(std::move(ranks), KnowledgePart(std::move(own), document_length)) {}

    index_t value_dim() const { return shard().part(0).value_dim(); }
    KnowledgeEntry entry(index_t row) const { return ShardedStore::value(row); }
    std::span<const half> key(index_t row) const { return entry(row).key; }
    std::span<const half> value(index_t row) const { return entry(row).value; }
    std::span<const std::uint16_t> document(index_t row) const { return entry(row).document; }
};

} // namespace mnemo::nn
