// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/safetensors.hpp>
#include <mnemo/nn/adaptive_input.hpp>
#include <mnemo/nn/tensor.hpp>
#include <mnemo/retrieve/neighbour_graph.hpp>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

namespace mnemo::nn {

/// Who attends to whom, as dense lists instead of a general graph. Targets are the positions of one text, or of several
/// blocks of equal length one after another; nodes are what was retrieved for them.
struct GraphEdges {
    at::Tensor star;        // Long [targets, k], the nodes that a target attends to; -1: none
    at::Tensor band;        // Long [nodes, width], the nodes that a node attends to; -1: none
    at::Tensor visible;     // Bool [block, block], row: the target that attends; undefined: itself and all before it
    std::int64_t block = 0; // targets of a block; 0: all
};

/// The edges of a graph whose targets are one block. `window` > 0: a target sees that many positions, itself included.
inline GraphEdges edges_of(const NeighbourGraph& graph, std::int64_t window = 0) {
    std::size_t most = 0;
    for (index_t t = 0; t < graph.targets(); ++t) most = std::max(most, graph.centres_of(t).size());
    GraphEdges out;
    out.star = at::full({graph.targets(), static_cast<std::int64_t>(most)}, -1, at::kLong);
    for (index_t t = 0; t < graph.targets(); ++t) {
        const auto centres = graph.centres_of(t);
        std::copy(centres.begin(), centres.end(),
                  out.star.data_ptr<std::int64_t>() + t * static_cast<std::int64_t>(most));
    }
    out.band = at::empty({graph.nodes(), 3}, at::kLong);
    auto* to = out.band.data_ptr<std::int64_t>();
    for (index_t node = 0; node < graph.nodes(); ++node) {
        *to++ = graph.before[static_cast<std::size_t>(node)];
        *to++ = node;
        *to++ = graph.after[static_cast<std::size_t>(node)];
    }
    if (window > 0) {
        const at::Tensor place = at::arange(graph.targets(), at::kLong);
        const at::Tensor distance = place.unsqueeze(1) - place.unsqueeze(0);
        out.visible = distance.ge(0).logical_and(distance.lt(window));
    }
    return out;
}

namespace detail {

// softmax over the last axis of what `keep` marks; 0 where nothing is marked.
inline at::Tensor kept_softmax(const at::Tensor& scores, const at::Tensor& keep) {
    const at::Tensor hide = keep.logical_not();
    return at::softmax(scores.masked_fill(hide, -INFINITY), -1).masked_fill(hide, 0);
}

// Sixteen sums side by side, so that the compiler may vectorise.
inline float dot(const float* a, const float* b, std::int64_t n) {
    float sums[16] = {};
    std::int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; ++j) sums[j] += a[i + j] * b[i + j];
    float sum = 0;
    for (; i < n; ++i) sum += a[i] * b[i];
    for (int j = 0; j < 16; ++j) sum += sums[j];
    return sum;
}

// Attention of each row over the few nodes of its band: q [rows, D], k and v rows of [nodes, D], band [rows, width].
inline at::Tensor band_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& band,
                                 std::int64_t heads) {
    const Rows queries = as_rows(q), keys = as_rows(k), values = as_rows(v);
    const at::Tensor ids = band.contiguous(), out = at::empty({q.size(0), q.size(1)}, at::kFloat);
    const auto* id = ids.data_ptr<std::int64_t>();
    auto* to = out.data_ptr<float>();
    const std::int64_t width = ids.size(1), d = q.size(1), dk = d / heads;
    at::parallel_for(0, q.size(0), 64, [&](std::int64_t begin, std::int64_t end) {
        std::vector<float> weights(static_cast<std::size_t>(width));
        for (std::int64_t row = begin; row < end; ++row)
            for (std::int64_t h = 0; h < heads; ++h) {
                const float* query = queries.data + row * queries.stride + h * dk;
                float high = -INFINITY, sum = 0;
                for (std::int64_t w = 0; w < width; ++w) {
                    const std::int64_t node = id[row * width + w];
                    float& weight = weights[static_cast<std::size_t>(w)];
                    weight = node < 0 ? -INFINITY : dot(query, keys.data + node * keys.stride + h * dk, dk);
                    high = std::max(high, weight);
                }
                for (float& weight : weights) sum += weight = high == -INFINITY ? 0 : std::exp(weight - high);
                float* mine = to + row * d + h * dk;
                std::fill_n(mine, dk, 0.0f);
                for (std::int64_t w = 0; w < width; ++w) {
                    const float share = sum > 0 ? weights[static_cast<std::size_t>(w)] / sum : 0;
                    if (share == 0) continue;
                    const float* value = values.data + id[row * width + w] * values.stride + h * dk;
                    for (std::int64_t j = 0; j < dk; ++j) mine[j] += share * value[j];
                }
            }
    });
    return out;
}

} // namespace detail

struct GraphLayerOptions {
    TORCH_ARG(std::int64_t, dim) = 0;
    TORCH_ARG(std::int64_t, heads) = 8;
    TORCH_ARG(double, dropout) = 0.3;           // of the update, in training
    TORCH_ARG(double, attention_dropout) = 0.1; // of the attention's weights, in training
};

/// One layer of attention over a text and what was retrieved for it (Meng et al. 2022, section 3.2; Hu et al. 2020).
/// Two types of node, text (0) and retrieved (1); two relations, within a type (0) and from retrieved to text (1):
///
///     a_uv = softmax over u of  (Q_v . K_u Att_r) pri_r / sqrt(d_k),   by head and type of edge
///     t_v  = mean over the types of edge that end in v's type of  sum_u a_uv V_u Msg_r
///     h'_v = LayerNorm(h_v + A t_v)
///
/// The relation acts on the few queries instead of the many keys, and what a target attends to is never projected:
/// q . (W h) = (q W) . h, and a sum of W h is W times the sum. A retrieved node attends to a band of at most three.
/// Parameters have the names of the reference (ShannonAI/GNN-LM, hgt.py) in weights().
class GraphLayerImpl : public torch::nn::Module {
  public:
    explicit GraphLayerImpl(const GraphLayerOptions& options) : options_(options) {
        const std::int64_t d = options.dim(), h = options.heads();
        if (d < 1 || h < 1 || d % h != 0)
            fail("graph layer: expected a width that is a multiple of the heads, got ", d, " and ", h);
        const std::int64_t dk = d / h;
        for (std::size_t type = 0; type < 2; ++type) {
            const auto linear = [&](const char* name) {
                const double bound = 1 / std::sqrt(static_cast<double>(d));
                const std::string full = text(name, "_linears_", type);
                return Linear{register_parameter(full + "_weight", at::empty({d, d}).uniform_(-bound, bound)),
                              register_parameter(full + "_bias", at::empty({d}).uniform_(-bound, bound))};
            };
            k_[type] = linear("k"), q_[type] = linear("q"), v_[type] = linear("v"), a_[type] = linear("a");
            norm_[type] = {register_parameter(text("norms_", type, "_weight"), at::ones({d})),
                           register_parameter(text("norms_", type, "_bias"), at::zeros({d}))};
        }
        const double bound = std::sqrt(6.0 / static_cast<double>((h + 2) * dk * dk)); // Xavier, as torch counts fans
        att_ = register_parameter("relation_att", at::empty({2, h, dk, dk}).uniform_(-bound, bound));
        msg_ = register_parameter("relation_msg", at::empty({2, h, dk, dk}).uniform_(-bound, bound));
        pri_ = register_parameter("relation_pri", at::ones({2, h}));
    }

    const GraphLayerOptions& options() const { return options_; }

    /// New states of the targets [targets, dim] from theirs and those of the nodes [nodes, dim].
    at::Tensor targets(const at::Tensor& text, const at::Tensor& nodes, const GraphEdges& edges) const {
        const std::int64_t n = text.size(0), d = options_.dim(), h = options_.heads(), dk = d / h;
        const std::int64_t block = edges.block > 0 ? edges.block : n, blocks = block > 0 ? n / block : 0;
        if (blocks * block != n) fail("graph layer: expected blocks of ", block, " targets, got ", n, " targets");
        const at::Tensor q = by_head(q_[0](text)); // [h, n, dk]

        const auto in_blocks = [&](const at::Tensor& x) { return x.reshape({h, blocks, block, dk}); };
        const at::Tensor k = in_blocks(by_head(k_[0](text))), v = in_blocks(by_head(v_[0](text)));
        const at::Tensor visible =
            edges.visible.defined() ? edges.visible : at::ones({block, block}, at::TensorOptions(at::kBool)).tril();
        const at::Tensor scores = at::matmul(in_blocks(through(q, 0)), k.transpose(2, 3)); // [h, blocks, block, block]
        const at::Tensor own = at::matmul(drop(detail::kept_softmax(scores, visible)), v).reshape({h, n, dk});
        at::Tensor message = at::bmm(own, msg_[0]);

        if (edges.star.numel() > 0) {
            const std::int64_t width = edges.star.size(1);
            const at::Tensor queries = at::bmm(through(q, 1), k_[1].weight.view({h, dk, d})); // [h, n, d]
            const at::Tensor found = nodes.index_select(0, edges.star.clamp_min(0).view(-1)).view({n, width, d});
            const at::Tensor near = at::bmm(queries.transpose(0, 1), found.transpose(1, 2)); // [n, h, width]
            const at::Tensor weights = drop(detail::kept_softmax(near, edges.star.ge(0).unsqueeze(1)));
            const at::Tensor sums = at::bmm(weights, found).transpose(0, 1); // [h, n, d]
            const at::Tensor values = at::bmm(sums, v_[1].weight.view({h, dk, d}).transpose(1, 2)) +
                                      weights.sum(-1).t().unsqueeze(-1) * v_[1].bias.view({h, 1, dk});
            message = message + at::bmm(values, msg_[1]);
        }
        // Two types of edge end in a target, also where nothing was found for it.
        const at::Tensor update = a_[0]((message / 2).transpose(0, 1).reshape({n, d}));
        return normed(0, text, update);
    }

    /// New states of the nodes `rows` (Long, or undefined for all), which attend to those in `band` [rows, width].
    at::Tensor nodes(const at::Tensor& states, const at::Tensor& band, const at::Tensor& rows = {}) const {
        const std::int64_t d = options_.dim(), h = options_.heads(), dk = d / h;
        const at::Tensor mine = rows.defined() ? states.index_select(0, rows) : states;
        if (band.size(0) != mine.size(0))
            fail("graph layer: expected a band of ", mine.size(0), " rows, got ", band.size(0));
        // The relation is folded into the projections; a bias of the keys would shift all scores of a row alike.
        const at::Tensor scale = (pri_[0] / std::sqrt(static_cast<double>(dk))).view({h, 1, 1});
        const at::Tensor keys_of =
            at::bmm(att_[0].transpose(1, 2) * scale, k_[1].weight.view({h, dk, d})).reshape({d, d});
        const at::Tensor out_of =
            at::bmm(a_[1].weight.view({d, h, dk}).permute({1, 0, 2}), msg_[0].transpose(1, 2)); // [h, d, dk]
        const at::Tensor q = q_[1](mine), k = at::linear(states, keys_of), v = v_[1](states);
        at::Tensor message;
        if (!at::GradMode::is_enabled() && q.scalar_type() == at::kFloat && q.device().is_cpu()) {
            message = detail::band_attention(q, k, v, band, h);
        } else {
            const std::int64_t n = mine.size(0), width = band.size(1);
            const at::Tensor ids = band.clamp_min(0).view(-1);
            const auto gather = [&](const at::Tensor& x) { return x.index_select(0, ids).view({n, width, h, dk}); };
            const at::Tensor scores = (q.view({n, 1, h, dk}) * gather(k)).sum(-1).transpose(1, 2); // [n, h, width]
            const at::Tensor weights = drop(detail::kept_softmax(scores, band.ge(0).unsqueeze(1)));
            message = (weights.transpose(1, 2).unsqueeze(-1) * gather(v)).sum(1).reshape({n, d});
        }
        return normed(1, mine, at::linear(message, out_of.permute({1, 0, 2}).reshape({d, d}), a_[1].bias));
    }

    /// Tensors under the reference's names.
    void weights(const std::string& prefix, NamedWeights& out) const {
        for (std::size_t type = 0; type < 2; ++type) {
            for (const auto& [name, linear] : {std::pair{"k", &k_}, {"q", &q_}, {"v", &v_}, {"a", &a_}}) {
                out.emplace_back(text(prefix, name, "_linears.", type, ".weight"), (*linear)[type].weight);
                out.emplace_back(text(prefix, name, "_linears.", type, ".bias"), (*linear)[type].bias);
            }
            out.emplace_back(text(prefix, "norms.", type, ".weight"), norm_[type].weight);
            out.emplace_back(text(prefix, "norms.", type, ".bias"), norm_[type].bias);
        }
        out.emplace_back(prefix + "relation_att", att_);
        out.emplace_back(prefix + "relation_msg", msg_);
        out.emplace_back(prefix + "relation_pri", pri_);
    }

  private:
    struct Linear {
        at::Tensor weight, bias;
        at::Tensor operator()(const at::Tensor& x) const { return at::linear(x, weight, bias); }
    };
    at::Tensor by_head(const at::Tensor& x) const { // [n, d] -> [h, n, dk]
        return x.view({x.size(0), options_.heads(), -1}).transpose(0, 1);
    }
    // Queries [h, n, dk] through a relation, scaled.
    at::Tensor through(const at::Tensor& q, std::int64_t relation) const {
        const at::Tensor scale = pri_[relation] / std::sqrt(static_cast<double>(options_.dim() / options_.heads()));
        return at::bmm(q, att_[relation].transpose(1, 2)) * scale.view({-1, 1, 1});
    }
    at::Tensor drop(const at::Tensor& weights) const {
        return is_training() && options_.attention_dropout() > 0
                   ? at::dropout(weights, options_.attention_dropout(), true)
                   : weights;
    }
    at::Tensor normed(std::size_t type, const at::Tensor& states, const at::Tensor& update) const {
        const at::Tensor added =
            is_training() && options_.dropout() > 0 ? at::dropout(update, options_.dropout(), true) : update;
        return at::layer_norm(states + added, {options_.dim()}, norm_[type].weight, norm_[type].bias, 1e-5);
    }

    GraphLayerOptions options_;
    Linear k_[2], q_[2], v_[2], a_[2], norm_[2]; // [d, d], [d]; by type of node
    at::Tensor att_, msg_;                       // [relations, h, dk, dk]
    at::Tensor pri_;                             // [relations, h]
};
TORCH_MODULE(GraphLayer);

struct GraphDecoderOptions {
    TORCH_ARG(std::int64_t, in_dim) = 0;
    TORCH_ARG(std::int64_t, dim) = 0;     // of the layers; 0: in_dim
    TORCH_ARG(std::int64_t, out_dim) = 0; // 0: in_dim
    TORCH_ARG(std::int64_t, layers) = 3;
    TORCH_ARG(std::int64_t, heads) = 8;
    TORCH_ARG(double, dropout) = 0.3;
    TORCH_ARG(double, attention_dropout) = 0.1;
};

/// A stack of graph layers, with gelu(linear) of each type of node before it and a linear map behind it where widths
/// differ. What the result does not depend on is not computed: of the last layer the nodes, of the one before all but
/// the centres, and so on.
class GraphDecoderImpl : public torch::nn::Module {
  public:
    struct States {
        at::Tensor text, nodes; // [targets, out_dim], [nodes, out_dim]
    };

    explicit GraphDecoderImpl(GraphDecoderOptions options) : options_(std::move(options)) {
        const std::int64_t in = options_.in_dim();
        if (options_.dim() == 0) options_.dim(in);
        if (options_.out_dim() == 0) options_.out_dim(in);
        const std::int64_t d = options_.dim();
        if (in < 1 || options_.layers() < 1) fail("graph decoder: expected a width and layers of at least 1");
        const auto linear = [&](const std::string& name, std::int64_t to, std::int64_t from) {
            const double bound = 1 / std::sqrt(static_cast<double>(from));
            return Linear{register_parameter(name + "_weight", at::empty({to, from}).uniform_(-bound, bound)),
                          register_parameter(name + "_bias", at::empty({to}).uniform_(-bound, bound))};
        };
        if (d != in)
            for (std::size_t type = 0; type < 2; ++type) adapt_[type] = linear(text("adapt_ws_", type), d, in);
        for (std::int64_t i = 0; i < options_.layers(); ++i)
            layers_.push_back(
                register_module(text("gcs_", i), GraphLayer(GraphLayerOptions()
                                                                .dim(d)
                                                                .heads(options_.heads())
                                                                .dropout(options_.dropout())
                                                                .attention_dropout(options_.attention_dropout()))));
        if (options_.out_dim() != d) out_ = linear("out", options_.out_dim(), d);
    }

    const GraphDecoderOptions& options() const { return options_; }

    /// States of the targets; those of the nodes, too, if asked.
    States forward(const at::Tensor& text, const at::Tensor& nodes, const GraphEdges& edges,
                   bool with_nodes = false) const {
        check(text, nodes, edges);
        std::vector<Level> levels = plan(nodes.size(0), edges, with_nodes);
        at::Tensor x = adapt(0, text);
        at::Tensor y = levels[0].all ? nodes : nodes.index_select(0, levels[0].kept);
        if (y.size(0) > 0) y = adapt(1, y);
        for (std::size_t i = 0; i < layers_.size(); ++i) {
            const Level& level = levels[i];
            GraphEdges of_level = edges;
            of_level.star = level.star;
            const at::Tensor next = layers_[i]->targets(x, y, of_level);
            if (i + 1 < layers_.size() || with_nodes) {
                if (level.rows.defined() ? level.rows.size(0) > 0 : y.size(0) > 0)
                    y = layers_[i]->nodes(y, level.band, level.rows);
            }
            x = next;
        }
        States out{finish(x), {}};
        if (with_nodes) out.nodes = finish(y);
        return out;
    }

    /// Tensors under the reference's names, for load_graph_decoder and save_graph_decoder.
    NamedWeights weights() const {
        NamedWeights out;
        const auto add = [&](const std::string& name, const Linear& linear) {
            if (!linear.weight.defined()) return;
            out.emplace_back(name + ".weight", linear.weight);
            out.emplace_back(name + ".bias", linear.bias);
        };
        for (std::size_t type = 0; type < 2; ++type) add(text("adapt_ws.", type), adapt_[type]);
        for (std::size_t i = 0; i < layers_.size(); ++i) layers_[i]->weights(text("gcs.", i, "."), out);
        add("out", out_);
        return out;
    }

  private:
    struct Linear {
        at::Tensor weight, bias;
    };
    // What one layer works on: `kept` of all nodes, and their edges among themselves.
    struct Level {
        bool all = true;
        at::Tensor kept, star, band, rows; // `rows` of the kept nodes go on to the next level
    };

    at::Tensor adapt(std::size_t type, const at::Tensor& x) const {
        const Linear& l = adapt_[type];
        return l.weight.defined() ? at::gelu(at::linear(x, l.weight, l.bias)) : x;
    }
    at::Tensor finish(const at::Tensor& x) const {
        return out_.weight.defined() ? at::linear(x, out_.weight, out_.bias) : x;
    }
    void check(const at::Tensor& text, const at::Tensor& nodes, const GraphEdges& edges) const {
        for (const auto& [name, t] : {std::pair{"text", &text}, {"nodes", &nodes}})
            if (!t->defined() || t->dim() != 2 || t->size(1) != options_.in_dim())
                fail("graph decoder, ", name, ": expected [any, ", options_.in_dim(), "], got ", describe(*t));
        const auto list = [](const char* name, const at::Tensor& t, std::int64_t rows, std::int64_t nodes_) {
            if (!t.defined() || t.dim() != 2 || t.scalar_type() != at::kLong || t.size(0) != rows)
                fail("graph decoder, ", name, ": expected Long [", rows, ", any], got ", describe(t));
            if (t.numel() > 0 && (t.min().item<std::int64_t>() < -1 || t.max().item<std::int64_t>() >= nodes_))
                fail("graph decoder, ", name, ": expected nodes from -1 to ", nodes_ - 1);
        };
        list("star", edges.star, text.size(0), nodes.size(0));
        list("band", edges.band, nodes.size(0), nodes.size(0));
    }

    // From the last layer backwards: which nodes each layer needs.
    std::vector<Level> plan(std::int64_t n, const GraphEdges& edges, bool with_nodes) const {
        std::vector<Level> levels(layers_.size());
        if (with_nodes) {
            for (Level& level : levels) level.star = edges.star, level.band = edges.band;
            return levels;
        }
        const at::Tensor star = edges.star.contiguous(), band = edges.band.contiguous();
        const auto* star_id = star.data_ptr<std::int64_t>();
        const auto* band_id = band.data_ptr<std::int64_t>();
        const std::int64_t width = band.size(1);
        std::vector<std::vector<std::int64_t>> kept(layers_.size());
        std::vector<char> needed(static_cast<std::size_t>(n));
        const auto mark = [&](std::int64_t id) {
            if (id >= 0) needed[static_cast<std::size_t>(id)] = 1;
        };
        for (std::int64_t i = 0; i < star.numel(); ++i) mark(star_id[i]);
        for (std::size_t i = layers_.size(); i-- > 0;) {
            if (i + 1 < layers_.size())
                for (const std::int64_t node : kept[i + 1])
                    for (std::int64_t w = 0; w < width; ++w) mark(band_id[node * width + w]);
            for (std::int64_t node = 0; node < n; ++node)
                if (needed[static_cast<std::size_t>(node)]) kept[i].push_back(node);
        }
        std::vector<std::int64_t> place(static_cast<std::size_t>(n));
        const auto long_tensor = [](const std::vector<std::int64_t>& v, at::IntArrayRef shape) {
            const at::Tensor t = at::empty(shape, at::kLong);
            std::copy(v.begin(), v.end(), t.data_ptr<std::int64_t>());
            return t;
        };
        std::vector<std::int64_t> ids;
        for (std::size_t i = 0; i < layers_.size(); ++i) {
            Level& level = levels[i];
            std::fill(place.begin(), place.end(), -1);
            for (std::size_t j = 0; j < kept[i].size(); ++j)
                place[static_cast<std::size_t>(kept[i][j])] = static_cast<std::int64_t>(j);
            const auto moved = [&](std::int64_t id) { return id < 0 ? -1 : place[static_cast<std::size_t>(id)]; };
            level.all = static_cast<std::int64_t>(kept[i].size()) == n;
            level.kept = long_tensor(kept[i], {static_cast<std::int64_t>(kept[i].size())});
            ids.clear();
            for (std::int64_t e = 0; e < star.numel(); ++e) ids.push_back(moved(star_id[e]));
            level.star = long_tensor(ids, star.sizes());
            if (i + 1 == layers_.size()) continue;
            const auto next = static_cast<std::int64_t>(kept[i + 1].size());
            ids.clear();
            for (const std::int64_t node : kept[i + 1])
                for (std::int64_t w = 0; w < width; ++w) ids.push_back(moved(band_id[node * width + w]));
            level.band = long_tensor(ids, {next, width});
            if (next == static_cast<std::int64_t>(kept[i].size())) continue; // all of them go on
            ids.clear();
            for (const std::int64_t node : kept[i + 1]) ids.push_back(moved(node));
            level.rows = long_tensor(ids, {next});
        }
        return levels;
    }

    GraphDecoderOptions options_;
    Linear adapt_[2], out_;
    std::vector<GraphLayer> layers_;
};
TORCH_MODULE(GraphDecoder);

/// Writes a decoder's weights under the reference's names.
inline void save_graph_decoder(const std::string& path, const GraphDecoder& decoder,
                               const std::map<std::string, std::string>& metadata = {}) {
    std::vector<at::Tensor> kept;
    std::vector<Entry> entries;
    for (const auto& [name, tensor] : decoder->weights()) {
        kept.push_back(tensor.detach().to(at::kCPU, at::kFloat).contiguous());
        entries.push_back({name, "F32", tensor.sizes().vec(),
                           std::as_bytes(std::span<const float>(kept.back().data_ptr<float>(),
                                                                static_cast<std::size_t>(tensor.numel())))});
    }
    write_safetensors(path, entries, metadata);
}
/// Reads weights named `prefix` + the reference's names into a decoder of the same sizes. The reference's unused `skip`
/// is passed over. Throws Error, with the file's name, for a tensor that is missing or of another shape.
inline void load_graph_decoder(const SafeTensors& file, const std::string& where, const GraphDecoder& decoder,
                               const std::string& prefix = {}) {
    const at::NoGradGuard no_grad;
    for (const auto& [name, tensor] : decoder->weights()) {
        const Entry& entry = file.at(prefix + name);
        if (entry.shape != std::vector<index_t>(tensor.sizes().begin(), tensor.sizes().end()))
            fail(where, ": tensor ", prefix, name, ": expected ", shape_text(tensor.sizes()), ", got another shape");
        std::vector<float> values = file.values<float>(prefix + name);
        at::Tensor to = tensor;
        to.copy_(at::from_blob(values.data(), tensor.sizes(), at::kFloat));
    }
}

} // namespace mnemo::nn
