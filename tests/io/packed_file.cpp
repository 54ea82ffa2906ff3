// SPDX-License-Identifier: MIT
#include "files.hpp"

#include <catch.hpp>
#include <mnemo/io/datastore.hpp>
#include <mnemo/io/packed_file.hpp>
#include <mnemo/retrieve/build_lists.hpp>
#include <mnemo/retrieve/lists.hpp>
#include <mnemo/store/views.hpp>

#include <fstream>
#include <random>

using namespace mnemo;

namespace {

Matrix shifted_rows(index_t rows, index_t d, unsigned seed) {
    std::mt19937 gen(seed);
    std::normal_distribution<float> normal(1, 2);
    Matrix out(rows, d);
    for (float& x : out.data) x = normal(gen);
    return out;
}

void make_store(const std::string& folder, const Matrix& keys) {
    DatastoreOptions options;
    options.host.key_dim = keys.cols, options.host.vocab_size = 50;
    auto writer = DatastoreWriter::create(folder, options);
    writer.append(keys, std::vector<std::int32_t>(static_cast<std::size_t>(keys.rows), 3));
    writer.close();
}

void same(const Hits& a, const Hits& b) {
    REQUIRE(a.rows() == b.rows());
    for (index_t row = 0; row < a.rows(); ++row) {
        CHECK(std::ranges::equal(a.ids(row), b.ids(row)));
        CHECK(std::ranges::equal(a.scores(row), b.scores(row)));
    }
}

bool can_pack() { return PackedKeys<L2>(8).view().runs_here(); }

} // namespace

TEST_CASE("packed keys beside a datastore") {
    if (!can_pack()) {
        const Folder folder;
        CHECK_THROWS(PackedFile::write<L2>(folder / "p", shifted_rows(9, 8, 1), "x", {}, [](index_t, index_t) {}));
        return;
    }
    const Folder folder;
    const Matrix keys = shifted_rows(15000, 24, 1), queries = shifted_rows(9, 24, 2);
    make_store(folder / "store", keys);
    const auto path = folder / "packed";
    const auto packed_beside = [&](const Datastore& store) { return PackedFile::open(path, store.keys_version()); };
    {
        const Datastore store = Datastore::open(folder / "store");
        std::vector<index_t> seen;
        PackedFile::write<L2>(path, store.keys(), store.keys_version(), FilterFormat::int8,
                              [&](index_t done, index_t all) {
                                  CHECK(all == 15000);
                                  seen.push_back(done);
                              });
        CHECK(seen == std::vector<index_t>{12288, 15000});
        const PackedFile packed = packed_beside(store);
        packed.verify();
        CHECK(packed.view().rows == 15000);
        for (const index_t batch : {1, 9}) {
            const Rows some = Rows(queries).slice(0, batch);
            same(Exact<L2>{100}.retrieve(WithPacked(store, packed.view()), some), Exact<L2>{100}.retrieve(store, some));
        }
    }
    // More rows and erased ones need no new copy ...
    {
        auto writer = DatastoreWriter::resume(folder / "store");
        writer.append(shifted_rows(700, 24, 3), std::vector<std::int32_t>(700, 4));
        writer.close();
    }
    Datastore store = Datastore::open(folder / "store", {.writable = true});
    for (index_t id = 0; id < 15000; id += 5) store.erase(id);
    const PackedFile packed = packed_beside(store);
    same(Exact<L2>{100}.retrieve(WithPacked(store, packed.view()), queries), Exact<L2>{100}.retrieve(store, queries));
    // ... a replaced one does.
    store.replace(1, queries[0], 1);
    CHECK(error_of([&] { packed_beside(store); }).find("make it again") != std::string::npos);
}

TEST_CASE("lists in a file") {
    if (!can_pack()) return;
    const Folder folder;
    const Matrix keys = shifted_rows(3000, 16, 1), queries = shifted_rows(9, 16, 2);
    TokenStore<half> store(16);
    store.append(keys, std::vector<std::int32_t>(3000));
    const KeyLists built = ListsBuilder<L2>(store.keys(), {.lists = 20}).build();
    ListsFile::write(folder / "lists", built.view(), "a");
    const ListsFile file = ListsFile::open(folder / "lists", "a");
    file.verify();
    for (const Probe probe : {Probe::first_pass, Probe::rescored, Probe::exact})
        same(Lists<L2>{file.view(), 50, 4, probe}.retrieve(store, queries),
             Lists<L2>{built.view(), 50, 4, probe}.retrieve(store, queries));
    CHECK(error_of([&] { ListsFile::open(folder / "lists", "b"); }).find("expected a packed copy of b") !=
          std::string::npos);
    CHECK(error_of([&] { PackedFile::open(folder / "lists"); }).find("kind: expected packed") != std::string::npos);
}

TEST_CASE("a damaged file of arrays is an Error") {
    const Folder folder;
    const std::vector<float> values(5000, 1.5f);
    {
        ArrayFileWriter writer(folder / "a", "test", {{"n", "5000"}}, {{"x", 20000}, {"y", 4}});
        writer.append(0, std::span(values).first(4000));
        CHECK_THROWS(writer.commit());
        writer.append(0, std::span(values).first(1000));
        CHECK_THROWS(writer.append(0, std::span(values).first(1)));
        writer.append(1, std::span(values).first(1));
        CHECK(folder.names().size() == 1); // a temporary one
        writer.commit();
    }
    const ArrayFile file = ArrayFile::open(folder / "a", "test");
    file.verify();
    CHECK(file.number("n", 0, 5000) == 5000);
    CHECK(file.array<float>("x", 5000)[4999] == 1.5f);
    CHECK_THROWS(file.number("n", 0, 4999));
    CHECK_THROWS(file.number("m", 0, 1));
    CHECK_THROWS(file.array<float>("x", 4999));
    CHECK_THROWS(file.array<float>("z", 1));
    const auto with_byte = [&](std::size_t at, char byte) {
        std::ifstream in(folder / "a", std::ios::binary);
        std::string bytes((std::istreambuf_iterator<char>(in)), {});
        bytes[at] = byte;
        std::ofstream(folder / "b", std::ios::binary) << bytes;
        return error_of([&] { ArrayFile::open(folder / "b", "test").verify(); });
    };
    CHECK(with_byte(4096 + 7, 'x').find("x: damaged") != std::string::npos);
    for (const std::size_t at : {0, 15, 25, 40, 60}) CHECK_FALSE(with_byte(at, '~').empty());
    std::filesystem::resize_file(folder / "b", 8192);
    CHECK_FALSE(error_of([&] { ArrayFile::open(folder / "b", "test"); }).empty());
    std::filesystem::resize_file(folder / "b", 100);
    CHECK_FALSE(error_of([&] { ArrayFile::open(folder / "b", "test"); }).empty());
}
