// SPDX-License-Identifier: MIT
#pragma once

// Policies that fit, so that each file below holds one mistake and nothing else.
#include <mnemo/core.hpp>

using namespace mnemo;

struct States {
    const Rows& queries(const Rows& states) const { return states; }
    const Rows& keys(const Rows& states) const { return states; }
};
struct Tokens {
    using value_type = std::int32_t;
    index_t key_dim() const { return 2; }
    index_t size() const { return 0; }
    std::int32_t value(index_t) const { return 0; }
    void append(Rows, std::span<const std::int32_t>) {}
};
struct Nothing {
    Hits retrieve(const AssociativeStore auto&, Rows) const { return {}; }
};
struct Unchanged {
    template <class Q, AssociativeRecall R, TokenValued S> void combine(MutRows, const Reading<Q, R, S>&) const {}
};

template <class E = States, class S = Tokens, class R = Nothing, class C = Unchanged, class L = HostLoss> struct Use {
    Memory<E, S, R, C, L> memory{{}, {}, {}, {}, {}};
    float q[2] = {}, p[3] = {};
    MutRows base{p, 1, 3};
    void read() { memory.read(Rows(q, 1, 2), base); }
    void loss() { memory.loss(Rows(q, 1, 2), base); }
    void write(const auto& values) { memory.write(Rows(q, 1, 2), values); }
};
