// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/arena.hpp>
#include <mnemo/core/matrix_view.hpp>
#include <mnemo/kernels/cpu.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <limits>
#include <span>
#include <utility>

// The k best of a stream of scores. Nothing is ordered until the end: candidates are collected in a buffer of several k
// with a running threshold, which rises each time the buffer is full.

namespace mnemo {

namespace detail {

// Integers in the order of the floats. Scores hold no NaN, and zeros are +0.
constexpr std::int32_t ordered(float x) {
    const auto i = std::bit_cast<std::int32_t>(x);
    return i ^ ((i >> 31) & 0x7fffffff);
}
constexpr float unordered(std::int32_t i) { return std::bit_cast<float>(i ^ ((i >> 31) & 0x7fffffff)); }

// Below every score that can be recalled: -inf is what a missing entry has, and NaN compares false.
inline constexpr float kLowest = std::numeric_limits<float>::lowest();

inline std::size_t count_plain(const float* v, std::size_t n, float t) {
    std::size_t count = 0;
    for (std::size_t i = 0; i < n; ++i) count += v[i] >= t;
    return count;
}
// Appends (scores[i], first_id + i) where scores[i] >= t to `out`; returns how many. Room for n + 16 behind out.
inline std::size_t append_plain(const float* scores, std::size_t n, std::uint32_t first_id, float t, float* out,
                                std::uint32_t* out_ids) {
    std::size_t count = 0;
    for (std::size_t i = 0; i < n; ++i) {
        out[count] = scores[i];
        out_ids[count] = first_id + static_cast<std::uint32_t>(i);
        count += scores[i] >= t;
    }
    return count;
}
// Keeps the candidates with v[i] >= t, in place and in order; returns how many.
inline std::size_t compact_plain(float* v, std::uint32_t* ids, std::size_t n, float t) {
    std::size_t count = 0;
    for (std::size_t i = 0; i < n; ++i) {
        const float x = v[i];
        v[count] = x;
        ids[count] = ids[i];
        count += x >= t;
    }
    return count;
}

#if MNEMO_X86
MNEMO_INTRINSICS_BEGIN
MNEMO_AVX2 inline std::size_t count_avx2(const float* v, std::size_t n, float t) {
    const __m256 limit = _mm256_set1_ps(t);
    __m256i sum = _mm256_setzero_si256();
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8)
        sum = _mm256_sub_epi32(sum, _mm256_castps_si256(_mm256_cmp_ps(_mm256_loadu_ps(v + i), limit, _CMP_GE_OQ)));
    alignas(32) std::array<std::uint32_t, 8> lane;
    _mm256_store_si256(reinterpret_cast<__m256i*>(lane.data()), sum);
    std::size_t count = count_plain(v + i, n - i, t);
    for (const std::uint32_t c : lane) count += c;
    return count;
}
// Blocks of eight without a candidate, nearly all once the threshold has risen, cost a comparison.
MNEMO_AVX2 inline std::size_t append_avx2(const float* scores, std::size_t n, std::uint32_t first_id, float t,
                                          float* out, std::uint32_t* out_ids) {
    const __m256 limit = _mm256_set1_ps(t);
    std::size_t count = 0, i = 0;
    for (; i + 8 <= n; i += 8) {
        auto hits =
            static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(scores + i), limit, _CMP_GE_OQ)));
        for (; hits != 0; hits &= hits - 1) {
            const auto j = i + static_cast<std::size_t>(std::countr_zero(hits));
            out[count] = scores[j];
            out_ids[count++] = first_id + static_cast<std::uint32_t>(j);
        }
    }
    return count +
           append_plain(scores + i, n - i, first_id + static_cast<std::uint32_t>(i), t, out + count, out_ids + count);
}

MNEMO_AVX512 inline __mmask16 first_lanes(std::size_t n) {
    return static_cast<__mmask16>(n >= 16 ? 0xffffu : (1u << n) - 1);
}
MNEMO_AVX512 inline std::size_t count_avx512(const float* v, std::size_t n, float t) {
    const __m512 limit = _mm512_set1_ps(t);
    std::size_t count = 0;
    for (std::size_t i = 0; i < n; i += 16) {
        const __mmask16 live = first_lanes(n - i);
        const __mmask16 hits = _mm512_mask_cmp_ps_mask(live, _mm512_maskz_loadu_ps(live, v + i), limit, _CMP_GE_OQ);
        count += static_cast<std::size_t>(std::popcount(static_cast<unsigned>(hits)));
    }
    return count;
}
// Compressed in a register and stored whole: the compressing store is microcoded on some machines.
MNEMO_AVX512 inline std::size_t store_hits(__mmask16 hits, __m512 scores, __m512i ids, float* out,
                                           std::uint32_t* out_ids) {
    _mm512_storeu_ps(out, _mm512_maskz_compress_ps(hits, scores));
    _mm512_storeu_si512(out_ids, _mm512_maskz_compress_epi32(hits, ids));
    return static_cast<std::size_t>(std::popcount(static_cast<unsigned>(hits)));
}
MNEMO_AVX512 inline __m512i ids_from(std::uint32_t first) {
    return _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first)),
                            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}
MNEMO_AVX512 inline std::size_t append_avx512(const float* scores, std::size_t n, std::uint32_t first_id, float t,
                                              float* out, std::uint32_t* out_ids) {
    const __m512 limit = _mm512_set1_ps(t);
    std::size_t count = 0;
    for (std::size_t i = 0; i < n; i += 16) {
        const __mmask16 live = first_lanes(n - i);
        const __m512 x = _mm512_maskz_loadu_ps(live, scores + i);
        const __mmask16 hits = _mm512_mask_cmp_ps_mask(live, x, limit, _CMP_GE_OQ);
        if (hits)
            count +=
                store_hits(hits, x, ids_from(first_id + static_cast<std::uint32_t>(i)), out + count, out_ids + count);
    }
    return count;
}
MNEMO_AVX512 inline std::size_t compact_avx512(float* v, std::uint32_t* ids, std::size_t n, float t) {
    const __m512 limit = _mm512_set1_ps(t);
    std::size_t count = 0;
    for (std::size_t i = 0; i < n; i += 16) {
        const __mmask16 live = first_lanes(n - i);
        const __m512 x = _mm512_maskz_loadu_ps(live, v + i);
        const __m512i id = _mm512_maskz_loadu_epi32(live, ids + i);
        count += store_hits(_mm512_mask_cmp_ps_mask(live, x, limit, _CMP_GE_OQ), x, id, v + count, ids + count);
    }
    return count;
}
// Sixteen at a time; the last ones overlap. n >= 16.
MNEMO_AVX512 inline std::pair<float, float> least_and_most_avx512(const float* v, std::size_t n) {
    __m512 least = _mm512_loadu_ps(v + n - 16), most = least;
    for (std::size_t i = 0; i + 16 <= n; i += 16) {
        const __m512 x = _mm512_loadu_ps(v + i);
        least = _mm512_min_ps(least, x), most = _mm512_max_ps(most, x);
    }
    return {_mm512_reduce_min_ps(least), _mm512_reduce_max_ps(most)};
}
MNEMO_INTRINSICS_END
#endif

inline std::pair<float, float> least_and_most(const float* v, std::size_t n) {
#if MNEMO_X86
    if (simd_level() >= SimdLevel::avx512 && n >= 16) return least_and_most_avx512(v, n);
#endif
    const auto [least, most] = std::minmax_element(v, v + n);
    return {*least, *most};
}
inline std::size_t count_at_least(const float* v, std::size_t n, float t) {
#if MNEMO_X86
    if (simd_level() >= SimdLevel::avx512) return count_avx512(v, n, t);
    if (simd_level() >= SimdLevel::avx2) return count_avx2(v, n, t);
#endif
    return count_plain(v, n, t);
}
inline std::size_t compact_at_least(float* v, std::uint32_t* ids, std::size_t n, float t) {
#if MNEMO_X86
    if (simd_level() >= SimdLevel::avx512) return compact_avx512(v, ids, n, t);
#endif
    return compact_plain(v, ids, n, t);
}
inline std::size_t append_at_least(const float* scores, std::size_t n, std::uint32_t first_id, float t, float* out,
                                   std::uint32_t* out_ids) {
#if MNEMO_X86
    if (simd_level() >= SimdLevel::avx512) return append_avx512(scores, n, first_id, t, out, out_ids);
    if (simd_level() >= SimdLevel::avx2) return append_avx2(scores, n, first_id, t, out, out_ids);
#endif
    return append_plain(scores, n, first_id, t, out, out_ids);
}

// A threshold t with k <= #{v >= t} <= k + slack, or the k-th largest v itself where ties leave nothing between:
// bisection on the ordered integers. 1 <= k <= n.
inline float threshold_for(const float* v, std::size_t n, std::size_t k, std::size_t slack) {
    assert(k >= 1 && k <= n);
    const auto [least, most] = least_and_most(v, n);
    std::int64_t low = ordered(least), high = std::int64_t{ordered(most)} + 1; // count(low) >= k > count(high)
    while (high - low > 1) {
        const std::int64_t middle = low + (high - low) / 2;
        const std::size_t count = count_at_least(v, n, unordered(static_cast<std::int32_t>(middle)));
        (count >= k ? low : high) = middle;
        if (count >= k && count <= k + slack) break;
    }
    return unordered(static_cast<std::int32_t>(low));
}

// The order of results: best score first, ties by lower id. Ascending keys of (score, id) are that order.
inline std::uint64_t rank_key(float score, std::uint32_t id) {
    const auto falling = static_cast<std::uint32_t>(~(static_cast<std::uint32_t>(ordered(score)) ^ 0x80000000u));
    return std::uint64_t{falling} << 32 | id;
}
inline float score_of_key(std::uint64_t key) {
    return unordered(static_cast<std::int32_t>(~static_cast<std::uint32_t>(key >> 32) ^ 0x80000000u));
}

// Sorts keys ascending: by score in three passes of 11 bits, then every run of equal scores by id. `spare` is as long.
inline void sort_keys(std::span<std::uint64_t> keys, std::span<std::uint64_t> spare) {
    constexpr std::size_t few = 128;
    if (keys.size() < few) return std::sort(keys.begin(), keys.end());
    std::array<std::array<std::uint32_t, 2048>, 3> first{};
    for (const std::uint64_t key : keys)
        for (std::size_t pass = 0; pass < 3; ++pass) ++first[pass][key >> (32 + 11 * pass) & 2047];
    for (auto& counts : first) {
        std::uint32_t total = 0;
        for (std::uint32_t& c : counts) total += std::exchange(c, total);
    }
    for (std::size_t pass = 0; pass < 3; ++pass) {
        for (const std::uint64_t key : keys) spare[first[pass][key >> (32 + 11 * pass) & 2047]++] = key;
        std::swap(keys, spare);
    }
    // An odd number of passes: the result lies in the caller's spare.
    std::copy(keys.begin(), keys.end(), spare.begin());
    for (std::size_t i = 0; i < spare.size();) {
        std::size_t j = i + 1;
        while (j < spare.size() && spare[j] >> 32 == spare[i] >> 32) ++j;
        if (j - i > 1)
            std::sort(spare.begin() + static_cast<std::ptrdiff_t>(i), spare.begin() + static_cast<std::ptrdiff_t>(j));
        i = j;
    }
}

} // namespace detail

/// Candidates for the k best of one query: (score, id) in borrowed buffers of `capacity` + kSlack. A score is exact, or
/// an upper bound that is at most 2 * `error` above a lower one. Whatever can be among the k best is kept, ties
/// included, until `cut` is told that scores are exact: then ties beyond k go by id.
struct Candidates {
    static constexpr std::size_t kSlack = 64; // kernels store whole vectors

    float* scores = nullptr;
    std::uint32_t* ids = nullptr;
    std::size_t count = 0, capacity = 0, k = 0;
    float threshold =
        detail::kLowest;          // an upper bound below is no candidate; k lower bounds reach it, or it is a guess
    float error = 0, typical = 0; // half of what lies between the bounds: at most, and in the mean
    float kth = detail::kLowest;  // about k upper bounds reached it when the threshold was raised last
    float factor = 1, shift = 0;  // of exact scores, to compare them with bounds
    bool proven = false;          // k lower bounds reach the threshold
    std::size_t likely = 0;       // candidates before this one are scored exactly first

    /// Room for the k best of n: k in [1, n].
    static std::size_t capacity_for(std::size_t k, std::size_t n) {
        return std::min(std::max<std::size_t>(6 * k, 128), std::max(n, k)) + kSlack;
    }
    static Candidates in(Arena& arena, std::size_t k, std::size_t n) {
        Candidates c;
        c.k = k;
        c.capacity = capacity_for(k, n);
        // An odd number of cache lines in all: the ends of many such buffers then spread over the sets of a cache.
        constexpr std::size_t line = 16;
        const std::size_t room = (c.capacity + kSlack + line - 1) / line * line;
        c.scores = arena.take<float>(room).data();
        c.ids = arena.take<std::uint32_t>(room + line).data();
        return c;
    }

    void restart() { count = likely = 0, threshold = kth = detail::kLowest, error = typical = 0, proven = false; }
    /// Starts anew with a threshold that nothing proves yet: see settle().
    void restart_with(float guess) {
        restart();
        threshold = guess;
    }
    bool has_room_for(std::size_t n) const { return count + n <= capacity; }

    /// Takes ids first_id + i with their scores, n <= kSlack; the caller has seen to the room.
    void append(const float* s, std::size_t n, std::uint32_t first_id) {
        count += detail::append_at_least(s, n, first_id, threshold, scores + count, ids + count);
    }

    /// Raises the threshold so that about k lower bounds reach it, and keeps those whose upper bound does.
    void raise(std::size_t slack) {
        if (count <= k) return;
        kth = detail::threshold_for(scores, count, k, slack);
        if (kth - 2 * error >= threshold) threshold = kth - 2 * error, proven = true;
        count = detail::compact_at_least(scores, ids, count, threshold);
    }
    void raise() { raise(k / 16); }

    /// After kth was set, about what the k-th exact score will be, rather below it: bounds are proven for the worst
    /// case, and the scores of the first pass, in the middle between them, are seldom wrong by an eighth of that.
    float estimate() const { return kth - 1.125f * typical; }

    /// Raises the threshold to the estimate, which is a guess: see settle(). For candidates of a part of the keys.
    void guess() {
        if (count <= k) return;
        kth = detail::threshold_for(scores, count, k, k / 4);
        if (estimate() <= threshold) return;
        threshold = estimate(), proven = false;
        count = detail::compact_at_least(scores, ids, count, threshold);
    }

    /// After raise(0), brings those to the front that are likely to be worth an exact score. Both parts stay in the
    /// order of ids; spare holds `count`.
    void split(std::span<std::uint64_t> spare) {
        likely = count;
        if (count <= k) return;
        const float t = estimate();
        likely = 0;
        std::size_t others = 0;
        for (std::size_t i = 0; i < count; ++i) { // both are written, one is kept
            const float s = scores[i];
            const std::uint32_t id = ids[i];
            spare[others] = std::uint64_t{std::bit_cast<std::uint32_t>(s)} << 32 | id;
            scores[likely] = s, ids[likely] = id;
            likely += s >= t, others += !(s >= t);
        }
        for (std::size_t i = 0; i < others; ++i) {
            scores[likely + i] = std::bit_cast<float>(static_cast<std::uint32_t>(spare[i] >> 32));
            ids[likely + i] = static_cast<std::uint32_t>(spare[i]);
        }
    }
    /// Drops candidates that k of the likely ones, now scored exactly, prove too far. False where the threshold was a
    /// guess that they do not reach: candidates may be missing.
    bool settle() {
        const bool guess = threshold > detail::kLowest && !proven;
        if (likely < k) return !guess;
        const float exact = detail::threshold_for(scores, likely, k, 0);
        const float reached = factor * exact + shift - 0x1p-21f * std::abs(exact);
        if (guess && !(reached >= threshold)) return false;
        count = likely + detail::compact_at_least(scores + likely, ids + likely, count - likely, reached);
        return true;
    }

    /// The k best exact scores, ties by lower id; the others go. Scores must be exact.
    void cut() {
        if (count <= k) return;
        threshold = std::max(threshold, detail::threshold_for(scores, count, k, 0));
        count = detail::compact_at_least(scores, ids, count, threshold);
        if (count <= k) return;
        std::size_t better = 0; // to the front, the ties behind them
        for (std::size_t i = 0; i < count; ++i)
            if (scores[i] > threshold) {
                std::swap(scores[i], scores[better]);
                std::swap(ids[i], ids[better++]);
            }
        std::nth_element(ids + better, ids + k - 1, ids + count);
        count = k;
    }
};

/// Writes the k best of the candidates of one query, gathered in several parts of the keys: best score first, ties by
/// lower id. Scores must be exact. `keys` and `spare` hold k for each part. Returns how many were written.
inline std::size_t write_best(std::span<Candidates> parts, std::span<std::uint64_t> keys,
                              std::span<std::uint64_t> spare, std::span<index_t> out_ids, std::span<float> out_scores) {
    std::size_t n = 0, k = 0;
    for (Candidates& c : parts) {
        c.cut();
        for (std::size_t i = 0; i < c.count; ++i) keys[n++] = detail::rank_key(c.scores[i], c.ids[i]);
        k = c.k;
    }
    detail::sort_keys(keys.first(n), spare.first(n));
    n = std::min(n, k);
    for (std::size_t i = 0; i < n; ++i) {
        out_ids[i] = static_cast<index_t>(keys[i] & 0xffffffffu);
        out_scores[i] = detail::score_of_key(keys[i]);
    }
    return n;
}

} // namespace mnemo
