// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/half.hpp>
#include <mnemo/kernels/cpu.hpp>

#include <cassert>
#include <cstddef>
#include <cstring>
#include <span>
#include <type_traits>

namespace mnemo {

/// float, half or bfloat16.
template <class T>
concept KeyElement = std::is_same_v<T, float> || std::is_same_v<T, half> || std::is_same_v<T, bfloat16>;

namespace detail {

#if MNEMO_X86
MNEMO_AVX2 inline __m256 load8(const float* p) { return _mm256_loadu_ps(p); }
MNEMO_AVX2 inline __m256 load8(const half* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
MNEMO_AVX2 inline __m256 load8(const bfloat16* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
MNEMO_AVX2 inline void store8(float* p, __m256 x) { _mm256_storeu_ps(p, x); }
MNEMO_AVX2 inline void store8(half* p, __m256 x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
MNEMO_AVX2 inline void store8(bfloat16* p, __m256 x) {
    // In integers as to_bfloat16: the machine's own instruction flushes subnormals.
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i wide = _mm256_blendv_epi8(rounded, quiet, is_nan);
    const __m256i narrow = _mm256_permute4x64_epi64(_mm256_packus_epi32(wide, wide), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(narrow));
}

// [n] -> [n]; what is left of a vector of 8 goes through a padded copy.
template <class From, class To> MNEMO_AVX2 inline void convert_avx2(const From* from, To* to, std::size_t n) {
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) store8(to + i, load8(from + i));
    if (i < n) {
        From in[8] = {};
        To out[8];
        std::memcpy(in, from + i, (n - i) * sizeof(From));
        store8(out, load8(in));
        std::memcpy(to + i, out, (n - i) * sizeof(To));
    }
}
#endif

template <class From, class To> void convert_plain(const From* from, To* to, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) to[i] = from_float<To>(to_float(from[i]));
}

// Whether |x_i| <= limit for all i; comparisons with NaN are false.
inline bool all_within_plain(const float* x, std::size_t n, float limit) {
    std::size_t beyond = 0;
    for (std::size_t i = 0; i < n; ++i) beyond += !(x[i] <= limit && x[i] >= -limit);
    return beyond == 0;
}
#if MNEMO_X86
MNEMO_AVX2 inline bool all_within_avx2(const float* x, std::size_t n, float limit) {
    const __m256 bound = _mm256_set1_ps(limit), sign = _mm256_set1_ps(-0.0f);
    __m256 within = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8)
        within = _mm256_and_ps(within, _mm256_cmp_ps(_mm256_andnot_ps(sign, load8(x + i)), bound, _CMP_LE_OQ));
    return _mm256_movemask_ps(within) == 255 && all_within_plain(x + i, n - i, limit);
}
#endif

} // namespace detail

/// to[i] = from[i], rounded to nearest even as to_half and to_bfloat16 do. Spans of equal size that do not overlap.
template <class From, class To>
    requires KeyElement<std::remove_const_t<From>> && KeyElement<To>
void convert(std::span<From> from, std::span<To> to) {
    using Source = std::remove_const_t<From>;
    assert(from.size() == to.size());
    if constexpr (std::is_same_v<Source, To>) {
        if (!from.empty()) std::memcpy(to.data(), from.data(), from.size_bytes());
        return;
    }
#if MNEMO_X86
    if (simd_level() >= SimdLevel::avx2) return detail::convert_avx2<Source, To>(from.data(), to.data(), from.size());
#endif
    detail::convert_plain<Source, To>(from.data(), to.data(), from.size());
}

/// The first i for which from[i], rounded to To, is infinite or NaN; from.size() if there is none.
template <KeyElement To> std::size_t first_not_finite(std::span<const float> from) {
    // The largest float that still rounds to a finite number.
    constexpr float limit = std::is_same_v<To, half>       ? 65519.99609375f
                            : std::is_same_v<To, bfloat16> ? 0x1.fefffep127f
                                                           : 0x1.fffffep127f;
#if MNEMO_X86
    const bool all = simd_level() >= SimdLevel::avx2 ? detail::all_within_avx2(from.data(), from.size(), limit)
                                                     : detail::all_within_plain(from.data(), from.size(), limit);
#else
    const bool all = detail::all_within_plain(from.data(), from.size(), limit);
#endif
    if (all) return from.size();
    std::size_t i = 0;
    while (from[i] <= limit && from[i] >= -limit) ++i;
    return i;
}

} // namespace mnemo
