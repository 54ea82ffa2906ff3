// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/error.hpp>

#include <ATen/core/Tensor.h>
#ifdef __clang__
#include <ATen/core/ivalue.h> // before all others: LibTorch 1.13 uses IValue where clang wants it complete
#endif

#include <sstream>
#include <string>

namespace mnemo::nn {

/// "Float [2, 3] on cpu", for messages.
inline std::string describe(const at::Tensor& t) {
    if (!t.defined()) return "an undefined tensor";
    std::ostringstream out;
    out << c10::toString(t.scalar_type()) << ' ' << t.sizes() << " on " << t.device();
    return out.str();
}

/// "[2, 3]", for messages.
inline std::string shape_text(at::IntArrayRef shape) {
    std::string out = "[";
    for (const std::int64_t n : shape) out += (out.size() > 1 ? ", " : "") + std::to_string(n);
    return out + "]";
}

/// A float CPU matrix [rows, cols] seen as rows, without a copy; rows may lie apart. The tensor must outlive the view,
/// and gradients do not flow through it. Throws Error for another type, device, number of dimensions or layout.
inline Rows as_rows(const at::Tensor& t) {
    if (!t.defined() || t.dim() != 2 || t.scalar_type() != at::kFloat || !t.device().is_cpu() || t.is_sparse())
        fail("expected a Float [rows, cols] tensor on cpu, got ", describe(t));
    if (t.size(1) > 1 && t.stride(1) != 1)
        fail("expected a tensor whose rows are contiguous, got strides [", t.stride(0), ", ", t.stride(1),
             "]; call contiguous() first");
    return {t.data_ptr<float>(), t.size(0), t.size(1), t.stride(0)};
}

/// The same for results in place. Also throws for rows that overlap (an expanded tensor) and for a tensor that records
/// gradients, because autograd would not see the change.
inline MutRows as_mut_rows(const at::Tensor& t) {
    const Rows rows = as_rows(t);
    if (rows.rows > 1 && rows.stride < rows.cols)
        fail("expected a tensor that can be written, got rows that overlap (stride ", rows.stride, " for ", rows.cols,
             " columns)");
    if (t.requires_grad()) fail("expected a tensor that can be written in place, got one that requires gradients");
    return {t.data_ptr<float>(), rows.rows, rows.cols, rows.stride};
}

/// A retriever for rows, used with tensors: which entries are nearest has no gradient. Queries are detached and brought
/// to the CPU as contiguous floats; nothing is copied if they are that already.
template <class RetrieverT> struct Detached {
    RetrieverT retriever;

    auto retrieve(const MemoryStore auto& store, const at::Tensor& queries) const {
        const at::Tensor rows = plain(queries);
        return retriever.retrieve(store, as_rows(rows));
    }
    template <class Store>
        requires RecyclingRetrieverFor<RetrieverT, Store, Rows>
    auto retrieve(const Store& store, const at::Tensor& queries, recall_t<RetrieverT, Store, Rows>&& spare) const {
        const at::Tensor rows = plain(queries);
        return retriever.retrieve(store, as_rows(rows), std::move(spare));
    }

  private:
    static at::Tensor plain(const at::Tensor& t) {
        if (!t.defined() || t.dim() != 2) fail("queries: expected a tensor [rows, d], got ", describe(t));
        return t.detach().to(at::kCPU, at::kFloat).contiguous();
    }
};
template <class R> Detached(R) -> Detached<R>;

} // namespace mnemo::nn
