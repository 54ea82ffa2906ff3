// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/executor.hpp>
#include <mnemo/io/datastore_writer.hpp>
#include <mnemo/io/edit_log.hpp>

#include <algorithm>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace mnemo {

struct OpenOptions {
    bool writable = false;          // replace() and erase() are allowed; one such store, or one writer, at a time
    bool verify = false;            // read everything once and compare the checksums
    Access access = Access::normal; // random where an index chooses the rows, sequential for scans of all
};

/// What a raw memory map cannot say about itself. `rows` 0 is taken from the size of the files.
struct RawLayout {
    index_t rows = 0;
    index_t key_dim = 0;
    KeyType key_type = KeyType::float16;
    ElementType value_type = ElementType::int32; // int16 (kNN-LM with --dstore-fp16), int32, int64 (kNN-LM)
    index_t vocab_size = 0;                      // 0: unknown; int16 values need it
    Metric metric = Metric::l2;
    bool drop_zero_tail = false; // rows at the end that are all zero were never written: see Datastore::zero_tail
    bool check_values = true;    // read all values once
    bool prefix = false;         // the files may be longer than `rows`: what was reserved and not written
    Access access = Access::normal;
};

/// What the reference's programs read: see Datastore::write_reference.
enum class ReferenceFormat { fp32, fp16, fp32_int32 };

/// Keys and tokens in files, mapped: any number of processes share one copy in memory, and opening costs nothing but
/// the erased ids and the edits. Reading is const and re-entrant. Views from keys() hold until refresh().
class Datastore {
  public:
    using value_type = std::int32_t;

    /// The datastore in `folder`, as it was last committed. Defects are Errors that name the file and the field.
    static Datastore open(const std::string& folder, OpenOptions options = {}) { return open(folder, {}, options); }
    /// The same, but a store of another host than `expected` is refused, with the first field that differs.
    static Datastore open(const std::string& folder, const Fingerprint& expected, OpenOptions options = {}) {
        Datastore store(folder);
        store.files_ = DatastoreFiles(folder);
        store.options_ = options;
        store.manifest_ = store.files_.read_manifest();
        check_fingerprint(folder, store.fingerprint(), expected);
        if (options.writable) {
            store.lock_ = lock_file(store.files_.lock, folder);
            store.manifest_ = store.files_.read_manifest(); // a writer may have committed since
        }
        store.map_rows();
        store.replay_edits();
        if (options.verify) store.verify();
        return store;
    }

    /// The headerless memory maps of kNN-LM and knn-transformers, which are called .npy nevertheless: keys [rows,
    /// key_dim], values [rows] or [rows, 1]. Real npy files are refused. Read-only.
    ///
    /// int16 values wrapped above 32767 when they were written: they are read as they stand up to 32768 tokens,
    /// unwrapped up to 65536, and refused beyond, where the token is lost.
    static Datastore open_raw(const std::string& keys, const std::string& values, const RawLayout& layout) {
        Datastore store(keys);
        Manifest& m = store.manifest_;
        m.host.key_dim = layout.key_dim, m.host.vocab_size = layout.vocab_size, m.metric = layout.metric;
        m.key_type = layout.key_type, m.value_type = layout.value_type;
        store.options_.access = layout.access;
        store.key_file_ = File(keys, O_RDONLY), store.value_file_ = File(values, O_RDONLY);
        if (m.host.key_dim < 1 || m.host.key_dim > Manifest::kMaxKeyDim)
            fail(keys, ": key_dim: expected 1 to ", Manifest::kMaxKeyDim, ", got ", m.host.key_dim);
        for (const File* file : {&store.key_file_, &store.value_file_}) {
            std::byte begin[6];
            if (file->size() < sizeof begin) continue;
            file->read_at(0, begin);
            if (is_npy(begin))
                fail(file->path(), ": expected a raw memory map, got a real npy file: open it with open_npy");
        }
        m.rows = layout.rows > 0 ? layout.rows : static_cast<index_t>(store.key_file_.size()) / m.key_bytes();
        const auto check_size = [&](const File& file, std::string_view type, index_t width, index_t row_bytes) {
            index_t size = 0;
            if (m.rows < 0 || __builtin_mul_overflow(m.rows, row_bytes, &size) ||
                (static_cast<std::uint64_t>(size) != file.size() &&
                 !(layout.prefix && layout.rows > 0 && static_cast<std::uint64_t>(size) < file.size())))
                fail(file.path(), ": expected ", type, " [", m.rows, ", ", width, "] = ", m.rows, " * ", row_bytes,
                     " bytes, got ", file.size(), " bytes");
        };
        check_size(store.key_file_, name(m.key_type), m.host.key_dim, m.key_bytes());
        check_value_type(values, m.value_type);
        check_size(store.value_file_, name(m.value_type), 1, m.value_bytes());
        store.finish_foreign(0, 0, layout.drop_zero_tail, layout.check_values);
        return store;
    }

    /// Keys and values in real npy files of any writer: keys [n, d] of float32, float16 or bfloat16 (V2), values [n] or
    /// [n, 1] of int16, int32 or int64, both in C order. Read-only. Raw memory maps are refused: see open_raw.
    static Datastore open_npy(const std::string& keys, const std::string& values, index_t vocab_size = 0,
                              Metric metric = Metric::l2) {
        Datastore store(keys);
        Manifest& m = store.manifest_;
        const Npy k = Npy::open(keys), v = Npy::open(values);
        if (k.type() == ElementType::float16)
            m.key_type = KeyType::float16;
        else if (k.type() == ElementType::bfloat16)
            m.key_type = KeyType::bfloat16;
        else if (k.type() == ElementType::float32)
            m.key_type = KeyType::float32;
        else
            fail(keys, ": expected float32, float16 or bfloat16 [n, d], got ", name(k.type()), " ",
                 shape_text(k.shape()));
        // The views themselves are not needed, but their checks are.
        if (m.key_type == KeyType::float32)
            (void)k.matrix<float>();
        else if (m.key_type == KeyType::float16)
            (void)k.matrix<half>();
        else
            (void)k.matrix<bfloat16>();
        m.rows = k.shape()[0], m.host.key_dim = k.shape()[1];
        m.host.vocab_size = vocab_size, m.metric = metric;
        if (m.host.key_dim < 1 || m.host.key_dim > Manifest::kMaxKeyDim)
            fail(keys, ": key_dim: expected 1 to ", Manifest::kMaxKeyDim, ", got ", m.host.key_dim);
        m.value_type = v.type();
        check_value_type(values, m.value_type);
        if (v.header().big_endian || v.shape().empty() || v.shape().size() > 2 || v.shape()[0] != m.rows ||
            (v.shape().size() == 2 && v.shape()[1] != 1) ||
            v.header().data_offset % static_cast<std::size_t>(m.value_bytes()) != 0)
            fail(values, ": expected integers [", m.rows, "] in this machine's byte order, got ", v.header().descr, " ",
                 shape_text(v.shape()));
        store.key_file_ = File(keys, O_RDONLY), store.value_file_ = File(values, O_RDONLY);
        store.finish_foreign(k.header().data_offset, v.header().data_offset, false, true);
        return store;
    }

    index_t key_dim() const { return manifest_.host.key_dim; }
    index_t size() const { return manifest_.rows; }
    /// [size, key_dim] in the stored type, edits included.
    KeyRows keys() const { return {key_data_, size(), key_dim(), manifest_.key_type}; }
    std::int32_t value(index_t id) const {
        const auto i = static_cast<std::size_t>(id);
        switch (manifest_.value_type) {
        case ElementType::int64:
            return static_cast<std::int32_t>(reinterpret_cast<const std::int64_t*>(value_data_)[i]);
        case ElementType::int16: // unsigned, see open_raw; checked to be right
            return reinterpret_cast<const std::uint16_t*>(value_data_)[i];
        default:
            return reinterpret_cast<const std::int32_t*>(value_data_)[i];
        }
    }
    /// Erased ids keep their rows; retrievers leave them out.
    IdSet erased() const { return {erased_}; }
    bool is_erased(index_t id) const { return erased().contains(id); }
    index_t erased_count() const { return erased_count_; }
    /// One word for these keys as they are: it changes with replacements, not with appended or erased entries. What a
    /// packed copy names itself by (io/packed_file.hpp).
    std::string keys_version() const { return text(manifest_.id, "-", replacements_); }

    const Manifest& manifest() const { return manifest_; }
    const Fingerprint& fingerprint() const { return manifest_.host; }
    Metric metric() const { return manifest_.metric; }
    const std::string& path() const { return where_; }
    bool writable() const { return lock_.is_open(); }

    /// Reads both files once and compares every block with its checksum, and every value with the vocabulary. The first
    /// block that differs is an Error that names the file and the rows. Nothing to compare with in foreign files.
    template <Executor X = Serial> void verify(X executor = {}) const {
        verify_column(key_file_, key_offset_, manifest_.key_bytes(), manifest_.key_checksums, executor);
        verify_column(value_file_, value_offset_, manifest_.value_bytes(), manifest_.value_checksums, executor);
        check_all_values();
    }

    /// Sees what was committed since the store was opened: rows, and edits of another process. Returns the number of
    /// new rows. Views taken before are invalid afterwards.
    index_t refresh() {
        if (!is_folder() || writable()) return 0; // nobody else can have changed it
        const Manifest now = files_.read_manifest();
        if (now.id != manifest_.id)
            fail(where_, ": expected the datastore that was opened, got another one under its name: open it again");
        if (now.rows < size()) fail(files_.manifest, ": rows: expected at least ", size(), ", got ", now.rows);
        const index_t added = now.rows - size();
        if (added == 0) {
            replay_edits();
        } else {
            OpenOptions again = options_;
            again.verify = false;
            *this = open(std::string(where_), again);
        }
        return added;
    }

    /// Gives entry `id` a new key and value. It survives the death of the process when the call returns, and a power
    /// failure after commit(). An erased entry is refused.
    void replace(index_t id, std::span<const float> key, std::int32_t value) {
        check_edit(id, "replace");
        expect_equal(where_ + ": replace: key_dim", static_cast<index_t>(key.size()), key_dim());
        check_value(where_ + ": replace", id, value, manifest_.host.vocab_size);
        std::vector<std::byte> row(static_cast<std::size_t>(manifest_.key_bytes()));
        const auto store_as = [&]<class T>(T) {
            const std::size_t bad = first_not_finite<T>(key);
            if (bad < key.size())
                fail(where_, ": replace: entry ", id, ", column ", bad, ": expected a key that is finite as ",
                     name(manifest_.key_type), ", got ", static_cast<double>(key[bad]));
            convert(key, std::span(reinterpret_cast<T*>(row.data()), key.size()));
        };
        switch (manifest_.key_type) {
        case KeyType::float32:
            store_as(float{});
            break;
        case KeyType::float16:
            store_as(half{});
            break;
        case KeyType::bfloat16:
            store_as(bfloat16{});
            break;
        }
        log({Edit::Kind::replace, id, value, row});
    }
    /// Marks entry `id` as erased; its id is not used again. Lasts as replace() does. Erasing twice is an Error.
    void erase(index_t id) {
        check_edit(id, "erase");
        log({Edit::Kind::erase, id, 0, {}});
    }
    /// Edits made so far survive a power failure.
    void commit() {
        check_writable();
        if (!edits_pending_) return;
        log_file_.sync();
        log({Edit::Kind::commit, 0, 0, {}});
        edits_pending_ = false;
    }

    /// How many rows at the end have an all-zero key and value 0: kNN-LM leaves such rows where its --dstore-size was
    /// larger than what it wrote, and indexes them later like real ones.
    index_t zero_tail() const {
        index_t rows = 0;
        const auto row_bytes = static_cast<std::size_t>(manifest_.key_bytes());
        for (index_t id = size() - 1; id >= 0 && value(id) == 0; --id, ++rows) {
            const std::byte* row = key_data_ + static_cast<std::size_t>(id) * row_bytes;
            if (std::any_of(row, row + row_bytes, [](std::byte b) { return b != std::byte{0}; })) break;
        }
        return rows;
    }

    /// Writes `<prefix>_keys.npy` and `<prefix>_vals.npy` as kNN-LM reads them: raw, keys float32 and values int64, or
    /// both in 16 bits for its --dstore-fp16; fp32_int32 for programs that want values of 32 bits. Erased entries are
    /// left out. Files of fewer than `reserved` rows are filled up with zeros. Returns the rows written, its
    /// --dstore-size. Keys that overflow float16 and tokens above 32767 in int16, which would wrap, are Errors.
    index_t write_reference(const std::string& prefix, ReferenceFormat format = ReferenceFormat::fp32,
                            index_t reserved = 0) const {
        AtomicFile key_file(prefix + "_keys.npy"), value_file(prefix + "_vals.npy");
        index_t written = 0;
        const auto write = [&]<class Key, class Value>(Key, Value) {
            const auto width = static_cast<std::size_t>(key_dim());
            const std::size_t piece = std::max<std::size_t>(1, (std::size_t{1} << 20) / (width * sizeof(Key)));
            std::vector<Key> key_buffer;
            std::vector<Value> value_buffer;
            std::vector<float> row(width);
            const auto flush = [&] {
                key_file.write(std::as_bytes(std::span(key_buffer)));
                value_file.write(std::as_bytes(std::span(value_buffer)));
                key_buffer.clear(), value_buffer.clear();
            };
            keys().visit([&](auto rows) {
                for (index_t id = 0; id < size(); ++id) {
                    if (is_erased(id)) continue;
                    convert(rows[id], std::span(row));
                    const std::size_t bad = first_not_finite<Key>(row);
                    if (bad < width)
                        fail(key_file.path(), ": entry ", id, ", column ", bad, ": expected a key that is finite as ",
                             name(element_type_of<Key>), ", got ", static_cast<double>(row[bad]));
                    if (value(id) > std::numeric_limits<Value>::max())
                        fail(value_file.path(), ": entry ", id, ": expected a token that fits int16, got ", value(id));
                    key_buffer.resize(key_buffer.size() + width);
                    convert(std::span<const float>(row), std::span(key_buffer).last(width));
                    value_buffer.push_back(static_cast<Value>(value(id)));
                    ++written;
                    if (value_buffer.size() == piece) flush();
                }
            });
            flush();
            for (index_t id = written; id < reserved; ++id) { // zeros
                key_buffer.resize(width), value_buffer.resize(1);
                flush();
            }
        };
        if (format == ReferenceFormat::fp32)
            write(float{}, std::int64_t{});
        else if (format == ReferenceFormat::fp32_int32)
            write(float{}, std::int32_t{});
        else
            write(half{}, std::int16_t{});
        key_file.commit();
        value_file.commit();
        return written;
    }

  private:
    explicit Datastore(std::string where) : where_(std::move(where)), files_("") {}
    bool is_folder() const { return !files_.folder.empty(); }

    // ---- rows ----

    void map_rows() {
        const Manifest& m = manifest_;
        key_file_ = File(files_.keys, O_RDONLY), value_file_ = File(files_.values, O_RDONLY);
        detail::check_array(key_file_, detail::element_type(m.key_type), m.host.key_dim, m.rows);
        detail::check_array(value_file_, m.value_type, 0, m.rows);
        key_offset_ = value_offset_ = DatastoreFiles::kHeader;
        map_files(writable() || exists(files_.edits));
    }
    void map_files(bool edited) {
        const auto map = [&](const File& file, std::size_t offset, index_t row_bytes) {
            const std::uint64_t bytes = offset + static_cast<std::uint64_t>(size() * row_bytes);
            return edited ? MappedFile::map_private(file, bytes, options_.access)
                          : MappedFile::map(file, bytes, options_.access);
        };
        MappedFile key_map = map(key_file_, key_offset_, manifest_.key_bytes());
        value_map_ = map(value_file_, value_offset_, manifest_.value_bytes());
        key_map_ = std::move(key_map);
        private_ = edited;
        key_data_ = key_map_.bytes().data() + key_offset_;
        value_data_ = value_map_.bytes().data() + value_offset_;
    }
    static void check_value_type(const std::string& path, ElementType type) {
        if (type != ElementType::int16 && type != ElementType::int32 && type != ElementType::int64)
            fail(path, ": expected int16, int32 or int64 values, got ", name(type));
    }
    void finish_foreign(std::size_t key_offset, std::size_t value_offset, bool drop_zero_tail, bool check_values) {
        Manifest& m = manifest_;
        if (m.value_type == ElementType::int16 && (m.host.vocab_size < 1 || m.host.vocab_size > 65536))
            fail(value_file_.path(),
                 ": int16 values: expected a vocabulary of 1 to 65536 tokens, as larger ones wrap "
                 "and cannot be told apart, got ",
                 m.host.vocab_size);
        key_offset_ = key_offset, value_offset_ = value_offset;
        map_files(false);
        if (drop_zero_tail) m.rows -= zero_tail();
        if (check_values) check_all_values();
    }

    void check_all_values() const {
        const bool is_64 = manifest_.value_type == ElementType::int64;
        for (index_t id = 0; id < size(); ++id)
            check_value(value_file_.path(), id,
                        is_64 ? reinterpret_cast<const std::int64_t*>(value_data_)[id] : value(id),
                        manifest_.host.vocab_size);
    }
    template <Executor X>
    void verify_column(const File& file, std::size_t offset, index_t row_bytes, const std::vector<std::uint32_t>& sums,
                       const X& executor) const {
        // Read, not mapped: the map may hold edits, and a file that lost its end is an Error and no signal.
        executor.run(static_cast<index_t>(sums.size()), [&](index_t block, index_t) {
            const index_t first = block * manifest_.block_rows, last = std::min(first + manifest_.block_rows, size());
            std::vector<std::byte> buffer(std::size_t{1} << 18);
            Crc32c crc;
            auto at = offset + static_cast<std::uint64_t>(first * row_bytes);
            const auto end = offset + static_cast<std::uint64_t>(last * row_bytes);
            while (at < end) {
                const auto piece = std::span(buffer).first(std::min<std::uint64_t>(buffer.size(), end - at));
                file.read_at(at, piece);
                crc.add(piece);
                at += piece.size();
            }
            const auto expected = sums[static_cast<std::size_t>(block)];
            if (crc.value() != expected)
                fail(file.path(), ": rows ", first, " to ", last - 1, " are damaged: expected the checksum ", expected,
                     ", got ", crc.value());
        });
    }

    // ---- edits ----

    void check_writable() const {
        if (!writable()) fail(where_, ": expected a datastore opened writable, got a read-only one");
    }
    void check_edit(index_t id, const char* what) const {
        check_writable();
        if (id < 0 || id >= size()) fail(where_, ": ", what, ": expected an entry in [0, ", size(), "), got ", id);
        if (is_erased(id)) fail(where_, ": ", what, ": entry ", id, " was erased");
    }
    /// Applies what edits.log holds behind log_. A writable store cuts an unfinished record off.
    void replay_edits() {
        if (!exists(files_.edits)) return;
        if (!private_) {
            map_files(true);
            log_ = {};
        }
        const MappedFile log = MappedFile::open(files_.edits, Access::sequential);
        log_ = edit_log::replay(log.bytes(), manifest_.id, static_cast<std::size_t>(manifest_.key_bytes()),
                                files_.edits, log_, [&](const Edit& edit) {
                                    if (edit.id < 0 || edit.id >= size())
                                        fail(files_.edits, ": expected an entry in [0, ", size(), "), got ", edit.id);
                                    apply(edit);
                                });
        if (writable() && !log_file_.is_open() && log_.bytes > 0) {
            log_file_ = File(files_.edits, O_RDWR);
            if (log_file_.size() > log_.bytes) log_file_.truncate(log_.bytes);
        }
    }
    void apply(const Edit& edit) {
        const auto id = static_cast<std::size_t>(edit.id);
        if (edit.kind == Edit::Kind::erase) {
            erased_.resize(std::max(erased_.size(), id / 64 + 1));
            const std::uint64_t bit = std::uint64_t{1} << id % 64;
            if ((erased_[id / 64] & bit) == 0) ++erased_count_;
            erased_[id / 64] |= bit;
        } else if (edit.kind == Edit::Kind::replace) {
            ++replacements_;
            std::byte* key = key_map_.writable().data() + key_offset_ + id * edit.key.size();
            std::memcpy(key, edit.key.data(), edit.key.size());
            std::byte* value = value_map_.writable().data() + value_offset_;
            if (manifest_.value_type == ElementType::int64)
                reinterpret_cast<std::int64_t*>(value)[id] = edit.value;
            else
                reinterpret_cast<std::int32_t*>(value)[id] = edit.value;
        }
    }
    /// Writes the record, then applies it.
    void log(const Edit& edit) {
        if (!log_file_.is_open()) {
            const bool is_new = !exists(files_.edits);
            log_file_ = File(files_.edits, O_RDWR | O_CREAT);
            log_file_.truncate(0); // a header that was never finished
            log_file_.write_at(0, bytes_of(edit_log::file_header(manifest_.id)));
            log_ = {edit_log::kFileHeader, 0};
            if (is_new) sync_folder(files_.folder);
        }
        record_.clear();
        edit_log::append_record(record_, log_.records, edit);
        log_file_.write_at(log_.bytes, record_); // after a failure the next record takes the same place
        log_.bytes += record_.size();
        ++log_.records;
        edits_pending_ = true;
        apply(edit);
    }

    std::string where_;
    DatastoreFiles files_; // of "" for files that are no folder
    File lock_, key_file_, value_file_, log_file_;
    Manifest manifest_;
    OpenOptions options_;
    MappedFile key_map_, value_map_;
    bool private_ = false; // the maps are this process's own and hold the replaced rows
    std::size_t key_offset_ = 0, value_offset_ = 0;
    const std::byte *key_data_ = nullptr, *value_data_ = nullptr;
    std::vector<std::uint64_t> erased_; // a bit for each id, as far as needed
    index_t erased_count_ = 0, replacements_ = 0;
    edit_log::Position log_;
    std::vector<std::byte> record_;
    bool edits_pending_ = false;
};
static_assert(KeyedStore<Datastore> && EditableStore<Datastore> && MarksErased<Datastore> && TokenValued<Datastore>);

} // namespace mnemo
