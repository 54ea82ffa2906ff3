// SPDX-License-Identifier: MIT
#include "files.hpp"

#include <catch.hpp>

using namespace mnemo;

TEST_CASE("a file is replaced as a whole or not at all") {
    const Folder folder;
    const std::string path = folder / "a";
    atomic_write(path, std::string_view("old"));
    atomic_write(path, std::string_view("the new one"));
    REQUIRE(read_file(path) == "the new one");
    {
        AtomicFile abandoned(path);
        abandoned.write(bytes_of(std::string_view("half")));
    }
    REQUIRE(read_file(path) == "the new one");
    REQUIRE(folder.names() == std::vector<std::string>{"a"});
}

TEST_CASE("files that cannot be used are Errors with path and reason") {
    const Folder folder;
    const auto has = [](const std::string& message, const std::string& part) {
        INFO(message);
        return message.find(part) != std::string::npos;
    };
    const std::string absent = folder / "absent";
    REQUIRE(has(error_of([&] { MappedFile::open(absent); }), absent + ": cannot open: No such file"));
    REQUIRE(has(error_of([&] { MappedFile::open(folder.path()); }), "expected a file, got a folder"));
    REQUIRE(has(error_of([&] { MappedFile::open("/dev/null"); }), "device"));
    REQUIRE(has(error_of([&] { atomic_write(folder / "no/such/folder", std::string_view("x")); }), "cannot create"));
    REQUIRE(has(error_of([&] { read_file(absent); }), "cannot open"));
    atomic_write(folder / "a", std::string_view("12345"));
    REQUIRE(has(error_of([&] { read_file(folder / "a", 4); }), "expected at most 4 bytes, got 5"));
    File full("/dev/full", O_WRONLY);
    REQUIRE(has(error_of([&] { full.write_at(0, bytes_of(std::string_view("x"))); }), "No space left"));
}

TEST_CASE("maps move, and an empty file has an empty map") {
    const Folder folder;
    atomic_write(folder / "a", std::string_view("abc"));
    atomic_write(folder / "empty", std::string_view(""));
    MappedFile a = MappedFile::open(folder / "a", Access::random);
    const auto* address = a.bytes().data();
    MappedFile b = std::move(a);
    REQUIRE(b.bytes().data() == address);
    REQUIRE(b.bytes().size() == 3);
    REQUIRE(MappedFile::open(folder / "empty").bytes().empty());
    b = MappedFile::open(folder / "empty");
    REQUIRE(b.bytes().empty());
}
