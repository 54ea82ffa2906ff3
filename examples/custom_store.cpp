// SPDX-License-Identifier: MIT
// A store of one's own: arrays that the program already has are the memory, and nothing is copied.
#include <mnemo/mnemo.hpp>

#include <cmath>
#include <cstdio>
#include <span>
#include <vector>

struct Borrowed {
    using value_type = std::uint16_t;
    mnemo::Rows rows;                      // [n, d]
    std::span<const std::uint16_t> tokens; // [n]

    mnemo::index_t key_dim() const { return rows.cols; }
    mnemo::index_t size() const { return rows.rows; }
    std::uint16_t value(mnemo::index_t id) const { return tokens[static_cast<std::size_t>(id)]; }
    mnemo::Rows keys() const { return rows; }
};
static_assert(mnemo::KeyedStore<Borrowed> && mnemo::TokenValued<Borrowed>);

int main() {
    const std::vector<float> keys{0, 0, 1, 0, 0, 1, 1, 1}; // [4, 2]
    const std::vector<std::uint16_t> tokens{40000, 40001, 40002, 40003};
    const mnemo::Memory memory(mnemo::LastHidden{}, Borrowed{{keys.data(), 4, 2}, tokens},
                               mnemo::Exact<mnemo::L2>{.k = 2}, mnemo::Interpolate{mnemo::TokenVotes{}});

    const std::vector<float> state{0.9f, 0.2f}; // [1, 2]
    const auto hits = memory.recall(mnemo::Rows(state.data(), 1, 2));
    for (std::size_t j = 0; j < hits.ids(0).size(); ++j)
        std::printf("entry %d, score %.2f, token %u\n", static_cast<int>(hits.ids(0)[j]),
                    static_cast<double>(hits.scores(0)[j]), unsigned{memory.store().value(hits.ids(0)[j])});

    std::vector<float> log_p(50000, std::log(1.0f / 50000)); // [1, vocab]
    mnemo::MutRows rows(log_p.data(), 1, 50000);
    memory.read(mnemo::Rows(state.data(), 1, 2), rows);
    std::printf("p(40001) = %.3f\n", std::exp(static_cast<double>(log_p[40001])));
    return hits.ids(0)[0] == 1 && log_p[40001] > log_p[40000] ? 0 : 1;
}
