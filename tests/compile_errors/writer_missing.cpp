// SPDX-License-Identifier: MIT
// expect: KeyExtractor has no `keys(states) const`: this memory is read-only
#include "common.hpp"
struct Bad {
    Rows queries(Rows s) const { return s; }
};
int main() { Use<Bad>().write(std::span<const std::int32_t>()); }
