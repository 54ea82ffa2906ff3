// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/dist/agree.hpp>
#include <mnemo/kernels/convert.hpp>
#include <mnemo/text/hash.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace mnemo::nn {

/// What a rank has computed of a step: its loss, and how many examples that is about.
struct LossOfRank {
    double loss = 0;
    double examples = 0;
};

/// The gradients of one model that every rank has, over what all ranks have computed. Parameters are those of any
/// LibTorch module; afterwards any optimizer takes the same step on every rank. Sums are made in the order of ranks:
/// the same bits on all of them. What one rank throws, and a gradient that is not finite, is the same Error on all, and
/// all may go on with other gradients.
///
/// Numbers travel in pieces of `piece`, as floats, or as doubles where a parameter is one; 2 (R - 1) / R times the
/// gradients come into a rank. Over a group nothing is allocated after the first step.
class SharedGradients {
  public:
    /// Pieces lie where the first parameter does: with NCCL that is the device.
    SharedGradients(std::shared_ptr<Ranks> ranks, std::vector<at::Tensor> parameters,
                    std::int64_t piece = std::int64_t{1} << 20)
        : ranks_(std::move(ranks)), parameters_(std::move(parameters)) {
        if (piece < 1) fail("gradients of ranks: piece: expected at least one number, got ", piece);
        if (parameters_.empty()) fail("gradients of ranks: expected at least one parameter");
        at::ScalarType type = at::kFloat;
        for (const at::Tensor& p : parameters_)
            if (p.scalar_type() == at::kDouble) type = at::kDouble;
        const std::int64_t world = ranks_->size();
        size_ = (piece + world - 1) / world * world;
        flat_ = at::empty({size_}, parameters_[0].options().dtype(type).requires_grad(false));
        room_ = at::empty_like(flat_);
        total_ = static_cast<std::int64_t>(parameters_.size());
        for (const at::Tensor& p : parameters_) total_ += p.numel();
    }

    /// All ranks: `work()` -> LossOfRank, the sum over this rank's examples, whose gradients it leaves with the
    /// parameters, added to what is there. They become those of the mean over all examples. Returns its loss.
    template <class Work> double mean_of_sums(Work&& work) { return run(Sums::divided, std::forward<Work>(work)); }
    /// The same where loss and gradients of each rank are means over its examples.
    template <class Work> double mean_of_means(Work&& work) { return run(Sums::weighted, std::forward<Work>(work)); }
    /// The same without a division: losses and gradients are added up.
    template <class Work> double sum(Work&& work) { return run(Sums::plain, std::forward<Work>(work)); }

    /// All ranks: an Error unless each has the parameters of rank 0, bit for bit.
    void check_parameters() {
        const at::NoGradGuard no_grad;
        Hash64 hash;
        for (const at::Tensor& p : parameters_) {
            const at::Tensor host = p.detach().to(at::kCPU).contiguous();
            hash.add(std::as_bytes(std::span(static_cast<const std::byte*>(host.data_ptr()), host.nbytes())));
        }
        const char* const names[detail::kAgreed] = {"tensors", "numbers", "hash of the parameters"};
        detail::agree(
            *ranks_, "gradients of ranks", names,
            {static_cast<std::int64_t>(parameters_.size()), total_, std::bit_cast<std::int64_t>(hash.value())}, 3);
    }

  private:
    enum class Sums { plain, divided, weighted };

    template <class Work> double run(Sums sums, Work&& work) {
        LossOfRank own;
        std::string failure;
        try {
            own = work();
            failure = wrong(own, sums);
        } catch (const SharedError&) { // all ranks know it
            throw;
        } catch (const std::exception& e) {
            if (ranks_->broken()) throw; // nobody is left to be told
            failure = detail::failure_of(e);
        }
        const char* const names[detail::kAgreed] = {"numbers of the parameters"};
        const auto all = detail::agree(*ranks_, "gradients of ranks", names,
                                       {total_, std::bit_cast<std::int64_t>(own.loss),
                                        std::bit_cast<std::int64_t>(own.examples), static_cast<std::int64_t>(sums)},
                                       1, failure);
        LossOfRank of_all;
        for (const auto& numbers : all) {
            const auto loss = std::bit_cast<double>(numbers[1]), examples = std::bit_cast<double>(numbers[2]);
            if (sums == Sums::weighted && examples == 0) continue; // the mean of nothing
            of_all.loss += sums == Sums::weighted ? examples * loss : loss;
            of_all.examples += examples;
        }
        if (sums == Sums::plain) of_all.examples = 1;
        if (!(of_all.examples > 0)) fail("gradients of ranks: expected an example on at least one rank, got none");
        const bool nothing = sums == Sums::weighted && own.examples == 0;
        if (ranks_->size() > 1 || sums == Sums::divided)
            add_up(nothing ? 0 : sums == Sums::weighted ? own.examples / of_all.examples : 1 / of_all.examples);
        return of_all.loss / of_all.examples;
    }
    std::string wrong(const LossOfRank& own, Sums sums) const {
        if (sums != Sums::plain && !(own.examples >= 0 && std::isfinite(own.examples)))
            return text("examples: expected a number of at least 0, got ", own.examples);
        if (sums == Sums::weighted && own.examples == 0) return {};
        if (!std::isfinite(own.loss)) return "the loss is not finite";
        for (std::size_t i = 0; i < parameters_.size(); ++i)
            if (!all_finite(parameters_[i].grad())) return text("the gradient of parameter ", i, " is not finite");
        return {};
    }
    static bool all_finite(const at::Tensor& gradient) {
        if (!gradient.defined()) return true;
        const at::Tensor g = gradient.is_sparse() ? gradient._values() : gradient;
        if (g.device().is_cpu() && g.scalar_type() == at::kFloat && g.is_contiguous()) {
            const std::span<const float> numbers(g.data_ptr<float>(), static_cast<std::size_t>(g.numel()));
            return first_not_finite<float>(numbers) == numbers.size();
        }
        return at::isfinite(g).all().item<bool>();
    }

    // The numbers of a step in a row: for each parameter whether this rank has a gradient of it, then the gradients.
    void add_up(double factor) {
        const at::NoGradGuard no_grad;
        has_.assign(parameters_.size(), 0);
        for (std::size_t i = 0; i < parameters_.size(); ++i) {
            at::Tensor& gradient = parameters_[i].mutable_grad();
            if (gradient.defined() && gradient.is_sparse()) gradient = gradient.to_dense();
            has_[i] = gradient.defined() && factor != 0;
        }
        for (std::int64_t first = 0; first < total_; first += size_) {
            const std::int64_t count = std::min(size_, total_ - first), world = ranks_->size(),
                               filled = (count + world - 1) / world * world;
            const at::Tensor numbers = flat_.narrow(0, 0, filled);
            numbers.zero_();
            for_each_part(first, count, [&](std::size_t i, std::int64_t from, std::int64_t at, std::int64_t n) {
                if (has_[i] != 0) numbers.narrow(0, at, n).copy_(part(i, from, n)).mul_(factor);
            });
            for (std::int64_t i = first; i < std::min(first + count, flags()); ++i)
                if (has_[static_cast<std::size_t>(i)] != 0) numbers.narrow(0, i - first, 1).fill_(1);
            ranks_->add_up(numbers, room_.narrow(0, 0, filled));
            // What any rank has, all have now.
            const std::int64_t of_flags = std::clamp<std::int64_t>(flags() - first, 0, count);
            const at::Tensor flag = numbers.narrow(0, 0, of_flags).to(at::kCPU);
            for (std::int64_t i = first; i < first + of_flags; ++i) {
                at::Tensor& gradient = parameters_[static_cast<std::size_t>(i)].mutable_grad();
                const bool any = flag[i - first].item<double>() > 0;
                if (any && !gradient.defined()) gradient = at::zeros_like(parameters_[static_cast<std::size_t>(i)]);
                if (!any) gradient = at::Tensor();
            }
            for_each_part(first, count, [&](std::size_t i, std::int64_t from, std::int64_t at, std::int64_t n) {
                if (parameters_[i].grad().defined()) part(i, from, n).copy_(numbers.narrow(0, at, n));
            });
        }
    }
    std::int64_t flags() const { return static_cast<std::int64_t>(parameters_.size()); }
    // Numbers [from, from + n) of a gradient.
    at::Tensor part(std::size_t i, std::int64_t from, std::int64_t n) {
        at::Tensor& gradient = parameters_[i].mutable_grad();
        if (!gradient.is_contiguous()) gradient = gradient.contiguous();
        return gradient.view({-1}).narrow(0, from, n);
    }
    // f(parameter, first of its numbers, place among [first, first + count), how many).
    void for_each_part(std::int64_t first, std::int64_t count, auto&& f) const {
        std::int64_t begin = flags();
        for (std::size_t i = 0; i < parameters_.size(); ++i) {
            const std::int64_t end = begin + parameters_[i].numel(), from = std::max(begin, first),
                               to = std::min(end, first + count);
            if (from < to) f(i, from - begin, from - first, to - from);
            begin = end;
        }
    }

    std::shared_ptr<Ranks> ranks_;
    std::vector<at::Tensor> parameters_;
    std::vector<char> has_;
    std::int64_t size_ = 0, total_ = 0;
    at::Tensor flat_, room_; // [size_]
};

} // namespace mnemo::nn
