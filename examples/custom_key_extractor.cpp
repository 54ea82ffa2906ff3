// SPDX-License-Identifier: MIT
// A key extractor of one's own: states become vectors of length one, so that only their direction is remembered.
#include <mnemo/mnemo.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

struct Direction {
    mnemo::Matrix queries(mnemo::Rows states) const {
        mnemo::Matrix out(states.rows, states.cols); // [n, d]
        for (mnemo::index_t i = 0; i < states.rows; ++i) {
            float square = 0;
            for (const float x : states[i]) square += x * x;
            for (std::size_t j = 0; j < out[i].size(); ++j) out[i][j] = states[i][j] / std::sqrt(square + 1e-12f);
        }
        return out;
    }
    mnemo::Matrix keys(mnemo::Rows states) const { return queries(states); } // without it the memory is read-only
};
static_assert(mnemo::KeyExtractor<Direction> && mnemo::KeyWriterFor<Direction, mnemo::Rows>);

int main() {
    mnemo::Memory memory(Direction{}, mnemo::TokenStore<>(2), mnemo::Exact<mnemo::L2>{.k = 1},
                         mnemo::Interpolate{mnemo::TokenVotes{}});
    const std::vector<float> states{100, 0, 0, 1}; // [2, 2]
    const std::vector<std::int32_t> next{5, 6};    // [2]
    memory.write(mnemo::Rows(states.data(), 2, 2), std::span<const std::int32_t>(next));

    // Near the second state, but it points where the first one does.
    const std::vector<float> state{0.5f, 0.1f}; // [1, 2]
    const auto hits = memory.recall(mnemo::Rows(state.data(), 1, 2));
    const std::int32_t token = memory.store().value(hits.ids(0)[0]);
    std::printf("nearest by direction: token %d, score %.3f\n", token, static_cast<double>(hits.scores(0)[0]));
    return token == 5 ? 0 : 1;
}
