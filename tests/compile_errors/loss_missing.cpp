// SPDX-License-Identifier: MIT
// expect: Loss has no `loss(base, reading, combiner) const` for this base and recall
#include "common.hpp"
struct Bad {};
int main() { Use<States, Tokens, Nothing, Unchanged, Bad>().loss(); }
