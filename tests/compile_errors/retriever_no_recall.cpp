// SPDX-License-Identifier: MIT
// expect: Retriever::retrieve must return a Recall
#include "common.hpp"
struct Bad {
    std::vector<index_t> retrieve(const Tokens&, Rows) const { return {}; }
};
int main() { Use<States, Tokens, Bad>().read(); }
