// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/matrix_view.hpp>

#include <concepts>
#include <cstdint>
#include <string_view>
#include <type_traits>
#include <utility>

namespace mnemo {

namespace detail {
template <class R> constexpr bool has_k() {
    if constexpr (
        requires(const R& r) { index_t{r.k}; } || requires(const R& r) { index_t{r.k()}; })
        return true;
    else if constexpr (requires(const R& r) { r.inner; })
        return has_k<std::remove_cvref_t<decltype(std::declval<const R&>().inner)>>();
    else
        return false;
}
} // namespace detail

/// How many hits a retriever looks for: its k, or that of the one inside.
template <class R> index_t k_of(const R& retriever) {
    static_assert(detail::has_k<R>(), "mnemo: expected a retriever with a member k, or one around such a retriever");
    if constexpr (requires { index_t{retriever.k}; })
        return retriever.k;
    else if constexpr (requires { index_t{retriever.k()}; })
        return retriever.k();
    else if constexpr (detail::has_k<R>())
        return k_of(retriever.inner);
    else
        return 0; // no second error
}

/// What a retriever, or the one inside it, looks at beside its k. Shards that differ in it would answer as no retriever
/// does: its members nprobe and probe, whatever else it has put into a number, settings(), and, of one that is chosen
/// at run time, the name of its type.
struct RetrieverSettings {
    std::int64_t nprobe = 0, probe = 0, others = 0;
    std::string_view type{};
};
RetrieverSettings settings_of(const auto& retriever) {
    RetrieverSettings s;
    if constexpr (requires { retriever.inner; }) s = settings_of(retriever.inner);
    if constexpr (requires { static_cast<std::int64_t>(retriever.nprobe); })
        s.nprobe = static_cast<std::int64_t>(retriever.nprobe);
    if constexpr (requires { static_cast<std::int64_t>(retriever.probe); })
        s.probe = static_cast<std::int64_t>(retriever.probe);
    if constexpr (requires {
                      { retriever.settings() } -> std::same_as<RetrieverSettings>;
                  })
        s = retriever.settings(); // one that is chosen at run time: those of the retriever inside
    else if constexpr (requires { std::int64_t{retriever.settings()}; })
        s.others = retriever.settings();
    return s;
}

} // namespace mnemo
