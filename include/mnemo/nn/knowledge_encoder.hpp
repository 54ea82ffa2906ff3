// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/kernels/score.hpp>
#include <mnemo/nn/plug_lm.hpp>

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace mnemo::nn {

/// The embeddings that documents share with their model: LN(word + segment 0 + position), eps 1e-12 as published.
struct DocumentEmbeddings {
    at::Tensor words, segments, positions, norm_weight, norm_bias; // [V, d], [2, d], [P, d], [d], [d]
    double epsilon = 1e-12;
    /// The gradient of `words` has the rows that were used only, as a sparse tensor: one of a large vocabulary costs
    /// more than all the rest. Where the model reads `words`, too, autograd adds it to that gradient, in place.
    bool sparse_gradient = false;

    /// Throws Error for ids that are no Long [n, L] of words and positions.
    void check(const at::Tensor& ids) const {
        if (ids.dim() != 2 || ids.scalar_type() != at::kLong || ids.size(1) > positions.size(0))
            fail("documents: expected Long [n, up to ", positions.size(0), "], got ", describe(ids));
        if (ids.numel() > 0 && (ids.min().item<std::int64_t>() < 0 || ids.max().item<std::int64_t>() >= words.size(0)))
            fail("documents: expected ids in [0, ", words.size(0), ")");
    }
    /// Checked ids and positions Long [n] -> [n, d]; the row of id 0, padding, gets no gradient.
    at::Tensor operator()(const at::Tensor& ids, const at::Tensor& at_positions) const {
        const at::Tensor sum = at::embedding(words, ids, 0, false, sparse_gradient) +
                               positions.index_select(0, at_positions) + segments[0];
        return at::layer_norm(sum, {words.size(1)}, norm_weight, norm_bias, epsilon);
    }
};

/// Documents to entries: the pooled embeddings of a document, projected to a key and to a value.
class KnowledgeEncoderImpl : public SourcedModule {
  public:
    /// What is stored and never encoded, keys, or keys and values, has no projection.
    KnowledgeEncoderImpl(DocumentEmbeddings embeddings, std::int64_t query_size, const Source& source,
                         bool fix_keys = false, bool fix_values = false)
        : embeddings_(std::move(embeddings)) {
        const std::int64_t d = embeddings_.words.size(1);
        if (!fix_keys) key_ = add_linear(source, "key_proj", query_size, d);
        if (!fix_values) value_ = add_linear(source, "value_proj", d, d);
        const Source below = [&source](const std::string& n, at::IntArrayRef s) {
            return source("document_encoder.pooler.pooler." + n, s);
        };
        pooler = register_module("pooler", AttentivePooler(d, below));
    }

    struct Encoded {
        at::Tensor document, key, value; // [n, d], [n, q], [n, d]; undefined without projection
    };
    /// ids Long [n, L], 0 is padding. Differentiable. An embedding and its pooling score depend on token and position
    /// only, so each pair is computed once, and what is left for a document is a weighted sum and two projections.
    /// `dropout` is applied to embeddings where given: each token has its own then.
    Encoded forward(const at::Tensor& ids, const std::function<at::Tensor(const at::Tensor&)>& dropout = {}) const {
        embeddings_.check(ids);
        const Slots slots(ids);
        const index_t n = ids.size(0), length = ids.size(1);
        at::Tensor pairs, pair_of;
        if (dropout)
            pairs = slots.pair, pair_of = at::arange(slots.pair.size(0), at::kLong);
        else
            std::tie(pairs, pair_of) = at::_unique(slots.pair, true, true);
        at::Tensor x = embed(pairs, length);
        if (dropout) x = dropout(x);
        const at::Tensor weight = pooler->scores(x).index_select(0, pair_of);
        const at::Tensor alpha = weight / slots.sums(weight, n).index_select(0, slots.document);
        // The share of each pair in each document; a document has few of them, but so has a training step documents.
        const index_t p = pairs.size(0);
        Encoded out;
        if (n * p <= kDense) {
            const at::Tensor shares = at::zeros({n * p}).index_add(0, slots.document * p + pair_of, alpha).view({n, p});
            out.document = at::mm(shares, x);
        } else {
            out.document =
                at::zeros({n, x.size(1)}).index_add(0, slots.document, x.index_select(0, pair_of) * alpha.unsqueeze(1));
        }
        project(out);
        return out;
    }

    /// The same without gradient, for many documents, `batch` rows at a time. Holds a few numbers for each token: hand
    /// over millions of documents in pieces.
    Encoded refresh(const at::Tensor& ids, index_t batch = 4096) const {
        const at::NoGradGuard no_grad;
        if (batch < 1) fail("refresh: expected a batch of at least 1, got ", batch);
        embeddings_.check(ids);
        const Slots slots(ids);
        const index_t n = ids.size(0), length = ids.size(1), d = embeddings_.words.size(1);
        const auto [pairs, pair_of] = distinct(slots.pair, embeddings_.words.size(0) * length);
        const at::Tensor rows = at::empty({pairs.size(0), d}), scores = at::empty({pairs.size(0)});
        for (index_t first = 0; first < pairs.size(0); first += batch) {
            const index_t count = std::min(batch, pairs.size(0) - first);
            const at::Tensor x = embed(pairs.narrow(0, first, count), length);
            rows.narrow(0, first, count).copy_(x);
            scores.narrow(0, first, count).copy_(pooler->scores(x));
        }
        const at::Tensor weight = scores.index_select(0, pair_of);
        const at::Tensor alpha = weight / slots.sums(weight, n).index_select(0, slots.document);
        Encoded out;
        out.document = at::zeros({n, d});
        // Slots are in the order of their documents: each sum is added up in place.
        const auto* const document = slots.document.data_ptr<std::int64_t>();
        const at::Tensor pair = pair_of.contiguous(), share = alpha.contiguous();
        const MutRows sums = as_mut_rows(out.document);
        const Rows from = as_rows(rows);
        constexpr index_t ahead = 8; // rows are visited in no order
        const auto* const row = pair.data_ptr<std::int64_t>();
        for (index_t i = 0; i < share.size(0); ++i) {
            if (i + ahead < share.size(0)) mnemo::detail::prefetch_row(from[row[i + ahead]].data(), d);
            const float a = share.data_ptr<float>()[i];
            const std::span<const float> x = from[row[i]];
            const std::span<float> sum = sums[document[i]];
            for (std::size_t j = 0; j < x.size(); ++j) sum[j] += a * x[j];
        }
        project(out);
        return out;
    }

    /// Of the embeddings.
    index_t width() const { return embeddings_.words.size(1); }

    AttentivePooler pooler{nullptr};

  private:
    static constexpr index_t kDense = index_t{1} << 22;
    static constexpr index_t kMostInTable = index_t{1} << 24; // 64 MB for a moment; beyond, pairs are sorted

    // Where tokens are: their documents and their pairs of token and position, token * L + position.
    struct Slots {
        explicit Slots(const at::Tensor& ids) {
            const at::Tensor places = ids.ne(0).nonzero(); // [slots, 2]: document, position
            document = places.select(1, 0).contiguous();
            const at::Tensor position = places.select(1, 1);
            pair = ids.reshape(-1).index_select(0, document * ids.size(1) + position) * ids.size(1) + position;
        }
        at::Tensor sums(const at::Tensor& weight, index_t n) const {
            return at::zeros({n}).index_add(0, document, weight) + 1e-8;
        }
        at::Tensor document, pair; // Long [slots]
    };
    // The distinct ones of pairs [n], each below `most`, and for each where it is among them.
    static std::pair<at::Tensor, at::Tensor> distinct(const at::Tensor& pairs, index_t most) {
        if (most > kMostInTable) {
            auto [values, place] = at::_unique(pairs, true, true);
            return {values, place};
        }
        std::vector<std::int32_t> known(static_cast<std::size_t>(most), -1);
        const at::Tensor place = at::empty_like(pairs);
        std::vector<std::int64_t> values;
        const auto* const from = pairs.data_ptr<std::int64_t>();
        for (index_t i = 0; i < pairs.size(0); ++i) {
            std::int32_t& at = known[static_cast<std::size_t>(from[i])];
            if (at < 0) {
                at = static_cast<std::int32_t>(values.size());
                values.push_back(from[i]);
            }
            place.data_ptr<std::int64_t>()[i] = at;
        }
        const at::Tensor out = at::empty({static_cast<std::int64_t>(values.size())}, at::kLong);
        std::copy(values.begin(), values.end(), out.data_ptr<std::int64_t>());
        return {out, place};
    }
    at::Tensor embed(const at::Tensor& pairs, index_t length) const {
        return embeddings_(at::floor_divide(pairs, length), at::remainder(pairs, length));
    }
    void project(Encoded& out) const {
        if (key_.weight.defined()) out.key = key_(out.document);
        if (value_.weight.defined()) out.value = value_(out.document);
    }

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

namespace detail {
constexpr index_t kNumbersAtATime = index_t{1} << 28; // 1 GB of embeddings, if no pair were shared
}

/// Encodes documents in batches, without gradient, and appends them to `store`, which is filled beside the one that
/// others read and handed over by swap_base. Results do not depend on the batch beyond rounding.
inline void encode_knowledge(KnowledgeStore& store, const KnowledgeEncoder& encoder,
                             MatrixView<const std::uint16_t> documents, const std::string& source = {},
                             index_t batch = 4096) {
    if (batch < 1) fail("encode_knowledge: expected a batch of at least 1, got ", batch);
    const at::NoGradGuard no_grad;
    // Pairs are shared among the documents that are encoded together: as many as memory allows.
    const index_t piece =
        std::max(batch, detail::kNumbersAtATime / std::max<index_t>(documents.cols * encoder->width(), 1));
    for (index_t first = 0; first < documents.rows; first += piece) {
        const auto rows = documents.slice(first, std::min(piece, documents.rows - first));
        const auto encoded = encoder->refresh(document_ids(rows), batch);
        store.append(as_rows(encoded.key.contiguous()), as_rows(encoded.value.contiguous()), source,
                     store.document_length() > 0 ? rows : MatrixView<const std::uint16_t>{});
    }
}

} // namespace mnemo::nn
