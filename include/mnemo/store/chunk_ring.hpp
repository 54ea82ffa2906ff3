// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/error.hpp>
#include <mnemo/core/huge_pages.hpp>
#include <mnemo/kernels/choose_format.hpp>
#include <mnemo/kernels/convert.hpp>
#include <mnemo/kernels/packed_keys.hpp>

#include <algorithm>
#include <utility>
#include <vector>

namespace mnemo {

/// How a ring of chunks is laid out and what it forgets.
struct ChunkRingOptions {
    index_t heads = 1, head_dim = 1;
    index_t chunk = 4;              // tokens that are found together
    index_t memory_tokens = 65'536; // at most so many are held, in whole chunks
    /// The published implementation's forgetting: an append that would fill the last chunk drops twice as many tokens
    /// as it brings, in whole chunks, beforehand; its tokens beyond whole chunks are lost.
    bool reference = false;
    bool operator==(const ChunkRingOptions&) const = default;
};

/// What stands in a slot.
struct Chunk {
    index_t position = 0; // its first token's, counted over everything that was ever appended
    bool operator==(const Chunk&) const = default;
};

/// The newest tokens' attention keys and values, by head, in chunks that are found by the mean of their keys. Chunks
/// stay where they were written: forgetting copies nothing. An id is a slot, used again when its chunk is forgotten.
/// Tokens that fill no chunk yet wait, unseen, for the next append. Means are floats; keys and values are kept as T
/// (float, half or bfloat16). Memory grows with what is held, up to memory_tokens. Rings that are worth it keep a
/// packed copy of the means for exact search by inner product. Reading is const and re-entrant; writing is exclusive.
template <KeyElement T = half> class ChunkRing {
  public:
    using value_type = Chunk;

    /// Everything a ring holds, for files. Slots that were ever written are `positions.size()`; slot (first + i) %
    /// slots, i < used, holds the i-th oldest chunk.
    struct Contents {
        std::vector<HugeVector<T>> keys, values;   // by head: [slots written, chunk, head_dim]
        std::vector<HugeVector<float>> means;      // by head: [slots written, head_dim]
        std::vector<index_t> positions;            // by slot
        std::vector<float> next_keys, next_values; // [tokens that wait, heads * head_dim]
        index_t first = 0, used = 0, tokens = 0, document = 0;
    };

    explicit ChunkRing(ChunkRingOptions options) : options_(options) {
        if (options.heads < 1 || options.head_dim < 1 || options.chunk < 1)
            fail("ChunkRing: expected at least 1 head, 1 dimension and 1 token a chunk, got ", options.heads, ", ",
                 options.head_dim, " and ", options.chunk);
        if (options.memory_tokens < options.chunk)
            fail("ChunkRing: expected a memory of at least one chunk of ", options.chunk, " tokens, got ",
                 options.memory_tokens);
        if (!options.reference && options.memory_tokens % options.chunk != 0)
            fail("ChunkRing: expected a memory of whole chunks of ", options.chunk, " tokens, got ",
                 options.memory_tokens, " tokens");
        const auto heads = static_cast<std::size_t>(options.heads);
        now_.keys.resize(heads), now_.values.resize(heads), now_.means.resize(heads);
    }
    /// A ring as it was. Throws where the contents do not fit the options or one another.
    ChunkRing(ChunkRingOptions options, Contents contents) : ChunkRing(options) {
        const auto heads = static_cast<std::size_t>(options.heads);
        const auto written = static_cast<index_t>(contents.positions.size());
        if (contents.keys.size() != heads || contents.values.size() != heads || contents.means.size() != heads)
            fail("ChunkRing: expected keys, values and means of ", options.heads, " heads, got ", contents.keys.size(),
                 ", ", contents.values.size(), " and ", contents.means.size());
        for (std::size_t h = 0; h < heads; ++h) {
            expect_equal("ChunkRing: keys of a head", contents.keys[h].size(), elements(written));
            expect_equal("ChunkRing: values of a head", contents.values[h].size(), elements(written));
            expect_equal("ChunkRing: means of a head", contents.means[h].size(),
                         static_cast<std::size_t>(written * options.head_dim));
        }
        if (written > slots() || contents.first < 0 || contents.used < 0 || contents.used > written ||
            contents.first >= slots() || contents.tokens < 0)
            fail("ChunkRing: expected at most ", slots(), " slots, got ", written, " written, ", contents.used,
                 " in use from ", contents.first);
        for (index_t age = 0; age < contents.used; ++age)
            if ((contents.first + age) % slots() >= written)
                fail("ChunkRing: expected slots in use among the ", written, " written, got ", contents.used, " from ",
                     contents.first);
        expect_equal("ChunkRing: values that wait", contents.next_values.size(), contents.next_keys.size());
        const auto width = static_cast<std::size_t>(this->width());
        if (contents.next_keys.size() % width != 0 ||
            contents.next_keys.size() / width >= static_cast<std::size_t>(options.chunk))
            fail("ChunkRing: expected fewer than ", options.chunk, " tokens of width ", width, " that wait, got ",
                 contents.next_keys.size(), " numbers");
        now_ = std::move(contents);
        dead_.assign((now_.positions.size() + 63) / 64, 0);
        for (index_t slot = 0; slot < written; ++slot)
            if ((slot - now_.first + slots()) % slots() >= now_.used) mark(slot, true);
        pack(0);
    }

    const ChunkRingOptions& options() const { return options_; }
    const Contents& contents() const { return now_; }
    index_t heads() const { return options_.heads; }
    index_t head_dim() const { return options_.head_dim; }
    index_t key_dim() const { return width(); } // of all heads, side by side
    index_t slots() const { return options_.memory_tokens / options_.chunk; }
    /// Slots that were ever written; those of forgotten chunks are erased().
    index_t size() const { return static_cast<index_t>(now_.positions.size()); }
    index_t chunks() const { return now_.used; }
    index_t tokens() const { return now_.used * options_.chunk; }
    /// Tokens that wait for their chunk to fill.
    index_t waiting() const { return static_cast<index_t>(now_.next_keys.size()) / width(); }
    value_type value(index_t slot) const { return {now_.positions[static_cast<std::size_t>(slot)]}; }
    /// The slot of the chunk that is `age` younger than the oldest, and back.
    index_t slot(index_t age) const { return (now_.first + age) % slots(); }
    index_t age(index_t slot) const { return (slot - now_.first + slots()) % slots(); }
    IdSet erased() const { return now_.used == size() ? IdSet{} : IdSet{dead_}; }
    index_t document() const { return now_.document; }

    /// Means [size, head_dim] of a head: what is searched.
    Rows means(index_t head) const { return {at(now_.means, head).data(), size(), options_.head_dim}; }
    /// Keys and values [size * chunk, head_dim] of a head: token t of slot s is row s * chunk + t.
    MatrixView<const T> keys(index_t head) const { return tokens_of(now_.keys, head); }
    MatrixView<const T> values(index_t head) const { return tokens_of(now_.values, head); }

    /// One head as a store of its own, for retrievers.
    struct Head {
        using value_type = Chunk;
        const ChunkRing* ring;
        index_t head;
        index_t key_dim() const { return ring->head_dim(); }
        index_t size() const { return ring->size(); }
        value_type value(index_t slot) const { return ring->value(slot); }
        Rows keys() const { return ring->means(head); }
        IdSet erased() const { return ring->erased(); }
        PackedView packed() const { return ring->packed(head); }
    };
    Head head(index_t h) const { return {this, h}; }
    /// A head's means as a search's first pass reads them; empty while they are few.
    PackedView packed(index_t head) const { return packed_.empty() ? PackedView{} : at(packed_, head).view(); }

    /// Remembers keys and values [n, heads * head_dim] of consecutive tokens; padding is left out by the caller. All or
    /// nothing: a number that is not finite, or not as a T, is an error that names its row and column.
    void append(Rows keys, Rows values) {
        expect_equal("ChunkRing::append: width of the keys", keys.cols, width());
        expect_equal("ChunkRing::append: width of the values", values.cols, width());
        expect_equal("ChunkRing::append: rows of the values", values.rows, keys.rows);
        for (index_t i = 0; i < keys.rows; ++i) check(keys[i], "keys", i), check(values[i], "values", i);
        if (options_.reference) make_room_as_published(keys.rows);
        index_t i = 0;
        const index_t begin = now_.tokens - waiting(); // position of the chunk that is being filled
        const index_t chunks = (waiting() + keys.rows) / options_.chunk;
        index_t done = 0;
        while (i < keys.rows) {
            const index_t wait = waiting(), n = std::min(options_.chunk - wait, keys.rows - i);
            if (wait == 0 && n == options_.chunk) {
                push(keys.slice(i, n), values.slice(i, n), begin + done);
                done += n;
            } else if (!options_.reference) {
                hold(now_.next_keys, keys.slice(i, n)), hold(now_.next_values, values.slice(i, n));
                if (wait + n == options_.chunk) {
                    push({now_.next_keys.data(), options_.chunk, width()},
                         {now_.next_values.data(), options_.chunk, width()}, begin + done);
                    now_.next_keys.clear(), now_.next_values.clear();
                    done += options_.chunk;
                }
            }
            i += n;
        }
        now_.tokens += keys.rows;
        pack(chunks);
    }
    /// What follows belongs to `document`; if that is another one, everything is forgotten.
    void start_document(index_t document) {
        if (document == now_.document) return;
        clear();
        now_.document = document;
    }
    /// Forgets everything; keeps the memory.
    void clear() {
        for (std::size_t h = 0; h < now_.keys.size(); ++h)
            now_.keys[h].clear(), now_.values[h].clear(), now_.means[h].clear();
        now_.positions.clear(), now_.next_keys.clear(), now_.next_values.clear(), dead_.clear(), packed_.clear();
        now_.first = now_.used = 0;
    }
    /// Bytes that keys, values and means take now, packed means and all, and at most when the ring is full.
    index_t bytes() const {
        double packed = 0;
        for (const auto& keys : packed_) packed += static_cast<double>(keys.rows()) * keys.bytes_a_key();
        return bytes(size()) + static_cast<index_t>(packed);
    }
    index_t most_bytes() const {
        if (slots() < kLeastPacked || !Filter<InnerProduct>::has_integers()) return bytes(slots());
        const Packed widest(options_.head_dim, FilterFormat::bfloat16);
        const double packed = static_cast<double>(options_.heads * slots()) * widest.bytes_a_key();
        return bytes(slots()) + static_cast<index_t>(packed);
    }

  private:
    using Packed = PackedKeys<InnerProduct>;
    static constexpr index_t kLeastPacked = 512; // chunks; fewer are searched as they are

    index_t width() const { return options_.heads * options_.head_dim; }
    std::size_t elements(index_t chunks) const {
        return static_cast<std::size_t>(chunks * options_.chunk * options_.head_dim);
    }
    index_t bytes(index_t chunks) const {
        return options_.heads * chunks * options_.head_dim *
               (2 * options_.chunk * static_cast<index_t>(sizeof(T)) + static_cast<index_t>(sizeof(float)));
    }
    template <class V> static const V& at(const std::vector<V>& heads, index_t head) {
        return heads[static_cast<std::size_t>(head)];
    }
    MatrixView<const T> tokens_of(const std::vector<HugeVector<T>>& heads, index_t head) const {
        return {at(heads, head).data(), size() * options_.chunk, options_.head_dim};
    }
    static void check(std::span<const float> row, std::string_view what, index_t i) {
        const std::size_t bad = first_not_finite<T>(row);
        if (bad < row.size())
            fail("ChunkRing::append: ", what, ": expected finite numbers that ", name(key_type_of<T>), " holds, got ",
                 double{row[bad]}, " in row ", i, ", column ", bad);
    }
    static void hold(std::vector<float>& into, Rows rows) {
        for (index_t i = 0; i < rows.rows; ++i) into.insert(into.end(), rows[i].begin(), rows[i].end());
    }
    void mark(index_t slot, bool dead) {
        const auto word = static_cast<std::size_t>(slot) / 64;
        if (dead_.size() <= word) dead_.resize(word + 1);
        const std::uint64_t bit = std::uint64_t{1} << (slot % 64);
        dead_[word] = dead ? dead_[word] | bit : dead_[word] & ~bit;
    }
    void drop(index_t chunks) {
        for (index_t i = 0; i < chunks; ++i) mark(slot(i), true);
        now_.first = slot(chunks), now_.used -= chunks;
    }
    void make_room_as_published(index_t tokens) {
        if (now_.used + tokens / options_.chunk < slots()) return;
        const index_t chunks = 2 * tokens / options_.chunk;
        if (chunks > now_.used)
            fail("ChunkRing: expected appends of at most a third of the memory in the reference's way, got ", tokens,
                 " tokens for ", slots(), " chunks of ", options_.chunk);
        drop(chunks);
    }
    template <class V> void grow(V& v, std::size_t chunk) {
        if (v.size() + chunk > v.capacity()) // doubled, but never beyond what the ring may hold
            v.reserve(std::min(std::max(2 * v.size(), 16 * chunk), static_cast<std::size_t>(slots()) * chunk));
        v.resize(v.size() + chunk);
    }
    // Writes one chunk of keys and values [chunk, heads * head_dim] over the oldest, if there is no room.
    void push(Rows keys, Rows values, index_t position) {
        if (now_.used == slots()) drop(1);
        const index_t to = slot(now_.used), c = options_.chunk, d = options_.head_dim;
        const auto width = static_cast<std::size_t>(d);
        if (to == size()) {
            now_.positions.push_back(0);
            for (std::size_t h = 0; h < now_.keys.size(); ++h)
                grow(now_.keys[h], elements(1)), grow(now_.values[h], elements(1)), grow(now_.means[h], width);
        }
        for (index_t h = 0; h < options_.heads; ++h) {
            const auto head = static_cast<std::size_t>(h), column = head * width;
            const auto mean = std::span<float>(now_.means[head]).subspan(static_cast<std::size_t>(to) * width, width);
            std::fill(mean.begin(), mean.end(), 0.0f);
            for (index_t t = 0; t < c; ++t) {
                const auto k = keys[t].subspan(column, width), v = values[t].subspan(column, width);
                const std::size_t row = static_cast<std::size_t>(to * c + t) * width;
                convert(k, std::span<T>(now_.keys[head]).subspan(row, width));
                convert(v, std::span<T>(now_.values[head]).subspan(row, width));
                for (std::size_t j = 0; j < width; ++j) mean[j] += k[j];
            }
            for (float& x : mean) x /= static_cast<float>(c);
        }
        now_.positions[static_cast<std::size_t>(to)] = position;
        mark(to, false);
        ++now_.used;
    }

    // Follows the last `written` chunks. Everything is packed anew as the ring doubles and then once a turn: format and
    // centre suit what is held.
    void pack(index_t written) {
        if (size() < kLeastPacked || !Filter<InnerProduct>::has_integers()) return packed_.clear();
        since_packed_ += written;
        if (packed_.empty() || since_packed_ >= packed_.front().rows()) {
            packed_.clear(), since_packed_ = 0;
            for (index_t h = 0; h < options_.heads; ++h) {
                packed_.emplace_back(options_.head_dim, packed_format_for<InnerProduct>(means(h)));
                packed_.back().refresh(means(h), 0, size());
            }
            return;
        }
        if (written == 0) return;
        const index_t last = slot(now_.used - 1) + 1, first = last - written;
        for (index_t h = 0; h < options_.heads; ++h) {
            Packed& mine = packed_[static_cast<std::size_t>(h)];
            mine.refresh(means(h), std::max<index_t>(first, 0), last);
            if (first < 0) mine.refresh(means(h), first + slots(), size());
        }
    }

    ChunkRingOptions options_;
    Contents now_;
    std::vector<std::uint64_t> dead_; // slots whose chunk was forgotten
    std::vector<Packed> packed_;      // by head, or none
    index_t since_packed_ = 0;        // chunks that were written since all were packed
};

} // namespace mnemo
