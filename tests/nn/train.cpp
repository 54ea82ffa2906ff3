// SPDX-License-Identifier: MIT
#include <mnemo/nn/train.hpp>

#include <catch.hpp>
#include <error_of.hpp>
#include <torch/utils.h>

#include <cstdio>

namespace {

using namespace mnemo::nn;

// Two words that follow each other in a fixed way: a model that learns anything predicts them.
const std::vector<std::int32_t> kTwoWords = [] {
    std::vector<std::int32_t> ids;
    for (int i = 0; i < 400; ++i) ids.push_back(4 + (i * i) % 7);
    return ids;
}();

TransformerLm two_word_model(double dropout = 0) {
    torch::manual_seed(5);
    return TransformerLm(
        TransformerLmOptions().vocab_size(12).dim(16).ffn_dim(32).layers(1).heads(2).max_positions(16).dropout(
            dropout));
}
TrainOptions options(std::int64_t steps) {
    TrainOptions o;
    o.steps = steps, o.batch = 4, o.context = 12, o.warm_up = 5, o.learning_rate = 1e-2;
    return o;
}
bool same_weights(const TransformerLm& a, const TransformerLm& b) {
    const auto x = a->parameters(), y = b->parameters();
    for (std::size_t i = 0; i < x.size(); ++i)
        if (!at::equal(x[i], y[i])) return false;
    return x.size() == y.size();
}
constexpr auto go_on = [](std::int64_t, std::int64_t, double) { return true; };

} // namespace

TEST_CASE("training learns what can be learned") {
    for (const auto windows : {TrainOptions::Windows::anywhere, TrainOptions::Windows::blocks}) {
        auto o = options(150);
        o.windows = windows;
        Trainer trainer(two_word_model(), kTwoWords, o);
        std::vector<double> losses;
        CHECK(trainer.run([&](std::int64_t done, std::int64_t total, double loss) {
            losses.push_back(loss);
            return done == static_cast<std::int64_t>(losses.size()) && total == 150;
        }));
        CHECK(losses.size() == 150);
        CHECK(losses.front() > 2);
        CHECK(losses.back() < 0.5);
        CHECK(!trainer.model()->is_training());
        CHECK(error_of([&] { trainer.step(); }) == "mnemo: training: all 150 steps are done");
    }
}

TEST_CASE("steps are those of AdamW with clipping") {
    const std::vector<std::int32_t> constant(100, 5); // all windows are alike, so the gradient is known
    auto o = options(10);
    o.warm_up = 2, o.clip = 0.5;
    Trainer trainer(two_word_model(), constant, o);
    auto reference = two_word_model();
    const auto parameters = reference->parameters();
    const at::Tensor window = at::full({1, o.context}, 5, at::kLong);
    std::vector<at::Tensor> mean(parameters.size()), square(parameters.size());
    for (int n = 1; n <= 4; ++n) {
        const at::Tensor loss = reference->loss(window, window);
        CHECK(trainer.step() == Approx(loss.item<double>()).epsilon(1e-5));
        reference->zero_grad();
        loss.backward();
        const at::NoGradGuard no_grad;
        double squares = 0;
        for (const auto& p : parameters) squares += p.grad().square().sum().item<double>();
        CHECK(squares > 0.25); // so that it is clipped
        const double rate = n == 1 ? o.learning_rate / 2 : trainer.learning_rate(n - 1);
        for (std::size_t i = 0; i < parameters.size(); ++i) {
            const at::Tensor g = parameters[i].grad() * (0.5 / std::sqrt(squares));
            mean[i] = n == 1 ? g * 0.1 : mean[i] * 0.9 + g * 0.1;
            square[i] = n == 1 ? g * g * 0.05 : square[i] * 0.95 + g * g * 0.05;
            const at::Tensor m = mean[i] / (1 - std::pow(0.9, n)), v = square[i] / (1 - std::pow(0.95, n));
            if (parameters[i].dim() > 1) parameters[i].mul_(1 - rate * 0.1);
            parameters[i].sub_(m / (v.sqrt() + 1e-8) * rate);
            const at::Tensor off = (parameters[i] - trainer.model()->parameters()[i]).abs();
            // Where the gradient is rounding noise its sign is, too.
            CHECK(off.masked_fill(g.abs() < 1e-6, 0).max().item<double>() < 1e-5);
        }
    }
    CHECK(trainer.learning_rate(1) == Approx(1e-2));
    CHECK(trainer.learning_rate(6) == Approx((1e-2 + 2e-4) / 2)); // half-way down the cosine
}

TEST_CASE("threads do not change the result") {
    for (const double dropout : {0.0, 0.2}) {
        Trainer serial(two_word_model(dropout), kTwoWords, options(20)),
            parallel(two_word_model(dropout), kTwoWords, options(20));
        serial.run(go_on);
        parallel.run(go_on, mnemo::Threads{2});
        CHECK(same_weights(serial.model(), parallel.model()));
    }
}

TEST_CASE("a run that is resumed ends where an unbroken one does") {
    const std::string path = "test_checkpoint.safetensors";
    for (const auto windows : {TrainOptions::Windows::anywhere, TrainOptions::Windows::blocks}) {
        auto o = options(30);
        o.windows = windows;
        Trainer unbroken(two_word_model(0.1), kTwoWords, o);
        unbroken.run(go_on);
        Trainer first(two_word_model(0.1), kTwoWords, o);
        CHECK(!first.run([](std::int64_t done, std::int64_t, double) { return done < 17; }));
        first.save(path);
        first.step(); // what happens after saving is forgotten
        torch::manual_seed(99);
        Trainer second(TransformerLm(first.model()->options()), kTwoWords, o);
        second.resume(path);
        CHECK(second.done() == 17);
        CHECK(second.run(go_on));
        CHECK(same_weights(second.model(), unbroken.model()));
    }
    auto other = options(30);
    other.windows = TrainOptions::Windows::blocks;
    other.learning_rate = 0.5;
    Trainer trainer(two_word_model(0.1), kTwoWords, other);
    CHECK(error_of([&] { trainer.resume(path); }) ==
          "mnemo: test_checkpoint.safetensors: learning_rate: expected 0.5 as in this run, got \"0.01\"");
    Trainer other_tokens(two_word_model(0.1), std::span(kTwoWords).subspan(1), options(30));
    CHECK(error_of([&] { other_tokens.resume(path); }).find("tokens: expected") != std::string::npos);
    Trainer other_model(two_word_model(0.2), kTwoWords, options(30));
    CHECK(error_of([&] { other_model.resume(path); }).find("model: expected") != std::string::npos);
    // A file without a part of the model leaves the run as it was.
    const auto file = mnemo::SafeTensors::open(path);
    auto entries = file.entries();
    std::erase_if(entries, [](const mnemo::Entry& e) { return e.name == "w.decoder.layers.0.fc2.bias"; });
    mnemo::write_safetensors("test_damaged.safetensors", entries, file.metadata());
    auto blocks = options(30);
    blocks.windows = TrainOptions::Windows::blocks;
    Trainer untouched(two_word_model(0.1), kTwoWords, blocks), never(two_word_model(0.1), kTwoWords, blocks);
    CHECK(error_of([&] { untouched.resume("test_damaged.safetensors"); }).find("fc2.bias") != std::string::npos);
    untouched.run(go_on), never.run(go_on);
    CHECK(same_weights(untouched.model(), never.model()));
    std::remove("test_damaged.safetensors");
    std::remove(path.c_str());
}

TEST_CASE("what cannot be trained is refused") {
    const auto making = [](TrainOptions o, std::span<const std::int32_t> ids = kTwoWords) {
        return error_of([&] { Trainer(two_word_model(), ids, o); });
    };
    auto o = options(10);
    o.batch = 5;
    CHECK(making(o) == "mnemo: training, batch: expected a multiple of 2 shards, got 5");
    o = options(0);
    CHECK(making(o) == "mnemo: training, steps: expected at least 1, got 0");
    CHECK(making(options(10), std::span(kTwoWords).first(20)) ==
          "mnemo: training, tokens: expected more than two windows of 12, got 20");
    const std::vector<std::int32_t> wrong(100, 12);
    CHECK(making(options(10), wrong) == "mnemo: training, tokens: expected ids from 0 to 11, got 12");
    o = options(50);
    o.learning_rate = 1e30;
    Trainer trainer(two_word_model(), kTwoWords, o);
    CHECK(error_of([&] { trainer.run(go_on); }).find("the loss is not finite") != std::string::npos);
}
