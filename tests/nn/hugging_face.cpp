// SPDX-License-Identifier: MIT
#include <mnemo/host/llama2c_decoder.hpp>
#include <mnemo/nn/hugging_face.hpp>
#include <mnemo/nn/llama2c_export.hpp>
#include <mnemo/nn/lm_host.hpp>

#include "difference.hpp"
#include <catch.hpp>
#include <error_of.hpp>

#include <filesystem>

#include <unistd.h>

namespace {

using namespace mnemo::nn;
using Positions = HuggingFaceOptions::Positions;

const std::string kFolders = MNEMO_GOLDEN "/hosts/";

HuggingFaceOptions small_options() {
    HuggingFaceOptions o;
    o.model_type = "gpt2";
    o.vocab_size = 30, o.dim = o.input_dim = 16, o.ffn_dim = 24, o.layers = 2, o.heads = o.kv_heads = 4, o.head_dim = 4;
    o.max_positions = 40;
    o.attention_scale = 0.5;
    return o;
}
HuggingFaceLm made(const HuggingFaceOptions& options) {
    torch::manual_seed(5);
    HuggingFaceLm model(options, [](const std::string& name, at::IntArrayRef shape) {
        const bool norm = name.find("norm") != name.npos && name.ends_with("weight");
        return at::randn(shape) * 0.3 + (norm ? 1 : 0);
    });
    model->eval();
    return model;
}
// One of each branch that decodes.
std::vector<std::pair<std::string, HuggingFaceOptions>> decoders() {
    auto post = small_options(), by_mask = small_options(), shared = small_options(), narrow = small_options(),
         bare = small_options();
    post.norm_first = post.final_norm = false, post.activation = "relu";
    by_mask.positions = Positions::learned_by_mask, by_mask.position_offset = 2;
    shared.positions = Positions::rotary, shared.kv_heads = 2, shared.gated = shared.rms_norm = true;
    shared.head_dim = 6, shared.attention_bias = shared.ffn_bias = false, shared.activation = "silu";
    narrow.input_dim = 12, narrow.tied_head = false, narrow.attention_scale_layer = true;
    bare.norm_weights = false, bare.activation = "quick_gelu";
    return {{"pre-norm", small_options()},  {"post-norm", post},
            {"positions by mask", by_mask}, {"llama", shared},
            {"narrow input", narrow},       {"norms without weights", bare}};
}
at::Tensor some_ids(std::int64_t batch, std::int64_t rows) {
    torch::manual_seed(batch * 100 + rows);
    return at::randint(0, 30, {batch, rows}, at::kLong);
}

} // namespace

TEST_CASE("decoding with a cache is the full forward, whatever the architecture, padding and step") {
    const at::NoGradGuard no_grad;
    for (const auto& [name, options] : decoders()) {
        INFO(name);
        const auto model = made(options);
        const at::Tensor tokens = some_ids(3, 9);
        TokenInfo info;
        info.mask = at::ones({3, 9}, at::kLong);
        info.mask[0].narrow(0, 0, 3).zero_(); // left
        info.mask[1].narrow(0, 7, 2).zero_(); // right
        info.positions = (info.mask.cumsum(1) - 1).clamp_min(0);
        const at::Tensor real = info.mask.ne(0), all = model->forward(tokens, nullptr, info);
        CHECK(all.isfinite().all().item<bool>());
        for (const std::int64_t step : {1, 2, 4}) {
            KeyValueCache cache;
            std::vector<at::Tensor> steps;
            for (std::int64_t t = 0; t < 9; t += step) {
                const std::int64_t n = std::min<std::int64_t>(step, 9 - t);
                steps.push_back(model->forward(tokens.narrow(1, t, n), &cache,
                                               {info.mask.narrow(1, t, n), info.positions.narrow(1, t, n), {}}));
            }
            CHECK(cache.length() == 9);
            CHECK(difference(at::cat(steps, 1).index({real}), all.index({real})) < 1e-5);
        }
        // A padded row is the row alone, and what stands in the padding does not matter.
        const at::Tensor alone = model->forward(tokens.narrow(0, 0, 1).narrow(1, 3, 6));
        CHECK(difference(alone[0], all[0].narrow(0, 3, 6)) < 1e-5);
        const at::Tensor other = tokens.masked_fill(real.logical_not(), 7);
        CHECK(difference(model->forward(other, nullptr, info).index({real}), all.index({real})) < 1e-5);
    }
}

TEST_CASE("positions that count real tokens need no numbers for left padding") {
    const at::NoGradGuard no_grad;
    auto options = small_options();
    options.positions = Positions::learned_by_mask, options.position_offset = 2;
    const auto model = made(options);
    const at::Tensor tokens = some_ids(1, 7), mask = at::ones({1, 7}, at::kLong);
    mask.narrow(1, 0, 2).zero_();
    CHECK(difference(model->forward(tokens, nullptr, {mask, {}, {}}).narrow(1, 2, 5),
                     model->forward(tokens.narrow(1, 2, 5))) < 1e-5);
    KeyValueCache cache;
    (void)model->forward(tokens.narrow(1, 0, 4), &cache, {mask.narrow(1, 0, 4), {}, {}});
    CHECK(difference(model->forward(tokens.narrow(1, 4, 3), &cache).narrow(1, 0, 3),
                     model->forward(tokens.narrow(1, 2, 5)).narrow(1, 2, 3)) < 1e-5);
}

TEST_CASE("taps are the states in between, and nothing behind the last is needed") {
    const at::NoGradGuard no_grad;
    const auto model = made(small_options());
    const at::Tensor tokens = some_ids(2, 5);
    const auto states = model->states(tokens, {model->tap("hidden.0"), model->tap("ffn_in"), model->tap("ffn_in.0"),
                                               model->tap("hidden.2"), model->tap("prehead")});
    CHECK(difference(states[1], model->states(tokens, {model->tap("ffn_in.1")})[0]) == 0);
    CHECK(difference(states[2], model->states(tokens, {model->tap("ffn_in.0")})[0]) == 0);
    CHECK(difference(states[4], model->forward(tokens)) == 0);
    const at::Tensor targets = some_ids(2, 5), log_p = model->log_prob_all(states[4]);
    CHECK(difference(model->log_prob_target(states[4], targets), log_p.gather(2, targets.unsqueeze(2)).squeeze(2)) <
          1e-5);
    CHECK(error_of([&] { (void)model->tap("hidden.3"); }).find("tap: expected hidden.0 to hidden.2") !=
          std::string::npos);
}

TEST_CASE("gradients reach every weight, and weights follow the module") {
    const auto model = made(small_options());
    model->log_prob_target(model->forward(some_ids(2, 40)), some_ids(2, 40)).sum().backward();
    for (const auto& item : model->named_parameters()) {
        INFO(item.key());
        CHECK((item.value().grad().defined() && item.value().grad().abs().sum().item<double>() > 0));
    }
}

TEST_CASE("wrong calls are refused with what was expected") {
    const at::NoGradGuard no_grad;
    const auto model = made(small_options());
    CHECK(error_of([&] {
              (void)model->forward(some_ids(1, 41));
          }).find("positions: expected numbers from 0 to 39, got 40") != std::string::npos);
    CHECK(error_of([&] { (void)model->forward(some_ids(1, 4) + 30); }).find("tokens: expected numbers from 0 to 29") !=
          std::string::npos);
    CHECK(error_of([&] {
              (void)model->forward(some_ids(1, 4), nullptr, {some_ids(1, 3), {}, {}});
          }).find("mask: expected") != std::string::npos);
    CHECK(error_of([&] {
              (void)model->forward(some_ids(1, 4), nullptr, {{}, {}, some_ids(1, 4)});
          }).find("segments") != std::string::npos);
    KeyValueCache cache;
    (void)model->forward(some_ids(2, 4), &cache);
    CHECK(error_of([&] { (void)model->forward(some_ids(1, 1), &cache); }).find("batch 2 as in the cache") !=
          std::string::npos);
    auto wide = small_options();
    wide.heads = wide.kv_heads = 2, wide.head_dim = 8;
    CHECK(error_of([&] { (void)made(wide)->forward(some_ids(2, 1), &cache); }).find("other heads") !=
          std::string::npos);
}

TEST_CASE("BERT sees both sides and cannot decode") {
    const at::NoGradGuard no_grad;
    const auto bert = load_hugging_face(kFolders + "bert_a");
    const at::Tensor tokens = some_ids(1, 6), changed = tokens.clone();
    changed[0][5] = (changed[0][5] + 1) % 30;
    CHECK(difference(bert->forward(tokens)[0][0], bert->forward(changed)[0][0]) > 1e-4);
    KeyValueCache cache;
    CHECK(error_of([&] { (void)bert->forward(tokens, &cache); }).find("both sides") != std::string::npos);
    CHECK(error_of([&] { LmHost host(bert); }).find("both sides") != std::string::npos);
    CHECK(bert->description() == "bert, 2 layers of 24");
}

TEST_CASE("files say what was of no use, and may be told what to ignore") {
    std::vector<std::string> unused;
    (void)load_hugging_face(kFolders + "gpt2_old", {.unused = &unused});
    CHECK(unused == std::vector<std::string>{"h.0.attn.bias", "h.1.attn.bias"});
    (void)load_hugging_face(kFolders + "bert_old", {.unused = &unused});
    CHECK(unused == std::vector<std::string>{"cls.seq_relationship.bias", "cls.seq_relationship.weight"});
    (void)load_hugging_face(kFolders + "llama_b", {.check_finite = true, .unused = &unused});
    CHECK(unused.empty());
}

TEST_CASE("a config's fields are honoured or refused by name") {
    const auto options = [](nlohmann::json changes, const HuggingFaceLoading& loading = {}) {
        nlohmann::json config = {{"vocab_size", 8},
                                 {"max_position_embeddings", 9},
                                 {"hidden_size", 12},
                                 {"num_hidden_layers", 1},
                                 {"num_attention_heads", 2}};
        const std::string type = changes.at("model_type");
        config["model_type"] = type;
        config[type == "opt" ? "ffn_dim" : "intermediate_size"] = 10;
        if (type == "gpt2")
            config = {{"vocab_size", 8}, {"n_embd", 12}, {"n_layer", 1}, {"n_head", 2}, {"n_positions", 9}};
        config.update(changes);
        return hugging_face_options(config, "config.json", loading);
    };
    const auto refused = [&](const nlohmann::json& changes, const std::string& expected) {
        const std::string got = error_of([&] { (void)options(changes); });
        INFO(got);
        CHECK(got.find("config.json: " + expected) != std::string::npos);
    };
    CHECK(options({{"model_type", "gpt2"}}).ffn_dim == 48);
    CHECK(options({{"model_type", "gpt2"}, {"n_inner", 7}}).ffn_dim == 7);
    CHECK(options({{"model_type", "gpt2"}, {"scale_attn_weights", false}}).attention_scale == 1);
    CHECK(options({{"model_type", "opt"}, {"do_layer_norm_before", false}}).final_norm == false);
    CHECK(options({{"model_type", "opt"}, {"_remove_final_layer_norm", true}}).final_norm == false);
    CHECK(options({{"model_type", "opt"}, {"enable_bias", false}}).ffn_bias == false);
    CHECK(options({{"model_type", "opt"}, {"layer_norm_elementwise_affine", false}}).norm_weights == false);
    CHECK(options({{"model_type", "bert"}}).norm_epsilon == 1e-12);
    CHECK(options({{"model_type", "llama"}}).norm_epsilon == 1e-6);
    CHECK(options({{"model_type", "llama"}, {"rope_theta", 5000}}).rotary_base == 5000);
    CHECK(options({{"model_type", "llama"}, {"rope_scaling", nullptr}}).rotary_base == 10000);
    CHECK(options({{"model_type", "llama"}, {"rope_parameters", {{"rope_theta", 7}, {"rope_type", "default"}}}})
              .rotary_base == 7);
    CHECK(options({{"model_type", "llama"}, {"head_dim", 10}}).head_dim == 10);

    refused({{"model_type", "t5"}}, "model_type: expected \"gpt2\"");
    refused({{"model_type", "gpt2"}, {"sliding_window", 7}}, "unknown field \"sliding_window\"");
    CHECK(options({{"model_type", "gpt2"}, {"sliding_window", 7}}, {.ignore_fields = {"sliding_window"}}).dim == 12);
    refused({{"model_type", "gpt2"}, {"add_cross_attention", true}}, "add_cross_attention: expected false");
    refused({{"model_type", "gpt2"}, {"pruned_heads", {{"0", {1}}}}}, "pruned_heads: expected nothing");
    refused({{"model_type", "gpt2"}, {"n_head", 5}}, "n_head: expected a divisor of 12");
    refused({{"model_type", "opt"}, {"quantization_config", {{"bits", 4}}}}, "quantization_config: expected nothing");
    refused({{"model_type", "bert"}, {"is_decoder", true}}, "is_decoder: expected false");
    refused({{"model_type", "bert"}, {"position_embedding_type", "relative_key"}}, "position_embedding_type: expected");
    refused({{"model_type", "llama"}, {"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}}}, "rope_scaling");
    refused({{"model_type", "llama"}, {"rope_parameters", {{"rope_type", "llama3"}}}},
            "rope_parameters: rope_type: expected \"default\"");
    refused({{"model_type", "llama"}, {"rope_parameters", {{"rope_type", "default"}, {"partial_rotary_factor", 0.5}}}},
            "rope_parameters: unknown field");
}

TEST_CASE("a Hugging Face model is a kNN-LM host") {
    const auto model = load_hugging_face(kFolders + "gpt2_a");
    LmHost host(model, "ffn_in", mnemo::Serial{}, 2);
    static_assert(mnemo::ScoringHost<decltype(host)> && mnemo::DecodingHost<decltype(host)>);
    CHECK(host.key_dim() == 24);
    CHECK(host.vocab_size() == 101);
    CHECK(host.fingerprint().model == "gpt2, 2 layers of 24");
    CHECK(host.fingerprint().model_hash != LmHost(load_hugging_face(kFolders + "gpt2_b")).fingerprint().model_hash);
    // Windows of a text: the same log-probabilities as the model gives.
    std::vector<std::int32_t> tokens;
    for (std::int32_t i = 0; i < 30; ++i) tokens.push_back(i * i % 101);
    mnemo::ContextWindows windows({tokens, {}}, {.block_size = 8, .batch = {.max_rows = 3, .multiple = 1}});
    mnemo::WindowBatch batch;
    REQUIRE(windows.next(batch));
    const auto scored = host.score(batch);
    const at::NoGradGuard no_grad;
    const auto row = batch.input(1), target = batch.target(1);
    const auto longs = [](std::span<const std::int32_t> s) {
        return at::tensor(std::vector<std::int64_t>(s.begin(), s.end()), at::kLong).unsqueeze(0);
    };
    const at::Tensor expected = model->log_prob_target(model->forward(longs(row)), longs(target))[0];
    for (std::int64_t i = 0; i < expected.size(0); ++i)
        CHECK(std::abs(expected[i].item<float>() - scored.log_p[static_cast<std::size_t>(8 + i)]) < 1e-5f);
    // Decoding goes on when the positions are used up.
    float sum = 0;
    for (int i = 0; i < 60; ++i) sum += host.step(i % 101).log_probs[0][3];
    CHECK(std::isfinite(sum));
}

TEST_CASE("a Llama model computes the same as the llama2.c checkpoint it is written to") {
    const at::NoGradGuard no_grad;
    auto options = small_options();
    options.positions = Positions::rotary, options.kv_heads = 2, options.gated = options.rms_norm = true;
    options.attention_bias = options.ffn_bias = false, options.activation = "silu";
    const std::string path =
        (std::filesystem::temp_directory_path() / mnemo::text("mnemo-", getpid(), ".bin")).string();
    for (const bool tied : {true, false}) {
        options.tied_head = tied;
        const auto model = made(options);
        save_llama2c(*model, path);
        const auto file = mnemo::Llama2cModel::open(path);
        std::filesystem::remove(path);
        mnemo::Llama2cDecoder decoder(file.weights());
        const at::Tensor tokens = some_ids(1, 12), logits = model->logits(model->forward(tokens))[0];
        for (std::int64_t t = 0; t < 12; ++t) {
            decoder.forward(static_cast<std::int32_t>(tokens[0][t].item<std::int64_t>()));
            CHECK(difference(at::from_blob(decoder.logits().data(), {30}), logits[t]) < 1e-4);
        }
    }
    options.norm_epsilon = 1e-6;
    CHECK(error_of([&] { save_llama2c(*made(options), path); }).find("epsilon 1e-5") != std::string::npos);
    CHECK_FALSE(std::filesystem::exists(path));
}
