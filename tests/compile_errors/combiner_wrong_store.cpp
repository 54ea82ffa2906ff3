// SPDX-License-Identifier: MIT
// expect: a token combiner needs a store of tokens
#include "common.hpp"
struct VectorStore {
    using value_type = std::span<const float>;
    index_t key_dim() const { return 2; }
    index_t size() const { return 0; }
    std::span<const float> value(index_t) const { return {}; }
};
int main() { Use<States, VectorStore>().read(); } // vectors cannot vote for tokens
