// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace mnemo {

/// run.c's sampler: the same logits, temperature, top-p and seed give the same tokens as the original.
class Llama2cSampler {
  public:
    /// `top_p` outside (0, 1) considers every token; `seed` must not be 0 unless the temperature is.
    explicit Llama2cSampler(float temperature = 0, float top_p = 0.9f, std::uint64_t seed = 1)
        : temperature_(temperature), top_p_(top_p), state_(seed) {
        if (!(temperature >= 0) || std::isinf(temperature))
            fail("temperature: expected a number of at least 0, got ", temperature);
        if (temperature > 0 && seed == 0)
            fail("seed: expected a positive number, got 0, whose random numbers are all 0");
    }

    /// The next token; `logits` [vocab] are not changed.
    std::int32_t operator()(std::span<const float> logits) {
        if (logits.empty()) fail("sampling: expected the logits of a token or more, got none");
        const auto best = std::max_element(logits.begin(), logits.end());
        if (temperature_ == 0) return static_cast<std::int32_t>(best - logits.begin());
        // Float by float as run.c does it: its rounding decides between neighbours.
        p_.resize(logits.size());
        const float high = *best / temperature_;
        float sum = 0;
        for (std::size_t i = 0; i < p_.size(); ++i) sum += p_[i] = std::exp(logits[i] / temperature_ - high);
        for (float& p : p_) p /= sum;
        const float coin = static_cast<float>(random() >> 8) / 16777216.0f;
        return top_p_ <= 0 || top_p_ >= 1 ? of_all(coin) : of_nucleus(coin);
    }

  private:
    std::uint32_t random() { // xorshift*
        state_ ^= state_ >> 12;
        state_ ^= state_ << 25;
        state_ ^= state_ >> 27;
        return static_cast<std::uint32_t>((state_ * 0x2545F4914F6CDD1Dull) >> 32);
    }
    std::int32_t of_all(float coin) const {
        float below = 0;
        for (std::size_t i = 0; i < p_.size(); ++i)
            if (coin < (below += p_[i])) return static_cast<std::int32_t>(i);
        return static_cast<std::int32_t>(p_.size()) - 1; // what rounding left over
    }
    // The likeliest tokens whose probabilities together exceed top_p.
    std::int32_t of_nucleus(float coin) {
        const float cutoff = (1.0f - top_p_) / static_cast<float>(p_.size() - 1);
        nucleus_.clear();
        nucleus_.reserve(p_.size()); // once
        for (std::size_t i = 0; i < p_.size(); ++i)
            if (p_[i] >= cutoff || p_.size() == 1) nucleus_.emplace_back(-p_[i], static_cast<std::int32_t>(i));
        if (nucleus_.empty()) fail("sampling: expected a token that is possible, got none");
        std::sort(nucleus_.begin(), nucleus_.end());
        std::size_t last = nucleus_.size() - 1;
        float sum = 0;
        for (std::size_t i = 0; i < nucleus_.size(); ++i)
            if ((sum -= nucleus_[i].first) > top_p_) {
                last = i;
                break;
            }
        const float r = coin * sum;
        float below = 0;
        for (std::size_t i = 0; i <= last; ++i)
            if (r < (below -= nucleus_[i].first)) return nucleus_[i].second;
        return nucleus_[last].second;
    }

    float temperature_, top_p_;
    std::uint64_t state_;
    std::vector<float> p_;                                // [vocab]
    std::vector<std::pair<float, std::int32_t>> nucleus_; // probability negated, token
};

} // namespace mnemo
