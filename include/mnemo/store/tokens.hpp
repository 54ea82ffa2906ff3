// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/error.hpp>
#include <mnemo/core/huge_pages.hpp>
#include <mnemo/kernels/convert.hpp>

#include <algorithm>
#include <vector>

namespace mnemo {

/// Keys with the token that followed each, in memory. Keys are kept as `Key` (float, half or bfloat16): half takes half
/// the memory and half the time of re-scoring. Reading is const and re-entrant; writing is exclusive.
template <KeyElement Key = float> class TokenStore {
  public:
    using value_type = std::int32_t;

    explicit TokenStore(index_t key_dim) : key_dim_(key_dim) {
        if (key_dim < 1) fail("TokenStore: expected a key width of at least 1, got ", key_dim);
    }

    index_t key_dim() const { return key_dim_; }
    index_t size() const { return static_cast<index_t>(values_.size()); }
    value_type value(index_t id) const { return values_[static_cast<std::size_t>(id)]; }
    std::span<const value_type> values() const { return values_; }
    MatrixView<const Key> keys() const { return {keys_.data(), size(), key_dim_}; }
    IdSet erased() const { return {erased_}; }
    bool is_erased(index_t id) const { return erased().contains(id); }

    /// Appends keys [n, key_dim] with values [n]; ids go on from size(). All or nothing: a key that is not finite, or
    /// not as a Key, is an error that names its row and column.
    void append(Rows keys, std::span<const value_type> values) {
        expect_equal("TokenStore::append: width of the keys", keys.cols, key_dim_);
        expect_equal("TokenStore::append: values", static_cast<index_t>(values.size()), keys.rows);
        for (index_t i = 0; i < keys.rows; ++i) check(keys[i], "append", i);
        grow(size() + keys.rows);
        const std::size_t before = keys_.size();
        keys_.resize(before + static_cast<std::size_t>(keys.rows * key_dim_));
        for (index_t i = 0; i < keys.rows; ++i)
            convert(keys[i], std::span<Key>(keys_).subspan(before + static_cast<std::size_t>(i * key_dim_), width()));
        values_.insert(values_.end(), values.begin(), values.end());
    }
    /// Another key and value under the same id, which must not have been erased.
    void replace(index_t id, std::span<const float> key, value_type value) {
        expect_entry(id, "replace");
        expect_equal("TokenStore::replace: width of the key", static_cast<index_t>(key.size()), key_dim_);
        check(key, "replace", 0);
        convert(key, std::span<Key>(keys_).subspan(static_cast<std::size_t>(id * key_dim_), width()));
        values_[static_cast<std::size_t>(id)] = value;
    }
    /// The entry is recalled no more; its id is not used again.
    void erase(index_t id) {
        expect_entry(id, "erase");
        const auto word = static_cast<std::size_t>(id) / 64;
        if (erased_.size() <= word) erased_.resize(word + 1);
        erased_[word] |= std::uint64_t{1} << (id % 64);
    }
    /// Forgets everything; the next id is 0. Keeps the memory.
    void clear() { keys_.clear(), values_.clear(), erased_.clear(); }
    void reserve(index_t entries) {
        keys_.reserve(static_cast<std::size_t>(entries * key_dim_));
        values_.reserve(static_cast<std::size_t>(entries));
    }

  private:
    std::size_t width() const { return static_cast<std::size_t>(key_dim_); }
    // Both vectors before either changes, so that running out of memory leaves the store as it was.
    void grow(index_t entries) {
        if (static_cast<std::size_t>(entries) > values_.capacity()) reserve(std::max(entries, 2 * size()));
    }
    void expect_entry(index_t id, const char* what) const {
        if (id < 0 || id >= size()) fail("TokenStore::", what, ": expected an id in [0, ", size(), "), got ", id);
        if (is_erased(id)) fail("TokenStore::", what, ": entry ", id, " was erased");
    }
    static void check(std::span<const float> key, const char* what, index_t row) {
        const std::size_t bad = first_not_finite<Key>(key);
        if (bad < key.size())
            fail("TokenStore::", what, ": expected numbers that are finite as ", name(key_type_of<Key>), ", got ",
                 static_cast<double>(key[bad]), " in row ", row, ", column ", bad);
    }

    index_t key_dim_;
    HugeVector<Key> keys_; // [size, key_dim]
    std::vector<value_type> values_;
    std::vector<std::uint64_t> erased_; // a bit an id, as far as the last erased one
};
static_assert(KeyedStore<TokenStore<>> && EditableStore<TokenStore<half>> && MarksErased<TokenStore<bfloat16>> &&
              TokenValued<TokenStore<>> && WritableStoreFor<TokenStore<>, Rows, std::span<const std::int32_t>>);

} // namespace mnemo
