// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/nn/tensor.hpp>

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

namespace mnemo::nn {

/// Tensors of a model by their names in files.
using NamedWeights = std::vector<std::pair<std::string, at::Tensor>>;

/// Splits a vocabulary sorted by frequency into bands of ids [first, first + size), whose embeddings get narrower:
/// width of band i = floor(widest / factor^i) (Baevski and Auli 2019, section 3).
struct AdaptiveBands {
    struct Band {
        std::int64_t first, size, width;
    };
    std::vector<Band> bands;

    AdaptiveBands() = default;
    /// `cutoffs` are the first ids of bands 1, 2, ...; a last one equal to the vocabulary's size may stand there too.
    AdaptiveBands(std::int64_t vocab_size, std::vector<std::int64_t> cutoffs, std::int64_t widest, double factor) {
        if (cutoffs.empty() || cutoffs.back() != vocab_size) cutoffs.push_back(vocab_size);
        if (!(factor >= 1)) fail("adaptive factor: expected at least 1, got ", factor);
        std::int64_t first = 0;
        for (const std::int64_t end : cutoffs) {
            if (end <= first || end > vocab_size)
                fail("adaptive cutoffs: expected increasing ids between 1 and ", vocab_size, ", got ", end, " after ",
                     first);
            const double power = std::pow(factor, static_cast<double>(bands.size()));
            const auto width = static_cast<std::int64_t>(std::floor(static_cast<double>(widest) / power));
            if (width < 1)
                fail("adaptive factor: band ", bands.size(), " would have embeddings of width 0 (", widest, " / ",
                     factor, "^", bands.size(), ")");
            bands.push_back({first, end - first, width});
            first = end;
        }
    }
    std::size_t size() const { return bands.size(); }
    const Band& operator[](std::size_t i) const { return bands[i]; }
};

struct AdaptiveInputOptions {
    TORCH_ARG(std::int64_t, vocab_size) = 0;
    TORCH_ARG(std::vector<std::int64_t>, cutoffs); // 20000,60000
    TORCH_ARG(std::int64_t, input_dim) = 0;        // width of the embeddings of band 0
    TORCH_ARG(std::int64_t, dim) = 0;              // width of the result
    TORCH_ARG(double, factor) = 4;
};

/// Token embeddings whose width falls with rarity: token t of band i becomes W_i E_i[t - first_i]. Every band has a
/// projection W_i [dim, width_i], band 0 too.
class AdaptiveInputImpl : public torch::nn::Module {
  public:
    explicit AdaptiveInputImpl(const AdaptiveInputOptions& options)
        : options_(options), bands_(options.vocab_size(), options.cutoffs(), options.input_dim(), options.factor()) {
        for (std::size_t i = 0; i < bands_.size(); ++i) {
            const auto [first, size, width] = bands_[i];
            embeddings_.push_back(register_parameter(text("embedding_", i),
                                                     at::randn({size, width}) / std::sqrt(static_cast<double>(width))));
            const double bound = std::sqrt(6.0 / static_cast<double>(width + options.dim())); // Xavier
            projections_.push_back(
                register_parameter(text("projection_", i), at::empty({options.dim(), width}).uniform_(-bound, bound)));
        }
    }

    /// tokens [...] -> [..., dim].
    at::Tensor forward(const at::Tensor& tokens) const {
        const at::Tensor ids = tokens.reshape(-1);
        at::Tensor out = at::zeros({ids.size(0), options_.dim()}, projections_[0].options());
        for (std::size_t i = 0; i < bands_.size(); ++i) {
            const auto [first, size, width] = bands_[i];
            const at::Tensor rows = at::nonzero(ids.ge(first).logical_and(ids.lt(first + size))).view(-1);
            if (rows.size(0) == 0) continue;
            const at::Tensor e = at::embedding(embeddings_[i], ids.index_select(0, rows) - first);
            out = out.index_copy(0, rows, at::linear(e, projections_[i]));
        }
        auto shape = tokens.sizes().vec();
        shape.push_back(options_.dim());
        return out.view(shape);
    }

    const AdaptiveInputOptions& options() const { return options_; }
    const AdaptiveBands& bands() const { return bands_; }
    const at::Tensor& embedding(std::size_t band) const { return embeddings_[band]; }
    const at::Tensor& projection(std::size_t band) const { return projections_[band]; }
    /// Under fairseq's names.
    void weights(const std::string& prefix, NamedWeights& out) const {
        for (std::size_t i = 0; i < bands_.size(); ++i) {
            out.emplace_back(text(prefix, "embeddings.", i, ".0.weight"), embeddings_[i]);
            out.emplace_back(text(prefix, "embeddings.", i, ".1.weight"), projections_[i]);
        }
    }

  private:
    AdaptiveInputOptions options_;
    AdaptiveBands bands_;
    std::vector<at::Tensor> embeddings_;  // [size_i, width_i]
    std::vector<at::Tensor> projections_; // [dim, width_i]
};
TORCH_MODULE(AdaptiveInput);

} // namespace mnemo::nn
