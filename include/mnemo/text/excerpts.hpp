// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/text/blocks.hpp>

namespace mnemo {

/// `count` windows spread evenly over a text, one a row: `context` tokens that the host sees, then `block` tokens that
/// are scored. A sample of a long text that costs little; fewer windows if the text has no room for them apart from
/// each other. Throws Error for a text without room for one.
inline WindowBatch excerpts(std::span<const std::int32_t> tokens, index_t count, index_t block, index_t context) {
    const index_t width = context + block, total = static_cast<index_t>(tokens.size()) - 1;
    if (block < 1 || context < 0 || count < 1)
        fail("excerpts: expected at least one window of at least one token, got ", count, " of ", block);
    if (total < width) fail("excerpts: expected a text of more than ", width, " tokens, got ", tokens.size());
    WindowBatch out;
    out.rows = std::min(count, std::max<index_t>(1, total / width)), out.width = width;
    for (index_t i = 0; i < out.rows; ++i) {
        const index_t first = out.rows == 1 ? 0 : (total - width) * i / (out.rows - 1);
        const auto inputs = tokens.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(width));
        const auto targets = tokens.subspan(static_cast<std::size_t>(first + 1), static_cast<std::size_t>(width));
        out.inputs.insert(out.inputs.end(), inputs.begin(), inputs.end());
        out.targets.insert(out.targets.end(), targets.begin(), targets.end());
        out.start.push_back(context), out.length.push_back(width);
    }
    return out;
}

} // namespace mnemo
