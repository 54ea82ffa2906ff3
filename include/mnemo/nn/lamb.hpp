// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/nn/tensor.hpp>

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mnemo::nn {

struct LambOptions {
    double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-6;
    double weight_decay = 0.01;
    double max_norm = 1; // of all gradients together
};

/// LAMB: Adam's direction for each tensor, as long as the tensor itself. Biases, norms and `beta` have neither decay
/// nor that scaling, by their names, as in NVIDIA's and PlugLM's training.
class Lamb {
  public:
    struct Parameter {
        std::string name;
        at::Tensor value, m, v;
        bool decays = true;
    };

    Lamb(const std::vector<std::pair<std::string, at::Tensor>>& parameters, LambOptions options) : options_(options) {
        for (const auto& [name, value] : parameters) {
            const bool decays = std::none_of(std::begin(kPlain), std::end(kPlain),
                                             [&, n = std::string_view(name)](std::string_view word) {
                                                 return n.find(word) != std::string_view::npos;
                                             });
            parameters_.push_back({name, value, at::zeros_like(value), at::zeros_like(value), decays});
        }
    }

    /// One update with learning rate `rate`; gradients were multiplied by `scale`. Returns their norm, unscaled. A norm
    /// that is not finite changes nothing: whoever scales sees it and lowers the scale.
    double step(double rate, double scale = 1) {
        if (!std::isfinite(rate) || rate < 0 || !(scale > 0))
            fail("Lamb: expected a finite rate of at least 0 and a scale above 0, got ", rate, " and ", scale);
        const at::NoGradGuard no_grad;
        double squares = 0;
        for (const Parameter& p : parameters_)
            if (p.value.grad().defined()) squares += p.value.grad().to(at::kDouble).square().sum().item<double>();
        const double norm = std::sqrt(squares) / scale;
        if (!std::isfinite(norm)) return norm;
        ++steps_;
        const double shrink = 1 / (scale * std::max(1.0, norm / options_.max_norm));
        const double correct1 = 1 - std::pow(options_.beta1, static_cast<double>(steps_));
        const double correct2 = 1 - std::pow(options_.beta2, static_cast<double>(steps_));
        for (Parameter& p : parameters_) {
            if (!p.value.grad().defined()) continue;
            const at::Tensor g = p.value.grad() * shrink;
            p.m.mul_(options_.beta1).add_(g, 1 - options_.beta1);
            p.v.mul_(options_.beta2).addcmul_(g, g, 1 - options_.beta2);
            at::Tensor w = (p.m / correct1) / ((p.v / correct2).sqrt() + options_.epsilon);
            double trust = 1;
            if (p.decays && options_.weight_decay != 0) {
                w.add_(p.value, options_.weight_decay);
                const double of_value = p.value.norm().item<double>(), of_step = w.norm().item<double>();
                if (of_value != 0 && of_step != 0) trust = of_value / of_step;
            }
            p.value.sub_(w, rate * trust);
        }
        return norm;
    }

    /// Updates so far, and the state that a checkpoint keeps besides the parameters.
    index_t steps() const { return steps_; }
    const std::vector<Parameter>& parameters() const { return parameters_; }
    /// Goes on from a checkpoint: moments in the order of parameters().
    void restore(index_t steps, const std::vector<std::pair<at::Tensor, at::Tensor>>& moments) {
        expect_equal("Lamb::restore: tensors", moments.size(), parameters_.size());
        if (steps < 0) fail("Lamb::restore: steps: expected at least 0, got ", steps);
        for (std::size_t i = 0; i < moments.size(); ++i)
            for (const at::Tensor& t : {moments[i].first, moments[i].second})
                if (!t.defined() || t.sizes() != parameters_[i].value.sizes())
                    fail("Lamb::restore: ", parameters_[i].name, ": expected the shape of the parameter, got ",
                         describe(t));
        for (std::size_t i = 0; i < moments.size(); ++i)
            parameters_[i].m.copy_(moments[i].first), parameters_[i].v.copy_(moments[i].second);
        steps_ = steps;
    }

  private:
    static constexpr std::string_view kPlain[] = {"bias", "gamma", "beta", "LayerNorm"};
    LambOptions options_;
    std::vector<Parameter> parameters_;
    index_t steps_ = 0;
};

} // namespace mnemo::nn
