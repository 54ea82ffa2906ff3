// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/json.hpp>

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mnemo::nn::detail {

/// The fields of a config that may be left out; null counts as left out. `finish` refuses those nobody asked for.
class ConfigFields {
  public:
    explicit ConfigFields(JsonObject config) : config_(std::move(config)) {}

    bool given(const std::string& field) {
        known_.insert(field);
        return config_.has(field) && !config_.raw()[field].is_null();
    }
    std::int64_t integer(const std::string& field) {
        known_.insert(field);
        return config_.integer(field, 0, INT32_MAX);
    }
    std::int64_t integer(const std::string& field, std::int64_t otherwise) {
        return given(field) ? integer(field) : otherwise;
    }
    double number(const std::string& field, double otherwise) {
        return given(field) ? config_.number(field) : otherwise;
    }
    bool flag(const std::string& field, bool otherwise = false) {
        return given(field) ? config_.boolean(field) : otherwise;
    }
    std::string string(const std::string& field, const std::string& otherwise) {
        return given(field) ? config_.string(field) : otherwise;
    }
    /// "20000,60000", a list, or null for none.
    std::vector<std::int64_t> cutoffs(const std::string& field) {
        std::vector<std::int64_t> ids;
        if (!given(field)) return ids;
        nlohmann::json list = config_.raw()[field];
        if (list.is_string()) list = nlohmann::json::parse("[" + list.get<std::string>() + "]", nullptr, false);
        if (!list.is_array() || list.empty()) wrong(field, "ids as \"20000,60000\"");
        for (const auto& id : list) {
            if (!id.is_number_integer() || id < 1 || id > INT32_MAX) wrong(field, "ids as \"20000,60000\"");
            ids.push_back(id.get<std::int64_t>());
        }
        return ids;
    }
    [[noreturn]] void wrong(const std::string& field, std::string_view expected) const {
        config_.wrong(field, expected);
    }
    ConfigFields object(const std::string& field) {
        known_.insert(field);
        return ConfigFields(config_.object(field));
    }
    /// whole / parts, if the config's `field` gives a divisor.
    std::int64_t divided(const std::string& field, std::int64_t whole, std::int64_t parts) const {
        if (parts < 1 || whole % parts != 0) wrong(field, text("a divisor of ", whole));
        return whole / parts;
    }
    /// Left out, null, false, or an empty list or object.
    void expect_empty(const std::string& field) {
        if (!given(field)) return;
        const auto& value = config_.raw()[field];
        if (value != false && !(value.is_structured() && value.empty())) wrong(field, "nothing");
    }
    void finish() const {
        for (const auto& [field, value] : config_.raw().items())
            if (!known_.contains(field))
                fail(config_.where(), ": unknown field ", in_quotes(field), ": remove it if it is known not to matter");
    }

  private:
    JsonObject config_;
    std::set<std::string> known_;
};

} // namespace mnemo::nn::detail
