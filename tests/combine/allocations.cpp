// SPDX-License-Identifier: MIT
#include "toy_store.hpp"

#include <catch.hpp>
#include <count_allocations.hpp>
#include <mnemo/combine/interpolate.hpp>
#include <mnemo/core/session.hpp>
#include <mnemo/extract/last_hidden.hpp>
#include <mnemo/loss/nll.hpp>

using namespace mnemo;

namespace {
/// The last k entries, into the buffers of the step before.
struct NewestFirst {
    index_t k = 64;
    Hits retrieve(const AssociativeStore auto& store, Rows queries, Hits spare = {}) const {
        spare.clear();
        for (index_t i = 0; i < queries.rows; ++i) {
            for (index_t age = 0; age < k && age < store.size(); ++age)
                spare.push(store.size() - 1 - age, -0.5f * static_cast<float>(age));
            spare.end_row();
        }
        return spare;
    }
};
} // namespace

TEST_CASE("a session's steps allocate nothing after the first") {
    ToyTokens store;
    for (std::int32_t i = 0; i < 100; ++i) store.tokens.push_back(i % 30);
    const Memory memory(LastHidden{}, store, NewestFirst{}, Interpolate<TokenVotes>{}, Nll{});
    Session<const decltype(memory), Rows> session(memory);
    const Matrix states(5, 1);
    Matrix log_probs(5, 40);
    std::vector<std::int32_t> targets(5, 7);
    std::vector<float> log_p(5);
    const auto step = [&] {
        std::fill(log_probs.data.begin(), log_probs.data.end(), -std::log(40.0f));
        std::fill(log_p.begin(), log_p.end(), -std::log(40.0f));
        session.read(states, MutRows(log_probs));
        session.read(states, Logits{log_probs});
        session.read(states, TargetLogProbs{targets, log_p});
        return session.loss(states, TargetLogProbs{targets, log_p});
    };
    step(), step();
    const long before = allocations_so_far();
    for (int i = 0; i < 100; ++i) step();
    CHECK(allocations_so_far() == before);
    CHECK(std::isfinite(step()));
}
