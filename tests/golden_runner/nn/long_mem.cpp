// SPDX-License-Identifier: MIT
#include "tensors.hpp"

#include <mnemo/nn/long_mem.hpp>
#include <mnemo/papers/long_mem_tasks.hpp>

#include <limits>
#include <numeric>
#include <set>

namespace {

using namespace mnemo;
using golden::Check;
using golden::Fixture;
using golden::floats_of;
using golden::Tolerance;

constexpr Tolerance kLayer{2e-5, 2e-5}, kModel{2e-4, 2e-4};

at::Tensor weight_in(const Fixture& fixture, const std::string& name, at::IntArrayRef shape) {
    const at::Tensor t = tensor_of(fixture, name);
    if (t.sizes() != shape) fail(name, ": expected shape ", nn::shape_text(shape), ", got ", nn::shape_text(t.sizes()));
    return t;
}
nn::HuggingFaceLm backbone_in(const Fixture& fixture) {
    if (fixture.has_text("mode") && fixture.text("mode") != "alibi")
        fail("metadata `mode`: expected alibi, got ", fixture.text("mode"));
    return nn::HuggingFaceLm(nn::long_mem_backbone_options(fixture.integer("vocab"), fixture.integer("embed_dim"),
                                                           fixture.integer("num_layers"), fixture.integer("num_heads")),
                             [&](const std::string& name, at::IntArrayRef shape) {
                                 return weight_in(fixture, "w.backbone." + nn::long_mem_backbone_name(name), shape);
                             });
}
// ids [heads, rows * batch, chunks] of a shared bank, oldest chunk 0, -1 where there are too few; queries were batch
// after batch.
using HalfReading = nn::ReadingOf<ChunkRing<half>>;
std::vector<index_t> ids_of(const nn::MemoryReading& reading, index_t batch, index_t chunks) {
    std::vector<index_t> out;
    const auto& ring = dynamic_cast<const HalfReading&>(reading).store(0);
    const auto& [hits, first, rows] = reading.parts.front();
    for (index_t h = 0; h < ring.heads(); ++h)
        for (index_t t = 0; t < rows / batch; ++t)
            for (index_t b = 0; b < batch; ++b)
                for (index_t i = 0; i < chunks; ++i) {
                    const auto found = hits[h].ids(b * (rows / batch) + t);
                    out.push_back(i < static_cast<index_t>(found.size()) ? ring.age(found[static_cast<std::size_t>(i)])
                                                                         : -1);
                }
    return out;
}
LongMemBanks<> banks_in(const Fixture& fixture, index_t batch) {
    return LongMemBanks({.heads = fixture.integer("num_heads"),
                         .head_dim = fixture.integer("embed_dim") / fixture.integer("num_heads"),
                         .memory_tokens = fixture.integer("memory_size"),
                         .chunk = fixture.integer("chunk_size"),
                         .k = fixture.integer("k"),
                         .reference = true},
                        batch);
}
nn::LongMem<> model_in(const Fixture& fixture, index_t batch) {
    const nn::HuggingFaceLm backbone = backbone_in(fixture);
    const auto& o = backbone->options();
    nn::SideNetworkOptions side{.dim = o.dim, .ffn_dim = o.ffn_dim, .heads = o.heads};
    side.layers = o.layers / fixture.integer("layer_reduction_factor");
    side.memory_layer = fixture.integer("retrieval_layer_index") / fixture.integer("layer_reduction_factor");
    side.reference = true;
    return {backbone,
            nn::SideNetwork(side, [&](const std::string& name,
                                      at::IntArrayRef shape) { return weight_in(fixture, "w.side." + name, shape); }),
            fixture.integer("layer_reduction_factor"), fixture.integer("retrieval_layer_index"),
            banks_in(fixture, batch)};
}
// One layer with the fixture's weights, those that it has not are zero.
nn::SideNetwork layer_in(const Fixture& fixture, const std::string& prefix) {
    nn::SideNetworkOptions o{.dim = fixture.integer("embed_dim"),
                             .ffn_dim = 4 * fixture.integer("embed_dim"),
                             .heads = fixture.integer("num_heads"),
                             .layers = 1};
    if (fixture.has("w.fc1.bias")) o.ffn_dim = fixture.size("w.fc1.bias", 0);
    if (fixture.has_text("ln_eps")) o.norm_epsilon = fixture.number("ln_eps");
    o.reference = true;
    return nn::SideNetwork(o, [&](const std::string& name, at::IntArrayRef shape) {
        std::string own = name.rfind("layers.0.", 0) == 0 ? name.substr(9) : name;
        if (own.rfind(prefix, 0) == 0) own = own.substr(prefix.size());
        return fixture.has("w." + own) ? weight_in(fixture, "w." + own, shape) : at::zeros(shape);
    });
}
void compare_gradients(const Fixture& fixture, Check& check, const nn::SideNetwork& net, const std::string& strip,
                       const std::string& prefix, Tolerance tolerance) {
    for (const auto& [name, parameter] : net->weights()) {
        const std::string own = prefix + (name.rfind(strip, 0) == 0 ? name.substr(strip.size()) : name);
        if (fixture.has(own))
            check.close(own, floats_of(parameter.grad().defined() ? parameter.grad() : at::zeros_like(parameter)),
                        tolerance);
    }
}
// [rows, batch, dim] and back.
at::Tensor turned(const at::Tensor& t) { return t.transpose(0, 1).contiguous(); }

} // namespace

GOLDEN("longmem.alibi") {
    const index_t heads = fixture.integer("num_heads");
    std::vector<float> slopes;
    for (const double slope : nn::alibi_slopes(heads)) slopes.push_back(static_cast<float>(slope));
    check.close("out.slopes", slopes, {1e-6, 1e-6});
    at::Tensor bias = nn::alibi_bias(ids_of(fixture, "in.mask"), heads);
    const std::string& dtype = fixture.text("dtype");
    if (dtype != "float32" && dtype != "float16") fail("metadata `dtype`: expected float32 or float16, got ", dtype);
    if (dtype == "float16") bias = bias.to(at::kHalf);
    check.that("out.alibi", bias.sizes().vec() == fixture.shape("out.alibi"), "the shape of the bias");
    check.close("out.alibi", floats_of(bias), dtype == "float16" ? Tolerance{} : Tolerance{1e-6, 1e-6});
}

GOLDEN("longmem.joint_attention") {
    const index_t rows = fixture.integer("tgt_len"), batch = fixture.integer("bsz"), dim = fixture.integer("embed_dim");
    const index_t heads = fixture.integer("num_heads"), d = dim / heads;
    const nn::SideNetwork net = layer_in(fixture, "self_attn.");
    nn::LocalBias bias{tensor_of(fixture, "in.position_encoding"), {}};
    if (fixture.integer("causal") != 0) bias.mask = tensor_of(fixture, "in.attn_mask").view({1, 1, rows, rows});
    // What was retrieved, as a bank for each row of the batch in which query t finds chunk t.
    std::vector<ChunkRing<half>> rings;
    nn::SharedReading reading;
    if (fixture.integer("memory") != 0) {
        const index_t k = fixture.integer("num_retrieved");
        auto given = c10::make_intrusive<HalfReading>();
        rings.reserve(static_cast<std::size_t>(batch));
        for (index_t b = 0; b < batch; ++b) {
            const auto tokens = [&](const char* name) { // [rows * k, dim]
                return tensor_of(fixture, name)
                    .view({batch, heads, rows, k, d})[b]
                    .permute({1, 2, 0, 3})
                    .reshape({rows * k, dim});
            };
            rings.emplace_back(ChunkRingOptions{.heads = heads, .head_dim = d, .chunk = k, .memory_tokens = rows * k});
            const at::Tensor keys = tokens("in.retrieval.k"), values = tokens("in.retrieval.v");
            rings.back().append(nn::as_rows(keys), nn::as_rows(values));
            HeadHits hits;
            hits.heads.resize(static_cast<std::size_t>(heads));
            for (Hits& head : hits.heads)
                for (index_t t = 0; t < rows; ++t) head.push(t, 0), head.end_row();
            given->add(rings.back(), std::move(hits), b * rows, rows);
        }
        reading = std::move(given);
    }
    const at::Tensor x = tensor_of(fixture, "in.x").requires_grad_(true);
    const at::Tensor out = net->attend(0, turned(x), bias, bias, [&](const at::Tensor&) { return reading; });
    check.close("out.attn_output", floats_of(turned(out)), kLayer);
    turned(out).backward(tensor_of(fixture, "in.grad_out"));
    check.close("grad.x", floats_of(x.grad()), kLayer);
    compare_gradients(fixture, check, net, "layers.0.self_attn.", "grad.", kLayer);
}

GOLDEN("longmem.sidenet_layer") {
    if (fixture.text("activation") != "gelu_erf")
        fail("metadata `activation`: expected gelu_erf, got ", fixture.text("activation"));
    const index_t batch = fixture.integer("bsz");
    const nn::SideNetwork net = layer_in(fixture, "");
    const at::Tensor hidden = tensor_of(fixture, "in.attn_mask");
    const nn::LocalBias unmasked{tensor_of(fixture, "in.position_encoding"),
                                 hidden.view({1, 1, hidden.size(0), hidden.size(1)})};
    nn::LocalBias bias = unmasked;
    if (fixture.integer("padded") != 0) {
        const at::Tensor padding = ids_of(fixture, "in.padding_mask").ne(0).view({batch, 1, 1, hidden.size(1)});
        bias.mask = at::where(padding, at::full({}, -std::numeric_limits<float>::infinity()), unmasked.mask);
    }
    nn::SharedReading reading;
    nn::SideNetworkImpl::Recall recall;
    std::vector<LongMemBanks<>> banks;
    if (fixture.integer("memory") != 0) {
        banks.push_back(banks_in(fixture, batch));
        if (fixture.has("in.mem.k")) banks.front().remember(fixture.matrix("in.mem.k"), fixture.matrix("in.mem.v"));
        recall = [&](const at::Tensor& queries) {
            auto found = c10::make_intrusive<HalfReading>();
            found->filled_to = banks.front().filled_to();
            for (auto& r : banks.front().recall(nn::as_rows(queries)))
                found->add(*r.ring, std::move(r.hits), r.first, r.rows);
            return reading = std::move(found);
        };
    }
    const at::Tensor x = tensor_of(fixture, "in.x").requires_grad_(true);
    const at::Tensor residual = tensor_of(fixture, "in.residual").requires_grad_(true);
    const at::Tensor out = turned(net->layer(0, turned(x), turned(residual), bias, unmasked, recall));
    check.close("out.x", floats_of(out), kLayer);
    if (fixture.has("out.knn_ids"))
        check.equal("out.knn_ids", ids_of(*reading, batch, fixture.integer("k") / fixture.integer("chunk_size")));
    out.backward(tensor_of(fixture, "in.grad_out"));
    check.close("grad.x", floats_of(x.grad()), kLayer);
    check.close("grad.residual", floats_of(residual.grad()), kLayer);
    compare_gradients(fixture, check, net, "layers.0.", "grad.", kLayer);
}

GOLDEN("longmem.backbone") {
    const at::NoGradGuard no_grad;
    const nn::HuggingFaceLm model = backbone_in(fixture);
    const at::Tensor tokens = ids_of(fixture, "in.tokens");
    nn::TokenInfo info;
    info.mask = tokens.ne(fixture.integer("pad_idx"));
    const index_t layers = fixture.integer("num_layers"), r = fixture.integer("retrieval_layer_index");
    std::vector<nn::Tap> taps;
    for (index_t i = 0; i < layers; ++i) taps.push_back({nn::Tap::hidden, i});
    taps.push_back({nn::Tap::prehead, 0});
    for (const auto point : {nn::Tap::query, nn::Tap::key, nn::Tap::value}) taps.push_back({point, r});
    const auto states = model->states(tokens, taps, nullptr, info);
    const auto at = static_cast<std::size_t>(layers);
    for (std::size_t i = 0; i <= at; ++i) check.close(text("out.hidden.", i), floats_of(states[i]), kLayer);
    check.close("out.logits", floats_of(model->logits(states[at])), kLayer);
    check.close("out.q", floats_of(states[at + 1]), kLayer);
    check.close("out.k", floats_of(states[at + 2]), kLayer);
    check.close("out.v", floats_of(states[at + 3]), kLayer);
    check.close("out.position_encoding", floats_of(nn::alibi_bias(info.mask, fixture.integer("num_heads"))), kLayer);
}

GOLDEN("longmem.model") {
    const at::Tensor tokens = ids_of(fixture, "in.tokens"), targets = ids_of(fixture, "in.targets");
    const index_t segments = tokens.size(0), batch = tokens.size(1), pad = fixture.integer("pad_idx");
    if (fixture.integer("memory_layer") !=
        fixture.integer("retrieval_layer_index") / fixture.integer("layer_reduction_factor"))
        fail("metadata `memory_layer`: expected the retrieval layer over the reduction");
    nn::LongMem model = model_in(fixture, batch);
    std::vector<float> logits, losses;
    std::vector<index_t> levels, counts;
    for (index_t s = 0; s < segments; ++s) {
        const bool filled = model.banks().rings().front().chunks() > 0;
        const at::Tensor out = model.logits(model.forward(tokens[s], tokens[s].ne(pad)));
        const auto values = floats_of(out);
        logits.insert(logits.end(), values.begin(), values.end());
        const at::Tensor counted = targets[s].ne(pad);
        const at::Tensor log_p = at::log_softmax(out, -1).gather(-1, targets[s].unsqueeze(-1)).squeeze(-1);
        const at::Tensor loss = -(log_p * counted).sum();
        loss.backward();
        losses.push_back(loss.item<float>());
        counts.push_back(counted.sum().item<std::int64_t>());
        if (filled && fixture.has(text("out.knn_ids.", s)))
            check.equal(text("out.knn_ids.", s),
                        ids_of(*model.last_reading(), batch, fixture.integer("k") / fixture.integer("chunk_size")));
        if (s + 1 < segments || fixture.integer("query_only_last") == 0) model.remember();
        levels.push_back(model.banks().rings().front().chunks());
    }
    check.close("out.logits", logits, kModel);
    check.close("out.loss_sum", losses, kModel);
    if (fixture.shape("out.ntokens").size() == 1 && fixture.size("out.ntokens", 0) == segments)
        check.equal("out.ntokens", counts);
    else
        check.equal("out.ntokens", std::vector<index_t>{std::accumulate(counts.begin(), counts.end(), index_t{0})});
    check.equal("out.dstore_idx", levels);
    compare_gradients(fixture, check, model.side(), "", "grad.side.", kModel);
}

GOLDEN("longmem.icl") {
    nn::LongMem model = model_in(fixture, 1);
    const at::NoGradGuard no_grad;
    const at::Tensor segments = ids_of(fixture, "in.segments");
    const auto stream = fixture.ids("in.memory_tokens");
    const index_t length = fixture.integer("context_length"), pad = fixture.integer("pad_idx");
    if (segments.size(0) != static_cast<index_t>(stream.size()) / length || segments.size(2) != length)
        fail("in.segments: expected whole segments of ", length, " of ", stream.size(), " tokens");
    std::vector<index_t> levels; // after each segment and each prompt
    const auto note_level = [&] { levels.push_back(model.banks().rings().front().chunks()); };
    for (index_t s = 0; s < segments.size(0); ++s) {
        model.forward(segments[s], segments[s].ne(pad));
        model.remember();
        note_level();
    }
    std::vector<float> logits;
    std::vector<index_t> best;
    for (index_t i = 0; fixture.has(text("in.prompt", i)); ++i) {
        const at::Tensor prompt = ids_of(fixture, text("in.prompt", i));
        const at::Tensor next = model.logits(model.forward(prompt, prompt.ne(pad)))[0][-1]; // read, not remembered
        const auto values = floats_of(next);
        logits.insert(logits.end(), values.begin(), values.end());
        best.push_back(next.argmax().item<std::int64_t>());
        note_level();
    }
    const auto texts = nlohmann::json::parse(fixture.text("pred_text")).get<std::vector<std::string>>();
    const auto labels = nlohmann::json::parse(fixture.text("labels")).get<std::vector<std::string>>();
    double right = 0;
    for (std::size_t i = 0; i < texts.size(); ++i) right += begins_label(texts[i], labels.at(i)) ? 1 : 0;
    check.that("accuracy_first_seed",
               std::abs(right / static_cast<double>(texts.size()) - fixture.number("accuracy_first_seed")) < 1e-6,
               "the published way of counting");
    check.that("template", long_mem_task(fixture.text("task")).form == fixture.text("template"), "the task's form");
    check.equal("out.dstore_idx", levels);
    check.close("out.next_logits", logits, kModel);
    check.equal("out.pred", best);
}

GOLDEN("longmem.frozen") {
    const auto names = [&](const std::string& field) {
        const auto list = nlohmann::json::parse(fixture.text(field)).get<std::vector<std::string>>();
        return std::set<std::string>(list.begin(), list.end());
    };
    nn::LongMem model = model_in(fixture, 1);
    const std::string of_backbone = "pretrained_model.decoder.model.";
    std::set<std::string> trainable, frozen = {"embed_tokens.weight"};
    for (const auto& [name, parameter] : model.side()->weights())
        if (parameter.requires_grad()) trainable.insert(name);
    for (const auto& [name, parameter] : model.backbone()->weights())
        if (!parameter.requires_grad()) frozen.insert(of_backbone + nn::long_mem_backbone_name(name));
    const auto same = [&](const std::string& what, std::set<std::string> got, std::set<std::string> expected) {
        // One tensor under three names, and the matrix that the side network borrows.
        for (auto* set : {&got, &expected})
            for (const std::string& alias :
                 {std::string("output_projection.weight"), std::string("embed_tokens.weight"),
                  of_backbone + "transformer.wte.weight"})
                set->erase(alias);
        if (got != expected)
            check.failed(text(what, ": expected ", expected.size(), " names, got ", got.size(), ", or others"));
    };
    same("trainable", trainable, names("trainable"));
    same("frozen", frozen, names("frozen"));
    std::set<std::string> all = trainable, stated;
    all.insert(frozen.begin(), frozen.end()), all.insert("version");
    const std::string of_all = "decoder.";
    for (const std::string& key : names("state_dict_keys"))
        stated.insert(key.rfind(of_all, 0) == 0 ? key.substr(of_all.size()) : key);
    same("state_dict_keys", all, stated);

    // The start: copied from the backbone, unless it was drawn.
    const auto start = nlohmann::json::parse(fixture.text("init_from"));
    const nn::SideNetwork copied =
        nn::side_network_from(model.backbone(), fixture.integer("layer_reduction_factor"),
                              fixture.integer("retrieval_layer_index"), nn::SideStart::published, true);
    for (const auto& [name, weight] : copied->weights()) {
        const at::Tensor expected = tensor_of(fixture, "w.side." + name);
        const std::string from = start.at(name);
        if (from == "zeros" ? expected.ne(0).any().item<bool>()
                            : fixture.integer("reload_ptm_layer") != 0 && !at::equal(weight.detach(), expected))
            check.failed(text(name, ": expected what comes from ", from));
    }

    const at::Tensor tokens = ids_of(fixture, "in.tokens");
    const char* states[] = {"empty", "filled"};
    if (tokens.size(0) != 2) fail("in.tokens: expected 2 segments, got ", tokens.size(0));
    for (index_t s = 0; s < 2; ++s) {
        for (const auto& [name, parameter] : model.side()->weights()) parameter.mutable_grad() = at::Tensor();
        const at::Tensor hidden = model.forward(tokens[s]);
        const at::Tensor loss = -model.log_prob_target(hidden, tokens[s]).sum();
        loss.backward();
        check.close(text("out.loss_sum.", states[s]), floats_of(loss.reshape({-1})), kModel);
        std::set<std::string> with_gradient;
        for (const auto& [name, parameter] : model.side()->weights()) {
            if (!parameter.grad().defined()) continue;
            with_gradient.insert(name);
            check.close(text("out.grad_norm.", states[s], ".", name), floats_of(parameter.grad().norm().reshape({-1})),
                        kModel);
        }
        same(text("grad_when_", states[s]), with_gradient, names(text("grad_when_", states[s])));
        for (const at::Tensor& parameter : model.backbone()->parameters())
            if (parameter.grad().defined()) check.failed("a frozen parameter has a gradient");
        model.remember();
    }
}
