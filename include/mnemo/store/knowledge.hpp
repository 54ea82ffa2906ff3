// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/error.hpp>
#include <mnemo/core/half.hpp>
#include <mnemo/core/huge_pages.hpp>
#include <mnemo/core/matrix_view.hpp>
#include <mnemo/kernels/choose_format.hpp>
#include <mnemo/kernels/convert.hpp>
#include <mnemo/kernels/packed_keys.hpp>

#include <algorithm>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace mnemo {

/// A part of the entries whose rows are contiguous: a KeyedStore for any Retriever. Rows count from 0.
class KnowledgeSegment {
  public:
    using value_type = std::span<const half>;

    index_t key_dim() const { return keys_.cols; }
    index_t size() const { return keys_.rows; }
    MatrixView<const half> keys() const { return keys_; }
    value_type value(index_t row) const { return values_[row]; }
    std::span<const std::uint16_t> document(index_t row) const {
        return documents_.cols == 0 ? std::span<const std::uint16_t>{} : documents_[row];
    }
    index_t id(index_t row) const { return ids_ == nullptr ? first_id_ + row : ids_[row]; }
    IdSet erased() const { return erased_ == nullptr ? IdSet{} : IdSet{*erased_}; }
    /// A copy of the first keys that exact search by inner product reads first, where the store was packed.
    PackedView packed() const { return packed_ == nullptr ? PackedView{} : packed_->view(); }

  private:
    friend class KnowledgeStore;
    MatrixView<const half> keys_, values_;
    MatrixView<const std::uint16_t> documents_;
    std::shared_ptr<const void> owner_; // keeps the rows alive
    const index_t* ids_ = nullptr;      // [size], or none where they count from first_id_
    index_t first_id_ = 0;
    std::shared_ptr<const std::vector<std::uint64_t>> erased_; // rows that a reader leaves out
    std::shared_ptr<const PackedKeys<InnerProduct>> packed_;
};
static_assert(KeyedStore<KnowledgeSegment> && MarksErased<KnowledgeSegment>);

/// Where entries came from: ids [first, first + count).
struct KnowledgeSource {
    std::string name;
    index_t first = 0, count = 0;
};

/// A knowledge store at one moment. It never changes, whatever the store goes on to do, and keeps alive what it shows.
/// Retrievers name entries by row, in [0, size()); id(row) is the name that lasts. An entry that was replaced lies in a
/// new row under its old id.
class KnowledgeSnapshot {
  public:
    using value_type = std::span<const half>;

    index_t key_dim() const { return key_dim_; }
    index_t value_dim() const { return value_dim_; }
    /// Rows, those of erased and replaced entries included.
    index_t size() const { return first_rows_.back(); }
    /// Entries that can be found.
    index_t entries() const { return entries_; }
    /// Counts the edits since the store was made.
    index_t version() const { return version_; }
    /// Counts how often the whole base was swapped; ids of different bases have nothing to do with each other.
    index_t base() const { return base_; }

    std::span<const KnowledgeSegment> segments() const { return segments_; }
    index_t first_row(std::size_t segment) const { return first_rows_[segment]; }

    std::span<const half> key(index_t row) const {
        const auto [segment, local] = locate(row);
        return segments_[segment].keys()[local];
    }
    value_type value(index_t row) const {
        const auto [segment, local] = locate(row);
        return segments_[segment].value(local);
    }
    std::span<const std::uint16_t> document(index_t row) const {
        const auto [segment, local] = locate(row);
        return segments_[segment].document(local);
    }
    index_t id(index_t row) const {
        const auto [segment, local] = locate(row);
        return segments_[segment].id(local);
    }
    bool is_erased(index_t row) const {
        const auto [segment, local] = locate(row);
        return segments_[segment].erased().contains(local);
    }
    std::span<const KnowledgeSource> sources() const { return *sources_; }
    /// Which of sources() entry `id` came from.
    index_t source_of(index_t id) const {
        const auto after = std::upper_bound(sources_->begin(), sources_->end(), id,
                                            [](index_t i, const KnowledgeSource& s) { return i < s.first; });
        if (after == sources_->begin()) fail("knowledge: entry ", id, ": expected an id from 0 on");
        return static_cast<index_t>(after - sources_->begin()) - 1;
    }

  private:
    friend class KnowledgeStore;
    struct Place {
        std::size_t segment;
        index_t row;
    };
    Place locate(index_t row) const {
        if (row < 0 || row >= size()) fail("knowledge: expected a row in [0, ", size(), "), got ", row);
        const auto after = std::upper_bound(first_rows_.begin(), first_rows_.end(), row);
        const auto segment = static_cast<std::size_t>(after - first_rows_.begin()) - 1;
        return {segment, row - first_rows_[segment]};
    }

    index_t key_dim_ = 0, value_dim_ = 0, entries_ = 0, version_ = 0, base_ = 0;
    std::vector<KnowledgeSegment> segments_; // none is empty
    std::vector<index_t> first_rows_ = {0};  // [segments + 1]
    std::shared_ptr<const std::vector<KnowledgeSource>> sources_ = std::make_shared<std::vector<KnowledgeSource>>();
};
static_assert(AssociativeStore<KnowledgeSnapshot>);

/// An editable base of key and value vectors in fp16, each with the document that it was made of where wanted. Readers
/// take a snapshot() and read that: an edit is in the next snapshot, whole, and never in one that was taken before. All
/// members may be called from several threads; edits wait for one another, readers for nobody's edit.
///
/// Appending writes the new rows only, erasing a bit for each row of the segment; replacing does both. Nothing is
/// moved, so rows of erased and replaced entries stay until compact().
class KnowledgeStore {
  public:
    KnowledgeStore(index_t key_dim, index_t value_dim, index_t document_length = 0)
        : key_dim_(key_dim), value_dim_(value_dim), document_length_(document_length) {
        if (key_dim < 1 || value_dim < 0 || document_length < 0)
            fail("KnowledgeStore: expected keys of at least 1 number, values and documents of at least 0, got ",
                 key_dim, ", ", value_dim, " and ", document_length);
        auto empty = std::make_shared<KnowledgeSnapshot>();
        empty->key_dim_ = key_dim, empty->value_dim_ = value_dim;
        current_ = std::move(empty);
    }

    index_t key_dim() const { return key_dim_; }
    index_t value_dim() const { return value_dim_; }
    index_t document_length() const { return document_length_; }

    /// The entries as they are now. Two calls may differ; a reader that needs one state takes one snapshot.
    std::shared_ptr<const KnowledgeSnapshot> snapshot() const {
        const std::lock_guard lock(publish_);
        return current_;
    }

    /// Appends keys [n, key_dim], values [n, value_dim] and documents [n, document_length]; returns the first id, the
    /// others follow. All or nothing: a number that is not finite as fp16 is an error that names its row and column.
    index_t append(Rows keys, Rows values, const std::string& source = {},
                   MatrixView<const std::uint16_t> documents = {}) {
        const index_t n = keys.rows;
        check_widths("append", keys.cols, values.cols, documents.cols);
        expect_equal("KnowledgeStore::append: values", values.rows, n);
        if (document_length_ > 0) expect_equal("KnowledgeStore::append: documents", documents.rows, n);
        for (index_t i = 0; i < n; ++i) check(keys[i], "append: keys", i), check(values[i], "append: values", i);
        const std::lock_guard lock(write_);
        const index_t first_id = next_id();
        if (n == 0) return first_id;
        auto next = edited();
        add_source(*next, source, first_id, n);
        row_of_.reserve(row_of_.size() + static_cast<std::size_t>(n));
        const index_t first_row = room_for(*next, n);
        for (index_t i = 0; i < n; ++i) {
            put(*next, keys[i], values[i], document_length_ > 0 ? documents[i] : std::span<const std::uint16_t>{},
                first_id + i);
            row_of_.push_back(first_row + i);
        }
        next->entries_ += n;
        publish(std::move(next));
        return first_id;
    }

    /// Appends rows where they lie, as in a mapped file, without a copy. They must not change while `owner` lives;
    /// their numbers are not looked at here.
    index_t append(MatrixView<const half> keys, MatrixView<const half> values, std::shared_ptr<const void> owner,
                   const std::string& source = {}, MatrixView<const std::uint16_t> documents = {}) {
        const index_t n = keys.rows;
        check_widths("append", keys.cols, values.cols, documents.cols);
        expect_equal("KnowledgeStore::append: values", values.rows, n);
        if (document_length_ > 0) expect_equal("KnowledgeStore::append: documents", documents.rows, n);
        const std::lock_guard lock(write_);
        const index_t first_id = next_id();
        if (n == 0) return first_id;
        auto next = edited();
        add_source(*next, source, first_id, n);
        row_of_.reserve(row_of_.size() + static_cast<std::size_t>(n));
        KnowledgeSegment segment;
        segment.keys_ = keys, segment.values_ = values, segment.documents_ = documents;
        segment.owner_ = std::move(owner);
        segment.first_id_ = first_id;
        const index_t first_row = next->size();
        add_segment(*next, std::move(segment));
        tail_.reset(); // rows of later entries come behind these
        for (index_t i = 0; i < n; ++i) row_of_.push_back(first_row + i);
        next->entries_ += n;
        publish(std::move(next));
        return first_id;
    }

    /// Another key, value and document under the same id, which must not have been erased.
    void replace(index_t id, std::span<const float> key, std::span<const float> value,
                 std::span<const std::uint16_t> document = {}) {
        check_widths("replace", static_cast<index_t>(key.size()), static_cast<index_t>(value.size()),
                     static_cast<index_t>(document.size()));
        check(key, "replace: key", 0), check(value, "replace: value", 0);
        const std::lock_guard lock(write_);
        expect_entry(id, "replace");
        auto next = edited();
        leave_out(*next, row_of_[static_cast<std::size_t>(id)]);
        const index_t row = room_for(*next, 1);
        put(*next, key, value, document, id);
        row_of_[static_cast<std::size_t>(id)] = row;
        publish(std::move(next));
    }

    /// The entry is found no more; its id is not used again.
    void erase(index_t id) {
        const std::lock_guard lock(write_);
        expect_entry(id, "erase");
        auto next = edited();
        leave_out(*next, row_of_[static_cast<std::size_t>(id)]);
        --next->entries_;
        row_of_[static_cast<std::size_t>(id)] = kErased;
        publish(std::move(next));
    }

    /// Everything that `fresh` holds takes the place of what is here, at once; ids are those of `fresh`, which is left
    /// empty and must have the same widths. Building it beforehand costs readers nothing.
    void swap_base(KnowledgeStore&& fresh) {
        if (&fresh == this) fail("KnowledgeStore::swap_base: expected another store");
        expect_equal("KnowledgeStore::swap_base: key width", fresh.key_dim_, key_dim_);
        expect_equal("KnowledgeStore::swap_base: value width", fresh.value_dim_, value_dim_);
        expect_equal("KnowledgeStore::swap_base: document length", fresh.document_length_, document_length_);
        const std::scoped_lock lock(write_, fresh.write_);
        auto next = std::make_shared<KnowledgeSnapshot>(*fresh.snapshot());
        next->version_ = current_->version_ + 1;
        next->base_ = current_->base_ + 1;
        row_of_ = std::move(fresh.row_of_);
        tail_ = std::move(fresh.tail_);
        fresh.row_of_.clear();
        auto empty = std::make_shared<KnowledgeSnapshot>();
        empty->key_dim_ = key_dim_, empty->value_dim_ = value_dim_;
        fresh.publish(std::move(empty));
        publish(std::move(next));
    }

    /// Moves all entries into one segment in the order of their ids, without gaps: rows are then positions among the
    /// entries that are left. Copies everything, mapped rows too; ids stay.
    void compact() {
        const std::lock_guard lock(write_);
        const auto before = current_;
        auto next = edited();
        next->segments_.clear();
        next->first_rows_ = {0};
        std::vector<index_t> moved(row_of_.size(), kErased);
        std::shared_ptr<Tail> kept = std::exchange(tail_, nullptr);
        if (before->entries_ > 0) {
            room_for(*next, before->entries_);
            for (std::size_t id = 0; id < row_of_.size(); ++id) {
                if (row_of_[id] == kErased) continue;
                const auto [place, local] = before->locate(row_of_[id]);
                const KnowledgeSegment& from = before->segments_[place];
                moved[id] = next->size();
                put(*next, from.keys()[local], from.value(local), from.document(local), static_cast<index_t>(id));
            }
        }
        row_of_ = std::move(moved);
        publish(std::move(next));
    }

    /// Keeps packed copies of the keys that are there now, a byte a number or less: exact search by inner product, with
    /// the same results, then reads little more than those. Entries that come later are scored as they are, until the
    /// next time. Readers go on beside it.
    void pack() {
        const std::lock_guard lock(write_);
        auto next = edited();
        for (KnowledgeSegment& segment : next->segments_) {
            if (segment.packed_ != nullptr && segment.packed_->rows() == segment.size()) continue;
            auto packed = std::make_shared<PackedKeys<InnerProduct>>(
                key_dim_, packed_format_for<InnerProduct>(KeyRows(segment.keys())));
            packed->follow(KeyRows(segment.keys()));
            segment.packed_ = std::move(packed);
        }
        publish(std::move(next));
    }

  private:
    static constexpr index_t kErased = -1, kLeastCapacity = 1024;

    // Rows in memory with room behind the last that a snapshot shows; what readers see is never written again.
    struct Tail {
        Tail(index_t n, index_t key_dim, index_t value_dim, index_t length)
            : capacity(n), keys(static_cast<std::size_t>(n * key_dim)), values(static_cast<std::size_t>(n * value_dim)),
              documents(static_cast<std::size_t>(n * length)), ids(static_cast<std::size_t>(n)) {}
        index_t capacity;
        HugeVector<half> keys, values;
        std::vector<std::uint16_t> documents;
        std::vector<index_t> ids;
    };

    index_t next_id() const { return static_cast<index_t>(row_of_.size()); }
    std::shared_ptr<KnowledgeSnapshot> edited() const {
        auto next = std::make_shared<KnowledgeSnapshot>(*current_);
        ++next->version_;
        return next;
    }
    void publish(std::shared_ptr<const KnowledgeSnapshot> next) {
        {
            const std::lock_guard lock(publish_);
            current_.swap(next);
        }
        // The last snapshot may be the last to hold its rows: they are given back outside the lock.
    }
    static void add_segment(KnowledgeSnapshot& next, KnowledgeSegment segment) {
        const index_t end = next.size() + segment.size();
        next.segments_.push_back(std::move(segment));
        next.first_rows_.push_back(end);
    }
    static void add_source(KnowledgeSnapshot& next, const std::string& name, index_t first, index_t count) {
        auto sources = std::make_shared<std::vector<KnowledgeSource>>(*next.sources_);
        if (!sources->empty() && sources->back().name == name)
            sources->back().count += count;
        else
            sources->push_back({name, first, count});
        next.sources_ = std::move(sources);
    }
    // Makes the last segment one that `n` rows can be put into; returns the row of the first. Each new segment is as
    // large as all before it, so that there are few of them and no row is ever copied.
    index_t room_for(KnowledgeSnapshot& next, index_t n) {
        if (tail_ != nullptr && !next.segments_.empty()) {
            const KnowledgeSegment& last = next.segments_.back();
            if (last.owner_ == tail_ && tail_->capacity - last.size() >= n) return next.size();
        }
        auto tail =
            std::make_shared<Tail>(std::max({n, kLeastCapacity, next.size()}), key_dim_, value_dim_, document_length_);
        KnowledgeSegment segment;
        segment.keys_ = {tail->keys.data(), 0, key_dim_};
        segment.values_ = {tail->values.data(), 0, value_dim_};
        segment.documents_ = {tail->documents.data(), 0, document_length_};
        segment.owner_ = tail;
        segment.ids_ = tail->ids.data();
        add_segment(next, std::move(segment));
        tail_ = std::move(tail);
        return next.size();
    }
    // The next row of the last segment, which has room.
    template <class T>
    void put(KnowledgeSnapshot& next, std::span<T> key, std::span<T> value, std::span<const std::uint16_t> document,
             index_t id) {
        KnowledgeSegment& last = next.segments_.back();
        const index_t row = last.size();
        convert(key, MatrixView<half>(tail_->keys.data(), row + 1, key_dim_)[row]);
        convert(value, MatrixView<half>(tail_->values.data(), row + 1, value_dim_)[row]);
        std::copy(document.begin(), document.end(), tail_->documents.begin() + row * document_length_);
        tail_->ids[static_cast<std::size_t>(row)] = id;
        last.keys_.rows = last.values_.rows = last.documents_.rows = row + 1;
        ++next.first_rows_.back();
    }
    static void leave_out(KnowledgeSnapshot& next, index_t row) {
        const auto [place, local] = next.locate(row);
        KnowledgeSegment& segment = next.segments_[place];
        auto erased = segment.erased_ == nullptr ? std::make_shared<std::vector<std::uint64_t>>()
                                                 : std::make_shared<std::vector<std::uint64_t>>(*segment.erased_);
        const auto word = static_cast<std::size_t>(local) / 64;
        if (erased->size() <= word) erased->resize(word + 1);
        (*erased)[word] |= std::uint64_t{1} << (local % 64);
        segment.erased_ = std::move(erased);
    }
    void check_widths(const char* what, index_t key, index_t value, index_t document) const {
        expect_equal(text("KnowledgeStore::", what, ": width of the keys"), key, key_dim_);
        expect_equal(text("KnowledgeStore::", what, ": width of the values"), value, value_dim_);
        expect_equal(text("KnowledgeStore::", what, ": length of the documents"), document, document_length_);
    }
    void expect_entry(index_t id, const char* what) const {
        if (id < 0 || id >= next_id())
            fail("KnowledgeStore::", what, ": expected an id in [0, ", next_id(), "), got ", id);
        if (row_of_[static_cast<std::size_t>(id)] == kErased)
            fail("KnowledgeStore::", what, ": entry ", id, " was erased");
    }
    static void check(std::span<const float> row, const char* what, index_t i) {
        const std::size_t bad = first_not_finite<half>(row);
        if (bad < row.size())
            fail("KnowledgeStore::", what, ": expected numbers that are finite as float16, got ",
                 static_cast<double>(row[bad]), " in row ", i, ", column ", bad);
    }

    index_t key_dim_, value_dim_, document_length_;
    std::vector<index_t> row_of_; // by id; guarded by write_, as is tail_
    std::shared_ptr<Tail> tail_;  // of the last segment
    std::mutex write_;
    mutable std::mutex publish_; // guards current_ against being read while it is exchanged
    std::shared_ptr<const KnowledgeSnapshot> current_;
};

} // namespace mnemo
