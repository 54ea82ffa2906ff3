// SPDX-License-Identifier: MIT
// expect: Combiner::combine(base, reading) must be const
#include "common.hpp"
struct Bad {
    void combine(MutRows, const auto&) {}
};
int main() { Use<States, Tokens, Nothing, Bad>().read(); }
