// SPDX-License-Identifier: MIT
#include "difference.hpp"
#include <catch.hpp>
#include <folder.hpp>
#include <mnemo/nn/gnn_lm.hpp>

#include <torch/csrc/autograd/autograd.h>

#include <random>

using namespace mnemo;

namespace {

// A block of targets with random neighbours in a random corpus.
struct Small {
    static constexpr index_t corpus = 60, targets = 7, k = 3, d = 12;
    Matrix corpus_states{corpus, d}, states{targets, d};
    std::vector<std::int32_t> tokens;
    std::vector<index_t> table;

    explicit Small(std::uint32_t seed = 1) {
        std::mt19937 random(seed);
        std::normal_distribution<float> normal;
        for (float& x : corpus_states.data) x = normal(random);
        for (float& x : states.data) x = normal(random);
        for (index_t t = 0; t < targets; ++t) {
            tokens.push_back(static_cast<std::int32_t>(random() % 9));
            for (index_t j = 0; j < k; ++j)
                table.push_back(t == 2 || random() % 5 == 0 ? -1 : static_cast<index_t>(random() % corpus));
        }
    }
    nn::GraphText text() const { return {states, tokens, {table.data(), targets, k}, corpus, -1}; }
    nn::GraphBlock block(bool shared = false) const {
        return nn::graph_block(text(), 0, targets, nn::StoredStates{corpus_states},
                               {.left = 1, .right = 2, .shared = shared});
    }
};

nn::GraphDecoder decoder(std::int64_t layers, std::uint64_t seed = 5) {
    torch::manual_seed(seed);
    nn::GraphDecoder out(nn::GraphDecoderOptions().in_dim(Small::d).layers(layers).heads(3));
    out->eval();
    return out;
}
nn::OutputLayer output() { return {at::randn({9, Small::d}), {}, {}}; }

} // namespace

TEST_CASE("What is not computed changes nothing", "[graph]") {
    const at::NoGradGuard no_grad;
    for (const bool shared : {false, true})
        for (const std::int64_t layers : {1, 2, 3}) {
            const auto block = Small().block(shared);
            const auto model = decoder(layers);
            const auto all = model->forward(block.states, block.nodes, block.edges, true);
            const auto pruned = model->forward(block.states, block.nodes, block.edges);
            CHECK(difference(all.text, pruned.text) < 1e-5);
            CHECK(!pruned.nodes.defined());
            // The way with gradients is another one.
            const at::AutoGradMode with_gradients(true);
            const auto slow = model->forward(block.states, block.nodes, block.edges, true);
            CHECK(difference(all.text, slow.text) < 1e-5);
            CHECK(difference(all.nodes, slow.nodes) < 1e-5);
        }
}

TEST_CASE("A target sees its past, and its neighbours in any order", "[graph]") {
    const at::NoGradGuard no_grad;
    Small small;
    const auto model = decoder(2);
    const auto before = small.block();
    const at::Tensor states = model->forward(before.states, before.nodes, before.edges).text;

    auto later = small.block();
    later.states[5].fill_(3);
    const at::Tensor changed = model->forward(later.states, later.nodes, later.edges).text;
    CHECK(difference(states.narrow(0, 0, 5), changed.narrow(0, 0, 5)) == 0);
    CHECK(difference(states.narrow(0, 5, 2), changed.narrow(0, 5, 2)) > 1e-3);

    for (index_t t = 0; t < Small::targets; ++t)
        std::reverse(small.table.begin() + t * Small::k, small.table.begin() + (t + 1) * Small::k);
    const auto turned = small.block();
    CHECK(difference(states, model->forward(turned.states, turned.nodes, turned.edges).text) < 1e-5);

    // Nothing retrieved at all.
    std::fill(small.table.begin(), small.table.end(), -1);
    const auto alone = small.block();
    CHECK(alone.nodes.size(0) == 0);
    const at::Tensor without = model->forward(alone.states, alone.nodes, alone.edges).text;
    CHECK(without.isfinite().all().item<bool>());
    CHECK(difference(states, without) > 1e-3);

    // Two blocks at once are two blocks.
    const Small other(9);
    const auto a = before, b = other.block();
    nn::GraphEdges both;
    const std::int64_t width = std::max(a.edges.star.size(1), b.edges.star.size(1)), shift = a.nodes.size(0);
    const auto padded = [&](const at::Tensor& ids, std::int64_t by, std::int64_t to) {
        const at::Tensor moved = at::where(ids.ge(0), ids + by, ids);
        return at::cat({moved, at::full({ids.size(0), to - ids.size(1)}, -1, at::kLong)}, 1);
    };
    both.star = at::cat({padded(a.edges.star, 0, width), padded(b.edges.star, shift, width)});
    both.band = at::cat({a.edges.band, padded(b.edges.band, shift, 3)});
    both.block = Small::targets;
    const at::Tensor together = model->forward(at::cat({a.states, b.states}), at::cat({a.nodes, b.nodes}), both).text;
    CHECK(difference(together.narrow(0, 0, Small::targets), states) < 1e-5);
    CHECK(difference(together.narrow(0, Small::targets, Small::targets),
                     model->forward(b.states, b.nodes, b.edges).text) < 1e-5);
}

TEST_CASE("Training lowers the loss and leaves the model alone", "[graph]") {
    const Small small;
    torch::manual_seed(1);
    const nn::OutputLayer head = output();
    const at::Tensor before = head.words.clone();
    const auto model = decoder(2);
    std::vector<double> losses;
    nn::GraphTrainOptions options;
    options.steps = 60, options.learning_rate = 3e-3, options.warm_up = 10, options.blocks_a_step = 1;
    const auto blocks = [&](index_t) { return small.block(); };
    nn::train_graph(model, head, blocks, 1, options,
                    [&](std::int64_t, std::int64_t, double loss) { losses.push_back(loss); });
    REQUIRE(losses.size() == 60);
    const auto log_p = nn::graph_log_probs(model, head, small.text(), nn::StoredStates{small.corpus_states}, 3,
                                           {.left = 1, .right = 2});
    REQUIRE(log_p.size() == 7);
    double after = 0;
    for (const float x : log_p) after -= x / 7.0;
    CHECK(after < 0.7 * losses[0]);
    CHECK(at::equal(before, head.words));
    CHECK(!head.words.grad().defined());
    // The same seed, the same weights.
    const auto again = decoder(2);
    nn::train_graph(again, head, blocks, 1, options);
    const auto weights = model->weights(), repeated = again->weights();
    for (std::size_t i = 0; i < weights.size(); ++i) CHECK(at::equal(weights[i].second, repeated[i].second));
    CHECK_THROWS_WITH(nn::graph_log_prob(head, before, before, before, 1.5), Catch::Contains("0 to 1"));
}

TEST_CASE("Codes stand for their states, decoded once", "[graph]") {
    torch::manual_seed(3);
    ProductQuantizer q;
    q.dim = 6, q.parts = 2, q.width = 4, q.centroids_a_part = 3;
    const auto fill = [](std::vector<float>& v, std::int64_t n) {
        const at::Tensor t = at::randn({n});
        v.assign(t.data_ptr<float>(), t.data_ptr<float>() + n);
    };
    fill(q.centroids, 12), fill(q.rotation, 24), fill(q.shift, 4);
    q.check();
    const std::vector<std::uint8_t> codes{0, 1, 2, 0, 1, 1};
    const nn::CodedStates states{&q, {codes.data(), 3, 2}};
    const std::vector<index_t> rows{2, 0, 2, 1};
    const at::Tensor got = states(rows);
    Matrix decoded(3, 6);
    q.decode({codes.data(), 3, 2}, decoded);
    for (std::size_t i = 0; i < rows.size(); ++i)
        for (std::int64_t j = 0; j < 6; ++j)
            CHECK(got[static_cast<std::int64_t>(i)][j].item<float>() ==
                  Approx(decoded[rows[i]][static_cast<std::size_t>(j)]).margin(1e-5));
    CHECK_THROWS_WITH(states(std::vector<index_t>{3}), Catch::Contains("entries below 3"));
    const std::vector<std::uint8_t> bad{0, 3};
    CHECK_THROWS_WITH(q.decode({bad.data(), 1, 2}, MutRows(decoded).slice(0, 1)), Catch::Contains("codes below 3"));
}

TEST_CASE("A decoder comes back from its file", "[graph]") {
    const Folder folder;
    const std::string path = folder / "decoder.safetensors";
    torch::manual_seed(2);
    const nn::GraphDecoderOptions options =
        nn::GraphDecoderOptions().in_dim(Small::d).dim(9).out_dim(10).heads(3).layers(2);
    nn::GraphDecoder one(options), two(options);
    nn::save_graph_decoder(path, one);
    nn::load_graph_decoder(SafeTensors::open(path), path, two);
    for (std::size_t i = 0; i < one->weights().size(); ++i)
        CHECK(at::equal(one->weights()[i].second, two->weights()[i].second));
    nn::GraphDecoder other(nn::GraphDecoderOptions().in_dim(Small::d).heads(3).layers(2));
    CHECK_THROWS_WITH(nn::load_graph_decoder(SafeTensors::open(path), path, other),
                      Catch::Contains("expected [12, 12]"));
    auto block = Small().block();
    block.edges.star[0][0] = 1000;
    CHECK_THROWS_WITH(other->forward(block.states, block.nodes, block.edges), Catch::Contains("star"));
}
