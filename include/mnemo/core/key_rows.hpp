// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/half.hpp>
#include <mnemo/core/matrix_view.hpp>

#include <string_view>

namespace mnemo {

/// Element type of stored keys, known when a file is opened.
enum class KeyType : std::uint8_t { float32, float16, bfloat16 };

constexpr std::string_view name(KeyType t) {
    return t == KeyType::float32 ? "float32" : t == KeyType::float16 ? "float16" : "bfloat16";
}
constexpr index_t size_of(KeyType t) { return t == KeyType::float32 ? 4 : 2; }

template <class T> inline constexpr KeyType key_type_of = KeyType::float32;
template <> inline constexpr KeyType key_type_of<half> = KeyType::float16;
template <> inline constexpr KeyType key_type_of<bfloat16> = KeyType::bfloat16;

/// A store's keys [rows, cols] in the type they are stored in. A MatrixView of float, half or bfloat16 converts to it,
/// so a store of one's own returns what it has; `visit` hands the typed view back, once per call and not per row.
struct KeyRows {
    const void* data = nullptr;
    index_t rows = 0, cols = 0, stride = 0; // stride in elements
    KeyType type = KeyType::float32;

    KeyRows() = default;
    KeyRows(const void* d, index_t r, index_t c, KeyType t) : data(d), rows(r), cols(c), stride(c), type(t) {}
    template <class T>
        requires(std::is_same_v<std::remove_const_t<T>, float> || std::is_same_v<std::remove_const_t<T>, half> ||
                 std::is_same_v<std::remove_const_t<T>, bfloat16>)
    KeyRows(MatrixView<T> v)
        : data(v.data), rows(v.rows), cols(v.cols), stride(v.stride), type(key_type_of<std::remove_const_t<T>>) {}
    KeyRows(const Matrix& m) : KeyRows(Rows(m)) {}

    decltype(auto) visit(auto&& f) const {
        switch (type) {
        case KeyType::float16:
            return f(as<half>());
        case KeyType::bfloat16:
            return f(as<bfloat16>());
        case KeyType::float32:
            break;
        }
        return f(as<float>());
    }
    /// Row `id` widened to float into `out` [cols].
    void read(index_t id, std::span<float> out) const {
        visit([&](auto keys) {
            const auto row = keys[id];
            for (std::size_t j = 0; j < row.size(); ++j) out[j] = to_float(row[j]);
        });
    }

  private:
    template <class T> MatrixView<const T> as() const { return {static_cast<const T*>(data), rows, cols, stride}; }
};

} // namespace mnemo
