// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/half.hpp>
#include <mnemo/core/matrix_view.hpp>

#include <memory>

namespace mnemo {

/// Entries that lie in somebody else's memory (a mapped file), and what keeps that memory alive.
struct KnowledgeRows {
    MatrixView<const half> keys;               // [n, key_dim]
    MatrixView<const half> values;             // [n, value_dim]
    MatrixView<const std::uint16_t> documents; // [n, length] token ids, 0 behind the last; no columns: not kept
    std::shared_ptr<const void> owner;
};

} // namespace mnemo
