// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/io/array_file.hpp>
#include <mnemo/kernels/choose_format.hpp>
#include <mnemo/kernels/key_lists.hpp>
#include <mnemo/kernels/packed_keys.hpp>

#include <algorithm>
#include <limits>
#include <optional>

namespace mnemo {

namespace detail {
inline Metric metric_named(const ArrayFile& file) {
    for (const Metric m : {Metric::l2, Metric::inner_product, Metric::cosine})
        if (name(m) == file.meta("metric")) return m;
    fail(file.path(), ": metric: got ", in_quotes(file.meta("metric")));
}
inline FilterFormat format_named(const ArrayFile& file) {
    for (const FilterFormat f : {FilterFormat::int8, FilterFormat::rotated_int8, FilterFormat::bfloat16})
        if (name(f) == file.meta("format")) return f;
    fail(file.path(), ": format: got ", in_quotes(file.meta("format")));
}
inline std::map<std::string, std::string> packed_meta(Metric metric, FilterFormat format, index_t rows, index_t d,
                                                      const std::string& of) {
    return {{"metric", std::string(name(metric))},
            {"format", std::string(name(format))},
            {"rows", std::to_string(rows)},
            {"d", std::to_string(d)},
            {"of", of.empty() ? "-" : of}};
}
// The arrays of packed keys with `rows` places.
inline std::vector<std::pair<std::string, std::uint64_t>> packed_arrays(FilterFormat format, index_t rows, index_t d) {
    const auto panels = static_cast<std::uint64_t>((rows + kPanel - 1) / kPanel), places = panels * kPanel;
    return {{"centre", 4 * static_cast<std::uint64_t>(d)},
            {"words", 4 * places * static_cast<std::uint64_t>(filter_words(format, d))},
            {"bias", 4 * places},
            {"scale", 4 * places},
            {"offset", 4 * places},
            {"bound", 4 * places},
            {"norms", sizeof(Norms) * panels}};
}
inline void append_packed(ArrayFileWriter& file, const PackedView& v) { // all but the centre
    const auto panels = static_cast<std::size_t>(v.panels()), places = panels * static_cast<std::size_t>(kPanel);
    file.append(1, std::span(v.words, places * static_cast<std::size_t>(filter_words(v.format, v.d))));
    file.append(2, std::span(v.bias, places));
    file.append(3, std::span(v.scale, places));
    file.append(4, std::span(v.offset, places));
    file.append(5, std::span(v.bound, places));
    file.append(6, std::span(v.norms, panels));
}
inline PackedView packed_view(const ArrayFile& file, std::string_view of) {
    if (!of.empty() && file.meta("of") != of)
        fail(file.path(), ": expected a packed copy of ", of, ", got one of ", in_quotes(file.meta("of")),
             ": make it again");
    PackedView v;
    v.metric = metric_named(file), v.format = format_named(file);
    v.d = file.number("d", 1, kMostFilterWidth);
    v.rows = file.number("rows", 0, std::numeric_limits<std::uint32_t>::max());
    const auto panels = static_cast<std::uint64_t>(v.panels()), places = panels * kPanel;
    v.centre = file.array<float>("centre", static_cast<std::uint64_t>(v.d)).data();
    v.words =
        file.array<std::uint32_t>("words", places * static_cast<std::uint64_t>(filter_words(v.format, v.d))).data();
    v.bias = file.array<float>("bias", places).data();
    v.scale = file.array<float>("scale", places).data();
    v.offset = file.array<std::int32_t>("offset", places).data();
    v.bound = file.array<std::uint32_t>("bound", places).data();
    v.norms = file.array<Norms>("norms", panels).data();
    return v;
}
} // namespace detail

/// A packed copy of a store's keys in a file: mapped, shared by processes, larger than memory if need be.
class PackedFile {
  public:
    /// Packs `keys` into `path`, a piece at a time: `progress(done, all)` returns nothing. `of` names what was packed,
    /// in one word; opening compares it. The keys are read from begin to end, once, after a sample.
    template <MetricTag MetricT>
    static void write(const std::string& path, const KeyRows& keys, const std::string& of,
                      std::optional<FilterFormat> wanted, auto&& progress) {
        constexpr index_t piece = 256 * detail::kPanel;
        const FilterFormat format = wanted ? *wanted : packed_format_for<MetricT>(keys);
        PackedKeys<MetricT> packed(keys.cols, format);
        if (!packed.view().runs_here())
            fail(path, ": expected a processor with AVX2 or AVX-512 VNNI (int8), or BF16 (bfloat16), to pack keys");
        packed.centre_on(keys);
        ArrayFileWriter file(path, "packed", detail::packed_meta(MetricT::metric, format, keys.rows, keys.cols, of),
                             detail::packed_arrays(format, keys.rows, keys.cols));
        file.append(0, std::span(packed.view().centre, static_cast<std::size_t>(keys.cols)));
        for (index_t first = 0; first < keys.rows; first += piece) {
            const index_t n = std::min(piece, keys.rows - first);
            packed.clear();
            keys.visit([&](auto rows) { packed.follow(rows.slice(first, n)); });
            detail::append_packed(file, packed.view());
            progress(first + n, keys.rows);
        }
        file.commit();
    }

    /// `of`: what it must be a copy of; empty: not compared.
    static PackedFile open(const std::string& path, std::string_view of = {}, Access access = Access::sequential) {
        PackedFile out(ArrayFile::open(path, "packed", access));
        out.view_ = detail::packed_view(out.file_, of);
        return out;
    }
    const PackedView& view() const { return view_; }
    void verify() const { file_.verify(); }

  private:
    explicit PackedFile(ArrayFile file) : file_(std::move(file)) {}
    ArrayFile file_;
    PackedView view_;
};

/// Inverted lists in a file, mapped.
class ListsFile {
  public:
    static void write(const std::string& path, const ListsView& lists, const std::string& of) {
        auto meta = detail::packed_meta(lists.keys.metric, lists.keys.format, lists.keys.rows, lists.keys.d, of);
        meta["lists"] = std::to_string(lists.lists), meta["entries"] = std::to_string(lists.entries);
        auto arrays = detail::packed_arrays(lists.keys.format, lists.keys.rows, lists.keys.d);
        const auto n = static_cast<std::uint64_t>(lists.lists), places = static_cast<std::uint64_t>(lists.keys.rows);
        const auto width = static_cast<std::uint64_t>(lists.keys.d);
        arrays.push_back({"ids", 4 * places}), arrays.push_back({"centroids", 4 * n * width});
        arrays.push_back({"radius", 4 * n}), arrays.push_back({"first", 8 * (n + 1)});
        if (!lists.keys.words) fail(path, ": expected lists with packed keys, got none: this processor packs no keys");
        ArrayFileWriter file(path, "lists", std::move(meta), arrays);
        file.append(0, std::span(lists.keys.centre, width));
        detail::append_packed(file, lists.keys);
        file.append(7, std::span(lists.ids, places));
        file.append(8, std::span(lists.centroids, n * width));
        file.append(9, std::span(lists.radius, n));
        file.append(10, std::span(lists.first, n + 1));
        file.commit();
    }
    static ListsFile open(const std::string& path, std::string_view of = {}, Access access = Access::normal) {
        ListsFile out(ArrayFile::open(path, "lists", access));
        const ArrayFile& f = out.file_;
        ListsView& v = out.view_;
        v.keys = detail::packed_view(f, of);
        v.lists = f.number("lists", 1, std::numeric_limits<std::int32_t>::max());
        v.entries = f.number("entries", 1, v.keys.rows);
        const auto n = static_cast<std::uint64_t>(v.lists), places = static_cast<std::uint64_t>(v.keys.rows);
        const auto ids = f.array<std::uint32_t>("ids", places);
        v.centroids = f.array<float>("centroids", n * static_cast<std::uint64_t>(v.keys.d)).data();
        v.radius = f.array<float>("radius", n).data();
        const auto first = f.array<std::int64_t>("first", n + 1);
        // What a search uses as an index.
        for (std::size_t l = 0; l < n; ++l)
            if (first[l] % detail::kPanel != 0 || first[l + 1] < first[l])
                fail(path, ": first: expected rising panels");
        if (first[0] != 0 || first[n] != v.keys.rows) fail(path, ": first: expected 0 to ", v.keys.rows);
        for (const std::uint32_t id : ids)
            if (id != ListsView::kNone && id >= v.entries)
                fail(path, ": ids: expected ids below ", v.entries, ", got ", id);
        v.ids = ids.data(), v.first = first.data();
        return out;
    }
    const ListsView& view() const { return view_; }
    void verify() const { file_.verify(); }

  private:
    explicit ListsFile(ArrayFile file) : file_(std::move(file)) {}
    ArrayFile file_;
    ListsView view_;
};

} // namespace mnemo
