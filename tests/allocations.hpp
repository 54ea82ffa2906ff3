// SPDX-License-Identifier: MIT
#pragma once

/// How often the test program has called operator new so far; one of its files includes count_allocations.hpp.
long allocations_so_far();
