// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/app/arguments.hpp>

using namespace mnemo;

namespace {
Arguments parse(std::vector<const char*> words) {
    words.insert(words.begin(), "program");
    return Arguments(static_cast<int>(words.size()), words.data());
}
} // namespace

TEST_CASE("options are read by name") {
    Arguments a = parse({"out", "--seed", "7", "--text", "a", "b", "--quick", "--text", "c"});
    CHECK(a.positional(0, "x") == "out");
    CHECK(a.positional(1, "x") == "x");
    CHECK(a.number("--seed", 1) == 7);
    CHECK(a.number("--threads", 3) == 3);
    CHECK(a.list("--text") == std::vector<std::string>{"a", "b", "c"});
    CHECK(a.list("--test").empty());
    CHECK(a.flag("--quick"));
    CHECK(!a.flag("--slow"));
    CHECK(a.value("--name", "none") == "none");
    CHECK_NOTHROW(a.finish());
}

TEST_CASE("what cannot be understood is refused") {
    CHECK_THROWS_AS(parse({"--seed", "x"}).number("--seed", 1), Error);
    CHECK_THROWS_AS(parse({"--seed", "-1"}).number("--seed", 1), Error);
    CHECK_THROWS_AS(parse({"--seed", "99999999999999999999"}).number("--seed", 1), Error);
    CHECK_THROWS_AS(parse({"--seed"}).number("--seed", 1), Error);
    CHECK_THROWS_AS(parse({"--seed", "1", "--seed", "2"}).number("--seed", 1), Error);
    CHECK_THROWS_AS(parse({"--quick", "yes"}).flag("--quick"), Error);
    CHECK_THROWS_AS(parse({"--text"}).list("--text"), Error);
    CHECK_THROWS_AS(parse({"--unknown"}).finish(), Error);
    CHECK_THROWS_AS(parse({"word"}).finish(), Error);
}
