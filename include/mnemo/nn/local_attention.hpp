// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/nn/alibi.hpp>

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

namespace mnemo::nn {

/// What is added to the logits of local attention, in two parts, so that no [batch, heads, rows, rows] exists. Neither
/// has a gradient.
struct LocalBias {
    at::Tensor columns; // [1 or batch, 1 or heads, 1, rows], such as ALiBi
    at::Tensor mask;    // [1 or batch, 1, 1 or rows, rows]: 0, or what hides; undefined: nothing is hidden
};

/// ALiBi, and a mask of what comes later and of padding: the lowest number and not -inf, with which a row that sees
/// nothing would be NaN. real [1 or batch, rows]: 0 is padding.
inline LocalBias causal_alibi_bias(const at::Tensor& real, std::int64_t heads, bool hide_padding = true) {
    const std::int64_t rows = real.size(1);
    at::Tensor hidden = at::ones({rows, rows}, real.options().dtype(at::kBool)).triu(1).view({1, 1, rows, rows});
    if (hide_padding) {
        const at::Tensor padding = real.eq(0);
        if (padding.any().item<bool>()) hidden = hidden.logical_or(padding.view({real.size(0), 1, 1, rows}));
    }
    return {alibi_bias(real, heads), at::zeros(hidden.sizes(), real.options().dtype(at::kFloat))
                                         .masked_fill_(hidden, std::numeric_limits<float>::lowest())};
}

namespace detail {

// Heads in blocks, so that a block's logits stay near; they are computed again for the backward pass.
struct LocalAttentionFunction : torch::autograd::Function<LocalAttentionFunction> {
    static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& q, const at::Tensor& k,
                              const at::Tensor& v, const at::Tensor& columns, const at::Tensor& mask,
                              std::int64_t heads, double scale) {
        const Blocks blocks(q, k, v, {columns, mask}, heads, scale);
        const at::Tensor out = at::empty_like(blocks.q);
        blocks.visit([&](std::int64_t b, std::int64_t first, std::int64_t n) {
            at::Tensor to = part(out, b, first, n);
            at::bmm_out(to, blocks.probabilities(b, first, n), part(blocks.v, b, first, n));
        });
        context->save_for_backward({q, k, v, columns, mask});
        context->saved_data["heads"] = heads, context->saved_data["scale"] = scale;
        return merged(out);
    }
    static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                   torch::autograd::variable_list upstream) {
        const auto saved = context->get_saved_variables();
        const std::int64_t heads = context->saved_data["heads"].toInt();
        const double scale = context->saved_data["scale"].toDouble();
        const Blocks blocks(saved[0], saved[1], saved[2], {saved[3], saved[4]}, heads, scale);
        const at::Tensor grad_out = split(upstream[0], heads);
        const at::Tensor dq = at::empty_like(blocks.q), dk = at::empty_like(blocks.q), dv = at::empty_like(blocks.q);
        blocks.visit([&](std::int64_t b, std::int64_t first, std::int64_t n) {
            const auto own = [&](const at::Tensor& t) { return part(t, b, first, n); };
            at::Tensor to_q = own(dq), to_k = own(dk), to_v = own(dv);
            const at::Tensor p = blocks.probabilities(b, first, n), go = own(grad_out);
            at::bmm_out(to_v, p.transpose(1, 2), go);
            at::Tensor ds = at::bmm(go, own(blocks.v).transpose(1, 2)).mul_(p);
            ds.sub_(p * ds.sum(-1, true)).mul_(scale);
            at::bmm_out(to_q, ds, own(blocks.k));
            at::bmm_out(to_k, ds.transpose(1, 2), own(blocks.q));
        });
        return {merged(dq), merged(dk), merged(dv), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
    }

  private:
    // [batch, rows, dim] -> [batch, heads, rows, dim / heads], and back.
    static at::Tensor split(const at::Tensor& t, std::int64_t heads) {
        return t.view({t.size(0), t.size(1), heads, -1}).transpose(1, 2).contiguous();
    }
    static at::Tensor merged(const at::Tensor& t) {
        return t.transpose(1, 2).reshape({t.size(0), t.size(2), t.size(1) * t.size(3)});
    }
    static at::Tensor part(const at::Tensor& t, std::int64_t b, std::int64_t first, std::int64_t n) {
        return t.select(0, b).narrow(0, first, n);
    }
    struct Blocks {
        at::Tensor q, k, v; // [batch, heads, rows, head_dim]
        LocalBias bias;
        double scale;

        Blocks(const at::Tensor& q_in, const at::Tensor& k_in, const at::Tensor& v_in, LocalBias bias_in,
               std::int64_t heads, double scale_in)
            : q(split(q_in, heads)), k(split(k_in, heads)), v(split(v_in, heads)), bias(std::move(bias_in)),
              scale(scale_in) {}

        void visit(auto&& f) const {
            const std::int64_t heads = q.size(1), rows = q.size(2);
            const std::int64_t most = std::max<std::int64_t>((1 << 18) / std::max<std::int64_t>(rows * rows, 1), 1);
            for (std::int64_t b = 0; b < q.size(0); ++b)
                for (std::int64_t first = 0; first < heads; first += most) f(b, first, std::min(most, heads - first));
        }
        at::Tensor probabilities(std::int64_t b, std::int64_t first, std::int64_t n) const {
            const std::int64_t rows = q.size(2);
            const auto own = [&](const at::Tensor& t) {
                const at::Tensor row = t.select(0, t.size(0) > 1 ? b : 0);
                return row.size(0) > 1 ? row.narrow(0, first, n) : row;
            };
            at::Tensor logits = at::baddbmm(own(bias.columns).expand({n, rows, rows}), part(q, b, first, n),
                                            part(k, b, first, n).transpose(1, 2), 1, scale);
            logits += own(bias.mask);
            return at::softmax(logits, -1);
        }
    };
};

} // namespace detail

/// Attention of a segment to itself: softmax(scale * q k + bias) v by head, q, k and v [batch, rows, dim]. Its memory
/// does not grow with heads * rows * rows, forward or backward.
inline at::Tensor local_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const LocalBias& bias,
                                  std::int64_t heads, double scale) {
    const at::Tensor mask = bias.mask.defined() ? bias.mask : at::zeros({1, 1, 1, 1}, q.options().requires_grad(false));
    return detail::LocalAttentionFunction::apply(q.contiguous(), k.contiguous(), v.contiguous(), bias.columns, mask,
                                                 heads, scale);
}

/// The same as a composition of tensor operations, with dropout of the probabilities.
inline at::Tensor local_attention_composed(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                           const LocalBias& bias, std::int64_t heads, double scale,
                                           double dropout = 0) {
    const std::int64_t batch = q.size(0), rows = q.size(1);
    const auto split = [&](const at::Tensor& t) { return t.view({batch, rows, heads, -1}).transpose(1, 2); };
    at::Tensor logits = at::matmul(split(q) * scale, split(k).transpose(2, 3)) + bias.columns;
    if (bias.mask.defined()) logits = logits + bias.mask;
    const at::Tensor p = at::dropout(at::softmax(logits, -1), dropout, dropout > 0);
    return at::matmul(p, split(v)).transpose(1, 2).reshape(q.sizes());
}

} // namespace mnemo::nn
