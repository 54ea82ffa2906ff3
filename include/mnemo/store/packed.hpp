// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/kernels/choose_format.hpp>
#include <mnemo/kernels/packed_keys.hpp>

#include <optional>
#include <utility>

namespace mnemo {

/// A store with a packed copy of its keys for searches by MetricT: exact search then reads a quarter of the bytes of
/// floats, and any batch from one query on goes through the first pass. The copy follows appends, replacements and
/// erasures made through this class. Writing is exclusive.
template <KeyedStore StoreT, MetricTag MetricT> class Packed {
  public:
    using value_type = typename StoreT::value_type;

    /// The format is chosen by the first keys, unless one is given.
    explicit Packed(StoreT store, std::optional<FilterFormat> format = std::nullopt)
        : store_(std::move(store)), packed_(store_.key_dim()), format_(format) {
        follow();
    }

    index_t key_dim() const { return store_.key_dim(); }
    index_t size() const { return store_.size(); }
    decltype(auto) value(index_t id) const { return store_.value(id); }
    decltype(auto) keys() const { return store_.keys(); }
    IdSet erased() const { return erased_ids(store_); }
    PackedView packed() const { return packed_.view(); }
    double packed_bytes_a_key() const { return packed_.bytes_a_key(); }
    const StoreT& store() const { return store_; }

    template <class Keys, class Values>
        requires WritableStoreFor<StoreT, Keys, Values>
    void append(const Keys& keys, const Values& values) {
        store_.append(keys, values);
        follow();
    }
    void replace(index_t id, std::span<const float> key, const value_type& value)
        requires EditableStore<StoreT>
    {
        store_.replace(id, key, value);
        const KeyRows all = store_.keys();
        all.visit([&](auto rows) { packed_.replace(id, rows.slice(id, 1)); }); // as it is stored
    }
    void erase(index_t id)
        requires EditableStore<StoreT>
    {
        store_.erase(id);
    }
    void clear()
        requires requires(StoreT& s) { s.clear(); }
    {
        store_.clear();
        packed_.clear();
    }

  private:
    void follow() {
        if (packed_.rows() == 0 && size() > 0)
            packed_ = PackedKeys<MetricT>(key_dim(), format_ ? *format_ : packed_format_for<MetricT>(store_.keys()));
        packed_.follow(store_.keys());
    }

    StoreT store_;
    PackedKeys<MetricT> packed_;
    std::optional<FilterFormat> format_;
};

} // namespace mnemo
