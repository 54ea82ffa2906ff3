// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/dist/sharded_store.hpp>
#include <mnemo/io/datastore.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace mnemo::nn {

/// What mnemo_shards.json says: the authority on a folder of shards. Each shard is a datastore of its own, which may
/// hold more rows than are named here: those were not committed by all.
struct ShardsManifest {
    static constexpr index_t kVersion = 1;
    struct Shard {
        std::string folder;   // inside that of the whole
        std::uint64_t id = 0; // of its datastore
        index_t rows = 0;
    };
    std::uint64_t id = 0; // drawn when the first shard is created
    std::vector<Shard> shards;

    static std::string path(const std::string& folder) { return folder + "/mnemo_shards.json"; }
    static std::string name_of_shard(int rank) {
        char name[32];
        std::snprintf(name, sizeof name, "shard-%05d", rank);
        return name;
    }
    index_t rows() const {
        index_t n = 0;
        for (const Shard& s : shards) n += s.rows;
        return n;
    }
    std::string to_json() const {
        nlohmann::ordered_json list = nlohmann::ordered_json::array();
        for (const Shard& s : shards) list.push_back({{"folder", s.folder}, {"id", s.id}, {"rows", s.rows}});
        const nlohmann::ordered_json json = {
            {"format", "mnemo shards"}, {"version", kVersion}, {"id", id}, {"shards", list}};
        return json.dump(1) + "\n";
    }
    static ShardsManifest parse(std::string_view source, const std::string& where) {
        const JsonObject json = JsonObject::parse(source, where);
        json.expect_format("mnemo shards", kVersion);
        ShardsManifest m;
        m.id = json.unsigned_integer("id");
        for (const auto& each : json.list("shards")) {
            const JsonObject shard = JsonObject::parse(each.dump(), where + ": shards");
            m.shards.push_back(
                {shard.string("folder"), shard.unsigned_integer("id"), shard.integer("rows", 0, index_t{1} << 36)});
            if (m.shards.back().folder.find('/') != std::string::npos || m.shards.back().folder.starts_with("."))
                fail(where, ": shards: folder: expected a name, got ", in_quotes(m.shards.back().folder));
        }
        if (m.shards.empty()) fail(where, ": shards: expected at least one");
        return m;
    }
    static ShardsManifest read(const std::string& folder) {
        if (!exists(path(folder)))
            fail(folder, ": expected a datastore in shards, got a folder without mnemo_shards.json, or none");
        return parse(read_file(path(folder)), path(folder));
    }
};

/// Entries [first, first + count) of a datastore, as a store of its own. Edits made after opening are not seen.
class DatastoreRange {
  public:
    using value_type = std::int32_t;

    DatastoreRange(std::shared_ptr<const Datastore> store, index_t first, index_t count)
        : store_(std::move(store)), first_(first), count_(count) {
        if (first < 0 || count < 0 || first > store_->size() - count)
            fail(store_->path(), ": expected at least ", first + count, " rows, got ", store_->size());
        for (index_t id = 0; id < count; ++id) {
            if (!store_->is_erased(first + id)) continue;
            erased_.resize(std::max(erased_.size(), static_cast<std::size_t>(id) / 64 + 1));
            erased_[static_cast<std::size_t>(id) / 64] |= std::uint64_t{1} << (id % 64);
        }
    }
    index_t key_dim() const { return store_->key_dim(); }
    index_t size() const { return count_; }
    std::int32_t value(index_t id) const { return store_->value(first_ + id); }
    KeyRows keys() const {
        return store_->keys().visit([&](auto rows) { return KeyRows(rows.slice(first_, count_)); });
    }
    IdSet erased() const { return {erased_}; }
    /// The first one's id in the datastore.
    index_t first() const { return first_; }
    const Datastore& datastore() const { return *store_; }

  private:
    std::shared_ptr<const Datastore> store_;
    index_t first_, count_;
    std::vector<std::uint64_t> erased_;
};
static_assert(KeyedStore<DatastoreRange> && MarksErased<DatastoreRange> && TokenValued<DatastoreRange>);

/// All ranks: the datastore in shards that lies in `folder`, as it was last committed by all. However many ranks wrote
/// it, each of these holds a range of equally many entries, in the order of the shards. Every rank must see the folder.
inline ShardedStore<DatastoreRange> open_sharded(const std::shared_ptr<Ranks>& ranks, const std::string& folder,
                                                 const Fingerprint& expected = {}, OpenOptions options = {}) {
    // One rank reads: the others see the same, whatever is committed meanwhile.
    std::string source;
    detail::together(*ranks, "sharded datastore", [&] {
        if (ranks->rank() == 0) source = ShardsManifest::read(folder).to_json();
    });
    const at::Tensor bytes = at::empty({static_cast<std::int64_t>(source.size())}, at::kByte);
    std::copy(source.begin(), source.end(), bytes.data_ptr<std::uint8_t>());
    const at::Tensor all = ranks->gather(bytes)[0];
    const auto* data = all.data_ptr<std::uint8_t>();
    const auto manifest = ShardsManifest::parse(std::string(data, data + all.numel()), ShardsManifest::path(folder));

    const index_t rows = manifest.rows(), first = rows * ranks->rank() / ranks->size(),
                  last = rows * (ranks->rank() + 1) / ranks->size();
    std::vector<DatastoreRange> parts;
    detail::together(*ranks, "sharded datastore", [&] {
        index_t at = 0;
        for (const ShardsManifest::Shard& shard : manifest.shards) {
            const index_t from = std::clamp(first - at, index_t{0}, shard.rows),
                          to = std::clamp(last - at, index_t{0}, shard.rows);
            at += shard.rows;
            if (from == to && !(rows == 0 && parts.empty())) continue;
            const std::string where = folder + "/" + shard.folder;
            auto store = std::make_shared<const Datastore>(Datastore::open(where, expected, options));
            if (store->manifest().id != shard.id)
                fail(where, ": id: expected ", shard.id, ", that of mnemo_shards.json, got ", store->manifest().id);
            parts.emplace_back(std::move(store), from, to - from);
        }
    });
    return {ranks, std::move(parts), manifest.id};
}

/// All ranks write one datastore, each its own shard of it. append() is a rank's own affair; create(), resume(),
/// commit() and close() are called by all together. What commit() has returned for is there for readers and survives
/// anything; what ranks wrote later is not seen, but a rank finds again what its own shard has made last
/// (local_size() after resume()).
class ShardedDatastoreWriter {
  public:
    /// A new, empty datastore. A folder that holds one already is refused unless options.overwrite is set.
    static ShardedDatastoreWriter create(const std::shared_ptr<Ranks>& ranks, const std::string& folder,
                                         DatastoreOptions options) {
        ShardedDatastoreWriter w(ranks, folder);
        w.together([&] {
            if (ranks->rank() != 0) return;
            if (::mkdir(folder.c_str(), 0777) != 0 && errno != EEXIST) fail_system(folder, "create the folder");
            const std::string manifest = ShardsManifest::path(folder);
            if (!options.overwrite && exists(manifest))
                fail(folder, ": expected no datastore in shards, got one: resume it, or ask for overwriting");
            // Without it nothing in the folder is committed, so shards may be written over.
            remove_file(manifest);
            sync_folder(folder);
            for (int r = ranks->size(); exists(folder + "/" + ShardsManifest::name_of_shard(r)); ++r)
                std::filesystem::remove_all(folder + "/" + ShardsManifest::name_of_shard(r));
        });
        options.overwrite = true;
        w.together([&] { w.writer_.push_back(DatastoreWriter::create(w.own_folder(), options)); });
        std::random_device random;
        w.manifest_.id = std::uint64_t{random()} << 32 | random(); // rank 0's counts
        w.write_manifest();
        return w;
    }
    /// Goes on, on as many ranks as created it. A store of another host than `expected` is refused.
    static ShardedDatastoreWriter resume(const std::shared_ptr<Ranks>& ranks, const std::string& folder,
                                         const Fingerprint& expected = {}) {
        ShardedDatastoreWriter w(ranks, folder);
        w.together([&] {
            w.manifest_ = ShardsManifest::read(folder);
            expect_equal(folder + ": shards: ranks", ranks->size(), static_cast<int>(w.manifest_.shards.size()));
            w.writer_.push_back(DatastoreWriter::resume(w.own_folder(), expected));
            const auto& shard = w.manifest_.shards[static_cast<std::size_t>(ranks->rank())];
            const Manifest& own = w.writer().manifest();
            if (own.id != shard.id || own.rows < shard.rows)
                fail(w.own_folder(), ": expected the datastore ", shard.id, " with at least ", shard.rows,
                     " rows, as mnemo_shards.json has it, got ", own.id, " with ", own.rows);
        });
        return w;
    }

    index_t key_dim() const { return writer().key_dim(); }
    /// Rows of this rank: appended; committed in its own shard; and committed by all.
    index_t local_size() const { return writer().size(); }
    index_t local_committed() const { return writer().committed(); }
    index_t committed() const { return manifest_.shards[static_cast<std::size_t>(ranks_->rank())].rows; }
    /// Rows of all ranks that readers see.
    index_t size() const { return manifest_.rows(); }
    const ShardsManifest& manifest() const { return manifest_; }
    DatastoreWriter& writer() { return writer_.front(); }
    const DatastoreWriter& writer() const { return writer_.front(); }

    /// As DatastoreWriter's, to this rank's shard.
    void append(const KeyRows& keys, std::span<const std::int32_t> values) { writer().append(keys, values); }
    /// All ranks: what each has appended is on its disk, then rank 0 replaces mnemo_shards.json.
    void commit() {
        together([&] { writer().commit(); });
        write_manifest();
    }
    /// All ranks: commits and lets others write.
    void close() {
        commit();
        together([&] { writer().close(); });
    }

  private:
    ShardedDatastoreWriter(std::shared_ptr<Ranks> ranks, std::string folder)
        : ranks_(std::move(ranks)), folder_(std::move(folder)) {}
    std::string own_folder() const { return folder_ + "/" + ShardsManifest::name_of_shard(ranks_->rank()); }

    void together(auto&& work) { detail::together(*ranks_, "sharded datastore", work); }
    void write_manifest() {
        const char* const names[] = {"id", "id of the shard", "rows"};
        const auto all = detail::agree<3>(*ranks_, "sharded datastore", names,
                                          {static_cast<std::int64_t>(manifest_.id),
                                           static_cast<std::int64_t>(writer().manifest().id), writer().committed()},
                                          0);
        ShardsManifest next;
        next.id = static_cast<std::uint64_t>(all[0][0]);
        for (std::size_t r = 0; r < all.size(); ++r)
            next.shards.push_back(
                {ShardsManifest::name_of_shard(static_cast<int>(r)), static_cast<std::uint64_t>(all[r][1]), all[r][2]});
        together([&] {
            if (ranks_->rank() != 0) return;
            const std::string path = ShardsManifest::path(folder_);
            AtomicFile file(path, path + ".tmp"); // rank 0 holds its shard's lock: the name is ours
            file.write(bytes_of(next.to_json()));
            file.commit();
        });
        manifest_ = std::move(next);
    }

    std::shared_ptr<Ranks> ranks_;
    std::string folder_;
    ShardsManifest manifest_;
    std::vector<DatastoreWriter> writer_; // one, once it is there
};

} // namespace mnemo::nn
