// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/kernels/cpu.hpp>

#include <vector>

/// Every level that this machine runs.
inline std::vector<mnemo::SimdLevel> simd_levels() {
    std::vector<mnemo::SimdLevel> out;
    for (int i = 0; i <= static_cast<int>(mnemo::machine_simd_level()); ++i)
        out.push_back(static_cast<mnemo::SimdLevel>(i));
    return out;
}

/// Lowers the level for a scope.
struct UseSimdLevel {
    explicit UseSimdLevel(mnemo::SimdLevel level) : before(mnemo::use_simd_level(level)) {}
    UseSimdLevel(const UseSimdLevel&) = delete;
    UseSimdLevel& operator=(const UseSimdLevel&) = delete;
    ~UseSimdLevel() { mnemo::use_simd_level(before); }
    mnemo::SimdLevel before;
};
