// SPDX-License-Identifier: MIT
// expect: Retriever has no `retrieve(store, queries) const` for this store and these queries
#include <mnemo/papers/combinations.hpp>
#include <mnemo/retrieve/exact.hpp>
using namespace mnemo;
// Rows do not say which of them are worth a search.
int main() {
    const SelectiveKnnLm<TokenStore<>, Exact<L2>> memory(LastHidden{}, TokenStore<>(2), {{4}}, {}, {});
    float p[3] = {};
    memory.read(Rows(p, 1, 2), MutRows(p, 1, 3));
}
