// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/papers/knn_lm.hpp>

#include <cmath>
#include <vector>

/// A language model of two tokens' memory: its state is a code of the last two inputs, its distribution prefers the
/// token after the last one.
struct ToyHost {
    static constexpr mnemo::index_t kWidth = 6;
    mnemo::index_t vocab = 30;
    int batches_seen = 0;

    static void state(std::int32_t before, std::int32_t last, std::span<float> out) {
        for (std::size_t j = 0; j < out.size(); ++j)
            out[j] = std::sin(0.7f * static_cast<float>(last) * static_cast<float>(j + 1)) +
                     std::cos(0.3f * static_cast<float>(before) * static_cast<float>(j + 1));
    }
    float log_p(std::int32_t last, std::int32_t target) const {
        const auto n = static_cast<double>(vocab);
        return static_cast<float>(std::log(target == (last + 1) % vocab ? 0.5 + 0.5 / n : 0.5 / n));
    }

    mnemo::Rows keys(const mnemo::WindowBatch& batch) {
        ++batches_seen;
        keys_ = mnemo::Matrix(batch.scored(), kWidth);
        log_p_.clear();
        for (mnemo::index_t row = 0, i = 0; row < batch.rows; ++row) {
            const auto r = static_cast<std::size_t>(row);
            for (auto t = static_cast<std::size_t>(batch.start[r]); t < static_cast<std::size_t>(batch.length[r]);
                 ++t, ++i) {
                const auto in = batch.input(row);
                state(t > 0 ? in[t - 1] : -1, in[t], keys_[i]);
                log_p_.push_back(log_p(in[t], batch.target(row)[t]));
            }
        }
        return keys_;
    }
    mnemo::ScoredTokens score(const mnemo::WindowBatch& batch) {
        const mnemo::Rows of_batch = keys(batch);
        return {of_batch, log_p_};
    }

    void reset() { last_ = -1; }
    mnemo::DecodedToken step(std::int32_t token) {
        keys_ = mnemo::Matrix(1, kWidth);
        state(last_, token, keys_[0]);
        last_ = token;
        log_probs_ = mnemo::Matrix(1, vocab);
        for (std::int32_t v = 0; v < vocab; ++v) log_probs_[0][static_cast<std::size_t>(v)] = log_p(token, v);
        return {keys_, log_probs_};
    }

  private:
    mnemo::Matrix keys_, log_probs_;
    std::vector<float> log_p_;
    std::int32_t last_ = -1;
};
static_assert(mnemo::KeyHost<ToyHost> && mnemo::ScoringHost<ToyHost> && mnemo::DecodingHost<ToyHost>);
static_assert(mnemo::WindowSource<mnemo::ContextWindows>);
