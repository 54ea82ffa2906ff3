// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/error.hpp>

#include <span>

namespace mnemo {

/// A store whose entries stand for several: log_weight(id) is the log of how many.
template <class S>
concept WeightedStore = AssociativeStore<S> && requires(const S& s, index_t id) {
    { s.log_weight(id) } -> std::convertible_to<float>;
};

/// A store with weights that lie elsewhere; both are borrowed.
template <AssociativeStore S> class WithWeights {
  public:
    using value_type = typename S::value_type;

    /// `log_weights` [size]. Throws Error for another number of them.
    WithWeights(const S& store, std::span<const float> log_weights) : store_(&store), log_weights_(log_weights) {
        expect_equal("WithWeights: weights", static_cast<index_t>(log_weights.size()), index_t{store.size()});
    }
    index_t key_dim() const { return store_->key_dim(); }
    index_t size() const { return store_->size(); }
    value_type value(index_t id) const { return store_->value(id); }
    float log_weight(index_t id) const { return log_weights_[static_cast<std::size_t>(id)]; }
    decltype(auto) keys() const
        requires KeyedStore<S>
    {
        return store_->keys();
    }
    IdSet erased() const
        requires MarksErased<S>
    {
        return store_->erased();
    }

  private:
    const S* store_;
    std::span<const float> log_weights_;
};
static_assert(KeyedStore<WithWeights<archetype::Store>> && WeightedStore<WithWeights<archetype::Store>>);

} // namespace mnemo
