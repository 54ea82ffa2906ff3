// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/arena.hpp>
#include <mnemo/core/matrix_view.hpp>

#include <concepts>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

namespace mnemo {

// What a Retriever returns and a Combiner consumes. Scores are similarities: larger is nearer. Whoever computes a
// distance negates it, once.

/// Something was recalled for each of `rows()` queries.
template <class R>
concept Recall = requires(const R& r) {
    { r.rows() } -> std::convertible_to<index_t>;
};

/// Ids of a block: anything indexable. (No std::views in headers: clang 14 does not compile libstdc++ 12's.)
template <class I>
concept Ids = requires(const I& ids, std::size_t j) {
    { ids[j] } -> std::convertible_to<index_t>;
};

namespace archetype {
struct Block {
    void operator()(const Ids auto&, std::span<const float>) const;
};
struct Tile {
    void operator()(index_t first_row, index_t first_id, MatrixView<const float> scores) const;
};
} // namespace archetype

/// Recalled entries: `visit(row, f)` calls f(ids, scores) once for each block of the row. A top-k list is one block;
/// dense scores are one block whose ids are implied; memories that are read together are several.
template <class R>
concept AssociativeRecall = Recall<R> && requires(const R& r, index_t row) { r.visit(row, archetype::Block{}); };

/// Recalled entries whose scores are computed while they are visited, a tile of rows x entries at a time: f(first_row,
/// first_id, scores), invisible scores are -inf. What in-batch memory needs, so that no [rows, entries] matrix exists.
template <class R> concept TiledRecall = Recall<R> && requires(const R& r) { r.visit_tiles(archetype::Tile{}); };

/// Recalled vectors: a parametric memory answers each query with one vector.
template <class R>
concept ParametricRecall = Recall<R> && requires(const R& r, index_t row) {
    { r.vector(row) } -> std::convertible_to<std::span<const float>>;
};

/// Ids `first, first + 1, ...` of a dense block.
struct IotaIds {
    index_t first;
    index_t operator[](std::size_t j) const { return first + static_cast<index_t>(j); }
};
/// Ids of a block, moved by `by`: the second of two stores that are read as one.
template <Ids I> struct ShiftedIds {
    const I& ids;
    index_t by;
    index_t operator[](std::size_t j) const { return by + static_cast<index_t>(ids[j]); }
};
template <Ids I> ShiftedIds(const I&, index_t) -> ShiftedIds<I>; // clang before 17 deduces no aggregates

/// The recall most retrievers return: for each query any number of (id, score), best first unless said otherwise.
/// Its buffers, scratch included, are reused when it is handed back to a retriever.
class Hits {
  public:
    // One after another: push ..., end_row(), push ..., end_row().
    void clear() { ids_.clear(), scores_.clear(), rows_.clear(); } // keeps the capacity
    void push(index_t id, float score) { ids_.push_back(id), scores_.push_back(score); }
    void end_row() {
        const std::size_t first = rows_.empty() ? 0 : rows_.back().first + rows_.back().width;
        rows_.push_back({first, ids_.size() - first, ids_.size() - first});
    }

    // Or in any order, by several threads: room for `width` hits a row, of which `set_size` are kept.
    void resize(index_t rows, index_t width) {
        const auto n = static_cast<std::size_t>(rows), w = static_cast<std::size_t>(width);
        ids_.resize(n * w), scores_.resize(n * w), rows_.resize(n);
        for (std::size_t i = 0; i < n; ++i) rows_[i] = {i * w, 0, w};
    }
    std::span<index_t> room_for_ids(index_t row) { return {ids_.data() + at(row).first, at(row).width}; }
    std::span<float> room_for_scores(index_t row) { return {scores_.data() + at(row).first, at(row).width}; }
    void set_size(index_t row, index_t n) { rows_[static_cast<std::size_t>(row)].size = static_cast<std::size_t>(n); }

    index_t rows() const { return static_cast<index_t>(rows_.size()); }
    std::span<const index_t> ids(index_t row) const { return {ids_.data() + at(row).first, at(row).size}; }
    std::span<const float> scores(index_t row) const { return {scores_.data() + at(row).first, at(row).size}; }
    std::span<float> scores(index_t row) { return {scores_.data() + at(row).first, at(row).size}; }
    void visit(index_t row, auto&& f) const { f(ids(row), scores(row)); }

    /// The retriever's scratch, kept from call to call.
    Arena& scratch() { return scratch_; }

    Hits() = default;
    Hits(Hits&&) = default;
    Hits& operator=(Hits&&) = default;
    Hits(const Hits& other) : ids_(other.ids_), scores_(other.scores_), rows_(other.rows_) {} // scratch stays behind
    Hits& operator=(const Hits& other) { return *this = Hits(other); }
    ~Hits() = default;

  private:
    struct Row {
        std::size_t first, size, width;
    };
    const Row& at(index_t row) const { return rows_[static_cast<std::size_t>(row)]; }
    std::vector<index_t> ids_;
    std::vector<float> scores_;
    std::vector<Row> rows_;
    Arena scratch_;
};

/// Scores against a contiguous range of entries for each query: ids are implied, nothing is stored for them.
struct DenseHits {
    Matrix scores;                                    // [rows, entries]
    std::vector<std::pair<index_t, index_t>> visible; // [first, last) for each row
    index_t rows() const { return static_cast<index_t>(visible.size()); }
    void visit(index_t row, auto&& f) const {
        const auto [first, last] = visible[static_cast<std::size_t>(row)];
        f(IotaIds{first}, scores[row].subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(last - first)));
    }
};

/// Two recalls read as one; the second one's ids follow those of the first store.
template <AssociativeRecall A, AssociativeRecall B> struct JoinedHits {
    A first;
    B second;
    index_t offset = 0; // size of the first store
    index_t rows() const { return first.rows(); }
    void visit(index_t row, auto&& f) const {
        first.visit(row, f);
        second.visit(row, [&](const Ids auto& ids, std::span<const float> s) { f(ShiftedIds{ids, offset}, s); });
    }
};
template <class A, class B> JoinedHits(A, B, index_t) -> JoinedHits<A, B>;

/// One vector for each query.
struct Vectors {
    Matrix values; // [rows, width]
    index_t rows() const { return values.rows; }
    std::span<const float> vector(index_t row) const { return values[row]; }
};

/// f(id, score) for each entry recalled for `row`.
void for_each_hit(const AssociativeRecall auto& recall, index_t row, auto&& f) {
    recall.visit(row, [&](const Ids auto& ids, std::span<const float> scores) {
        for (std::size_t j = 0; j < scores.size(); ++j) f(static_cast<index_t>(ids[j]), scores[j]);
    });
}

} // namespace mnemo
