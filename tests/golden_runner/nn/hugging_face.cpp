// SPDX-License-Identifier: MIT
#include "fairseq_model.hpp"

#include <mnemo/nn/alibi.hpp>
#include <mnemo/nn/hugging_face.hpp>

namespace {

using mnemo::nn::Tap, mnemo::nn::TokenInfo;

TokenInfo narrowed(const TokenInfo& info, std::int64_t column) {
    const auto part = [&](const at::Tensor& t) { return t.defined() ? t.narrow(1, column, 1) : t; };
    return {part(info.mask), part(info.positions), part(info.segments)};
}

void compare(const golden::Fixture& fixture, golden::Check& check) {
    const at::NoGradGuard no_grad;
    const auto model = mnemo::nn::load_hugging_face((fixture.file().parent_path() / fixture.text("model")).string());
    const at::Tensor tokens = golden::ids_of(fixture, "in.input_ids"),
                     mask = golden::ids_of(fixture, "in.attention_mask");
    TokenInfo info;
    if (fixture.integer("mask_passed") != 0) info.mask = mask;
    if (fixture.has("in.position_ids")) info.positions = golden::ids_of(fixture, "in.position_ids");
    if (fixture.has("in.token_type_ids")) info.segments = golden::ids_of(fixture, "in.token_type_ids");
    const std::int64_t layers = model->options().layers;
    if (layers != fixture.integer("layers")) mnemo::fail("expected ", fixture.text("layers"), " layers, got ", layers);

    std::vector<Tap> taps{{Tap::prehead, 0}};
    for (std::int64_t i = 0; i < layers; ++i) taps.push_back({Tap::ffn_in, i});
    for (std::int64_t i = 0; i <= layers; ++i) taps.push_back({Tap::hidden, i});
    const auto states = model->states(tokens, taps, nullptr, info);
    const at::Tensor real = mask.ne(0), logits = model->logits(states[0]);
    const double bound = fixture.number("tolerance"); // "x absolute + x relative"
    const auto close = [&](const std::string& name, const at::Tensor& got) {
        golden::close_where(fixture, check, name, got, real, {bound, bound});
    };
    for (std::size_t i = 1; i < taps.size(); ++i) {
        // The reference's last hidden state is the one after the final norm, where there is one.
        const bool last = taps[i] == Tap{Tap::hidden, layers} && model->causal();
        const auto layer = taps[i].layer;
        close(mnemo::text(taps[i].point == Tap::hidden ? "out.hidden." : "out.ffn_in.", layer), states[last ? 0 : i]);
    }
    close("out.prehead", states[0]);
    close("out.logits", logits);
    close(fixture.text("knn_key"), model->states(tokens, {model->tap("ffn_in")}, nullptr, info)[0]);
    if (!model->causal()) return;
    // The same, one token at a time.
    mnemo::nn::KeyValueCache cache;
    std::vector<at::Tensor> steps;
    for (std::int64_t t = 0; t < tokens.size(1); ++t)
        steps.push_back(model->logits(model->forward(tokens.narrow(1, t, 1), &cache, narrowed(info, t))));
    const at::Tensor difference = (at::cat(steps, 1) - logits).index({real}).abs().max();
    check.that("out.logits", difference.item<double>() <= 1e-5,
               mnemo::text("the same logits to 1e-5 one token at a time, got ", difference.item<double>()));
}

} // namespace

GOLDEN("hosts.gpt2") { compare(fixture, check); }
GOLDEN("hosts.opt") { compare(fixture, check); }
GOLDEN("hosts.bert") { compare(fixture, check); }
GOLDEN("hosts.llama") { compare(fixture, check); }

GOLDEN("hosts.alibi") {
    const at::Tensor mask = golden::ids_of(fixture, "in.attention_mask");
    for (const std::string& heads : fixture.list("heads")) {
        const at::Tensor bias = mnemo::nn::alibi_bias(mask, std::stoll(heads)).contiguous();
        check.close("out.bias." + heads,
                    std::vector<float>(bias.data_ptr<float>(), bias.data_ptr<float>() + bias.numel()),
                    {fixture.number("tolerance"), 0});
    }
}

BAD_FILES("model_folder") {
    std::vector<std::string> unused;
    const auto model = mnemo::nn::load_hugging_face(file.string(), {.unused = &unused});
    if (entry.value("reason", "") == "non_finite") {
        bool refused = false;
        try {
            (void)mnemo::nn::load_hugging_face(file.string(), {.check_finite = true});
        } catch (const mnemo::Error& error) {
            refused = std::string_view(error.what()).find("tensor \"") != std::string_view::npos;
        }
        if (!refused) mnemo::fail(file.string(), ": expected a refusal of its numbers by tensor");
    }
    return {{"unused", unused}, {"parameters", model->parameters().size()}};
}
