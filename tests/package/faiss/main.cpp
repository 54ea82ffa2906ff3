// SPDX-License-Identifier: MIT
// A stranger's program: a FAISS index as the retriever of a memory.
#include <mnemo/faiss/index.hpp>
#include <mnemo/mnemo.hpp>

#include <cstdio>

int main() {
    mnemo::TokenStore<> store(2);
    const float keys[] = {0, 0, 1, 1, 5, 5};
    const std::int32_t next[] = {3, 5, 7};
    store.append(mnemo::Rows(keys, 3, 2), next);
    const auto index = mnemo::FaissIndex::build(store, {.factory = "Flat"});
    const auto hits = index.retrieve(store, mnemo::Rows(keys + 2, 1, 2));
    std::printf("nearest: %d, token %d\n", static_cast<int>(hits.ids(0)[0]), store.value(hits.ids(0)[0]));
    return hits.ids(0)[0] == 1 ? 0 : 1;
}
