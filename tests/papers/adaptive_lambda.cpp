// SPDX-License-Identifier: MIT
#include "catch.hpp"
#include "noise.hpp"

#include <mnemo/papers/adaptive_lambda.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/store/tokens.hpp>

#include <random>

using namespace mnemo;

namespace {

LambdaNetwork small_network(std::uint64_t seed = 3) { return LambdaNetwork({lambda_features(6, 2), 8, 2, 0.2f}, seed); }

} // namespace

TEST_CASE("The loss's gradient is its derivative", "[lambda]") {
    const LambdaNetwork network = small_network();
    REQUIRE(network.width() == 12);
    const Matrix features = noise(70, 12, 1); // more rows than are computed at a time
    std::vector<float> host, memory;
    for (index_t i = 0; i < 70; ++i) host.push_back(-1 - features[i][0]), memory.push_back(-1 + features[i][5]);
    memory[4] = kLogZero;
    std::vector<float> gradient(network.parameters().size());
    network.loss(features, host, memory, 0.3, gradient);
    LambdaNetwork moved = network;
    std::vector<double> errors;
    for (std::size_t i = 0; i < gradient.size(); i += 3) {
        const float step = 3e-3f, at = network.parameters()[i];
        moved.parameters()[i] = at + step;
        const double up = moved.loss(features, host, memory, 0.3);
        moved.parameters()[i] = at - step;
        const double down = moved.loss(features, host, memory, 0.3);
        moved.parameters()[i] = at;
        errors.push_back(std::abs((up - down) / (2 * double{step}) - double{gradient[i]}));
    }
    std::sort(errors.begin(), errors.end()); // some steps cross the kink of a unit
    CHECK(errors[errors.size() * 3 / 4] < 1e-4);
    CHECK(errors.back() < 5e-3);
    host[4] = kLogZero;
    CHECK_THROWS_WITH(network.loss(features, host, memory, 0), Catch::Contains("row 4"));
}

TEST_CASE("A network learns where the memory is right", "[lambda]") {
    // The sign of one feature says whom to believe.
    const auto sample = [](index_t n, std::uint32_t seed) {
        LambdaSample out{noise(n, 12, seed), {}, {}};
        for (index_t i = 0; i < n; ++i) {
            const bool memory = out.features[i][8] > 0;
            out.host.push_back(memory ? -3.0f : -0.1f), out.memory.push_back(memory ? -0.1f : -3.0f);
        }
        return out;
    };
    const LambdaSample train = sample(600, 1), valid = sample(200, 2);
    LambdaNetwork network = small_network();
    index_t calls = 0, total = 0;
    const auto losses = train_lambda(network, train, valid, {.epochs = 20, .learning_rate = 5e-3, .l1 = 0.01},
                                     [&](index_t, index_t all) { ++calls, total = all; });
    REQUIRE(losses.size() == 21);
    CHECK(calls == total);
    double constant = 1e9; // the best constant weight
    for (float lambda = 0.05f; lambda < 1; lambda += 0.05f) {
        double sum = 0;
        for (std::size_t i = 0; i < valid.host.size(); ++i)
            sum -= log_add(std::log1p(-double{lambda}) + valid.host[i], std::log(double{lambda}) + valid.memory[i]);
        constant = std::min(constant, sum / double(valid.host.size()));
    }
    const double learned = network.loss(valid.features, valid.host, valid.memory, 0);
    CHECK(learned == *std::min_element(losses.begin(), losses.end()));
    CHECK(learned < 0.7 * constant);
    // The same seed, the same weights.
    LambdaNetwork again = small_network();
    train_lambda(again, train, valid, {.epochs = 20, .learning_rate = 5e-3, .l1 = 0.01});
    CHECK(std::equal(again.parameters().begin(), again.parameters().end(), network.parameters().begin()));

    // Half of the rows are not worth a search.
    const float threshold = skip_threshold(network, valid.features, 0.5);
    const auto wanted = worth_asking(network, valid.features, threshold);
    CHECK(std::abs(int(std::count(wanted.begin(), wanted.end(), 1)) - 100) <= 1);
    CHECK(skip_threshold(network, valid.features, 0) == std::numeric_limits<float>::infinity());
    const auto all = worth_asking(network, valid.features, skip_threshold(network, valid.features, 1));
    CHECK(std::count(all.begin(), all.end(), 1) == 0);
}

TEST_CASE("Rows that are not asked for keep the host's scores", "[lambda]") {
    TokenStore<> store(6);
    std::vector<std::int32_t> values;
    for (std::int32_t i = 0; i < 50; ++i) values.push_back(i % 5);
    store.append(noise(50, 6, 9), values);
    const Matrix features = noise(10, 12, 4);
    Matrix queries(10, 6);
    for (index_t i = 0; i < 10; ++i) std::copy_n(features[i].begin(), 6, queries[i].begin());
    const LambdaNetwork network = small_network();
    const float threshold = skip_threshold(network, features, 0.4);
    const auto wanted = worth_asking(network, features, threshold);
    REQUIRE(std::count(wanted.begin(), wanted.end(), 0) == 4);

    const std::vector<std::int32_t> targets{0, 1, 2, 3, 4, 0, 1, 2, 3, 4};
    const std::vector<float> host(10, -2.0f);
    std::vector<float> asked = host, skipped = host;
    const AdaptiveKnnLm<TokenStore<>, Exact<L2>> always(LastHidden{}, store, {8}, {{}, {&network, threshold}}, {});
    const SkippingKnnLm<TokenStore<>, Exact<L2>> skipping(LastHidden{}, store, {{8}}, {{}, {&network, threshold}}, {});
    always.read(Rows(queries), FeaturedTargets{targets, asked, features});
    Session<const SkippingKnnLm<TokenStore<>, Exact<L2>>, SelectedQueries> session(skipping);
    for (int step = 0; step < 2; ++step) {
        skipped = host;
        session.read(SelectedQueries{queries, wanted}, FeaturedTargets{targets, skipped, features});
        CHECK(skipped == asked); // bit for bit: the weight is zero where nothing was retrieved
        CHECK(session.recall().found.rows() == 6);
    }
    for (std::size_t i = 0; i < 10; ++i) CHECK((skipped[i] == -2.0f) == (wanted[i] == 0));
    CHECK_THROWS_WITH(skipping.recall(SelectedQueries{queries, std::span(wanted).first(3)}),
                      Catch::Contains("Selected: wanted"));
}

TEST_CASE("A merged store votes as the whole one did where keys are equal", "[lambda]") {
    // Every key three times, twice with the same token.
    const Matrix keys = noise(20, 6, 5);
    TokenStore<> store(6);
    for (int copy = 0; copy < 3; ++copy) {
        std::vector<std::int32_t> values;
        for (std::int32_t i = 0; i < 20; ++i) values.push_back(copy < 2 ? i % 7 : 6 - i % 7);
        store.append(keys, values);
    }
    const MergedEntries merged = merge_entries(store, Exact<L2>{3});
    CHECK(merged.kept.size() < 60);
    double total = 0;
    for (const float w : merged.log_weights) total += std::exp(double{w});
    CHECK(total == Approx(60));
    const TokenStore<> fewer = gather_entries(store, merged.kept);
    const WithWeights weighted(fewer, merged.log_weights);
    const Matrix queries = noise(15, 6, 6);
    std::vector<std::int32_t> targets;
    for (std::int32_t i = 0; i < 15; ++i) targets.push_back(i % 7);
    std::vector<float> whole(15, -2.0f), small(15, -2.0f), unweighted(15, -2.0f);
    const Interpolate votes{TokenVotes{.temperature = 0.5f}, Fixed{1}};
    const auto read = [&](const auto& s, const auto& retriever, std::vector<float>& log_p) {
        Arena scratch;
        const Rows rows = queries;
        const auto hits = retriever.retrieve(s, rows);
        TargetLogProbs base{targets, log_p};
        votes.combine(base, Reading{rows, hits, s, scratch});
    };
    read(store, Exact<L2>{1000}, whole);
    read(weighted, Weighted<Exact<L2>>{{1000}, 0.5f}, small);
    read(weighted, Exact<L2>{1000}, unweighted);
    float worst = 0, without = 0;
    for (std::size_t i = 0; i < 15; ++i) {
        worst = std::max(worst, std::abs(whole[i] - small[i]));
        without = std::max(without, std::abs(whole[i] - unweighted[i]));
    }
    CHECK(worst < 2e-5f);
    CHECK(without > 1e-2f);
}

TEST_CASE("N-grams are counted with what follows them", "[lambda]") {
    NgramCounts counts(2);
    const std::vector<std::int32_t> a{1, 2, 3, 1, 2, 4, 1, 2, 3}, b{2, 3};
    counts.add(a), counts.add(b);
    const std::vector<std::int32_t> two{2}, twelve{1, 2}, none{7};
    CHECK(counts.count(two) == 4);
    CHECK(counts.fertility(two) == 2);
    CHECK(counts.count(twelve) == 3);
    CHECK(counts.fertility(twelve) == 2);
    CHECK(counts.count(none) == 0);
    std::vector<float> frequency(2), fertility(2);
    counts.features(std::vector<std::int32_t>{1, 2}, frequency, fertility);
    CHECK(frequency[0] == std::log1p(4.0f));
    CHECK(frequency[1] == std::log1p(3.0f));
    CHECK(fertility[1] == std::log1p(2.0f));
    counts.features(two, frequency, fertility);
    CHECK(frequency[1] == 0);
    const std::vector<float> log_probs{std::log(0.5f), std::log(0.25f), std::log(0.25f), kLogZero};
    std::vector<float> row(3 + 6);
    write_lambda_features(std::vector<float>{7, 8, 9}, a, counts, log_probs, row);
    CHECK(row[0] == 7);
    CHECK(row[5] == Approx(1.5 * std::log(2.0)));
    CHECK(row[6] == std::log(0.5f));
}

TEST_CASE("LambdaNetwork says what is wrong", "[lambda]") {
    CHECK_THROWS_WITH(LambdaNetwork({}), Catch::Contains("expected features"));
    CHECK_THROWS_WITH(LambdaNetwork({lambda_features(3, 2), 8, 2}), Catch::Contains("at least 4 columns"));
    CHECK_THROWS_WITH(LambdaNetwork({lambda_features(6, 2), 8, 2, 1.0f}), Catch::Contains("dropout"));
    const LambdaNetwork network = small_network();
    Matrix out(2, 2);
    CHECK_THROWS_WITH(network.log_weights(noise(2, 5, 1), out), Catch::Contains("width of the features"));
}
