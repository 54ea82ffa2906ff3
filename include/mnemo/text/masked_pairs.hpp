// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/core/matrix_view.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <span>
#include <utility>
#include <vector>

namespace mnemo {

// Batches for masked language modelling: `[CLS] a [SEP] b [SEP]`, some tokens hidden, the rest no target.

/// What a batch is made with. The ids are those of the vocabulary in use.
struct MaskingOptions {
    std::int32_t cls = 101, sep = 102, mask = 103, pad = 0;
    std::int32_t vocab_size = 30522;
    std::int32_t ignore = -1;  // label of what is no target
    double probability = 0.15; // of a token to be chosen
    double masked = 0.8;       // of the chosen ones; half of the rest become any id, half stay
    index_t alignment = 8;     // widths are multiples of it
    index_t max_width = index_t{1} << 20;

    void check() const {
        if (vocab_size < 1 || alignment < 1 || max_width < 3)
            fail("MaskingOptions: expected a vocabulary, an alignment and a width, got ", vocab_size, ", ", alignment,
                 " and ", max_width);
        if (!(probability >= 0 && probability <= 1) || !(masked >= 0 && masked <= 1))
            fail("MaskingOptions: expected probabilities in [0, 1], got ", probability, " and ", masked);
        for (const std::int32_t id : {cls, sep, mask, pad})
            if (id < 0 || id >= vocab_size)
                fail("MaskingOptions: expected special ids in [0, ", vocab_size, "), got ", id);
    }
};

/// Two texts of a row; `b` may be empty and still has its [SEP].
struct TokenPair {
    std::span<const std::int32_t> a, b;
};

/// [rows, cols] each, row-major.
struct MaskedBatch {
    index_t rows = 0, cols = 0;
    std::vector<std::int32_t> tokens, segments, attention, labels;
    std::vector<std::uint8_t> special; // [CLS], [SEP] and padding: never chosen

    std::span<std::int32_t> row(std::vector<std::int32_t>& of, index_t i) const {
        return std::span(of).subspan(static_cast<std::size_t>(i * cols), static_cast<std::size_t>(cols));
    }
};

/// The rows, padded, without targets. Throws Error for ids outside the vocabulary and rows that are too wide.
inline MaskedBatch collate_pairs(std::span<const TokenPair> pairs, const MaskingOptions& options) {
    options.check();
    MaskedBatch batch;
    batch.rows = static_cast<index_t>(pairs.size());
    std::size_t widest = 0;
    for (const TokenPair& p : pairs) widest = std::max(widest, p.a.size() + p.b.size() + 3);
    if (widest > static_cast<std::size_t>(options.max_width))
        fail("collate_pairs: expected rows of at most ", options.max_width, " tokens, got ", widest);
    batch.cols = (static_cast<index_t>(widest) + options.alignment - 1) / options.alignment * options.alignment;
    const auto size = static_cast<std::size_t>(batch.rows * batch.cols);
    batch.tokens.assign(size, options.pad);
    batch.segments.assign(size, 0);
    batch.attention.assign(size, 0);
    batch.labels.assign(size, options.ignore);
    batch.special.assign(size, 1);
    for (std::size_t i = 0; i < pairs.size(); ++i) {
        std::size_t at = i * static_cast<std::size_t>(batch.cols);
        const auto put = [&](std::int32_t id, std::int32_t segment, bool special) {
            if (id < 0 || id >= options.vocab_size)
                fail("collate_pairs: row ", i, ": expected ids in [0, ", options.vocab_size, "), got ", id);
            batch.tokens[at] = id, batch.segments[at] = segment, batch.attention[at] = 1;
            batch.special[at++] = special ? 1 : 0;
        };
        put(options.cls, 0, true);
        for (const std::int32_t id : pairs[i].a) put(id, 0, false);
        put(options.sep, 0, true);
        for (const std::int32_t id : pairs[i].b) put(id, 1, false);
        put(options.sep, 1, true);
    }
    return batch;
}

/// Targets that were chosen beforehand: labels [i] belong at positions [i] of row `row`, whose tokens are masked
/// already.
inline void set_targets(MaskedBatch& batch, index_t row, std::span<const index_t> positions,
                        std::span<const std::int32_t> labels) {
    expect_equal("set_targets: labels", labels.size(), positions.size());
    if (row < 0 || row >= batch.rows) fail("set_targets: expected a row in [0, ", batch.rows, "), got ", row);
    for (std::size_t i = 0; i < positions.size(); ++i) {
        if (positions[i] < 0 || positions[i] >= batch.cols)
            fail("set_targets: row ", row, ": expected positions in [0, ", batch.cols, "), got ", positions[i]);
        batch.row(batch.labels, row)[static_cast<std::size_t>(positions[i])] = labels[i];
    }
}

/// Random numbers for masking, each kind for a whole batch at once: a host's generator fits in by the same two members.
struct MaskingDraws {
    std::mt19937_64 random;

    /// out[i] is 1 with probability p[i].
    void truths(std::span<const float> p, std::span<std::uint8_t> out) {
        for (std::size_t i = 0; i < p.size(); ++i)
            out[i] = static_cast<double>(random() >> 11) * 0x1p-53 < static_cast<double>(p[i]) ? 1 : 0;
    }
    /// Uniform in [0, end).
    void ids(std::int32_t end, std::span<std::int32_t> out) {
        for (std::int32_t& id : out) id = static_cast<std::int32_t>(below(static_cast<std::uint64_t>(end)));
    }
    /// Uniform in [0, end), the same on every platform.
    std::uint64_t below(std::uint64_t end) {
        const std::uint64_t unbiased = UINT64_MAX - UINT64_MAX % end;
        std::uint64_t x = random();
        while (x >= unbiased) x = random();
        return x % end;
    }
};

/// Chooses targets anew: each ordinary token with options.probability; what is chosen becomes [MASK], any id (special
/// ones included) or stays. Drawn in the order: chosen, masked, other, ids, the whole batch each.
template <class Draws> void mask_dynamically(MaskedBatch& batch, const MaskingOptions& options, Draws& draws) {
    options.check();
    const std::size_t n = batch.tokens.size();
    std::vector<float> p(n);
    std::vector<std::uint8_t> chosen(n), masked(n), other(n);
    std::vector<std::int32_t> ids(n);
    for (std::size_t i = 0; i < n; ++i) p[i] = batch.special[i] != 0 ? 0.0f : static_cast<float>(options.probability);
    draws.truths(p, chosen);
    std::fill(p.begin(), p.end(), static_cast<float>(options.masked));
    draws.truths(p, masked);
    std::fill(p.begin(), p.end(), 0.5f);
    draws.truths(p, other);
    draws.ids(options.vocab_size, ids);
    for (std::size_t i = 0; i < n; ++i) {
        batch.labels[i] = chosen[i] != 0 ? batch.tokens[i] : options.ignore;
        if (chosen[i] == 0) continue;
        if (masked[i] != 0)
            batch.tokens[i] = options.mask;
        else if (other[i] != 0)
            batch.tokens[i] = ids[i];
    }
}

/// Targets that are chosen once: max(1, round(probability * length)) different positions of each row, `length` counting
/// its special tokens; then the same three cases. Rows without ordinary tokens have none.
inline void mask_statically(MaskedBatch& batch, const MaskingOptions& options, MaskingDraws& draws) {
    options.check();
    for (index_t row = 0; row < batch.rows; ++row) {
        const auto first = static_cast<std::size_t>(row * batch.cols);
        std::vector<std::size_t> places;
        double length = 0;
        for (std::size_t i = first; i < first + static_cast<std::size_t>(batch.cols); ++i) {
            length += batch.attention[i];
            if (batch.special[i] == 0) places.push_back(i);
        }
        const auto wanted = static_cast<std::size_t>(std::max(1.0, std::nearbyint(options.probability * length)));
        const std::size_t count = std::min(wanted, places.size());
        for (std::size_t j = 0; j < count; ++j) {
            std::swap(places[j], places[j + draws.below(places.size() - j)]);
            const std::size_t i = places[j];
            batch.labels[i] = batch.tokens[i];
            const double u = static_cast<double>(draws.random() >> 11) * 0x1p-53;
            if (u < options.masked)
                batch.tokens[i] = options.mask;
            else if (u < options.masked + (1 - options.masked) / 2)
                batch.tokens[i] =
                    static_cast<std::int32_t>(draws.below(static_cast<std::uint64_t>(options.vocab_size)));
        }
    }
}

} // namespace mnemo
