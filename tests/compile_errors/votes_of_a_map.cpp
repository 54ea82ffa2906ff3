// SPDX-License-Identifier: MIT
// expect: Combiner has no `combine(base, reading) const` for this base, recall and store
#include <mnemo/papers/combinations.hpp>
using namespace mnemo;
// A map recites vectors; votes are for entries.
int main() {
    const Memory<LastHidden, LowRankMap, Recite, Interpolate<TokenVotes>> memory(
        LastHidden{}, LowRankMap(Matrix(1, 2), Matrix(2, 1), 1), {}, {});
    float p[3] = {};
    memory.read(Rows(p, 1, 2), MutRows(p, 1, 3));
}
