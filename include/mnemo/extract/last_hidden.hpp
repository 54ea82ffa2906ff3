// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>

namespace mnemo {

/// The host's hidden states are the queries and the keys, in whatever type the host keeps them: rows, tensors. Which
/// layer they were tapped from is the host's choice.
struct LastHidden {
    const auto& queries(const auto& states) const { return states; }
    const auto& keys(const auto& states) const { return states; }
};
static_assert(KeyExtractor<LastHidden> && KeyWriterFor<LastHidden, Rows>);

} // namespace mnemo
