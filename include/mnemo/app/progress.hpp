// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/matrix_view.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <unistd.h>
#include <utility>

namespace mnemo {

/// 75 -> "1:15", 3700 -> "1:01:40".
inline std::string clock_text(double seconds) {
    const auto s = static_cast<long>(std::clamp(seconds, 0.0, 3.6e6) + 0.5);
    return s < 3600 ? fmt::format("{}:{:02}", s / 60, s % 60)
                    : fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
}

/// 1234567 -> "1.23M".
inline std::string short_count(double n) {
    const char* unit = "";
    for (const char* next : {"k", "M", "G"})
        if (n >= 1000) n /= 1000, unit = next;
    return fmt::format("{:.{}f}{}", n, *unit == 0 || n >= 100 ? 0 : n >= 10 ? 1 : 2, unit);
}

/// A bar for long work, to be called as (done, total); always true, "go on". On a terminal one line that is drawn over
/// itself, with rate and remaining time, in colour unless NO_COLOR is set; elsewhere at most one line in ten seconds.
class Progress {
  public:
    /// `unit` names what is counted, for the rate: "tokens"; without it none is shown.
    explicit Progress(std::string label, std::string unit = "", std::FILE* out = stderr)
        : label_(std::move(label)), unit_(std::move(unit)), out_(out), terminal_(isatty(fileno(out)) != 0) {
        const char* no_color = std::getenv("NO_COLOR");
        color_ = terminal_ && (no_color == nullptr || *no_color == 0);
    }
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;
    ~Progress() {
        if (terminal_ && drawn_) std::fputs("\r\033[K", out_), std::fflush(out_);
    }

    bool operator()(index_t done, index_t total) {
        const auto now = Clock::now();
        if (first_ < 0) first_ = done; // resumed work counts from where it began
        const double pause = terminal_ ? 0.1 : 10.0;
        if (seconds(last_, now) < pause && !(terminal_ && done == total)) return true;
        last_ = now, drawn_ = true;
        const std::string text = line(done, total, seconds(start_, now));
        if (terminal_)
            fmt::print(out_, "\r\033[K{}", text);
        else
            fmt::print(out_, "{}\n", text);
        std::fflush(out_);
        return true;
    }

    /// The line for `done` of `total` after `elapsed` seconds.
    std::string line(index_t done, index_t total, double elapsed) const {
        const double share = total > 0 ? std::clamp(double(done) / double(total), 0.0, 1.0) : 1.0;
        const double rate = elapsed > 0 ? double(done - std::max<index_t>(first_, 0)) / elapsed : 0;
        std::string out = fmt::format("{:<28} {:3.0f} %", label_, 100 * share);
        if (terminal_) {
            constexpr int width = 24;
            const int full = static_cast<int>(share * width);
            out += fmt::format(" {}{:━<{}}{}{:╌<{}}", color_ ? "\033[32m" : "", "", full, color_ ? "\033[0m" : "", "",
                               width - full);
        }
        if (rate > 0 && !unit_.empty()) out += fmt::format("  {} {}/s", short_count(rate), unit_);
        if (rate > 0 && done < total) out += fmt::format("  {} left", clock_text(double(total - done) / rate));
        return out;
    }

  private:
    using Clock = std::chrono::steady_clock;
    static double seconds(Clock::time_point from, Clock::time_point to) {
        return std::chrono::duration<double>(to - from).count();
    }
    std::string label_, unit_;
    std::FILE* out_;
    bool terminal_, color_ = false, drawn_ = false;
    index_t first_ = -1;
    Clock::time_point start_ = Clock::now(), last_ = start_;
};

} // namespace mnemo
