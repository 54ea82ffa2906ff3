// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/error.hpp>
#include <mnemo/kernels/packed_keys.hpp>

#include <algorithm>
#include <span>

namespace mnemo {

// A store seen differently, without a copy. The store must outlive the view.

/// The first `count` entries of a store: what a smaller memory would have held.
template <AssociativeStore S> class FirstEntries {
  public:
    using value_type = typename S::value_type;

    FirstEntries(const S& store, index_t count) : store_(&store), count_(count) {}
    index_t key_dim() const { return store_->key_dim(); }
    index_t size() const { return std::min(count_, static_cast<index_t>(store_->size())); }
    value_type value(index_t id) const { return store_->value(id); }
    KeyRows keys() const
        requires KeyedStore<S>
    {
        KeyRows rows = store_->keys();
        rows.rows = std::min(rows.rows, size());
        return rows;
    }
    IdSet erased() const
        requires MarksErased<S>
    {
        return store_->erased();
    }

  private:
    const S* store_;
    index_t count_;
};

/// A store's keys with other values, one for each entry. Values in a random order are a control: the same retrieval
/// with nothing to remember.
template <AssociativeStore S> class WithValues {
  public:
    using value_type = typename S::value_type;

    /// `values` [size] is borrowed. Throws Error for another number of values.
    WithValues(const S& store, std::span<const value_type> values) : store_(&store), values_(values) {
        expect_equal("values", static_cast<index_t>(values.size()), static_cast<index_t>(store.size()));
    }
    index_t key_dim() const { return store_->key_dim(); }
    index_t size() const { return store_->size(); }
    value_type value(index_t id) const { return values_[static_cast<std::size_t>(id)]; }
    KeyRows keys() const
        requires KeyedStore<S>
    {
        return store_->keys();
    }
    IdSet erased() const
        requires MarksErased<S>
    {
        return store_->erased();
    }

  private:
    const S* store_;
    std::span<const value_type> values_;
};

static_assert(KeyedStore<FirstEntries<archetype::Store>> && !MarksErased<FirstEntries<archetype::Store>>);
static_assert(KeyedStore<WithValues<archetype::Store>>);

/// A store with a packed copy of its keys that lies elsewhere, in a mapped file say: exact search reads that first. It
/// may hold fewer entries than the store, but none that was replaced since it was made.
template <KeyedStore S> class WithPacked {
  public:
    using value_type = typename S::value_type;

    WithPacked(const S& store, const PackedView& packed) : store_(&store), packed_(packed) {
        expect_equal("WithPacked: width of the packed keys", packed.d, store.key_dim());
        if (packed.rows > store.size())
            fail("WithPacked: expected up to ", store.size(), " packed keys, got ", packed.rows);
    }
    index_t key_dim() const { return store_->key_dim(); }
    index_t size() const { return store_->size(); }
    value_type value(index_t id) const { return store_->value(id); }
    decltype(auto) keys() const { return store_->keys(); }
    IdSet erased() const { return erased_ids(*store_); }
    const PackedView& packed() const { return packed_; }

  private:
    const S* store_;
    PackedView packed_;
};

} // namespace mnemo
