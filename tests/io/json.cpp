// SPDX-License-Identifier: MIT
#include "files.hpp"

#include <catch.hpp>
#include <mnemo/io/json.hpp>

using namespace mnemo;

namespace {

enum class Fruit { apple, pear };
constexpr std::string_view name(Fruit f) { return f == Fruit::apple ? "apple" : "pear"; }

std::string error(const std::string& source) {
    return error_of([&] { parse_json(source, "here.json"); });
}

} // namespace

TEST_CASE("JSON is parsed strictly: whole, without names twice, not too deep") {
    REQUIRE(parse_json("{\"a\": [1, {\"a\": 2}], \"b\": {\"a\": 3}}", "x")["b"]["a"] == 3);
    REQUIRE(has(error(""), "here.json: not JSON"));
    REQUIRE(has(error("{\"a\": 1"), "here.json: not JSON"));
    REQUIRE(has(error("{} x"), "here.json: not JSON"));
    REQUIRE(has(error(std::string("{}\0 x", 5)), "zero byte"));
    REQUIRE(has(error("{\"a\": \"\xff\"}"), "not JSON"));
    REQUIRE(has(error("{\"a\": 1, \"b\": 2, \"a\": 3}"), "here.json: the name \"a\" occurs twice"));
    REQUIRE(has(error("{\"a\": {\"b\": 2, \"b\": 3}}"), "the name \"b\" occurs twice"));
    REQUIRE(error(std::string(60, '[') + std::string(60, ']')).empty());
    REQUIRE(has(error(std::string(70, '[') + std::string(70, ']')), "at most 64 levels"));
    std::string deep;
    for (int i = 0; i < 100'000; ++i) deep += "{\"a\":";
    REQUIRE(has(error(deep), "at most 64 levels"));
}

TEST_CASE("fields are asked for by name and type") {
    const JsonObject json = JsonObject::parse(
        R"({"s": "text", "i": -3, "u": 18446744073709551615, "f": 1.5, "b": true, "l": [1], "o": {"x": 1}, "e": "pear"})",
        "c.json");
    REQUIRE(json.string("s") == "text");
    REQUIRE(json.integer("i") == -3);
    REQUIRE(json.unsigned_integer("u") == UINT64_MAX);
    REQUIRE(json.number("f") == 1.5);
    REQUIRE(json.number("i") == -3);
    REQUIRE(json.boolean("b"));
    REQUIRE(json.list("l").size() == 1);
    REQUIRE(json.object("o").integer("x") == 1);
    REQUIRE(json.choice("e", {Fruit::apple, Fruit::pear}) == Fruit::pear);
    REQUIRE(json.has("s"));
    REQUIRE_FALSE(json.has("t"));
    const auto of = [&](auto&& f) { return error_of(f); };
    REQUIRE(has(of([&] { json.string("t"); }), "c.json: the field \"t\" is missing"));
    REQUIRE(has(of([&] { json.string("i"); }), "c.json: i: expected a string, got \"-3\""));
    REQUIRE(has(of([&] { json.integer("f"); }), "f: expected an integer, got \"1.5\""));
    REQUIRE(has(of([&] { json.integer("i", 0); }), "i: expected at least 0"));
    REQUIRE(has(of([&] { json.integer("i", -9, -4); }), "i: expected at most -4"));
    REQUIRE(has(of([&] { json.integer("u"); }), "u: expected at most 9223372036854775807"));
    REQUIRE(has(of([&] { json.unsigned_integer("i"); }), "i: expected a non-negative integer"));
    REQUIRE(has(of([&] { json.boolean("i"); }), "i: expected true or false"));
    REQUIRE(has(of([&] { json.number("s"); }), "s: expected a number"));
    REQUIRE(has(of([&] { json.list("o"); }), "o: expected a list"));
    REQUIRE(has(of([&] { json.object("l"); }), "l: expected an object"));
    REQUIRE(has(of([&] { json.object("o").string("x"); }), "c.json: o: x: expected a string"));
    REQUIRE(has(of([&] { json.choice("s", {Fruit::apple, Fruit::pear}); }), "s: expected one of apple, pear, got"));
    REQUIRE(has(of([] { JsonObject::parse("[1]", "c.json"); }), "c.json: expected a JSON object, got \"[1]\""));
}
