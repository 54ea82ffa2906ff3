// SPDX-License-Identifier: MIT
// Catch2 v2's main takes 8 seconds to compile: one object for all test programs.
#define CATCH_CONFIG_MAIN
#include <catch2/catch.hpp>
