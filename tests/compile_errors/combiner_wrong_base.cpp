// SPDX-License-Identifier: MIT
// expect: Combiner has no `combine(base, reading) const` for this base, recall and store
#include "common.hpp"
struct HiddenRows {
    MutRows hidden;
};
int main() {
    Use<> use;
    use.memory.read(Rows(use.q, 1, 2), HiddenRows{});
}
