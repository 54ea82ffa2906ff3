// SPDX-License-Identifier: MIT
#pragma once

// The only place of the version; CMake and the release notes read it from here.
#define MNEMO_VERSION_MAJOR 0
#define MNEMO_VERSION_MINOR 1
#define MNEMO_VERSION_PATCH 0
#define MNEMO_VERSION_STRING "0.1.0"
