// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/dist/agree.hpp>
#include <mnemo/dist/shard.hpp>
#include <mnemo/text/hash.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <concepts>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

namespace mnemo::nn {

namespace detail {

/// A number for the type of a retriever, the same in every process.
template <class RetrieverT> std::int64_t type_number() {
    return static_cast<std::int64_t>(Hash64().add(std::string_view(typeid(RetrieverT).name())).value());
}

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
        key_dim_ = all[model][1], fetched_.bytes = all[model][2];
        identity_ = static_cast<std::uint64_t>(all[model][3]);
        fetched_.clear();
    }

    /// All ranks: makes value() know the entries of `recall`, and no others that are not this rank's. Each id that
    /// another rank holds travels once, and its value comes back.
    void fetch(const AssociativeRecall auto& recall) const {
        auto& table = fetched_.table;
        fetched_.clear();
        for (index_t row = 0; row < recall.rows(); ++row)
            for_each_hit(recall, row, [&](index_t id, float) {
                if (!is_local(id)) table.add(id);
            });
        const auto world = static_cast<std::size_t>(ranks_->size());
        if (world == 1) return;
        // Grouped by owner: what is asked of each rank.
        std::vector<std::int64_t> asked(world, 0), asking(world);
        std::vector<int> owners;
        for (const index_t id : table.ids()) {
            if (id < 0 || id >= size()) fail("ShardedStore: expected an id in [0, ", size(), "), got ", id);
            owners.push_back(owner(id));
            ++asked[static_cast<std::size_t>(owners.back())];
        }
        std::vector<std::int64_t> next(world, 0), place(owners.size());
        for (std::size_t r = 1; r < world; ++r) next[r] = next[r - 1] + asked[r - 1];
        const at::Tensor rows = at::empty({static_cast<std::int64_t>(owners.size())}, at::kInt);
        for (std::size_t i = 0; i < owners.size(); ++i) {
            place[i] = next[static_cast<std::size_t>(owners[i])]++;
            rows.data_ptr<std::int32_t>()[place[i]] =
                std::bit_cast<std::int32_t>(static_cast<std::uint32_t>(table.ids()[i] - first(owners[i])));
        }
        const at::Tensor counts = at::empty({static_cast<std::int64_t>(world)}, at::kLong);
        std::copy(asked.begin(), asked.end(), counts.data_ptr<std::int64_t>());
        const std::vector<std::int64_t> one_each(world, 1);
        const at::Tensor theirs = ranks_->all_to_all(counts, one_each, one_each);
        std::copy_n(theirs.data_ptr<std::int64_t>(), world, asking.begin());
        const at::Tensor wanted = ranks_->all_to_all(rows, asked, asking);
        // The answers, in the order asked.
        const at::Tensor answers = at::empty({wanted.size(0), fetched_.bytes}, at::kByte);
        auto* to = reinterpret_cast<std::byte*>(answers.data_ptr<std::uint8_t>());
        for (std::int64_t i = 0; i < wanted.size(0); ++i, to += fetched_.bytes) {
            const auto row = std::bit_cast<std::uint32_t>(wanted.data_ptr<std::int32_t>()[i]);
            if (row >= local_size()) fail("ShardedStore: rank ", ranks_->rank(), " was asked for a row it has not");
            detail::ValueOnWire<value_type>::write(shard_.value(row), to);
        }
        const at::Tensor found = ranks_->all_to_all(answers, asking, asked);
        const auto bytes = static_cast<std::size_t>(fetched_.bytes);
        auto& values = fetched_.values;
        values.resize(owners.size() * bytes);
        const auto* from = reinterpret_cast<const std::byte*>(found.data_ptr<std::uint8_t>());
        for (std::size_t i = 0; i < owners.size(); ++i)
            std::memcpy(values.data() + i * bytes, from + static_cast<std::size_t>(place[i]) * bytes, bytes);
    }

  private:
    static std::vector<S> one(S part) {
        std::vector<S> parts;
        parts.push_back(std::move(part));
        return parts;
    }
    bool is_local(index_t id) const { return id >= first() && id < first() + local_size(); }
    int owner(index_t id) const {
        return static_cast<int>(std::upper_bound(first_.begin(), first_.end(), id) - first_.begin()) - 1;
    }

    std::shared_ptr<Ranks> ranks_;
    Shard<S> shard_;
    std::uint64_t identity_;
    index_t key_dim_ = 0;
    std::vector<index_t> first_{0};                     // [ranks + 1]
    mutable detail::FetchedValues<value_type> fetched_; // what the last retrieval found elsewhere
};

} // namespace mnemo::nn
