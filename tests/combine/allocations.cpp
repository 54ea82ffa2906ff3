// SPDX-License-Identifier: MIT
#include "toy_store.hpp"

#include <allocations.hpp>
#include <catch.hpp>
#include <mnemo/combine/interpolate.hpp>
#include <mnemo/core/session.hpp>
#include <mnemo/extract/last_hidden.hpp>
#include <mnemo/loss/nll.hpp>

#include <atomic>
#include <cstdlib>
#include <new>

using namespace mnemo;

// The whole test program counts its allocations, except under sanitizers, which bring their own operator new.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MNEMO_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MNEMO_SANITIZED 1
#endif
#endif
namespace {
std::atomic<long> allocations{0};
}
long allocations_so_far() { return allocations; }
#ifndef MNEMO_SANITIZED
void* operator new(std::size_t n) {
    ++allocations;
    if (void* p = std::malloc(n ? n : 1)) return p;
    throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
#endif

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
    const long before = allocations;
    for (int i = 0; i < 100; ++i) step();
    CHECK(allocations == before);
    CHECK(std::isfinite(step()));
}
