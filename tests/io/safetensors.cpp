// SPDX-License-Identifier: MIT
#include "files.hpp"

#include <catch.hpp>
#include <mnemo/io/safetensors.hpp>

#include <numeric>

using namespace mnemo;

TEST_CASE("every safetensors file of the bad set behaves as its manifest says") {
    int seen = 0;
    for (const auto& entry : bad_files("safetensors")) {
        const std::string file = entry.at("file"), path = bad_file(file);
        INFO(file);
        ++seen;
        const std::string expect = entry.at("expect");
        if (expect != "ok") {
            const std::string message = error_of([&] { SafeTensors::open(path); });
            INFO(message);
            REQUIRE(message.find(file) != std::string::npos);
            REQUIRE(message.find(": ") != std::string::npos);
            continue;
        }
        const SafeTensors tensors = SafeTensors::open(path);
        if (entry.contains("names")) {
            std::vector<std::string> names;
            for (const Entry& e : tensors.entries()) names.push_back(e.name);
            std::sort(names.begin(), names.end());
            REQUIRE(names == entry.at("names").get<std::vector<std::string>>());
        }
        if (entry.contains("sum")) {
            double sum = 0;
            for (const Entry& e : tensors.entries())
                if (e.dtype == "F32")
                    for (const float x : tensors.values<float>(e.name)) sum += x;
            REQUIRE(sum == Approx(entry.at("sum").get<double>()).epsilon(1e-6));
        }
        if (entry.contains("as_double"))
            for (const auto& [name, value] : entry.at("as_double").items()) {
                const std::string dtype = tensors.at(name).dtype;
                if (dtype.starts_with("F8"))
                    REQUIRE_THROWS_AS(tensors.values<float>(name), Error);
                else if (dtype.find('F') != std::string::npos)
                    REQUIRE(tensors.values<double>(name).at(0) == value.get<double>());
                else
                    REQUIRE(tensors.values<std::int64_t>(name).at(0) == value.get<std::int64_t>());
            }
    }
    REQUIRE(seen > 30);
}

TEST_CASE("safetensors written are safetensors read") {
    const Folder folder;
    const std::string path = folder / "a.safetensors";
    std::vector<float> f(12);
    std::iota(f.begin(), f.end(), -3.5f);
    const std::vector<std::int64_t> ids{1, -2, 3};
    const std::vector<half> h{to_half(1.5f), to_half(-2)};
    const std::vector<bfloat16> b{to_bfloat16(0.25f)};
    const std::vector<std::uint8_t> bytes{1, 2, 255};
    const std::vector<float> none;
    write_safetensors(path,
                      std::vector<Entry>{tensor_entry("bytes", {3}, bytes), tensor_entry("f", {3, 4}, f),
                                         tensor_entry("ids", {3}, ids), tensor_entry("h", {2, 1}, h),
                                         tensor_entry("b", {}, b), tensor_entry("none", {0, 7}, none)},
                      {{"case", "x \"quoted\" \xc3\xa4"}, {"k", "3"}});
    const SafeTensors t = SafeTensors::open(path);
    REQUIRE(t.metadata().at("case") == "x \"quoted\" \xc3\xa4");
    REQUIRE(t.entries().size() == 6);
    REQUIRE(t.at("f").shape == std::vector<index_t>{3, 4});
    REQUIRE(t.at("f").size() == 12);
    REQUIRE(t.values<float>("f") == f);
    REQUIRE(t.values<double>("f") == std::vector<double>(f.begin(), f.end()));
    REQUIRE(t.values<std::int64_t>("ids") == ids);
    REQUIRE(t.values<std::int32_t>("ids") == std::vector<std::int32_t>{1, -2, 3});
    REQUIRE(t.values<half>("h") == h);
    REQUIRE(t.values<float>("h") == std::vector<float>{1.5f, -2});
    REQUIRE(t.values<float>("b") == std::vector<float>{0.25f});
    REQUIRE(t.values<std::int32_t>("bytes") == std::vector<std::int32_t>{1, 2, 255});
    REQUIRE(t.values<float>("none").empty());
    REQUIRE(t.find("absent") == nullptr);
    REQUIRE(error_of([&] { t.at("absent"); }).find("absent") != std::string::npos);
    // Types are not mixed, and values that do not fit are not cut.
    REQUIRE(error_of([&] { t.values<float>("ids"); }).find("got I64") != std::string::npos);
    REQUIRE(error_of([&] { t.values<std::int64_t>("f"); }).find("got F32") != std::string::npos);
    REQUIRE(error_of([&] { t.values<std::int8_t>("bytes"); }).find("element 2") != std::string::npos);
    REQUIRE(error_of([&] { t.values<std::uint64_t>("ids"); }).find("-2") != std::string::npos);
    for (const Entry& e : t.entries())
        if (!e.bytes.empty())
            REQUIRE(reinterpret_cast<std::uintptr_t>(e.bytes.data()) * 8 % detail::safetensors_type(e.dtype).bits == 0);
}

TEST_CASE("the safetensors writer refuses what it could not read back") {
    const Folder folder;
    const std::string path = folder / "a.safetensors";
    const std::vector<float> f(4);
    const auto error = [&](std::vector<Entry> entries) { return error_of([&] { write_safetensors(path, entries); }); };
    REQUIRE(error({tensor_entry("a", {5}, f)}).find("expected 20 bytes, got 16") != std::string::npos);
    REQUIRE(error({tensor_entry("a", {-1}, f)}).find("-1") != std::string::npos);
    REQUIRE(error({tensor_entry("a", {4}, f), tensor_entry("a", {4}, f)}).find("taken") != std::string::npos);
    REQUIRE(error({tensor_entry("__metadata__", {4}, f)}).find("taken") != std::string::npos);
    REQUIRE(error({tensor_entry("\xff", {4}, f)}).find("UTF-8") != std::string::npos);
    REQUIRE(!exists(path));
    REQUIRE(folder.names().empty()); // no temporary is left behind
}

TEST_CASE("trailing bytes of a safetensors file are refused unless allowed") {
    const std::string path = bad_file("st_trailing.safetensors");
    REQUIRE_THROWS_AS(SafeTensors::open(path), Error);
    REQUIRE_FALSE(SafeTensors::open(path, {.allow_trailing_bytes = true}).entries().empty());
}

TEST_CASE("every cut and every changed byte of a safetensors file opens or is an Error") {
    const Folder folder;
    const std::vector<float> f(3, 1.0f);
    const std::vector<std::int16_t> i{1, 2};
    write_safetensors(folder / "a", std::vector<Entry>{tensor_entry("f", {3}, f), tensor_entry("i", {2}, i)},
                      {{"k", "v"}});
    const std::string file = read_file(folder / "a");
    for (std::size_t n = 0; n < file.size(); ++n)
        REQUIRE_THROWS_AS(parse_safetensors(bytes_of(std::string_view(file).substr(0, n)), "cut"), Error);
    for (std::size_t n = 0; n < file.size(); ++n)
        for (const int flip : {1, 2, 4, 8, 16, 32, 64, 128, 255}) {
            std::string changed = file;
            changed[n] = static_cast<char>(changed[n] ^ flip);
            try {
                const SafeTensorsIndex index = parse_safetensors(bytes_of(changed), "changed");
                std::size_t total = 0;
                for (const Entry& e : index.entries) total += e.bytes.size();
                REQUIRE(total == 16);
            } catch (const Error&) {
            }
        }
}
