// SPDX-License-Identifier: MIT
// expect: MemoryStore has no `key_dim() const`
#include "common.hpp"
struct Bad {
    using value_type = std::int32_t;
    index_t size() const { return 0; }
    std::int32_t value(index_t) const { return 0; }
};
int main() { Use<States, Bad> use; }
