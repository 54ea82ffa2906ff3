// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/combine/gated_attention.hpp>
#include <mnemo/nn/tensor.hpp>
#include <mnemo/store/chunk_ring.hpp>

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <utility>
#include <vector>

namespace mnemo::nn {

/// What a batch recalled from its banks. It borrows the rings: they must not be written to before the backward pass.
struct MemoryReading : torch::CustomClassHolder {
    struct Part {
        const ChunkRing<half>* ring;
        HeadHits hits;               // [rows]
        index_t first = 0, rows = 0; // of the batch's rows of queries
    };
    std::vector<Part> parts; // rows in no part recalled nothing
    index_t filled_to = 0;   // chunks; see GatedAttention
    bool empty() const {
        for (const Part& part : parts)
            if (part.ring->chunks() > 0) return false;
        return true;
    }
};
using SharedReading = c10::intrusive_ptr<MemoryReading>;

namespace detail {

struct GatedAttentionFunction : torch::autograd::Function<GatedAttentionFunction> {
    static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& local_in,
                              const at::Tensor& queries_in, const at::Tensor& gate_logits, SharedReading reading) {
        const at::Tensor local = local_in.contiguous(), queries = queries_in.contiguous();
        const at::Tensor gates = at::sigmoid(gate_logits).contiguous(), out = local.clone();
        Arena scratch;
        for (const auto& part : reading->parts) {
            const Rows q = as_rows(queries).slice(part.first, part.rows);
            HeadOutputs base{MutRows(out.data_ptr<float>() + part.first * out.size(1), part.rows, out.size(1)),
                             span_of(gates)};
            GatedAttention<>{.filled_to = reading->filled_to}.combine(base, Reading{q, part.hits, *part.ring, scratch});
        }
        context->save_for_backward({local, queries, gates});
        context->saved_data["reading"] = c10::IValue::make_capsule(reading);
        return out;
    }
    static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                   torch::autograd::variable_list upstream) {
        const auto saved = context->get_saved_variables();
        const at::Tensor &local = saved[0], &queries = saved[1], &gates = saved[2];
        const auto reading =
            c10::static_intrusive_pointer_cast<MemoryReading>(context->saved_data["reading"].toCapsule());
        const at::Tensor grad_out = upstream[0].to(at::kFloat).contiguous();
        const at::Tensor local_grad = grad_out.clone(), query_grad = at::zeros_like(queries);
        const at::Tensor gate_grad = at::zeros_like(gates);
        Arena scratch;
        for (const auto& part : reading->parts) {
            const auto rows = [&](const at::Tensor& t) {
                return MutRows(t.data_ptr<float>() + part.first * t.size(1), part.rows, t.size(1));
            };
            const Rows q = rows(queries);
            GatedAttention<>{.filled_to = reading->filled_to}.backward(
                rows(local), span_of(gates), rows(grad_out), Reading{q, part.hits, *part.ring, scratch},
                {rows(query_grad),
                 rows(local_grad),
                 {gate_grad.data_ptr<float>(), static_cast<std::size_t>(gate_grad.numel())}});
        }
        return {local_grad, query_grad, gate_grad * gates * (1 - gates), at::Tensor()};
    }

  private:
    static std::span<const float> span_of(const at::Tensor& t) {
        return {t.data_ptr<float>(), static_cast<std::size_t>(t.numel())};
    }
};

} // namespace detail

/// GatedAttention with gradients: local [n, heads * head_dim] is local attention's output by head, queries of the same
/// shape are unscaled, gate_logits [heads] go through a sigmoid. Float on the CPU. Gradients reach all three; none go
/// through ids or what is stored. No tensor of retrieved keys or values exists.
inline at::Tensor gated_attention(const at::Tensor& local, const at::Tensor& queries, const at::Tensor& gate_logits,
                                  const SharedReading& reading) {
    for (const auto& [name, t] : {std::pair{"local", local}, std::pair{"queries", queries}})
        if (t.dim() != 2 || t.scalar_type() != at::kFloat || !t.device().is_cpu() || t.sizes() != local.sizes())
            fail("gated attention, ", name, ": expected Float [rows, heads * head_dim] on cpu, got ", describe(t));
    if (gate_logits.dim() != 1 || gate_logits.scalar_type() != at::kFloat || !gate_logits.device().is_cpu())
        fail("gated attention, gates: expected Float [heads] on cpu, got ", describe(gate_logits));
    index_t end = 0;
    for (const auto& part : reading->parts) {
        if (part.first < end || part.rows < 0 || part.first + part.rows > local.size(0))
            fail("gated attention: expected parts in order within ", local.size(0), " rows, got rows ", part.first,
                 " to ", part.first + part.rows);
        end = part.first + part.rows;
    }
    return detail::GatedAttentionFunction::apply(local, queries, gate_logits, reading);
}

/// The same as a composition of tensor operations over gathered keys and values, for tests: retrieved_keys and
/// retrieved_values [rows, heads, k, head_dim].
inline at::Tensor gated_attention_composed(const at::Tensor& local, const at::Tensor& queries,
                                           const at::Tensor& gate_logits, const at::Tensor& retrieved_keys,
                                           const at::Tensor& retrieved_values) {
    const std::int64_t heads = retrieved_keys.size(1), d = retrieved_keys.size(3);
    const at::Tensor q = queries.view({-1, heads, 1, d}) / std::sqrt(static_cast<double>(d));
    const at::Tensor p = at::softmax(at::matmul(q, retrieved_keys.to(at::kFloat).transpose(2, 3)), -1);
    const at::Tensor memory = at::matmul(p, retrieved_values.to(at::kFloat)).squeeze(2); // [rows, heads, d]
    const at::Tensor gates = at::sigmoid(gate_logits).view({1, heads, 1});
    return ((1 - gates) * local.view({-1, heads, d}) + gates * memory).reshape(local.sizes());
}

} // namespace mnemo::nn
