// SPDX-License-Identifier: MIT
// A stranger's program: the C interface, linked.
#include <mnemo/c.h>

#include <cstdio>

int main() {
    mnemo_options options = MNEMO_OPTIONS_INIT;
    mnemo_memory* memory = nullptr;
    const int status = mnemo_create(&options, &memory); // no width is given
    std::printf("mnemo %s: %s\n", mnemo_version(), mnemo_last_error());
    return status == MNEMO_ERROR && memory == nullptr ? 0 : 1;
}
