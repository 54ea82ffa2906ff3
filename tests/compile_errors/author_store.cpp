// SPDX-License-Identifier: MIT
// expect: MemoryStore<Bad>
#include "common.hpp"
struct Bad {};
static_assert(MemoryStore<Bad>);
int main() {}
