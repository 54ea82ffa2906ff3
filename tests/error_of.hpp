// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>

#include <string>

/// The message of the Error that `f` throws; empty if it throws none.
inline std::string error_of(auto&& f) {
    try {
        f();
    } catch (const mnemo::Error& e) {
        return e.what();
    }
    return {};
}
