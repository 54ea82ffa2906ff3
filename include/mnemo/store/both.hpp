// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/error.hpp>
#include <mnemo/core/memory.hpp>

#include <type_traits>
#include <utility>

namespace mnemo {

/// Two stores read as one: the ids of the second follow those of the first, as in JoinedHits. Each part is a store or a
/// std::shared_ptr to one. Both is written through its parts; the first must not grow between a retrieval and the use
/// of what it found.
template <class A, class B>
    requires AssociativeStore<typename detail::pointee<A>::type> && AssociativeStore<typename detail::pointee<B>::type>
class Both {
  public:
    using first_type = typename detail::pointee<A>::type;
    using second_type = typename detail::pointee<B>::type;
    using value_type = std::common_type_t<typename first_type::value_type, typename second_type::value_type>;

    Both(A first, B second) : first_(std::move(first)), second_(std::move(second)) {
        expect_equal("Both: width of the second store's keys", index_t{this->second().key_dim()},
                     index_t{this->first().key_dim()});
    }

    index_t key_dim() const { return first().key_dim(); }
    index_t size() const { return first().size() + second().size(); }
    value_type value(index_t id) const {
        const index_t n = first().size();
        return id < n ? static_cast<value_type>(first().value(id)) : static_cast<value_type>(second().value(id - n));
    }

    first_type& first() { return detail::access(first_); }
    second_type& second() { return detail::access(second_); }
    const first_type& first() const { return detail::access(first_); }
    const second_type& second() const { return detail::access(second_); }

  private:
    A first_;
    B second_;
};

} // namespace mnemo
