// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/memory.hpp>

namespace mnemo {

namespace detail {
// Outside Memory, and only where the policies fit: Memory's checks shall speak first, and alone.
struct NoRecall {
    index_t rows() const { return 0; }
};
template <class M, class States> struct recall_of {
    using type = NoRecall;
};
template <class E, class S, class R, class C, class L, class States>
    requires KeyExtractorFor<E, States> && RetrieverFor<R, typename pointee<S>::type, queries_t<E, States>>
struct recall_of<Memory<E, S, R, C, L>, States> {
    using type = recall_t<R, typename pointee<S>::type, queries_t<E, States>>;
};
} // namespace detail

/// One sequence's (one thread's) use of a shared, constant memory: its buffers live here, so that a step allocates
/// nothing after the first. The memory must outlive it.
template <class M, class States> class Session {
  public:
    explicit Session(const M& memory) : memory_(&memory) {}

    /// As Memory::read and Memory::loss.
    template <class Base> decltype(auto) read(const States& states, Base&& base) {
        scratch_.reset();
        if constexpr (std::is_void_v<decltype(memory_->read(states, base, recall_, scratch_))>) {
            memory_->read(states, base, recall_, scratch_);
            scratch_.reset(); // nothing points into it: the second step finds one block
        } else {
            return memory_->read(states, base, recall_, scratch_);
        }
    }
    template <class Base> decltype(auto) loss(const States& states, Base&& base) {
        scratch_.reset();
        return memory_->loss(states, base, recall_, scratch_);
    }
    /// What the last step recalled.
    const auto& recall() const { return recall_; }

  private:
    const M* memory_;
    typename detail::recall_of<std::remove_const_t<M>, States>::type recall_;
    Arena scratch_;
};

} // namespace mnemo
