// SPDX-License-Identifier: MIT
#include "../folder.hpp"
#include <error_of.hpp>
#include <mnemo/nn/batch_host.hpp>
#include <mnemo/nn/hugging_face_lm.hpp>
#include <mnemo/nn/pema_offsite.hpp>
#include <mnemo/store/tokens.hpp>

#include <catch.hpp>

#include <ATen/ops/randn_like.h>
#include <torch/utils.h>

#include <cstdlib>
#include <filesystem>

namespace {

using namespace mnemo;
using namespace mnemo::nn;

constexpr std::int32_t kEnd = 2;

TransformerLm offsite_model() {
    torch::manual_seed(5);
    TransformerLm model(TransformerLmOptions().vocab_size(23).dim(16).ffn_dim(32).layers(2).heads(2).max_positions(40));
    const at::NoGradGuard no_grad;
    for (at::Tensor& p : model->parameters())
        p.mul_(3).add_(0.1 * at::randn_like(p)); // decided texts, norms that differ
    return model;
}
const std::vector<std::vector<std::int32_t>> kPrompts{{4, 5, 6}, {7}, {8, 9, 10, 11, 12}, {13, 14}, {4, 4}};
const std::vector<std::vector<std::int32_t>> kTargets{{5, 6, 7}, {9, 9}, {3}, {}, {20, 21, 22, 19, 18, 17, 16}};
const std::vector<index_t> kLengths{12, 9, 15, 8, 8};

Pema<> memory_of(const TransformerLm& model, const FrozenHead& head) {
    torch::manual_seed(6);
    PemaAdapter adapter(PemaAdapterOptions().dim(16).rank(4));
    const at::NoGradGuard no_grad;
    adapter->lora_B.normal_();
    (void)model;
    return pema_memory(adapter, head);
}

} // namespace

TEST_CASE("a model's batches say what it says to one prompt, and beams go on where they were told to") {
    const TransformerLm model = offsite_model();
    const FrozenHead head = exported_head(model, ExportedNorm::last);
    CHECK(head.norm_name == "decoder.layer_norm");
    CHECK(exported_head(model, ExportedNorm::before_last_feed_forward).norm_name ==
          "decoder.layers.1.final_layer_norm");
    CHECK(head.output.data_ptr<float>() == output_matrix(model).data_ptr<float>()); // shared
    BatchHost host(model);
    const Pema<> memory = memory_of(model, head);
    PemaDecoding options;
    options.max_tokens = 12, options.end = kEnd;
    const PemaOutput together = pema_generate(memory, host, kPrompts, kLengths, options);
    for (std::size_t i = 0; i < kPrompts.size(); ++i) {
        const auto one = std::span(kPrompts).subspan(i, 1);
        const PemaOutput alone = pema_generate(memory, host, one, std::span(kLengths).subspan(i, 1), options);
        CHECK(alone.tokens[0] == together.tokens[i]);
        CHECK(alone.log_p[0] == Approx(together.log_p[i]).margin(1e-3));
    }
    options.beams = 4, options.length_power = 0;
    const PemaOutput beams = pema_generate(memory, host, kPrompts, kLengths, options);
    for (std::size_t i = 0; i < kPrompts.size(); ++i) {
        // The score that the search believes is the score of the text when it is read anew.
        double log_p = 0;
        auto text = kPrompts[i];
        for (std::size_t step = 0; step < beams.tokens[i].size(); ++step) {
            const BatchStates states = host.start(PromptBatch(std::vector<std::vector<std::int32_t>>{text}, 1));
            Matrix row(1, host.vocab_size());
            host.logits(states.head_in, row);
            log_softmax(row[0]);
            const std::vector<index_t> steps{static_cast<index_t>(step)}, length{kLengths[i]};
            memory.read(states.states, PositionedLogProbs{row, steps, length});
            log_p += double{row[0][static_cast<std::size_t>(beams.tokens[i][step])]};
            text.push_back(beams.tokens[i][step]);
        }
        CHECK(beams.log_p[i] == Approx(log_p).margin(1e-3));
    }
}

TEST_CASE("states before the final norm, with the targets' words or the model's own") {
    const TransformerLm model = offsite_model();
    BatchHost host(model);
    std::vector<PemaExample> examples;
    for (std::size_t i = 0; i < kPrompts.size(); ++i) examples.push_back({kPrompts[i], kTargets[i]});
    TokenStore<float> forced(16);
    PemaBuilding options;
    options.contexts = PemaContexts::teacher_forced;
    build_pema_memory(host, examples, forced, options);
    const c10::InferenceMode inference;
    index_t row = 0;
    for (const PemaExample& e : examples)
        for (std::size_t i = 0; i < e.target.size(); ++i) {
            std::vector<std::int64_t> text(e.prompt.begin(), e.prompt.end());
            text.insert(text.end(), e.target.begin(), e.target.begin() + static_cast<std::ptrdiff_t>(i));
            const auto n = static_cast<std::int64_t>(text.size());
            const at::Tensor c =
                model->states(at::from_blob(text.data(), {1, n}, at::kLong), {Tap{Tap::hidden, 2}})[0][0][n - 1];
            std::vector<float> key(16);
            KeyRows(forced.keys()).read(row, key);
            CHECK((at::from_blob(key.data(), {16}, at::kFloat) - c).abs().max().item<double>() <
                  1e-5 * (1 + c.abs().max().item<double>()));
            CHECK(forced.value(row++) == e.target[i]);
        }
    CHECK(row == forced.size());
}

TEST_CASE("a build that is interrupted goes on with the same result") {
    const TransformerLm model = offsite_model();
    BatchHost host(model);
    const Folder folder;
    std::vector<PemaExample> examples;
    for (std::size_t i = 0; i < kPrompts.size(); ++i) examples.push_back({kPrompts[i], kTargets[i]});
    PemaBuilding options;
    options.batch = 2;
    const Fingerprint print{.model_hash = "m", .key_dim = 16, .vocab_size = 23};
    CHECK(build_pema_memory_in(folder / "whole", print, host, examples, options) == 13);
    struct Interrupted {};
    try {
        build_pema_memory_in(folder / "parts", print, host, examples, options, [](index_t done, index_t) {
            if (done == 4) throw Interrupted();
        });
    } catch (const Interrupted&) {
    }
    index_t batches = 0;
    CHECK(build_pema_memory_in(folder / "parts", print, host, examples, options,
                               [&](index_t, index_t) { ++batches; }) == 13);
    CHECK(batches == 1);
    const Datastore whole = Datastore::open(folder / "whole"), parts = Datastore::open(folder / "parts");
    REQUIRE(parts.size() == whole.size());
    CHECK(std::memcmp(whole.keys().data, parts.keys().data, static_cast<std::size_t>(whole.size()) * 16 * 4) == 0);
    for (index_t id = 0; id < whole.size(); ++id) CHECK(whole.value(id) == parts.value(id));
    CHECK_THAT(error_of([&] {
                   (void)build_pema_memory_in(folder / "parts", {.model_hash = "other", .key_dim = 16}, host, examples,
                                              options);
               }),
               Catch::Contains("belongs to another host"));
}

TEST_CASE("padding moves no position of a hub's model: a row of a batch is the row alone") {
    using Positions = HuggingFaceOptions::Positions;
    for (const Positions kind : {Positions::learned, Positions::learned_by_mask, Positions::rotary}) {
        HuggingFaceOptions o;
        o.model_type = "any", o.vocab_size = 23, o.dim = o.input_dim = 16, o.ffn_dim = 32, o.layers = 2;
        o.heads = o.kv_heads = 2, o.head_dim = 8, o.max_positions = 7, o.positions = kind; // as long as a text gets
        torch::manual_seed(8);
        BatchHost host(HuggingFaceLm(o, [](const std::string&, at::IntArrayRef shape) { return at::randn(shape); }));
        const std::vector<std::int32_t> next{4, 5, 6, 7, 8};
        const auto values = [](Rows rows, index_t row) {
            return std::vector<float>(rows[row].begin(), rows[row].end());
        };
        std::vector<std::vector<float>> together, after;
        const BatchStates first = host.start(PromptBatch(kPrompts, 1));
        for (index_t i = 0; i < 5; ++i) together.push_back(values(first.states, i));
        const BatchStates second = host.next(next);
        for (index_t i = 0; i < 5; ++i) after.push_back(values(second.states, i));
        for (std::size_t i = 0; i < 5; ++i) {
            const auto same = [&](Rows got, const std::vector<float>& expected) {
                for (std::size_t j = 0; j < expected.size(); ++j)
                    CHECK(got[0][j] == Approx(expected[j]).epsilon(1e-4).margin(1e-4));
            };
            same(host.start(PromptBatch(std::span(kPrompts).subspan(i, 1), 1)).states, together[i]);
            same(host.next(std::span(next).subspan(i, 1)).states, after[i]);
        }
    }
}

TEST_CASE("what crosses between the parties is what one of them alone would have made") {
    const TransformerLm model = offsite_model();
    BatchHost host(model);
    const Folder folder;
    const FrozenHead head = exported_head(model, ExportedNorm::last);
    save_head(folder / "head.safetensors", head, "tokens", kEnd, 1);
    export_states(folder / "states", {.model_hash = "m", .key_dim = 16, .vocab_size = 23}, host, kPrompts, 9);

    const HeadFile file = load_head(folder / "head.safetensors");
    CHECK(at::equal(file.head.output, head.output.detach()));
    CHECK(at::equal(file.head.norm_bias, head.norm_bias));
    CHECK(file.end == kEnd);
    CHECK(file.hash == head_hash(head));
    TokenStore<float> paired(16), direct(16);
    CHECK(pair_states(Datastore::open(folder / "states"), kTargets, paired) == 13);
    std::vector<PemaExample> examples;
    for (std::size_t i = 0; i < kPrompts.size(); ++i) examples.push_back({kPrompts[i], kTargets[i]});
    build_pema_memory(host, examples, direct);
    REQUIRE(direct.size() == 13);
    for (index_t id = 0; id < 13; ++id) CHECK(direct.value(id) == paired.value(id));
    const KeyRows a = direct.keys(), b = paired.keys();
    CHECK(std::memcmp(a.data, b.data, 13 * 16 * 4) == 0);
    CHECK_THAT(error_of([&] {
                   TokenStore<float> none(16);
                   (void)pair_states(Datastore::open(folder / "states"), std::span(kTargets).first(4), none);
               }),
               Catch::Contains("expected the states of 4 prompts"));

    PemaAdapter adapter(PemaAdapterOptions().dim(16).rank(4));
    save_adapter(folder / "adapter.safetensors", adapter, adapter_metadata(file.head));
    CHECK(at::equal(load_adapter_for(folder / "adapter.safetensors", head)->lora_A, adapter->lora_A));
    CHECK_THAT(error_of([&] {
                   (void)load_adapter_for(folder / "adapter.safetensors",
                                          exported_head(model, ExportedNorm::before_last_feed_forward));
               }),
               Catch::Contains("head_hash: expected"));
    // A file that was changed on its way.
    std::string bytes = read_file(folder / "head.safetensors");
    bytes[bytes.size() - 3] = static_cast<char>(bytes[bytes.size() - 3] ^ 1);
    atomic_write(folder / "head.safetensors", bytes);
    CHECK_THAT(error_of([&] { (void)load_head(folder / "head.safetensors"); }), Catch::Contains("hash: expected"));
}
