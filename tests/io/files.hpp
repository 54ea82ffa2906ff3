// SPDX-License-Identifier: MIT
#pragma once

// What the tests of files share.
#include "../catch.hpp"
#include "../error_of.hpp"
#include "../folder.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

/// Whether a message has `part`, which is shown if a check fails.
inline bool has(const std::string& message, const std::string& part) {
    UNSCOPED_INFO("message: " << message);
    return message.find(part) != std::string::npos;
}

inline std::string golden(const std::string& name) { return MNEMO_GOLDEN "/" + name; }
inline std::string bad_file(const std::string& name) { return MNEMO_GOLDEN "/../bad/" + name; }

/// The manifest's entries of one kind.
inline std::vector<nlohmann::json> bad_files(const std::string& kind) {
    std::vector<nlohmann::json> out;
    const auto manifest = nlohmann::json::parse(mnemo::read_file(bad_file("manifest.json")));
    for (const auto& entry : manifest.at("entries"))
        if (entry.at("kind") == kind) out.push_back(entry);
    return out;
}
