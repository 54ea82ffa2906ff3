// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/memory.hpp>

#include <cmath>
#include <cstdint>
#include <map>
#include <random>
#include <vector>

/// Tokens under ids; their keys do not matter here.
struct ToyTokens {
    using value_type = std::int32_t;
    std::vector<std::int32_t> tokens;
    mnemo::index_t key_dim() const { return 1; }
    mnemo::index_t size() const { return static_cast<mnemo::index_t>(tokens.size()); }
    std::int32_t value(mnemo::index_t id) const { return tokens[static_cast<std::size_t>(id)]; }
};

/// What a combiner is handed, made up: `rows` rows with up to `most` hits each.
struct ToyRecall {
    ToyTokens store;
    mnemo::Hits hits;
    mnemo::Arena scratch;
    mnemo::Rows queries;

    auto reading() { return mnemo::Reading{queries, hits, store, scratch}; }

    static ToyRecall random(mnemo::index_t rows, std::int32_t vocab, std::size_t most, float spread, unsigned seed) {
        ToyRecall toy;
        std::mt19937 random(seed);
        std::uniform_int_distribution<std::int32_t> token(0, vocab - 1);
        std::uniform_real_distribution<float> score(-spread, 0);
        for (int i = 0; i < 200; ++i) toy.store.tokens.push_back(token(random) / 2 * 2 % vocab); // half are absent
        for (mnemo::index_t row = 0; row < rows; ++row) {
            const std::size_t n = row == 0 ? most : random() % (most + 1);
            for (std::size_t j = 0; j < n; ++j)
                toy.hits.push(static_cast<mnemo::index_t>(random() % 200), -200 + score(random));
            toy.hits.end_row();
        }
        return toy;
    }

    /// The formula in double: token -> probability; empty if the row has no opinion.
    std::map<std::int32_t, double> expected(mnemo::index_t row, double temperature) const {
        std::map<std::int32_t, double> p;
        double all = 0, high = -HUGE_VAL;
        mnemo::for_each_hit(hits, row, [&](mnemo::index_t, float s) { high = std::max(high, double{s}); });
        if (high == -HUGE_VAL) return p;
        mnemo::for_each_hit(hits, row, [&](mnemo::index_t id, float s) {
            const double w = std::exp((double{s} - high) / temperature);
            p[store.value(id)] += w;
            all += w;
        });
        for (auto& [token, w] : p) w /= all;
        return p;
    }
};
