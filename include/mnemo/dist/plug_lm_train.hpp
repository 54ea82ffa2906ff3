// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/dist/gradients.hpp>
#include <mnemo/dist/sharded.hpp>
#include <mnemo/dist/sharded_knowledge.hpp>
#include <mnemo/nn/plug_lm_train.hpp>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace mnemo::nn {

/// A training by all ranks together, each with a shard of the documents: what BasicPlugLmTrainer asks for.
class OverRanks {
  public:
    using Base = ShardedKnowledge;

    explicit OverRanks(std::shared_ptr<Ranks> ranks) : ranks_(std::move(ranks)) {}

    std::shared_ptr<const Base> joined(std::shared_ptr<const KnowledgeSnapshot> own, index_t length) const {
        return std::make_shared<const Base>(ranks_, std::move(own), length);
    }
    index_t rank() const { return ranks_->rank(); }
    index_t size() const { return ranks_->size(); }
    std::vector<at::Tensor> gather(const at::Tensor& rows) const { return ranks_->gather(rows); }
    at::Tensor collect(const at::Tensor& rows) const {
        const auto world = static_cast<std::size_t>(size());
        std::vector<std::int64_t> to(world, 0), from(world, 0);
        to[0] = rows.size(0);
        const auto counts = ranks_->gather(at::full({1}, rows.size(0), at::kLong));
        if (rank() == 0)
            for (std::size_t r = 0; r < world; ++r) from[r] = counts[r].item<std::int64_t>();
        return ranks_->all_to_all(rows, to, from);
    }
    void together(auto&& work) const { detail::together(*ranks_, "pre-training", work); }
    /// Before the first step all must have the same model.
    void add_up(const NamedWeights& weights, auto&& work) {
        if (!gradients_) {
            std::vector<at::Tensor> parameters;
            for (const auto& [name, p] : weights) parameters.push_back(p);
            gradients_.emplace(ranks_, std::move(parameters));
            gradients_->check_parameters();
        }
        gradients_->sum([&] {
            work();
            return LossOfRank{};
        });
    }

  private:
    std::shared_ptr<Ranks> ranks_;
    std::optional<SharedGradients> gradients_;
};

/// PlugLmTrainer over ranks: all call step(), refresh(), save() and resume() together, with a retriever that is
/// Sharded. A refresh encodes a rank's own documents; batches are dealt to the ranks in turn, and the accumulation is
/// best a multiple of how many there are. Weights, moments and stored keys are, whatever the number of ranks, those of
/// PlugLmTrainer on all documents, up to the order in which float gradients of the batches are added (and bit for bit
/// where there are as many ranks as batches), if shards are cut by shard_of().
using ShardedPlugLmTrainer = BasicPlugLmTrainer<OverRanks>;

/// The documents of one rank: a range of about equally many, in pieces that are encoded together.
inline DocumentRows shard_of(const DocumentRows& all, const Ranks& ranks, index_t piece = PlugLmTraining{}.piece) {
    if (piece < 1) fail("shard_of: piece: expected at least 1, got ", piece);
    const index_t pieces = (all.rows() + piece - 1) / piece;
    const auto first_of = [&](index_t rank) {
        return std::min(all.rows(), pieces * rank / ranks.size() * piece) * all.length;
    };
    return {all.length, {all.tokens.begin() + first_of(ranks.rank()), all.tokens.begin() + first_of(ranks.rank() + 1)}};
}

} // namespace mnemo::nn
