// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/error.hpp>

#include <algorithm>
#include <vector>

namespace mnemo {

/// The newest `capacity` keys with their tokens: a long-term memory that forgets the oldest. Keys stay where they were
/// written, so keys() is a plain matrix and appending copies only what is new; ids are slots, and a slot is used again
/// when its entry is forgotten. Reading is const and re-entrant; writing is exclusive.
class RingStore {
  public:
    using value_type = std::int32_t;

    RingStore(index_t key_dim, index_t capacity) : key_dim_(key_dim), capacity_(capacity) {
        if (key_dim < 1 || capacity < 0)
            fail("RingStore: expected a key width of at least 1 and a capacity of at least 0, got ", key_dim, " and ",
                 capacity);
    }

    index_t key_dim() const { return key_dim_; }
    index_t capacity() const { return capacity_; }
    index_t size() const { return static_cast<index_t>(values_.size()); }
    value_type value(index_t slot) const { return values_[static_cast<std::size_t>(slot)]; }
    std::span<const value_type> values() const { return values_; }
    Rows keys() const { return {keys_.data(), size(), key_dim_}; }
    /// The slot of the entry that is `age` younger than the oldest.
    index_t slot(index_t age) const { return size() == 0 ? 0 : (oldest_ + age) % size(); }

    /// Appends keys [n, key_dim] with values [n]; what is older than the newest `capacity` is forgotten.
    void append(Rows keys, std::span<const value_type> values) {
        expect_equal("RingStore::append: width of the keys", keys.cols, key_dim_);
        expect_equal("RingStore::append: values", static_cast<index_t>(values.size()), keys.rows);
        for (index_t i = std::max<index_t>(keys.rows - capacity_, 0); i < keys.rows; ++i) {
            const auto row = keys[i];
            const value_type value = values[static_cast<std::size_t>(i)];
            if (size() < capacity_) {
                keys_.insert(keys_.end(), row.begin(), row.end());
                values_.push_back(value);
            } else {
                std::copy(row.begin(), row.end(), keys_.begin() + oldest_ * key_dim_);
                values_[static_cast<std::size_t>(oldest_)] = value;
                oldest_ = (oldest_ + 1) % capacity_;
            }
        }
    }
    /// Forgets everything; keeps the memory.
    void clear() { keys_.clear(), values_.clear(), oldest_ = 0; }

  private:
    index_t key_dim_, capacity_, oldest_ = 0;
    std::vector<float> keys_; // [size, key_dim], by slot
    std::vector<value_type> values_;
};

} // namespace mnemo
