// SPDX-License-Identifier: MIT
#include "files.hpp"

#include <catch.hpp>
#include <mnemo/io/datastore.hpp>
#include <mnemo/io/safetensors.hpp>

#include <numeric>

using namespace mnemo;

namespace {

template <class T> void write_raw(const std::string& path, const std::vector<T>& values) {
    atomic_write(path, bytes_of(std::span<const T>(values)));
}

} // namespace

TEST_CASE("memory maps of the kNN-LM reference are opened as they are, and written back byte for byte") {
    for (const std::string case_name : {"fp32_share", "adaptive"}) {
        INFO(case_name);
        const SafeTensors t = SafeTensors::open(golden("knnlm/knnlm_datastore_" + case_name + ".safetensors"));
        const std::string prefix = golden("knnlm/knnlm_" + case_name);
        const bool fp16 = t.at("out.keys").dtype == "F16";
        const index_t vocab = std::stoi(t.metadata().at("vocab_size"));
        const RawLayout layout{.key_dim = t.at("out.keys").shape[1],
                               .key_type = fp16 ? KeyType::float16 : KeyType::float32,
                               .value_type = fp16 ? ElementType::int16 : ElementType::int64,
                               .vocab_size = vocab};
        const Datastore store = Datastore::open_raw(prefix + "_keys.npy", prefix + "_vals.npy", layout);
        REQUIRE(store.size() == t.at("out.keys").shape[0]);
        const auto keys = t.values<float>("out.keys");
        const auto values = t.values<std::int32_t>("out.vals");
        std::vector<float> row(static_cast<std::size_t>(store.key_dim()));
        for (index_t i = 0; i < store.size(); ++i) {
            store.keys().read(i, row);
            REQUIRE(std::equal(row.begin(), row.end(), keys.begin() + i * store.key_dim()));
            REQUIRE(store.value(i) == values[static_cast<std::size_t>(i)]);
        }
        const Folder folder;
        REQUIRE(store.write_reference(folder / "out", fp16 ? ReferenceFormat::fp16 : ReferenceFormat::fp32) ==
                store.size());
        REQUIRE(read_file(folder / "out_keys.npy") == read_file(prefix + "_keys.npy"));
        REQUIRE(read_file(folder / "out_vals.npy") == read_file(prefix + "_vals.npy"));
    }
}

TEST_CASE("raw memory maps are only opened with a layout that fits") {
    const Folder folder;
    const std::string keys = folder / "x_keys.npy", values = folder / "x_vals.npy";
    write_raw<float>(keys, {1, 2, 3, 4, 5, 6});
    write_raw<std::int64_t>(values, {7, 8});
    const RawLayout right{.key_dim = 3, .key_type = KeyType::float32, .value_type = ElementType::int64};
    const auto error = [&](auto&& change) {
        RawLayout layout = right;
        change(layout);
        return error_of([&] { Datastore::open_raw(keys, values, layout); });
    };
    REQUIRE(error([](RawLayout&) {}).empty());
    REQUIRE(error([](RawLayout& l) { l.rows = 2; }).empty());
    REQUIRE(has(error([](RawLayout& l) { l.rows = 3; }),
                "x_keys.npy: expected float32 [3, 3] = 3 * 12 bytes, got 24 bytes"));
    REQUIRE(has(error([](RawLayout& l) { l.rows = INT64_MAX; }), "x_keys.npy"));
    REQUIRE(has(error([](RawLayout& l) { l.key_dim = 0; }), "key_dim"));
    REQUIRE(has(error([](RawLayout& l) { l.key_dim = 4; }), "x_keys.npy: expected float32 [1, 4]"));
    REQUIRE(has(error([](RawLayout& l) { l.key_type = KeyType::float16; }), "x_vals.npy: expected int64 [4, 1]"));
    REQUIRE(has(error([](RawLayout& l) { l.value_type = ElementType::int32; }), "x_vals.npy: expected int32 [2, 1]"));
    REQUIRE(has(error([](RawLayout& l) { l.value_type = ElementType::float32; }), "got float32"));
    REQUIRE(has(error([](RawLayout& l) { l.vocab_size = 8; }), "row 1: expected a token in [0, 8), got 8"));
    REQUIRE(has(error_of([&] { Datastore::open_npy(keys, values); }), "x_keys.npy: expected an npy file"));
    REQUIRE(has(error_of([&] { Datastore::open_raw(folder / "none", values, right); }), "none: cannot open"));

    Datastore store = Datastore::open_raw(keys, values, right);
    REQUIRE(has(error_of([&] { store.erase(0); }), "read-only"));
    REQUIRE(store.refresh() == 0);
    store.verify();
    REQUIRE(store.erased_count() == 0);
}

TEST_CASE("int16 tokens are read where they can be told apart") {
    const Folder folder;
    const std::string keys = folder / "keys", values = folder / "vals";
    write_raw<half>(keys, std::vector<half>(3));
    write_raw<std::int16_t>(values, {5, 32767, static_cast<std::int16_t>(40000)}); // the last one wrapped to -25536
    const auto open = [&](index_t vocab) {
        return Datastore::open_raw(keys, values, {.key_dim = 1, .value_type = ElementType::int16, .vocab_size = vocab});
    };
    REQUIRE(open(50257).value(2) == 40000);
    REQUIRE(open(65536).value(1) == 32767);
    REQUIRE(has(error_of([&] { open(32768); }), "row 2: expected a token in [0, 32768), got"));
    REQUIRE(has(error_of([&] { open(65537); }), "vals: int16 values: expected a vocabulary of 1 to 65536"));
    REQUIRE(has(error_of([&] { open(0); }), "int16 values"));
}

TEST_CASE("zero rows at the end, which were never written, are found") {
    const Folder folder;
    const std::string keys = folder / "keys", values = folder / "vals";
    std::vector<float> k(10 * 4);
    std::vector<std::int32_t> v(10);
    k[4 * 5 + 3] = 1; // row 5 is the last one with a key, row 6 with a value
    v[6] = 3;
    write_raw(keys, k);
    write_raw(values, v);
    RawLayout layout{.key_dim = 4, .key_type = KeyType::float32};
    REQUIRE(Datastore::open_raw(keys, values, layout).zero_tail() == 3);
    REQUIRE(Datastore::open_raw(keys, values, layout).size() == 10);
    layout.drop_zero_tail = true;
    REQUIRE(Datastore::open_raw(keys, values, layout).size() == 7);
    REQUIRE(Datastore::open_raw(keys, values, layout).zero_tail() == 0);
    atomic_write(keys, std::string(160, '\0'));
    atomic_write(values, std::string(40, '\0'));
    REQUIRE(Datastore::open_raw(keys, values, layout).size() == 0);
}

TEST_CASE("real npy files of any writer are opened") {
    const Folder folder;
    const std::string keys = folder / "k.npy", values = folder / "v.npy";
    write_npy<half>(keys, {2, 2}, {to_half(1), to_half(2), to_half(3), to_half(4)});
    write_npy<std::int64_t>(values, {2, 1}, {7, 8});
    {
        const Datastore store = Datastore::open_npy(keys, values, 9);
        std::vector<float> row(2);
        store.keys().read(1, row);
        REQUIRE(row == std::vector<float>{3, 4});
        REQUIRE(store.value(1) == 8);
    }
    const auto error = [&] { return error_of([&] { Datastore::open_npy(keys, values, 9); }); };
    REQUIRE(has(error_of([&] { Datastore::open_npy(keys, values, 8); }), "row 1: expected a token in [0, 8), got 8"));
    REQUIRE(has(error_of([&] { Datastore::open_raw(keys, values, {.key_dim = 2}); }),
                "k.npy: expected a raw memory map, got a real npy file"));
    write_npy<std::int32_t>(values, {3}, {1, 2, 3});
    REQUIRE(has(error(), "v.npy: expected integers [2]"));
    write_npy<float>(values, {2}, {1, 2});
    REQUIRE(has(error(), "v.npy: expected int16, int32 or int64 values, got float32"));
    write_npy<std::int32_t>(values, {2}, {1, 2});
    write_npy<double>(keys, {2, 2}, {1, 2, 3, 4});
    REQUIRE(has(error(), "k.npy: expected float32, float16 or bfloat16 [n, d], got float64 [2, 2]"));
    write_npy<float>(keys, {4}, {1, 2, 3, 4});
    REQUIRE(has(error(), "k.npy: expected float32 [n, d] in C order, got float32 [4]"));
    REQUIRE(has(error_of([&] { Datastore::open_npy(bad_file("npy_fortran.npy"), values); }), "Fortran"));
    REQUIRE(has(error_of([&] { Datastore::open_npy(bad_file("npy_raw_memmap.npy"), values); }), "raw memory map"));
}

TEST_CASE("the reference gets no value that wraps, no key that overflows and no erased entry") {
    const Folder folder;
    const std::string store_folder = folder / "store";
    {
        auto writer = DatastoreWriter::create(
            store_folder, {.host = {.key_dim = 2, .vocab_size = 50000}, .key_type = KeyType::float32});
        const Matrix keys = [] {
            Matrix m(4, 2);
            std::iota(m.data.begin(), m.data.end(), 1.0f);
            return m;
        }();
        writer.append(keys, std::vector<std::int32_t>{1, 32767, 32768, 4});
    }
    const std::string out = folder / "out";
    {
        Datastore store = Datastore::open(store_folder, {.writable = true});
        REQUIRE(has(error_of([&] { store.write_reference(out, ReferenceFormat::fp16); }),
                    "out_vals.npy: entry 2: expected a token that fits int16, got 32768"));
        REQUIRE_FALSE(exists(out + "_keys.npy"));
        REQUIRE(store.write_reference(out) == 4);
        store.erase(2);
        REQUIRE(store.write_reference(out, ReferenceFormat::fp16) == 3);
        const Datastore back =
            Datastore::open_raw(out + "_keys.npy", out + "_vals.npy",
                                {.key_dim = 2, .value_type = ElementType::int16, .vocab_size = 32768});
        REQUIRE(back.size() == 3);
        REQUIRE(back.value(1) == 32767);
        REQUIRE(back.value(2) == 4);
        std::vector<float> row(2);
        back.keys().read(2, row);
        REQUIRE(row == std::vector<float>{7, 8});
        store.replace(3, std::vector<float>{7, 1e6f}, 4);
        REQUIRE(has(error_of([&] { store.write_reference(out, ReferenceFormat::fp16); }),
                    "out_keys.npy: entry 3, column 1: expected a key that is finite as float16, got 1e+06"));
    }
}

TEST_CASE("values of 32 bits, and files longer than what was written into them") {
    const Folder folder;
    auto writer = DatastoreWriter::create(folder / "store",
                                          {.host = {.key_dim = 3, .vocab_size = 90000}, .key_type = KeyType::float32});
    const std::vector<float> keys{1, 2, 3, 4, 5, 6};
    writer.append(Rows(keys.data(), 2, 3), std::vector<std::int32_t>{70000, 0});
    writer.close();
    const Datastore store = Datastore::open(folder / "store");
    REQUIRE(store.write_reference(folder / "dstore", ReferenceFormat::fp32_int32, 5) == 2);
    const std::string key_file = folder / "dstore_keys.npy", value_file = folder / "dstore_vals.npy";
    CHECK(read_file(key_file).size() == 5 * 3 * 4);
    CHECK(read_file(value_file).size() == 5 * 4);
    RawLayout layout{.key_dim = 3, .key_type = KeyType::float32, .vocab_size = 90000};
    CHECK(Datastore::open_raw(key_file, value_file, layout).size() == 5);
    layout.rows = 2;
    CHECK(error_of([&] { (void)Datastore::open_raw(key_file, value_file, layout); }).find("expected float32 [2, 3]") !=
          std::string::npos);
    layout.prefix = true;
    const Datastore prefix = Datastore::open_raw(key_file, value_file, layout);
    CHECK(prefix.size() == 2);
    CHECK(prefix.value(0) == 70000);
    CHECK(prefix.value(1) == 0);
    CHECK(std::memcmp(prefix.keys().data, keys.data(), sizeof(float) * keys.size()) == 0);
    layout.rows = 6;
    CHECK(error_of([&] { (void)Datastore::open_raw(key_file, value_file, layout); }).find("expected float32 [6, 3]") !=
          std::string::npos);
    layout.rows = 0, layout.drop_zero_tail = true;
    CHECK(Datastore::open_raw(key_file, value_file, layout).size() == 2);
}
