// SPDX-License-Identifier: MIT
#include "golden.hpp"

#include <mnemo/papers/adaptive_lambda.hpp>
#include <mnemo/store/tokens.hpp>

namespace {

using namespace mnemo;

/// Evidence that the fixture brings along.
struct GivenTargets {
    const std::vector<float>& log_p;
    float log_prob(const auto& /*reading*/, index_t row, std::int32_t /*token*/) const {
        return log_p[static_cast<std::size_t>(row)];
    }
};

} // namespace

GOLDEN("knnlm.adaptive_lambda") {
    if (fixture.number("leaky_slope") != 0.01) fail("leaky_slope: expected 0.01");
    LambdaNetworkOptions options;
    for (const std::string& name : fixture.list("feature_order"))
        options.features.push_back({name, fixture.size("in." + name, 1), name == "ctxt"});
    options.hidden = fixture.integer("hidden_units");
    options.layers = fixture.integer("nlayers");
    options.without_context = fixture.integer("non_ctxt_dim");
    LambdaNetwork network(options);
    std::size_t read = 0;
    network.visit(network.parameters(), [&](const std::string& name, const auto& shape, std::span<float> part) {
        if (fixture.shape("w." + name) != shape) fail("w.", name, ": expected another shape");
        const auto values = fixture.floats("w." + name);
        std::copy(values.begin(), values.end(), part.begin());
        ++read;
    });
    if (read != fixture.names("w.").size()) fail("expected ", read, " tensors, got ", fixture.names("w.").size());

    const auto host = fixture.floats("in.lm_logp"), memory = fixture.floats("in.knn_logp");
    const auto rows = static_cast<index_t>(host.size());
    Matrix features(rows, network.width());
    index_t column = 0;
    for (const LambdaFeature& f : options.features) {
        const Matrix values = fixture.matrix("in." + f.name);
        for (index_t i = 0; i < rows; ++i) std::copy_n(values[i].begin(), f.width, features[i].begin() + column);
        column += f.width;
    }
    const golden::Tolerance tolerance{fixture.number("tolerance"), 1e-5};
    Matrix weights(rows, 2);
    network.log_weights(features, weights);
    check.close("out.log_weights", weights.data, tolerance);

    std::vector<float> gradient(network.parameters().size());
    const double loss = network.loss(features, host, memory, fixture.number("l1"), gradient);
    check.close("out.loss", std::vector<double>{loss}, tolerance);
    network.visit(std::span(gradient), [&](const std::string& name, const auto&, std::span<float> part) {
        check.close("grad.w." + name, part, tolerance);
    });

    // Token by token through the combiner: a memory that gives the fixture's probabilities.
    Hits none;
    none.resize(rows, 0);
    const TokenStore<> store(1);
    const Rows queries;
    Arena scratch;
    std::vector<float> mixed = host;
    const std::vector<std::int32_t> targets(host.size());
    FeaturedTargets base{targets, mixed, features};
    Interpolate{GivenTargets{memory}, LearnedLambda{&network}}.combine(base, Reading{queries, none, store, scratch});
    for (float& x : mixed) x = -x;
    check.close("out.token_nll", mixed, tolerance);
}
