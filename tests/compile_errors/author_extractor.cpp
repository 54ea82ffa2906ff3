// SPDX-License-Identifier: MIT
// expect: KeyExtractor<Bad>
#include "common.hpp"
struct Bad {};
static_assert(KeyExtractor<Bad>);
int main() {}
