// SPDX-License-Identifier: MIT
// A stranger's program: a memory of one's own policies, nothing but the core.
#include <mnemo/mnemo.hpp>

#include <cstdio>

struct Recent {
    mnemo::Hits retrieve(const mnemo::AssociativeStore auto& store, mnemo::Rows queries) const {
        mnemo::Hits hits;
        for (mnemo::index_t i = 0; i < queries.rows; ++i) {
            if (store.size() > 0) hits.push(store.size() - 1, 0.0f);
            hits.end_row();
        }
        return hits;
    }
};
static_assert(mnemo::Retriever<Recent>);

int main() {
    std::printf("mnemo %s\n", MNEMO_VERSION_STRING);
    return 0;
}
