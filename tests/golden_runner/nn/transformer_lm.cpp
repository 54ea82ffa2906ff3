// SPDX-License-Identifier: MIT
#include "fairseq_model.hpp"

namespace {

using mnemo::nn::Tap;

std::vector<Tap> all_taps(const mnemo::nn::TransformerLm& model) {
    std::vector<Tap> taps{model->tap("ffn_in"), model->tap("prehead")};
    for (std::int64_t i = 0; i <= model->options().layers(); ++i) taps.push_back({Tap::hidden, i});
    return taps;
}

// The same, one token at a time.
at::Tensor decoded(const mnemo::nn::TransformerLm& model, const at::Tensor& tokens) {
    mnemo::nn::KeyValueCache cache;
    std::vector<at::Tensor> steps;
    for (std::int64_t i = 0; i < tokens.size(1); ++i) steps.push_back(model->forward(tokens.narrow(1, i, 1), &cache));
    return at::cat(steps, 1);
}

} // namespace

GOLDEN("hosts.fairseq_lm") {
    const at::NoGradGuard no_grad;
    const auto model = mnemo::nn::load_transformer_lm((fixture.file().parent_path() / fixture.text("model")).string());
    const at::Tensor tokens = golden::ids_of(fixture, "in.prev_output_tokens");
    const at::Tensor target = golden::ids_of(fixture, "in.target"), real = tokens.ne(model->options().pad());
    const double tolerance = fixture.number("tolerance");
    const auto close = [&](const std::string& name, const at::Tensor& got) {
        golden::close_where(fixture, check, name, got, real, {tolerance, tolerance});
    };
    const auto states = model->states(tokens, all_taps(model));
    const at::Tensor prehead = states[1];
    close("out.knn_key", states[0]);
    close("out.prehead", prehead);
    close("out.prehead", decoded(model, tokens));
    for (std::size_t i = 2; i < states.size(); ++i) close(mnemo::text("out.hidden.", i - 2), states[i]);
    close("out.positions", model->positions(tokens));
    if (fixture.has("out.head_logits")) close("out.head_logits", model->head()->head_logits(prehead));
    close("out.log_probs", model->log_prob_all(prehead));
    const at::Tensor log_p = model->log_prob_target(prehead, target);
    close("out.target_logp", log_p);
    if (fixture.has("out.target_logp_sparse")) close("out.target_logp_sparse", log_p);
}

GOLDEN("knnlm.model") {
    const at::NoGradGuard no_grad;
    const auto model = golden::model_in(fixture);
    const at::Tensor tokens = golden::ids_of(fixture, "in.src_tokens"), target = golden::ids_of(fixture, "in.target");
    const at::Tensor real = tokens.ne(model->options().pad()), scored = target.ne(model->options().pad());
    const golden::Tolerance tolerance{1e-4, 1e-4};
    const auto states = model->states(tokens, all_taps(model));
    const at::Tensor prehead = states[1];
    const auto close = [&](const std::string& name, const at::Tensor& got) {
        golden::close_where(fixture, check, name, got, real, tolerance);
    };
    const auto close_time_major = [&](const std::string& name, const at::Tensor& got) {
        golden::close_where(fixture, check, name, got.transpose(0, 1), real.t(), tolerance);
    };
    close_time_major("out.keys_TBC", states[0]);
    for (std::size_t i = 2; i < states.size(); ++i)
        close_time_major(mnemo::text("out.inner_state_", i - 2, "_TBC"), states[i]);
    close("out.decoder_out", model->adaptive_softmax() ? prehead : model->logits(prehead));
    close("out.lm_logp_full", model->log_prob_all(prehead));
    golden::close_where(fixture, check, "out.lm_logp_target", model->log_prob_target(prehead, target), scored,
                        tolerance);
}
