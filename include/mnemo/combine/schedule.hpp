// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/core/matrix_view.hpp>

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

namespace mnemo {

/// A weight that falls along a sequence: lambda first, then (1 - p) c^2 + p with p = min_percent / 100, where c starts
/// at lambda and loses lambda / length with each step for as long as it stays positive. The first weight is not
/// squared. All in float, by repeated subtraction: the rounding decides whether the last decrease happens, so
/// lambda - step * lambda / length is something else.
///
/// As the lambda of Interpolate it wants a base with `steps` and `lengths` (PositionedLogProbs). A length is a guess of
/// how long the whole sequence will be, prompt included; a sequence of length 0 keeps its first weight.
struct GradualUnrolling {
    float lambda = 0.9f;
    double min_percent = 0; // the weight that the sequence ends with, in percent; below 100
    bool on = true;         // off: lambda all along

    /// How much c loses with each step: 1 / length is rounded before it is multiplied, as PyTorch does.
    float decrease(index_t length) const { return 1.0f / static_cast<float>(length) * lambda; }
    /// The weight for a c that has been decreased.
    float weight_at(float c) const {
        const double m = 1 / (1 - min_percent * 0.01);
        return c * c / static_cast<float>(m) + static_cast<float>((m - 1) / m);
    }
    /// The weight of step `step`, counted from 0, of a sequence of its own.
    float weight(index_t step, index_t length) const {
        check(length);
        const float by = decrease(length);
        float c = lambda;
        bool fell = false;
        for (index_t i = 0; on && i < step && c - by > 0; ++i) c -= by, fell = true;
        return fell ? weight_at(c) : lambda;
    }
    float operator()(const auto& base, index_t row) const {
        const auto i = static_cast<std::size_t>(row);
        return weight(base.steps[i], base.lengths[i]);
    }

    /// Throws Error for knobs that make no weights, and for a negative length.
    void check(index_t length = 0) const {
        if (!(lambda >= 0 && lambda <= 1)) fail("GradualUnrolling: lambda: expected a weight in [0, 1], got ", lambda);
        if (!(min_percent >= 0 && min_percent < 100))
            fail("GradualUnrolling: min_percent: expected 0 to below 100, got ", min_percent);
        if (length < 0) fail("GradualUnrolling: length: expected at least 0, got ", length);
    }
};

/// Whether the sequences of a batch fall by themselves, or all stop falling as soon as one of them does. The latter is
/// what the reference of the schedule does: its results depend on who shares a batch.
enum class UnrollingRows { independent, coupled };

/// The weights of a batch of sequences, step after step. It is a lambda of Interpolate for any base.
class UnrollingWeights {
  public:
    UnrollingWeights(GradualUnrolling schedule, std::span<const index_t> lengths,
                     UnrollingRows rows = UnrollingRows::independent)
        : schedule_(schedule), rows_(rows), linear_(lengths.size(), schedule.lambda), lambda_(linear_) {
        for (const index_t length : lengths) schedule_.check(length), decrease_.push_back(schedule_.decrease(length));
    }

    std::span<const float> lambda() const { return lambda_; } // [rows], of this step
    std::span<const float> linear() const { return linear_; } // [rows], c
    float operator()(const auto& /*base*/, index_t row) const { return lambda_[static_cast<std::size_t>(row)]; }

    /// Goes on to the next step.
    void advance() {
        const auto falls = [&](std::size_t row) { return linear_[row] - decrease_[row] > 0; };
        if (!schedule_.on) return;
        if (rows_ == UnrollingRows::coupled)
            for (std::size_t row = 0; row < linear_.size(); ++row)
                if (!falls(row)) return;
        for (std::size_t row = 0; row < linear_.size(); ++row) {
            if (!falls(row)) continue;
            linear_[row] -= decrease_[row];
            lambda_[row] = schedule_.weight_at(linear_[row]);
        }
    }
    /// Row i is what row from[i] was: hypotheses of a beam.
    void reorder(std::span<const index_t> from) {
        for (std::vector<float>* column : {&decrease_, &linear_, &lambda_}) {
            std::vector<float> moved;
            for (const index_t row : from) moved.push_back((*column)[static_cast<std::size_t>(row)]);
            *column = std::move(moved);
        }
    }

  private:
    GradualUnrolling schedule_;
    UnrollingRows rows_;
    std::vector<float> decrease_{}, linear_, lambda_;
};

} // namespace mnemo
