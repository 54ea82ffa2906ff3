// SPDX-License-Identifier: MIT
// The only translation unit of mnemo::c.
#include <mnemo/c/implementation.hpp>
