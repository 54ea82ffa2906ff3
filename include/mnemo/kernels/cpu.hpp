// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cstdlib>
#include <optional>
#include <string_view>

// Kernels carry one version a level, compiled by function attributes, so that a program needs no -march flag and runs
// on every machine. MNEMO_X86 says whether these versions exist.
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define MNEMO_X86 1
#include <cpuid.h>
#include <immintrin.h>
#define MNEMO_AVX2 __attribute__((target("avx2,fma,f16c")))
#define MNEMO_AVX512 __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")))
#define MNEMO_AVX512_VNNI __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define MNEMO_AVX512_BF16                                                                                              \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16")))
#else
#define MNEMO_X86 0
#endif

// g++ 12 takes the undefined halves inside its own vector intrinsics for a caller's mistake.
#if defined(__GNUC__) && !defined(__clang__)
#define MNEMO_INTRINSICS_BEGIN                                                                                         \
    _Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Wmaybe-uninitialized\"")                         \
        _Pragma("GCC diagnostic ignored \"-Wuninitialized\"")
#define MNEMO_INTRINSICS_END _Pragma("GCC diagnostic pop")
#define MNEMO_UNROLL _Pragma("GCC unroll 64") // -O2 leaves small loops, and then the registers in them, in memory
#else
#define MNEMO_UNROLL
#define MNEMO_INTRINSICS_BEGIN
#define MNEMO_INTRINSICS_END
#endif

namespace mnemo {

/// Instruction sets that kernels exist for; each contains those before it. Every level gives the same bits.
enum class SimdLevel : int { plain, avx2, avx512, avx512_vnni, avx512_bf16 };

constexpr std::string_view name(SimdLevel level) {
    constexpr std::string_view names[] = {"plain", "avx2", "avx512", "avx512_vnni", "avx512_bf16"};
    return names[static_cast<int>(level)];
}

/// The level called `text`, or nothing.
constexpr std::optional<SimdLevel> simd_level_named(std::string_view text) {
    for (int i = 0; i <= static_cast<int>(SimdLevel::avx512_bf16); ++i)
        if (name(static_cast<SimdLevel>(i)) == text) return static_cast<SimdLevel>(i);
    return std::nullopt;
}

/// What this machine can run.
inline SimdLevel machine_simd_level() {
#if MNEMO_X86
    static const SimdLevel level = [] {
        __builtin_cpu_init();
        unsigned a = 0, b = 0, c = 0, d = 0;
        const bool half_conversion = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c >> 29 & 1u) != 0; // F16C
        if (!half_conversion || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
            return SimdLevel::plain;
        if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
            !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
            return SimdLevel::avx2;
        if (!__builtin_cpu_supports("avx512vnni")) return SimdLevel::avx512;
        return __builtin_cpu_supports("avx512bf16") ? SimdLevel::avx512_bf16 : SimdLevel::avx512_vnni;
    }();
    return level;
#else
    return SimdLevel::plain;
#endif
}

namespace detail {
inline std::atomic<SimdLevel>& simd_level_in_use() {
    static std::atomic<SimdLevel> level = [] {
        const char* wanted = std::getenv("MNEMO_SIMD");
        const SimdLevel asked = simd_level_named(wanted ? wanted : "").value_or(machine_simd_level());
        return asked < machine_simd_level() ? asked : machine_simd_level();
    }();
    return level;
}
} // namespace detail

/// The level that kernels use: the machine's, lowered by the environment variable MNEMO_SIMD (a level's name; an
/// unknown one changes nothing) or by use_simd_level.
inline SimdLevel simd_level() { return detail::simd_level_in_use().load(std::memory_order_relaxed); }

/// Uses `level`, or the machine's where that is lower, from the next kernel call on; returns the level before.
inline SimdLevel use_simd_level(SimdLevel level) {
    return detail::simd_level_in_use().exchange(level < machine_simd_level() ? level : machine_simd_level());
}

} // namespace mnemo
