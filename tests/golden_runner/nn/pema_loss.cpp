// SPDX-License-Identifier: MIT
#include "tensors.hpp"

#include <mnemo/nn/pema_train.hpp>

namespace {

using namespace mnemo;
using golden::Check;
using golden::Fixture;
using golden::floats_of;
using golden::Tolerance;

constexpr Tolerance kTrained{2e-5, 2e-5};

nn::PemaAdapter adapter_in(const Fixture& fixture) {
    return nn::PemaAdapter(nn::PemaAdapterOptions()
                               .dim(fixture.integer("d"))
                               .rank(fixture.integer("rank"))
                               .scale(fixture.number("scaling"))
                               .dropout(fixture.number("dropout")));
}
nn::PemaTrainOptions options_in(const Fixture& fixture, nn::PemaPhase phase) {
    nn::PemaTrainOptions o;
    o.phase = phase, o.learning_rate = fixture.number("lr"), o.epsilon = fixture.number("eps");
    o.beta1 = fixture.number("beta1"), o.beta2 = fixture.number("beta2");
    o.rows_at_a_time = 3; // several pieces, the last one short
    if (fixture.number("weight_decay") != 0) fail("weight_decay: expected 0");
    return o;
}
void assign(const at::Tensor& parameter, const at::Tensor& values) {
    const at::NoGradGuard no_grad;
    if (parameter.sizes() != values.sizes()) fail("the shapes of an adapter differ");
    parameter.copy_(values);
}

/// Steps with the fixture's multipliers in place of dropout, compared after each.
void steps(const Fixture& fixture, Check& check, const nn::PemaAdapter& adapter, const nn::FrozenHead& head,
           const nn::PemaTrainOptions& options, const std::string& b_name, auto&& after_step) {
    const bool joint = options.phase == nn::PemaPhase::joint;
    const at::Tensor b = joint ? adapter->lora_B : adapter->lora_B_rct;
    nn::PemaGradients gradients(adapter, &head);
    nn::AdamMoments of_a(adapter->lora_A), of_b(b);
    for (index_t i = 0; i < fixture.integer("steps"); ++i) {
        const auto step = [&](const std::string& name) { return text(name, ".", i); };
        const at::Tensor c = tensor_of(fixture, step("in.c"));
        const std::vector<std::int32_t> targets =
            joint ? fixture.tokens(step("in.target")) : std::vector<std::int32_t>();
        const at::Tensor by[] = {tensor_of(fixture, step(joint ? "in.dropmul_pd" : "in.dropmul")),
                                 tensor_of(fixture, step(joint ? "in.dropmul_rct" : "in.dropmul"))};
        const auto losses = gradients.compute(options, c, targets, true,
                                              [&](int draw, index_t first, const at::Tensor& x, at::Tensor& out) {
                                                  at::mul_out(out, x, by[draw].narrow(0, first, x.size(0)));
                                              });
        const auto one = [&](const std::string& name, double got) {
            check.close(step(name), std::vector<double>{got}, kTrained);
        };
        one("out.loss", losses.total(options.phase, options.kappa));
        if (joint) one("out.loss_rct", losses.reconstruction), one("out.loss_pd", losses.prediction);
        check.close(step("grad.lora_A"), floats_of(gradients.a), kTrained);
        check.close(step("grad." + b_name), floats_of(gradients.b), kTrained);
        of_a.step(adapter->lora_A, gradients.a, options, i + 1);
        of_b.step(b, gradients.b, options, i + 1);
        check.close(step("out.lora_A"), floats_of(adapter->lora_A), kTrained);
        check.close(step("out." + b_name), floats_of(b), kTrained);
        after_step(i, gradients);
    }
    check.close("out.adam_m.lora_A", floats_of(of_a.mean), kTrained);
    check.close("out.adam_v.lora_A", floats_of(of_a.square), kTrained);
    check.close("out.adam_m." + b_name, floats_of(of_b.mean), kTrained);
    check.close("out.adam_v." + b_name, floats_of(of_b.square), kTrained);
}

} // namespace

GOLDEN("pema.loss_rct") {
    const nn::PemaAdapter adapter = adapter_in(fixture);
    assign(adapter->lora_A, tensor_of(fixture, "w.lora_A"));
    assign(adapter->lora_B_rct, tensor_of(fixture, "w.lora_B"));
    const auto options = options_in(fixture, nn::PemaPhase::reconstruct);
    const at::Tensor held_out = tensor_of(fixture, "in.c_valid");
    steps(fixture, check, adapter, {}, options, "lora_B", [&](index_t step, nn::PemaGradients& gradients) {
        if (step != 0) return;
        double sum = 0;
        const auto parts = held_out.split(fixture.integer("valid_batch_size"));
        for (const at::Tensor& part : parts)
            sum += gradients.compute(options, part.contiguous(), {}, false, {}).reconstruction;
        const double mean = sum / static_cast<double>(parts.size());
        check.close("out.valid_loss_mean", std::vector<double>{mean}, kTrained);
        const std::string name = nn::pema_checkpoint_name(nn::PemaPhase::reconstruct, step, mean) + ".pt";
        check.that("out.valid_loss_mean", name == fixture.text("saved"),
                   "the file name " + fixture.text("saved") + ", got " + name);
    });
}

GOLDEN("pema.loss_joint") {
    const nn::PemaAdapter adapter = adapter_in(fixture);
    assign(adapter->lora_A, tensor_of(fixture, "w.lora_A"));
    assign(adapter->lora_B, tensor_of(fixture, "w.lora_B_pd"));
    assign(adapter->lora_B_rct, tensor_of(fixture, "w.lora_B_rct"));
    const nn::FrozenHead head{tensor_of(fixture, "w.lm_head"), tensor_of(fixture, "w.ln_weight"),
                              tensor_of(fixture, "w.ln_bias"), fixture.number("ln_eps"), ""};
    expect_equal("V", head.vocab_size(), fixture.integer("V"));
    auto options = options_in(fixture, nn::PemaPhase::joint);
    options.kappa = fixture.number("kappa");
    steps(fixture, check, adapter, head, options, "lora_B_pd", [](index_t, nn::PemaGradients&) {});
    check.that("w.lora_B_rct", at::equal(adapter->lora_B_rct, tensor_of(fixture, "w.lora_B_rct")),
               "the frozen map unchanged");
}
