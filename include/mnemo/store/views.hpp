// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/error.hpp>
#include <mnemo/kernels/packed_keys.hpp>

#include <algorithm>
#include <span>
#include <vector>

namespace mnemo {

// A store seen differently, without a copy. The store must outlive the view.

/// A store as it is: what a view does not see differently.
template <AssociativeStore S> class StoreView {
  public:
    using value_type = typename S::value_type;

    explicit StoreView(const S& store) : store_(&store) {}
    index_t key_dim() const { return store_->key_dim(); }
    index_t size() const { return store_->size(); }
    value_type value(index_t id) const { return store_->value(id); }
    decltype(auto) keys() const
        requires KeyedStore<S>
    {
        return store_->keys();
    }
    IdSet erased() const
        requires MarksErased<S>
    {
        return store_->erased();
    }
    PackedView packed() const
        requires requires(const S& s) { PackedView(s.packed()); }
    {
        return store_->packed();
    }

  protected:
    const S* store_;
};

/// The first `count` entries of a store: what a smaller memory would have held.
template <AssociativeStore S> class FirstEntries : public StoreView<S> {
  public:
    FirstEntries(const S& store, index_t count) : StoreView<S>(store), count_(count) {}
    index_t size() const { return std::min(count_, static_cast<index_t>(this->store_->size())); }
    KeyRows keys() const
        requires KeyedStore<S>
    {
        KeyRows rows = this->store_->keys();
        rows.rows = std::min(rows.rows, size());
        return rows;
    }

  private:
    index_t count_;
};

/// The entries of a store that a filter keeps: of some documents, before some date, allowed for some user. Whatever
/// leaves erased entries out leaves the others out, too; exact search then finds the k best of those that are kept.
template <AssociativeStore S> class KeptEntries : public StoreView<S> {
  public:
    /// `keep(id)` is asked once for each entry there is; later ones are not seen.
    KeptEntries(const S& store, auto&& keep) : StoreView<S>(store), count_(store.size()) {
        const IdSet erased = erased_ids(store);
        left_out_.resize((static_cast<std::size_t>(count_) + 63) / 64);
        for (index_t id = 0; id < count_; ++id)
            if (erased.contains(id) || !keep(id))
                left_out_[static_cast<std::size_t>(id) / 64] |= std::uint64_t{1} << (id % 64);
    }
    index_t size() const { return count_; }
    KeyRows keys() const
        requires KeyedStore<S>
    {
        KeyRows rows = this->store_->keys();
        rows.rows = std::min(rows.rows, count_);
        return rows;
    }
    IdSet erased() const { return {left_out_}; }

  private:
    index_t count_;
    std::vector<std::uint64_t> left_out_;
};

/// A store's keys with other values, one for each entry. Values in a random order are a control: the same retrieval
/// with nothing to remember.
template <AssociativeStore S> class WithValues : public StoreView<S> {
  public:
    using value_type = typename S::value_type;

    /// `values` [size] is borrowed. Throws Error for another number of values.
    WithValues(const S& store, std::span<const value_type> values) : StoreView<S>(store), values_(values) {
        expect_equal("values", static_cast<index_t>(values.size()), static_cast<index_t>(store.size()));
    }
    value_type value(index_t id) const { return values_[static_cast<std::size_t>(id)]; }

  private:
    std::span<const value_type> values_;
};

/// A store with a packed copy of its keys that lies elsewhere, in a mapped file say: exact search reads that first. It
/// may hold fewer entries than the store, but none that was replaced since it was made.
template <KeyedStore S> class WithPacked : public StoreView<S> {
  public:
    WithPacked(const S& store, const PackedView& packed) : StoreView<S>(store), packed_(packed) {
        expect_equal("WithPacked: width of the packed keys", packed.d, store.key_dim());
        if (packed.rows > store.size())
            fail("WithPacked: expected up to ", store.size(), " packed keys, got ", packed.rows);
    }
    const PackedView& packed() const { return packed_; }

  private:
    PackedView packed_;
};

static_assert(KeyedStore<FirstEntries<archetype::Store>> && !MarksErased<FirstEntries<archetype::Store>>);
static_assert(KeyedStore<WithValues<archetype::Store>> && MarksErased<KeptEntries<archetype::Store>>);

} // namespace mnemo
