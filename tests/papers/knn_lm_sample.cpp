// SPDX-License-Identifier: MIT
#include "toy_host.hpp"

#include <catch.hpp>
#include <mnemo/papers/knn_lm_sample.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/store/tokens.hpp>
#include <mnemo/text/excerpts.hpp>

using namespace mnemo;

TEST_CASE("a sample is what the host said, and tuning it is a sweep of each part") {
    std::vector<std::int32_t> text;
    for (int i = 0; i < 400; ++i) text.push_back(3 + (i * i + i / 7) % 27);
    ToyHost host;
    const WindowBatch windows = excerpts(text, 10, 4, 12);
    KnnLmSample sample = score_sample(host, windows), other = score_sample(host, excerpts(text, 5, 3, 9));
    REQUIRE(sample.size() == 40);
    REQUIRE(sample.queries.rows == 40);
    CHECK(sample.targets[4] == windows.scored_targets(1)[0]);
    const ScoredTokens scored = host.score(windows);
    for (index_t i = 0; i < 40; ++i) {
        REQUIRE(sample.log_p[static_cast<std::size_t>(i)] == scored.log_p[static_cast<std::size_t>(i)]);
        for (std::size_t j = 0; j < ToyHost::kWidth; ++j) REQUIRE(sample.queries[i][j] == scored.keys[i][j]);
    }

    TokenStore<> store(ToyHost::kWidth);
    ContextWindows all({text, {}}, {.block_size = 16, .context = 8});
    build_datastore(host, all, store, 0);
    const KnnLmGrid grid{{1, 8}, {1}, {0, 0.5f}};
    const Exact<L2> exact{8};
    const KnnLmTuned tuned = tune(grid, exact, store, sample, other);
    CHECK(tuned.valid.perplexity ==
          sweep(grid, exact.retrieve(store, sample.queries), store, sample.base()).perplexity);
    CHECK(tuned.test.perplexity == sweep(grid, exact.retrieve(store, other.queries), store, other.base()).perplexity);
    CHECK(tuned.perplexity() < tuned.test.at(0, 0, 0)); // the store holds the text itself
}
