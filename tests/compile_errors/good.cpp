// SPDX-License-Identifier: MIT
// expect: nothing
#include "common.hpp"
struct Zero {
    float loss(MutRows, const auto&, const auto&) const { return 0; }
};
int main() {
    Use<States, Tokens, Nothing, Unchanged, Zero> use;
    use.read(), use.loss(), use.write(std::span<const std::int32_t>());
    Session<const decltype(use.memory), Rows> session(use.memory);
    session.read(Rows(use.q, 1, 2), use.base);
}
