// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/file.hpp>

#include <nlohmann/json.hpp>

#include <cstdint>
#include <initializer_list>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mnemo {

/// The JSON document in `source`. Besides JSON's own rules: no name twice in an object (the parser alone would keep the
/// last silently), at most 64 levels. `where` names the file in errors.
inline nlohmann::json parse_json(std::string_view source, const std::string& where) {
    // The lexer takes a zero byte for the end.
    if (source.find('\0') != std::string_view::npos) fail(where, ": not JSON: it has a zero byte");
    using Event = nlohmann::json::parse_event_t;
    std::vector<std::set<std::string>> names;
    const auto check = [&](int depth, Event event, nlohmann::json& parsed) {
        if (depth > 64) fail(where, ": expected JSON of at most 64 levels");
        if (event == Event::object_start) names.emplace_back();
        if (event == Event::object_end) names.pop_back();
        if (event == Event::key && !names.back().insert(parsed.get<std::string>()).second)
            fail(where, ": the name ", in_quotes(parsed.get<std::string>()), " occurs twice");
        return true;
    };
    try {
        return nlohmann::json::parse(source.begin(), source.end(), check);
    } catch (const nlohmann::json::exception& e) {
        fail(where, ": not JSON: ", e.what());
    }
}

/// A JSON object whose fields are asked for by name and type; what is missing or of another type is an Error that names
/// the file, the field, what was expected and what came.
class JsonObject {
  public:
    JsonObject(nlohmann::json value, std::string where) : value_(std::move(value)), where_(std::move(where)) {
        if (!value_.is_object()) fail(where_, ": expected a JSON object, got ", in_quotes(value_.dump()));
    }
    static JsonObject parse(std::string_view source, const std::string& where) {
        return {parse_json(source, where), where};
    }

    bool has(const std::string& field) const { return value_.contains(field); }
    const nlohmann::json& raw() const { return value_; }
    const std::string& where() const { return where_; }

    std::string string(const std::string& field) const {
        const auto& v = at(field);
        if (!v.is_string()) wrong(field, "a string");
        return v.get<std::string>();
    }
    bool boolean(const std::string& field) const {
        const auto& v = at(field);
        if (!v.is_boolean()) wrong(field, "true or false");
        return v.get<bool>();
    }
    double number(const std::string& field) const {
        const auto& v = at(field);
        if (!v.is_number()) wrong(field, "a number");
        return v.get<double>();
    }
    /// An integer in [low, high].
    index_t integer(const std::string& field, index_t low = INT64_MIN, index_t high = INT64_MAX) const {
        const auto& v = at(field);
        if (!v.is_number_integer()) wrong(field, "an integer");
        if (v.is_number_unsigned() && v.get<std::uint64_t>() > INT64_MAX) wrong(field, text("at most ", high));
        const index_t n = v.get<index_t>();
        if (n < low) wrong(field, text("at least ", low));
        if (n > high) wrong(field, text("at most ", high));
        return n;
    }
    std::uint64_t unsigned_integer(const std::string& field) const {
        if (!at(field).is_number_unsigned()) wrong(field, "a non-negative integer");
        return at(field).get<std::uint64_t>();
    }
    JsonObject object(const std::string& field) const {
        if (!at(field).is_object()) wrong(field, "an object");
        return {at(field), where_ + ": " + field};
    }
    const nlohmann::json& list(const std::string& field) const {
        if (!at(field).is_array()) wrong(field, "a list");
        return at(field);
    }
    /// One of the enumerators in `choices`, which `name` spells.
    template <class E> E choice(const std::string& field, std::initializer_list<E> choices) const {
        const std::string word = string(field);
        std::string names;
        for (const E e : choices) {
            if (name(e) == word) return e;
            names += (names.empty() ? "" : ", ") + std::string(name(e));
        }
        wrong(field, text("one of ", names));
    }
    /// Throws unless the fields `format` and `version` are these.
    void expect_format(const std::string& format, index_t version) const {
        if (string("format") != format) wrong("format", in_quotes(format));
        if (integer("version") != version) wrong("version", text(version, " (the version this program reads)"));
    }
    /// Throws: the field is not what was expected.
    [[noreturn]] void wrong(const std::string& field, std::string_view expected) const {
        fail(where_, ": ", field, ": expected ", expected, ", got ", in_quotes(at(field).dump()));
    }

  private:
    const nlohmann::json& at(const std::string& field) const {
        const auto found = value_.find(field);
        if (found == value_.end()) fail(where_, ": the field ", in_quotes(field), " is missing");
        return *found;
    }
    nlohmann::json value_;
    std::string where_;
};

} // namespace mnemo
