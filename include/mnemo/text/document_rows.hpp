// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/text/blocks.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

namespace mnemo {

/// Documents of up to `length` tokens, 0 behind the last of each.
struct DocumentRows {
    index_t length = 0;
    std::vector<std::uint16_t> tokens; // [rows, length]

    index_t rows() const { return length == 0 ? 0 : static_cast<index_t>(tokens.size()) / length; }
    MatrixView<const std::uint16_t> view() const { return {tokens.data(), rows(), length}; }
};

/// Pieces of `least` to `most` tokens, cut between sentences where both bounds allow it.
struct DocumentCut {
    index_t least = 10, most = 30;
    std::int32_t first = -1, last = -1; // ids that every document begins and ends with (-1: none); they count as well
};

/// Cuts a stream into documents in its order, none of its tokens left out; the last document may be shorter. Throws
/// Error for ids that a row cannot hold: they are 1 to 65535, because 0 is padding.
inline DocumentRows cut_documents(const TokenStream& stream, const DocumentCut& cut) {
    const index_t extra = (cut.first >= 0 ? 1 : 0) + (cut.last >= 0 ? 1 : 0), most = cut.most - extra;
    if (cut.least < 0 || most < 1 || cut.least > cut.most)
        fail("cut_documents: expected 0 <= least <= most and room for a token, got ", cut.least, " and ", cut.most);
    const auto total = static_cast<index_t>(stream.tokens.size());
    const std::span<const index_t> sentences = stream.sentences.empty() ? std::span(&total, 1) : stream.sentences;
    DocumentRows out;
    out.length = cut.most;
    const auto id = [](std::int32_t token) {
        if (token < 1 || token > 65535) fail("cut_documents: expected ids in [1, 65535], got ", token);
        return static_cast<std::uint16_t>(token);
    };
    const auto emit = [&](index_t begin, index_t end) {
        if (begin == end) return;
        const std::size_t row = out.tokens.size();
        out.tokens.resize(row + static_cast<std::size_t>(out.length));
        std::size_t at = row;
        if (cut.first >= 0) out.tokens[at++] = id(cut.first);
        for (index_t i = begin; i < end; ++i) out.tokens[at++] = id(stream.tokens[static_cast<std::size_t>(i)]);
        if (cut.last >= 0) out.tokens[at] = id(cut.last);
    };
    index_t begin = 0, end = 0; // of the open document
    for (const index_t size : sentences) {
        if (size < 0 || size > total - end) fail("cut_documents: sentences: expected sizes that sum to ", total);
        const index_t sentence_end = end + size;
        if (sentence_end - begin > most && end - begin + extra >= cut.least) {
            emit(begin, end);
            begin = end;
        }
        while (sentence_end - begin > most) {
            emit(begin, begin + most);
            begin += most;
        }
        end = sentence_end;
    }
    expect_equal("cut_documents: sum of the sentence sizes", end, total);
    emit(begin, end);
    return out;
}

} // namespace mnemo
