// SPDX-License-Identifier: MIT
// expect: Retriever::retrieve(store, queries) must be const
#include "common.hpp"
struct Bad {
    Hits retrieve(const Tokens&, Rows) { return {}; }
};
int main() { Use<States, Tokens, Bad>().read(); }
