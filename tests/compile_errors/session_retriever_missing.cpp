// SPDX-License-Identifier: MIT
// expect: Retriever has no `retrieve(store, queries) const` for this store and these queries
#include "common.hpp"
struct Bad {};
int main() {
    Use<States, Tokens, Bad> use;
    Session<const decltype(use.memory), Rows> session(use.memory);
    session.read(Rows(use.q, 1, 2), use.base);
}
