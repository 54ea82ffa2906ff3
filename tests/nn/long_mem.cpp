// SPDX-License-Identifier: MIT
#include "../folder.hpp"
#include <mnemo/nn/long_mem_files.hpp>
#include <mnemo/nn/long_mem_train.hpp>

#include <catch.hpp>

#include <torch/utils.h>

#include <numeric>

using namespace mnemo;

namespace {
constexpr index_t kVocab = 30, kDim = 16, kHeads = 2, kLayers = 4;

nn::HuggingFaceOptions published() { return nn::long_mem_backbone_options(kVocab, kDim, kLayers, kHeads); }
nn::HuggingFaceOptions rotary() {
    return nn::long_mem_backbone_options(kVocab, kDim, kLayers, kHeads, nn::HuggingFaceOptions::Positions::rotary);
}
nn::HuggingFaceOptions gpt2() { // positions of its own, blocks in sequence, biases everywhere
    nn::HuggingFaceOptions o;
    o.model_type = "gpt2", o.vocab_size = kVocab, o.dim = o.input_dim = kDim, o.ffn_dim = 4 * kDim, o.layers = kLayers;
    o.heads = o.kv_heads = kHeads, o.head_dim = kDim / kHeads, o.max_positions = 16;
    o.attention_scale = 1 / std::sqrt(static_cast<double>(o.head_dim));
    return o;
}
nn::LongMem<> model(const nn::HuggingFaceOptions& options, index_t batch = 1, index_t memory_tokens = 24) {
    const nn::HuggingFaceLm backbone = nn::random_backbone(options, 0.4, 11);
    return {
        backbone, nn::side_network_from(backbone, 2, 1), 2, 1,
        LongMemBanks({.heads = kHeads, .head_dim = kDim / kHeads, .memory_tokens = memory_tokens, .chunk = 2, .k = 4},
                     batch)};
}
std::vector<std::int32_t> random_text(index_t n) {
    torch::manual_seed(12);
    const at::Tensor ids = at::randint(3, kVocab, {n}, at::kInt);
    return {ids.data_ptr<std::int32_t>(), ids.data_ptr<std::int32_t>() + n};
}
} // namespace

TEST_CASE("token by token gives what segment by segment gives") {
    const auto text = random_text(40);
    for (const auto& options : {published(), rotary(), gpt2()}) {
        nn::LongMem whole = model(options), stepwise = model(options);
        std::vector<float> expected;
        nn::read_text(whole, text, {.segment = 7}, [&](index_t, std::span<const float> log_p) {
            expected.insert(expected.end(), log_p.begin(), log_p.end());
        });
        nn::LongMemDecoder decoder(stepwise, 7);
        for (std::size_t i = 0; i < text.size(); ++i) {
            const at::Tensor log_p = decoder.step(i == 0 ? 2 : text[i - 1]);
            CHECK(log_p[text[i]].item<float>() == Approx(expected[i]).margin(1e-4));
        }
        decoder.end_segment();
        CHECK(whole.banks().rings()[0].chunks() == 12);
        CHECK(stepwise.banks().rings()[0].chunks() == 12);
    }
}

TEST_CASE("memory changes what is read from the second segment on, and nothing in the first") {
    const auto text = random_text(30);
    nn::LongMem with = model(published()), without = model(published());
    std::vector<float> a, b;
    const auto into = [](std::vector<float>& to) {
        return [&to](index_t, std::span<const float> log_p) { to.insert(to.end(), log_p.begin(), log_p.end()); };
    };
    nn::read_text(with, text, {.segment = 10}, into(a));
    nn::read_text(without, text, {.segment = 10, .remember = false}, into(b));
    CHECK(std::equal(a.begin(), a.begin() + 10, b.begin()));
    CHECK_FALSE(std::equal(a.begin() + 10, a.begin() + 20, b.begin() + 10));
    CHECK(without.banks().rings()[0].chunks() == 0);
    CHECK(nn::read_text(with, text, {.segment = 20, .tail = false}).count() == 20);
}

TEST_CASE("a run that is resumed in the middle of a stream goes on with its banks, bit for bit") {
    const auto text = random_text(400);
    const Passages passages(text, {.block = 8, .rows = 2});
    const nn::LongMemTraining training{.steps = 12, .learning_rate = 1e-2, .warm_up = 2};
    nn::LongMem straight = model(published(), 2), first = model(published(), 2), second = model(published(), 2);
    std::vector<at::Tensor> backbone;
    for (const auto& [name, weight] : straight.backbone()->weights()) backbone.push_back(weight.clone());
    nn::LongMemTrainer whole(straight, passages, training);
    std::vector<double> losses;
    whole.run([&](std::int64_t, std::int64_t, double loss) {
        losses.push_back(loss);
        return true;
    });
    CHECK(losses.size() == 12);
    CHECK_FALSE(at::equal(straight.side()->weights()[3].second, first.side()->weights()[3].second)); // it has learned
    for (std::size_t i = 0; i < backbone.size(); ++i)
        CHECK(at::equal(backbone[i], straight.backbone()->weights()[i].second));

    const Folder folder;
    const std::string path = folder.path() + "/run.safetensors";
    nn::LongMemTrainer before(first, passages, training);
    CHECK_FALSE(before.run([](std::int64_t done, std::int64_t, double) { return done < 5; }));
    before.save(path);
    nn::LongMemTrainer after(second, passages, training);
    after.resume(path);
    CHECK(after.done() == 5);
    for (std::size_t i = 5; i < losses.size(); ++i) CHECK(after.step() == losses[i]);
    for (std::size_t i = 0; i < straight.side()->weights().size(); ++i)
        CHECK(at::equal(straight.side()->weights()[i].second, second.side()->weights()[i].second));
    CHECK_THROWS_AS(after.step(), Error);

    const Passages other({text.data(), 390}, {.block = 8, .rows = 2});
    nn::LongMemTrainer elsewhere(second, other, training);
    CHECK_THROWS_WITH(elsewhere.resume(path), Catch::Contains("text"));
}

TEST_CASE("a model learns and reads with banks of another element") {
    const auto text = random_text(120);
    const nn::HuggingFaceLm backbone = nn::random_backbone(published(), 0.4, 11);
    const LongMemOptions bank{.heads = kHeads, .head_dim = kDim / kHeads, .memory_tokens = 24, .chunk = 2, .k = 4};
    const auto log_p = [&]<class T>(T) {
        nn::LongMem model(backbone, nn::side_network_from(backbone, 2, 1), 2, 1, LongMemBanks<T>(bank, 2));
        const Passages passages(text, {.block = 10, .rows = 2});
        nn::LongMemTrainer trainer(model, passages, {.steps = 5, .learning_rate = 1e-2});
        const Folder folder;
        trainer.step(), trainer.save(folder.path() + "/run"), trainer.step();
        trainer.resume(folder.path() + "/run");
        CHECK(trainer.done() == 1);
        CHECK(trainer.run([](std::int64_t, std::int64_t, double) { return true; }));
        nn::LongMem reader(backbone, model.side(), 2, 1, LongMemBanks<T>(bank, 1));
        return nn::read_text(reader, text, {.segment = 10}).log_p();
    };
    const double exact = log_p(float{});
    CHECK(log_p(half{}) == Approx(exact).epsilon(1e-3));
    CHECK(log_p(bfloat16{}) == Approx(exact).epsilon(1e-2));
}

TEST_CASE("a quiet side network begins as its backbone, and its queries are the backbone's") {
    const auto text = random_text(30);
    const nn::HuggingFaceLm backbone = nn::random_backbone(published(), 0.4, 11);
    const nn::SideNetwork side = nn::side_network_from(backbone, 2, 2, nn::SideStart::quiet);
    const at::NoGradGuard no_grad;
    const at::Tensor tokens = at::arange(3, 13).view({1, 10});
    const auto states = backbone->states(
        tokens, {{nn::Tap::hidden, 0}, {nn::Tap::hidden, 2}, {nn::Tap::prehead, 0}, {nn::Tap::query, 2}});
    at::Tensor queries;
    const auto read = [&] {
        return side->forward({states[0], states[1], states[2]}, {}, [&](const at::Tensor& q) {
            queries = q.clone();
            return nn::SharedReading();
        });
    };
    read();
    CHECK(at::allclose(queries, states[3].reshape(queries.sizes()), 1e-3, 1e-3)); // the norms' epsilons differ
    for (const auto& [name, weight] : side->weights())
        if (name == "layers.1.self_attn.out_proj.weight") weight.zero_();
    CHECK(at::allclose(read(), states[2], 1e-3, 1e-3)); // a fresh backbone's final norm weighs all alike
}

TEST_CASE("gradients through the memory layer are those of finite differences") {
    const auto text = random_text(40);
    nn::LongMem memory = model(published());
    nn::read_text(memory, std::span(text).first(20), {.segment = 10});
    const at::Tensor tokens = at::empty({1, 10}, at::kLong), targets = at::empty({1, 10}, at::kLong);
    std::copy_n(text.begin() + 20, 10, tokens.data_ptr<std::int64_t>());
    std::copy_n(text.begin() + 21, 10, targets.data_ptr<std::int64_t>());
    const auto loss = [&] { return -memory.log_prob_target(memory.forward(tokens), targets).to(at::kDouble).sum(); };
    loss().backward();
    for (const auto& [name, weight] : memory.side()->weights()) {
        if (name.find("layers.0.") != 0) continue; // the layer that reads memory
        const at::NoGradGuard no_grad;
        const at::Tensor flat = weight.view({-1});
        const std::int64_t i = flat.numel() / 2;
        const float kept = flat[i].item<float>(), h = 2e-2f;
        flat[i] = kept + h;
        const double above = loss().item<double>();
        flat[i] = kept - h;
        const double below = loss().item<double>();
        flat[i] = kept;
        INFO(name);
        CHECK(weight.grad().view({-1})[i].item<double>() ==
              Approx((above - below) / (2 * double{h})).epsilon(0.05).margin(5e-3));
    }
}

TEST_CASE("a model is read back from its file, under the published names") {
    const Folder folder;
    const std::string path = folder.path() + "/model.safetensors";
    const auto text = random_text(30);
    const nn::LongMemShape shape{.heads = kHeads, .reduction = 2, .retrieval_layer = 1};
    for (const auto& options : {rotary(), published()}) {
        nn::LongMem saved = model(options);
        nn::save_long_mem(path, saved.backbone(), saved.side(), shape);
        nn::LongMem loaded = nn::load_long_mem(path, saved.options(), 1);
        CHECK(loaded.backbone()->options().positions == options.positions);
        CHECK(nn::read_text(saved, text, {.segment = 10}).log_p() ==
              nn::read_text(loaded, text, {.segment = 10}).log_p());
    }
    const SafeTensors file = SafeTensors::open(path);
    CHECK(file.find("decoder.layers.0.self_attn.memory_bias") != nullptr);
    CHECK(file.find("decoder.pretrained_model.decoder.model.transformer.h.3.mlp.fc_in.bias") != nullptr);
    CHECK(file.find("decoder.pretrained_model.decoder.model.lm_head.bias") != nullptr);
    CHECK_THROWS_WITH(nn::load_long_mem_backbone(path, kHeads, "decoder.model."), Catch::Contains("transformer.wte"));
    CHECK_THROWS_AS(nn::load_long_mem_backbone(path, 3), Error);
    nn::HuggingFaceOptions other = rotary();
    other.rotary_base = 500;
    const nn::LongMem unsaid = model(other);
    CHECK_THROWS_WITH(nn::save_long_mem(path, unsaid.backbone(), unsaid.side(), shape), Catch::Contains("rotary base"));
}
