// SPDX-License-Identifier: MIT
#include "catch.hpp"

#include <mnemo/papers/trime.hpp>
#include <mnemo/retrieve/exact.hpp>

#include <random>

using namespace mnemo;

namespace {

constexpr index_t kDim = 6;
constexpr std::int32_t kWords = 9;

struct Text {
    Matrix keys, logits;
    std::vector<std::int32_t> tokens;
    Text(index_t n, unsigned seed) : keys(n, kDim), logits(n, kWords) {
        std::mt19937 random(seed);
        std::normal_distribution<float> normal;
        for (float& x : keys.data) x = normal(random);
        for (float& x : logits.data) x = normal(random);
        for (index_t i = 0; i < n; ++i) tokens.push_back(static_cast<std::int32_t>(random() % kWords));
    }
};
struct Scored {
    std::vector<float> log_all, log_target, log_p;
    JointLogProbs base(const Text& text) {
        for (index_t i = 0; i < text.logits.rows; ++i) {
            log_all.push_back(static_cast<float>(log_sum_exp(text.logits[i])));
            log_target.push_back(text.logits[i][static_cast<std::size_t>(text.tokens[static_cast<std::size_t>(i)])]);
        }
        log_p.resize(text.tokens.size());
        return {text.tokens, log_all, log_target, log_p};
    }
};
double similarity(const Text& a, index_t i, const Text& b, index_t j) {
    double sum = 0;
    for (std::size_t c = 0; c < kDim; ++c) sum += double{a.keys[i][c]} * double{b.keys[j][c]};
    return sum;
}

} // namespace

TEST_CASE("TrimeLM as policies: window, long-term memory and datastore in one softmax") {
    const Text window(7, 1), before(12, 2), store(20, 3);
    const double temperature = 1.3;
    const float scale = trime_scale(kDim, temperature);

    TrimeLm local(LastHidden{}, TokenStore<>(kDim), {}, {scale});
    local.write(Rows(window.keys), std::span<const std::int32_t>(window.tokens));
    Both memories(RingStore(kDim, 5), TokenStore<>(kDim)); // of the 12 tokens before, 5 stay
    memories.first().append(before.keys, before.tokens);
    memories.second().append(window.keys, window.tokens);
    TrimeLmLong longer(LastHidden{}, memories, {}, {scale});
    TokenStore<> datastore(kDim);
    datastore.append(store.keys, store.tokens);
    using Ext = TrimeLmExt<TokenStore<>, Exact<InnerProduct>>;
    const float lambda = 0.3f, own_temperature = 4;
    Ext ext(LastHidden{}, Both(memories, datastore), {{}, {4}}, {{scale}, lambda, own_temperature});

    Scored a, b, c;
    JointLogProbs base_a = a.base(window), base_b = b.base(window), base_c = c.base(window);
    local.read(Rows(window.keys), base_a);
    longer.read(Rows(window.keys), base_b);
    const double loss = ext.loss(Rows(window.keys), base_c);

    double sum = 0;
    for (index_t i = 0; i < 7; ++i) {
        const auto row = static_cast<std::size_t>(i);
        const std::int32_t target = window.tokens[row];
        double all = 0, same = std::exp(double{window.logits[i][static_cast<std::size_t>(target)]});
        for (const float z : window.logits[i]) all += std::exp(double{z});
        const auto add = [&](const Text& other, index_t j) {
            const double e = std::exp(double{scale} * similarity(window, i, other, j));
            all += e;
            if (other.tokens[static_cast<std::size_t>(j)] == target) same += e;
        };
        for (index_t j = 0; j < i; ++j) add(window, j);
        REQUIRE(double{a.log_p[row]} == Approx(std::log(same / all)).epsilon(1e-5));
        for (index_t j = 7; j < 12; ++j) add(before, j);
        REQUIRE(double{b.log_p[row]} == Approx(std::log(same / all)).epsilon(1e-5));

        std::vector<std::pair<double, index_t>> best;
        for (index_t j = 0; j < 20; ++j) best.emplace_back(-similarity(window, i, store, j), j);
        std::sort(best.begin(), best.end());
        double own_all = 0, own_same = 0;
        for (std::size_t j = 0; j < 4; ++j) {
            add(store, best[j].second);
            const double e = std::exp(-best[j].first / double{own_temperature});
            own_all += e;
            if (store.tokens[static_cast<std::size_t>(best[j].second)] == target) own_same += e;
        }
        const double mixed = (1 - double{lambda}) * same / all + double{lambda} * own_same / own_all;
        REQUIRE(double{c.log_p[row]} == Approx(std::log(mixed)).epsilon(1e-4));
        sum -= double{c.log_p[row]};
    }
    REQUIRE(loss == Approx(sum / 7).epsilon(1e-6));
}

TEST_CASE("queries of local memory are its newest entries") {
    TokenStore<> store(kDim);
    const Text text(3, 1);
    REQUIRE_THROWS_WITH(Earlier<InnerProduct>{}.retrieve(store, text.keys), Catch::Contains("at most 0 queries"));
    store.append(text.keys, text.tokens);
    const Matrix other(3, 5);
    REQUIRE_THROWS_WITH(Everything<L2>{}.retrieve(store, other), Catch::Contains("width of the queries"));
    store.erase(1);
    REQUIRE_THROWS_WITH(Everything<L2>{}.retrieve(store, text.keys), Catch::Contains("erased"));
}

TEST_CASE("published configurations fit together") {
    for (const TrimeConfig& c : trime_knobs::all) {
        INFO(c.name);
        REQUIRE(c.dim % c.heads == 0);
        REQUIRE(c.max_tokens % c.tokens_per_sample == 0);
        REQUIRE(c.ranks % c.group == 0);
        REQUIRE(c.windows.block_size + c.windows.context == c.tokens_per_sample);
        REQUIRE((c.k > 0) == (c.lambda > 0));
        REQUIRE(c.keep_order == (c.mem_size > 0 && !c.predefined_batches));
    }
}
