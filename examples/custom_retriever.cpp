// SPDX-License-Identifier: MIT
// A retriever of one's own: the newest entries, whatever the query. With it a memory becomes a cache of what was just
// said.
#include <mnemo/mnemo.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

struct NewestFirst {
    int k = 8;
    mnemo::Hits retrieve(const mnemo::AssociativeStore auto& store, mnemo::Rows queries) const {
        mnemo::Hits hits;
        for (mnemo::index_t i = 0; i < queries.rows; ++i) {
            for (mnemo::index_t age = 0; age < k && age < store.size(); ++age)
                hits.push(store.size() - 1 - age, -0.5f * static_cast<float>(age));
            hits.end_row();
        }
        return hits;
    }
};
static_assert(mnemo::Retriever<NewestFirst>);

int main() {
    mnemo::Memory memory(mnemo::LastHidden{}, mnemo::TokenStore<>(2), NewestFirst{.k = 3},
                         mnemo::Interpolate{mnemo::TokenVotes{}, mnemo::Fixed{0.5f}});

    // A text of five tokens; the keys play no role for this retriever.
    const std::vector<float> states(5 * 2);              // [5, 2]
    const std::vector<std::int32_t> next{7, 7, 1, 2, 1}; // [5]
    memory.write(mnemo::Rows(states.data(), 5, 2), std::span<const std::int32_t>(next));

    std::vector<float> log_p(10, std::log(0.1f)); // [1, vocab]: a host that knows nothing
    mnemo::MutRows rows(log_p.data(), 1, 10);
    memory.read(mnemo::Rows(states.data(), 1, 2), rows);

    for (const int token : {1, 2, 7})
        std::printf("p(%d) = %.3f\n", token, std::exp(static_cast<double>(log_p[static_cast<std::size_t>(token)])));
    // Token 1 was said last and before the last but one, 2 between, 7 too long ago.
    return log_p[1] > log_p[2] && log_p[2] > log_p[7] ? 0 : 1;
}
