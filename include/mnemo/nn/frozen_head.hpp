// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/kernels/layer_norm.hpp>
#include <mnemo/kernels/log_sum_exp.hpp>
#include <mnemo/nn/tensor.hpp>

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace mnemo::nn {

/// A host's output head as it stands: a norm and the output matrix, neither of which is trained. The matrix is the
/// host's tensor, not a copy of it.
struct FrozenHead {
    at::Tensor output;                 // Float [vocab, d]
    at::Tensor norm_weight, norm_bias; // Float [d]; both undefined: no norm
    double epsilon = 1e-5;
    std::string norm_name;    // which of the host's norms this is, for whoever stores what was trained with it
    at::Tensor output_half{}; // BFloat16 [vocab, d], see with_bfloat16

    std::int64_t vocab_size() const { return output.size(0); }
    std::int64_t dim() const { return output.size(1); }
    /// Throws Error for tensors that make no head of width `d`.
    void check(std::int64_t d) const {
        if (!output.defined() || output.dim() != 2 || output.size(1) != d || output.scalar_type() != at::kFloat ||
            output.size(0) < 1)
            fail("frozen head: output: expected Float [vocab, ", d, "], got ", describe(output));
        if (norm_weight.defined() != norm_bias.defined())
            fail("frozen head: expected a norm with weight and bias, or none");
        for (const at::Tensor& t : {norm_weight, norm_bias})
            if (t.defined() && (t.dim() != 1 || t.size(0) != d || t.scalar_type() != at::kFloat))
                fail("frozen head: norm: expected Float [", d, "], got ", describe(t));
    }
    /// With a copy of the matrix in 16 bits, by which losses take half the time and less exact products: about 1e-2 of
    /// a loss.
    FrozenHead with_bfloat16() const {
        FrozenHead copy = *this;
        copy.output_half = output.detach().to(at::kBFloat16);
        return copy;
    }
    at::Tensor norm(const at::Tensor& y) const {
        return norm_weight.defined() ? at::layer_norm(y, {dim()}, norm_weight, norm_bias, epsilon) : y;
    }
    /// [n, d] -> log-probabilities [n, vocab].
    at::Tensor log_probs(const at::Tensor& y) const { return at::log_softmax(at::linear(norm(y), output), -1); }

    /// The norm and the matrix for those who work on spans; the matrix is borrowed.
    LayerNorm plain_norm() const {
        const auto values = [](const at::Tensor& t) {
            if (!t.defined()) return std::vector<float>();
            const at::Tensor c = t.detach().to(at::kCPU).contiguous();
            return std::vector<float>(c.data_ptr<float>(), c.data_ptr<float>() + c.numel());
        };
        return {values(norm_weight), values(norm_bias), static_cast<float>(epsilon)};
    }
    KeyRows plain_output() const {
        const at::NoGradGuard no_grad;
        return as_rows(output.detach());
    }
};

/// Memory of head_loss that is kept from call to call.
struct HeadLossBuffers {
    at::Tensor logits;           // Float [rows_at_a_time, vocab]
    at::Tensor half, half_state; // BFloat16, the same and [rows_at_a_time, d]
    /// The first rows of a buffer [at least rows, cols].
    static at::Tensor room(at::Tensor& t, std::int64_t rows, std::int64_t cols, at::ScalarType type) {
        if (!t.defined() || t.size(0) < rows || t.size(1) != cols) t = at::empty({rows, cols}, type);
        return t.narrow(0, 0, rows);
    }
};

/// Sum of -log softmax(h output^T)[target] over the rows of h [n, d], after the head's norm; and, if `gradient` [n, d]
/// is defined, `scale` times its derivative by h into that. Logits exist for `rows_at_a_time` rows: each piece is
/// computed, turned into its gradient in place and multiplied with the matrix again. The matrix gets no gradient.
inline double head_loss(const FrozenHead& head, const at::Tensor& h, std::span<const std::int32_t> targets,
                        const at::Tensor& gradient = {}, double scale = 1, std::int64_t rows_at_a_time = 256,
                        HeadLossBuffers* buffers = nullptr) {
    const at::NoGradGuard no_grad;
    const std::int64_t n = h.size(0), vocab = head.vocab_size();
    expect_equal<index_t>("head loss: targets", static_cast<index_t>(targets.size()), n);
    for (std::size_t i = 0; i < targets.size(); ++i)
        if (targets[i] < 0 || targets[i] >= vocab)
            fail("head loss: target of row ", i, ": expected a token below ", vocab, ", got ", targets[i]);
    const bool half = head.output_half.defined();
    const at::Tensor& w = half ? head.output_half : head.output;
    const std::int64_t step = std::min(n, std::max<std::int64_t>(rows_at_a_time, 1));
    HeadLossBuffers own;
    HeadLossBuffers& kept = buffers != nullptr ? *buffers : own;
    double loss = 0;
    std::vector<float> scales(static_cast<std::size_t>(step));
    for (std::int64_t first = 0; first < n; first += step) {
        const std::int64_t rows = std::min(step, n - first);
        const at::Tensor in = h.narrow(0, first, rows);
        at::Tensor logits = HeadLossBuffers::room(kept.logits, rows, vocab, at::kFloat), small;
        if (half) {
            small = HeadLossBuffers::room(kept.half, rows, vocab, at::kBFloat16);
            at::mm_out(small, in.to(at::kBFloat16), w.t());
            logits.copy_(small);
        } else {
            at::mm_out(logits, in, w.t());
        }
        const MutRows view = as_mut_rows(logits);
        for (std::int64_t i = 0; i < rows; ++i) {
            const std::span<float> row = view[i];
            const auto target = static_cast<std::size_t>(targets[static_cast<std::size_t>(first + i)]);
            const float high = max_value(row);
            const double of_target = double{row[target]} - double{high};
            const double sum =
                exp_sum(row, high, 1, gradient.defined() ? row : std::span<float>()); // each term over its logit
            loss += std::log(sum) - of_target;
            if (!gradient.defined()) continue;
            row[target] -= static_cast<float>(sum); // (softmax - one-hot) * sum
            scales[static_cast<std::size_t>(i)] = static_cast<float>(scale / sum);
        }
        if (!gradient.defined()) continue;
        at::Tensor out = gradient.narrow(0, first, rows);
        if (half) {
            small.copy_(logits);
            at::Tensor state = HeadLossBuffers::room(kept.half_state, rows, head.dim(), at::kBFloat16);
            at::mm_out(state, small, w);
            out.copy_(state);
        } else {
            at::mm_out(out, logits, w);
        }
        out.mul_(at::from_blob(scales.data(), {rows, 1}, at::kFloat));
    }
    return loss;
}

namespace detail {
struct HeadLossFunction : torch::autograd::Function<HeadLossFunction> {
    static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& h, const FrozenHead& head,
                              std::span<const std::int32_t> targets, std::int64_t rows_at_a_time) {
        const at::Tensor gradient = h.requires_grad() ? at::empty(h.sizes(), h.options()) : at::Tensor();
        const double n = static_cast<double>(h.size(0));
        const double loss = head_loss(head, h.detach(), targets, gradient, 1 / n, rows_at_a_time) / n;
        context->save_for_backward({gradient});
        return at::full({}, loss, h.options());
    }
    static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                   const torch::autograd::variable_list& gradients) {
        return {context->get_saved_variables()[0] * gradients[0], {}, {}, {}};
    }
};
} // namespace detail

/// Mean cross-entropy of y [n, d] under the head, norm included, with the gradient by y alone.
inline at::Tensor head_cross_entropy(const FrozenHead& head, const at::Tensor& y, std::span<const std::int32_t> targets,
                                     std::int64_t rows_at_a_time = 256) {
    head.check(y.size(1));
    if (y.size(0) == 0) fail("head loss: expected at least one row");
    return detail::HeadLossFunction::apply(head.norm(y).contiguous(), head, targets, rows_at_a_time);
}

} // namespace mnemo::nn
