// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/checksum.hpp>
#include <mnemo/io/file.hpp>

#include <algorithm>
#include <cstring>
#include <span>
#include <string>
#include <vector>

namespace mnemo {

/// One edit of a datastore. `key` is the new row in the store's own type, empty unless the row is replaced.
struct Edit {
    enum class Kind : std::uint32_t { replace = 1, erase = 2, commit = 3 };
    Kind kind = Kind::erase;
    index_t id = 0;
    std::int32_t value = 0;
    std::span<const std::byte> key;
};

/// edits.log: what was replaced and erased, in order. keys.npy and values.npy are never written in place, so a torn
/// write can only be the log's last record, and the checksums stay right. Layout, little-endian:
///
///     file    "mnemoLOG", u64 id of the store, records
///     record  u32 "EDIT", u32 CRC-32C of what follows, u64 number from 0, i64 id, i32 value, u32 kind, key bytes
///
/// A commit record says that everything before it had reached the disk.
namespace edit_log {

inline constexpr std::size_t kFileHeader = 16, kRecordHeader = 32;
inline constexpr std::uint32_t kMagic = 0x54494445; // "EDIT"

inline std::string file_header(std::uint64_t store_id) {
    std::string out = "mnemoLOG";
    out.append(reinterpret_cast<const char*>(&store_id), 8);
    return out;
}

inline void append_record(std::vector<std::byte>& out, std::uint64_t number, const Edit& edit) {
    const std::size_t start = out.size();
    out.resize(start + kRecordHeader + edit.key.size());
    std::byte* p = out.data() + start;
    std::memcpy(p, &kMagic, 4);
    std::memcpy(p + 8, &number, 8);
    std::memcpy(p + 16, &edit.id, 8);
    std::memcpy(p + 24, &edit.value, 4);
    std::memcpy(p + 28, &edit.kind, 4);
    if (!edit.key.empty()) std::memcpy(p + kRecordHeader, edit.key.data(), edit.key.size());
    const std::uint32_t crc = crc32c({p + 8, out.data() + out.size()});
    std::memcpy(p + 4, &crc, 4);
}

/// The record at the beginning of `bytes`; false if there is no whole and right one. `size` is set to its bytes.
inline bool read_record(std::span<const std::byte> bytes, std::size_t key_bytes, Edit& edit, std::uint64_t& number,
                        std::size_t& size) {
    if (bytes.size() < kRecordHeader) return false;
    std::uint32_t magic = 0, crc = 0, kind = 0;
    std::memcpy(&magic, bytes.data(), 4);
    std::memcpy(&crc, bytes.data() + 4, 4);
    std::memcpy(&number, bytes.data() + 8, 8);
    std::memcpy(&edit.id, bytes.data() + 16, 8);
    std::memcpy(&edit.value, bytes.data() + 24, 4);
    std::memcpy(&kind, bytes.data() + 28, 4);
    if (magic != kMagic || kind < 1 || kind > 3) return false;
    edit.kind = static_cast<Edit::Kind>(kind);
    size = kRecordHeader + (edit.kind == Edit::Kind::replace ? key_bytes : 0);
    if (bytes.size() < size || crc32c(bytes.subspan(8, size - 8)) != crc) return false;
    edit.key = bytes.subspan(kRecordHeader, size - kRecordHeader);
    return true;
}

struct Position {
    std::size_t bytes = 0; // behind the last whole record; 0: not even the file's header is whole
    std::uint64_t records = 0;
};

/// Calls f(edit) for each replace and erase record behind `from` and returns the position behind the last whole one.
/// What follows it is an unfinished write and ignored, unless a commit record stands behind it: then edits that were
/// on the disk are damaged, which is an Error.
Position replay(std::span<const std::byte> log, std::uint64_t store_id, std::size_t key_bytes, const std::string& where,
                Position from, auto&& f) {
    if (log.size() < kFileHeader) return {};
    const std::string header = file_header(store_id);
    if (std::memcmp(log.data(), header.data(), 8) != 0)
        fail(where, ": expected a log of edits that begins with mnemoLOG");
    if (std::memcmp(log.data(), header.data(), kFileHeader) != 0)
        fail(where, ": these edits belong to another datastore: expected the id of mnemo.json, ", store_id);
    Position at = from.bytes < kFileHeader ? Position{kFileHeader, 0} : from;
    Edit edit;
    std::uint64_t number = 0;
    std::size_t size = 0;
    const auto next_is_whole = [&] {
        return at.bytes < log.size() && read_record(log.subspan(at.bytes), key_bytes, edit, number, size) &&
               number == at.records;
    };
    for (;;) {
        for (; next_is_whole(); at.bytes += size, ++at.records)
            if (edit.kind != Edit::Kind::commit) f(edit);
        bool committed = false;
        for (std::size_t p = at.bytes; !committed && p + kRecordHeader <= log.size(); ++p)
            // A commit record fits into its header; with a key, nothing is summed up at every place.
            committed =
                read_record(log.subspan(p, kRecordHeader), std::max<std::size_t>(key_bytes, 1), edit, number, size) &&
                edit.kind == Edit::Kind::commit && number >= at.records;
        if (!committed) return at;
        // `log` may be a map of what another process is writing: the record may have been finished meanwhile.
        if (!next_is_whole())
            fail(where, ": record ", at.records, " at byte ", at.bytes,
                 ": expected a whole record with its checksum, got damaged data before a committed record");
    }
}

} // namespace edit_log

} // namespace mnemo
