// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/json.hpp>
#include <mnemo/text/shards.hpp>

#include <charconv>
#include <string>
#include <utility>
#include <vector>

namespace mnemo {

// The files by which training data is ordered: segments as text, what a search found for each, the order itself.

/// One segment of training text.
struct SegmentText {
    index_t id = 0;
    std::string contents; // words joined by blanks
    bool operator==(const SegmentText&) const = default;
};

namespace detail {
/// Ids are numbers; the reference's script for language models writes them as strings.
inline index_t segment_id(const nlohmann::json& value, const std::string& where) {
    if (value.is_number_integer()) {
        const bool fits = !value.is_number_unsigned() ||
                          value.get<std::uint64_t>() <= static_cast<std::uint64_t>(std::numeric_limits<index_t>::max());
        if (fits && value.get<index_t>() >= 0) return value.get<index_t>();
    } else if (value.is_string()) {
        const auto& digits = value.get_ref<const std::string&>();
        index_t id = -1;
        const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), id);
        if (error == std::errc() && end == digits.data() + digits.size() && id >= 0) return id;
    }
    fail(where, ": expected an id of at least 0, got ", in_quotes(value.dump()));
}
/// f(entry, where) for each object of the array in `path`.
inline void each_entry(const std::string& path, auto&& f) {
    const nlohmann::json file = parse_json(read_file(path), path);
    if (!file.is_array()) fail(path, ": expected a JSON array");
    for (std::size_t i = 0; i < file.size(); ++i) f(file[i], text(path, ": entry ", i));
}
} // namespace detail

/// [{"id": 0, "contents": "..."}, ...] (`--output-segments-to-file`), in the file's order.
inline std::vector<SegmentText> read_segments(const std::string& path) {
    std::vector<SegmentText> out;
    detail::each_entry(path, [&](const nlohmann::json& entry, const std::string& where) {
        const JsonObject object(entry, where);
        if (!object.has("id")) fail(where, ": id: expected an id, got nothing");
        out.push_back({detail::segment_id(entry["id"], where + ": id"), object.string("contents")});
    });
    return out;
}
inline void write_segments(const std::string& path, const std::vector<SegmentText>& segments) {
    nlohmann::ordered_json file = nlohmann::ordered_json::array();
    for (const SegmentText& s : segments) file.push_back({{"id", s.id}, {"contents", s.contents}});
    atomic_write(path, file.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

/// [{"id": 0, "retrieval": [ids, best first]}, ...] (`shard%d.json`): what was found for segments 0 .. n - 1, of one or
/// several files, whose entries may come in any order. Throws Error unless every segment comes once. `text_ids` says
/// whether ids were strings: what the reference's own script then makes of them is chain_neighbours(..., false).
inline std::vector<std::vector<index_t>> read_neighbours(const std::vector<std::string>& paths,
                                                         bool* text_ids = nullptr) {
    std::vector<std::pair<index_t, std::vector<index_t>>> found;
    if (text_ids != nullptr) *text_ids = false;
    for (const std::string& path : paths)
        detail::each_entry(path, [&](const nlohmann::json& entry, const std::string& where) {
            const JsonObject object(entry, where);
            if (!object.has("id") || !object.has("retrieval") || !entry["retrieval"].is_array())
                fail(where, ": expected an id and a list named retrieval, got ", in_quotes(entry.dump()));
            auto& [id, list] =
                found.emplace_back(detail::segment_id(entry["id"], where + ": id"), std::vector<index_t>{});
            for (const auto& other : entry["retrieval"]) {
                list.push_back(detail::segment_id(other, where + ": retrieval"));
                if (text_ids != nullptr && other.is_string()) *text_ids = true;
            }
        });
    std::vector<std::vector<index_t>> out(found.size());
    std::vector<bool> seen(found.size());
    for (auto& [id, list] : found) {
        const auto i = static_cast<std::size_t>(id);
        if (i >= out.size() || seen[i])
            fail(paths.front(), ": expected each of ", out.size(), " segments once, got ", id,
                 i < out.size() ? " twice" : "");
        seen[i] = true;
        for (const index_t other : list)
            if (other >= static_cast<index_t>(out.size()))
                fail(paths.front(), ": retrieval of ", id, ": expected ids below ", out.size(), ", got ", other);
        out[i] = std::move(list);
    }
    return out;
}
inline void write_neighbours(const std::string& path, const std::vector<std::vector<index_t>>& neighbours) {
    nlohmann::ordered_json file = nlohmann::ordered_json::array();
    for (std::size_t i = 0; i < neighbours.size(); ++i) file.push_back({{"id", i}, {"retrieval", neighbours[i]}});
    atomic_write(path, file.dump() + "\n");
}

/// [ids of all segments in the order to use] (`--predefined-batches`). Throws Error unless each of `segments` comes
/// once: a file of another length is not passed over.
inline std::vector<index_t> read_order(const std::string& path, index_t segments) {
    std::vector<index_t> order;
    detail::each_entry(path, [&](const nlohmann::json& id, const std::string& where) {
        order.push_back(detail::segment_id(id, where));
    });
    try {
        check_order(order, segments);
    } catch (const Error& e) {
        fail(path, ": ", e.what());
    }
    return order;
}
inline void write_order(const std::string& path, const std::vector<index_t>& order) {
    atomic_write(path, nlohmann::json(order).dump() + "\n");
}

} // namespace mnemo
