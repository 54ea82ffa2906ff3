// SPDX-License-Identifier: MIT
// expect: this memory has no Loss of its own (HostLoss)
#include "common.hpp"
int main() { Use<>().loss(); }
