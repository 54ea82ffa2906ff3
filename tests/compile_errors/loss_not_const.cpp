// SPDX-License-Identifier: MIT
// expect: Loss::loss(base, reading, combiner) must be const
#include "common.hpp"
struct Bad {
    float loss(MutRows, const auto&, const auto&) { return 0; }
};
int main() { Use<States, Tokens, Nothing, Unchanged, Bad>().loss(); }
