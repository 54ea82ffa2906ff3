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

/// What is added to the logits of local attention, in parts, so that no [batch, heads, rows, rows] exists. It has no
/// gradient.
struct LocalBias {
    at::Tensor columns;  // [1 or batch, 1 or heads, 1, rows], such as ALiBi
    at::Tensor mask;     // [1 or batch, 1, 1 or rows, rows]: 0, or what hides; undefined: nothing is hidden
    bool causal = false; // later columns are hidden, and not computed
};

/// ALiBi, and a mask of padding: the lowest number and not -inf, with which a row that sees nothing would be NaN. real
/// [1 or batch, rows]: 0 is padding.
inline LocalBias causal_alibi_bias(const at::Tensor& real, std::int64_t heads, bool hide_padding = true) {
    LocalBias bias{alibi_bias(real, heads), {}, true};
    const at::Tensor padding = real.eq(0);
    if (hide_padding && padding.any().item<bool>())
        bias.mask = at::zeros(padding.sizes(), real.options().dtype(at::kFloat))
                        .masked_fill_(padding, std::numeric_limits<float>::lowest())
                        .view({real.size(0), 1, 1, real.size(1)});
    return bias;
}

namespace detail {

// What is later than its row, where the last of the columns are the rows' own tokens.
inline at::Tensor later(std::int64_t rows, std::int64_t columns) {
    return at::ones({rows, columns}, at::TensorOptions(at::kBool)).triu(columns - rows + 1);
}

// Blocks of heads and rows, whose logits stay near and are computed again for the backward pass.
struct LocalAttentionFunction : torch::autograd::Function<LocalAttentionFunction> {
    static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& q, const at::Tensor& k,
                              const at::Tensor& v, const at::Tensor& columns, const at::Tensor& mask, bool causal,
                              std::int64_t heads, double scale) {
        const Blocks blocks(q, k, v, {columns, mask, causal}, heads, scale);
        const at::Tensor out = at::empty_like(blocks.q);
        blocks.visit([&](const Block& block) {
            block.rows_of(out).copy_(at::bmm(blocks.probabilities(block), block.columns_of(blocks.v)));
        });
        context->save_for_backward({q, k, v, columns, mask});
        context->saved_data["heads"] = heads, context->saved_data["scale"] = scale;
        context->saved_data["causal"] = causal;
        return merged(out);
    }
    static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                   torch::autograd::variable_list upstream) {
        const auto saved = context->get_saved_variables();
        const std::int64_t heads = context->saved_data["heads"].toInt();
        const double scale = context->saved_data["scale"].toDouble();
        const Blocks blocks(saved[0], saved[1], saved[2], {saved[3], saved[4], context->saved_data["causal"].toBool()},
                            heads, scale);
        const at::Tensor grad_out = split(upstream[0], heads);
        const at::Tensor dq = at::empty_like(blocks.q), dk = at::zeros_like(blocks.q), dv = at::zeros_like(blocks.q);
        blocks.visit([&](const Block& block) {
            const at::Tensor p = blocks.probabilities(block), go = block.rows_of(grad_out);
            block.columns_of(dv).baddbmm_(p.transpose(1, 2), go);
            at::Tensor ds = at::bmm(go, block.columns_of(blocks.v).transpose(1, 2)).mul_(p);
            ds.sub_(p * ds.sum(-1, true)).mul_(scale);
            block.rows_of(dq).copy_(at::bmm(ds, block.columns_of(blocks.k)));
            block.columns_of(dk).baddbmm_(ds.transpose(1, 2), block.rows_of(blocks.q));
        });
        const at::Tensor none;
        return {merged(dq), merged(dk), merged(dv), none, none, none, none, none};
    }

  private:
    // [batch, rows, dim] -> [batch, heads, rows, dim / heads], and back.
    static at::Tensor split(const at::Tensor& t, std::int64_t heads) {
        return t.view({t.size(0), t.size(1), heads, -1}).transpose(1, 2).contiguous();
    }
    static at::Tensor merged(const at::Tensor& t) {
        return t.transpose(1, 2).reshape({t.size(0), t.size(2), t.size(1) * t.size(3)});
    }
    struct Block {
        std::int64_t batch, head, heads, row, rows, columns; // columns from 0
        at::Tensor rows_of(const at::Tensor& t) const { return of_heads(t).narrow(1, row, rows); }
        at::Tensor columns_of(const at::Tensor& t) const { return of_heads(t).narrow(1, 0, columns); }
        at::Tensor of_heads(const at::Tensor& t) const { return t.select(0, batch).narrow(0, head, heads); }
    };
    struct Blocks {
        at::Tensor q, k, v; // [batch, heads, rows, head_dim]
        LocalBias bias;
        double scale;

        Blocks(const at::Tensor& q_in, const at::Tensor& k_in, const at::Tensor& v_in, LocalBias bias_in,
               std::int64_t heads, double scale_in)
            : q(split(q_in, heads)), k(split(k_in, heads)), v(split(v_in, heads)), bias(std::move(bias_in)),
              scale(scale_in) {}

        void visit(auto&& f) const {
            constexpr std::int64_t logits = 1 << 18, most_rows = 128;
            const std::int64_t heads = q.size(1), rows = q.size(2), step = bias.causal ? most_rows : rows;
            const std::int64_t most = std::max<std::int64_t>(logits / std::max<std::int64_t>(step * rows, 1), 1);
            for (std::int64_t b = 0; b < q.size(0); ++b)
                for (std::int64_t head = 0; head < heads; head += most)
                    for (std::int64_t row = 0; row < rows; row += step) {
                        const std::int64_t n = std::min(step, rows - row);
                        f(Block{b, head, std::min(most, heads - head), row, n, bias.causal ? row + n : rows});
                    }
        }
        at::Tensor probabilities(const Block& block) const { // [heads, rows, columns]
            const auto own = [&](const at::Tensor& t) {
                at::Tensor part = t.select(0, t.size(0) > 1 ? block.batch : 0);
                if (part.size(0) > 1) part = part.narrow(0, block.head, block.heads);
                if (part.size(1) > 1) part = part.narrow(1, block.row, block.rows);
                return part.size(2) > 1 ? part.narrow(2, 0, block.columns) : part;
            };
            at::Tensor logits = at::baddbmm(own(bias.columns).expand({block.heads, block.rows, block.columns}),
                                            block.rows_of(q), block.columns_of(k).transpose(1, 2), 1, scale);
            if (bias.mask.numel() > 0) logits += own(bias.mask);
            if (bias.causal)
                logits.narrow(2, block.row, block.rows)
                    .masked_fill_(later(block.rows, block.rows), std::numeric_limits<float>::lowest());
            return at::softmax(logits, -1);
        }
    };
};

} // namespace detail

/// Attention of a segment to itself: softmax(scale * q k + bias) v by head, q, k and v [batch, rows, dim]. Its memory
/// does not grow with heads * rows * rows, forward or backward.
inline at::Tensor local_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const LocalBias& bias,
                                  std::int64_t heads, double scale) {
    // LibTorch 1.13 takes no undefined argument: an empty mask is none.
    const at::Tensor mask = bias.mask.defined() ? bias.mask : at::empty({0}, q.options().requires_grad(false));
    return detail::LocalAttentionFunction::apply(q.contiguous(), k.contiguous(), v.contiguous(), bias.columns, mask,
                                                 bias.causal, heads, scale);
}

/// The same as a composition of tensor operations, with dropout of the probabilities. k and v may begin with tokens
/// that came before those of q.
inline at::Tensor local_attention_composed(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                           const LocalBias& bias, std::int64_t heads, double scale,
                                           double dropout = 0) {
    const auto split = [&](const at::Tensor& t) {
        return t.reshape({t.size(0), t.size(1), heads, -1}).transpose(1, 2);
    };
    at::Tensor logits = at::matmul(split(q) * scale, split(k).transpose(2, 3)) + bias.columns;
    if (bias.mask.defined()) logits = logits + bias.mask;
    if (bias.causal)
        logits = logits.masked_fill(detail::later(q.size(1), k.size(1)), std::numeric_limits<float>::lowest());
    const at::Tensor p = at::dropout(at::softmax(logits, -1), dropout, dropout > 0);
    return at::matmul(p, split(v)).transpose(1, 2).reshape(q.sizes());
}

} // namespace mnemo::nn
