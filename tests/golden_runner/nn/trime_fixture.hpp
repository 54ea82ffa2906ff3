// SPDX-License-Identifier: MIT
#pragma once

#include "fairseq_model.hpp"

#include <mnemo/nn/output_layer.hpp>

namespace golden {

inline Tolerance tolerance_of(const Fixture& fixture) { return {fixture.number("atol"), fixture.number("rtol")}; }

/// The output layer whose weights lie in a fixture as `w.head_words` and so on, and the leaves by their names.
struct TrimeWeights {
    mnemo::nn::OutputLayer output;
    std::vector<std::pair<std::string, at::Tensor>> named;
};
inline TrimeWeights trime_weights(const Fixture& fixture, at::ScalarType type) {
    TrimeWeights out;
    const auto weight = [&](const std::string& name) {
        out.named.emplace_back(name, tensor_of(fixture, "w." + name).to(type).requires_grad_());
        return out.named.back().second;
    };
    out.output.words = weight("head_words");
    if (fixture.has("w.head_classes")) out.output.classes = weight("head_classes");
    for (int i = 0; fixture.has(mnemo::text("w.tail", i, "_proj")); ++i) {
        const at::Tensor projection = weight(mnemo::text("tail", i, "_proj"));
        out.output.bands.push_back({projection, weight(mnemo::text("tail", i, "_emb"))});
    }
    return out;
}

/// Compares with tensor `name`, or the rows of it that `real` marks. Values beyond 5000 in magnitude stand for nothing
/// at all (the reference masks by -10000): there `got` must not be finite.
inline void close_or_nothing(const Fixture& fixture, Check& check, const std::string& name, const at::Tensor& got,
                             Tolerance tolerance, const at::Tensor& real = {}) {
    at::Tensor stored = tensor_of(fixture, name);
    if (real.defined()) stored = stored.view({real.numel(), -1}).index({real.reshape(-1)});
    const std::vector<float> ours = floats_of(got), expected = floats_of(stored);
    check.that(name, ours.size() == expected.size(), "as many values");
    std::vector<float> ours_finite, expected_finite;
    for (std::size_t i = 0; i < std::min(ours.size(), expected.size()); ++i)
        if (std::abs(expected[i]) > 5000)
            check.that(name, !std::isfinite(ours[i]), "nothing where the reference masks");
        else
            ours_finite.push_back(ours[i]), expected_finite.push_back(expected[i]);
    check.close(name, ours_finite, expected_finite, tolerance);
}

} // namespace golden
