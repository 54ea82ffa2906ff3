// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/nn/tensor.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

namespace mnemo::nn {

/// Keys and values of the tokens read so far, so that the next ones need only themselves. One for each batch of
/// sequences; `reset` starts anew and keeps the buffers.
class KeyValueCache {
  public:
    KeyValueCache() = default;
    KeyValueCache(KeyValueCache&&) = default;
    KeyValueCache& operator=(KeyValueCache&&) = default;
    /// A copy goes its own way.
    KeyValueCache(const KeyValueCache& other) : padding_(other.padding_), length_(other.length_) {
        for (const auto& [k, v] : other.layers_) layers_.emplace_back(k.clone(), v.clone());
    }
    KeyValueCache& operator=(const KeyValueCache& other) { return *this = KeyValueCache(other); }
    ~KeyValueCache() = default;

    std::int64_t length() const { return length_; }
    void reset() { length_ = 0, padding_.reset(); }

    // For models. Reading n tokens is: `padding_with` once, `append` for every layer, `advance` at the end.

    /// Which of the tokens read so far and of the next ones are padding, [batch, length + n]; `next` [batch, n] is 1 at
    /// padding, or undefined. Undefined if none is. Throws Error for a batch of another size than before.
    at::Tensor padding_with(const at::Tensor& next, std::int64_t batch, std::int64_t n) const {
        if (length_ > 0 && layers_[0].first.size(0) != batch)
            fail("tokens: expected batch ", layers_[0].first.size(0), " as in the cache, got ", batch);
        const bool here = next.defined() && next.any().item<bool>();
        if (length_ == 0) return here ? next : at::Tensor();
        if (!here && !padding_.defined()) return {};
        const auto options = at::TensorOptions(at::kBool).device(layers_[0].first.device());
        return at::cat({padding_.defined() ? padding_ : at::zeros({batch, length_}, options),
                        here ? next : at::zeros({batch, n}, options)},
                       1);
    }
    /// Appends k, v [batch, heads, n, width] of one layer; returns all of that layer, [batch, heads, length + n,
    /// width].
    std::pair<at::Tensor, at::Tensor> append(std::size_t layer, const at::Tensor& k, const at::Tensor& v) {
        if (layers_.size() <= layer) layers_.resize(layer + 1);
        const std::int64_t n = k.size(2), needed = length_ + n;
        std::pair<at::Tensor, at::Tensor> all;
        for (auto [kept, added, result] :
             {std::tuple{&layers_[layer].first, &k, &all.first}, std::tuple{&layers_[layer].second, &v, &all.second}}) {
            if (length_ > 0 && (kept->size(1) != k.size(1) || kept->size(3) != k.size(3)))
                fail("the cache belongs to a model with other heads");
            if (!kept->defined() || kept->size(2) < needed || kept->size(0) != k.size(0)) {
                auto shape = k.sizes().vec();
                shape[2] = std::max<std::int64_t>(needed + needed / 2, 64);
                const at::Tensor larger = at::empty(shape, k.options());
                if (length_ > 0) larger.narrow(2, 0, length_).copy_(kept->narrow(2, 0, length_));
                *kept = larger;
            }
            kept->narrow(2, length_, n).copy_(*added);
            *result = kept->narrow(2, 0, needed);
        }
        return all;
    }
    /// Counts n tokens more as read; `padding` is what padding_with returned.
    void advance(std::int64_t n, at::Tensor padding) { length_ += n, padding_ = std::move(padding); }

  private:
    std::vector<std::pair<at::Tensor, at::Tensor>> layers_; // [batch, heads, capacity, width]
    at::Tensor padding_;                                    // [batch, length] bool, once a pad was read
    std::int64_t length_ = 0;
};

} // namespace mnemo::nn
