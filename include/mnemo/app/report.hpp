// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/file.hpp>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <cstdio>
#include <string>
#include <string_view>

namespace mnemo {

/// What a program found out: every number goes into `numbers`, and what must hold is checked aloud.
class Report {
  public:
    nlohmann::ordered_json numbers; // infinite and NaN become null in the file

    /// Prints one line and remembers it: "ok      <what>: <figures>", or "FAILED". Returns `holds`.
    bool check(const std::string& what, bool holds, const std::string& figures, std::FILE* out = stdout) {
        fmt::print(out, "{:<7} {}: {}\n", holds ? "ok" : "FAILED", what, figures);
        numbers["checks"].push_back({{"what", what}, {"holds", holds}, {"figures", figures}});
        passed_ = passed_ && holds;
        return holds;
    }
    /// Every check so far held.
    bool passed() const { return passed_; }

    /// Replaces the file in one step; text that is not UTF-8 is mended.
    void save(const std::string& path) const {
        atomic_write(path, numbers.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
    }

  private:
    bool passed_ = true;
};

} // namespace mnemo
