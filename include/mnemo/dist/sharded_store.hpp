// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/recall.hpp>
#include <mnemo/dist/agree.hpp>
#include <mnemo/dist/shard.hpp>
#include <mnemo/retrieve/settings.hpp>
#include <mnemo/text/hash.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

namespace mnemo::nn {

namespace detail {

/// A number for the type of a retriever and for that of one inside it that is chosen at run time, the same in every
/// process.
template <class RetrieverT> std::int64_t type_number(const RetrieverSettings& set) {
    return static_cast<std::int64_t>(Hash64().add(std::string_view(typeid(RetrieverT).name())).add(set.type).value());
}

/// Room for a message, kept from call to call. It is LibTorch's: whoever still sends from it when a call is given up
/// keeps it alive.
class Room {
  public:
    /// [rows, width] of bytes; what was there is lost.
    at::Tensor take(index_t rows, index_t width) {
        if (!bytes_.defined() || bytes_.numel() < rows * width) bytes_ = at::empty({rows * width}, at::kByte);
        return bytes_.narrow(0, 0, rows * width).view({rows, width});
    }

  private:
    at::Tensor bytes_;
};

/// What retrievals from a store need, kept from call to call. A copy of the store begins with none.
struct Buffers {
    Room own_queries, queries[2], rounded, answers[2], found; // of two pieces, where one is searched and one is sent
    Room rows, wanted, values, got;                           // of fetch()
    std::vector<index_t> ids;
    std::vector<Hits> hits; // of each part

    Buffers() = default;
    Buffers(Buffers&&) = default;
    Buffers& operator=(Buffers&&) = default;
    Buffers(const Buffers&) {}
    Buffers& operator=(const Buffers&) { return *this; }
    ~Buffers() = default;
};

} // namespace detail

/// A store whose entries are spread over the ranks: rank 0 holds the first ones, rank 1 those that follow, and so on,
/// any number each, none included. Ids are those of the whole. A rank's entries lie in any number of parts, each a
/// store or a std::shared_ptr to one; a rank without parts holds nothing.
///
/// The constructor, refresh() and fetch() are called by all ranks together, in the same order as everything else that
/// uses these Ranks; so is a retrieval through Sharded. Reading values is local: value(id) knows this rank's entries
/// and those that the last retrieval found.
template <class S> class ShardedStore {
  public:
    using value_type = typename Shard<S>::value_type;

    /// `identity` is a number that the parts of one store share (0: not stated): a rank that brings a part of another
    /// store is an Error on every rank, as is a key width, or a size of values, that differs.
    ShardedStore(std::shared_ptr<Ranks> ranks, std::vector<S> parts, std::uint64_t identity = 0)
        : ranks_(std::move(ranks)), shard_(std::move(parts)), identity_(identity) {
        refresh();
    }
    /// One part.
    ShardedStore(std::shared_ptr<Ranks> ranks, S part, std::uint64_t identity = 0)
        : ShardedStore(std::move(ranks), one(std::move(part)), identity) {}

    index_t key_dim() const { return key_dim_; }
    /// Entries of all ranks.
    index_t size() const { return first_.back(); }
    /// The value of one of this rank's entries, or of one that the last retrieval found; another id is an Error.
    value_type value(index_t id) const {
        if (is_local(id)) return shard_.value(id - first());
        if (!fetched_.has(id))
            fail("ShardedStore: value of entry ", id, ": expected an entry of this rank, [", first(), ", ",
                 first() + local_size(), "), or one that the last retrieval found");
        return fetched_[id];
    }

    Ranks& ranks() const { return *ranks_; }
    /// The first id of rank r; first(size of ranks) is size().
    index_t first(int r) const { return first_[static_cast<std::size_t>(r)]; }
    index_t first() const { return first(ranks_->rank()); }
    index_t size_of_rank(int r) const { return first(r + 1) - first(r); }
    index_t local_size() const { return size_of_rank(ranks_->rank()); }
    std::uint64_t identity() const { return identity_; }
    /// Of the retrieval that all ranks are in.
    detail::Buffers& buffers() const { return buffers_; }
    /// This rank's entries.
    const Shard<S>& shard() const { return shard_; }
    Shard<S>& shard() { return shard_; }

    /// All ranks: counts anew, after parts have grown. Ids of ranks behind one that grew move.
    void refresh() {
        const char* const names[] = {"entries", "key_dim", "bytes of a value", "the store's identity"};
        std::string failure;
        shard_.count();
        try {
            shard_.check();
        } catch (const Error& e) {
            failure = e.what();
        }
        const std::array<std::int64_t, 4> own{shard_.size(), shard_.key_dim(), shard_.value_bytes(),
                                              static_cast<std::int64_t>(identity_)};
        const auto all = detail::agree(*ranks_, "sharded store", names, own, 0, failure);
        // What the first rank that has parts says holds for all.
        std::size_t model = 0;
        while (model < all.size() && all[model][1] == 0) ++model;
        if (model == all.size()) fail("sharded store: expected a part on at least one rank, got none");
        first_.assign(1, 0);
        for (std::size_t r = 0; r < all.size(); ++r) {
            for (std::size_t i = 1; i < 4; ++i)
                if (all[r][1] != 0 && all[r][i] != all[model][i])
                    fail("sharded store: rank ", r, " holds a shard of another store: ", names[i], ": expected ",
                         static_cast<std::uint64_t>(all[model][i]), " as on rank ", model, ", got ",
                         static_cast<std::uint64_t>(all[r][i]));
            first_.push_back(first_.back() + all[r][0]);
        }
        starts_.assign(std::bit_ceil(all.size()), std::numeric_limits<index_t>::max());
        std::copy(first_.begin(), first_.end() - 1, starts_.begin());
        key_dim_ = all[model][1], fetched_.bytes = all[model][2];
        identity_ = static_cast<std::uint64_t>(all[model][3]);
        fetched_.clear();
    }

    /// All ranks: makes value() know the entries of `recall`, and no others that are not this rank's. Each id that
    /// another rank holds travels once, and its value comes back.
    void fetch(const AssociativeRecall auto& recall) const {
        fetched_.clear();
        const auto world = static_cast<std::size_t>(ranks_->size());
        if (world == 1) return;
        // Grouped by owner: what is asked of each rank.
        detail::Buffers& room = buffers_;
        std::vector<std::size_t> first_of_group(world + 1, 0);
        for (index_t row = 0; row < recall.rows(); ++row)
            for_each_hit(recall, row, [&](index_t id, float) {
                if (id < 0 || id >= size()) fail("ShardedStore: expected an id in [0, ", size(), "), got ", id);
                ++first_of_group[static_cast<std::size_t>(owner(id)) + 1];
            });
        for (std::size_t r = 0; r < world; ++r) first_of_group[r + 1] += first_of_group[r];
        std::vector<std::size_t> next(first_of_group.begin(), first_of_group.end() - 1);
        room.ids.resize(first_of_group.back());
        for (index_t row = 0; row < recall.rows(); ++row)
            for_each_hit(recall, row,
                         [&](index_t id, float) { room.ids[next[static_cast<std::size_t>(owner(id))]++] = id; });
        auto& table = fetched_.table;
        std::vector<std::int64_t> asked(world, 0), asking(world);
        for (std::size_t r = 0; r < world; ++r) {
            if (r == static_cast<std::size_t>(ranks_->rank())) continue;
            const auto before = table.ids().size();
            table.add(std::span<const index_t>(room.ids).subspan(first_of_group[r],
                                                                 first_of_group[r + 1] - first_of_group[r]));
            asked[r] = static_cast<std::int64_t>(table.ids().size() - before);
        }
        const auto wanted_of_others = static_cast<index_t>(table.ids().size());
        const at::Tensor rows = room.rows.take(wanted_of_others, sizeof(std::uint32_t));
        auto* row = rows.data_ptr<std::uint8_t>();
        std::size_t at = 0;
        for (std::size_t r = 0; r < world; ++r)
            for (const std::size_t end = at + static_cast<std::size_t>(asked[r]); at < end; ++at, row += 4) {
                const auto of_shard = static_cast<std::uint32_t>(table.ids()[at] - first_[r]);
                std::memcpy(row, &of_shard, sizeof of_shard);
            }
        const at::Tensor counts = at::empty({static_cast<std::int64_t>(world)}, at::kLong);
        std::copy(asked.begin(), asked.end(), counts.data_ptr<std::int64_t>());
        const std::vector<std::int64_t> one_each(world, 1);
        const at::Tensor theirs = ranks_->all_to_all(counts, one_each, one_each);
        std::copy_n(theirs.data_ptr<std::int64_t>(), world, asking.begin());
        const index_t all = std::accumulate(asking.begin(), asking.end(), index_t{0});
        const at::Tensor wanted = room.wanted.take(all, sizeof(std::uint32_t));
        ranks_->all_to_all_into(wanted, rows, asked, asking);
        // The answers, in the order asked.
        const at::Tensor values = room.values.take(all, fetched_.bytes);
        auto* value = reinterpret_cast<std::byte*>(values.data_ptr<std::uint8_t>());
        const auto* which = wanted.data_ptr<std::uint8_t>();
        for (index_t i = 0; i < all; ++i, value += fetched_.bytes, which += 4) {
            std::uint32_t id;
            std::memcpy(&id, which, sizeof id);
            if (id >= local_size()) fail("ShardedStore: rank ", ranks_->rank(), " was asked for a row it has not");
            detail::ValueOnWire<value_type>::write(shard_.value(id), value);
        }
        const at::Tensor got = room.got.take(wanted_of_others, fetched_.bytes);
        ranks_->all_to_all_into(got, values, asking, asked);
        const auto* bytes = reinterpret_cast<const std::byte*>(got.data_ptr<std::uint8_t>());
        fetched_.values.assign(bytes, bytes + got.numel());
    }

  private:
    static std::vector<S> one(S part) {
        std::vector<S> parts;
        parts.push_back(std::move(part));
        return parts;
    }
    bool is_local(index_t id) const { return id >= first() && id < first() + local_size(); }
    // Halving without a branch that depends on the id: ids come in no order.
    int owner(index_t id) const {
        std::size_t r = 0;
        for (std::size_t step = starts_.size() / 2; step > 0; step /= 2) r += starts_[r + step] <= id ? step : 0;
        return static_cast<int>(r);
    }

    std::shared_ptr<Ranks> ranks_;
    Shard<S> shard_;
    std::uint64_t identity_;
    index_t key_dim_ = 0;
    std::vector<index_t> first_{0};                     // [ranks + 1]
    std::vector<index_t> starts_;                       // the same without the last, filled up to a power of two
    mutable detail::FetchedValues<value_type> fetched_; // what the last retrieval found elsewhere
    mutable detail::Buffers buffers_;
};

} // namespace mnemo::nn
