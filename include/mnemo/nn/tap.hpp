// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>

#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>
#include <tuple>

namespace mnemo::nn {

/// A place where states are taken: `hidden.0` (input of layer 0), `hidden.i` (output of layer i - 1), `ffn_in.i` (input
/// of layer i's feed-forward, after its norm; `ffn_in` is the last layer's), `prehead` (input of the output matrix); in
/// models that offer them also `query.i`, `key.i` and `value.i`, layer i's projections before position and scaling.
struct Tap {
    enum Point { hidden, ffn_in, prehead, query, key, value } point = prehead;
    std::int64_t layer = 0;

    bool projection() const { return point == query || point == key || point == value; }

    /// The tap of that name in a model of `layers` layers. Throws Error for other names.
    static Tap parse(std::string_view name, std::int64_t layers, bool with_projections = false) {
        if (name == "prehead") return {prehead, 0};
        if (name == "ffn_in") return {ffn_in, layers - 1};
        for (const auto& [prefix, tap, count] :
             {std::tuple{std::string_view("hidden."), hidden, layers + 1},
              std::tuple{std::string_view("ffn_in."), ffn_in, layers},
              std::tuple{std::string_view("query."), query, layers}, std::tuple{std::string_view("key."), key, layers},
              std::tuple{std::string_view("value."), value, layers}}) {
            if (!with_projections && Tap{tap, 0}.projection()) continue;
            std::int64_t layer = -1;
            if (name.substr(0, prefix.size()) != prefix) continue;
            const auto [stop, error] = std::from_chars(name.data() + prefix.size(), name.data() + name.size(), layer);
            if (error == std::errc() && stop == name.data() + name.size() && layer >= 0 && layer < count)
                return {tap, layer};
        }
        fail("tap: expected hidden.0 to hidden.", layers, ", ffn_in, ffn_in.0 to ffn_in.", layers - 1,
             with_projections ? ", query, key and value likewise" : "", " or prehead, got '", name, "'");
    }
    friend bool operator==(Tap, Tap) = default;
};
/// The tap's full name; Tap::parse reads it back.
inline std::string name(Tap tap) {
    if (tap.point == Tap::prehead) return "prehead";
    constexpr std::string_view points[] = {"hidden.", "ffn_in.", "", "query.", "key.", "value."};
    return text(points[tap.point], tap.layer);
}

} // namespace mnemo::nn
