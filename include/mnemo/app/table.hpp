// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mnemo {

/// A table of text: the first column is left-aligned, the others right-aligned, widths are counted in code points.
class Table {
  public:
    explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}

    /// Missing cells at the end stay empty; more cells than the header has are an Error.
    void add(std::vector<std::string> row) {
        if (row.size() > rows_[0].size()) fail("table: expected at most ", rows_[0].size(), " cells, got ", row.size());
        row.resize(rows_[0].size());
        rows_.push_back(std::move(row));
    }
    /// A rule before the next row.
    void add_rule() { rules_.push_back(rows_.size()); }

    std::string str() const {
        std::vector<std::size_t> width(rows_[0].size());
        for (const auto& row : rows_)
            for (std::size_t c = 0; c < row.size(); ++c) width[c] = std::max(width[c], columns(row[c]));
        std::size_t total = 2 * (width.size() - 1);
        for (const std::size_t w : width) total += w;
        const std::string rule = std::string(total, '-') + "\n";
        std::string out;
        for (std::size_t r = 0; r < rows_.size(); ++r) {
            if (r == 1 || std::find(rules_.begin(), rules_.end(), r) != rules_.end()) out += rule;
            std::string line;
            for (std::size_t c = 0; c < width.size(); ++c) {
                const std::string fill(width[c] - columns(rows_[r][c]), ' ');
                line += c == 0 ? rows_[r][c] + fill : "  " + fill + rows_[r][c];
            }
            line.erase(line.find_last_not_of(' ') + 1);
            out += line + "\n";
        }
        return out;
    }

  private:
    static std::size_t columns(std::string_view s) {
        return static_cast<std::size_t>(
            std::count_if(s.begin(), s.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0u) != 0x80u; }));
    }
    std::vector<std::vector<std::string>> rows_;
    std::vector<std::size_t> rules_;
};

} // namespace mnemo
