// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/kernels/cpu.hpp>

#include <bit>
#include <cstdint>
#include <span>
#include <vector>

namespace mnemo {

namespace detail {
inline void find_equal_plain(const std::int32_t* x, std::size_t from, std::size_t n, std::int32_t wanted,
                             std::uint32_t first, std::vector<std::uint32_t>& found) {
    for (std::size_t i = from; i < n; ++i)
        if (x[i] == wanted) found.push_back(first + static_cast<std::uint32_t>(i));
}
#if MNEMO_X86
MNEMO_AVX2 inline void find_equal_avx2(const std::int32_t* x, std::size_t n, std::int32_t wanted, std::uint32_t first,
                                       std::vector<std::uint32_t>& found) {
    const __m256i value = _mm256_set1_epi32(wanted);
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256i eight = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
        auto bits = static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(eight, value))));
        for (; bits != 0; bits &= bits - 1)
            found.push_back(first + static_cast<std::uint32_t>(i) + static_cast<std::uint32_t>(std::countr_zero(bits)));
    }
    find_equal_plain(x, i, n, wanted, first, found);
}
#endif
} // namespace detail

/// Appends first + i for each x[i] == wanted, in order.
inline void find_equal(std::span<const std::int32_t> x, std::int32_t wanted, std::uint32_t first,
                       std::vector<std::uint32_t>& found) {
#if MNEMO_X86
    if (simd_level() >= SimdLevel::avx2) return detail::find_equal_avx2(x.data(), x.size(), wanted, first, found);
#endif
    detail::find_equal_plain(x.data(), 0, x.size(), wanted, first, found);
}

} // namespace mnemo
