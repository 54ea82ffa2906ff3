// SPDX-License-Identifier: MIT
// expect: Retriever has no `retrieve(store, queries) const` for this store and these queries
#include "common.hpp"
struct LooksAtKeys {
    Hits retrieve(const KeyedStore auto&, Rows) const { return {}; }
};
int main() { Use<States, Tokens, LooksAtKeys>().read(); } // Tokens shows no keys
