// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/nn/adaptive_input.hpp>
#include <mnemo/nn/autocast.hpp>
#include <mnemo/nn/tensor.hpp>
#include <mnemo/papers/plug_lm.hpp>

#include <ATen/Functions.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace mnemo::nn {

/// A module that asks for its parameters by their names in files, dots included.
class SourcedModule : public torch::nn::Module {
  public:
    /// The weight of that name and shape.
    using Source = std::function<at::Tensor(const std::string& name, at::IntArrayRef shape)>;
    const NamedWeights& weights() const { return weights_; }

  protected:
    struct Linear {
        at::Tensor weight, bias;
        at::Tensor operator()(const at::Tensor& x) const { return linear(x, weight, bias); }
    };
    at::Tensor add(const Source& source, const std::string& name, at::IntArrayRef shape) {
        weights_.emplace_back(name, register_parameter(registered(name), checked(source, name, shape)));
        return weights_.back().second;
    }
    at::Tensor add_buffer(const Source& source, const std::string& name, at::IntArrayRef shape) {
        return register_buffer(registered(name), checked(source, name, shape));
    }
    Linear add_linear(const Source& source, const std::string& name, std::int64_t out, std::int64_t in) {
        return {add(source, name + ".weight", {out, in}), add(source, name + ".bias", {out})};
    }

  private:
    static std::string registered(std::string name) {
        std::replace(name.begin(), name.end(), '.', '_');
        return name;
    }
    static at::Tensor checked(const Source& source, const std::string& name, at::IntArrayRef shape) {
        at::Tensor t = source(name, shape);
        if (t.sizes() != shape) fail(name, ": expected shape ", shape_text(shape), ", got ", describe(t));
        return t;
    }
    NamedWeights weights_;
};

/// Attentive pooling: sum_t alpha_t x_t with alpha_t = mask_t exp(w2 tanh(W1 x_t + b1) + b2), divided by their sum +
/// 1e-8. A row without tokens gives the zero vector.
class AttentivePoolerImpl : public SourcedModule {
  public:
    AttentivePoolerImpl(std::int64_t dim, const Source& source)
        : first_(add_linear(source, "att_fc1", dim, dim)), second_(add_linear(source, "att_fc2", 1, dim)) {}

    /// x [n, T, d], mask [n, T] of ones and zeros -> [n, d].
    at::Tensor forward(const at::Tensor& x, const at::Tensor& mask) const {
        if (x.dim() != 3 || mask.dim() != 2 || mask.size(0) != x.size(0) || mask.size(1) != x.size(1))
            fail("pooling: expected rows [n, T, d] and a mask [n, T], got ", describe(x), " and ", describe(mask));
        const at::Tensor weight = scores(x) * mask.to(x.scalar_type());
        const at::Tensor alpha = weight / (weight.sum(-1, true) + 1e-8);
        return at::bmm(alpha.unsqueeze(1), x).squeeze(1);
    }
    /// exp(w2 tanh(W1 x + b1) + b2) of x [..., d]: what a row weighs before masking and division.
    at::Tensor scores(const at::Tensor& x) const { return at::exp(second_(at::tanh(first_(x)))).squeeze(-1); }

  private:
    Linear first_, second_;
};
TORCH_MODULE(AttentivePooler);

/// What a layer read from the entries of its sequences.
struct KnowledgeRead {
    at::Tensor hidden;     // [B, T, d]
    at::Tensor similarity; // [B, k], cosine of query and key
    at::Tensor probs;      // [B, H, T, k] or [B, k]
    at::Tensor merged;     // [B, T, d], before the output projection; undefined where that is folded or absent
};

/// Whether the projections of a sequence's tokens are applied to its few entries instead, which gives the same but for
/// rounding: `automatic` where it is less work, H k T + k d < d T + T.
enum class FoldProjections : std::uint8_t { automatic, never };

/// Attention of a sequence's tokens over the k entries that the sequence recalled. `beta` weighs, for each head, how
/// near an entry's key is to the query.
class KnowledgeAttentionImpl : public SourcedModule {
  public:
    KnowledgeAttentionImpl(std::int64_t dim, std::int64_t heads, KnowledgeAttentionType type, HeadMerge merge,
                           const Source& source)
        : heads_(heads), type_(type), merge_(merge) {
        if (heads < 1 || dim % heads != 0)
            fail("knowledge attention: expected heads that divide ", dim, ", got ", heads);
        const std::string prefix = "biased_multihead_attn.";
        if (type == KnowledgeAttentionType::sentence_level) return;
        if (type == KnowledgeAttentionType::single_head) {
            beta_ = add(source, "beta", {1});
            key_ = add_linear(source, "k_proj", dim, dim);
            return;
        }
        beta_ = add(source, "beta", {heads});
        query_ = add_linear(source, prefix + "q_proj", dim, dim);
        key_ = add_linear(source, prefix + "k_proj", dim, dim);
        value_ = add_linear(source, prefix + "v_proj", dim, dim);
        out_ = add_linear(source, prefix + "out_proj", dim, dim);
    }

    FoldProjections fold = FoldProjections::automatic;

    /// hidden [B, T, d], query [B, q], keys [B, k, q], values [B, k, d]. k = 0 reads zeros. `dropout` is applied to the
    /// probabilities; its default leaves them as they are.
    KnowledgeRead forward(const at::Tensor& hidden, const at::Tensor& query, const at::Tensor& keys,
                          const at::Tensor& values,
                          const std::function<at::Tensor(const at::Tensor&)>& dropout = {}) const {
        if (hidden.dim() != 3 || query.dim() != 2 || keys.dim() != 3 || values.dim() != 3 ||
            keys.size(0) != hidden.size(0) || values.size(0) != hidden.size(0) || query.size(0) != hidden.size(0) ||
            keys.size(1) != values.size(1) || keys.size(2) != query.size(1) || values.size(2) != hidden.size(2))
            fail("knowledge attention: expected hidden [B, T, d], query [B, q], keys [B, k, q] and values [B, k, d], "
                 "got ",
                 describe(hidden), ", ", describe(query), ", ", describe(keys), " and ", describe(values));
        KnowledgeRead read;
        read.similarity = cosine(query, keys);
        if (keys.size(1) == 0) {
            read.hidden = at::zeros_like(hidden);
            return read;
        }
        const auto dropped = [&](const at::Tensor& p) { return dropout ? dropout(p) : p; };
        const at::ScalarType type = hidden.scalar_type();
        const std::int64_t b = hidden.size(0), t = hidden.size(1), d = hidden.size(2), k = keys.size(1);
        if (type_ == KnowledgeAttentionType::sentence_level) {
            read.probs = at::softmax(read.similarity, -1);
            read.hidden = at::bmm(read.probs.unsqueeze(1), values).to(type).expand({b, t, d});
            return read;
        }
        if (type_ == KnowledgeAttentionType::single_head) {
            const at::Tensor logits =
                at::bmm(hidden, key_(values).transpose(1, 2)) + beta_ * read.similarity.unsqueeze(1);
            read.probs = at::softmax(logits, -1, type);
            read.hidden = at::bmm(dropped(read.probs), values).to(type);
            return read;
        }
        const std::int64_t width = d / heads_;
        const double scale = 1 / std::sqrt(static_cast<double>(width));
        const bool folded = fold == FoldProjections::automatic && heads_ * k * t + k * d < d * t + t;
        // Rows of a few entries, the head in front: [heads, B k, width].
        const auto by_head = [&](const at::Tensor& x) { return x.reshape({b * k, heads_, width}).transpose(0, 1); };
        // [heads, B k, n] to [B, heads k, n].
        const auto by_sequence = [&](const at::Tensor& x) {
            return x.view({heads_, b, k, x.size(2)}).transpose(0, 1).reshape({b, heads_ * k, x.size(2)});
        };
        const auto split = [&](const at::Tensor& x, std::int64_t n) {
            return x.reshape({b, n, heads_, width}).transpose(1, 2);
        };
        const at::Tensor bias = beta_.view({1, heads_, 1}) * read.similarity.unsqueeze(1); // [B, H, k]
        at::Tensor probs;                                                                  // [B, T, H, k]
        if (folded) {
            const at::Tensor keys_of = by_head(key_(values));
            const at::Tensor maps = by_sequence(at::bmm(keys_of, query_.weight.view({heads_, width, d}))) * scale;
            const at::Tensor constant =
                by_sequence(at::bmm(keys_of, query_.bias.view({heads_, width, 1}))).squeeze(2) * scale +
                bias.reshape({b, heads_ * k});
            probs = at::softmax(
                at::baddbmm(constant.unsqueeze(1), hidden, maps.transpose(1, 2)).view({b, t, heads_, k}), -1, type);
        } else {
            const at::Tensor q = split(query_(hidden) * scale, t);
            probs = at::softmax(at::matmul(q, split(key_(values), k).transpose(2, 3)) + bias.unsqueeze(2), -1, type)
                        .transpose(1, 2);
        }
        read.probs = probs.transpose(1, 2);
        probs = dropped(probs);
        if (folded && merge_ == HeadMerge::per_token) {
            const at::Tensor maps =
                by_sequence(at::bmm(by_head(value_(values)), out_.weight.view({d, heads_, width}).permute({1, 2, 0})));
            read.hidden = at::bmm(probs.reshape({b, t, heads_ * k}), maps) + out_.bias;
            return read;
        }
        const at::Tensor heads = at::matmul(probs.transpose(1, 2), split(value_(values), k)); // [B, H, T, width]
        // The reference reads the memory of the heads as if tokens came first.
        read.merged = (merge_ == HeadMerge::per_token ? heads.transpose(1, 2) : heads).reshape({b, t, d}).to(type);
        read.hidden = out_(read.merged);
        return read;
    }

  private:
    // [B, k]; each norm is at least 1e-8, as where a query is zero.
    static at::Tensor cosine(const at::Tensor& query, const at::Tensor& keys) {
        return at::cosine_similarity(query.unsqueeze(1), keys, -1, 1e-8);
    }
    std::int64_t heads_;
    KnowledgeAttentionType type_;
    HeadMerge merge_;
    at::Tensor beta_;
    Linear query_, key_, value_, out_;
};
TORCH_MODULE(KnowledgeAttention);

/// What memory layers read: a KnowledgeSnapshot, or the like of it whose entries are elsewhere, of which those that the
/// last retrieval found can be read.
template <class K>
concept Knowledge = AssociativeStore<K> && requires(const K& knowledge, index_t row) {
    { knowledge.value_dim() } -> std::convertible_to<index_t>;
    { knowledge.key(row) } -> std::convertible_to<std::span<const half>>;
    { knowledge.value(row) } -> std::convertible_to<std::span<const half>>;
    { knowledge.document(row) } -> std::convertible_to<std::span<const std::uint16_t>>;
};
static_assert(Knowledge<KnowledgeSnapshot>);

/// The keys and values of the rows that `hits` names, as floats: [B, k, key_dim] and [B, k, value_dim]. All rows must
/// have the same number of hits.
std::pair<at::Tensor, at::Tensor> gather(const Knowledge auto& snapshot, const Hits& hits) {
    const index_t b = hits.rows(), k = b == 0 ? 0 : static_cast<index_t>(hits.ids(0).size());
    at::Tensor keys = at::empty({b, k, snapshot.key_dim()}, at::kFloat);
    at::Tensor values = at::empty({b, k, snapshot.value_dim()}, at::kFloat);
    float *key = keys.data_ptr<float>(), *value = values.data_ptr<float>();
    for (index_t i = 0; i < b; ++i) {
        expect_equal("gather: hits of a query", static_cast<index_t>(hits.ids(i).size()), k);
        for (const index_t row : hits.ids(i)) {
            const auto from_key = snapshot.key(row), from_value = snapshot.value(row);
            convert(from_key, std::span<float>(key, from_key.size()));
            convert(from_value, std::span<float>(value, from_value.size()));
            key += from_key.size(), value += from_value.size();
        }
    }
    return {keys, values};
}

/// A layer's way into the memory: pools its sequences to queries, recalls the nearest entries of a snapshot through any
/// retriever, attends to them. The snapshot is an argument: several layers read one store, in one state.
class MemoryLayerImpl : public SourcedModule {
  public:
    MemoryLayerImpl(std::int64_t dim, std::int64_t heads, const PlugLmOptions& options, const Source& source)
        : projection_(add_linear(source, "query_proj", options.query_size, dim)) {
        options.check();
        if (options.query_batchnorm) {
            norm_weight_ = add(source, "batch_norm.weight", {options.query_size});
            norm_bias_ = add(source, "batch_norm.bias", {options.query_size});
            running_mean_ = add_buffer(source, "batch_norm.running_mean", {options.query_size});
            running_var_ = add_buffer(source, "batch_norm.running_var", {options.query_size});
            batches_ = register_buffer("batch_norm_batches", at::zeros({}, at::kLong));
        }
        const auto below = [&](const std::string& prefix) -> Source {
            return [&source, prefix](const std::string& n, at::IntArrayRef s) { return source(prefix + n, s); };
        };
        pooler = register_module("pooler", AttentivePooler(dim, below("pooler.pooler.")));
        attention = register_module(
            "know_attn", KnowledgeAttention(dim, heads, options.attention, options.merge, below("know_attn.")));
    }

    /// hidden [B, T, d], mask [B, T] -> queries [B, q]. In training, batch norm couples the queries of a batch.
    at::Tensor queries(const at::Tensor& hidden, const at::Tensor& mask) { return normed(pooled(hidden, mask)); }
    /// The queries before batch norm, and what that makes of them.
    at::Tensor pooled(const at::Tensor& hidden, const at::Tensor& mask) const {
        return projection_(pooler->forward(hidden, mask));
    }
    at::Tensor normed(const at::Tensor& u) {
        if (!norm_weight_.defined()) return u;
        if (is_training() && u.size(0) < 2)
            fail("memory layer: batch norm of the queries: expected a training batch of at least 2 sequences, got ",
                 u.size(0), "; train with query_batchnorm off or in larger batches");
        const bool keeps = is_training() && tracks;
        if (keeps) batches_ += 1;
        return at::batch_norm(u, norm_weight_, norm_bias_, keeps || !is_training() ? running_mean_ : at::Tensor(),
                              keeps || !is_training() ? running_var_ : at::Tensor(), is_training(), 0.1, 1e-5, false);
    }
    /// Whether a training batch moves batch norm's running numbers. Where batches are computed by several processes it
    /// does not, and all of them track() Output::pooled of each batch, in the order of batches.
    bool tracks = true;
    void track(const at::Tensor& pooled_queries) {
        if (!norm_weight_.defined()) return;
        const at::NoGradGuard no_grad;
        batches_ += 1;
        at::batch_norm(pooled_queries, norm_weight_, norm_bias_, running_mean_, running_var_, true, 0.1, 1e-5, false);
    }

    /// What was recalled, by row of the snapshot (Attribution names the entries), and what was read of it.
    struct Output {
        at::Tensor pooled, query; // [B, q], before and after batch norm
        Hits hits;
        KnowledgeRead read;
    };
    /// `encode`, where given, makes keys and values [B, k, ...] for hits with gradient; stored ones are used otherwise.
    template <Knowledge K, class RetrieverT>
    Output forward(const at::Tensor& hidden, const at::Tensor& mask, const K& snapshot, const RetrieverT& retriever,
                   const std::function<std::pair<at::Tensor, at::Tensor>(const Hits&)>& encode = {},
                   const std::function<at::Tensor(const at::Tensor&)>& dropout = {}) {
        Output out;
        out.pooled = pooled(hidden, mask);
        out.query = normed(out.pooled);
        out.hits = Detached<RetrieverT>{retriever}.retrieve(snapshot, out.query);
        const auto [keys, values] = encode ? encode(out.hits) : gather(snapshot, out.hits);
        out.read = attention->forward(hidden, out.query, keys, values, dropout);
        return out;
    }
    /// [q] each, undefined without batch norm.
    at::Tensor running_mean() const { return running_mean_; }
    at::Tensor running_var() const { return running_var_; }
    /// Training batches so far, Long [].
    at::Tensor batches() const { return batches_; }

    AttentivePooler pooler{nullptr};
    KnowledgeAttention attention{nullptr};

  private:
    Linear projection_;
    at::Tensor norm_weight_, norm_bias_, running_mean_, running_var_, batches_;
};
TORCH_MODULE(MemoryLayer);

} // namespace mnemo::nn
