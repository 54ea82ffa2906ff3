// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>

#include <cassert>
#include <cmath>
#include <numbers>
#include <span>

namespace mnemo {

/// Log-probabilities of a text, summed in double: perplexity, base-2 loss, bits per byte. A target of probability zero
/// makes all of them infinite. Natural logarithms go in.
class Perplexity {
  public:
    void add(float log_p) { sum_ += static_cast<double>(log_p), ++count_; }
    void add(std::span<const float> log_p) {
        for (const float x : log_p) add(x);
    }
    /// One sentence in word pieces: `continues[i]` says that piece i + 1 belongs to the same word. The scores of a
    /// word's pieces count as one; fairseq's --remove-bpe.
    void add_words(std::span<const float> log_p, std::span<const bool> continues) {
        assert(log_p.size() == continues.size());
        for (std::size_t i = 0; i < log_p.size(); ++i) {
            sum_ += static_cast<double>(log_p[i]);
            if (!continues[i] || i + 1 == log_p.size()) ++count_; // the last piece ends a word whatever it says
        }
    }
    /// What another accumulator saw: texts evaluated in parallel.
    void add(const Perplexity& other) { sum_ += other.sum_, count_ += other.count_; }

    index_t count() const { return count_; }
    double log_p() const { return sum_; }
    /// Mean negative log-likelihood, in nats and (fairseq's "Loss (base 2)") in bits; NaN of nothing.
    double nats() const { return -sum_ / static_cast<double>(count_); }
    double bits() const { return nats() / std::numbers::ln2; }
    double perplexity() const { return std::exp(nats()); }
    /// Bits for each byte of the original text, which the tokens do not know; bits per character of byte-level models.
    double bits_per_byte(index_t bytes) const { return -sum_ / std::numbers::ln2 / static_cast<double>(bytes); }

  private:
    double sum_ = 0;
    index_t count_ = 0;
};

/// Mean negative log-likelihood of the targets under the combination. Base carries `log_p`, in: the host's, out: the
/// combination's (TargetLogProbs, for one).
struct Nll {
    template <class Base, class ReadingT, class C>
        requires CombinerFor<C, Base, ReadingT> && requires(const Base& b) { std::span<const float>(b.log_p); }
    double loss(Base& base, const ReadingT& reading, const C& combiner) const {
        combiner.combine(base, reading);
        Perplexity mean;
        mean.add(std::span<const float>(base.log_p));
        return mean.nats();
    }
};

} // namespace mnemo
