// SPDX-License-Identifier: MIT
// A loss of one's own: the mean over the hardest targets only. It receives the combiner and decides when to call it.
#include <mnemo/mnemo.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

struct HardestTargets {
    std::size_t count = 2;
    template <class ReadingT, class C>
        requires mnemo::CombinerFor<C, mnemo::TargetLogProbs, ReadingT>
    double loss(mnemo::TargetLogProbs& base, const ReadingT& reading, const C& combiner) const {
        combiner.combine(base, reading);
        std::vector<float> log_p(base.log_p.begin(), base.log_p.end()); // [rows]
        std::sort(log_p.begin(), log_p.end());
        double sum = 0;
        for (std::size_t i = 0; i < count; ++i) sum -= static_cast<double>(log_p[i]);
        return sum / static_cast<double>(count);
    }
};
using Votes = mnemo::Interpolate<mnemo::TokenVotes>;
static_assert(mnemo::LossFor<HardestTargets, mnemo::TargetLogProbs,
                             mnemo::Reading<mnemo::Rows, mnemo::Hits, mnemo::TokenStore<>>, Votes>);

int main() {
    mnemo::Memory memory(mnemo::LastHidden{}, mnemo::TokenStore<>(1), mnemo::Exact<mnemo::L2>{.k = 1},
                         Votes{{}, {0.5f}}, HardestTargets{});
    const std::vector<float> states{0, 1, 2, 3};         // [4, 1]
    const std::vector<std::int32_t> targets{5, 6, 7, 8}; // [4]
    std::vector<float> log_p{-0.1f, -4, -5, -0.2f};      // [4], the host's
    mnemo::TargetLogProbs base{targets, log_p};
    const mnemo::Rows rows(states.data(), 4, 1);

    const double before = (4.0 + 5.0) / 2;
    memory.write(rows, std::span<const std::int32_t>(targets)); // the memory has seen exactly this text
    const double after = memory.loss(rows, base);
    std::printf("mean loss of the two hardest targets: %.3f without memory, %.3f with it\n", before, after);
    return after < before ? 0 : 1;
}
