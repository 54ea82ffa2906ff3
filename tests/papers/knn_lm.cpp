// SPDX-License-Identifier: MIT
#include "toy_host.hpp"

#include <catch.hpp>
#include <mnemo/combine/unigram.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/retrieve/nothing.hpp>
#include <mnemo/store/tokens.hpp>
#include <mnemo/store/views.hpp>

#include <algorithm>
#include <random>

using namespace mnemo;

namespace {

std::vector<std::int32_t> random_text(std::size_t n, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<std::int32_t> text(n);
    for (auto& token : text) token = 3 + static_cast<std::int32_t>(random() % 27);
    return text;
}
/// 162 tokens of which no two neighbours occur twice: every state of the toy host is known by its key.
std::vector<std::int32_t> text_of_distinct_pairs() {
    std::vector<std::int32_t> text;
    std::int32_t at = 0;
    for (const std::int32_t stride : {1, 2, 4, 5, 7, 8})
        for (int i = 0; i < 27; ++i) text.push_back(3 + (at = (at + stride) % 27));
    return text;
}
ContextWindows windows_of(const std::vector<std::int32_t>& text, index_t block = 16, index_t context = 8) {
    return ContextWindows({text, {}}, {.block_size = block, .context = context, .batch = {.max_tokens = 3 * block}});
}
using Store = std::shared_ptr<TokenStore<>>;
Store filled(const std::vector<std::int32_t>& text, index_t min_context = 0) {
    ToyHost host;
    auto windows = windows_of(text);
    auto store = std::make_shared<TokenStore<>>(ToyHost::kWidth);
    build_datastore(host, windows, *store, min_context);
    return store;
}

} // namespace

TEST_CASE("a datastore holds every token once, in order, and knows how many there are") {
    const auto text = random_text(301, 1); // the last block is short
    ToyHost host;
    auto windows = windows_of(text);
    TokenStore<> store(ToyHost::kWidth);
    std::vector<index_t> progress;
    const auto built = build_datastore(host, windows, store, 0, [&](index_t done, index_t all) {
        progress.push_back(done);
        CHECK(all == 301);
    });
    CHECK(built.written == 301);
    CHECK(built.skipped == 0);
    CHECK(progress.back() == 301);
    CHECK(std::is_sorted(progress.begin(), progress.end()));
    std::vector<float> state(ToyHost::kWidth);
    for (index_t id = 0; id < 301; ++id) {
        const auto i = static_cast<std::size_t>(id);
        REQUIRE(store.value(id) == text[i]);
        // With context every state but the first two is that of the running text.
        ToyHost::state(i > 1 ? text[i - 2] : i == 1 ? 2 : -1, i > 0 ? text[i - 1] : 2, state);
        REQUIRE(std::equal(state.begin(), state.end(), store.keys()[id].begin()));
    }
}

TEST_CASE("blocks without enough context are left out, as the reference does by default") {
    const auto text = random_text(301, 2);
    ToyHost host;
    auto windows = windows_of(text);
    TokenStore<> store(ToyHost::kWidth);
    const auto built = build_datastore(host, windows, store);
    CHECK(built.written == 301 - 16);
    CHECK(built.skipped == 16);
    for (index_t id = 0; id < store.size(); ++id) REQUIRE(store.value(id) == text[static_cast<std::size_t>(id + 16)]);

    auto unreachable = windows_of(text);
    host.batches_seen = 0;
    CHECK(build_datastore(host, unreachable, store, 9).written == 0);
    CHECK(host.batches_seen == 0);
}

TEST_CASE("evaluating is the two scores by hand") {
    const auto train = random_text(400, 3), held_out = random_text(75, 4);
    const KnnLm<Store, Exact<L2>> memory({}, filled(train), {5, {}}, {{2.0f}, {0.3f}});
    ToyHost host;
    auto windows = windows_of(held_out);
    index_t last = 0;
    const KnnLmScores scores = evaluate(memory, host, windows, [&](index_t done, index_t all) {
        last = done;
        CHECK(all == 75);
    });
    CHECK(last == 75);

    Perplexity expected_host, expected;
    windows.rewind();
    WindowBatch batch;
    while (windows.next(batch)) {
        const ScoredTokens scored = host.score(batch);
        std::vector<std::int32_t> targets;
        for (index_t row = 0; row < batch.rows; ++row)
            for (const std::int32_t t : batch.scored_targets(row)) targets.push_back(t);
        for (index_t i = 0; i < scored.keys.rows; ++i) {
            const auto row = static_cast<std::size_t>(i);
            const Hits hits = memory.recall(scored.keys.slice(i, 1));
            double all = 0, same = 0;
            for_each_hit(hits, 0, [&](index_t id, float score) {
                const double w = std::exp(double{score} / 2);
                all += w;
                if (memory.store().value(id) == targets[row]) same += w;
            });
            expected_host.add(scored.log_p[row]);
            expected.add(static_cast<float>(
                std::log(double{0.3f} * same / all + (1 - double{0.3f}) * std::exp(double{scored.log_p[row]}))));
        }
    }
    CHECK(scores.host.perplexity() == expected_host.perplexity());
    CHECK(scores.combined.count() == 75);
    CHECK(scores.combined.perplexity() == Approx(expected.perplexity()).epsilon(1e-6));
}

TEST_CASE("a weight of 0 is the host exactly; the text itself in the memory is recited") {
    const auto text = text_of_distinct_pairs();
    KnnLm<Store, Exact<L2>> memory({}, filled(text), {1, {}}, {{}, {0.0f}});
    ToyHost host;
    auto windows = windows_of(text);
    auto scores = evaluate(memory, host, windows);
    CHECK(scores.combined.log_p() == scores.host.log_p());
    memory.combiner().lambda.lambda = 0.9f;
    windows.rewind();
    scores = evaluate(memory, host, windows);
    CHECK(scores.combined.perplexity() < 1 / 0.9);
    CHECK(scores.host.perplexity() > 10);
}

TEST_CASE("a sweep is as many evaluations from one search") {
    const auto train = random_text(400, 6), held_out = random_text(100, 7);
    KnnLm<Store, Exact<L2>> memory({}, filled(train), {16, {}}, {});
    const KnnLmGrid grid{{1, 4, 16}, {0.5f, 3}, {0, 0.25f, 0.9f}};
    ToyHost host;
    auto windows = windows_of(held_out);
    const KnnLmSweep swept = sweep(memory, host, windows, grid);
    for (std::size_t k = 0; k < 3; ++k)
        for (std::size_t t = 0; t < 2; ++t)
            for (std::size_t l = 0; l < 3; ++l) {
                memory.retriever().k = grid.k[k];
                memory.combiner() = {{grid.temperature[t]}, {grid.lambda[l]}};
                windows.rewind();
                CHECK(swept.at(k, t, l) == Approx(evaluate(memory, host, windows).combined.perplexity()).epsilon(1e-9));
            }
}

TEST_CASE("controls: shuffled values and the memory's unigram") {
    const auto train = random_text(2000, 8);
    const Store store = filled(train);
    ToyHost host;
    auto windows = windows_of(train);
    const KnnLm<Store, Exact<L2>> memory({}, store, {8, {}}, {{}, {0.5f}});
    const double remembered = evaluate(memory, host, windows).combined.perplexity();

    const auto values = shuffled_values(*store);
    CHECK(std::is_permutation(values.begin(), values.end(), store->values().begin()));
    CHECK(values != shuffled_values(*store, 2));
    CHECK(values == shuffled_values(*store, 1));
    const KnnLm<WithValues<TokenStore<>>, Exact<L2>> shuffled({}, {*store, values}, {8, {}}, {{}, {0.5f}});
    windows.rewind();
    const double confused = evaluate(shuffled, host, windows).combined.perplexity();

    const Memory unigram(LastHidden{}, store, Nothing{}, Interpolate<Unigram>{Unigram::of(*store, host.vocab), {0.5f}});
    windows.rewind();
    const double frequent = evaluate(unigram, host, windows).combined.perplexity();
    CHECK(remembered < 0.5 * frequent);
    CHECK(confused > frequent);
}

TEST_CASE("the unigram of a memory counts what was not erased") {
    TokenStore<> store(1);
    const Matrix keys(4, 1);
    const std::vector<std::int32_t> values{2, 0, 2, 1};
    store.append(keys, values);
    store.erase(3);
    const Unigram unigram = Unigram::of(store, 4);
    CHECK(unigram.log_p[0] == Approx(std::log(1.0 / 3)));
    CHECK(unigram.log_p[1] == kLogZero);
    CHECK(unigram.log_p[2] == Approx(std::log(2.0 / 3)));
    CHECK(unigram.log_p[3] == kLogZero);
    CHECK_THROWS_WITH(Unigram::of(store, 2), "mnemo: Unigram: value of entry 0: expected a token below 2, got 2");
}

TEST_CASE("greedy generation with the memory alone recites the text") {
    const auto text = text_of_distinct_pairs();
    const KnnLm<Store, Exact<L2>> memory({}, filled(text), {1, {}}, {{}, {1.0f}});
    ToyHost host;
    std::vector<std::int32_t> seen;
    const auto out = generate(memory, host, std::vector{text[0], text[1]}, {.tokens = 30},
                              [&](std::int32_t token) { seen.push_back(token); });
    CHECK(out == std::vector<std::int32_t>(text.begin() + 2, text.begin() + 32));
    CHECK(seen == out);
    const auto stopped = generate(memory, host, std::vector{text[0], text[1]}, {.tokens = 30, .stop = text[6]});
    CHECK(stopped == std::vector<std::int32_t>(text.begin() + 2, text.begin() + 6));
    CHECK_THROWS_AS(generate(memory, host, {}), Error);
}

TEST_CASE("sampling follows the distribution, and its seed") {
    const auto text = random_text(400, 9);
    const KnnLm<Store, Exact<L2>> memory({}, filled(text), {8, {}}, {});
    ToyHost host;
    const std::vector<std::int32_t> prompt{5};
    const auto sample = [&](std::uint64_t seed) {
        return generate(memory, host, prompt, {.tokens = 40, .temperature = 1, .seed = seed});
    };
    CHECK(sample(1) == sample(1));
    CHECK(sample(1) != sample(2));

    ChooseToken choose(0.5f, 3); // p^2
    const std::vector<float> logits{5 + std::log(0.1f), 5 + std::log(0.3f), kLogZero, 5 + std::log(0.6f)};
    std::vector<int> count(4);
    for (int i = 0; i < 46000; ++i) ++count[static_cast<std::size_t>(choose(logits))];
    CHECK(count[2] == 0);
    CHECK(count[0] == Approx(1000).epsilon(0.1));
    CHECK(count[1] == Approx(9000).epsilon(0.05));
    CHECK(count[3] == Approx(36000).epsilon(0.02));
    CHECK(ChooseToken()(logits) == 3);
    CHECK(ChooseToken()(std::vector<float>{1, 2, 2}) == 1);
    CHECK_THROWS_AS(ChooseToken()(std::vector<float>{kLogZero, kLogZero}), Error);
    CHECK_THROWS_AS(ChooseToken(-1), Error);
}

TEST_CASE("the last of many tokens is as likely as the first") {
    const std::vector<float> even(1000, -3.0f);
    ChooseToken choose(1, 4);
    int low = 0;
    std::int32_t highest = 0;
    for (int i = 0; i < 20000; ++i) {
        const std::int32_t token = choose(even);
        low += token < 500;
        highest = std::max(highest, token);
    }
    CHECK(low == Approx(10000).epsilon(0.05));
    CHECK(highest > 990);
}
