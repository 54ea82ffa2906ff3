// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/io/checksum.hpp>
#include <mnemo/io/file.hpp>
#include <mnemo/io/manifest.hpp>
#include <mnemo/io/npy.hpp>
#include <mnemo/kernels/convert.hpp>

#include <algorithm>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace mnemo {

/// The files of a datastore folder.
struct DatastoreFiles {
    explicit DatastoreFiles(const std::string& where)
        : folder(where), manifest(where + "/mnemo.json"), keys(where + "/keys.npy"), values(where + "/values.npy"),
          edits(where + "/edits.log"), lock(where + "/lock") {}
    std::string folder;
    std::string manifest; // format, sizes, host, checksums: the authority
    std::string keys;     // [rows, key_dim]; bfloat16 as |V2. The row count in the header is advisory
    std::string values;   // [rows]
    std::string edits;    // see edit_log.hpp
    std::string lock;     // held by the one writer

    /// The headers of both arrays have this size, so that the row count can be patched and rows are aligned.
    static constexpr std::size_t kHeader = 128;

    Manifest read_manifest() const {
        if (!exists(manifest)) fail(folder, ": expected a datastore, got a folder without mnemo.json, or none");
        return Manifest::parse(read_file(manifest), manifest);
    }
};

namespace detail {

inline ElementType element_type(KeyType t) {
    return t == KeyType::float32   ? ElementType::float32
           : t == KeyType::float16 ? ElementType::float16
                                   : ElementType::bfloat16;
}

/// Throws unless the array in `file` has this type and row width (0: one dimension) and at least `rows` rows of data.
inline void check_array(const File& file, ElementType type, index_t width, index_t rows) {
    const std::uint64_t size = file.size();
    std::vector<std::byte> begin(std::min<std::uint64_t>(size, 4096)); // room for a foreign header, to say what it is
    file.read_at(0, begin);
    const NpyHeader header = parse_npy_header(begin, file.path());
    const bool right = header.type == type && !header.big_endian && !(header.fortran_order && width > 1) &&
                       header.shape.size() == (width > 0 ? 2 : 1) && (width == 0 || header.shape[1] == width);
    const std::string dims = width > 0 ? text("[n, ", width, "]") : std::string("[n]");
    if (!right)
        fail(file.path(), ": expected ", name(type), " ", dims, ", got ", name(header.type), " ",
             shape_text(header.shape), header.big_endian ? ", big-endian" : "",
             header.fortran_order ? ", Fortran order" : "");
    if (header.data_offset != DatastoreFiles::kHeader)
        fail(file.path(), ": expected a header of ", DatastoreFiles::kHeader, " bytes, got ", header.data_offset);
    const auto expected =
        static_cast<std::uint64_t>(rows * std::max<index_t>(width, 1) * size_of(type)) + header.data_offset;
    if (size < expected)
        fail(file.path(), ": expected at least ", expected, " bytes for the ", rows, " rows of mnemo.json, got ", size);
}

/// One array of a datastore that grows: rows are collected, summed and written in large pieces.
class ColumnWriter {
  public:
    ColumnWriter() = default;
    ColumnWriter(File file, ElementType type, index_t width, index_t rows, BlockChecksums checksums)
        : file_(std::move(file)), type_(type), width_(width), row_bytes_(std::max<index_t>(width, 1) * size_of(type)),
          written_(DatastoreFiles::kHeader + static_cast<std::uint64_t>(rows * row_bytes_)),
          buffer_(std::max(kBuffer, static_cast<std::size_t>(row_bytes_))), checksums_(std::move(checksums)) {}

    /// How many rows room() can give at once.
    index_t capacity() const { return static_cast<index_t>(buffer_.size()) / row_bytes_; }
    /// Room for `rows` rows; filled() says that they are there.
    std::span<std::byte> room(index_t rows) {
        const auto size = static_cast<std::size_t>(rows * row_bytes_);
        if (used_ + size > buffer_.size()) flush();
        return std::span(buffer_).subspan(used_, size);
    }
    void filled(std::span<const std::byte> bytes) {
        checksums_.add(bytes);
        used_ += bytes.size();
    }
    /// Rows that are as they should be: large pieces are written from where they lie.
    void append(std::span<const std::byte> bytes) {
        if (bytes.size() < buffer_.size()) {
            if (used_ + bytes.size() > buffer_.size()) flush();
            std::copy(bytes.begin(), bytes.end(), buffer_.begin() + static_cast<std::ptrdiff_t>(used_));
            filled(bytes);
            return;
        }
        flush();
        for (; !bytes.empty(); bytes = bytes.subspan(std::min(bytes.size(), kBuffer))) {
            const auto piece = bytes.first(std::min(bytes.size(), kBuffer));
            checksums_.add(piece); // while it is in the cache for the copy into the system's
            write(piece);
        }
    }
    void flush() {
        write({buffer_.data(), used_});
        used_ = 0;
    }
    /// The rows are on the disk, and the header says how many.
    void sync(index_t rows) {
        flush();
        std::vector<index_t> shape{rows};
        if (width_ > 0) shape.push_back(width_);
        file_.write_at(0, bytes_of(npy_header(type_, shape, DatastoreFiles::kHeader)));
        file_.sync();
    }
    std::vector<std::uint32_t> checksums() const { return checksums_.sums(); }

  private:
    static constexpr std::size_t kBuffer = std::size_t{1} << 20;
    static constexpr std::uint64_t kWriteback = std::uint64_t{16} << 20;

    void write(std::span<const std::byte> bytes) {
        file_.write_at(written_, bytes);
        written_ += bytes.size();
#ifdef SYNC_FILE_RANGE_WRITE
        // Starts the disk early, so that a commit does not wait for everything at once. Only a hint: errors show there.
        if (written_ - started_ >= kWriteback) {
            ::sync_file_range(file_.descriptor(), static_cast<off_t>(started_), static_cast<off_t>(written_ - started_),
                              SYNC_FILE_RANGE_WRITE);
            started_ = written_;
        }
#endif
    }

    File file_;
    ElementType type_ = ElementType::other;
    index_t width_ = 0, row_bytes_ = 1;
    std::uint64_t written_ = 0, started_ = 0; // offsets
    std::vector<std::byte> buffer_;
    std::size_t used_ = 0;
    BlockChecksums checksums_;
};

} // namespace detail

/// What a new datastore is made of.
struct DatastoreOptions {
    Fingerprint host{}; // its key_dim is needed; its vocab_size bounds the values
    KeyType key_type = KeyType::float16;
    ElementType value_type = ElementType::int32; // or int64
    Metric metric = Metric::l2;                  // that the keys were made for
    index_t block_rows = 16384;                  // rows a checksum
    bool overwrite = false;                      // an existing datastore is lost
};

/// Appends rows to a datastore folder. Rows are there for readers, and survive anything, once commit() has returned;
/// what was appended later is gone after a crash, and nothing else is. One writer at a time; readers are not disturbed.
///
///     auto writer = DatastoreWriter::create("store", {.host = {.key_dim = 1024, .vocab_size = 50257}});
///     writer.append(keys, values);                      // Rows [n, key_dim], n tokens
///     writer.close();
class DatastoreWriter {
  public:
    /// A new, empty datastore. The folder is made if needed; one that holds a datastore or arrays already is refused
    /// unless options.overwrite is set.
    static DatastoreWriter create(const std::string& folder, const DatastoreOptions& options) {
        DatastoreWriter w(folder);
        Manifest& m = w.manifest_;
        m.host = options.host, m.metric = options.metric, m.key_type = options.key_type;
        m.value_type = options.value_type, m.block_rows = options.block_rows;
        if (m.host.key_dim < 1 || m.host.key_dim > Manifest::kMaxKeyDim)
            fail(folder, ": key_dim: expected 1 to ", Manifest::kMaxKeyDim, ", got ", m.host.key_dim);
        if (m.value_type != ElementType::int32 && m.value_type != ElementType::int64)
            fail(folder, ": value_dtype: expected int32 or int64, got ", name(m.value_type));
        if (m.block_rows < 1 || m.block_rows > index_t{1} << 31)
            fail(folder, ": block_rows: expected 1 to 2^31, got ", m.block_rows);
        if (m.host.vocab_size < 0 || m.host.vocab_size > index_t{1} << 31)
            fail(folder, ": vocab_size: expected 0 to 2^31, got ", m.host.vocab_size);
        std::random_device random;
        m.id = std::uint64_t{random()} << 32 | random();
        (void)m.to_json(); // refuses names that cannot be written, before anything is touched

        if (::mkdir(folder.c_str(), 0777) != 0 && errno != EEXIST) fail_system(folder, "create the folder");
        const DatastoreFiles& f = w.files_;
        w.lock_ = lock_file(f.lock, folder);
        if (!options.overwrite) {
            if (exists(f.manifest)) fail(folder, ": expected no datastore, got one: resume it, or ask for overwriting");
            for (const std::string& path : {f.keys, f.values})
                if (exists(path) &&
                    File(path, O_RDONLY).size() > DatastoreFiles::kHeader) // more than a killed create() leaves
                    fail(path, ": expected no such file, got one: ask for overwriting");
        }
        // Without its manifest the folder is no datastore, until the new one is there. Other programs may still have
        // the old files mapped: they are unlinked, not emptied.
        remove_file(f.manifest);
        sync_folder(folder);
        for (const std::string& path : {f.edits, f.keys, f.values}) remove_file(path);
        w.open_columns(O_RDWR | O_CREAT | O_EXCL);
        w.write_manifest();
        return w;
    }

    /// Continues after the last committed row; whatever a crashed writer left behind it is cut off.
    static DatastoreWriter resume(const std::string& folder) { return resume(folder, {}); }
    /// The same, but a store of another host than `expected` is refused.
    static DatastoreWriter resume(const std::string& folder, const Fingerprint& expected) {
        DatastoreWriter w(folder);
        check_fingerprint(folder, w.files_.read_manifest().host, expected); // a refused folder gets no lock file
        w.lock_ = lock_file(w.files_.lock, folder);
        const Manifest& m = w.manifest_ = w.files_.read_manifest();
        detail::check_array(File(w.files_.keys, O_RDONLY), detail::element_type(m.key_type), m.host.key_dim, m.rows);
        detail::check_array(File(w.files_.values, O_RDONLY), m.value_type, 0, m.rows);
        w.appended_ = m.rows;
        w.open_columns(O_RDWR);
        return w;
    }

    DatastoreWriter(DatastoreWriter&&) = default;
    DatastoreWriter& operator=(DatastoreWriter&&) = delete;
    /// Commits what was appended. Errors are lost here: call close() to see them.
    ~DatastoreWriter() {
        try {
            close();
        } catch (const Error&) {
        }
    }

    index_t key_dim() const { return manifest_.host.key_dim; }
    index_t size() const { return appended_; }
    index_t committed() const { return manifest_.rows; }
    const Manifest& manifest() const { return manifest_; }
    const std::string& folder() const { return files_.folder; }

    /// Appends keys [n, key_dim] of any float type with n values. A key that is not finite, or not finite any more in
    /// the store's type, and a value outside the vocabulary are Errors that name row and column; then nothing of this
    /// call is appended. Commits by itself after every commit_every() bytes, between calls.
    void append(const KeyRows& keys, std::span<const std::int32_t> values) {
        check_open();
        expect_equal(files_.folder + ": append: key_dim", keys.cols, key_dim());
        expect_equal(files_.folder + ": append: values", static_cast<index_t>(values.size()), keys.rows);
        check_values(values);
        keys.visit([&](auto rows) { check_keys(rows); });
        broken_ = true; // until everything is in the buffers or written
        keys.visit([&](auto rows) { append_keys(rows); });
        append_values(values);
        broken_ = false;
        appended_ += keys.rows;
        pending_bytes_ += keys.rows * (manifest_.key_bytes() + manifest_.value_bytes());
        if (pending_bytes_ >= commit_every_) commit();
    }

    /// Makes everything appended so far last: the rows are on the disk before mnemo.json is replaced.
    void commit() {
        check_open();
        commit_rows();
    }
    /// Bytes between automatic commits.
    index_t commit_every() const { return commit_every_; }
    void set_commit_every(index_t bytes) { commit_every_ = std::max<index_t>(bytes, 1); }

    /// Commits and lets others write. Nothing can be appended afterwards.
    void close() {
        const File lock = std::move(lock_); // released whatever happens
        if (lock.is_open() && !broken_) commit_rows();
    }

  private:
    explicit DatastoreWriter(const std::string& folder) : files_(folder) {}

    void check_open() const {
        if (broken_)
            fail(files_.folder, ": an earlier write failed: resume the datastore to continue after its ",
                 manifest_.rows, " committed rows");
        if (!lock_.is_open()) fail(files_.folder, ": the writer is closed");
    }
    void commit_rows() {
        if (appended_ == manifest_.rows) return;
        broken_ = true;
        keys_.sync(appended_);
        values_.sync(appended_);
        manifest_.key_checksums = keys_.checksums();
        manifest_.value_checksums = values_.checksums();
        const index_t before = std::exchange(manifest_.rows, appended_);
        try {
            write_manifest();
        } catch (...) {
            manifest_.rows = before;
            throw;
        }
        broken_ = false;
        pending_bytes_ = 0;
    }
    void check_values(std::span<const std::int32_t> values) const {
        // The largest int32 as an unsigned bound also catches negative values.
        const index_t vocab = manifest_.host.vocab_size;
        const auto limit = static_cast<std::uint32_t>(vocab > 0 ? std::min(vocab, index_t{1} << 31) : index_t{1} << 31);
        for (std::size_t i = 0; i < values.size(); ++i)
            if (static_cast<std::uint32_t>(values[i]) >= limit)
                check_value(files_.folder + ": append", static_cast<index_t>(i), values[i], vocab);
    }
    template <class T> void check_keys(MatrixView<const T> keys) const {
        const auto first_bad = [&](std::span<const float> row) {
            return manifest_.key_type == KeyType::float32   ? first_not_finite<float>(row)
                   : manifest_.key_type == KeyType::float16 ? first_not_finite<half>(row)
                                                            : first_not_finite<bfloat16>(row);
        };
        std::vector<float> wide(std::is_same_v<T, float> ? 0 : static_cast<std::size_t>(keys.cols));
        for (index_t i = 0; i < keys.rows; ++i) {
            std::span<const float> row;
            if constexpr (std::is_same_v<T, float>) {
                row = keys[i];
            } else {
                convert(keys[i], std::span(wide));
                row = wide;
            }
            const std::size_t bad = first_bad(row);
            if (bad < row.size())
                fail(files_.folder, ": append: row ", i, ", column ", bad, ": expected a key that is finite as ",
                     name(manifest_.key_type), ", got ", static_cast<double>(row[bad]));
        }
    }
    template <class T> void append_keys(MatrixView<const T> keys) {
        if (key_type_of<T> == manifest_.key_type && keys.stride == keys.cols) {
            keys_.append(std::as_bytes(std::span(keys.data, static_cast<std::size_t>(keys.rows * keys.cols))));
            return;
        }
        for (index_t first = 0; first < keys.rows; first += keys_.capacity()) {
            const auto piece = keys.slice(first, std::min(keys_.capacity(), keys.rows - first));
            const auto room = keys_.room(piece.rows);
            switch (manifest_.key_type) {
            case KeyType::float32:
                fill<float>(piece, room);
                break;
            case KeyType::float16:
                fill<half>(piece, room);
                break;
            case KeyType::bfloat16:
                fill<bfloat16>(piece, room);
                break;
            }
            keys_.filled(room);
        }
    }
    template <class To, class T> static void fill(MatrixView<const T> keys, std::span<std::byte> room) {
        // The buffer comes from operator new and only whole rows go into it: aligned for To.
        const std::span<To> to(reinterpret_cast<To*>(room.data()), room.size() / sizeof(To));
        const auto width = static_cast<std::size_t>(keys.cols);
        for (index_t i = 0; i < keys.rows; ++i)
            convert(keys[i], to.subspan(static_cast<std::size_t>(i) * width, width));
    }
    void append_values(std::span<const std::int32_t> values) {
        if (manifest_.value_type == ElementType::int32) {
            values_.append(std::as_bytes(values));
            return;
        }
        const auto capacity = static_cast<std::size_t>(values_.capacity());
        for (; !values.empty(); values = values.subspan(std::min(values.size(), capacity))) {
            const auto piece = values.first(std::min(values.size(), capacity));
            const auto room = values_.room(static_cast<index_t>(piece.size()));
            std::copy(piece.begin(), piece.end(), reinterpret_cast<std::int64_t*>(room.data()));
            values_.filled(room);
        }
    }
    /// Opens both arrays cut to the committed rows, with headers that say so.
    void open_columns(int flags) {
        const Manifest& m = manifest_;
        const auto open = [&](const std::string& path, ElementType type, index_t width, index_t row_bytes,
                              const std::vector<std::uint32_t>& sums) {
            File file(path, flags);
            file.truncate(DatastoreFiles::kHeader + static_cast<std::uint64_t>(m.rows * row_bytes));
            detail::ColumnWriter column(std::move(file), type, width, m.rows,
                                        BlockChecksums(m.block_rows, row_bytes, m.rows, sums));
            column.sync(m.rows);
            return column;
        };
        keys_ = open(files_.keys, detail::element_type(m.key_type), m.host.key_dim, m.key_bytes(), m.key_checksums);
        values_ = open(files_.values, m.value_type, 0, m.value_bytes(), m.value_checksums);
    }
    void write_manifest() {
        AtomicFile file(files_.manifest, files_.manifest + ".tmp"); // the lock makes the name ours
        file.write(bytes_of(manifest_.to_json()));
        file.commit();
    }

    DatastoreFiles files_;
    File lock_;
    Manifest manifest_;
    detail::ColumnWriter keys_, values_;
    index_t appended_ = 0;
    index_t pending_bytes_ = 0, commit_every_ = index_t{1} << 30;
    bool broken_ = false; // a write failed: what the files hold behind the committed rows is not known
};
static_assert(WritableStoreFor<DatastoreWriter, Rows, std::span<const std::int32_t>>);

} // namespace mnemo
