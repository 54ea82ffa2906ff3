// SPDX-License-Identifier: MIT
#include "catch.hpp"
#include "folder.hpp"

#include <mnemo/combine/lambda_network.hpp>
#include <mnemo/io/parameters.hpp>

using namespace mnemo;

TEST_CASE("Parameters of a network come back from their file", "[lambda]") {
    const Folder folder;
    const LambdaNetworkOptions options{{{"ctxt", 4, true}, {"freq", 2}}, 3, 2};
    LambdaNetwork network(options, 1), other(options, 2);
    save_parameters(folder / "lambda.safetensors", network, {{"l1", "0.05"}});
    load_parameters(folder / "lambda.safetensors", other);
    CHECK(std::equal(network.parameters().begin(), network.parameters().end(), other.parameters().begin()));
    const SafeTensors file = SafeTensors::open(folder / "lambda.safetensors");
    CHECK(file.at("input_layer.freq.model.2.weight").shape == std::vector<index_t>{4, 4});
    CHECK(file.at("model.6.bias").shape == std::vector<index_t>{2});
    LambdaNetwork wider({{{"ctxt", 4, true}, {"freq", 2}}, 5, 2});
    const std::vector<float> before(wider.parameters().begin(), wider.parameters().end());
    CHECK_THROWS_WITH(load_parameters(folder / "lambda.safetensors", wider), Catch::Contains("expected another shape"));
    CHECK(std::equal(before.begin(), before.end(), wider.parameters().begin()));
}
