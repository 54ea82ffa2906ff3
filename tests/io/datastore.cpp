// SPDX-License-Identifier: MIT
#include "files.hpp"

#include <catch.hpp>
#include <mnemo/io/datastore.hpp>
#include <mnemo/io/safetensors.hpp>

#include <csignal>
#include <limits>
#include <random>
#include <sys/resource.h>

using namespace mnemo;

namespace {

/// Rows whose numbers float16 and bfloat16 hold exactly, so that what comes back can be compared with ==.
struct Data {
    Matrix keys;
    std::vector<std::int32_t> values;
    Data(index_t rows, index_t dim, unsigned seed = 1, int vocab = 50) : keys(rows, dim) {
        std::mt19937 random(seed);
        for (float& x : keys.data) x = static_cast<float>(static_cast<int>(random() % 255) - 127) / 8;
        for (index_t i = 0; i < rows; ++i)
            values.push_back(static_cast<std::int32_t>(random() % static_cast<unsigned>(vocab)));
    }
    Rows rows(index_t first, index_t count) const { return Rows(keys).slice(first, count); }
    std::span<const std::int32_t> tokens(index_t first, index_t count) const {
        return std::span(values).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
    }
};

DatastoreOptions options(index_t dim, KeyType type = KeyType::float16) {
    return {.host = {.model = "toy",
                     .model_hash = "abc",
                     .tokenizer_hash = "t1",
                     .key_tap = "ffn_in",
                     .key_dim = dim,
                     .vocab_size = 50,
                     .more = {{"norm", "after"}}},
            .key_type = type,
            .block_rows = 16};
}

void make(const std::string& folder, const Data& data, const DatastoreOptions& o) {
    auto writer = DatastoreWriter::create(folder, o);
    writer.append(data.keys, data.values);
    writer.close();
}

void same(const Datastore& store, const Data& data, index_t rows) {
    REQUIRE(store.size() == rows);
    REQUIRE(store.key_dim() == data.keys.cols);
    std::vector<float> row(static_cast<std::size_t>(data.keys.cols));
    for (index_t i = 0; i < rows; ++i) {
        store.keys().read(i, row);
        REQUIRE(std::equal(row.begin(), row.end(), data.keys[i].begin()));
        REQUIRE(store.value(i) == data.values[static_cast<std::size_t>(i)]);
    }
}

std::string manifest_with(const std::string& folder, const std::string& from, const std::string& to) {
    std::string json = read_file(folder + "/mnemo.json");
    const auto at = json.find(from);
    REQUIRE(at != std::string::npos);
    return json.replace(at, from.size(), to);
}

void flip(const std::string& path, std::uint64_t offset) {
    File file(path, O_RDWR);
    std::byte b{};
    file.read_at(offset, {&b, 1});
    b ^= std::byte{4};
    file.write_at(offset, {&b, 1});
}

} // namespace

TEST_CASE("a datastore holds what was appended, in every type and in pieces of any size") {
    const Data data(100, 7);
    for (const KeyType type : {KeyType::float32, KeyType::float16, KeyType::bfloat16})
        for (const ElementType values : {ElementType::int32, ElementType::int64})
            for (const index_t piece : {1, 3, 16, 17, 100}) {
                const Folder folder;
                DatastoreOptions o = options(7, type);
                o.value_type = values;
                auto writer = DatastoreWriter::create(folder / "store", o);
                for (index_t i = 0; i < 100; i += piece) {
                    const index_t n = std::min<index_t>(piece, 100 - i);
                    writer.append(data.rows(i, n), data.tokens(i, n));
                    if (i % 48 == 0) writer.commit();
                }
                REQUIRE(writer.size() == 100);
                writer.close();
                REQUIRE(writer.committed() == 100);
                const Datastore store = Datastore::open(folder / "store", {.verify = true});
                REQUIRE(store.keys().type == type);
                same(store, data, 100);
                // Real npy files, as any reader of npy sees them.
                const Npy keys = Npy::open(folder / "store/keys.npy"), tokens = Npy::open(folder / "store/values.npy");
                REQUIRE(keys.shape() == std::vector<index_t>{100, 7});
                REQUIRE(keys.header().data_offset == 128);
                REQUIRE(keys.values<float>() == data.keys.data);
                REQUIRE(tokens.type() == values);
                REQUIRE(tokens.values<std::int32_t>() == data.values);
            }
}

TEST_CASE("strided rows and rows of any float type are appended") {
    const Data data(40, 6);
    std::vector<half> halves(data.keys.data.size());
    std::vector<bfloat16> brains(data.keys.data.size());
    convert(std::span(data.keys.data), std::span(halves));
    convert(std::span(data.keys.data), std::span(brains));
    Matrix wide(40, 9);
    for (index_t i = 0; i < 40; ++i) std::copy(data.keys[i].begin(), data.keys[i].end(), wide[i].begin());
    for (const KeyType type : {KeyType::float32, KeyType::float16, KeyType::bfloat16}) {
        const Folder folder;
        auto writer = DatastoreWriter::create(folder.path(), options(6, type));
        writer.append(Rows(wide.data.data(), 10, 6, 9), data.tokens(0, 10));
        writer.append(MatrixView<const half>(halves.data() + 60, 10, 6), data.tokens(10, 10));
        writer.append(MatrixView<const bfloat16>(brains.data() + 120, 10, 6), data.tokens(20, 10));
        writer.append(data.rows(30, 10), data.tokens(30, 10));
        writer.append(data.rows(0, 0), {});
        writer.close();
        same(Datastore::open(folder.path(), {.verify = true}), data, 40);
    }
}

TEST_CASE("pieces larger than the buffers are streamed") {
    const Data data(30'000, 64);
    for (const KeyType type : {KeyType::float32, KeyType::float16}) {
        const Folder folder;
        DatastoreOptions o = options(64, type);
        o.block_rows = 16384;
        make(folder.path(), data, o);
        const Datastore store = Datastore::open(folder.path());
        store.verify(Threads{2});
        REQUIRE(store.manifest().key_checksums.size() == 2);
        std::vector<float> row(64);
        for (index_t i = 0; i < store.size(); ++i) {
            store.keys().read(i, row);
            if (!std::equal(row.begin(), row.end(), data.keys[i].begin())) FAIL("row " << i);
        }
    }
}

TEST_CASE("an append that is refused leaves nothing behind") {
    const Data data(5, 3);
    const Folder folder;
    auto writer = DatastoreWriter::create(folder.path(), options(3));
    writer.append(data.keys, data.values);
    Data bad = data;
    bad.keys[3][1] = std::numeric_limits<float>::quiet_NaN();
    REQUIRE(has(error_of([&] { writer.append(bad.keys, bad.values); }), "row 3, column 1"));
    bad.keys[3][1] = 70000;
    REQUIRE(has(error_of([&] { writer.append(bad.keys, bad.values); }),
                "row 3, column 1: expected a key that is finite as float16, got 70000"));
    bad.keys[3][1] = -std::numeric_limits<float>::infinity();
    REQUIRE(has(error_of([&] { writer.append(bad.keys, bad.values); }), "row 3, column 1"));
    bad = data;
    bad.values[4] = 50;
    REQUIRE(has(error_of([&] { writer.append(bad.keys, bad.values); }), "row 4: expected a token in [0, 50), got 50"));
    bad.values[4] = -1;
    REQUIRE(has(error_of([&] { writer.append(bad.keys, bad.values); }), "got -1"));
    REQUIRE(has(error_of([&] { writer.append(data.keys, data.tokens(0, 4)); }), "values: expected 5, got 4"));
    REQUIRE(has(error_of([&] { writer.append(Matrix(5, 4), data.values); }), "key_dim: expected 3, got 4"));
    REQUIRE(writer.size() == 5);
    writer.append(data.rows(0, 0), {});
    writer.close();
    REQUIRE(has(error_of([&] { writer.append(data.keys, data.values); }), "closed"));
    REQUIRE(has(error_of([&] { writer.commit(); }), "closed"));
    same(Datastore::open(folder.path(), {.verify = true}), data, 5);
}

TEST_CASE("the keys of the bad set that are not finite are refused with row and column") {
    const Npy npy = Npy::open(bad_file("keys_nonfinite.npy"));
    const Folder folder;
    auto writer = DatastoreWriter::create(folder.path(), {.host = {.key_dim = 4}});
    const std::vector<std::int32_t> values(6);
    REQUIRE(has(error_of([&] { writer.append(npy.matrix<float>(), values); }), "row 3, column 2"));
    REQUIRE(writer.size() == 0);
}

TEST_CASE("what was not committed is cut off when writing goes on") {
    const Data data(50, 5);
    const Folder folder;
    {
        auto writer = DatastoreWriter::create(folder.path(), options(5));
        writer.append(data.rows(0, 21), data.tokens(0, 21));
        writer.commit();
        // As after a crash: rows in the files, in the header even, but not in mnemo.json.
        const std::string manifest = read_file(folder / "mnemo.json");
        writer.append(data.rows(30, 9), data.tokens(30, 9));
        writer.close();
        atomic_write(folder / "mnemo.json", manifest);
    }
    same(Datastore::open(folder.path(), {.verify = true}), data, 21);
    {
        auto writer = DatastoreWriter::resume(folder.path(), options(5).host);
        REQUIRE(writer.size() == 21);
        REQUIRE(Npy::open(folder / "keys.npy").shape()[0] == 21);
        REQUIRE(Npy::open(folder / "values.npy").shape()[0] == 21);
        writer.append(data.rows(21, 10), data.tokens(21, 10));
    } // commits
    {
        auto writer = DatastoreWriter::resume(folder.path());
        writer.append(data.rows(31, 19), data.tokens(31, 19));
        writer.close();
    }
    same(Datastore::open(folder.path(), {.verify = true}), data, 50);
}

TEST_CASE("commits happen by themselves after a number of bytes") {
    const Data data(100, 8);
    const Folder folder;
    auto writer = DatastoreWriter::create(folder.path(), options(8)); // 20 bytes a row
    writer.set_commit_every(200);
    for (index_t i = 0; i < 100; i += 4) {
        writer.append(data.rows(i, 4), data.tokens(i, 4));
        REQUIRE(writer.committed() == (i + 4) / 12 * 12);
    }
}

TEST_CASE("readers see committed rows, and more after refresh") {
    const Data data(60, 4);
    const Folder folder;
    auto writer = DatastoreWriter::create(folder.path(), options(4));
    Datastore store = Datastore::open(folder.path());
    REQUIRE(store.size() == 0);
    writer.append(data.rows(0, 20), data.tokens(0, 20));
    REQUIRE(store.refresh() == 0);
    writer.commit();
    REQUIRE(store.size() == 0);
    REQUIRE(store.refresh() == 20);
    same(store, data, 20);
    writer.append(data.rows(20, 40), data.tokens(20, 40));
    writer.commit();
    REQUIRE(store.refresh() == 40);
    REQUIRE(store.refresh() == 0);
    same(store, data, 60);
    writer.close();

    // Edits of another store object are seen too.
    Datastore editor = Datastore::open(folder.path(), {.writable = true});
    const std::vector<float> key{1, 2, 3, 4};
    editor.replace(7, key, 33);
    editor.erase(8);
    REQUIRE(store.refresh() == 0);
    REQUIRE(store.value(7) == 33);
    REQUIRE(store.erased().contains(8));
    editor.replace(7, key, 34);
    REQUIRE(store.refresh() == 0);
    REQUIRE(store.value(7) == 34);

    // Another store under the same name is another store.
    editor = Datastore::open(folder.path());
    DatastoreOptions again = options(4);
    REQUIRE(has(error_of([&] { DatastoreWriter::create(folder.path(), again); }), "expected no datastore, got one"));
    again.overwrite = true;
    DatastoreWriter::create(folder.path(), again).close();
    REQUIRE(has(error_of([&] { store.refresh(); }), "another one"));
    REQUIRE(store.value(7) == 34); // the old files are still mapped
    REQUIRE(Datastore::open(folder.path()).size() == 0);
    REQUIRE_FALSE(exists(folder / "edits.log"));
}

TEST_CASE("two writers are refused, and so are a writer and an editor") {
    const Data data(5, 3);
    const Folder folder;
    {
        auto writer = DatastoreWriter::create(folder.path(), options(3));
        writer.append(data.keys, data.values);
        REQUIRE(has(error_of([&] { DatastoreWriter::resume(folder.path()); }), "another writer"));
        DatastoreOptions over = options(3);
        over.overwrite = true;
        REQUIRE(has(error_of([&] { DatastoreWriter::create(folder.path(), over); }), "another writer"));
        REQUIRE(has(error_of([&] { Datastore::open(folder.path(), {.writable = true}); }), "another writer"));
        REQUIRE(Datastore::open(folder.path()).size() == 0);
    }
    Datastore editor = Datastore::open(folder.path(), {.writable = true});
    REQUIRE(has(error_of([&] { DatastoreWriter::resume(folder.path()); }), "another writer"));
    same(editor, data, 5);
}

TEST_CASE("create does not walk over files that are not its own") {
    const Folder folder;
    write_npy<float>(folder / "keys.npy", {2, 2}, {1, 2, 3, 4});
    REQUIRE(
        has(error_of([&] { DatastoreWriter::create(folder.path(), options(3)); }), "keys.npy: expected no such file"));
    REQUIRE(Npy::open(folder / "keys.npy").values<float>()[3] == 4);
    REQUIRE(has(error_of([&] { DatastoreWriter::create(folder / "a/b", options(3)); }), "cannot create"));
    REQUIRE(has(error_of([&] { DatastoreWriter::create(folder / "a", {}); }), "key_dim"));
    REQUIRE_FALSE(exists(folder / "a"));
    REQUIRE(has(error_of([&] { DatastoreWriter::resume(folder / "a"); }), "expected a datastore"));
    REQUIRE(has(error_of([&] { DatastoreWriter::resume(folder.path()); }), "expected a datastore"));
    DatastoreOptions o = options(3);
    o.host.model = "\xff";
    REQUIRE(has(error_of([&] { DatastoreWriter::create(folder / "a", o); }), "UTF-8"));
    o = options(3);
    o.value_type = ElementType::int16;
    REQUIRE(has(error_of([&] { DatastoreWriter::create(folder / "a", o); }), "value_dtype"));
}

TEST_CASE("edits last, in every type, and checksums stay right") {
    for (const KeyType type : {KeyType::float32, KeyType::float16, KeyType::bfloat16}) {
        Data data(200, 6);
        const Folder folder;
        DatastoreOptions o = options(6, type);
        if (type == KeyType::float32) o.value_type = ElementType::int64;
        make(folder.path(), data, o);
        const std::string before = read_file(folder / "keys.npy");
        std::vector<bool> gone(200);
        std::mt19937 random(5);
        for (int round = 0; round < 4; ++round) {
            Datastore store = Datastore::open(folder.path(), {.writable = true, .verify = true});
            for (int i = 0; i < 40; ++i) {
                const auto id = static_cast<std::size_t>(random() % 200);
                if (random() % 3 == 0 && !gone[id]) {
                    store.erase(static_cast<index_t>(id));
                    gone[id] = true;
                } else if (gone[id]) {
                    REQUIRE(has(error_of([&] { store.erase(static_cast<index_t>(id)); }), "was erased"));
                    REQUIRE(
                        has(error_of([&] { store.replace(static_cast<index_t>(id), data.keys[0], 1); }), "was erased"));
                } else {
                    for (float& x : data.keys[static_cast<index_t>(id)]) x = static_cast<float>(random() % 100) / 4;
                    data.values[id] = static_cast<std::int32_t>(random() % 50);
                    store.replace(static_cast<index_t>(id), data.keys[static_cast<index_t>(id)], data.values[id]);
                }
            }
            if (round % 2 == 0) store.commit();
            same(store, data, 200);
            const Datastore other = Datastore::open(folder.path(), {.verify = true});
            same(other, data, 200);
            index_t count = 0;
            for (index_t id = 0; id < 200; ++id) {
                REQUIRE(other.erased().contains(id) == gone[static_cast<std::size_t>(id)]);
                count += gone[static_cast<std::size_t>(id)];
            }
            REQUIRE(other.erased_count() == count);
        }
        REQUIRE(read_file(folder / "keys.npy") == before);
        // Rows that come later do not disturb the edits.
        const Data more(20, 6, 9);
        {
            auto writer = DatastoreWriter::resume(folder.path());
            writer.append(more.keys, more.values);
        }
        const Datastore store = Datastore::open(folder.path(), {.verify = true});
        REQUIRE(store.size() == 220);
        std::vector<float> row(6);
        for (index_t i = 0; i < 220; ++i) {
            store.keys().read(i, row);
            const auto expected = i < 200 ? data.keys[i] : more.keys[i - 200];
            REQUIRE(std::equal(row.begin(), row.end(), expected.begin(), expected.end()));
        }
    }
}

TEST_CASE("edits that cannot be made are refused") {
    const Data data(10, 3);
    const Folder folder;
    make(folder.path(), data, options(3));
    Datastore reader = Datastore::open(folder.path());
    const std::vector<float> key{1, 2, 3};
    REQUIRE(has(error_of([&] { reader.erase(1); }), "read-only"));
    REQUIRE(has(error_of([&] { reader.commit(); }), "read-only"));
    Datastore store = Datastore::open(folder.path(), {.writable = true});
    REQUIRE(has(error_of([&] { store.erase(10); }), "[0, 10), got 10"));
    REQUIRE(has(error_of([&] { store.replace(-1, key, 1); }), "got -1"));
    REQUIRE(has(error_of([&] { store.replace(1, key, 50); }), "got 50"));
    REQUIRE(has(error_of([&] { store.replace(1, std::vector<float>{1, 2}, 1); }), "key_dim: expected 3, got 2"));
    REQUIRE(has(error_of([&] { store.replace(1, std::vector<float>{1, 1e9f, 2}, 1); }), "column 1"));
    REQUIRE_FALSE(exists(folder / "edits.log"));
    same(store, data, 10);
}

TEST_CASE("an unfinished edit is as if it had not been, a damaged one is an Error") {
    const Data data(10, 3);
    const Folder folder;
    make(folder.path(), data, options(3));
    const std::vector<float> key{1, 2, 3};
    {
        Datastore store = Datastore::open(folder.path(), {.writable = true});
        store.replace(1, key, 11);
        store.commit();
        store.replace(2, key, 12);
    }
    const std::string log = read_file(folder / "edits.log");
    const std::size_t record = 32 + 3 * 2;
    REQUIRE(log.size() == 16 + record + 32 + record);
    for (std::size_t size = 0; size < log.size(); ++size) {
        atomic_write(folder / "edits.log", log.substr(0, size));
        const Datastore store = Datastore::open(folder.path());
        REQUIRE(store.value(1) == (size >= 16 + record ? 11 : data.values[1]));
        REQUIRE(store.value(2) == data.values[2]);
        // The next edit takes the place of what is cut off.
        if (size % 7 == 0) {
            Datastore editor = Datastore::open(folder.path(), {.writable = true});
            editor.replace(5, key, 15);
            editor.erase(6);
        }
        if (size % 7 == 0) {
            const Datastore again = Datastore::open(folder.path());
            REQUIRE(again.value(1) == (size >= 16 + record ? 11 : data.values[1]));
            REQUIRE(again.value(5) == 15);
            REQUIRE(again.erased().contains(6));
        }
    }
    for (std::size_t at = 0; at < log.size(); ++at) {
        std::string changed = log;
        changed[at] = static_cast<char>(changed[at] ^ 16);
        atomic_write(folder / "edits.log", changed);
        const std::string message = error_of([&] {
            const Datastore store = Datastore::open(folder.path());
            REQUIRE(store.value(1) == 11);
            REQUIRE(store.value(2) == data.values[2]);
        });
        INFO("byte " << at << ": " << message);
        // Before the commit record every change is noticed; behind it an edit is lost that was never promised to last.
        REQUIRE(message.empty() == (at >= 16 + record));
        if (!message.empty()) REQUIRE(has(message, "edits.log: "));
    }
    // The log of another store.
    const Folder other;
    make(other.path(), data, options(3));
    atomic_write(other / "edits.log", log);
    REQUIRE(
        has(error_of([&] { Datastore::open(other.path()); }), "edits.log: these edits belong to another datastore"));
}

TEST_CASE("a store of another host is refused with the field that differs") {
    const Data data(5, 3);
    const Folder folder;
    make(folder.path(), data, options(3));
    Fingerprint host = options(3).host;
    REQUIRE(Datastore::open(folder.path(), host).fingerprint() == host);
    REQUIRE(Datastore::open(folder.path(), Fingerprint{.model = "toy"}).size() == 5);
    const auto error = [&](Fingerprint expected) {
        const std::string message = error_of([&] { DatastoreWriter::resume(folder.path(), expected); });
        REQUIRE(error_of([&] { Datastore::open(folder.path(), expected); }) == message);
        REQUIRE(has(message, folder.path() + ": this datastore belongs to another host: "));
        return message;
    };
    REQUIRE(has(error({.model = "other"}), "model: expected \"other\", got \"toy\""));
    REQUIRE(has(error({.model_hash = "abd"}), "model_hash: expected \"abd\", got \"abc\""));
    REQUIRE(has(error({.tokenizer_hash = "t2"}), "tokenizer_hash"));
    REQUIRE(has(error({.key_tap = "prehead"}), "key_tap: expected \"prehead\", got \"ffn_in\""));
    REQUIRE(has(error({.key_dim = 4}), "key_dim: expected 4, got 3"));
    REQUIRE(has(error({.vocab_size = 51}), "vocab_size: expected 51, got 50"));
    REQUIRE(has(error({.more = {{"norm", "before"}}}), "norm: expected \"before\", got \"after\""));
    REQUIRE(has(error({.more = {{"dtype", "f16"}}}), "dtype: expected \"f16\", got none"));
}

TEST_CASE("every damage to a datastore is one clear Error") {
    const Data data(40, 3);
    const Folder source;
    make(source.path(), data, options(3));
    const auto with = [&](auto&& damage) {
        const Folder folder;
        std::filesystem::copy(source.path(), folder.path(), std::filesystem::copy_options::recursive);
        damage(folder.path());
        const std::string message = error_of([&] { Datastore::open(folder.path(), {.verify = true}); });
        // Opened to be written to, it is the same Error, unless only reading everything finds it.
        const std::string resumed = error_of([&] { DatastoreWriter::resume(folder.path()); });
        REQUIRE(!message.empty());
        REQUIRE((resumed == message || message.find("damaged") != std::string::npos ||
                 message.find("token") != std::string::npos));
        REQUIRE(message.find('\n') == std::string::npos);
        return message;
    };
    const auto json = [&](const std::string& from, const std::string& to) {
        return with([&](const std::string& f) { atomic_write(f + "/mnemo.json", manifest_with(f, from, to)); });
    };
    const auto write = [&](const std::string& name, const std::string& contents) {
        return with([&](const std::string& f) { atomic_write(f + "/" + name, contents); });
    };

    // mnemo.json
    REQUIRE(has(with([](const std::string& f) { remove_file(f + "/mnemo.json"); }), "expected a datastore"));
    REQUIRE(has(write("mnemo.json", ""), "mnemo.json: not JSON"));
    REQUIRE(has(write("mnemo.json", "[]"), "expected a JSON object"));
    REQUIRE(has(write("mnemo.json", std::string(100'000, '[')), "64 levels"));
    REQUIRE(
        has(json("mnemo datastore", "other"), "mnemo.json: format: expected \"mnemo datastore\", got \"\"other\"\""));
    REQUIRE(has(json("\"version\": 1", "\"version\": 2"),
                "version: expected 1 (the version this program reads), got \"2\""));
    REQUIRE(has(json("\"rows\": 40", "\"rows\": -1"), "rows: expected at least 0"));
    REQUIRE(has(json("\"rows\": 40", "\"rows\": 40.5"), "rows: expected an integer"));
    REQUIRE(has(json("\"rows\": 40", "\"rows\": 99999999999999999999"), "rows: expected an integer"));
    REQUIRE(has(json("\"rows\": 40", "\"rows\": 9223372036854775807"), "rows: expected at most"));
    REQUIRE(has(json("\"rows\": 40", "\"rows\": 400"), "checksums: keys: expected 25 numbers for 400 rows, got 3"));
    REQUIRE(has(json("\"rows\": 40", "\"rows\": 41"),
                "keys.npy: expected at least 374 bytes for the 41 rows of mnemo.json, got 368"));
    REQUIRE(has(json("\"rows\": 40", "\"rows\": 39"), "keys.npy: rows 32 to 38 are damaged"));
    REQUIRE(has(json("\"rows\": 40", "\"rows\": 40, \"rows\": 40"), "the name \"rows\" occurs twice"));
    REQUIRE(has(json("\"key_dim\": 3", "\"key_dim\": 4"), "keys.npy: expected float16 [n, 4], got float16 [40, 3]"));
    REQUIRE(has(json("\"key_dim\": 3", "\"key_dim\": 0"), "key_dim: expected at least 1"));
    REQUIRE(has(json("\"key_dim\": 3", "\"key_dim\": \"3\""), "key_dim: expected an integer"));
    REQUIRE(has(json("float16", "float8"), "key_dtype: expected one of float32, float16, bfloat16"));
    REQUIRE(has(json("float16", "float32"), "keys.npy: expected float32 [n, 3], got float16 [40, 3]"));
    REQUIRE(has(json("\"int32\"", "\"int64\""), "values.npy: expected int64 [n], got int32 [40]"));
    REQUIRE(has(json("\"int32\"", "\"int16\""), "value_dtype: expected one of int32, int64"));
    REQUIRE(has(json("\"l2\"", "\"l1\""), "metric: expected one of l2, inner_product, cosine"));
    REQUIRE(has(json("\"vocab_size\": 50", "\"vocab_size\": 2"), "expected a token in [0, 2)"));
    REQUIRE(has(json("\"model_hash\": \"abc\"", "\"model_hash\": 5"), "host: model_hash: expected a string"));
    REQUIRE(has(json("\"block_rows\": 16", "\"block_rows\": 0"), "block_rows: expected at least 1"));
    REQUIRE(has(json("\"block_rows\": 16", "\"block_rows\": 15"), "rows 0 to 14 are damaged"));
    REQUIRE(has(json("crc32c", "md5"), "checksums: kind: expected \"crc32c\""));
    for (const std::string field :
         {"format", "version", "id", "rows", "key_dim", "key_dtype", "value_dtype", "metric", "key_tap", "vocab_size",
          "host", "model", "model_hash", "tokenizer_hash", "checksums", "kind", "block_rows", "keys", "values"})
        REQUIRE(has(json("\"" + field + "\":", "\"x_" + field + "\":"), "the field \"" + field + "\" is missing"));

    // The arrays
    for (const std::string name : {"keys.npy", "values.npy"}) {
        const std::string contents = read_file(source / name);
        REQUIRE(has(with([&](const std::string& f) { remove_file(f + "/" + name); }), name + ": cannot open"));
        REQUIRE(has(write(name, ""), name + ": expected an npy file"));
        REQUIRE(has(write(name, contents.substr(0, 100)), name + ": header: expected 118 bytes"));
        REQUIRE(has(write(name, contents.substr(0, contents.size() - 1)), name + ": expected at least"));
        REQUIRE(has(write(name, "raw" + contents), name + ": expected an npy file"));
        for (std::uint64_t at = 128; at < contents.size(); at += 13)
            REQUIRE(has(with([&](const std::string& f) { flip(f + "/" + name, at); }), name + ": rows "));
    }
    std::string wide = npy_header(ElementType::float16, std::vector<index_t>{40, 3}, 192);
    REQUIRE(has(write("keys.npy", wide + std::string(400, '\0')), "keys.npy: expected a header of 128 bytes, got 192"));
    REQUIRE(has(with([&](const std::string& f) {
                    write_npy<float>(f + "/keys.npy", {40, 3}, std::vector<float>(120));
                }),
                "expected float16 [n, 3], got float32 [40, 3]"));
    REQUIRE(has(with([&](const std::string& f) {
                    write_npy<std::int32_t>(f + "/values.npy", {40, 1}, std::vector<std::int32_t>(40));
                }),
                "expected int32 [n], got int32 [40, 1]"));
    // More rows in the files than committed are no damage, and neither is a header that counts otherwise.
    {
        const Folder folder;
        std::filesystem::copy(source.path(), folder.path(), std::filesystem::copy_options::recursive);
        File keys(folder / "keys.npy", O_RDWR);
        keys.write_at(368, bytes_of(std::string_view("uncommitted")));
        keys.write_at(0, bytes_of(npy_header(ElementType::float16, std::vector<index_t>{3, 3}, 128)));
        same(Datastore::open(folder.path(), {.verify = true}), data, 40);
    }
    REQUIRE(has(error_of([&] { Datastore::open(source / "keys.npy"); }), "expected a datastore"));
}

TEST_CASE("every changed byte of mnemo.json opens the same rows or is an Error") {
    const Data data(40, 3);
    const Folder folder;
    make(folder.path(), data, options(3));
    const std::string json = read_file(folder / "mnemo.json");
    for (std::size_t n = 0; n < json.size(); ++n)
        for (const int change : {1, 2, 16, 128}) {
            std::string changed = json;
            changed[n] = static_cast<char>(changed[n] ^ change);
            try {
                const Manifest m = Manifest::parse(changed, "changed");
                REQUIRE(m.key_checksums.size() == static_cast<std::size_t>((m.rows + m.block_rows - 1) / m.block_rows));
                REQUIRE(m.host.key_dim > 0);
            } catch (const Error&) {
            }
        }
    for (std::size_t n = 0; n + 2 < json.size(); ++n)
        REQUIRE_THROWS_AS(Manifest::parse(json.substr(0, n), "cut"), Error);
}

TEST_CASE("a full disk is one Error, and the committed rows stay") {
    const Data data(60'000, 16);
    const Folder folder;
    {
        auto writer = DatastoreWriter::create(folder.path(), options(16));
        writer.append(data.rows(0, 1000), data.tokens(0, 1000));
        writer.commit();
        // The file cannot grow beyond this limit, as if the disk were full.
        struct rlimit before {};
        ::getrlimit(RLIMIT_FSIZE, &before);
        const struct rlimit limit {
            1'000'000, before.rlim_max
        };
        const auto handler = std::signal(SIGXFSZ, SIG_IGN);
        ::setrlimit(RLIMIT_FSIZE, &limit);
        const std::string message = error_of([&] { writer.append(data.keys, data.values); });
        const std::string again = error_of([&] { writer.append(data.rows(0, 1), data.tokens(0, 1)); });
        const std::string committed = error_of([&] { writer.commit(); });
        ::setrlimit(RLIMIT_FSIZE, &before);
        std::signal(SIGXFSZ, handler);
        REQUIRE(has(message, "keys.npy: cannot write: File too large"));
        REQUIRE(has(again, "an earlier write failed: resume the datastore to continue after its 1000 committed rows"));
        REQUIRE(has(committed, "an earlier write failed"));
    }
    same(Datastore::open(folder.path(), {.verify = true}), data, 1000);
    auto writer = DatastoreWriter::resume(folder.path());
    writer.append(data.rows(1000, 59'000), data.tokens(1000, 59'000));
    writer.close();
    REQUIRE(Datastore::open(folder.path(), {.verify = true}).size() == 60'000);
}

TEST_CASE("a full disk leaves edits and their log whole") {
    const Data data(10, 300);
    const Folder folder;
    make(folder.path(), data, options(300));
    Datastore store = Datastore::open(folder.path(), {.writable = true});
    store.replace(1, data.keys[0], 7);
    struct rlimit before {};
    ::getrlimit(RLIMIT_FSIZE, &before);
    const struct rlimit limit {
        1000, before.rlim_max
    };
    const auto handler = std::signal(SIGXFSZ, SIG_IGN);
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const std::string message = error_of([&] { store.replace(2, data.keys[0], 8); });
    ::setrlimit(RLIMIT_FSIZE, &before);
    std::signal(SIGXFSZ, handler);
    REQUIRE(has(message, "edits.log: cannot write"));
    REQUIRE(store.value(2) == data.values[2]);
    REQUIRE(Datastore::open(folder.path()).value(1) == 7);
    REQUIRE(Datastore::open(folder.path()).value(2) == data.values[2]);
    store.erase(3);
    REQUIRE(Datastore::open(folder.path()).erased().contains(3));
}
