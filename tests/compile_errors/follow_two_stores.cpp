// SPDX-License-Identifier: MIT
// expect: Retriever has no `retrieve(store, queries) const` for this store and these queries
#include <mnemo/papers/combinations.hpp>
#include <mnemo/retrieve/exact.hpp>
using namespace mnemo;
// Pointers lead through one text; two stores that are read as one are two.
int main() {
    using Two = Both<TokenStore<>, TokenStore<>>;
    using Retriever = Follow<RetrieveBoth<Exact<L2>, Exact<L2>>, L2>;
    const Memory<LastHidden, Two, Retriever, Interpolate<TokenVotes>> memory(
        LastHidden{}, Two(TokenStore<>(2), TokenStore<>(2)), Retriever{}, {});
    float p[3] = {};
    memory.read(TrailQueries{}, MutRows(p, 1, 3));
}
