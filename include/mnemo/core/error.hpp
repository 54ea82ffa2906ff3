// SPDX-License-Identifier: MIT
#pragma once

#include <concepts>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <string_view>

namespace mnemo {

/// The one exception the library throws for wrong sizes, files and values. The message says what was expected, what
/// came, and in which file and field. Wrong use of the types does not compile instead.
class Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

namespace detail {
inline void append_text(std::string& out, std::string_view s) { out += s; }
inline void append_text(std::string& out, char c) { out += c; }
void append_text(std::string& out, std::integral auto n) { out += std::to_string(n); }
inline void append_text(std::string& out, double x) {
    char buffer[32];
    std::snprintf(buffer, sizeof buffer, "%.6g", x);
    out += buffer;
}
} // namespace detail

/// Strings and numbers, one after another. The core includes no formatting library.
template <class... Parts> std::string text(const Parts&... parts) {
    std::string out;
    (detail::append_text(out, parts), ...);
    return out;
}

/// Throws Error("mnemo: " + parts).
template <class... Parts> [[noreturn]] void fail(const Parts&... parts) { throw Error(text("mnemo: ", parts...)); }

/// Throws unless `got == expected`: "mnemo: <what>: expected <expected>, got <got>".
template <class T> void expect_equal(std::string_view what, const T& got, const T& expected) {
    if (!(got == expected)) fail(what, ": expected ", expected, ", got ", got);
}

} // namespace mnemo
