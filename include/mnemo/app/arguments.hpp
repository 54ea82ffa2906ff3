// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/core/matrix_view.hpp>

#include <algorithm>
#include <charconv>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mnemo {

/// A small command line: `program POSITIONAL... --flag --name VALUE --list VALUE VALUE...`. Ask for every option once,
/// then call `finish`, which refuses what nobody asked for.
class Arguments {
  public:
    Arguments(int argc, const char* const* argv) {
        for (int i = 1; i < argc; ++i) {
            const std::string_view word = argv[i];
            if (word.size() > 2 && word.starts_with("--"))
                options_.push_back({std::string(word), {}, false});
            else
                (options_.empty() ? positional_ : options_.back().values).emplace_back(word);
        }
    }

    bool flag(std::string_view name) { return values(name, 0, 0).first; }
    std::string value(std::string_view name, std::string fallback) {
        const auto [given, found] = values(name, 1, 1);
        return given ? found[0] : fallback;
    }
    index_t number(std::string_view name, index_t fallback) {
        const auto [given, found] = values(name, 1, 1);
        index_t out = fallback;
        if (!given) return out;
        const char* const end = found[0].data() + found[0].size();
        const auto [stop, error] = std::from_chars(found[0].data(), end, out);
        if (error != std::errc() || stop != end || out < 0) fail(name, ": expected a number from 0 on, got ", found[0]);
        return out;
    }
    /// All values; empty if the option is not there.
    std::vector<std::string> list(std::string_view name) { return values(name, 1, ~std::size_t{0}).second; }
    /// What stands before the first option.
    std::string positional(std::size_t i, std::string fallback) {
        asked_ = std::max(asked_, i + 1);
        return i < positional_.size() ? positional_[i] : fallback;
    }

    /// Throws Error for an option or a word that was not asked for.
    void finish() const {
        for (const Option& option : options_)
            if (!option.asked) fail("unknown option ", option.name);
        if (positional_.size() > asked_) fail("unexpected argument ", positional_[asked_]);
    }

  private:
    struct Option {
        std::string name;
        std::vector<std::string> values;
        bool asked;
    };
    std::pair<bool, std::vector<std::string>> values(std::string_view name, std::size_t least, std::size_t most) {
        std::pair<bool, std::vector<std::string>> out{false, {}};
        for (Option& option : options_) {
            if (option.name != name) continue;
            if (option.values.size() < least || option.values.size() > most)
                fail(name, ": expected ", least == most ? "" : "at least ", least, " values, got ",
                     option.values.size());
            if (std::exchange(out.first, true) && most == 1) fail(name, ": given twice");
            option.asked = true;
            out.second.insert(out.second.end(), option.values.begin(), option.values.end());
        }
        return out;
    }
    std::vector<std::string> positional_;
    std::vector<Option> options_;
    std::size_t asked_ = 0;
};

} // namespace mnemo
