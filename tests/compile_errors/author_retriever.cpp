// SPDX-License-Identifier: MIT
// expect: Retriever<Bad>
#include "common.hpp"
struct Bad {
    Hits find(const Tokens&, Rows) const { return {}; }
};
static_assert(Retriever<Bad>);
int main() {}
