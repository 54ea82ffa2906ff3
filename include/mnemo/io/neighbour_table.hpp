// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/matrix_view.hpp>
#include <mnemo/io/file.hpp>

#include <cstring>
#include <span>
#include <string>

namespace mnemo {

/// Neighbours of every token of a text, found once and read often: a file of int64 [tokens, k] without a header, -1:
/// none (GNN-LM's neighbors.mmap.<k>). The file is mapped.
class NeighbourTable {
  public:
    /// Throws Error, with the file's name, if its size is no multiple of k numbers.
    static NeighbourTable open(const std::string& path, index_t k) {
        NeighbourTable table(MappedFile::open(path), k);
        if (k < 1) fail(path, ": expected at least one neighbour a token, got ", k);
        const auto row = static_cast<std::size_t>(k) * sizeof(std::int64_t);
        if (table.map_.bytes().size() % row != 0)
            fail(path, ": expected int64 [tokens, ", k, "], got ", table.map_.bytes().size(), " bytes");
        table.tokens_ = static_cast<index_t>(table.map_.bytes().size() / row);
        return table;
    }
    index_t tokens() const { return tokens_; }
    index_t k() const { return k_; }
    MatrixView<const index_t> rows() const {
        return {reinterpret_cast<const index_t*>(map_.bytes().data()), tokens_, k_};
    }

  private:
    NeighbourTable(MappedFile map, index_t k) : map_(std::move(map)), k_(k) {}
    MappedFile map_;
    index_t tokens_ = 0, k_;
};

/// Writes one; a text may be appended to while it is searched.
class NeighbourTableWriter {
  public:
    NeighbourTableWriter(const std::string& path, index_t k) : file_(path), k_(k) {}
    void append(MatrixView<const index_t> rows) {
        expect_equal("NeighbourTableWriter: neighbours a token", rows.cols, k_);
        for (index_t i = 0; i < rows.rows; ++i) file_.write(std::as_bytes(rows[i]));
    }
    /// Nothing appears under the name before.
    void commit() { file_.commit(); }

  private:
    AtomicFile file_;
    index_t k_;
};

} // namespace mnemo
