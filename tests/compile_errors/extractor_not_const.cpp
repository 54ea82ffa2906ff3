// SPDX-License-Identifier: MIT
// expect: KeyExtractor::queries(states) must be const
#include "common.hpp"
struct Bad {
    Rows queries(Rows s) { return s; }
};
int main() { Use<Bad>().read(); }
