// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/core/matrix_view.hpp>

#include <algorithm>
#include <span>
#include <vector>

namespace mnemo {

/// Consecutive segments for models that remember: a stream of tokens, cut into blocks, is dealt out in contiguous
/// passages, one for each row of each worker, so that row r of successive batches reads one text in order. A worker
/// stops with its shortest passage. (LongMem trains like this; its reference leaves out the last block.)
class Passages {
  public:
    struct Options {
        index_t block = 1024; // tokens of a segment
        index_t rows = 1, workers = 1;
        std::int32_t before = 2;      // stands before the first token of all
        bool drop_last_block = false; // the reference's way
    };
    /// One batch: inputs are the targets moved by one.
    struct Batch {
        index_t rows = 0, width = 0;
        std::vector<std::int32_t> inputs, targets; // [rows, width]
        std::vector<index_t> blocks;               // [rows]: which block of the stream
    };

    /// `tokens` are borrowed.
    Passages(std::span<const std::int32_t> tokens, Options options) : tokens_(tokens), options_(options) {
        if (options.block < 1 || options.rows < 1 || options.workers < 1)
            fail("Passages: expected a block, rows and workers of at least 1, got ", options.block, ", ", options.rows,
                 " and ", options.workers);
        const auto n = static_cast<index_t>(tokens.size());
        // A short last block cannot stand beside whole ones.
        blocks_ = options.drop_last_block ? std::max<index_t>((n + options.block - 1) / options.block - 1, 0)
                                          : n / options.block;
        const index_t passages = options.rows * options.workers;
        length_ = (blocks_ + passages - 1) / passages;
    }

    /// Batches of a worker.
    index_t batches(index_t worker) const {
        check_worker(worker);
        const index_t last = (worker + 1) * options_.rows - 1; // passages get no longer
        return std::clamp<index_t>(blocks_ - last * length_, 0, length_);
    }
    /// Batch `i` of a worker, in the buffers of `batch`.
    void read(index_t worker, index_t i, Batch& batch) const {
        if (i < 0 || i >= batches(worker))
            fail("Passages: expected a batch below ", batches(worker), " of worker ", worker, ", got ", i);
        batch.rows = options_.rows, batch.width = options_.block;
        batch.inputs.clear(), batch.targets.clear(), batch.blocks.clear();
        for (index_t row = 0; row < options_.rows; ++row) {
            const index_t block = (worker * options_.rows + row) * length_ + i, first = block * options_.block;
            const auto text =
                tokens_.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(options_.block));
            batch.blocks.push_back(block);
            batch.targets.insert(batch.targets.end(), text.begin(), text.end());
            batch.inputs.push_back(first == 0 ? options_.before : tokens_[static_cast<std::size_t>(first - 1)]);
            batch.inputs.insert(batch.inputs.end(), text.begin(), text.end() - 1);
        }
    }
    const Options& options() const { return options_; }
    std::span<const std::int32_t> tokens() const { return tokens_; }

  private:
    void check_worker(index_t worker) const {
        if (worker < 0 || worker >= options_.workers)
            fail("Passages: expected a worker below ", options_.workers, ", got ", worker);
    }
    std::span<const std::int32_t> tokens_;
    Options options_;
    index_t blocks_ = 0, length_ = 0; // in all; of a passage
};

} // namespace mnemo
