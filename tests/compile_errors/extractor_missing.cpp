// SPDX-License-Identifier: MIT
// expect: KeyExtractor has no `queries(states) const` for this type of states
#include "common.hpp"
struct Bad {
    Rows keys(Rows s) const { return s; }
};
int main() { Use<Bad>().read(); }
