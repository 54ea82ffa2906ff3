// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/kernels/log_sum_exp.hpp>
#include <mnemo/kernels/score.hpp>
#include <mnemo/kernels/weighted_sum.hpp>

#include <algorithm>
#include <cassert>
#include <cmath>
#include <span>

namespace mnemo {

/// Softmax attention of single queries over rows that are named by ids and read where they lie, in float, half or
/// bfloat16. Backward needs the probabilities: as forward left them, or computed again from the same rows.
template <class T> struct AttendRows {
    MatrixView<const T> keys, values;   // [rows, d]
    std::span<const index_t> ids;       // the rows this query sees
    std::span<const float> bias = {};   // added to the logits; empty: none
    index_t zeros = 0;                  // so many more keys and values that are all zero
    std::span<const index_t> next = {}; // what the next query sees: fetched meanwhile

    /// p [ids] <- softmax of the logits; false, and zeros, where there is nothing to see or every logit is
    /// -inf.
    bool soften(std::span<const float> query, std::span<float> p) const {
        assert(p.size() == ids.size() && (bias.empty() || bias.size() == ids.size()));
        fetch_next(keys);
        score_ids<InnerProduct>(query, keys, ids, p);
        for (std::size_t j = 0; j < bias.size(); ++j) p[j] += bias[j];
        float shift = max_value(p);
        if (zeros > 0) shift = std::max(shift, 0.0f);
        if (shift == kLogZero) {
            std::fill(p.begin(), p.end(), 0.0f);
            return false;
        }
        double sum = exp_sum(p, shift, 1.0f, p);
        if (zeros > 0) sum += static_cast<double>(zeros) * std::exp(-double{shift});
        const auto scale = static_cast<float>(1 / sum);
        for (float& x : p) x *= scale;
        return true;
    }

    /// The same, and out [d] += weight * (probabilities * values); `weights` [ids] is overwritten.
    void forward(std::span<const float> query, float weight, std::span<float> out, std::span<float> probabilities,
                 std::span<float> weights) const {
        if (!soften(query, probabilities)) return;
        for (std::size_t j = 0; j < weights.size(); ++j) weights[j] = weight * probabilities[j];
        fetch_next(values);
        add_weighted_rows(values, ids, std::span<const float>(weights), out);
    }

    /// From the probabilities. grad_out [d] is that of the unweighted result. query_grad [d] += its share; returns
    /// grad_out * result, which is the weight's gradient. `grads` [ids] is overwritten: it holds the gradients of the
    /// logits afterwards, for keys and values that have gradients themselves.
    float backward(float weight, std::span<const float> grad_out, std::span<float> query_grad,
                   std::span<const float> probabilities, std::span<float> grads) const {
        fetch_next(values);
        score_ids<InnerProduct>(grad_out, values, ids, grads);
        double mean = 0; // zero values add nothing to it
        for (std::size_t j = 0; j < grads.size(); ++j) mean += double{probabilities[j]} * double{grads[j]};
        for (std::size_t j = 0; j < grads.size(); ++j)
            grads[j] = weight * probabilities[j] * (grads[j] - static_cast<float>(mean));
        fetch_next(keys);
        add_weighted_rows(keys, ids, std::span<const float>(grads), query_grad);
        return static_cast<float>(mean);
    }

  private:
    // Rows lie anywhere in memory: those of the next query are on their way while this one's are worked at. Inlined,
    // see prefetch_row.
    [[gnu::always_inline]] void fetch_next(MatrixView<const T> rows) const {
        constexpr std::size_t most = 256; // may wait in the second-level cache
        for (const index_t id : next.first(std::min(next.size(), most)))
            detail::prefetch_row<2>(rows.data + id * rows.stride, rows.cols);
    }
};

} // namespace mnemo
