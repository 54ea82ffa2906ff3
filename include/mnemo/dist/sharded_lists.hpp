// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/dist/sharded_datastore.hpp>
#include <mnemo/io/packed_file.hpp>
#include <mnemo/retrieve/build_lists.hpp>
#include <mnemo/retrieve/lists.hpp>
#include <mnemo/text/hash.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <set>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace mnemo::nn {

namespace detail {

/// The sample that ListsBuilder would take of all entries in one store, where they are spread over ranks: each holds an
/// equal share of it, in the order of ids, so that nobody holds it all. Called by all ranks together.
template <MetricTag MetricT, class S, Executor X> class SpreadSample {
  public:
    SpreadSample(const ShardedStore<S>& store, ListsSample which, const X& executor)
        : ranks_(store.ranks()), rows_(which.rows), executor_(executor) {
        // What the own shard has of it, then the own share.
        const int own = ranks_.rank();
        const auto in_shards_before = [&](int r) {
            return std::min((store.first(r) + which.step - 1) / which.step, rows_);
        };
        const index_t first = in_shards_before(own), count = in_shards_before(own + 1) - first;
        const at::Tensor held = at::empty({count, store.key_dim()}, at::kFloat);
        const MutRows rows = as_mut_rows(held);
        const auto& shard = store.shard();
        index_t done = 0;
        for (std::size_t i = 0; i < shard.parts(); ++i) {
            const index_t begin = store.first() + shard.first_of_part(i), end = begin + shard.part(i).size(),
                          id = (first + done) * which.step;
            if (done == count || id >= end) continue;
            const index_t n = std::min(count - done, (end - id + which.step - 1) / which.step);
            mnemo::detail::read_keys<MetricT>(shard.part(i).keys(), id - begin, which.step, rows.slice(done, n));
            done += n;
        }
        std::vector<std::int64_t> to, from;
        const auto overlap = [&](int holder, int keeper) {
            return std::max<index_t>(0, std::min(in_shards_before(holder + 1), share(keeper + 1)) -
                                            std::max(in_shards_before(holder), share(keeper)));
        };
        for (int r = 0; r < ranks_.size(); ++r) to.push_back(overlap(own, r)), from.push_back(overlap(r, own));
        own_ = ranks_.all_to_all(held, to, from);
    }

    index_t rows() const { return rows_; }
    /// Every rank asks for the same ones.
    Matrix at(const std::vector<index_t>& chosen) const {
        const auto world = static_cast<std::size_t>(ranks_.size());
        std::vector<std::int64_t> counts(world, 0), next(world, 0), mine;
        std::vector<std::size_t> owners;
        for (const index_t row : chosen) {
            int r = 0;
            while (row >= share(r + 1)) ++r;
            owners.push_back(static_cast<std::size_t>(r));
            ++counts[owners.back()];
            if (r == ranks_.rank()) mine.push_back(row - share(r));
        }
        const auto all = ranks_.gather(own_.index_select(0, at::tensor(mine, at::kLong)), counts);
        Matrix out(static_cast<index_t>(chosen.size()), own_.size(1));
        for (std::size_t i = 0; i < chosen.size(); ++i) {
            const auto row = as_rows(all[owners[i]])[next[owners[i]]++];
            std::copy(row.begin(), row.end(), out[static_cast<index_t>(i)].begin());
        }
        return out;
    }
    /// Once around from rank to rank, so that rows are added in the order of the whole (the same bits however many
    /// ranks there are), and once more for everybody to have what has become of it.
    std::vector<double> sums(const Matrix& centroids) const {
        std::vector<std::int32_t> nearest;
        mnemo::detail::append_nearest(centroids, as_rows(own_), executor_, nearest);
        const int world = ranks_.size();
        const at::Tensor none = at::empty({0, centroids.cols + 1}, at::kDouble);
        at::Tensor total = at::zeros({centroids.rows, centroids.cols + 1}, at::kDouble);
        for (int hop = 0;; ++hop) {
            const int holder = hop % world, next = (hop + 1) % world;
            if (hop == ranks_.rank()) mnemo::detail::add_to_nearest(as_rows(own_), nearest, total.data_ptr<double>());
            if (hop == 2 * world - 2) break;
            std::vector<std::int64_t> to(static_cast<std::size_t>(world), 0), from = to;
            if (ranks_.rank() == holder) to[static_cast<std::size_t>(next)] = centroids.rows;
            if (ranks_.rank() == next) from[static_cast<std::size_t>(holder)] = centroids.rows;
            const at::Tensor passed = ranks_.all_to_all(ranks_.rank() == holder ? total : none, to, from);
            if (ranks_.rank() == next) total = passed;
        }
        return {total.data_ptr<double>(), total.data_ptr<double>() + total.numel()};
    }

  private:
    index_t share(int rank) const { return rows_ * rank / ranks_.size(); } // where that of a rank begins
    Ranks& ranks_;
    index_t rows_;
    const X& executor_;
    at::Tensor own_; // [a share, d]
};

} // namespace detail

/// All ranks: the centroids that ListsBuilder learns with these options from the same entries in one store, in every
/// bit, however many ranks hold them. Each assigns an equal share of the sample; of memory it takes that share and a
/// few copies of the centroids. `draft` is gone on with; `save(draft)` is called after each round, by every rank alike.
template <MetricTag MetricT, class S, Executor X = Serial>
ListsDraft learn_centroids(const ShardedStore<S>& store, const ListsOptions& options, X executor, ListsDraft draft,
                           auto&& save) {
    const char* const names[] = {"lists", "sample", "rounds", "seed", "metric", "rounds so far"};
    detail::agree<6>(store.ranks(), "centroids", names,
                     {options.lists, options.sample, options.rounds, static_cast<std::int64_t>(options.seed),
                      static_cast<std::int64_t>(MetricT::metric), draft.rounds},
                     6);
    const ListsSample which(store.size(), options);
    if (draft.rounds >= options.rounds) return draft;
    const detail::SpreadSample<MetricT, S, X> sample(store, which, executor);
    while (draft.rounds < options.rounds) {
        mnemo::detail::learn_centroids(sample, which.lists, options.seed + static_cast<std::uint64_t>(draft.rounds),
                                       draft.centroids);
        ++draft.rounds;
        save(std::as_const(draft));
    }
    return draft;
}
template <MetricTag MetricT, class S, Executor X = Serial>
ListsDraft learn_centroids(const ShardedStore<S>& store, const ListsOptions& options, X executor = {}) {
    return learn_centroids<MetricT>(store, options, executor, {}, [](const ListsDraft&) {});
}

/// Inverted lists of each part of a rank's shard, in memory or mapped; none where a part has no entries.
using PartLists = std::vector<std::shared_ptr<const ListsView>>;

/// Lists (retrieve/lists.hpp) for a shard in parts, each with lists of its own, whose centroids all ranks share. Within
/// Sharded it finds, bit for bit, what Lists finds over all entries in one store with these centroids: every shard
/// looks at the same nprobe lists, and has the exact scores of its k best in them. Only Probe::first_pass is not that
/// exact: its scores are rounded about the mean of the keys that were packed together.
template <MetricTag MetricT, Executor X = Serial> struct ShardLists {
    PartLists lists;
    index_t k = 1024;
    index_t nprobe = 32;
    Probe probe = Probe::rescored;
    [[no_unique_address]] X executor{};

    Lists<MetricT, X> of_part(std::size_t part) const {
        if (part >= lists.size() || !lists[part])
            fail("ShardLists: part ", part, " of the shard: expected inverted lists, got none");
        return {*lists[part], k, nprobe, probe, executor};
    }
};

namespace detail {

/// All ranks: lists of this rank's parts for centroids that are there. found(part) and kept(part, lists) return what is
/// searched in: the first nothing where lists must be made, the second what becomes of those that were.
template <MetricTag MetricT, class S, Executor X>
PartLists lists_of_parts(const ShardedStore<S>& store, const ListsOptions& options, const ListsDraft& learned,
                         const X& executor, auto&& found, auto&& kept, auto&& progress) {
    ListsOptions own = options;
    own.lists = 0; // as many as there are centroids
    const auto& shard = store.shard();
    PartLists out(shard.parts());
    std::vector<ListsBuilder<MetricT, X>> builder; // at most one
    std::size_t part = 0;
    const auto step = [&] { // returns the entries that are done
        for (; part < out.size(); ++part) {
            if (builder.empty()) {
                if (shard.part(part).size() == 0 || (out[part] = found(part))) continue;
                builder.emplace_back(shard.part(part).keys(), own, executor, learned);
            }
            if (builder[0].step())
                return shard.first_of_part(part) + static_cast<index_t>(builder[0].draft().assigned.size());
            out[part] = kept(part, builder[0].pack());
            builder.clear();
        }
        return shard.size();
    };
    // All meet after each step, so that nobody waits for long, and an Error of one is everybody's.
    for (index_t done = -1; done < store.size();) {
        std::string failure;
        index_t mine = 0;
        try {
            mine = step();
        } catch (const std::exception& e) {
            failure = failure_of(e);
        }
        const char* const names[] = {"entries in lists"};
        done = 0;
        for (const auto& of_rank : agree<1>(store.ranks(), "inverted lists", names, {mine}, 0, failure))
            done += of_rank[0];
        progress(done, store.size());
    }
    return out;
}

inline std::shared_ptr<const ListsView> in_memory(KeyLists lists) {
    struct Owner {
        KeyLists lists;
        ListsView view;
    };
    const auto owner = std::make_shared<Owner>(Owner{std::move(lists), {}});
    owner->view = owner->lists.view();
    return {owner, &owner->view};
}

/// The centroids that the lists of a folder share, and how many rounds they have had.
struct CentroidsFile {
    std::string path, of; // of: the store and the options, in a word

    void write(const ListsDraft& draft, index_t entries) const {
        const std::span<const float> data(draft.centroids.data);
        ArrayFileWriter file(path, "centroids",
                             {{"of", of},
                              {"entries", std::to_string(entries)},
                              {"lists", std::to_string(draft.centroids.rows)},
                              {"d", std::to_string(draft.centroids.cols)},
                              {"rounds", std::to_string(draft.rounds)}},
                             {{"centroids", data.size_bytes()}});
        file.append(0, data);
        file.commit();
    }
    /// Empty where there is nothing to go on with: no file, or rounds on a sample of another number of entries.
    ListsDraft read(index_t entries, int rounds) const {
        ListsDraft draft;
        if (!exists(path)) return draft;
        const ArrayFile file = ArrayFile::open(path, "centroids");
        if (file.meta("of") != of)
            fail(path, ": of: expected the store and the options ", of, ", got ", in_quotes(file.meta("of")));
        file.verify();
        const auto done = static_cast<int>(file.number("rounds", 1, rounds));
        if (done < rounds && file.number("entries", 1, index_t{1} << 48) != entries) return draft;
        draft.rounds = done;
        draft.centroids = Matrix(file.number("lists", 1, index_t{1} << 31), file.number("d", 1, index_t{1} << 20));
        const auto values = file.array<float>("centroids", draft.centroids.data.size());
        std::copy(values.begin(), values.end(), draft.centroids.data.begin());
        return draft;
    }
};

inline std::string file_of_range(const DatastoreRange& part) {
    return text(part.datastore().manifest().id, "-", part.first(), "-", part.size());
}

} // namespace detail

/// All ranks: lists of a store in shards, in memory, for ShardLists.
template <MetricTag MetricT, class S, Executor X = Serial>
PartLists build_lists(const ShardedStore<S>& store, const ListsOptions& options, X executor = {}) {
    return detail::lists_of_parts<MetricT>(
        store, options, learn_centroids<MetricT>(store, options, executor), executor,
        [](std::size_t) { return std::shared_ptr<const ListsView>(); },
        [](std::size_t, KeyLists lists) { return detail::in_memory(std::move(lists)); }, [](index_t, index_t) {});
}

/// All ranks: the same in files of `folder`, which every rank must see. What is there is gone on with, rank by rank and
/// round by round; lists of ranges that other ranks held are made anew from the centroids that are there, so that any
/// number of ranks opens them. Centroids stay as they were learned when the store has grown since. Files of other
/// options, or of another store, are an Error; lists of keys that were replaced since are made again. Where a processor
/// cannot pack keys (ListsFile), lists are in memory. Called as progress(keys that were assigned to a centroid, in all)
/// by every rank, rounds of learning included.
template <MetricTag MetricT, Executor X = Serial>
PartLists open_lists(const ShardedStore<DatastoreRange>& store, const std::string& folder, const ListsOptions& options,
                     X executor, auto&& progress) {
    Ranks& ranks = store.ranks();
    const bool writes = ranks.rank() == 0; // the centroids
    const detail::CentroidsFile file{folder + "/centroids",
                                     text(store.identity(), "-", name(MetricT::metric), "-", options.lists, "-",
                                          options.sample, "-", options.rounds, "-", options.seed)};
    ListsDraft draft;
    detail::together(ranks, "inverted lists", [&] {
        (void)ListsSample(store.size(), options); // throws what learn_centroids would
        if (writes) std::filesystem::create_directories(folder);
        draft = file.read(store.size(), options.rounds);
        if (draft.rounds > 0) expect_equal(file.path + ": d", draft.centroids.cols, store.key_dim());
    });
    const index_t a_round = ListsSample(store.size(), options).rows, learning = options.rounds * a_round;
    draft = learn_centroids<MetricT>(store, options, executor, std::move(draft), [&](const ListsDraft& so_far) {
        detail::together(ranks, "inverted lists", [&] {
            if (writes) file.write(so_far, store.size());
        });
        progress(so_far.rounds * a_round, learning + store.size());
    });

    const Hash64 centroids = Hash64().add(std::as_bytes(std::span(draft.centroids.data)));
    const char* const names[] = {"centroids"};
    detail::agree<1>(ranks, "inverted lists", names, {static_cast<std::int64_t>(centroids.value())}, 1);
    const auto path_of = [&](std::size_t i) { return folder + "/" + detail::file_of_range(store.shard().part(i)); };
    const auto of = [&](std::size_t i) {
        return store.shard().part(i).datastore().keys_version() + "-" + centroids.text();
    };
    const auto mapped = [](ListsFile lists) {
        const auto owner = std::make_shared<const ListsFile>(std::move(lists));
        return std::shared_ptr<const ListsView>(owner, &owner->view());
    };
    return detail::lists_of_parts<MetricT>(
        store, options, draft, executor,
        [&](std::size_t i) -> std::shared_ptr<const ListsView> {
            try {
                if (exists(path_of(i))) return mapped(ListsFile::open(path_of(i), of(i)));
            } catch (const Error&) { // of keys or centroids that are no more: made again
            }
            return nullptr;
        },
        [&](std::size_t i, KeyLists lists) {
            if (lists.words.empty()) return detail::in_memory(std::move(lists));
            ListsFile::write(path_of(i), lists.view(), of(i));
            return mapped(ListsFile::open(path_of(i), of(i)));
        },
        [&](index_t done, index_t all) { progress(learning + done, learning + all); });
}
template <MetricTag MetricT, Executor X = Serial>
PartLists open_lists(const ShardedStore<DatastoreRange>& store, const std::string& folder, const ListsOptions& options,
                     X executor = {}) {
    return open_lists<MetricT>(store, folder, options, executor, [](index_t, index_t) {});
}

/// All ranks: removes from `folder` what open_lists() has made for ranges that none of these ranks holds, as after a
/// change of their number: lists of this store's files only. Returns how many there were. A process that has them open
/// keeps them.
inline index_t remove_other_lists(const ShardedStore<DatastoreRange>& store, const std::string& folder) {
    Ranks& ranks = store.ranks();
    std::string own; // a line for each range
    for (std::size_t i = 0; i < store.shard().parts(); ++i) own += detail::file_of_range(store.shard().part(i)) + "\n";
    const at::Tensor bytes = at::empty({static_cast<std::int64_t>(own.size())}, at::kByte);
    std::copy(own.begin(), own.end(), bytes.data_ptr<std::uint8_t>());
    std::set<std::string> kept, stores; // names; what the names of this store's files begin with
    for (const at::Tensor& theirs : ranks.gather(bytes)) {
        const auto* data = theirs.data_ptr<std::uint8_t>();
        std::istringstream lines(std::string(data, data + theirs.numel()));
        for (std::string name; std::getline(lines, name);) {
            kept.insert(name);
            stores.insert(name.substr(0, name.rfind('-', name.rfind('-') - 1)));
        }
    }
    index_t removed = 0;
    detail::together(ranks, "inverted lists", [&] {
        if (ranks.rank() != 0 || !std::filesystem::exists(folder)) return;
        std::vector<std::filesystem::path> others;
        for (const auto& file : std::filesystem::directory_iterator(folder)) {
            const std::string name = file.path().filename().string();
            const std::size_t last = name.rfind('-'), first = last == 0 ? name.npos : name.rfind('-', last - 1);
            if (last == name.npos || first == name.npos || kept.count(name) == 1) continue;
            if (name.find_first_not_of("0123456789-", first) != name.npos) continue;
            if (stores.count(name.substr(0, first)) == 1) others.push_back(file.path());
        }
        for (const auto& path : others) removed += std::filesystem::remove(path);
    });
    return ranks.sum(at::full({1}, removed, at::kLong)).item<std::int64_t>();
}

} // namespace mnemo::nn
