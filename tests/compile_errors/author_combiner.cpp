// SPDX-License-Identifier: MIT
// expect: Combiner<Bad>
#include "common.hpp"
struct Bad {};
static_assert(Combiner<Bad>);
int main() {}
