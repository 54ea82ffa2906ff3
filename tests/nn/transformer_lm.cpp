// SPDX-License-Identifier: MIT
#include <mnemo/nn/fairseq.hpp>

#include "difference.hpp"
#include <catch.hpp>
#include <error_of.hpp>

#include <filesystem>
#include <fstream>
#include <thread>

namespace {

using namespace mnemo::nn;
using Options = TransformerLmOptions;

Options small() { return Options().vocab_size(50).dim(16).ffn_dim(24).layers(2).heads(4).max_positions(20); }
Options adaptive() {
    return small()
        .adaptive_input(true)
        .adaptive_input_cutoff({10, 30})
        .adaptive_input_factor(2)
        .adaptive_softmax_cutoff({10, 30})
        .adaptive_softmax_factor(2);
}

// One of each branch of the model.
std::vector<std::pair<std::string, Options>> variants() {
    return {{"plain", small()},
            {"untied, gelu, no final norm", small().share_embeddings(false).activation("gelu").final_norm(false)},
            {"learned positions", small().learned_positions(true).activation("gelu_accurate")},
            {"no positions, no scale", small().positions(false).scale_embedding(false).activation("tanh")},
            {"other widths, normed embedding",
             small().input_dim(12).output_dim(12).layernorm_embedding(true).activation("linear")},
            {"pad 0", small().pad(0)},
            {"adaptive", adaptive()},
            {"adaptive, other width", adaptive().output_dim(12).input_dim(8)},
            {"adaptive, tied", adaptive().tie_adaptive_weights(true)},
            {"adaptive, tied with projections", adaptive().tie_adaptive_weights(true).tie_adaptive_proj(true)},
            {"adaptive, tied, narrow band 0", adaptive().tie_adaptive_weights(true).input_dim(12)},
            {"adaptive input only", small().adaptive_input(true).adaptive_input_cutoff({10}).share_embeddings(false)}};
}

TransformerLm made(const Options& options) {
    torch::manual_seed(7);
    TransformerLm model(options);
    model->eval();
    return model;
}

at::Tensor ids(std::int64_t batch, std::int64_t rows, std::int64_t first = 4) {
    torch::manual_seed(batch * 100 + rows);
    return at::randint(first, 50, {batch, rows}, at::kLong);
}

struct ModelFolder {
    std::string path;
    explicit ModelFolder(const std::string& name) : path(name) { std::filesystem::remove_all(path); }
    ~ModelFolder() { std::filesystem::remove_all(path); }
};

void copy_config(const std::string& from, const std::string& to, const std::string& text, const std::string& by) {
    std::filesystem::create_directories(to);
    std::string config = mnemo::read_file(from + "/config.json");
    const auto at = config.find(text);
    REQUIRE(at != config.npos);
    config.replace(at, text.size(), by);
    mnemo::atomic_write(to + "/config.json", config);
    std::filesystem::copy_file(from + "/model.safetensors", to + "/model.safetensors",
                               std::filesystem::copy_options::overwrite_existing);
}

} // namespace

TEST_CASE("a token at a time gives what the whole text gives") {
    const at::NoGradGuard no_grad;
    for (const auto& [name, options] : variants()) {
        INFO(name);
        const auto model = made(options);
        at::Tensor tokens = ids(3, 18);
        if (options.pad() == 1) tokens.index_put_({0, at::arange(5)}, 1); // left padding
        const at::Tensor expected = model->forward(tokens), real = tokens.ne(1).unsqueeze(-1);
        KeyValueCache cache;
        for (int round = 0; round < 2; ++round) { // the second time into buffers that were used
            std::vector<at::Tensor> parts{model->forward(tokens.narrow(1, 0, 7), &cache)};
            KeyValueCache copy = cache;
            model->forward(ids(3, 1), &copy); // leaves the original alone
            for (std::int64_t i = 7; i < 17; ++i) parts.push_back(model->forward(tokens.narrow(1, i, 1), &cache));
            // A step for keys alone must leave the cache as a full one does.
            CHECK(model->states(tokens.narrow(1, 17, 1), {model->tap("hidden.0")}, &cache).size() == 1);
            CHECK(cache.length() == 18);
            CHECK(difference(at::cat(parts, 1) * real.narrow(1, 0, 17), (expected * real).narrow(1, 0, 17)) < 1e-5);
            cache.reset();
        }
    }
    const auto model = made(small());
    KeyValueCache cache;
    model->forward(ids(2, 3), &cache);
    CHECK(error_of([&] { model->forward(ids(3, 1), &cache); }) ==
          "mnemo: tokens: expected batch 2 as in the cache, got 3");
}

TEST_CASE("padding changes nothing") {
    const at::NoGradGuard no_grad;
    for (const auto& [name, options] : variants()) {
        INFO(name);
        const auto model = made(options);
        const at::Tensor tokens = ids(2, 6), pads = at::full({2, 4}, options.pad(), at::kLong);
        const at::Tensor expected = model->forward(tokens);
        const at::Tensor right = model->forward(at::cat({tokens, pads}, 1)),
                         left = model->forward(at::cat({pads, tokens}, 1));
        CHECK(difference(right.narrow(1, 0, 6), expected) < 1e-5);
        CHECK(difference(left.narrow(1, 4, 6), expected) < 1e-5);
        CHECK(left.isfinite().all().item<bool>());
    }
}

TEST_CASE("taps give the same states alone and together") {
    const at::NoGradGuard no_grad;
    const auto model = made(small().output_dim(12).input_dim(12));
    const at::Tensor tokens = ids(2, 9);
    const std::vector<std::string> names{"hidden.0", "hidden.1", "hidden.2", "ffn_in.0", "ffn_in", "prehead"};
    std::vector<Tap> taps;
    for (const auto& name : names) taps.push_back(model->tap(name));
    const auto together = model->states(tokens, taps);
    for (std::size_t i = 0; i < taps.size(); ++i) {
        INFO(names[i]);
        const auto alone = model->states(tokens, {taps[i]});
        CHECK(at::equal(alone[0], together[i]));
        CHECK(alone[0].size(2) == model->width(taps[i]));
    }
    CHECK(model->tap("ffn_in") == model->tap("ffn_in.1"));
    for (const char* name : {"hidden.3", "hidden.", "hidden.-1", "hidden.1x", "ffn_in.2", "logits", ""})
        CHECK(error_of([&] { model->tap(name); }) ==
              mnemo::text("mnemo: tap: expected hidden.0 to hidden.2, ffn_in, ffn_in.0 to ffn_in.1 or prehead, got '",
                          std::string_view(name), "'"));
}

TEST_CASE("log-probabilities of targets are those of the distribution") {
    const at::NoGradGuard no_grad;
    for (const auto& [name, options] : variants()) {
        INFO(name);
        const auto model = made(options), sliced = made(Options(options).softmax_batch(5));
        const at::Tensor tokens = ids(3, 9), targets = ids(3, 9, 0), states = model->forward(tokens) * 3;
        const at::Tensor all = model->log_prob_all(states);
        CHECK(difference(all.logsumexp(-1), at::zeros({3, 9})) < 1e-5);
        const at::Tensor expected = all.gather(2, targets.unsqueeze(2)).squeeze(2);
        CHECK(difference(model->log_prob_target(states, targets), expected) < 1e-5);
        CHECK(difference(sliced->log_prob_target(states, targets), expected) < 1e-5);
        const double loss = model->loss(tokens, targets).item<double>();
        const at::Tensor real = targets.ne(options.pad());
        const at::Tensor log_p = model->log_prob_target(model->forward(tokens), targets);
        CHECK(loss == Approx(-log_p.index({real}).mean().item<double>()).epsilon(1e-5));
        if (model->adaptive_softmax())
            CHECK(error_of([&] { model->logits(states); }) ==
                  "mnemo: a model with adaptive softmax has no logits: ask for log-probabilities");
    }
    const auto model = made(small());
    CHECK(error_of([&] {
              model->forward(at::full({1, 2}, 50, at::kLong));
          }) == "mnemo: tokens: expected ids from 0 to 49, got 50");
    CHECK(error_of([&] {
              model->log_prob_target(at::zeros({2, 16}), at::full({2}, -1, at::kLong));
          }) == "mnemo: targets: expected ids from 0 to 49, got -1");
    CHECK(error_of([&] {
              model->log_prob_target(at::zeros({2, 16}), at::zeros({3}, at::kLong));
          }).find("targets:") != std::string::npos);
    CHECK(error_of([&] { model->forward(at::zeros({0, 3}, at::kLong)); }).find("tokens:") != std::string::npos);
    const auto learned = made(small().learned_positions(true));
    CHECK(error_of([&] { learned->forward(ids(1, 21)); }) ==
          "mnemo: tokens: expected at most 20 in a row (max_target_positions), got 21");
    CHECK(made(small())->forward(ids(1, 30)).size(1) == 30); // sinusoids go on
}

TEST_CASE("gradients are those of the loss") {
    for (const auto& [name, options] : variants()) {
        INFO(name);
        const auto model = made(options);
        const at::Tensor tokens = ids(2, 8), targets = ids(2, 8, 0);
        model->loss(tokens, targets).backward();
        const at::NoGradGuard no_grad;
        for (const auto& item : model->named_parameters()) {
            // Along the gradient's direction the slope is its norm.
            INFO(item.key());
            REQUIRE(item.value().grad().defined());
            const double h = 3e-3, norm = item.value().grad().norm().item<double>();
            const at::Tensor step = item.value().grad() * (h / std::max(norm, 1e-6));
            item.value().add_(step);
            const double up = model->loss(tokens, targets).item<double>();
            item.value().sub_(step, 2);
            const double down = model->loss(tokens, targets).item<double>();
            item.value().add_(step);
            CHECK((up - down) / (2 * h) == Approx(norm).epsilon(0.02).margin(1e-3));
        }
    }
}

TEST_CASE("a model is saved and read back") {
    const at::NoGradGuard no_grad;
    const ModelFolder folder("test_model");
    const at::Tensor tokens = ids(2, 9);
    for (const auto& [name, options] : variants()) {
        INFO(name);
        const auto model = made(options);
        save_transformer_lm(*model, folder.path);
        torch::manual_seed(8);
        const auto same = load_transformer_lm(folder.path);
        CHECK(at::equal(same->forward(tokens), model->forward(tokens)));
        CHECK(fairseq_config(same->options()) == fairseq_config(model->options()));
        CHECK(!same->is_training());
    }
}

TEST_CASE("old and repeated names are read") {
    const at::NoGradGuard no_grad;
    const ModelFolder folder("test_old_model");
    const auto model = made(small());
    save_transformer_lm(*model, folder.path);
    const auto file = mnemo::SafeTensors::open(folder.path + "/model.safetensors");
    const auto write = [&](const std::string& name, auto&& change) {
        std::vector<mnemo::Entry> entries = file.entries();
        change(entries);
        mnemo::write_safetensors(folder.path + "/" + name, entries);
    };
    const auto rename = [](std::vector<mnemo::Entry>& entries, const std::string& from, const std::string& to) {
        for (auto& e : entries)
            if (const auto at = e.name.find(from); at != e.name.npos) e.name.replace(at, from.size(), to);
    };
    std::vector<std::vector<float>> stacked;
    stacked.reserve(4);
    write("old.safetensors", [&](auto& entries) {
        rename(entries, ".self_attn_layer_norm.", ".layer_norms.0.");
        rename(entries, ".final_layer_norm.", ".layer_norms.2.");
        for (const std::string layer : {"decoder.layers.0.self_attn.", "decoder.layers.1.self_attn."})
            for (const std::string part : {"weight", "bias"}) {
                stacked.emplace_back();
                auto shape = file.at(layer + "q_proj." + part).shape;
                shape[0] *= 3;
                for (const std::string which : {"q_proj.", "k_proj.", "v_proj."}) {
                    const auto values = file.template values<float>(layer + which + part);
                    stacked.back().insert(stacked.back().end(), values.begin(), values.end());
                    std::erase_if(entries, [&](const auto& e) { return e.name == layer + which + part; });
                }
                entries.push_back(mnemo::tensor_entry(layer + "in_proj_" + part, shape, stacked.back()));
            }
    });
    const auto loads = [&](const std::string& name) {
        auto other = made(small());
        for (const auto& p : other->parameters()) p.zero_();
        load_weights(*other, mnemo::SafeTensors::open(folder.path + "/" + name));
        return at::equal(other->forward(ids(1, 5)), model->forward(ids(1, 5)));
    };
    CHECK(loads("old.safetensors"));
    const auto tied = file.at("decoder.embed_tokens.weight");
    write("alias.safetensors", [&](auto& entries) {
        entries.push_back({"decoder.output_projection.weight", tied.dtype, tied.shape, tied.bytes});
    });
    CHECK(loads("alias.safetensors"));
    auto other = file.values<float>("decoder.embed_tokens.weight");
    other[3] += 1;
    write("wrong.safetensors", [&](auto& entries) {
        entries.push_back(mnemo::tensor_entry("decoder.output_projection.weight", tied.shape, other));
    });
    CHECK(error_of([&] { loads("wrong.safetensors"); }) ==
          "mnemo: test_old_model/wrong.safetensors: tensor \"decoder.output_projection.weight\": expected the same as "
          "the tied embedding, got other values");
    write("unknown.safetensors", [&](auto& entries) { entries.push_back({"decoder.extra", "F32", {0}, {}}); });
    CHECK(error_of([&] { loads("unknown.safetensors"); }) ==
          "mnemo: test_old_model/unknown.safetensors: tensor \"decoder.extra\": the model of this config has none of "
          "that name");
    write("missing.safetensors", [&](auto& entries) { rename(entries, "layers.1.fc1.bias", "layers.1.fc1.bios"); });
    CHECK(error_of([&] { loads("missing.safetensors"); }).find("expected a tensor \"decoder.layers.1.fc1.bias\"") !=
          std::string::npos);
    write("shape.safetensors", [&](auto& entries) {
        for (auto& e : entries)
            if (e.name == "decoder.layers.0.fc1.weight") e.shape = {16, 24};
    });
    CHECK(error_of([&] { loads("shape.safetensors"); }) ==
          "mnemo: test_old_model/shape.safetensors: tensor \"decoder.layers.0.fc1.weight\": expected shape [24, 16], "
          "got [16, 24]");
}

TEST_CASE("versions up to 2 have no final norm") {
    const at::NoGradGuard no_grad;
    const ModelFolder folder("test_version");
    const auto expected = made(small().final_norm(false));
    save_transformer_lm(*made(small()), folder.path); // its config asks for the norm
    const std::string path = folder.path + "/model.safetensors";
    const auto file = mnemo::SafeTensors::open(path);
    for (const float version : {1.0f, 2.0f, 0.0f}) { // 0: written before there were versions
        std::vector<mnemo::Entry> entries = file.entries();
        std::erase_if(entries, [](const mnemo::Entry& e) {
            return e.name.find("decoder.layer_norm") == 0 || e.name == "decoder.version";
        });
        const std::vector<float> values{version};
        if (version > 0) entries.push_back(mnemo::tensor_entry("decoder.version", {1}, values));
        mnemo::write_safetensors(path, entries);
        const auto model = load_transformer_lm(folder.path);
        CHECK(!model->options().final_norm());
        CHECK(at::equal(model->forward(ids(2, 5)), expected->forward(ids(2, 5))));
    }
}

TEST_CASE("configs are honoured or refused by name") {
    const ModelFolder folder("test_config"), changed("test_config_changed");
    save_transformer_lm(*made(small()), folder.path);
    const auto loading = [&](const std::string& text, const std::string& by) {
        copy_config(folder.path, changed.path, text, by);
        return error_of([&] { load_transformer_lm(changed.path); });
    };
    const std::string where = "mnemo: test_config_changed/config.json: ";
    CHECK(loading("\"pad\": 1", "\"pad\": 1, \"tokens_per_sample\": 99, \"arch\": \"any\"") == "");
    CHECK(
        loading("\"pad\": 1", "\"pad\": 1, \"quant_noise_pq\": 0.1").find(where + "unknown field \"quant_noise_pq\"") ==
        0);
    CHECK(loading("\"pad\": 1", "\"pad\": \"1\"") == where + "pad: expected an integer, got \"\"1\"\"");
    CHECK(loading("\"vocab_size\": 50,", "") == where + "the field \"vocab_size\" is missing");
    CHECK(loading("fairseq_transformer_lm", "gpt2") ==
          where + "model_type: expected \"fairseq_transformer_lm\", got \"\"gpt2\"\"");
    CHECK(loading("\"pad\": 1", "\"pad\": 1, \"character_embeddings\": true") ==
          where + "character_embeddings: expected false, got \"true\"");
    CHECK(loading("\"relu\"", "\"swish\"") ==
          "mnemo: activation_fn: expected relu, gelu, gelu_accurate, gelu_fast, tanh or linear, got 'swish'");
    CHECK(loading("\"decoder_attention_heads\": 4", "\"decoder_attention_heads\": 5") ==
          "mnemo: decoder_attention_heads: expected a divisor of decoder_embed_dim 16, got 5");
    CHECK(loading("\"adaptive_softmax_cutoff\": null", "\"adaptive_softmax_cutoff\": \"10,x\"") ==
          where + "adaptive_softmax_cutoff: expected ids as \"20000,60000\", got \"\"10,x\"\"");
    // Sizes of a config are compared with the file before anything is allocated.
    CHECK(loading("\"decoder_layers\": 2", "\"decoder_layers\": 2000000000").find("parameters for this config") !=
          std::string::npos);
    CHECK(loading("\"decoder_layers\": 2", "\"decoder_layers\": 3").find("parameters for this config") !=
          std::string::npos);
    CHECK(loading("\"decoder_layers\": 2", "\"decoder_layers\": 1").find("none of that name") != std::string::npos);
    CHECK(loading("{", "[").find(where + "not JSON") == 0);
    CHECK(loading("\"pad\": 1", "\"pad\": 1, \"pad\": 2") == where + "the name \"pad\" occurs twice");
    CHECK(loading("\"pad\": 1", "\"pad\": -1") == where + "pad: expected at least 0, got \"-1\"");
    CHECK(error_of([] { load_transformer_lm("no_such_folder"); }).find("no_such_folder/config.json") !=
          std::string::npos);

    const auto making = [](const Options& options) { return error_of([&] { TransformerLm model(options); }); };
    CHECK(making(adaptive().adaptive_input_factor(8).input_dim(16)) ==
          "mnemo: adaptive factor: band 2 would have embeddings of width 0 (16 / 8^2)");
    CHECK(making(adaptive().adaptive_input_cutoff({30, 10})).find("mnemo: adaptive cutoffs:") == 0);
    CHECK(making(adaptive().adaptive_input_cutoff({60})).find("mnemo: adaptive cutoffs:") == 0);
    CHECK(making(adaptive().tie_adaptive_proj(true)) ==
          "mnemo: tie_adaptive_proj: expected tie_adaptive_weights with it");
    CHECK(making(small().tie_adaptive_weights(true)) ==
          "mnemo: tie_adaptive_weights: expected adaptive_input and adaptive_softmax_cutoff with it");
    CHECK(making(small().output_dim(8)).find("mnemo: share_decoder_input_output_embed:") == 0);
    CHECK(making(small().vocab_size(0)) == "mnemo: vocab_size: expected at least 1, got 0");
}

TEST_CASE("several threads read one model") {
    const auto model = made(adaptive().tie_adaptive_weights(true));
    const at::Tensor tokens = ids(2, 7);
    const auto read = [&](at::Tensor& out) {
        const c10::InferenceMode inference;
        for (int i = 0; i < 20; ++i) out = model->log_prob_all(model->forward(tokens));
    };
    at::Tensor a, b, c;
    read(c);
    std::thread first([&] { read(a); }), second([&] { read(b); });
    first.join(), second.join();
    CHECK(at::equal(a, c));
    CHECK(at::equal(b, c));
}
