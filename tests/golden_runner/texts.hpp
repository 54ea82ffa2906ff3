// SPDX-License-Identifier: MIT
#pragma once

#include "golden.hpp"

namespace golden {

/// The items of a list that is stored as one array and the offsets of its items.
template <class T> std::vector<std::vector<T>> lists(const Fixture& fixture, const std::string& name) {
    const auto all = fixture.values<T>(name);
    const auto offsets = fixture.ids(name + "_offsets");
    std::vector<std::vector<T>> out;
    for (std::size_t i = 0; i + 1 < offsets.size(); ++i)
        out.emplace_back(all.begin() + offsets[i], all.begin() + offsets[i + 1]);
    return out;
}
inline std::vector<std::string> texts(const Fixture& fixture, const std::string& name) {
    std::vector<std::string> out;
    for (const auto& bytes : lists<std::uint8_t>(fixture, name)) out.emplace_back(bytes.begin(), bytes.end());
    return out;
}

/// Encodes every text of the fixture, decodes its ids again, and compares both, item by item.
void check_tokenizer(const Fixture& fixture, Check& check, auto&& encode, auto&& decode) {
    const auto in = texts(fixture, "in.text"), decoded = texts(fixture, "out.decoded");
    const auto ids = lists<std::int32_t>(fixture, "out.ids");
    check.that("out.ids_offsets", ids.size() == in.size(), "one list of ids a text");
    check.that("out.decoded_offsets", decoded.size() == in.size(), "one text a text");
    for (std::size_t i = 0; i < in.size(); ++i) {
        const std::vector<std::int32_t> got = encode(in[i]);
        check.equal("out.ids", got, ids[i]);
        if (got != ids[i]) check.failed(mnemo::text("out.ids: of text ", i, ": `", in[i], "`"));
        const std::string text = decode(ids[i]);
        check.that("out.decoded", text == decoded[i], mnemo::text("text ", i, " `", decoded[i], "`, got `", text, "`"));
    }
}

} // namespace golden
