// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/memory.hpp>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace mnemo::nn {

namespace detail {

/// How a store's values travel: `bytes` of each, and back.
template <class V> struct ValueOnWire; // a value_type that is neither a number nor a span of numbers cannot travel
template <class V>
    requires std::is_arithmetic_v<V>
struct ValueOnWire<V> {
    static index_t bytes(const auto&) { return sizeof(V); }
    static void write(const V& value, std::byte* to) { std::memcpy(to, &value, sizeof(V)); }
    static V read(const std::byte* from, index_t) {
        V value;
        std::memcpy(&value, from, sizeof(V));
        return value;
    }
};
template <class T>
    requires std::is_trivially_copyable_v<T>
struct ValueOnWire<std::span<const T>> {
    static index_t bytes(const auto& store) { return store.value_dim() * static_cast<index_t>(sizeof(T)); }
    static void write(std::span<const T> value, std::byte* to) {
        if (!value.empty()) std::memcpy(to, value.data(), value.size_bytes());
    }
    static std::span<const T> read(const std::byte* from, index_t bytes) {
        return {reinterpret_cast<const T*>(from), static_cast<std::size_t>(bytes) / sizeof(T)};
    }
};

/// Ids in the order in which they came, each once, and where each is.
class IdTable {
  public:
    void clear() {
        ids_.clear();
        std::fill(slots_.begin(), slots_.end(), kEmpty);
    }
    void reserve(std::size_t n) {
        ids_.reserve(n);
        if (2 * n > slots_.size()) grow(std::bit_ceil(2 * n));
    }
    void add(index_t id) {
        if (2 * (ids_.size() + 1) > slots_.size()) grow(std::max<std::size_t>(64, 4 * slots_.size()));
        const std::size_t slot = find(id);
        if (slots_[slot] != kEmpty) return;
        slots_[slot] = static_cast<std::uint32_t>(ids_.size());
        ids_.push_back(id);
    }
    void add(std::span<const index_t> ids) {
        constexpr std::size_t ahead = 16; // a slot is a cache miss: fetched while others are looked at
        reserve(ids_.size() + ids.size());
        for (std::size_t i = 0; i < ids.size(); ++i) {
            if (i + ahead < ids.size()) __builtin_prefetch(&slots_[hash(ids[i + ahead])], 1);
            add(ids[i]);
        }
    }
    std::span<const index_t> ids() const { return ids_; }
    /// Where `id` is in ids(), or -1.
    index_t place(index_t id) const {
        if (slots_.empty()) return -1;
        const std::uint32_t place = slots_[find(id)];
        return place == kEmpty ? -1 : index_t{place};
    }

  private:
    static constexpr auto kEmpty = static_cast<std::uint32_t>(-1); // a shard has fewer than 2^32 entries
    std::size_t hash(index_t id) const {                           // Fibonacci's
        return static_cast<std::uint64_t>(id) * 0x9E3779B97F4A7C15u >> 20 & (slots_.size() - 1);
    }
    std::size_t find(index_t id) const {
        std::size_t at = hash(id);
        while (slots_[at] != kEmpty && ids_[slots_[at]] != id) at = (at + 1) & (slots_.size() - 1);
        return at;
    }
    void grow(std::size_t slots) {
        slots_.assign(slots, kEmpty);
        for (std::size_t i = 0; i < ids_.size(); ++i) slots_[find(ids_[i])] = static_cast<std::uint32_t>(i);
    }
    std::vector<index_t> ids_;
    std::vector<std::uint32_t> slots_; // a power of two, at most half full
};

/// Values of entries that lie elsewhere, by id.
template <class V> class FetchedValues {
  public:
    IdTable table;
    std::vector<std::byte> values; // [ids, bytes]
    index_t bytes = 0;             // of a value
    void clear() { table.clear(), values.clear(); }
    bool has(index_t id) const { return table.place(id) >= 0; }
    V operator[](index_t id) const { return ValueOnWire<V>::read(values.data() + table.place(id) * bytes, bytes); }
};

} // namespace detail

/// The entries of one process: parts, each a store or a std::shared_ptr to one, whose rows follow one another.
template <class S> class Shard {
  public:
    using part_type = std::remove_const_t<typename mnemo::detail::pointee<S>::type>;
    using value_type = typename part_type::value_type;

    explicit Shard(std::vector<S> parts) : parts_(std::move(parts)) { count(); }

    /// 0 where there are no parts; an Error where they differ.
    index_t key_dim() const { return parts_.empty() ? 0 : index_t{part(0).key_dim()}; }
    index_t value_bytes() const { return parts_.empty() ? 0 : detail::ValueOnWire<value_type>::bytes(part(0)); }
    void check() const {
        for (std::size_t i = 1; i < parts(); ++i) {
            expect_equal(text("part ", i, " of a shard: key_dim"), index_t{part(i).key_dim()}, key_dim());
            expect_equal(text("part ", i, " of a shard: bytes of a value"),
                         index_t{detail::ValueOnWire<value_type>::bytes(part(i))}, value_bytes());
        }
        if (size() >= index_t{1} << 32) fail("a shard: expected fewer than 2^32 entries, got ", size());
    }
    /// Entries when they were counted, and now.
    index_t size() const { return first_of_part_.back(); }
    index_t entries_now() const {
        index_t n = 0;
        for (std::size_t i = 0; i < parts(); ++i) n += part(i).size();
        return n;
    }
    void count() {
        first_of_part_.assign(1, 0);
        for (std::size_t i = 0; i < parts(); ++i) first_of_part_.push_back(first_of_part_.back() + part(i).size());
    }

    std::size_t parts() const { return parts_.size(); }
    const part_type& part(std::size_t i) const { return mnemo::detail::access(parts_[i]); }
    auto& part(std::size_t i) { return mnemo::detail::access(parts_[i]); }
    index_t first_of_part(std::size_t i) const { return first_of_part_[i]; }

    value_type value(index_t row) const {
        const auto after = std::upper_bound(first_of_part_.begin(), first_of_part_.end(), row);
        const auto i = static_cast<std::size_t>(after - first_of_part_.begin()) - 1;
        return part(i).value(row - first_of_part_[i]);
    }

  private:
    std::vector<S> parts_;
    std::vector<index_t> first_of_part_{0}; // [parts + 1]
};

} // namespace mnemo::nn
