// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/core/matrix_view.hpp>

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

namespace mnemo {

/// Ids [first, last).
struct IdRange {
    index_t first = 0, last = 0;
    index_t size() const { return std::max<index_t>(last - first, 0); }
    bool contains(index_t id) const { return first <= id && id < last; }
    /// What lies in both.
    IdRange within(IdRange other) const { return {std::max(first, other.first), std::min(last, other.last)}; }
    bool operator==(const IdRange&) const = default;
};

/// The entries one row sees: two ranges, `left` wholly below `right`; either may be empty.
struct VisibleRow {
    IdRange left, right;
    index_t size() const { return left.size() + right.size(); }
    bool contains(index_t id) const { return left.contains(id) || right.contains(id); }
};

/// Which entries of a memory each row of queries sees: the one predicate in place of masks. Entries are numbered
/// through everything a memory is made of (ranks, segments, positions); what is padding is no entry and no row, so that
/// no label has to mean it. A segment is given by its length.
class Visibility {
  public:
    Visibility() = default;
    /// Any predicate of two ranges a row. Throws Error where ranges overlap or go beyond `entries`.
    Visibility(std::vector<VisibleRow> rows, index_t entries) : rows_(std::move(rows)), entries_(entries) {
        for (std::size_t i = 0; i < rows_.size(); ++i) {
            auto& [left, right] = rows_[i];
            if (left.size() == 0) left = {right.size() > 0 ? right.first : 0, right.size() > 0 ? right.first : 0};
            if (right.size() == 0) right = {left.last, left.last};
            if (left.first < 0 || left.last > right.first || right.last > entries)
                fail("visibility: row ", i, ": expected two ranges in order within ", entries, " entries, got [",
                     left.first, ", ", left.last, ") and [", right.first, ", ", right.last, ")");
        }
    }

    /// Row i is entry first + i and sees [group, first + i): what went before it, in flattened order, from the
    /// beginning of its group of ranks on.
    static Visibility earlier(index_t rows, index_t entries, index_t first = 0, index_t group = 0) {
        std::vector<VisibleRow> seen(static_cast<std::size_t>(rows));
        for (index_t i = 0; i < rows; ++i) seen[static_cast<std::size_t>(i)].left = {group, first + i};
        return {std::move(seen), entries};
    }
    /// Rows are segments of the given lengths, one after another; each row sees what went before it in its own segment.
    static Visibility same_segment(std::span<const index_t> lengths, index_t entries, index_t first = 0) {
        return by_segment(lengths, entries, first, [](IdRange segment, index_t self) {
            return VisibleRow{{segment.first, self}, {self, self}};
        });
    }
    /// Each row sees all other segments, later ones and those of other ranks too, and with `own_past` what went before
    /// it in its own.
    static Visibility other_segments(std::span<const index_t> lengths, index_t entries, index_t first, bool own_past) {
        return by_segment(lengths, entries, first, [=](IdRange segment, index_t self) {
            return VisibleRow{{0, own_past ? self : segment.first}, {segment.last, entries}};
        });
    }

    index_t rows() const { return static_cast<index_t>(rows_.size()); }
    index_t entries() const { return entries_; }
    const VisibleRow& operator[](index_t row) const { return rows_[static_cast<std::size_t>(row)]; }
    /// Visible pairs of row and entry.
    index_t pairs() const {
        index_t sum = 0;
        for (const VisibleRow& row : rows_) sum += row.size();
        return sum;
    }
    /// The least two ranges that hold whatever rows [first, last) see.
    VisibleRow hull(index_t first, index_t last) const {
        std::vector<IdRange> ranges;
        for (index_t i = first; i < last; ++i)
            for (const IdRange range : {(*this)[i].left, (*this)[i].right})
                if (range.size() > 0) ranges.push_back(range);
        if (ranges.empty()) return {};
        std::sort(ranges.begin(), ranges.end(), [](IdRange a, IdRange b) { return a.first < b.first; });
        // Of the gaps between ranges only the widest is left out.
        IdRange gap{};
        index_t end = ranges.front().last;
        for (const IdRange range : ranges) {
            if (range.first - end > gap.size()) gap = {end, range.first};
            end = std::max(end, range.last);
        }
        if (gap.size() == 0) return {{ranges.front().first, end}, {end, end}};
        return {{ranges.front().first, gap.first}, {gap.last, end}};
    }

  private:
    static Visibility by_segment(std::span<const index_t> lengths, index_t entries, index_t first, auto&& row) {
        std::vector<VisibleRow> seen;
        index_t at = first;
        for (const index_t length : lengths) {
            if (length < 0) fail("visibility: expected lengths of at least 0, got ", length);
            for (index_t i = at; i < at + length; ++i) seen.push_back(row(IdRange{at, at + length}, i));
            at += length;
        }
        return {std::move(seen), entries};
    }

    std::vector<VisibleRow> rows_;
    index_t entries_ = 0;
};

} // namespace mnemo
