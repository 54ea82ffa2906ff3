// SPDX-License-Identifier: MIT
#include <mnemo/nn/lm_host.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/store/tokens.hpp>

#include "difference.hpp"
#include <catch.hpp>
#include <error_of.hpp>

namespace {

using namespace mnemo::nn;
using mnemo::index_t;

TransformerLm made(std::int64_t max_positions = 40, unsigned seed = 3) {
    torch::manual_seed(seed);
    TransformerLm model(
        TransformerLmOptions().vocab_size(30).dim(16).ffn_dim(24).layers(2).heads(2).max_positions(max_positions));
    model->eval();
    return model;
}
std::vector<std::int32_t> stream(std::size_t n) {
    std::vector<std::int32_t> ids;
    for (std::size_t i = 0; i < n; ++i) ids.push_back(static_cast<std::int32_t>(3 + i * i * 7 % 27));
    return ids;
}
at::Tensor long_ids(std::span<const std::int32_t> ids) {
    const at::Tensor t = at::empty({1, static_cast<std::int64_t>(ids.size())}, at::kLong);
    std::copy(ids.begin(), ids.end(), t.data_ptr<std::int64_t>());
    return t;
}
at::Tensor tensor(mnemo::Rows rows) {
    return at::from_blob(const_cast<float*>(rows.data), {rows.rows, rows.cols}, at::kFloat).clone();
}
at::Tensor tensor(std::span<const float> values) {
    return at::from_blob(const_cast<float*>(values.data()), {static_cast<std::int64_t>(values.size())}, at::kFloat)
        .clone();
}

} // namespace

TEST_CASE("keys and log-probabilities of windows are the model's, row by row") {
    const at::NoGradGuard no_grad;
    const auto model = made();
    const auto tokens = stream(50);
    for (const char* tap : {"ffn_in", "prehead", "hidden.0"}) {
        LmHost host(model, tap, mnemo::Serial{}, 2);
        LmHost parallel(model, tap, mnemo::Threads{2}, 2);
        LmHost for_keys(model, tap);
        mnemo::ContextWindows windows({tokens, {}},
                                      {.block_size = 8, .context = 5, .batch = {.max_rows = 5, .multiple = 1}});
        mnemo::WindowBatch batch;
        index_t scored = 0;
        while (windows.next(batch)) {
            const auto both = host.score(batch);
            REQUIRE(both.keys.rows == batch.scored());
            CHECK(both.keys.cols == host.key_dim());
            const at::Tensor keys = tensor(both.keys), log_p = tensor(both.log_p);
            index_t at = 0;
            for (index_t row = 0; row < batch.rows; ++row) { // each row alone, without padding
                const auto i = static_cast<std::size_t>(row);
                const auto input = batch.input(row).first(static_cast<std::size_t>(batch.length[i]));
                const auto target = batch.scored_targets(row);
                const auto n = static_cast<index_t>(target.size());
                const auto states = model->states(long_ids(input), {model->tap(tap), model->tap("prehead")});
                const auto expected =
                    model->log_prob_target(states[1][0].narrow(0, batch.start[i], n), long_ids(target)[0]);
                CHECK(difference(keys.narrow(0, at, n), states[0][0].narrow(0, batch.start[i], n)) < 1e-5);
                CHECK(difference(log_p.narrow(0, at, n), expected) < 1e-5);
                at += n;
            }
            scored += at;
            // The same, bit for bit, with two workers, and without the output matrix.
            const auto again = parallel.score(batch);
            CHECK(at::equal(tensor(again.keys), keys));
            CHECK(at::equal(tensor(again.log_p), log_p));
            CHECK(difference(tensor(for_keys.keys(batch)), keys) < 1e-5);
        }
        CHECK(scored == 50);
    }
    mnemo::WindowBatch wrong;
    wrong.rows = 1, wrong.width = 2, wrong.inputs = {3, 4}, wrong.targets = {4, 5}, wrong.start = {1},
    wrong.length = {3};
    LmHost host(model);
    CHECK(error_of([&] { host.keys(wrong); }) ==
          "mnemo: window batch, row 0: expected 0 <= start <= length <= 2, got 1 and 3");
}

TEST_CASE("decoding gives the states and distributions of the whole text") {
    const at::NoGradGuard no_grad;
    const auto model = made(12);
    LmHost host(model);
    const auto tokens = stream(30);
    for (int round = 0; round < 2; ++round) {
        for (std::size_t i = 0; i < tokens.size(); ++i) {
            const auto next = host.step(tokens[i]);
            // 12 positions, of which 6 are read again when they are used up.
            const std::size_t first = i < 12 ? 0 : (i - 12) / 7 * 7 + 7;
            const auto states = model->states(long_ids(std::span(tokens).subspan(first, i + 1 - first)),
                                              {model->tap("ffn_in"), model->tap("prehead")});
            CHECK(difference(tensor(next.key), states[0][0].narrow(0, -1, 1)) < 1e-5);
            CHECK(difference(tensor(mnemo::Rows(next.log_probs)), model->log_prob_all(states[1][0].narrow(0, -1, 1))) <
                  1e-5);
            next.log_probs[0][0] = 5; // a combiner may write
        }
        host.reset();
    }
    CHECK(error_of([&] { host.step(30); }) == "mnemo: token: expected an id from 0 to 29, got 30");
}

TEST_CASE("a host is known by its fingerprint") {
    const auto same = [](const auto& a, const auto& b) { return mnemo::difference(a, b); };
    const auto print = LmHost(made()).fingerprint("t");
    CHECK(print.key_dim == 16);
    CHECK(print.vocab_size == 30);
    CHECK(print.key_tap == "ffn_in.1");
    CHECK(same(print, LmHost(made(), "ffn_in.1").fingerprint("t")).empty());
    CHECK(same(print, LmHost(made(40, 4)).fingerprint("t")).find("model_hash") == 0);
    CHECK(same(print, LmHost(made(), "prehead").fingerprint("t")).find("key_tap") == 0);
    CHECK(same(print, LmHost(made()).fingerprint("u")).find("tokenizer_hash") == 0);
}

TEST_CASE("a model that has not learned anything recites a text from its memory") {
    LmHost host(made());
    const auto text = stream(40);
    mnemo::ContextWindows windows({text, {}}, {.block_size = 40});
    auto store = std::make_shared<mnemo::TokenStore<mnemo::half>>(host.key_dim());
    REQUIRE(mnemo::build_datastore(host, windows, *store).written == 40);
    const mnemo::KnnLm<std::shared_ptr<mnemo::TokenStore<mnemo::half>>, mnemo::Exact<mnemo::L2>> memory(
        {}, store, {1, {}}, {{}, {1.0f}});
    std::vector<std::int32_t> prompt{2}; // the window begins with the end-of-sentence token
    REQUIRE(mnemo::generate(memory, host, prompt, {.tokens = 40}) == text);
    windows.rewind();
    REQUIRE(mnemo::evaluate(memory, host, windows).combined.perplexity() == 1);
}
