// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/nn/plug_lm.hpp>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

namespace mnemo::nn {

/// The embeddings that documents share with their model: LN(word + segment 0 + position), eps 1e-12 as published.
struct DocumentEmbeddings {
    at::Tensor words, segments, positions, norm_weight, norm_bias; // [V, d], [2, d], [P, d], [d], [d]
    double epsilon = 1e-12;

    /// ids Long [n, L] -> [n, L, d]; the row of id 0, padding, gets no gradient.
    at::Tensor operator()(const at::Tensor& ids) const {
        if (ids.dim() != 2 || ids.scalar_type() != at::kLong || ids.size(1) > positions.size(0))
            fail("documents: expected Long [n, up to ", positions.size(0), "], got ", describe(ids));
        if (ids.numel() > 0 && (ids.min().item<std::int64_t>() < 0 || ids.max().item<std::int64_t>() >= words.size(0)))
            fail("documents: expected ids in [0, ", words.size(0), ")");
        const at::Tensor sum =
            at::embedding(words, ids, 0) + positions.narrow(0, 0, ids.size(1)).unsqueeze(0) + segments[0];
        return at::layer_norm(sum, {words.size(1)}, norm_weight, norm_bias, epsilon);
    }
    /// Ids and positions Long [n] that are known to be in range -> [n, d].
    at::Tensor pairs(const at::Tensor& ids, const at::Tensor& at_positions) const {
        const at::Tensor sum = words.index_select(0, ids) + positions.index_select(0, at_positions) + segments[0];
        return at::layer_norm(sum, {words.size(1)}, norm_weight, norm_bias, epsilon);
    }
};

/// Documents to entries: the pooled embeddings of a document, projected to a key and to a value.
class KnowledgeEncoderImpl : public NamedWeights {
  public:
    KnowledgeEncoderImpl(DocumentEmbeddings embeddings, std::int64_t query_size, const Source& source)
        : embeddings_(std::move(embeddings)) {
        const std::int64_t d = embeddings_.words.size(1);
        key_ = add_linear(source, "key_proj", query_size, d);
        value_ = add_linear(source, "value_proj", d, d);
        const Source below = [&source](const std::string& n, at::IntArrayRef s) {
            return source("document_encoder.pooler.pooler." + n, s);
        };
        pooler = register_module("pooler", AttentivePooler(d, below));
    }

    struct Encoded {
        at::Tensor document, key, value; // [n, d], [n, q], [n, d]
    };
    /// ids Long [n, L], 0 is padding. Differentiable; `dropout` is applied to the embeddings where given.
    Encoded forward(const at::Tensor& ids, const std::function<at::Tensor(const at::Tensor&)>& dropout = {}) const {
        at::Tensor x = embeddings_(ids);
        if (dropout) x = dropout(x);
        Encoded out;
        out.document = pooler->forward(x, ids.ne(0));
        out.key = key_(out.document), out.value = value_(out.document);
        return out;
    }

    /// The same without gradient, for many documents: an embedding and its pooling score depend on token and position
    /// only, so each pair is computed once, and what is left for a document is a weighted sum and two projections.
    /// Holds a few numbers for each token: hand over millions of documents in pieces.
    Encoded refresh(const at::Tensor& ids, index_t batch = 4096) const {
        const at::NoGradGuard no_grad;
        if (batch < 1) fail("refresh: expected a batch of at least 1, got ", batch);
        const index_t n = ids.size(0), length = ids.size(1), d = embeddings_.words.size(1);
        const at::Tensor slots = ids.ne(0).nonzero(); // [slots, 2]: document, position
        const at::Tensor document = slots.select(1, 0).contiguous(), position = slots.select(1, 1);
        const at::Tensor tokens = ids.reshape(-1).index_select(0, document * length + position);
        const auto [pairs, pair_of] = at::_unique(tokens * length + position, true, true);
        const at::Tensor rows = at::empty({pairs.size(0), d}), scores = at::empty({pairs.size(0)});
        for (index_t first = 0; first < pairs.size(0); first += batch) {
            const index_t count = std::min(batch, pairs.size(0) - first);
            const at::Tensor some = pairs.narrow(0, first, count);
            const at::Tensor x = embeddings_.pairs(at::floor_divide(some, length), at::remainder(some, length));
            rows.narrow(0, first, count).copy_(x);
            scores.narrow(0, first, count).copy_(pooler->scores(x));
        }
        const at::Tensor weight = scores.index_select(0, pair_of);
        const at::Tensor sums = at::zeros({n}).index_add_(0, document, weight) + 1e-8;
        const at::Tensor alpha = weight / sums.index_select(0, document);
        Encoded out;
        out.document = at::zeros({n, d});
        const index_t slots_at_a_time = batch * std::max<index_t>(length, 1); // bounds what is gathered
        for (index_t first = 0; first < alpha.size(0); first += slots_at_a_time) {
            const index_t count = std::min(slots_at_a_time, alpha.size(0) - first);
            out.document.index_add_(0, document.narrow(0, first, count),
                                    rows.index_select(0, pair_of.narrow(0, first, count)) *
                                        alpha.narrow(0, first, count).unsqueeze(1));
        }
        out.key = key_(out.document), out.value = value_(out.document);
        return out;
    }

    AttentivePooler pooler{nullptr};

  private:
    DocumentEmbeddings embeddings_;
    Linear key_, value_;
};
TORCH_MODULE(KnowledgeEncoder);

/// Document rows as Long [n, L].
inline at::Tensor document_ids(MatrixView<const std::uint16_t> documents) {
    at::Tensor ids = at::empty({documents.rows, documents.cols}, at::kLong);
    auto* to = ids.data_ptr<std::int64_t>();
    for (index_t i = 0; i < documents.rows; ++i)
        for (const std::uint16_t id : documents[i]) *to++ = id;
    return ids;
}

/// Encodes documents in batches, without gradient, and appends them to `store`, which is filled beside the one that
/// others read and handed over by swap_base. Results do not depend on the batch beyond rounding.
inline void encode_knowledge(KnowledgeStore& store, const KnowledgeEncoder& encoder,
                             MatrixView<const std::uint16_t> documents, const std::string& source = {},
                             index_t batch = 4096) {
    if (batch < 1) fail("encode_knowledge: expected a batch of at least 1, got ", batch);
    const at::NoGradGuard no_grad;
    for (index_t first = 0; first < documents.rows; first += batch) {
        const auto rows = documents.slice(first, std::min(batch, documents.rows - first));
        const auto encoded = encoder->forward(document_ids(rows));
        store.append(as_rows(encoded.key.contiguous()), as_rows(encoded.value.contiguous()), source,
                     store.document_length() > 0 ? rows : MatrixView<const std::uint16_t>{});
    }
}

} // namespace mnemo::nn
