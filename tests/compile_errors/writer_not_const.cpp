// SPDX-License-Identifier: MIT
// expect: KeyExtractor::keys(states) must be const
#include "common.hpp"
struct Bad {
    Rows queries(Rows s) const { return s; }
    Rows keys(Rows s) { return s; }
};
int main() { Use<Bad>().write(std::span<const std::int32_t>()); }
