// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/checksum.hpp>
#include <mnemo/io/file.hpp>

#include <charconv>
#include <map>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace mnemo {

// A file of named arrays behind a header of text, for mapping: every array begins on a page and has a checksum.
//
//     mnemo arrays 1
//     kind packed
//     meta rows 100000
//     array words 4096 102400000 1234567890        name, offset, bytes, CRC-32C
//     end 987654321                                CRC-32C of the lines above
//
// in 4096 bytes, filled up with zeros. Numbers in arrays are little-endian.

namespace detail {
inline constexpr std::size_t kArrayPage = 4096;
inline std::uint32_t crc_of(std::string_view text) {
    Crc32c crc;
    crc.add(std::as_bytes(std::span(text)));
    return crc.value();
}
} // namespace detail

/// Writes such a file, every array from its begin to its end but all side by side. Nothing appears under the name
/// before `commit`.
class ArrayFileWriter {
  public:
    ArrayFileWriter(const std::string& path, std::string kind, std::map<std::string, std::string> meta,
                    const std::vector<std::pair<std::string, std::uint64_t>>& arrays)
        : file_(path), kind_(std::move(kind)), meta_(std::move(meta)) {
        std::uint64_t offset = detail::kArrayPage;
        for (const auto& [name, bytes] : arrays) {
            arrays_.push_back({name, offset, bytes, 0, {}});
            offset += (bytes + detail::kArrayPage - 1) / detail::kArrayPage * detail::kArrayPage;
        }
        end_ = offset;
    }
    /// The next values of array `index`.
    template <class T> void append(std::size_t index, std::span<const T> values) {
        Array& a = arrays_.at(index);
        const auto bytes = std::as_bytes(values);
        if (bytes.size() > a.bytes - a.written)
            fail(file_.path(), ": ", a.name, ": expected ", a.bytes, " bytes, got more");
        file_.write_at(a.offset + a.written, bytes);
        a.crc.add(bytes);
        a.written += bytes.size();
    }
    void commit() {
        std::ostringstream header;
        header << "mnemo arrays 1\nkind " << kind_ << '\n';
        for (const auto& [name, value] : meta_) header << "meta " << name << ' ' << value << '\n';
        for (const Array& a : arrays_) {
            if (a.written != a.bytes)
                fail(file_.path(), ": ", a.name, ": expected ", a.bytes, " bytes, got ", a.written);
            header << "array " << a.name << ' ' << a.offset << ' ' << a.bytes << ' ' << a.crc.value() << '\n';
        }
        std::string text = header.str();
        text += "end " + std::to_string(detail::crc_of(text)) + '\n';
        if (text.size() > detail::kArrayPage) fail(file_.path(), ": expected a header of one page");
        text.resize(detail::kArrayPage);
        file_.write_at(0, std::as_bytes(std::span(text)));
        const std::byte zero{};
        file_.write_at(end_, {&zero, 1}); // so that the last page exists
        file_.commit();
    }

  private:
    struct Array {
        std::string name;
        std::uint64_t offset, bytes, written;
        Crc32c crc;
    };
    AtomicFile file_;
    std::string kind_;
    std::map<std::string, std::string> meta_;
    std::vector<Array> arrays_;
    std::uint64_t end_ = 0;
};

/// Such a file, mapped. The header is checked when it is opened, arrays by `verify`.
class ArrayFile {
  public:
    static ArrayFile open(const std::string& path, std::string_view kind, Access access = Access::normal) {
        ArrayFile out;
        out.map_ = MappedFile::open(path, access);
        out.parse(kind);
        return out;
    }
    const std::string& path() const { return map_.path(); }

    const std::string& meta(const std::string& name) const {
        const auto found = meta_.find(name);
        if (found == meta_.end()) fail(path(), ": ", name, ": expected this field, got none");
        return found->second;
    }
    std::int64_t number(const std::string& name, std::int64_t least, std::int64_t most) const {
        const std::string& text = meta(name);
        std::int64_t value = 0;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        if (error != std::errc() || end != text.data() + text.size() || value < least || value > most)
            fail(path(), ": ", name, ": expected ", least, " to ", most, ", got ", in_quotes(text));
        return value;
    }
    /// Array `name` of `count` values.
    template <class T> std::span<const T> array(const std::string& name, std::uint64_t count) const {
        const Array& a = at(name);
        if (a.bytes / sizeof(T) != count || a.bytes % sizeof(T) != 0)
            fail(path(), ": ", name, ": expected ", count, " values of ", sizeof(T), " bytes, got ", a.bytes, " bytes");
        return {reinterpret_cast<const T*>(map_.bytes().data() + a.offset), count};
    }
    /// Reads everything once and compares the checksums.
    void verify() const {
        for (const auto& [name, a] : arrays_) {
            Crc32c crc;
            crc.add(map_.bytes().subspan(a.offset, a.bytes));
            if (crc.value() != a.crc)
                fail(path(), ": ", name, ": damaged: expected the checksum ", a.crc, ", got ", crc.value());
        }
    }

  private:
    struct Array {
        std::uint64_t offset = 0, bytes = 0;
        std::uint32_t crc = 0;
    };
    const Array& at(const std::string& name) const {
        const auto found = arrays_.find(name);
        if (found == arrays_.end()) fail(path(), ": ", name, ": expected this array, got none");
        return found->second;
    }
    void parse(std::string_view kind) {
        const auto bytes = map_.bytes();
        if (bytes.size() < detail::kArrayPage)
            fail(path(), ": expected a file of arrays, got ", bytes.size(), " bytes");
        const std::string header(reinterpret_cast<const char*>(bytes.data()), detail::kArrayPage);
        const std::size_t end = header.find("\nend ");
        if (!header.starts_with("mnemo arrays 1\n") || end == std::string::npos)
            fail(path(), ": expected `mnemo arrays 1`, got ", in_quotes(header.substr(0, 16)));
        const std::string lines = header.substr(0, end + 1);
        std::uint32_t crc = 0;
        std::from_chars(header.data() + end + 5, header.data() + header.size(), crc);
        if (crc != detail::crc_of(lines)) fail(path(), ": the header is damaged");
        std::istringstream in(lines);
        std::string line, word, name;
        std::getline(in, line);
        while (std::getline(in, line)) {
            std::istringstream fields(line);
            fields >> word;
            if (word == "kind") {
                fields >> name;
                if (name != kind) fail(path(), ": kind: expected ", kind, ", got ", in_quotes(name));
            } else if (word == "meta") {
                fields >> name;
                std::getline(fields >> std::ws, meta_[name]);
            } else if (word == "array") {
                Array a;
                fields >> name >> a.offset >> a.bytes >> a.crc;
                if (!fields || a.offset % detail::kArrayPage != 0 || a.offset > bytes.size() ||
                    a.bytes > bytes.size() - a.offset)
                    fail(path(), ": ", in_quotes(name), ": expected an array within the file of ", bytes.size(),
                         " bytes");
                arrays_[name] = a;
            }
        }
    }

    MappedFile map_;
    std::map<std::string, std::string> meta_;
    std::map<std::string, Array> arrays_;
};

} // namespace mnemo
