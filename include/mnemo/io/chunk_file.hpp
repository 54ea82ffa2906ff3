// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/file.hpp>
#include <mnemo/store/chunk_ring.hpp>
#include <mnemo/text/hash.hpp>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

// A ring of chunks in a file: two header pages, of which the newer one counts, then by head means [slots, head_dim]
// float, keys and values [slots, chunk, head_dim]. Each part begins at a page. A header names the chunks that are held;
// they are written before it, and given up by an earlier header before they are written over.

namespace mnemo {

/// ChunkRing for memories that are larger than the machine's: the same chunks, read where they lie in a mapped file,
/// written through the file. A writer that is killed leaves what it had committed, which is everything that append
/// returned for, but for the tokens that fill no chunk yet; against loss of power there is sync(). One writer at a
/// time; reading is const and re-entrant. T is float, half or bfloat16.
template <KeyElement T = half> class ChunkFile {
  public:
    using value_type = Chunk;

    /// A new, empty file. Throws if one is there, or for sizes that ChunkRing refuses.
    static ChunkFile create(const std::string& path, const ChunkRingOptions& options) {
        ChunkRing<T> checked(options);
        if (options.reference) fail(path, ": expected a ring that forgets only what it must, got the reference's");
        if (exists(path) && File(path, O_RDONLY).size() > 0) fail(path, ": expected no file, got one");
        ChunkFile out(lock_file(path, path), options);
        out.file_.truncate(out.offset(options.heads, 0));
        out.commit();
        out.file_.sync();
        out.map();
        return out;
    }
    /// An existing file. Throws Error, naming it, where it is none, is damaged or holds another element type.
    static ChunkFile open(const std::string& path, bool writable = true) {
        if (!exists(path)) fail(path, ": expected a file of chunks, got none");
        File file = writable ? lock_file(path, path) : File(path, O_RDONLY);
        const Header header = newest(file);
        if (header.type != static_cast<index_t>(key_type_of<T>))
            fail(path, ": expected chunks of ", name(key_type_of<T>), ", got another type");
        ChunkRingOptions options{.heads = header.heads, .head_dim = header.head_dim, .chunk = header.chunk};
        constexpr index_t most = index_t{1} << 40; // of any product of sizes
        if (options.heads < 1 || options.head_dim < 1 || options.chunk < 1 || header.slots < 1 ||
            options.heads > most / options.head_dim || options.heads * options.head_dim > most / options.chunk ||
            options.heads * options.head_dim * options.chunk > most / header.slots || header.held < 0 ||
            header.held > header.slots || header.appended < header.held)
            fail(path, ": damaged: impossible sizes in the header");
        options.memory_tokens = header.slots * header.chunk;
        ChunkFile out(std::move(file), options);
        out.writable_ = writable, out.header_ = header;
        const std::uint64_t expected = out.offset(options.heads, 0), size = out.file_.size();
        if (size != expected) fail(path, ": expected ", expected, " bytes, got ", size);
        out.map();
        out.mark();
        return out;
    }

    const ChunkRingOptions& options() const { return options_; }
    index_t heads() const { return options_.heads; }
    index_t head_dim() const { return options_.head_dim; }
    index_t key_dim() const { return options_.heads * options_.head_dim; }
    index_t slots() const { return header_.slots; }
    /// Slots that were written; those among erased() hold nothing any more.
    index_t size() const { return std::min(header_.appended, header_.slots); }
    index_t chunks() const { return header_.held; }
    index_t tokens() const { return chunks() * options_.chunk; }
    index_t waiting() const { return static_cast<index_t>(next_keys_.size()) / key_dim(); }
    value_type value(index_t slot) const {
        const index_t last = header_.appended - 1;
        return {(last - (last - slot) % slots()) * options_.chunk};
    }
    IdSet erased() const { return header_.held == size() ? IdSet{} : IdSet{dead_}; }
    Rows means(index_t head) const { return {at<float>(offset(head, 0)), size(), head_dim()}; }
    MatrixView<const T> keys(index_t head) const {
        return {at<T>(offset(head, 1)), size() * options_.chunk, head_dim()};
    }
    MatrixView<const T> values(index_t head) const {
        return {at<T>(offset(head, 2)), size() * options_.chunk, head_dim()};
    }

    /// One head as a store of its own, for retrievers.
    struct Head {
        using value_type = Chunk;
        const ChunkFile* file;
        index_t head;
        index_t key_dim() const { return file->head_dim(); }
        index_t size() const { return file->size(); }
        value_type value(index_t slot) const { return file->value(slot); }
        Rows keys() const { return file->means(head); }
        IdSet erased() const { return file->erased(); }
        /// Means [first, first + n) may leave memory.
        void release(index_t first, index_t n) const {
            const auto row = static_cast<std::uint64_t>(file->head_dim()) * sizeof(float);
            file->map_.release(file->offset(head, 0) + static_cast<std::uint64_t>(first) * row,
                               static_cast<std::uint64_t>(n) * row);
        }
    };
    Head head(index_t h) const { return {this, h}; }
    /// Everything that was read may leave memory.
    void release() const { map_.release(0, map_.bytes().size()); }

    /// Remembers keys and values [n, heads * head_dim] of consecutive tokens, as ChunkRing::append does.
    void append(Rows keys, Rows values) {
        expect_equal("ChunkFile::append: width of the keys", keys.cols, key_dim());
        expect_equal("ChunkFile::append: width of the values", values.cols, key_dim());
        expect_equal("ChunkFile::append: rows of the values", values.rows, keys.rows);
        if (!writable_) fail(file_.path(), ": expected a file that was opened for writing");
        for (index_t i = 0; i < keys.rows; ++i)
            for (const auto& row : {keys[i], values[i]})
                if (const std::size_t bad = first_not_finite<T>(row); bad < row.size())
                    fail("ChunkFile::append: expected finite numbers that ", name(key_type_of<T>), " holds, got ",
                         double{row[bad]}, " in row ", i, ", column ", bad);
        const index_t c = options_.chunk, wait = waiting();
        index_t chunks = (wait + keys.rows) / c, done = 0; // done: of the tokens that wait and the new ones
        const auto row_of = [&](const std::vector<float>& next, Rows rows, index_t i) {
            if (i >= wait) return rows[i - wait];
            return std::span<const float>(next).subspan(static_cast<std::size_t>(i * key_dim()),
                                                        static_cast<std::size_t>(key_dim()));
        };
        while (chunks > 0) {
            constexpr index_t most = 1024; // of one write
            const index_t to = header_.appended % slots(), n = std::min({chunks, slots() - to, most});
            if (const index_t drop = header_.held + n - slots(); drop > 0) header_.held -= drop, commit();
            write(
                to, n, [&](index_t i) { return row_of(next_keys_, keys, done + i); },
                [&](index_t i) { return row_of(next_values_, values, done + i); });
            header_.appended += n, header_.held += n;
            commit();
            done += n * c, chunks -= n;
        }
        std::vector<float> rest_keys, rest_values;
        for (index_t i = done; i < wait + keys.rows; ++i) {
            const auto k = row_of(next_keys_, keys, i), v = row_of(next_values_, values, i);
            rest_keys.insert(rest_keys.end(), k.begin(), k.end());
            rest_values.insert(rest_values.end(), v.begin(), v.end());
        }
        next_keys_ = std::move(rest_keys), next_values_ = std::move(rest_values);
        mark();
    }
    /// Forgets everything.
    void clear() {
        header_.held = 0, next_keys_.clear(), next_values_.clear();
        commit();
        mark();
    }
    /// Returns when everything is on the disk.
    void sync() { file_.sync(); }
    /// Bytes of the file when the ring is full.
    index_t bytes() const { return static_cast<index_t>(offset(heads(), 0)); }

  private:
    static constexpr std::uint64_t kPage = 4096, kMagic = 0x31736b6e75686331; // "1chunks1"
    struct Header {
        std::uint64_t magic = kMagic, number = 0; // number: the larger one counts
        index_t heads = 0, head_dim = 0, chunk = 0, slots = 0, type = 0;
        index_t appended = 0, held = 0; // chunks: ever; the newest of them are held
        std::uint64_t checksum = 0;
        std::uint64_t sum() const {
            Header copy = *this;
            copy.checksum = 0;
            return Hash64().add(std::as_bytes(std::span(&copy, 1))).value();
        }
    };

    ChunkFile(File file, const ChunkRingOptions& options) : file_(std::move(file)), options_(options) {
        header_.heads = options.heads, header_.head_dim = options.head_dim, header_.chunk = options.chunk;
        header_.slots = options.memory_tokens / options.chunk, header_.type = static_cast<index_t>(key_type_of<T>);
    }
    static Header newest(const File& file) {
        std::array<Header, 2> both;
        if (file.size() < 2 * kPage) fail(file.path(), ": expected a file of chunks, got ", file.size(), " bytes");
        for (std::size_t i = 0; i < 2; ++i) file.read_at(i * kPage, std::as_writable_bytes(std::span(&both[i], 1)));
        const auto good = [](const Header& h) { return h.magic == kMagic && h.checksum == h.sum(); };
        if (!good(both[0]) && !good(both[1])) fail(file.path(), ": expected a file of chunks, got something else");
        return !good(both[1]) || (good(both[0]) && both[0].number > both[1].number) ? both[0] : both[1];
    }
    void commit() {
        ++header_.number;
        header_.checksum = header_.sum();
        file_.write_at(header_.number % 2 * kPage, std::as_bytes(std::span(&header_, 1)));
    }
    void map() { map_ = MappedFile::map(file_, offset(heads(), 0), Access::random); }
    // Of means (0), keys (1) or values (2) of a head; offset(heads, 0) is the end.
    std::uint64_t offset(index_t head, int part) const {
        const auto padded = [](std::uint64_t n) { return (n + kPage - 1) / kPage * kPage; };
        const auto rows = static_cast<std::uint64_t>(header_.slots * options_.head_dim);
        const std::uint64_t means = padded(rows * sizeof(float)),
                            tokens = padded(rows * static_cast<std::uint64_t>(options_.chunk) * sizeof(T));
        return 2 * kPage + static_cast<std::uint64_t>(head) * (means + 2 * tokens) + (part > 0 ? means : 0) +
               (part > 1 ? tokens : 0);
    }
    template <class U> const U* at(std::uint64_t bytes) const {
        return reinterpret_cast<const U*>(map_.bytes().data() + bytes);
    }
    // Chunks [to, to + n), which do not wrap; key(i) and value(i) are rows of consecutive tokens.
    void write(index_t to, index_t n, auto&& key, auto&& value) {
        const auto d = static_cast<std::size_t>(head_dim());
        const index_t c = options_.chunk;
        means_.resize(static_cast<std::size_t>(n) * d);
        blocks_.resize(means_.size() * static_cast<std::size_t>(c));
        for (index_t h = 0; h < heads(); ++h) {
            const auto own = [&](std::span<const float> row) {
                return row.subspan(static_cast<std::size_t>(h) * d, d);
            };
            std::fill(means_.begin(), means_.end(), 0.0f);
            for (index_t i = 0; i < n * c; ++i) {
                const auto k = own(key(i));
                convert(k, std::span<T>(blocks_).subspan(static_cast<std::size_t>(i) * d, d));
                float* const mean = means_.data() + static_cast<std::size_t>(i / c) * d;
                for (std::size_t j = 0; j < d; ++j) mean[j] += k[j];
            }
            for (float& x : means_) x /= static_cast<float>(c);
            const auto row = static_cast<std::uint64_t>(to) * d;
            const std::uint64_t first = row * static_cast<std::uint64_t>(c) * sizeof(T);
            file_.write_at(offset(h, 0) + row * sizeof(float), std::as_bytes(std::span(means_)));
            file_.write_at(offset(h, 1) + first, std::as_bytes(std::span(blocks_)));
            for (index_t i = 0; i < n * c; ++i)
                convert(own(value(i)), std::span<T>(blocks_).subspan(static_cast<std::size_t>(i) * d, d));
            file_.write_at(offset(h, 2) + first, std::as_bytes(std::span(blocks_)));
        }
    }
    // Slots whose chunk was forgotten: there are some only after clear or between two writes.
    void mark() {
        dead_.clear();
        if (header_.held == size()) return;
        dead_.assign(static_cast<std::size_t>(size() + 63) / 64, ~std::uint64_t{0});
        for (index_t i = header_.appended - header_.held; i < header_.appended; ++i) {
            const index_t slot = i % slots();
            dead_[static_cast<std::size_t>(slot) / 64] &= ~(std::uint64_t{1} << (slot % 64));
        }
    }

    File file_;
    ChunkRingOptions options_;
    Header header_;
    MappedFile map_;
    bool writable_ = true;
    std::vector<float> next_keys_, next_values_; // [tokens that wait, heads * head_dim]
    std::vector<std::uint64_t> dead_;
    std::vector<float> means_; // of one write
    std::vector<T> blocks_;
};

} // namespace mnemo
