// SPDX-License-Identifier: MIT
#include "files.hpp"

#include <catch.hpp>
#include <mnemo/io/npy.hpp>

#include <numeric>

using namespace mnemo;

namespace {

template <class T> void check_values(const Npy& npy, const nlohmann::json& entry) {
    const auto values = npy.values<T>();
    if (entry.contains("first_row"))
        for (std::size_t i = 0; i < entry.at("first_row").size(); ++i)
            REQUIRE(static_cast<double>(values.at(i)) == entry.at("first_row")[i].get<double>());
    if (entry.contains("sum"))
        REQUIRE(std::accumulate(values.begin(), values.end(), 0.0) ==
                Approx(entry.at("sum").get<double>()).epsilon(1e-6));
}

std::string with_header(const std::string& dict, std::size_t data = 48) {
    std::string file("\x93NUMPY\x01\x00", 8);
    file += static_cast<char>(dict.size() & 255);
    file += static_cast<char>(dict.size() >> 8);
    return file + dict + std::string(data, '\0');
}
std::string error_with(const std::string& dict, std::size_t data = 48) {
    const std::string file = with_header(dict, data);
    return error_of([&] { parse_npy(bytes_of(file), "here"); });
}

template <class T> void round_trip(const std::vector<T>& values) {
    const Folder folder;
    write_npy(folder / "a.npy", {2, 3}, values);
    const Npy npy = Npy::open(folder / "a.npy");
    REQUIRE(npy.type() == element_type_of<T>);
    REQUIRE(npy.shape() == std::vector<index_t>{2, 3});
    REQUIRE(npy.header().data_offset % 64 == 0);
    REQUIRE(npy.values<T>() == values);
    const auto m = npy.matrix<T>();
    REQUIRE(std::equal(values.begin(), values.end(), m.data));
}

} // namespace

TEST_CASE("every npy file of the bad set behaves as its manifest says") {
    int seen = 0, opened = 0;
    for (const auto& entry : bad_files("npy")) {
        const std::string file = entry.at("file"), path = bad_file(file);
        INFO(file);
        ++seen;
        if (entry.at("expect") == "error") {
            const std::string message = error_of([&] { Npy::open(path); });
            INFO(message);
            REQUIRE(message.find(file) != std::string::npos);
            continue;
        }
        if (file == "npy_trailing.npy") REQUIRE(error_of([&] { Npy::open(path); }).find(file) != std::string::npos);
        const Npy npy = Npy::open(path, {.allow_trailing_bytes = true});
        ++opened;
        REQUIRE(npy.shape() == entry.at("shape").get<std::vector<index_t>>());
        if (file == "keys_nonfinite.npy") {
            const auto row = npy.matrix<float>()[entry.at("row").get<index_t>()];
            REQUIRE(row[entry.at("column").get<std::size_t>()] != row[entry.at("column").get<std::size_t>()]);
        } else if (npy.type() >= ElementType::float16) {
            check_values<double>(npy, entry);
        } else {
            check_values<std::int64_t>(npy, entry);
        }
    }
    REQUIRE(seen > 30);
    REQUIRE(opened > 14);
}

TEST_CASE("views of mapped arrays are only given where they are right") {
    REQUIRE(error_of([] { Npy::open(bad_file("npy_fortran.npy")).matrix<float>(); }).find("Fortran") !=
            std::string::npos);
    REQUIRE(error_of([] { Npy::open(bad_file("npy_big_endian.npy")).matrix<float>(); }).find("big-endian") !=
            std::string::npos);
    REQUIRE(error_of([] { Npy::open(bad_file("ok_v2.npy")).matrix<double>(); }).find("got float32 [3, 4]") !=
            std::string::npos);
    REQUIRE(error_of([] { Npy::open(bad_file("ok_fortran_1d.npy")).matrix<float>(); }).find("[12]") !=
            std::string::npos);
}

TEST_CASE("npy literals are parsed strictly and never evaluated") {
    const auto has = [](const std::string& message, const std::string& part) {
        INFO(message);
        return message.find(part) != std::string::npos;
    };
    REQUIRE(error_with("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }\n").empty());
    REQUIRE(error_with("{\"shape\":(3,4,),'fortran_order':False,'descr':\"<f4\"}").empty());
    REQUIRE(error_with("{'descr': '<f4', 'fortran_order': False, 'shape': (3L, 4L)}").empty());
    REQUIRE(has(error_with("{'descr': '<f4', 'fortran_order': False, 'shape': (12)}"), "tuple"));
    REQUIRE(has(error_with("{'descr': '<f4', 'fortran_order': 0, 'shape': (3, 4)}"), "True or False"));
    REQUIRE(has(error_with("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4)} 1"), "nothing after"));
    REQUIRE(has(error_with("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (3, 4)}"), "twice"));
    REQUIRE(has(error_with("{'descr': '<f4', 'fortran_order': False, 'shape': (3 4)}"), "','"));
    REQUIRE(has(error_with("{'descr': '<f4', 'fortran_order': False, 'shape': (,)}"), "non-negative"));
    REQUIRE(has(error_with("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}"), "overflows"));
    REQUIRE(
        has(error_with("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4)}"), "overflows"));
    REQUIRE(has(error_with("{'descr': '<f4', 'fortran_order': False, 'shape': (2305843009213693952,)}"), "overflows"));
    REQUIRE(has(error_with("{'descr': ('<f4', (2,)), 'fortran_order': False, 'shape': (3, 4)}"), "sub-array"));
    REQUIRE(has(error_with("{'descr': '<f\\x34', 'fortran_order': False, 'shape': (3, 4)}"), "escapes"));
    REQUIRE(has(error_with("{'descr': '<U4', 'fortran_order': False, 'shape': (3, 4)}"), "<U4"));
    REQUIRE(has(error_with("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 5), }"), "expected 60 bytes"));
    REQUIRE(has(error_with(std::string("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4)}") + '\0'),
                "nothing after"));
    REQUIRE(has(error_with(""), "a dict"));
    REQUIRE(has(error_with("{"), "key"));
}

TEST_CASE("npy arrays written are npy arrays read") {
    round_trip<float>({1, -2, 3.5f, 4, 5, 6});
    round_trip<double>({1, -2, 3.5, 4, 5, 6});
    round_trip<half>({to_half(1), to_half(-2), to_half(0.5f), {}, {}, {}});
    round_trip<bfloat16>({to_bfloat16(1), to_bfloat16(-2), to_bfloat16(0.5f), {}, {}, {}});
    round_trip<std::int8_t>({1, -2, 3, 4, 5, 6});
    round_trip<std::int16_t>({1, -2, 3, 4, 5, 6});
    round_trip<std::int32_t>({1, -2, 3, 4, 5, 6});
    round_trip<std::int64_t>({1, -2, 3, 4, 5, 6});
    round_trip<std::uint8_t>({1, 2, 3, 4, 5, 255});
    round_trip<std::uint16_t>({1, 2, 3, 4, 5, 65535});
    round_trip<std::uint32_t>({1, 2, 3, 4, 5, 6});
    round_trip<std::uint64_t>({1, 2, 3, 4, 5, 6});
    REQUIRE(npy_descr(ElementType::float32) == "<f4");
    REQUIRE(npy_descr(ElementType::boolean) == "|b1");
    REQUIRE(npy_descr(ElementType::uint8) == "|u1");

    const Folder folder;
    write_npy<float>(folder / "scalar.npy", {}, {2.5f});
    REQUIRE(Npy::open(folder / "scalar.npy").values<float>() == std::vector<float>{2.5f});
    write_npy<float>(folder / "none.npy", {0, 7}, {});
    REQUIRE(Npy::open(folder / "none.npy").matrix<float>().rows == 0);
    REQUIRE_THROWS_AS(write_npy<float>(folder / "x.npy", {2}, {1, 2, 3}), Error);
    REQUIRE_THROWS_AS(write_npy<float>(folder / "x.npy", {-2}, {}), Error);
    REQUIRE_FALSE(exists(folder / "x.npy"));
}

TEST_CASE("rows are streamed to an npy file whose count is written last") {
    const Folder folder;
    std::vector<std::int32_t> all(300'000 * 2);
    std::iota(all.begin(), all.end(), 0);
    NpyWriter<std::int32_t> writer(folder / "a.npy", {2});
    const std::span<const std::int32_t> values(all);
    std::size_t at = 0;
    for (const std::size_t n :
         {std::size_t{2}, std::size_t{4}, std::size_t{0}, std::size_t{400'000}, std::size_t{10}}) {
        writer.append(values.subspan(at, n));
        at += n;
    }
    writer.append(values.subspan(at));
    REQUIRE_THROWS_AS(writer.append(values.first(3)), Error);
    REQUIRE_FALSE(exists(folder / "a.npy"));
    writer.finish();
    REQUIRE(writer.rows() == 300'000);
    const Npy npy = Npy::open(folder / "a.npy");
    REQUIRE(npy.shape() == std::vector<index_t>{300'000, 2});
    REQUIRE(npy.values<std::int32_t>() == all);
    {
        NpyWriter<std::int32_t> abandoned(folder / "b.npy", {});
        abandoned.append(values.first(5));
    }
    REQUIRE(folder.names() == std::vector<std::string>{"a.npy"});
}

TEST_CASE("every cut and every changed byte of an npy file opens or is an Error") {
    const Folder folder;
    write_npy<float>(folder / "a.npy", {2, 3}, {1, 2, 3, 4, 5, 6});
    const std::string file = read_file(folder / "a.npy");
    for (std::size_t n = 0; n < file.size(); ++n)
        REQUIRE_THROWS_AS(parse_npy(bytes_of(std::string_view(file).substr(0, n)), "cut"), Error);
    int opened = 0;
    for (std::size_t n = 0; n < file.size(); ++n)
        for (int flip = 1; flip < 256; ++flip) {
            std::string changed = file;
            changed[n] = static_cast<char>(changed[n] ^ flip);
            try {
                const NpyHeader header = parse_npy(bytes_of(changed), "changed");
                REQUIRE(header.count * static_cast<std::uint64_t>(header.item_size) + header.data_offset ==
                        file.size());
                ++opened;
            } catch (const Error&) {
            }
        }
    REQUIRE(opened > 24 * 255 - 1); // the data is anything
}
