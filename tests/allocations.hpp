// SPDX-License-Identifier: MIT
#pragma once

/// How often test_core has called operator new so far; combine/allocations.cpp replaces it.
long allocations_so_far();
