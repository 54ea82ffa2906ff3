// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/dist/agree.hpp>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstdint>
#include <vector>

namespace mnemo::nn {

namespace detail {
/// Rows of all ranks; what a rank's loss says about another's rows goes back to it.
struct GatherRows : torch::autograd::Function<GatherRows> {
    static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, const at::Tensor& rows,
                                                  Ranks* ranks) {
        auto all = ranks->gather(rows);
        std::vector<std::int64_t> counts;
        for (const at::Tensor& theirs : all) counts.push_back(theirs.size(0));
        at::Tensor& own = all[static_cast<std::size_t>(ranks->rank())];
        own = own.clone(); // else it would be the input
        ctx->saved_data["ranks"] = static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(ranks));
        ctx->saved_data["counts"] = counts;
        return all;
    }
    static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                   torch::autograd::variable_list upstream) {
        Ranks& ranks = *reinterpret_cast<Ranks*>(static_cast<std::intptr_t>(ctx->saved_data["ranks"].toInt()));
        const std::vector<std::int64_t> counts = ctx->saved_data["counts"].toIntVector();
        const std::int64_t own = counts[static_cast<std::size_t>(ranks.rank())];
        const at::Tensor theirs =
            ranks.all_to_all(at::cat(upstream), counts, std::vector<std::int64_t>(counts.size(), own));
        const auto parts = theirs.split_with_sizes(std::vector<std::int64_t>(counts.size(), own));
        at::Tensor sum = parts[0].clone();
        for (std::size_t r = 1; r < parts.size(); ++r) sum.add_(parts[r]);
        return {sum, at::Tensor()};
    }
};
} // namespace detail

/// gather_entries() where other ranks' keys are not constants, as in the reference, but learned: the sum of all ranks'
/// losses has the gradients of one process that holds everything. All ranks call this and then backward(), those
/// without a token as well; `ranks` lives until that has returned.
inline RankEntries gather_learned_entries(Ranks& ranks, const TrimeBatch& batch) {
    const auto [keys, targets] = detail::entries_of(batch);
    const char* const names[detail::kAgreed] = {"width of the keys"};
    detail::agree(ranks, "entries of ranks", names, {keys.size(1)}, 1);
    return {detail::GatherRows::apply(keys, &ranks), ranks.gather(targets), static_cast<std::size_t>(ranks.rank()),
            true};
}

} // namespace mnemo::nn
