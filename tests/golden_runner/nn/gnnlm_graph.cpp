// SPDX-License-Identifier: MIT
#include "fairseq_model.hpp"

#include <mnemo/nn/gnn_lm.hpp>
#include <mnemo/nn/graph_layer.hpp>

#include <torch/csrc/autograd/autograd.h>

namespace {

using namespace mnemo;
using golden::Check;
using golden::Fixture;
using golden::floats_of;

/// Sources of each destination as a rectangle.
at::Tensor lists_of(const Fixture& fixture, const std::string& name, index_t destinations) {
    const auto edges = fixture.ids(name);
    const std::size_t count = edges.size() / 2;
    std::vector<std::vector<std::int64_t>> sources(static_cast<std::size_t>(destinations));
    for (std::size_t i = 0; i < count; ++i) sources.at(static_cast<std::size_t>(edges[count + i])).push_back(edges[i]);
    std::size_t width = 0;
    for (const auto& s : sources) width = std::max(width, s.size());
    const at::Tensor out = at::full({destinations, static_cast<std::int64_t>(width)}, -1, at::kLong);
    for (std::size_t v = 0; v < sources.size(); ++v)
        std::copy(sources[v].begin(), sources[v].end(), out.data_ptr<std::int64_t>() + v * width);
    return out;
}
nn::GraphEdges edges_in(const Fixture& fixture, index_t targets, index_t nodes) {
    nn::GraphEdges edges;
    edges.star = lists_of(fixture, "in.edges.ntgt_inter_tgt", targets);
    edges.band = lists_of(fixture, "in.edges.ntgt_intra_ntgt", nodes);
    edges.visible = at::zeros({targets, targets}, at::TensorOptions(at::kBool));
    const auto own = fixture.ids("in.edges.tgt_intra_tgt");
    for (std::size_t i = 0; i < own.size() / 2; ++i) {
        auto cell = edges.visible[own[i + own.size() / 2]][own[i]];
        if (cell.item<bool>()) fail("in.edges.tgt_intra_tgt: an edge that comes twice is not handled");
        cell.fill_(true);
    }
    return edges;
}

nn::GraphDecoder decoder_in(const Fixture& fixture, const std::string& prefix) {
    nn::GraphDecoderOptions options;
    const std::string layer = prefix + "gcs.0.";
    const std::int64_t d = fixture.size(layer + "k_linears.0.weight", 1);
    const std::string adapt = prefix + "adapt_ws.0.weight", out = prefix + "out.weight";
    options.dim(d).in_dim(fixture.has(adapt) ? fixture.size(adapt, 1) : d);
    options.out_dim(fixture.has(out) ? fixture.size(out, 0) : d).heads(fixture.integer("n_heads"));
    std::int64_t layers = 0;
    while (fixture.has(text(prefix, "gcs.", layers, ".relation_att"))) ++layers;
    nn::GraphDecoder decoder(options.layers(layers));
    nn::load_graph_decoder(fixture.tensors(), fixture.file().string(), decoder, prefix);
    decoder->eval();
    return decoder;
}

void layer_case(const Fixture& fixture, Check& check) {
    for (const auto& [field, expected] : {std::pair{"ntypes", "tgt=0,ntgt=1"},
                                          {"etypes", "intra=0,inter=1"},
                                          {"etype_order", "tgt_intra_tgt,ntgt_inter_tgt,ntgt_intra_ntgt"}})
        if (fixture.text(field) != expected) fail(field, ": expected ", expected, ", got ", fixture.text(field));
    const nn::GraphDecoder decoder = decoder_in(fixture, "w.");
    if (decoder->options().layers() != fixture.integer("n_layers"))
        fail("n_layers: expected as many layers as weights");
    const golden::Tolerance tolerance{fixture.number("tolerance"), 1e-4};
    const at::Tensor text = tensor_of(fixture, "in.tgt").requires_grad_(),
                     nodes = tensor_of(fixture, "in.ntgt").requires_grad_();
    const nn::GraphEdges edges = edges_in(fixture, text.size(0), nodes.size(0));
    const auto states = decoder->forward(text, nodes, edges, true);
    check.close("out.tgt", floats_of(states.text), tolerance);
    check.close("out.ntgt", floats_of(states.nodes), tolerance);
    {
        const at::NoGradGuard no_grad; // another way to compute the same, and only what the text needs
        const auto fast = decoder->forward(text, nodes, edges, true), pruned = decoder->forward(text, nodes, edges);
        check.close("out.tgt", floats_of(fast.text), tolerance);
        check.close("out.ntgt", floats_of(fast.nodes), tolerance);
        check.close("out.tgt", floats_of(pruned.text), tolerance);
    }
    std::vector<at::Tensor> inputs{text, nodes};
    std::vector<std::string> names{"grad.in.tgt", "grad.in.ntgt"};
    for (const auto& [name, weight] : decoder->weights()) inputs.push_back(weight), names.push_back("grad.w." + name);
    const at::Tensor loss = (states.text * tensor_of(fixture, "in.cotangent.tgt")).sum() +
                            (states.nodes * tensor_of(fixture, "in.cotangent.ntgt")).sum();
    const auto gradients = torch::autograd::grad({loss}, inputs, {}, false, false, true);
    for (std::size_t i = 0; i < names.size(); ++i)
        check.close(names[i], floats_of(gradients[i].defined() ? gradients[i] : at::zeros_like(inputs[i])), tolerance);
    for (const auto& name : fixture.names("grad."))
        if (std::find(names.begin(), names.end(), name) == names.end()) fail(name, ": a gradient of nothing");
}

} // namespace

GOLDEN("gnnlm.layer") { layer_case(fixture, check); }
GOLDEN("gnnlm.hgt") { layer_case(fixture, check); }

GOLDEN("gnnlm.lm") {
    const at::NoGradGuard no_grad;
    const nn::GraphDecoder decoder = decoder_in(fixture, "w.hgt_decoder.");
    if (decoder->options().layers() != fixture.integer("graph_layer")) fail("graph_layer: expected as many as weights");
    const at::Tensor text = tensor_of(fixture, "in.tgt_features"), nodes = tensor_of(fixture, "in.ntgt_features");
    const at::Tensor graph = decoder->forward(text, nodes, edges_in(fixture, text.size(0), nodes.size(0))).text;
    const golden::Tolerance tolerance{fixture.number("tolerance"), 1e-4};
    check.close("out.gcn_feat", floats_of(graph), tolerance);

    // The frozen output layer.
    nn::OutputLayer output;
    if (fixture.flag("adaptive")) {
        const std::string softmax = "w.adaptive_softmax.";
        output.words = tensor_of(fixture, softmax + "head.word_proj.weight");
        output.classes = tensor_of(fixture, softmax + "head.class_proj.weight");
        for (std::int64_t i = 0; i < output.classes.size(0); ++i) {
            const std::string tail = mnemo::text(softmax, "tail.", i, ".");
            at::Tensor projection = tensor_of(fixture, tail + "0.weight"),
                       embedding = tensor_of(fixture, tail + "2.weight");
            if (projection.size(1) != text.size(1) ||
                fixture.floats(tail + "0.weight") ==
                    fixture.floats(mnemo::text("w.embed_tokens.embeddings.", i + 1, ".1.weight")))
                projection = projection.t(); // tied to the input's, which maps the other way
            output.bands.push_back({projection.contiguous(), embedding});
        }
    } else {
        output.words = tensor_of(fixture, "w.embed_tokens.weight");
    }
    const double ratio = fixture.number("orig_prob_ratio");
    const at::Tensor targets = golden::ids_of(fixture, "in.targets").view(-1);
    check.close("out.logp_full", floats_of(nn::graph_log_prob_all(output, graph, text, ratio)), tolerance);
    check.close("out.logp_target", floats_of(nn::graph_log_prob(output, graph, text, targets, ratio)), tolerance);
}
