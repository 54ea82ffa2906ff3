// SPDX-License-Identifier: MIT
#pragma once

// Everything that needs neither files, nor FAISS, nor LibTorch.
#include <mnemo/core.hpp>
