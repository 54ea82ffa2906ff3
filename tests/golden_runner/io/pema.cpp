// SPDX-License-Identifier: MIT
#include "golden.hpp"

#include <mnemo/combine/head.hpp>
#include <mnemo/combine/interpolate.hpp>
#include <mnemo/combine/schedule.hpp>
#include <mnemo/core/session.hpp>
#include <mnemo/extract/last_hidden.hpp>
#include <mnemo/kernels/mixture.hpp>
#include <mnemo/retrieve/recite.hpp>
#include <mnemo/store/low_rank.hpp>
#include <mnemo/text/clean_generated.hpp>

namespace {

using namespace mnemo;
using golden::Fixture;
using golden::Tolerance;

constexpr Tolerance kFloat{2e-5, 2e-5}, kHalf{2e-3, 2e-3};

Tolerance tolerance_of(const Fixture& fixture, const std::string& input) {
    return fixture.tensors().at(input).dtype == "F16" ? kHalf : kFloat;
}
LowRankMap map_in(const Fixture& fixture, const std::string& b) {
    LowRankMap map(fixture.matrix("w.lora_A"), fixture.matrix(b), static_cast<float>(fixture.number("scaling")));
    expect_equal("rank", map.rank(), fixture.integer("rank"));
    expect_equal("d", map.key_dim(), fixture.integer("d"));
    return map;
}
LayerNorm norm_in(const Fixture& fixture) {
    return {fixture.floats("w.ln_weight"), fixture.floats("w.ln_bias"), static_cast<float>(fixture.number("ln_eps"))};
}
Matrix normed(const LayerNorm& norm, const Matrix& x) {
    Matrix y(x.rows, x.cols);
    for (index_t i = 0; i < x.rows; ++i) norm(x[i], y[i]);
    return y;
}

} // namespace

GOLDEN("pema.forward") {
    const Matrix c = fixture.matrix("in.c"), head = fixture.matrix("w.lm_head");
    expect_equal("N", c.rows, fixture.integer("N"));
    expect_equal("V", head.rows, fixture.integer("V"));
    const LowRankMap predict = map_in(fixture, "w.lora_B_pd"), reconstruct = map_in(fixture, "w.lora_B_rct");
    const Tolerance tolerance = tolerance_of(fixture, "in.c");
    check.close("out.z", predict.compress(c).data, tolerance);
    check.close("out.y_rct", reconstruct.recite(c).values.data, tolerance);
    const Vectors y = predict.recite(c);
    check.close("out.y_pd", y.values.data, tolerance);
    const HeadEvidence evidence{norm_in(fixture), Rows(head)};
    const Matrix h = normed(evidence.norm, y.values);
    check.close("out.h", h.data, tolerance);
    Matrix logits(c.rows, head.rows);
    head_logits(h, Rows(head), logits);
    check.close("out.logits", logits.data, tolerance);
    // The whole memory with nothing of the base: weight 1.
    const Memory memory(LastHidden{}, predict, Recite{}, Interpolate{evidence, Fixed{1}});
    Matrix log_p(c.rows, head.rows);
    memory.read(Rows(c), MutRows(log_p));
    check.close("out.log_probs", log_p.data, tolerance);
}

GOLDEN("pema.gradual_unrolling") {
    const auto ids = fixture.ids("in.label_ids");
    const index_t batch = fixture.size("in.label_ids", 0), width = fixture.size("in.label_ids", 1);
    expect_equal("B", batch, fixture.integer("B"));
    std::vector<index_t> lengths;
    for (index_t row = 0; row < batch; ++row)
        lengths.push_back(std::count_if(ids.begin() + row * width, ids.begin() + (row + 1) * width,
                                        [](index_t id) { return id >= 2; }));
    check.equal("out.label_len", lengths);
    const GradualUnrolling schedule{.lambda = static_cast<float>(fixture.number("lmbda")),
                                    .min_percent = fixture.number("min_percent"),
                                    .on = fixture.integer("gradual_unrolling") == 1};
    if (std::abs(1 / (1 - schedule.min_percent * 0.01) - fixture.number("gradual_unrolling_min")) > 1e-12)
        fail("gradual_unrolling_min: expected 1 / (1 - min_percent / 100)");
    UnrollingWeights weights(schedule, lengths, UnrollingRows::coupled);
    std::vector<float> lambda, linear;
    std::vector<index_t> active;
    for (index_t step = 0; step < fixture.integer("steps"); ++step, weights.advance()) {
        lambda.insert(lambda.end(), weights.lambda().begin(), weights.lambda().end());
        linear.insert(linear.end(), weights.linear().begin(), weights.linear().end());
        active.push_back(step < width ? 1 : 0);
        // Rows of their own agree until the first of the batch stops.
        for (index_t row = 0; batch == 1 && row < batch; ++row)
            check.that("out.lambda", schedule.weight(step, lengths[0]) == weights.lambda()[0], "the row's own weight");
    }
    check.close("out.lambda", lambda, {1e-6, 1e-6});
    check.close("out.lambda_linear", linear, {1e-6, 1e-6});
    check.equal("out.active", active);
}

GOLDEN("pema.interpolate") {
    const Matrix hidden = fixture.matrix("in.hidden"), base = fixture.matrix("in.base_logits"),
                 head = fixture.matrix("w.lm_head");
    const index_t length = fixture.integer("hidden_len"), batch = fixture.integer("B");
    expect_equal("in.hidden", hidden.rows, batch * length);
    const auto lambda = fixture.floats("in.lambda");
    Matrix newest(batch, hidden.cols), combined = base;
    for (index_t row = 0; row < batch; ++row)
        std::copy_n(hidden[(row + 1) * length - 1].data(), hidden.cols, newest[row].data());
    std::vector<index_t> best;
    if (fixture.integer("labels_left") != 0) {
        const auto weights = [&](const auto& /*base*/, index_t row) { return lambda[static_cast<std::size_t>(row)]; };
        for (index_t row = 0; row < batch; ++row) log_softmax(combined[row]);
        const HeadEvidence evidence{norm_in(fixture), Rows(head)};
        const Memory memory(LastHidden{}, map_in(fixture, "w.lora_B_pd"), Recite{}, Interpolate{evidence, weights});
        memory.read(Rows(newest), MutRows(combined));
        const Matrix h = normed(evidence.norm, memory.recall(Rows(newest)).values);
        Matrix logits(batch, head.rows);
        head_logits(h, evidence.output, logits);
        for (index_t row = 0; row < batch; ++row)
            best.push_back(best_of_mixture(base[row], logits[row], lambda[static_cast<std::size_t>(row)]).token);
    } else { // the reference stops mixing when the label is used up, and hands on the raw logits
        for (index_t row = 0; row < batch; ++row) best.push_back(best_of_mixture(base[row], base[row], 0).token);
    }
    check.close("out.combined", combined.data, tolerance_of(fixture, "in.base_logits"));
    check.equal("out.argmax", best);
}

GOLDEN("pema.postprocess") {
    const auto in = fixture.values<std::uint8_t>("in.text"), out = fixture.values<std::uint8_t>("out.text");
    const std::string cleaned = clean_generated(std::string(in.begin(), in.end()));
    check.that("out.text", cleaned == std::string(out.begin(), out.end()), "the reference's text, got " + cleaned);
    expect_equal("lines", std::count(in.begin(), in.end(), std::uint8_t{'\n'}), fixture.integer("lines"));
}
