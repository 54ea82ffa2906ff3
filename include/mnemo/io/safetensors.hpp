// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/elements.hpp>
#include <mnemo/io/file.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace mnemo {

/// One tensor of a file. `bytes` need not be aligned: copy, never cast (SafeTensors::values does).
struct Entry {
    std::string name;
    std::string dtype;                // "F32", "I64", ...
    std::vector<index_t> shape;       // [] is a scalar
    std::span<const std::byte> bytes; // C order, little-endian

    /// Number of elements.
    index_t size() const {
        index_t n = 1;
        for (const index_t s : shape) n *= s;
        return n;
    }
};

struct SafeTensorsOptions {
    bool allow_trailing_bytes = false; // some writers pad the file; the reference refuses it
};

/// What the header says, checked.
struct SafeTensorsIndex {
    std::map<std::string, std::string> metadata;
    std::vector<Entry> entries; // in the order of the data
};

namespace detail {

struct SafeTensorsType {
    std::string_view name;
    unsigned bits = 0; // of an element; 0: unknown type
    ElementType type = ElementType::other;
};
inline constexpr SafeTensorsType safetensors_types[] = {{"F32", 32, ElementType::float32},
                                                        {"F16", 16, ElementType::float16},
                                                        {"BF16", 16, ElementType::bfloat16},
                                                        {"F64", 64, ElementType::float64},
                                                        {"I64", 64, ElementType::int64},
                                                        {"I32", 32, ElementType::int32},
                                                        {"I16", 16, ElementType::int16},
                                                        {"I8", 8, ElementType::int8},
                                                        {"U64", 64, ElementType::uint64},
                                                        {"U32", 32, ElementType::uint32},
                                                        {"U16", 16, ElementType::uint16},
                                                        {"U8", 8, ElementType::uint8},
                                                        {"BOOL", 8, ElementType::boolean},
                                                        {"C64", 64},
                                                        {"F8_E5M2", 8},
                                                        {"F8_E4M3", 8},
                                                        {"F8_E8M0", 8},
                                                        {"F8_E4M3FNUZ", 8},
                                                        {"F8_E5M2FNUZ", 8},
                                                        {"F6_E2M3", 6},
                                                        {"F6_E3M2", 6},
                                                        {"F4", 4}};
inline SafeTensorsType safetensors_type(std::string_view dtype) {
    for (const SafeTensorsType& t : safetensors_types)
        if (t.name == dtype) return t;
    return {};
}

/// Events of the header's JSON. A document tree would keep the last of two equal names silently.
class SafeTensorsHeader {
  public:
    struct Raw {
        std::string name;
        std::optional<std::string> dtype;
        std::optional<std::vector<std::uint64_t>> shape, offsets;
    };
    std::vector<Raw> tensors;
    std::map<std::string, std::string> metadata;

    explicit SafeTensorsHeader(std::string_view where) : where_(where) {}

    bool null() { return unexpected("null"); }
    bool boolean(bool) { return unexpected("a boolean"); }
    bool number_integer(std::int64_t n) { return unexpected(text(n)); }
    bool number_float(double, const std::string& s) { return unexpected(s); }
    bool binary(std::vector<std::uint8_t>&) { return unexpected("binary data"); }
    bool number_unsigned(std::uint64_t n) {
        if (numbers_ == nullptr) return unexpected(text(n));
        numbers_->push_back(n);
        return true;
    }
    bool string(std::string& s) {
        if (level_ != Level::entry || numbers_ != nullptr) return unexpected(in_quotes(s));
        if (in_metadata_)
            metadata[field_] = s;
        else if (field_ == "dtype")
            tensors.back().dtype = s;
        else
            return unexpected(in_quotes(s));
        return true;
    }
    bool start_object(std::size_t) {
        if (level_ == Level::outside)
            level_ = Level::root;
        else if (level_ == Level::root)
            level_ = Level::entry;
        else
            return unexpected("an object");
        return true;
    }
    bool end_object() {
        if (level_ == Level::entry && !in_metadata_)
            for (const auto& [field, missing] : {std::pair{"dtype", !tensors.back().dtype},
                                                 {"shape", !tensors.back().shape},
                                                 {"data_offsets", !tensors.back().offsets}})
                if (missing) fail(where_, ": tensor ", in_quotes(tensors.back().name), ": ", field, " is missing");
        level_ = level_ == Level::entry ? Level::root : Level::outside;
        return true;
    }
    bool key(std::string& s) {
        if (level_ == Level::root) {
            if (!names_.insert(s).second) fail(where_, ": the name ", in_quotes(s), " occurs twice");
            in_metadata_ = s == "__metadata__";
            if (!in_metadata_) tensors.push_back({s, {}, {}, {}});
        } else if (in_metadata_) {
            if (metadata.contains(s)) fail(where_, ": __metadata__: the name ", in_quotes(s), " occurs twice");
        } else {
            const Raw& t = tensors.back();
            if (s == "dtype"   ? t.dtype.has_value()
                : s == "shape" ? t.shape.has_value()
                               : t.offsets && s == "data_offsets")
                fail(where_, ": tensor ", in_quotes(t.name), ": ", s, " occurs twice");
            if (s != "dtype" && s != "shape" && s != "data_offsets")
                fail(where_, ": tensor ", in_quotes(t.name), ": unknown field ", in_quotes(s));
        }
        field_ = s;
        return true;
    }
    bool start_array(std::size_t) {
        if (level_ == Level::entry && !in_metadata_ && numbers_ == nullptr && field_ == "shape")
            numbers_ = &tensors.back().shape.emplace();
        else if (level_ == Level::entry && !in_metadata_ && numbers_ == nullptr && field_ == "data_offsets")
            numbers_ = &tensors.back().offsets.emplace();
        else
            return unexpected("an array");
        return true;
    }
    bool end_array() {
        numbers_ = nullptr;
        return true;
    }
    bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception& e) {
        fail(where_, ": the header is not JSON, at its byte ", position, ": ", e.what());
    }

  private:
    enum class Level { outside, root, entry };

    // Refusing everything out of place also bounds the depth.
    [[noreturn]] bool unexpected(std::string_view got) {
        if (level_ == Level::outside) fail(where_, ": header: expected a JSON object, got ", got);
        if (in_metadata_) fail(where_, ": __metadata__: expected only strings, got ", got);
        const std::string tensor =
            text(where_, ": tensor ", in_quotes(tensors.empty() ? "" : tensors.back().name), ": ");
        if (level_ == Level::root) fail(tensor, "expected an object, got ", got);
        fail(tensor, field_, ": expected ", field_ == "dtype" ? "a string" : "a list of non-negative integers",
             ", got ", got);
    }

    std::string where_, field_;
    Level level_ = Level::outside;
    bool in_metadata_ = false;
    std::vector<std::uint64_t>* numbers_ = nullptr;
    std::set<std::string> names_;
};

/// The size in bytes that shape and type ask for.
inline std::uint64_t safetensors_size(const std::string& where, const std::string& dtype,
                                      std::span<const std::uint64_t> shape) {
    const unsigned bits = safetensors_type(dtype).bits;
    if (bits == 0) fail(where, "dtype: unknown type ", in_quotes(dtype));
    // Zero-size tensors may have any other extents, as long as those fit an index.
    std::uint64_t count = 1, total = 0;
    for (const std::uint64_t s : shape)
        if (s > INT64_MAX || __builtin_mul_overflow(count, s, &count))
            fail(where, "shape: the number of elements overflows 64 bits");
    if (__builtin_mul_overflow(count, std::uint64_t{bits}, &total)) fail(where, "shape: the size overflows 64 bits");
    if (total % 8 != 0) fail(where, "shape: ", count, " elements of ", bits, " bits do not fill bytes");
    return total / 8;
}

} // namespace detail

/// Reads the header of a safetensors file that lies in memory, and checks everything that the format promises: sizes
/// before they are used, JSON without duplicate names, shapes that match their bytes, and tensors that tile the data
/// without overlap, hole or rest. The entries point into `file`. `where` names the file in errors.
inline SafeTensorsIndex parse_safetensors(std::span<const std::byte> file, const std::string& where,
                                          SafeTensorsOptions options = {}) {
    constexpr std::uint64_t limit = 100'000'000;
    if (file.size() < 8) fail(where, ": expected at least 8 bytes for the header's length, got ", file.size());
    std::uint64_t length = 0;
    std::memcpy(&length, file.data(), 8);
    if (length > limit) fail(where, ": header: expected at most ", limit, " bytes, got a length of ", length);
    if (length > file.size() - 8)
        fail(where, ": header: expected ", length, " bytes, got only ", file.size() - 8, " in the file");
    const char* text_begin = reinterpret_cast<const char*>(file.data()) + 8;
    const std::string_view header(text_begin, static_cast<std::size_t>(length));
    if (header.empty()) fail(where, ": header: expected a JSON object, got nothing");
    if (header.front() != '{')
        fail(where, ": header: expected a JSON object that begins with '{', got ", in_quotes(header));
    // The JSON lexer takes a zero byte for the end.
    if (header.find('\0') != std::string_view::npos) fail(where, ": header: not JSON: it has a zero byte");

    detail::SafeTensorsHeader parsed(where);
    nlohmann::json::sax_parse(header.begin(), header.end(), &parsed); // parsed throws on every error

    const auto data = file.subspan(8 + static_cast<std::size_t>(length));
    struct Placed {
        std::uint64_t begin, end;
        detail::SafeTensorsHeader::Raw* raw;
    };
    std::vector<Placed> placed;
    placed.reserve(parsed.tensors.size());
    for (auto& t : parsed.tensors) {
        const std::string tensor = text(where, ": tensor ", in_quotes(t.name), ": ");
        const std::uint64_t size = detail::safetensors_size(tensor, *t.dtype, *t.shape);
        if (t.offsets->size() != 2) fail(tensor, "data_offsets: expected 2 numbers, got ", t.offsets->size());
        const std::uint64_t begin = (*t.offsets)[0], end = (*t.offsets)[1];
        if (begin > end) fail(tensor, "data_offsets: the end ", end, " lies before the begin ", begin);
        if (end > data.size())
            fail(tensor, "data_offsets: the data ends at ", end, ", but the file has only ", data.size(),
                 " bytes of data");
        if (end - begin != size)
            fail(tensor, "data_offsets: expected ", size, " bytes for ", *t.dtype, " of that shape, got ", end - begin);
        placed.push_back({begin, end, &t});
    }
    std::sort(placed.begin(), placed.end(), [](const Placed& a, const Placed& b) {
        return std::tie(a.begin, a.end, a.raw->name) < std::tie(b.begin, b.end, b.raw->name);
    });

    SafeTensorsIndex index;
    index.metadata = std::move(parsed.metadata);
    index.entries.reserve(placed.size());
    std::uint64_t position = 0;
    for (const Placed& p : placed) {
        if (p.begin != position)
            fail(where, ": tensor ", in_quotes(p.raw->name), ": data_offsets: expected the data to begin at ", position,
                 ", where the tensor before ends, got ", p.begin, p.begin < position ? " (overlap)" : " (hole)");
        position = p.end;
        index.entries.push_back(
            {std::move(p.raw->name), std::move(*p.raw->dtype),
             std::vector<index_t>(p.raw->shape->begin(), p.raw->shape->end()),
             data.subspan(static_cast<std::size_t>(p.begin), static_cast<std::size_t>(p.end - p.begin))});
    }
    if (position != data.size() && !options.allow_trailing_bytes)
        fail(where, ": expected the file to end with its last tensor, got ", data.size() - position, " bytes more");
    return index;
}

/// A safetensors file, mapped. Entries stay valid as long as the object, also when it is moved.
class SafeTensors {
  public:
    /// Maps and checks the file; every defect is an Error that names the file and the cause.
    static SafeTensors open(const std::string& path, SafeTensorsOptions options = {}) {
        SafeTensors file;
        file.map_ = MappedFile::open(path);
        file.index_ = parse_safetensors(file.map_.bytes(), path, options);
        for (std::size_t i = 0; i < file.index_.entries.size(); ++i)
            file.by_name_.emplace(file.index_.entries[i].name, i);
        return file;
    }

    const std::string& path() const { return map_.path(); }
    const std::map<std::string, std::string>& metadata() const { return index_.metadata; }
    /// All tensors in the order of their data.
    const std::vector<Entry>& entries() const { return index_.entries; }
    /// The tensor of that name, or nullptr.
    const Entry* find(std::string_view name) const {
        const auto found = by_name_.find(name);
        return found == by_name_.end() ? nullptr : &index_.entries[found->second];
    }
    /// The tensor of that name, or an Error.
    const Entry& at(std::string_view name) const {
        const Entry* entry = find(name);
        if (entry == nullptr) fail(path(), ": expected a tensor ", in_quotes(name), ", got none of that name");
        return *entry;
    }

    /// The tensor's elements, copied and widened as copy_elements does; a dtype that T does not take is an Error.
    template <class T> std::vector<T> values(std::string_view name) const {
        const Entry& e = at(name);
        return copy_elements<T>(detail::safetensors_type(e.dtype).type, e.bytes,
                                text(path(), ": tensor ", in_quotes(name)), e.dtype);
    }

  private:
    MappedFile map_;
    SafeTensorsIndex index_;
    std::map<std::string, std::size_t, std::less<>> by_name_;
};

/// The format's name of an element type.
template <class T> constexpr std::string_view safetensors_dtype() {
    static_assert(element_type_of<T> != ElementType::other);
    for (const auto& t : detail::safetensors_types)
        if (t.type == element_type_of<T>) return t.name;
    return {};
}

/// A tensor to be written; it borrows `values` until then.
template <class T> Entry tensor_entry(std::string name, std::vector<index_t> shape, std::span<const T> values) {
    return {std::move(name), std::string(safetensors_dtype<T>()), std::move(shape), std::as_bytes(values)};
}
template <class T> Entry tensor_entry(std::string name, std::vector<index_t> shape, const std::vector<T>& values) {
    return tensor_entry(std::move(name), std::move(shape), std::span<const T>(values));
}

/// Writes a file that every safetensors reader takes, atomically. Wide types come first, and the header is padded to
/// 8 bytes, so that all data lies aligned. Equal input gives equal bytes.
inline void write_safetensors(const std::string& path, std::span<const Entry> tensors,
                              const std::map<std::string, std::string>& metadata = {}) {
    std::vector<const Entry*> order;
    for (const Entry& e : tensors) order.push_back(&e);
    std::sort(order.begin(), order.end(), [](const Entry* a, const Entry* b) {
        const unsigned bits_a = detail::safetensors_type(a->dtype).bits,
                       bits_b = detail::safetensors_type(b->dtype).bits;
        return bits_a != bits_b ? bits_a > bits_b : a->name < b->name;
    });
    nlohmann::ordered_json header = nlohmann::ordered_json::object();
    if (!metadata.empty()) header["__metadata__"] = metadata;
    std::uint64_t position = 0;
    for (const Entry* e : order) {
        const std::string what = text(path, ": tensor ", in_quotes(e->name), ": ");
        if (e->name == "__metadata__" || header.contains(e->name)) fail(what, "the name is taken");
        for (const index_t s : e->shape)
            if (s < 0) fail(what, "shape: expected non-negative numbers, got ", s);
        const std::vector<std::uint64_t> shape(e->shape.begin(), e->shape.end());
        const std::uint64_t size = detail::safetensors_size(what, e->dtype, shape);
        if (size != e->bytes.size()) fail(what, "expected ", size, " bytes, got ", e->bytes.size());
        header[e->name] = {{"dtype", e->dtype}, {"shape", shape}, {"data_offsets", {position, position + size}}};
        position += size;
    }
    std::string json;
    try {
        json = header.dump();
    } catch (const nlohmann::json::exception&) {
        fail(path, ": names and metadata must be UTF-8");
    }
    json.append((8 - json.size() % 8) % 8, ' ');
    const std::uint64_t length = json.size();

    AtomicFile file(path);
    file.write(std::as_bytes(std::span(&length, 1)));
    file.write(bytes_of(json));
    for (const Entry* e : order) file.write(e->bytes);
    file.commit();
}

} // namespace mnemo
