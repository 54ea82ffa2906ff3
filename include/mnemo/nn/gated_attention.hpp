// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/combine/gated_attention.hpp>
#include <mnemo/nn/tensor.hpp>

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>
#include <vector>

namespace mnemo::nn {

/// What a batch recalled from its banks, of whatever kind. It borrows the stores: they must not be written to before
/// the backward pass.
class MemoryReading : public torch::CustomClassHolder {
  public:
    struct Part {
        HeadHits hits;               // [rows]
        index_t first = 0, rows = 0; // of the batch's rows of queries
    };
    std::vector<Part> parts; // rows in no part recalled nothing
    index_t filled_to = 0;   // chunks; see GatedAttention

    /// Nothing is remembered.
    virtual bool empty() const = 0;
    /// GatedAttention over part `i`, whose rows are given; `keep` is room for its probabilities, resized to them, or
    /// null.
    virtual void combine(std::size_t i, HeadOutputs base, Rows queries, std::vector<float>* keep) const = 0;
    virtual void backward(std::size_t i, Rows local, std::span<const float> gates, Rows grad_out, Rows queries,
                          HeadGradients grads, std::vector<float>& kept) const = 0;
};
using SharedReading = c10::intrusive_ptr<MemoryReading>;

/// The same over stores of type S.
template <ChunkStore S> class ReadingOf final : public MemoryReading {
  public:
    /// Rows [first, first + rows) of the batch recalled `hits` from `store`.
    void add(const S& store, HeadHits hits, index_t first, index_t rows) {
        stores_.push_back(&store);
        parts.push_back({std::move(hits), first, rows});
    }
    const S& store(std::size_t i) const { return *stores_[i]; }

    bool empty() const override {
        return std::all_of(stores_.begin(), stores_.end(), [](const S* s) { return s->chunks() == 0; });
    }
    void combine(std::size_t i, HeadOutputs base, Rows queries, std::vector<float>* keep) const override {
        Arena scratch;
        const Reading read{queries, parts[i].hits, *stores_[i], scratch};
        if (keep != nullptr) keep->resize(GatedAttention<>::probabilities(read));
        GatedAttention<>{.filled_to = filled_to}.combine(base, read,
                                                         keep ? std::span<float>(*keep) : std::span<float>());
    }
    void backward(std::size_t i, Rows local, std::span<const float> gates, Rows grad_out, Rows queries,
                  HeadGradients grads, std::vector<float>& kept) const override {
        Arena scratch;
        GatedAttention<>{.filled_to = filled_to}.backward(
            local, gates, grad_out, Reading{queries, parts[i].hits, *stores_[i], scratch}, grads, kept);
    }

  private:
    std::vector<const S*> stores_; // by part
};

namespace detail {

// The reading and, by part, the probabilities that its forward pass left.
struct ReadOnce : torch::CustomClassHolder {
    SharedReading reading;
    std::vector<std::vector<float>> probabilities;
};

struct GatedAttentionFunction : torch::autograd::Function<GatedAttentionFunction> {
    static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& local_in,
                              const at::Tensor& queries_in, const at::Tensor& gate_logits, SharedReading reading,
                              bool learns) {
        const at::Tensor local = local_in.contiguous(), queries = queries_in.contiguous();
        const at::Tensor gates = at::sigmoid(gate_logits).contiguous(), out = local.clone();
        const auto read = c10::make_intrusive<ReadOnce>();
        read->reading = reading, read->probabilities.resize(reading->parts.size());
        for (std::size_t i = 0; i < reading->parts.size(); ++i)
            reading->combine(i, {rows_of(out, reading->parts[i]), span_of(gates)}, rows_of(queries, reading->parts[i]),
                             learns ? &read->probabilities[i] : nullptr);
        context->save_for_backward({local, queries, gates});
        context->saved_data["read"] = c10::IValue::make_capsule(read);
        return out;
    }
    static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                   torch::autograd::variable_list upstream) {
        const auto saved = context->get_saved_variables();
        const at::Tensor &local = saved[0], &queries = saved[1], &gates = saved[2];
        const auto read = c10::static_intrusive_pointer_cast<ReadOnce>(context->saved_data["read"].toCapsule());
        const at::Tensor grad_out = upstream[0].to(at::kFloat).contiguous();
        const at::Tensor local_grad = grad_out.clone(), query_grad = at::zeros_like(queries);
        const at::Tensor gate_grad = at::zeros_like(gates);
        for (std::size_t i = 0; i < read->reading->parts.size(); ++i) {
            const MemoryReading::Part& part = read->reading->parts[i];
            read->reading->backward(i, rows_of(local, part), span_of(gates), rows_of(grad_out, part),
                                    rows_of(queries, part),
                                    {rows_of(query_grad, part),
                                     rows_of(local_grad, part),
                                     {gate_grad.data_ptr<float>(), static_cast<std::size_t>(gate_grad.numel())}},
                                    read->probabilities[i]);
        }
        return {local_grad, query_grad, gate_grad * gates * (1 - gates), at::Tensor(), at::Tensor()};
    }

  private:
    static std::span<const float> span_of(const at::Tensor& t) {
        return {t.data_ptr<float>(), static_cast<std::size_t>(t.numel())};
    }
    static MutRows rows_of(const at::Tensor& t, const MemoryReading::Part& part) {
        return MutRows(t.data_ptr<float>() + part.first * t.size(1), part.rows, t.size(1));
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
    const bool learns =
        at::GradMode::is_enabled() && (local.requires_grad() || queries.requires_grad() || gate_logits.requires_grad());
    return detail::GatedAttentionFunction::apply(local, queries, gate_logits, reading, learns);
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
