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
