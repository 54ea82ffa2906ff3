// SPDX-License-Identifier: MIT
// expect: this MemoryStore cannot be written: it has no `append(keys, values)` for these types
#include "common.hpp"
struct Bad {
    index_t key_dim() const { return 2; }
};
int main() { Use<States, Bad>().write(std::span<const std::int32_t>()); }
