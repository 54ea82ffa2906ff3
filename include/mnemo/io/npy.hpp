// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/elements.hpp>
#include <mnemo/io/file.hpp>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mnemo {

/// What the header of an npy file says, checked.
struct NpyHeader {
    std::string descr; // "<f4"
    ElementType type = ElementType::other;
    index_t item_size = 0; // bytes
    bool big_endian = false;
    bool fortran_order = false;
    std::vector<index_t> shape;  // [] is a scalar
    std::uint64_t count = 0;     // elements
    std::size_t data_offset = 0; // bytes
};

struct NpyOptions {
    bool allow_trailing_bytes = false; // NumPy ignores what follows the array
};

/// Whether `file` begins as an npy file does; the memory maps of the kNN-LM reference are called .npy and do not.
inline bool is_npy(std::span<const std::byte> file) {
    return file.size() >= 6 && std::memcmp(file.data(), "\x93NUMPY", 6) == 0;
}

namespace detail {

/// The header's Python literal: a dict of exactly descr, fortran_order and shape. Read token by token, never evaluated.
class NpyLiteral {
  public:
    NpyLiteral(std::string_view source, const std::string& where) : rest_(source), where_(where) {}

    NpyHeader parse() {
        NpyHeader header;
        bool has_descr = false, has_order = false, has_shape = false;
        const auto once = [&](bool& seen, const std::string& key) {
            if (std::exchange(seen, true)) error(text("the key ", in_quotes(key), " occurs twice"));
        };
        expect('{', "a dict");
        while (!accept('}')) {
            const std::string key = string("a key in quotes");
            expect(':', "':'");
            if (key == "descr") {
                once(has_descr, key);
                if (peek() == '[') error("descr: expected one element type, got a structured type");
                if (peek() == '(') error("descr: expected one element type, got a sub-array type");
                header.descr = string("descr: an element type in quotes");
            } else if (key == "fortran_order") {
                once(has_order, key);
                header.fortran_order = boolean();
            } else if (key == "shape") {
                once(has_shape, key);
                header.shape = shape();
            } else {
                error(text("unknown key ", in_quotes(key)));
            }
            if (accept(',')) continue;
            expect('}', "',' or '}'");
            break;
        }
        peek();
        if (!rest_.empty()) error(text("expected nothing after the dict, got ", in_quotes(rest_)));
        if (!has_descr || !has_order || !has_shape)
            error(text(!has_descr ? "descr" : !has_order ? "fortran_order" : "shape", " is missing"));
        return header;
    }

  private:
    [[noreturn]] void error(std::string_view message) const { fail(where_, ": header: ", message); }
    char peek() { // the next character that is no white space, or zero at the end
        const auto first = rest_.find_first_not_of(" \t\r\n\f\v");
        rest_.remove_prefix(first == std::string_view::npos ? rest_.size() : first);
        return rest_.empty() ? '\0' : rest_.front();
    }
    bool accept(char c) {
        if (peek() != c) return false;
        rest_.remove_prefix(1);
        return true;
    }
    void expect(char c, std::string_view what) {
        if (!accept(c)) error(text("expected ", what, ", got ", in_quotes(rest_)));
    }
    std::string string(std::string_view what) {
        const char quote = peek();
        if (quote != '\'' && quote != '"') error(text("expected ", what, ", got ", in_quotes(rest_)));
        const auto end = rest_.find(quote, 1);
        if (end == std::string_view::npos) error("a string does not end");
        const std::string out(rest_.substr(1, end - 1));
        if (out.find('\\') != std::string::npos) error("expected a string without escapes");
        rest_.remove_prefix(end + 1);
        return out;
    }
    bool boolean() {
        peek();
        for (const std::string_view word : {"True", "False"})
            if (rest_.starts_with(word)) {
                rest_.remove_prefix(word.size());
                return word == "True";
            }
        error(text("fortran_order: expected True or False, got ", in_quotes(rest_)));
    }
    std::vector<index_t> shape() {
        std::vector<index_t> out;
        bool comma = true;
        expect('(', "shape: a tuple of numbers");
        while (!accept(')')) {
            if (!comma) error(text("shape: expected ',' or ')', got ", in_quotes(rest_)));
            out.push_back(number());
            comma = accept(',');
        }
        if (out.size() == 1 && !comma) error("shape: expected a tuple, got a number in brackets");
        return out;
    }
    index_t number() {
        const char first = peek();
        if (first < '0' || first > '9') error(text("shape: expected a non-negative integer, got ", in_quotes(rest_)));
        index_t n = 0;
        while (!rest_.empty() && rest_.front() >= '0' && rest_.front() <= '9') {
            if (__builtin_mul_overflow(n, index_t{10}, &n) || __builtin_add_overflow(n, rest_.front() - '0', &n))
                error("shape: a number overflows 64 bits");
            rest_.remove_prefix(1);
        }
        if (!rest_.empty() && rest_.front() == 'L') rest_.remove_prefix(1); // Python 2 wrote its long numbers so
        return n;
    }

    std::string_view rest_;
    const std::string& where_;
};

/// Fills in what `descr` says.
inline void read_npy_descr(NpyHeader& header, const std::string& where) {
    const std::string& d = header.descr;
    const auto refuse = [&](std::string_view why) { fail(where, ": header: descr: ", why, " ", in_quotes(d)); };
    const std::size_t start = !d.empty() && std::string_view("<>|=").find(d[0]) != std::string_view::npos ? 1 : 0;
    const std::string_view type = std::string_view(d).substr(start);
    header.big_endian = d.starts_with('>');
    if (type.starts_with('O')) refuse("Python objects are not read:");
    using E = ElementType;
    constexpr std::pair<std::string_view, E> table[] = {
        {"f4", E::float32}, {"f2", E::float16}, {"f8", E::float64}, {"b1", E::boolean}, {"i1", E::int8},
        {"i2", E::int16},   {"i4", E::int32},   {"i8", E::int64},   {"u1", E::uint8},   {"u2", E::uint16},
        {"u4", E::uint32},  {"u8", E::uint64},  {"V2", E::bfloat16}};
    for (const auto& [known, element] : table)
        if (type == known) header.type = element;
    if (header.type == E::other) refuse("expected one of f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 b1 and V2 (bfloat16), got");
    header.item_size = size_of(header.type);
}

} // namespace detail

/// Reads the header of an npy file (format 1.0, 2.0 or 3.0) from the file's beginning, without looking at the data.
/// Two-byte void (`V2`, what ml_dtypes and this library write) is bfloat16. `where` names the file in errors.
inline NpyHeader parse_npy_header(std::span<const std::byte> file, const std::string& where) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(file.data());
    if (!is_npy(file))
        fail(where, ": expected an npy file that begins with \\x93NUMPY, got ", file.empty() ? "an empty file" : "none",
             "; a raw memory map without header is opened by stating its shape and type");
    if (file.size() < 10) fail(where, ": header: expected at least 10 bytes, got ", file.size());
    const int version = bytes[6];
    if (version < 1 || version > 3 || bytes[7] != 0)
        fail(where, ": expected npy format 1.0, 2.0 or 3.0, got ", version, ".", int{bytes[7]});
    const std::size_t start = version == 1 ? 10 : 12;
    if (file.size() < start) fail(where, ": header: expected at least 12 bytes, got ", file.size());
    std::uint64_t length = bytes[8] | std::uint64_t{bytes[9]} << 8;
    if (version > 1) length |= std::uint64_t{bytes[10]} << 16 | std::uint64_t{bytes[11]} << 24;
    if (length > file.size() - start)
        fail(where, ": header: expected ", length, " bytes, got only ", file.size() - start, " in the file");
    const std::string_view literal(reinterpret_cast<const char*>(bytes + start), static_cast<std::size_t>(length));

    NpyHeader header = detail::NpyLiteral(literal, where).parse();
    detail::read_npy_descr(header, where);
    header.data_offset = start + static_cast<std::size_t>(length);
    index_t count = 1, size = 0;
    for (const index_t n : header.shape)
        if (__builtin_mul_overflow(count, n, &count))
            fail(where, ": header: shape: the number of elements of ", shape_text(header.shape), " overflows 64 bits");
    if (__builtin_mul_overflow(count, header.item_size, &size))
        fail(where, ": header: shape: the size of ", shape_text(header.shape), " overflows 64 bits");
    header.count = static_cast<std::uint64_t>(count);
    return header;
}

/// The same, and checks that the file holds exactly the data that the header describes.
inline NpyHeader parse_npy(std::span<const std::byte> file, const std::string& where, NpyOptions options = {}) {
    NpyHeader header = parse_npy_header(file, where);
    const std::uint64_t expected = header.count * static_cast<std::uint64_t>(header.item_size);
    const std::uint64_t got = file.size() - header.data_offset;
    if (got < expected || (got > expected && !options.allow_trailing_bytes))
        fail(where, ": expected ", expected, " bytes of data for ", header.descr, " ", shape_text(header.shape),
             ", got ", got);
    return header;
}

/// An npy file, mapped.
class Npy {
  public:
    /// Maps and checks the file; every defect is an Error that names the file and the cause.
    static Npy open(const std::string& path, NpyOptions options = {}) {
        Npy npy;
        npy.map_ = MappedFile::open(path);
        npy.header_ = parse_npy(npy.map_.bytes(), path, options);
        return npy;
    }

    const std::string& path() const { return map_.path(); }
    const NpyHeader& header() const { return header_; }
    const std::vector<index_t>& shape() const { return header_.shape; }
    ElementType type() const { return header_.type; }
    /// The data as it lies in the file.
    std::span<const std::byte> bytes() const {
        return map_.bytes().subspan(header_.data_offset, static_cast<std::size_t>(header_.count) *
                                                             static_cast<std::size_t>(header_.item_size));
    }
    const MappedFile& map() const { return map_; }

    /// The elements in C order and this machine's byte order, copied and widened as copy_elements does.
    template <class T> std::vector<T> values() const {
        if (!header_.big_endian) return in_c_order(copy_elements<T>(type(), bytes(), path(), header_.descr));
        std::vector<std::byte> swapped(bytes().begin(), bytes().end());
        const auto size = static_cast<std::ptrdiff_t>(header_.item_size);
        for (auto at = swapped.begin(); at != swapped.end(); at += size) std::reverse(at, at + size);
        return in_c_order(copy_elements<T>(type(), swapped, path(), header_.descr));
    }

    /// The mapped data itself as a matrix, without a copy: only for two dimensions, element type T, C order, this
    /// machine's byte order and aligned data; anything else is an Error (values() reads more).
    template <class T> MatrixView<const T> matrix() const {
        const auto refuse = [&](const auto&... got) {
            fail(path(), ": expected ", name(element_type_of<T>), " [n, d] in C order, got ", got...);
        };
        if (type() != element_type_of<T> || shape().size() != 2) refuse(name(type()), " ", shape_text(shape()));
        if (header_.fortran_order && shape()[0] > 1 && shape()[1] > 1) refuse("Fortran order");
        if (header_.big_endian && sizeof(T) > 1) refuse("big-endian data");
        if (header_.data_offset % alignof(T) != 0) refuse("unaligned data");
        return {reinterpret_cast<const T*>(bytes().data()), shape()[0], shape()[1]};
    }

  private:
    /// Undoes Fortran order: there the first index runs fastest.
    template <class T> std::vector<T> in_c_order(std::vector<T> values) const {
        const auto& dims = shape();
        if (!header_.fortran_order || dims.size() < 2) return values;
        std::vector<T> out(values.size());
        std::vector<index_t> at(dims.size(), 0);
        for (const T& value : values) {
            index_t to = 0;
            for (std::size_t i = 0; i < dims.size(); ++i) to = to * dims[i] + at[i];
            out[static_cast<std::size_t>(to)] = value;
            for (std::size_t i = 0; i < dims.size() && ++at[i] == dims[i]; ++i) at[i] = 0;
        }
        return out;
    }

    MappedFile map_;
    NpyHeader header_;
};

/// NumPy's name of an element type; bfloat16, which it lacks, is two bytes without meaning.
inline std::string npy_descr(ElementType type) {
    using E = ElementType;
    if (type == E::bfloat16) return "|V2";
    const char kind = type == E::boolean ? 'b' : type <= E::int64 ? 'i' : type <= E::uint64 ? 'u' : 'f';
    return text(size_of(type) == 1 ? '|' : '<', kind, size_of(type));
}

/// A complete header of format 1.0, padded with spaces to a multiple of 64. With `size`, it has at least so many bytes
/// and the first extent a place of fixed width, so that a row count can be patched later while others read.
inline std::string npy_header(ElementType type, std::span<const index_t> shape, std::size_t size = 0) {
    std::string dict = text("{'descr': '", npy_descr(type), "', 'fortran_order': False, 'shape': (");
    for (std::size_t i = 0; i < shape.size(); ++i) {
        const std::string extent = std::to_string(shape[i]);
        if (i > 0) dict += ", ";
        if (i == 0 && size > 0) dict.append(20 - extent.size(), ' ');
        dict += extent;
    }
    dict += shape.size() == 1 ? ",), }" : "), }";
    const std::size_t total = std::max(size, (10 + dict.size() + 1 + 63) / 64 * 64), length = total - 10;
    if (length > 0xffff) fail("npy: expected a shape that fits a header, got ", shape.size(), " dimensions");
    dict.append(length - dict.size() - 1, ' ');
    return std::string("\x93NUMPY\x01\x00", 8) + static_cast<char>(length & 255) + static_cast<char>(length >> 8) +
           dict + '\n';
}

/// Writes an array row by row when their number is not known yet: append ..., finish(). The file appears under its
/// name, complete, when finish() returns.
template <class T> class NpyWriter {
  public:
    static_assert(element_type_of<T> != ElementType::other);

    /// Rows have the shape `row`; [] makes an array of one dimension.
    NpyWriter(const std::string& path, std::vector<index_t> row) : file_(path), shape_(std::move(row)) {
        for (const index_t n : shape_) {
            if (n < 0) fail(path, ": shape: expected non-negative numbers, got ", n);
            if (__builtin_mul_overflow(width_, n, &width_)) fail(path, ": shape: the size of a row overflows 64 bits");
        }
        shape_.insert(shape_.begin(), 0);
        header_size_ = npy_header(element_type_of<T>, shape_, 64).size();
        file_.write(std::vector<std::byte>(header_size_));
    }

    /// Whole rows, one after another.
    void append(std::span<const T> values) {
        if (width_ == 0 ? !values.empty() : static_cast<index_t>(values.size()) % width_ != 0)
            fail(file_.path(), ": expected whole rows of ", width_, " elements, got ", values.size(), " elements");
        if (width_ > 0) rows_ += static_cast<index_t>(values.size()) / width_;
        if (values.size() >= kBuffer) {
            flush();
            file_.write(std::as_bytes(values));
            return;
        }
        buffer_.insert(buffer_.end(), values.begin(), values.end());
        if (buffer_.size() >= kBuffer) flush();
    }
    index_t rows() const { return rows_; }

    void finish() {
        flush();
        shape_[0] = rows_;
        file_.write_at(0, bytes_of(npy_header(element_type_of<T>, shape_, header_size_)));
        file_.commit();
    }

  private:
    static constexpr std::size_t kBuffer = (std::size_t{1} << 20) / sizeof(T);
    void flush() {
        file_.write(std::as_bytes(std::span<const T>(buffer_)));
        buffer_.clear();
    }

    AtomicFile file_;
    std::vector<index_t> shape_;
    index_t width_ = 1, rows_ = 0;
    std::size_t header_size_ = 0;
    std::vector<T> buffer_;
};

/// Writes `values` as an array of `shape`, atomically.
template <class T> void write_npy(const std::string& path, std::span<const index_t> shape, std::span<const T> values) {
    index_t count = 1;
    for (const index_t n : shape)
        if (n < 0 || __builtin_mul_overflow(count, n, &count)) fail(path, ": shape: not possible: ", shape_text(shape));
    if (count != static_cast<index_t>(values.size()))
        fail(path, ": expected ", count, " elements for ", shape_text(shape), ", got ", values.size());
    AtomicFile file(path);
    file.write(bytes_of(npy_header(element_type_of<T>, shape)));
    file.write(std::as_bytes(values));
    file.commit();
}
template <class T>
void write_npy(const std::string& path, const std::vector<index_t>& shape, const std::vector<T>& values) {
    write_npy(path, std::span<const index_t>(shape), std::span<const T>(values));
}

} // namespace mnemo
