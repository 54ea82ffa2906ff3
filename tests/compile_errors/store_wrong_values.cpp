// SPDX-License-Identifier: MIT
// expect: this MemoryStore cannot be written: it has no `append(keys, values)` for these types
#include "common.hpp"
int main() { Use<>().write(Rows()); } // tokens are wanted
