// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/dist/gradients.hpp>
#include <mnemo/io/safetensors.hpp>

#include <torch/nn/module.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/optimizer.h>
#include <torch/serialize/input-archive.h>
#include <torch/serialize/output-archive.h>

#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace mnemo::nn {

/// Rows [first, first + count) of a batch or a text that a rank takes: consecutive, rank by rank.
struct RowsOfRank {
    index_t first, count;
};
inline RowsOfRank rows_of_rank(index_t rows, const Ranks& ranks) {
    const index_t first = rows * ranks.rank() / ranks.size();
    return {first, rows * (ranks.rank() + 1) / ranks.size() - first};
}

/// A module trained over ranks by one of LibTorch's optimizers. A step is named by its number, from which each rank
/// works out its part of the batch and the learning rate, so that a checkpoint says nothing about ranks: any number of
/// them goes on from it, and gets what they would have got from the start, up to the order of float sums.
///
/// Float and double parameters, buffers, which are rank 0's, and the optimizer's state are kept; anything random in a
/// step must come from its number.
class SharedTraining {
  public:
    /// `identity` is what a checkpoint must share with the run that goes on from it: options, text, batch.
    SharedTraining(std::shared_ptr<Ranks> ranks, std::shared_ptr<torch::nn::Module> module,
                   std::shared_ptr<torch::optim::Optimizer> optimizer, std::map<std::string, std::string> identity = {})
        : ranks_(std::move(ranks)), module_(std::move(module)), optimizer_(std::move(optimizer)),
          identity_(std::move(identity)), gradients_(ranks_, module_->parameters()) {
        if (identity_.count("done") != 0) fail("training: identity: expected no field \"done\"");
    }

    /// All ranks: `work(n)` -> LossOfRank, step n counted from 0, computes this rank's part: the sum of the loss over
    /// its examples, with gradients. The gradients of the mean over all examples are clipped to `max_norm` and the
    /// optimizer takes a step. Returns that mean. What fails on one rank is the same Error on all, and nothing has
    /// changed.
    template <class Work> double step(Work&& work, double max_norm = std::numeric_limits<double>::infinity()) {
        optimizer_->zero_grad();
        if (!checked_) gradients_.check_parameters(), checked_ = true;
        const double loss = gradients_.mean_of_sums([&] { return work(done_); });
        if (std::isfinite(max_norm)) torch::nn::utils::clip_grad_norm_(module_->parameters(), max_norm);
        optimizer_->step();
        ++done_;
        return loss;
    }
    /// Steps so far.
    index_t done() const { return done_; }
    Ranks& ranks() const { return *ranks_; }

    /// All ranks: rank 0 writes module, optimizer and position to one safetensors file, at once.
    void save(const std::string& path) const {
        detail::together(*ranks_, "training", [&] {
            if (ranks_->rank() != 0) return;
            std::vector<Entry> entries;
            std::vector<at::Tensor> kept;
            for (const auto& [name, t] : tensors()) {
                kept.push_back(t.detach().to(at::kCPU).contiguous());
                entries.push_back(
                    {name, std::string(dtype_of(name, t)), t.sizes().vec(), bytes_of_tensor(kept.back())});
            }
            const std::string state = state_of(*optimizer_);
            entries.push_back(
                tensor_entry("optimizer", {static_cast<index_t>(state.size())},
                             std::span(reinterpret_cast<const std::uint8_t*>(state.data()), state.size())));
            auto about = identity_;
            about["done"] = text(done_);
            write_safetensors(path, entries, about);
        });
    }
    /// All ranks, any number of them: goes on where save() was. A file that is damaged or of another training is an
    /// Error, and nothing has changed.
    void resume(const std::string& path) {
        index_t done = -1;
        std::vector<std::pair<at::Tensor, at::Tensor>> copies; // to, from
        std::string before;                                    // of the optimizer, once it may be another
        try {
            detail::together(*ranks_, "training", [&] {
                const SafeTensors file = SafeTensors::open(path);
                auto about = file.metadata();
                const std::string& s = about["done"];
                if (std::from_chars(s.data(), s.data() + s.size(), done).ec != std::errc() || done < 0)
                    fail(path, ": done: expected a number of steps, got ", in_quotes(s));
                for (const auto& [field, value] : identity_)
                    if (about[field] != value)
                        fail(path, ": ", field, ": expected ", in_quotes(value), " as in this run, got ",
                             in_quotes(about[field]));
                for (const auto& [name, t] : tensors()) {
                    const Entry& e = file.at(name);
                    if (at::IntArrayRef(e.shape) != t.sizes() || e.dtype != dtype_of(name, t))
                        fail(path, ": ", name, ": expected ", dtype_of(name, t), " ", shape_text(t.sizes()), ", got ",
                             e.dtype, " ", shape_text(e.shape));
                    copies.emplace_back(t, at::empty(t.sizes(), t.scalar_type()));
                    if (!e.bytes.empty()) std::memcpy(copies.back().second.data_ptr(), e.bytes.data(), e.bytes.size());
                }
                before = state_of(*optimizer_);
                try {
                    const auto state = file.values<std::uint8_t>("optimizer");
                    load_state(*optimizer_, {reinterpret_cast<const char*>(state.data()), state.size()});
                } catch (const std::exception& e) {
                    fail(path, ": optimizer: expected the state of this one: ", detail::first_line(e));
                }
            });
        } catch (...) { // another rank's Error, too
            if (!before.empty()) load_state(*optimizer_, before);
            throw;
        }
        const at::NoGradGuard no_grad;
        for (const auto& [to, from] : copies) to.copy_(from);
        done_ = done, checked_ = false;
    }

  private:
    static std::string state_of(const torch::optim::Optimizer& optimizer) {
        torch::serialize::OutputArchive archive;
        optimizer.save(archive);
        std::ostringstream out;
        archive.save_to(out);
        return out.str();
    }
    static void load_state(torch::optim::Optimizer& optimizer, std::string_view state) {
        torch::serialize::InputArchive archive;
        archive.load_from(state.data(), state.size());
        optimizer.load(archive);
    }
    // Parameters and buffers under their names in the module.
    std::vector<std::pair<std::string, at::Tensor>> tensors() const {
        std::vector<std::pair<std::string, at::Tensor>> out;
        for (const auto& p : module_->named_parameters()) out.emplace_back("module." + p.key(), p.value());
        for (const auto& b : module_->named_buffers()) out.emplace_back("module." + b.key(), b.value());
        return out;
    }
    static std::string_view dtype_of(const std::string& name, const at::Tensor& t) {
        switch (t.scalar_type()) {
        case at::kFloat:
            return safetensors_dtype<float>();
        case at::kDouble:
            return safetensors_dtype<double>();
        case at::kLong:
            return safetensors_dtype<std::int64_t>();
        default:
            fail("training: ", name, ": expected a Float, Double or Long tensor, got ", describe(t));
        }
    }
    static std::span<const std::byte> bytes_of_tensor(const at::Tensor& t) {
        return {static_cast<const std::byte*>(t.data_ptr()), t.nbytes()};
    }

    std::shared_ptr<Ranks> ranks_;
    std::shared_ptr<torch::nn::Module> module_;
    std::shared_ptr<torch::optim::Optimizer> optimizer_;
    std::map<std::string, std::string> identity_;
    SharedGradients gradients_;
    index_t done_ = 0;
    bool checked_ = false; // that all have the same parameters
};

} // namespace mnemo::nn
