// SPDX-License-Identifier: MIT
// A combiner of one's own: every recalled token becomes more likely by the same factor, however near it was.
#include <mnemo/mnemo.hpp>

#include <cmath>
#include <cstdio>
#include <set>
#include <vector>

struct Boost {
    float bonus = 1; // nats
    template <class Q, mnemo::AssociativeRecall R, mnemo::TokenValued S>
    void combine(mnemo::MutRows& log_p, const mnemo::Reading<Q, R, S>& reading) const {
        for (mnemo::index_t i = 0; i < log_p.rows; ++i) {
            std::set<std::size_t> tokens;
            mnemo::for_each_hit(reading.recall, i, [&](mnemo::index_t id, float) {
                tokens.insert(static_cast<std::size_t>(reading.store.value(id)));
            });
            for (const std::size_t token : tokens) log_p[i][token] += bonus;
            mnemo::log_softmax(log_p[i]);
        }
    }
};
static_assert(mnemo::Combiner<Boost>);

int main() {
    mnemo::Memory memory(mnemo::LastHidden{}, mnemo::TokenStore<>(1), mnemo::Exact<mnemo::L2>{.k = 2},
                         Boost{.bonus = 2});
    const std::vector<float> states{0, 1, 2};      // [3, 1]
    const std::vector<std::int32_t> next{3, 4, 5}; // [3]
    memory.write(mnemo::Rows(states.data(), 3, 1), std::span<const std::int32_t>(next));

    std::vector<float> log_p(8, std::log(1.0f / 8)); // [1, vocab]
    mnemo::MutRows rows(log_p.data(), 1, 8);
    memory.read(mnemo::Rows(states.data(), 1, 1), rows); // recalls 3 and 4

    double sum = 0;
    for (const float x : log_p) sum += std::exp(static_cast<double>(x));
    std::printf("p(3) = %.3f, p(4) = %.3f, p(5) = %.3f, sum %.6f\n", std::exp(static_cast<double>(log_p[3])),
                std::exp(static_cast<double>(log_p[4])), std::exp(static_cast<double>(log_p[5])), sum);
    return log_p[3] == log_p[4] && log_p[4] > log_p[5] && std::abs(sum - 1) < 1e-5 ? 0 : 1;
}
