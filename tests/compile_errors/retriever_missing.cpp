// SPDX-License-Identifier: MIT
// expect: Retriever has no `retrieve(store, queries) const` for this store and these queries
#include "common.hpp"
struct Bad {
    Hits find(const Tokens&, Rows) const { return {}; }
};
int main() { Use<States, Tokens, Bad>().read(); }
