// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/safetensors.hpp>
#include <mnemo/nn/frozen_head.hpp>
#include <mnemo/papers/pema.hpp>

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <charconv>
#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace mnemo::nn {

struct PemaAdapterOptions {
    TORCH_ARG(std::int64_t, dim) = 0;                 // of the states; --dstore_dim
    TORCH_ARG(std::int64_t, rank) = pema_knobs::rank; // --num_rank
    TORCH_ARG(double, scale) = 0;                     // 0: 1 / rank, the reference's
    TORCH_ARG(double, dropout) = pema_knobs::dropout; // of the input, in training
};

/// What an adapter recalls for states that are tensors: one row for each.
struct RecalledRows {
    at::Tensor values; // Float [rows, d]
    index_t rows() const { return values.size(0); }
    std::span<const float> vector(index_t row) const { return as_rows(values)[row]; }
};

/// PEMA's low-rank maps: y(c) = scale B A drop(c), without bias, residual or base weight. Two maps share A:
/// `lora_B_rct` gives the state back, `lora_B` predicts through the frozen head. A parametric store: Recite asks it for
/// rows or for tensors (held by the module's pointer, as all stores that are shared).
class PemaAdapterImpl : public torch::nn::Module {
  public:
    explicit PemaAdapterImpl(PemaAdapterOptions options) : options_(std::move(options)) {
        auto& o = options_;
        if (o.dim() < 1) fail("adapter, dim: expected at least 1, got ", o.dim());
        if (o.rank() < 1) fail("adapter, rank: expected at least 1, got ", o.rank());
        if (!(o.dropout() >= 0 && o.dropout() < 1)) fail("adapter, dropout: expected [0, 1), got ", o.dropout());
        if (!std::isfinite(o.scale())) fail("adapter, scale: expected a finite number");
        if (o.scale() == 0) o.scale(1 / static_cast<double>(o.rank()));
        const double bound = 1 / std::sqrt(static_cast<double>(o.dim())); // Kaiming uniform with a = sqrt(5)
        lora_A = register_parameter("lora_A", at::empty({o.rank(), o.dim()}).uniform_(-bound, bound));
        lora_B = register_parameter("lora_B", at::zeros({o.dim(), o.rank()}));
        lora_B_rct = register_parameter("lora_B_rct", at::zeros({o.dim(), o.rank()}));
    }

    /// [n, d] -> [n, d], what the memory says; the dropout is drawn anew by each of the two calls.
    at::Tensor forward(const at::Tensor& c) const { return map(c, lora_B); }
    at::Tensor reconstruct(const at::Tensor& c) const { return map(c, lora_B_rct); }

    index_t key_dim() const { return options_.dim(); }
    RecalledRows recite(const at::Tensor& c) const { return {forward(c.to(at::kFloat))}; }
    Vectors recite(Rows c) const { return plain().recite(c); }
    const PemaAdapterOptions& options() const { return options_; }

    /// The predicting map, copied, for hosts and drivers without LibTorch.
    LowRankMap plain() const {
        const auto matrix = [](const at::Tensor& t) {
            const at::Tensor c = t.detach().to(at::kCPU).contiguous();
            Matrix m(c.size(0), c.size(1));
            std::copy_n(c.data_ptr<float>(), c.numel(), m.data.begin());
            return m;
        };
        return {matrix(lora_A), matrix(lora_B), static_cast<float>(options_.scale())};
    }

    at::Tensor lora_A, lora_B, lora_B_rct; // [rank, d], [d, rank], [d, rank]

  private:
    at::Tensor map(const at::Tensor& c, const at::Tensor& b) const {
        const at::Tensor in = is_training() && options_.dropout() > 0 ? at::dropout(c, options_.dropout(), true) : c;
        return at::linear(at::linear(in, lora_A), b) * options_.scale();
    }
    PemaAdapterOptions options_;
};
TORCH_MODULE(PemaAdapter);
static_assert(ParametricStoreFor<PemaAdapterImpl, Rows> && ParametricStoreFor<PemaAdapterImpl, at::Tensor>);

/// kappa * mean (reconstruction - c)^2 + (1 - kappa) * mean -log p(target): the Loss of a Memory whose store is a
/// PemaAdapterImpl and whose states are tensors [n, d]. The base carries `targets` [n]. A gets the gradient of both
/// terms, lora_B of the second alone; lora_B_rct gets none, as it is frozen by then.
struct ReconstructPredict {
    FrozenHead head;
    double kappa = pema_knobs::kappa;
    std::int64_t rows_at_a_time = 256;

    template <class Base, class RecallT, class C>
        requires requires(const Base& b) { std::span<const std::int32_t>(b.targets); }
    at::Tensor loss(Base& base, const Reading<at::Tensor, RecallT, PemaAdapterImpl>& reading, const C&) const {
        const PemaAdapterImpl& adapter = reading.store;
        const at::Tensor c = reading.queries.to(at::kFloat);
        const at::Tensor back = at::linear(at::linear(adapter.is_training() && adapter.options().dropout() > 0
                                                          ? at::dropout(c, adapter.options().dropout(), true)
                                                          : c,
                                                      adapter.lora_A),
                                           adapter.lora_B_rct.detach()) *
                                adapter.options().scale();
        const at::Tensor predict = head_cross_entropy(head, reading.recall.values, base.targets, rows_at_a_time);
        return kappa * (back - c).square().mean() + (1 - kappa) * predict;
    }
};

// ---- Files: safetensors with the reference's names lora_A and lora_B ----

/// What an adapter file says about itself.
struct PemaAdapterFile {
    static constexpr std::string_view kFormat = "mnemo-adapter", kVersion = "1";
    PemaAdapter adapter{nullptr};
    std::map<std::string, std::string> metadata; // format, version, scale, and what save_adapter was given
};

/// Writes lora_A, lora_B and lora_B_rct. `metadata` says what must not be lost: the head's fingerprint, its norm's
/// name.
inline void save_adapter(const std::string& path, const PemaAdapter& adapter,
                         std::map<std::string, std::string> metadata = {}) {
    metadata["format"] = PemaAdapterFile::kFormat, metadata["version"] = PemaAdapterFile::kVersion;
    char scale[32];
    std::snprintf(scale, sizeof scale, "%.17g", adapter->options().scale());
    metadata["scale"] = scale;
    std::vector<at::Tensor> kept;
    std::vector<Entry> entries;
    for (const auto& [name, tensor] :
         {std::pair{"lora_A", adapter->lora_A}, {"lora_B", adapter->lora_B}, {"lora_B_rct", adapter->lora_B_rct}}) {
        kept.push_back(tensor.detach().to(at::kCPU).contiguous());
        entries.push_back(tensor_entry(
            name, tensor.sizes().vec(),
            std::span<const float>(kept.back().data_ptr<float>(), static_cast<std::size_t>(tensor.numel()))));
    }
    write_safetensors(path, entries, metadata);
}

/// Reads such a file, or one that holds a checkpoint of the reference (its state dict: lora_A, lora_B and the unused
/// weight and bias). A file without lora_B_rct has it zero: a phase-1 checkpoint's lora_B is the caller's to move
/// there. Throws Error for shapes that do not fit, numbers that are not finite, other formats and later versions.
inline PemaAdapterFile load_adapter(const std::string& path) {
    const SafeTensors file = SafeTensors::open(path);
    PemaAdapterFile out;
    out.metadata = file.metadata();
    const auto field = [&](const char* name) {
        const auto found = out.metadata.find(name);
        return found == out.metadata.end() ? std::string() : found->second;
    };
    if (!field("format").empty() && field("format") != PemaAdapterFile::kFormat)
        fail(path, ": format: expected ", PemaAdapterFile::kFormat, ", got ", in_quotes(field("format")));
    if (!field("format").empty() && field("version") != PemaAdapterFile::kVersion)
        fail(path, ": version: expected ", PemaAdapterFile::kVersion, ", got ", in_quotes(field("version")));
    const auto& a = file.at("lora_A").shape;
    if (a.size() != 2) fail(path, ": lora_A: expected [rank, d], got ", a.size(), " dimensions");
    double scale = 0;
    const std::string stated = field("scale");
    if (!stated.empty()) {
        const auto [end, error] = std::from_chars(stated.data(), stated.data() + stated.size(), scale);
        if (error != std::errc() || end != stated.data() + stated.size() || !std::isfinite(scale) || scale == 0)
            fail(path, ": scale: expected a number, got ", in_quotes(stated));
    }
    out.adapter = PemaAdapter(PemaAdapterOptions().rank(a[0]).dim(a[1]).scale(scale));
    const auto read = [&](const char* name, const at::Tensor& into) {
        const Entry& entry = file.at(name);
        if (entry.shape != into.sizes().vec())
            fail(path, ": ", name, ": expected [", into.size(0), ", ", into.size(1),
                 "] beside lora_A, got another shape");
        const std::vector<float> values = file.values<float>(name);
        for (const float x : values)
            if (!std::isfinite(x)) fail(path, ": ", name, ": expected finite numbers");
        const at::NoGradGuard no_grad;
        std::copy(values.begin(), values.end(), into.data_ptr<float>());
    };
    read("lora_A", out.adapter->lora_A);
    read("lora_B", out.adapter->lora_B);
    if (file.find("lora_B_rct") != nullptr) read("lora_B_rct", out.adapter->lora_B_rct);
    out.adapter->eval();
    return out;
}

/// An adapter and a head as a memory for the drivers of papers/pema.hpp. The head's matrix must outlive it.
inline Pema<> pema_memory(const PemaAdapter& adapter, const FrozenHead& head,
                          GradualUnrolling schedule = pema_knobs::schedule) {
    head.check(adapter->options().dim());
    return {LastHidden{}, adapter->plain(), Recite{}, {{head.plain_norm(), head.plain_output()}, schedule}, {}};
}

} // namespace mnemo::nn
