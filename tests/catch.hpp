// SPDX-License-Identifier: MIT
#pragma once

// Catch2 v2 (Debian 12) and v3: only what both have.
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using Catch::Approx;
namespace Catch {
inline auto Contains(const std::string& part) { return Matchers::ContainsSubstring(part); } // v2's name
} // namespace Catch
#else
#include <catch2/catch.hpp>
#endif
