// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/core/matrix_view.hpp>

#include <algorithm>
#include <numeric>
#include <span>
#include <string_view>
#include <vector>

namespace mnemo {

/// Where a token stream is cut (fairseq's --sample-break-mode): `none` every block_size tokens; `complete` whole
/// sentences, as many as fit; `complete_doc` the same within documents, which sentences of one token separate; `eos`
/// one sentence each. A sentence that is longer than a block is a block of its own.
enum class BreakMode { none, complete, complete_doc, eos };

constexpr std::string_view name(BreakMode mode) {
    constexpr std::string_view names[] = {"none", "complete", "complete_doc", "eos"};
    return names[static_cast<int>(mode)];
}

/// A corpus: sentences one after another, each with its end-of-sentence token. Without sentence sizes it is one
/// sentence. Borrowed.
struct TokenStream {
    std::span<const std::int32_t> tokens;
    std::span<const index_t> sentences; // sizes, their sum is tokens.size()
};

/// Tokens [first, first + size) of a stream.
struct Block {
    index_t first = 0, size = 0;
    bool starts_sentence = false; // then its first input is the end-of-sentence token
};

/// The blocks of a stream, in its order. Every token is in one block; complete_doc leaves out the separators and
/// documents of one token.
inline std::vector<Block> cut_blocks(const TokenStream& stream, index_t block_size, BreakMode mode) {
    const auto total = static_cast<index_t>(stream.tokens.size());
    const std::span<const index_t> sentences = stream.sentences.empty() ? std::span(&total, 1) : stream.sentences;
    if (block_size < 1) fail("cut_blocks: block_size: expected at least 1, got ", block_size);
    index_t sum = 0;
    for (const index_t size : sentences) {
        if (size < 0 || size > total - sum) fail("cut_blocks: sentences: expected sizes that sum to ", total);
        sum += size;
    }
    expect_equal("cut_blocks: sum of the sentence sizes", sum, total);

    std::vector<Block> blocks;
    if (mode == BreakMode::none) {
        std::size_t sentence = 0;
        for (index_t first = 0, start = 0; first < total; first += block_size) {
            while (start < first) start += sentences[sentence++];
            blocks.push_back({first, std::min(block_size, total - first), start == first});
        }
        return blocks;
    }
    Block open{0, 0, true};
    const auto close = [&](index_t least) {
        if (open.size >= least) blocks.push_back(open);
        open = {open.first + open.size, 0, true};
    };
    for (const index_t size : sentences) {
        const bool separator = mode == BreakMode::complete_doc && size == 1;
        if (open.size > 0 && (separator || mode == BreakMode::eos || open.size + size > block_size))
            close(mode == BreakMode::complete_doc ? 2 : 1);
        (separator ? open.first : open.size) += size;
    }
    close(mode == BreakMode::complete_doc ? 2 : 1);
    return blocks;
}

/// How blocks become batches.
struct BatchLimits {
    index_t max_tokens = 0; // of targets, padding counted, context not; 0: no limit (--max-tokens)
    index_t max_rows = 0;   // 0: no limit (--max-sentences)
    index_t multiple = 8;   // of rows, once there are that many (--required-batch-size-multiple)
};

/// Consecutive blocks as [first, last), in order. A block beyond max_tokens is a batch of its own.
inline std::vector<std::pair<index_t, index_t>> cut_batches(std::span<const Block> blocks, BatchLimits limits) {
    if (limits.multiple < 1) fail("cut_batches: multiple: expected at least 1, got ", limits.multiple);
    std::vector<std::pair<index_t, index_t>> batches;
    const auto longest = [&](index_t first, index_t last) {
        index_t size = 0;
        for (index_t i = first; i < last; ++i) size = std::max(size, blocks[static_cast<std::size_t>(i)].size);
        return size;
    };
    const auto count = static_cast<index_t>(blocks.size());
    index_t first = 0, width = 0;
    for (index_t i = 0; i < count; ++i) {
        width = std::max(width, blocks[static_cast<std::size_t>(i)].size);
        const auto full = [&] { // without block i
            const index_t rows = i - first;
            return rows > 0 && ((limits.max_rows > 0 && rows >= limits.max_rows) ||
                                (limits.max_tokens > 0 && (rows + 1) * width > limits.max_tokens));
        };
        while (full()) {
            const index_t rows = i - first,
                          taken = std::max(rows / limits.multiple * limits.multiple, rows % limits.multiple);
            batches.emplace_back(first, first + taken);
            first += taken;
            width = longest(first, i + 1);
        }
    }
    if (first < count) batches.emplace_back(first, count);
    return batches;
}

/// Rows of tokens for a host: [rows, width], row-major. Row i is context, then its block, then padding: targets are
/// scored in columns [start[i], length[i]), elsewhere they are pad.
struct WindowBatch {
    index_t rows = 0, width = 0;
    std::vector<std::int32_t> inputs, targets; // [rows, width]
    std::vector<index_t> start, length;        // [rows]

    std::span<const std::int32_t> input(index_t row) const { return row_of(inputs, row); }
    std::span<const std::int32_t> target(index_t row) const { return row_of(targets, row); }
    /// The tokens that are scored, row after row: the order of everything that is computed from a batch.
    index_t scored() const {
        return std::transform_reduce(length.begin(), length.end(), start.begin(), index_t{0}, std::plus<>(),
                                     std::minus<>());
    }
    std::span<const std::int32_t> scored_targets(index_t row) const {
        const auto i = static_cast<std::size_t>(row);
        return target(row).subspan(static_cast<std::size_t>(start[i]), static_cast<std::size_t>(length[i] - start[i]));
    }

  private:
    std::span<const std::int32_t> row_of(const std::vector<std::int32_t>& all, index_t row) const {
        return std::span(all).subspan(static_cast<std::size_t>(row * width), static_cast<std::size_t>(width));
    }
};

/// How a text is shown to a host; the reference's names of the flags behind each.
struct WindowOptions {
    index_t block_size = 512;         // --tokens-per-sample minus --context-window
    index_t context = 0;              // --context-window: tokens of the stream before a block that the host may see
    BreakMode mode = BreakMode::none; // --sample-break-mode
    BatchLimits batch{};
    std::int32_t pad = 1, eos = 2;
};

/// A token stream as batches of context windows, in order: one pass, `next` again and again. The context is what went
/// before in the stream, across rows and batches; context and block together keep within block_size + context unless
/// the block alone is longer. The stream must outlive it.
class ContextWindows {
  public:
    ContextWindows(TokenStream stream, WindowOptions options)
        : stream_(stream), options_(options), blocks_(cut_blocks(stream, options.block_size, options.mode)),
          batches_(cut_batches(blocks_, options.batch)) {
        if (options.context < 0) fail("ContextWindows: context: expected at least 0, got ", options.context);
    }

    const WindowOptions& options() const { return options_; }
    std::span<const Block> blocks() const { return blocks_; }
    index_t batches() const { return static_cast<index_t>(batches_.size()); }
    /// Targets of all batches together.
    index_t tokens() const {
        return std::accumulate(blocks_.begin(), blocks_.end(), index_t{0},
                               [](index_t sum, const Block& b) { return sum + b.size; });
    }

    /// The next batch into `batch`, whose buffers are reused; false at the end.
    bool next(WindowBatch& batch) {
        if (at_ == batches_.size()) return false;
        const auto [first, last] = batches_[at_++];
        batch.rows = last - first;
        batch.width = options_.context;
        for (index_t i = first; i < last; ++i)
            batch.width = std::max(batch.width, options_.context + blocks_[static_cast<std::size_t>(i)].size);
        const auto cells = static_cast<std::size_t>(batch.rows * batch.width);
        batch.inputs.assign(cells, options_.pad), batch.targets.assign(cells, options_.pad);
        batch.start.clear(), batch.length.clear();
        for (index_t i = first; i < last; ++i)
            add_row(batch, blocks_[static_cast<std::size_t>(i)], (i - first) * batch.width);
        return true;
    }
    /// Starts at the beginning again, without context.
    void rewind() { at_ = 0, context_.clear(); }

  private:
    void add_row(WindowBatch& batch, const Block& block, index_t at) {
        const auto size = static_cast<std::size_t>(block.size), first = static_cast<std::size_t>(block.first);
        const auto room = std::max<index_t>(0, options_.block_size + options_.context - block.size);
        if (static_cast<index_t>(context_.size()) > room) forget(static_cast<std::size_t>(room));
        const std::size_t start = context_.size();
        const auto targets = stream_.tokens.subspan(first, size);
        context_.reserve(start + size);
        for (std::size_t j = 0; j < size; ++j)
            context_.push_back(j > 0                   ? targets[j - 1]
                               : block.starts_sentence ? options_.eos
                                                       : stream_.tokens[first - 1]);
        std::copy(context_.begin(), context_.end(), batch.inputs.begin() + at);
        std::copy(targets.begin(), targets.end(), batch.targets.begin() + at + static_cast<index_t>(start));
        batch.start.push_back(static_cast<index_t>(start));
        batch.length.push_back(static_cast<index_t>(start + size));
        forget(static_cast<std::size_t>(options_.context));
    }
    /// Keeps the newest `count` tokens.
    void forget(std::size_t count) {
        if (context_.size() > count) context_.erase(context_.begin(), context_.end() - static_cast<index_t>(count));
    }

    TokenStream stream_;
    WindowOptions options_;
    std::vector<Block> blocks_;
    std::vector<std::pair<index_t, index_t>> batches_; // of blocks
    std::size_t at_ = 0;
    std::vector<std::int32_t> context_; // inputs before the next row
};

} // namespace mnemo
