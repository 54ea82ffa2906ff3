// SPDX-License-Identifier: MIT
// expect: Combiner has no `combine(base, reading) const` for this base, recall and store
#include "common.hpp"
struct Bad {
    void mix(MutRows, const auto&) const {}
};
int main() { Use<States, Tokens, Nothing, Bad>().read(); }
