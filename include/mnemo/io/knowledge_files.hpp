// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/npy.hpp>
#include <mnemo/text/document_rows.hpp>

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace mnemo {

// The files of an encoded knowledge base, row i of each being entry i:
//     keys.npy                  float16 [n, key_dim]
//     values.npy                float16 [n, value_dim]
//     tokenized_documents.npy   any integers [n, length], 0 behind the last token of each

namespace detail {
// An array of T, byte for byte as NumPy saves it: the number of rows is known, so its place needs no padding.
template <class T> void write_rows(const std::string& path, std::span<const index_t> shape, auto&& row_of) {
    constexpr std::size_t flush_at = std::size_t{1} << 19;
    AtomicFile file(path);
    file.write(bytes_of(npy_header(element_type_of<T>, shape)));
    std::vector<T> buffer;
    for (index_t i = 0; i < shape[0]; ++i) {
        const auto row = row_of(i);
        buffer.insert(buffer.end(), row.begin(), row.end());
        if (buffer.size() < flush_at && i + 1 < shape[0]) continue;
        file.write(std::as_bytes(std::span<const T>(buffer)));
        buffer.clear();
    }
    file.commit();
}
} // namespace detail

/// keys.npy and values.npy, mapped: nothing is read before it is used.
class KnowledgeFiles {
  public:
    /// With `check_finite` both are read once, and a number that is not finite is an error that names its row. Throws
    /// Error for other types, shapes and layouts. A store (store/knowledge.hpp) uses the rows where they are and keeps
    /// the files open: `store.append(files->keys(), files->values(), files)`.
    static std::shared_ptr<const KnowledgeFiles> open(const std::string& keys, const std::string& values,
                                                      bool check_finite = false) {
        const std::shared_ptr<const KnowledgeFiles> files(new KnowledgeFiles(Npy::open(keys), Npy::open(values)));
        expect_equal(text(values, ": rows as in ", keys), files->values().rows, files->keys().rows);
        if (check_finite) {
            expect_finite(files->keys(), keys);
            expect_finite(files->values(), values);
        }
        return files;
    }
    MatrixView<const half> keys() const { return keys_.matrix<half>(); }
    MatrixView<const half> values() const { return values_.matrix<half>(); }

  private:
    KnowledgeFiles(Npy keys, Npy values) : keys_(std::move(keys)), values_(std::move(values)) {}
    static void expect_finite(MatrixView<const half> rows, const std::string& path) {
        for (index_t i = 0; i < rows.rows; ++i)
            for (const half x : rows[i])
                if ((x.bits & 0x7c00u) == 0x7c00u) fail(path, ": row ", i, ": expected finite numbers");
    }
    Npy keys_, values_;
};

/// Documents from a file of any integer type. Throws Error for ids outside [0, 65535] and for a token behind padding.
inline DocumentRows read_documents(const std::string& path) {
    const Npy file = Npy::open(path);
    if (file.shape().size() != 2)
        fail(path, ": expected integers [n, length], got ", name(file.type()), " ", shape_text(file.shape()));
    DocumentRows out;
    out.length = file.shape()[1];
    out.tokens = file.values<std::uint16_t>();
    for (index_t i = 0; i < out.rows(); ++i) {
        const auto row = out.view()[i];
        const auto end = std::find(row.begin(), row.end(), std::uint16_t{0});
        if (std::any_of(end, row.end(), [](std::uint16_t id) { return id != 0; }))
            fail(path, ": row ", i, ": expected zeros behind the first zero");
    }
    return out;
}
/// Written as int64, as NumPy does with lists of ids.
inline void write_documents(const std::string& path, const DocumentRows& documents) {
    const index_t shape[] = {documents.rows(), documents.length};
    detail::write_rows<std::int64_t>(path, shape, [&](index_t i) { return documents.view()[i]; });
}

/// Writes the entries that a snapshot (store/knowledge.hpp) can find, in the order of their ids, and their documents
/// where it keeps them. Each file appears complete under its name. Returns the number of entries.
inline index_t write_knowledge(const std::string& folder, const auto& snapshot) {
    std::vector<std::pair<index_t, index_t>> order; // (id, row)
    for (index_t row = 0; row < snapshot.size(); ++row)
        if (!snapshot.is_erased(row)) order.emplace_back(snapshot.id(row), row);
    std::sort(order.begin(), order.end());
    const auto write = [&]<class T>(T, const char* name, index_t width, auto&& row_of) {
        const index_t shape[] = {static_cast<index_t>(order.size()), width};
        detail::write_rows<T>(folder + "/" + name, shape,
                              [&](index_t i) { return row_of(order[static_cast<std::size_t>(i)].second); });
    };
    write(half{}, "keys.npy", snapshot.key_dim(), [&](index_t row) { return snapshot.key(row); });
    write(half{}, "values.npy", snapshot.value_dim(), [&](index_t row) { return snapshot.value(row); });
    const auto length = order.empty() ? std::size_t{0} : snapshot.document(order.front().second).size();
    if (length > 0)
        write(std::int64_t{}, "tokenized_documents.npy", static_cast<index_t>(length),
              [&](index_t row) { return snapshot.document(row); });
    return static_cast<index_t>(order.size());
}

} // namespace mnemo
