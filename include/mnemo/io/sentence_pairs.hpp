// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/file.hpp>
#include <mnemo/io/json.hpp>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mnemo {

/// A source sentence and what it shall become.
struct SentencePair {
    std::string source, target;
    friend bool operator==(const SentencePair&, const SentencePair&) = default;
};

/// JSON lines, {"en": "...", "du": "..."}: one object a line, UTF-8, the fields named by `source_key` and `target_key`;
/// other fields are ignored, an empty line at the end is, too. Anything else is an Error that names the line.
inline std::vector<SentencePair> read_sentence_pairs(const std::string& path, std::string_view source_key,
                                                     std::string_view target_key) {
    std::vector<SentencePair> pairs;
    const std::string contents = read_file(path);
    index_t number = 0;
    for (std::string_view rest = contents; !rest.empty();) {
        const std::size_t end = std::min(rest.find('\n'), rest.size());
        std::string_view line = rest.substr(0, end);
        rest.remove_prefix(std::min(end + 1, rest.size()));
        ++number;
        if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
        const std::string where = text(path, ", line ", number);
        if (line.empty() && rest.empty()) break;
        const auto object = parse_json(line, where);
        const auto field = [&](std::string_view key) {
            const auto found = object.is_object() ? object.find(std::string(key)) : object.end();
            if (!object.is_object() || found == object.end() || !found->is_string())
                fail(where, ": expected an object with the text ", in_quotes(key));
            return found->template get<std::string>();
        };
        pairs.push_back({field(source_key), field(target_key)});
    }
    return pairs;
}

/// Writes such a file, atomically. Slashes are escaped as the reference's writer escapes them; control characters are,
/// too, so that every JSON reader takes the file.
inline void write_sentence_pairs(const std::string& path, std::span<const SentencePair> pairs,
                                 std::string_view source_key, std::string_view target_key) {
    std::string out;
    const auto add = [&](std::string_view s) {
        try {
            const std::string quoted = nlohmann::json(s).dump();
            for (const char c : quoted) out += c == '/' ? std::string("\\/") : std::string(1, c);
        } catch (const nlohmann::json::exception&) {
            fail(path, ": texts must be UTF-8");
        }
    };
    for (const SentencePair& pair : pairs) {
        out += '{';
        add(source_key), out += ':', add(pair.source), out += ',', add(target_key), out += ':', add(pair.target);
        out += "}\n";
    }
    atomic_write(path, out);
}

} // namespace mnemo
