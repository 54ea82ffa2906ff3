// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/core/half.hpp>
#include <mnemo/core/matrix_view.hpp>
#include <mnemo/kernels/convert.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace mnemo {

/// Element types that files hold and the library computes with; everything else is `other`.
enum class ElementType : std::uint8_t {
    other,
    boolean,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
    uint64,
    float16,
    bfloat16,
    float32,
    float64
};

constexpr std::string_view name(ElementType t) {
    constexpr std::string_view names[] = {"other",  "bool",   "int8",   "int16",   "int32",    "int64",   "uint8",
                                          "uint16", "uint32", "uint64", "float16", "bfloat16", "float32", "float64"};
    return names[static_cast<std::size_t>(t)];
}
/// Bytes of an element; 0 for other.
constexpr index_t size_of(ElementType t) {
    constexpr index_t sizes[] = {0, 1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 2, 4, 8};
    return sizes[static_cast<std::size_t>(t)];
}

namespace detail {
template <class T> constexpr ElementType element_type() {
    if constexpr (std::is_same_v<T, half>) return ElementType::float16;
    if constexpr (std::is_same_v<T, bfloat16>) return ElementType::bfloat16;
    if constexpr (std::is_same_v<T, float>) return ElementType::float32;
    if constexpr (std::is_same_v<T, double>) return ElementType::float64;
    if constexpr (std::is_same_v<T, bool>) return ElementType::boolean;
    if constexpr (std::is_integral_v<T>) {
        constexpr ElementType types[] = {ElementType::uint8,  ElementType::uint16, ElementType::uint32,
                                         ElementType::uint64, ElementType::int8,   ElementType::int16,
                                         ElementType::int32,  ElementType::int64};
        constexpr unsigned log_size = sizeof(T) == 8 ? 3 : sizeof(T) == 4 ? 2 : sizeof(T) == 2 ? 1 : 0;
        return types[log_size + (std::is_signed_v<T> ? 4 : 0)];
    }
    return ElementType::other;
}
} // namespace detail
template <class T> inline constexpr ElementType element_type_of = detail::element_type<T>();

/// "[3, 4]", for messages.
inline std::string shape_text(std::span<const index_t> shape) {
    std::string out = "[";
    for (std::size_t i = 0; i < shape.size(); ++i) out += (i > 0 ? ", " : "") + std::to_string(shape[i]);
    return out + "]";
}

/// Elements of `type` that lie in `bytes` without alignment, as T. float takes float32, float16 and bfloat16; double
/// takes float64 as well; an integer T takes every integer type and bool, and checks that the values fit; half and
/// bfloat16 take their own type. Anything else is an Error; `what` begins it, `type_name` is the file's word for
/// `type`.
template <class T>
std::vector<T> copy_elements(ElementType type, std::span<const std::byte> bytes, const std::string& what,
                             std::string_view type_name) {
    static_assert(!std::is_same_v<T, bool>, "mnemo: ask for std::uint8_t");
    std::vector<T> out;
    const auto copy = [&]<class From>(From) {
        out.resize(bytes.size() / sizeof(From));
        if constexpr (std::is_same_v<From, T>) {
            if (!out.empty()) std::memcpy(out.data(), bytes.data(), bytes.size());
        } else {
            if constexpr (std::is_same_v<T, float> && KeyElement<From>)
                if (reinterpret_cast<std::uintptr_t>(bytes.data()) % alignof(From) == 0) {
                    convert(std::span(reinterpret_cast<const From*>(bytes.data()), out.size()), std::span(out));
                    return std::move(out);
                }
            for (std::size_t i = 0; i < out.size(); ++i) {
                From value;
                std::memcpy(&value, bytes.data() + i * sizeof(From), sizeof(From));
                if constexpr (std::is_integral_v<From>) {
                    if (!std::in_range<T>(value))
                        fail(what, ": element ", i, ": expected a value that fits ", name(element_type_of<T>), ", got ",
                             value);
                    out[i] = static_cast<T>(value);
                } else if constexpr (std::is_floating_point_v<From>)
                    out[i] = value;
                else
                    out[i] = to_float(value);
            }
        }
        return std::move(out);
    };
    if constexpr (std::is_integral_v<T>) {
        switch (type) {
        case ElementType::int8:
            return copy(std::int8_t{});
        case ElementType::int16:
            return copy(std::int16_t{});
        case ElementType::int32:
            return copy(std::int32_t{});
        case ElementType::int64:
            return copy(std::int64_t{});
        case ElementType::boolean: // a byte
        case ElementType::uint8:
            return copy(std::uint8_t{});
        case ElementType::uint16:
            return copy(std::uint16_t{});
        case ElementType::uint32:
            return copy(std::uint32_t{});
        case ElementType::uint64:
            return copy(std::uint64_t{});
        default:
            fail(what, ": dtype: expected an integer type, got ", type_name);
        }
    } else if constexpr (std::is_floating_point_v<T>) {
        if (type == ElementType::float32) return copy(float{});
        if (type == ElementType::float16) return copy(half{});
        if (type == ElementType::bfloat16) return copy(bfloat16{});
        if constexpr (std::is_same_v<T, double>)
            if (type == ElementType::float64) return copy(double{});
        fail(what, ": dtype: expected float32, float16",
             std::is_same_v<T, double> ? ", bfloat16 or float64" : " or bfloat16", ", got ", type_name);
    } else {
        if (type == element_type_of<T>) return copy(T{});
        fail(what, ": dtype: expected ", name(element_type_of<T>), ", got ", type_name);
    }
}

} // namespace mnemo
