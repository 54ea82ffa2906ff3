// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/key_rows.hpp>
#include <mnemo/io/elements.hpp>
#include <mnemo/io/json.hpp>
#include <mnemo/kernels/metric.hpp>

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace mnemo {

/// Which host wrote a datastore, and where in it the keys were taken. A store of another host gives nonsense without
/// any other sign, so it is refused. Empty and 0 mean "not stated".
struct Fingerprint {
    std::string model{};      // a name for people
    std::string model_hash{}; // of the weights
    std::string tokenizer_hash{};
    std::string key_tap{}; // which of the host's tensors is the key
    index_t key_dim = 0;
    index_t vocab_size = 0;
    std::map<std::string, std::string> more{}; // whatever else must agree

    friend bool operator==(const Fingerprint&, const Fingerprint&) = default;
};

/// The first field that `expected` states and `stored` has otherwise, as "field: expected x, got y"; empty if none.
inline std::string difference(const Fingerprint& stored, const Fingerprint& expected) {
    const auto told = [](std::string_view field, const auto& want, const auto& got) {
        return text(field, ": expected ", want, ", got ", got);
    };
    const auto quote = [](const std::string& s) { return s.empty() ? std::string("none") : in_quotes(s); };
    const auto strings = [&](std::string_view field, const std::string& want, const std::string& got) {
        return want.empty() || want == got ? std::string() : told(field, quote(want), quote(got));
    };
    const auto numbers = [&](std::string_view field, index_t want, index_t got) {
        return want == 0 || want == got ? std::string() : told(field, want, got);
    };
    std::vector<std::string> found = {strings("model", expected.model, stored.model),
                                      strings("model_hash", expected.model_hash, stored.model_hash),
                                      strings("tokenizer_hash", expected.tokenizer_hash, stored.tokenizer_hash),
                                      strings("key_tap", expected.key_tap, stored.key_tap),
                                      numbers("key_dim", expected.key_dim, stored.key_dim),
                                      numbers("vocab_size", expected.vocab_size, stored.vocab_size)};
    for (const auto& [field, want] : expected.more) {
        const auto got = stored.more.find(field);
        found.push_back(strings(field, want, got == stored.more.end() ? "" : got->second));
    }
    for (const std::string& d : found)
        if (!d.empty()) return d;
    return {};
}

/// Throws if `stored` was written by another host than `expected`; `where` names the store.
inline void check_fingerprint(const std::string& where, const Fingerprint& stored, const Fingerprint& expected) {
    const std::string d = difference(stored, expected);
    if (!d.empty()) fail(where, ": this datastore belongs to another host: ", d);
}

/// What mnemo.json says: the authority on a datastore folder. keys.npy and values.npy may hold more rows, which were
/// not committed.
struct Manifest {
    static constexpr index_t kVersion = 1;

    std::uint64_t id = 0; // drawn when the store is created; edits.log carries it too
    index_t rows = 0;
    KeyType key_type = KeyType::float16;
    ElementType value_type = ElementType::int32; // or int64
    Metric metric = Metric::l2;
    Fingerprint host; // key_dim and vocab_size (0: unknown) are the store's own
    index_t block_rows = 16384;
    std::vector<std::uint32_t> key_checksums, value_checksums; // CRC-32C for each block_rows rows

    index_t key_bytes() const { return host.key_dim * size_of(key_type); } // of a row
    index_t value_bytes() const { return size_of(value_type); }

    std::string to_json() const {
        nlohmann::ordered_json host_json = nlohmann::ordered_json::object();
        for (const auto& [field, value] : host.more) host_json[field] = value;
        host_json["model"] = host.model;
        host_json["model_hash"] = host.model_hash;
        host_json["tokenizer_hash"] = host.tokenizer_hash;
        const nlohmann::ordered_json json = {
            {"format", "mnemo datastore"},
            {"version", kVersion},
            {"id", id},
            {"rows", rows},
            {"key_dim", host.key_dim},
            {"key_dtype", name(key_type)},
            {"value_dtype", name(value_type)},
            {"metric", name(metric)},
            {"key_tap", host.key_tap},
            {"vocab_size", host.vocab_size},
            {"host", host_json},
            {"checksums",
             {{"kind", "crc32c"}, {"block_rows", block_rows}, {"keys", key_checksums}, {"values", value_checksums}}}};
        try {
            return json.dump(1) + "\n";
        } catch (const nlohmann::json::exception&) {
            fail("mnemo.json: host: expected UTF-8 text");
        }
    }

    static Manifest parse(std::string_view source, const std::string& where) {
        const JsonObject json = JsonObject::parse(source, where);
        json.expect_format("mnemo datastore", kVersion);
        Manifest m;
        m.id = json.unsigned_integer("id");
        m.rows = json.integer("rows", 0, index_t{1} << 36); // 2^36 rows of 2^24 floats still have a size
        m.host.key_dim = json.integer("key_dim", 1, kMaxKeyDim);
        m.key_type = json.choice("key_dtype", {KeyType::float32, KeyType::float16, KeyType::bfloat16});
        m.value_type = json.choice("value_dtype", {ElementType::int32, ElementType::int64});
        m.metric = json.choice("metric", {Metric::l2, Metric::inner_product, Metric::cosine});
        m.host.key_tap = json.string("key_tap");
        m.host.vocab_size = json.integer("vocab_size", 0, index_t{1} << 31);
        const JsonObject host = json.object("host");
        m.host.model = host.string("model");
        m.host.model_hash = host.string("model_hash");
        m.host.tokenizer_hash = host.string("tokenizer_hash");
        for (const auto& [field, value] : host.raw().items())
            if (field != "model" && field != "model_hash" && field != "tokenizer_hash")
                m.host.more[field] = host.string(field);
        const JsonObject sums = json.object("checksums");
        if (sums.string("kind") != "crc32c") sums.wrong("kind", "\"crc32c\"");
        m.block_rows = sums.integer("block_rows", 1, index_t{1} << 31);
        const auto blocks = static_cast<std::size_t>((m.rows + m.block_rows - 1) / m.block_rows);
        const auto read = [&](const char* field, std::vector<std::uint32_t>& out) {
            const auto& list = sums.list(field);
            if (list.size() != blocks)
                fail(where, ": checksums: ", field, ": expected ", blocks, " numbers for ", m.rows, " rows, got ",
                     list.size());
            for (const auto& n : list) {
                if (!n.is_number_unsigned() || n.get<std::uint64_t>() > UINT32_MAX)
                    fail(where, ": checksums: ", field, ": expected numbers of 32 bits, got ", in_quotes(n.dump()));
                out.push_back(n.get<std::uint32_t>());
            }
        };
        read("keys", m.key_checksums);
        read("values", m.value_checksums);
        return m;
    }

    // Wider than any host's state, and small enough that no product of sizes overflows.
    static constexpr index_t kMaxKeyDim = index_t{1} << 24;
};

/// Throws unless `value` is a token of a vocabulary of `vocab_size` (0: unknown; then any that is not negative).
inline void check_value(const std::string& where, index_t row, std::int64_t value, index_t vocab_size) {
    if (value < 0 || value > INT32_MAX || (vocab_size > 0 && value >= vocab_size))
        fail(where, ": row ", row, ": expected a token in [0, ", vocab_size > 0 ? vocab_size : index_t{1} << 31,
             "), got ", value);
}

} // namespace mnemo
