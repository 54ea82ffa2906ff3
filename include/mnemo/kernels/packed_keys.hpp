// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/core/huge_pages.hpp>
#include <mnemo/core/key_rows.hpp>
#include <mnemo/kernels/pack.hpp>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

namespace mnemo {

/// Keys as the first pass of a search reads them, rounded and in panels: a quarter (int8) or half (bfloat16) of the
/// bytes of floats. A copy beside a store's keys, in memory or in a mapped file; it never changes what is found.
struct PackedView {
    Metric metric = Metric::l2;
    FilterFormat format = FilterFormat::int8;
    index_t rows = 0, d = 0;
    const float* centre = nullptr;        // [d]
    const std::uint32_t* words = nullptr; // [panels, words, 48]
    const float* bias = nullptr;          // [panels, 48]
    const float* scale = nullptr;         // [panels, 48]
    const std::int32_t* offset = nullptr; // [panels, 48]
    const std::uint32_t* bound = nullptr; // [panels, 48]
    const detail::Norms* norms = nullptr; // [panels]

    index_t panels() const { return (rows + detail::kPanel - 1) / detail::kPanel; }
    /// Whether this machine, at this level, has the instructions for the format.
    bool runs_here() const {
        if (detail::is_integer(format)) return detail::multiplies_integers();
        return simd_level() >= (format == FilterFormat::bfloat16 ? SimdLevel::avx512_bf16 : SimdLevel::avx2);
    }
};

/// Owns such a copy and keeps it right: `follow` after an append, `replace` after a replacement; what was erased is
/// left out by the search. Writing is exclusive; a view holds until the next write. On a machine without the
/// instructions for the format (AVX2, or AVX-512 with BF16) it stays empty.
template <MetricTag MetricT> class PackedKeys {
  public:
    explicit PackedKeys(index_t d, FilterFormat format = FilterFormat::int8)
        : d_(d), rounding_(d, format), centre_(size(d)) {}

    index_t rows() const { return rows_; }
    FilterFormat format() const { return rounding_.format(); }
    /// Bytes a key takes.
    double bytes_a_key() const { return static_cast<double>(4 * rounding_.words() + 16) + 12.0 / detail::kPanel; }

    /// Takes the centre from these keys, a fair sample of what will come. Before the first `follow`, which does it
    /// otherwise.
    void centre_on([[maybe_unused]] const KeyRows& sample) {
#if MNEMO_X86
        if (view().runs_here())
            sample.visit([&]<class T>(MatrixView<const T> rows) {
                detail::mean_of<MetricT>(rows, centre_);
                centred_ = true;
            });
#endif
    }
    /// Packs the rows of `all` [n, d] that were not packed yet.
    void follow(const KeyRows& all) {
        expect_equal("PackedKeys: width of the keys", all.cols, d_);
        if (all.rows < rows_) fail("PackedKeys: expected at least ", rows_, " keys, got ", all.rows);
#if MNEMO_X86
        if (view().runs_here())
            all.visit([&]<class T>(MatrixView<const T> rows) { append(rows.slice(rows_, rows.rows - rows_)); });
#endif
    }
    /// Another key [1, d] under the same id; none where the id was not packed yet.
    void replace([[maybe_unused]] index_t id, [[maybe_unused]] const KeyRows& key) {
#if MNEMO_X86
        if (id < rows_)
            key.visit([&]<class T>(MatrixView<const T> row) {
                rounding_.pack_one(row.data, id % detail::kPanel, centre_.data(), scratch(), buffer(),
                                   panel(id / detail::kPanel));
            });
#endif
    }
    /// Packs the panels anew that hold rows [first, last) of `all` [n, d], as many rows as were packed or more: for
    /// stores that write over rows in order.
    void refresh([[maybe_unused]] const KeyRows& all, [[maybe_unused]] index_t first, [[maybe_unused]] index_t last) {
        expect_equal("PackedKeys: width of the keys", all.cols, d_);
        if (all.rows < rows_) fail("PackedKeys: expected at least ", rows_, " keys, got ", all.rows);
#if MNEMO_X86
        if (!view().runs_here()) return;
        if (!centred_) centre_on(all);
        make_room(all.rows);
        all.visit([&]<class T>(MatrixView<const T> rows) {
            for (index_t p = first / detail::kPanel; p * detail::kPanel < last; ++p) {
                const index_t at = p * detail::kPanel;
                rounding_.pack(rows.slice(at, std::min(detail::kPanel, all.rows - at)), centre_.data(), scratch(),
                               buffer(), panel(p));
            }
        });
        rows_ = all.rows;
#endif
    }
    /// Forgets the keys; the centre stays.
    void clear() {
        rows_ = 0, words_.clear(), bias_.clear(), scale_.clear(), offset_.clear(), bound_.clear(), norms_.clear();
    }

    PackedView view() const {
        return {MetricT::metric, rounding_.format(), rows_,        d_,
                centre_.data(),  words_.data(),      bias_.data(), scale_.data(),
                offset_.data(),  bound_.data(),      norms_.data()};
    }

  private:
    static std::size_t size(index_t n) { return static_cast<std::size_t>(n); }
    float* scratch() {
        scratch_.resize(size(detail::filter_stride(d_)));
        return scratch_.data();
    }
    std::uint32_t* buffer() {
        packing_.resize(size(detail::kPanel * rounding_.words()));
        return packing_.data();
    }
    detail::Panel panel(index_t p) {
        const index_t first = p * detail::kPanel;
        return {words_.data() + first * rounding_.words(),
                bias_.data() + first,
                scale_.data() + first,
                offset_.data() + first,
                bound_.data() + first,
                &norms_[size(p)]};
    }
#if MNEMO_X86
    void make_room(index_t rows) {
        const index_t panels = (rows + detail::kPanel - 1) / detail::kPanel;
        words_.resize(size(panels * detail::kPanel * rounding_.words()));
        bias_.resize(size(panels * detail::kPanel), -std::numeric_limits<float>::infinity());
        scale_.resize(size(panels * detail::kPanel));
        offset_.resize(size(panels * detail::kPanel));
        bound_.resize(size(panels * detail::kPanel));
        norms_.resize(size(panels));
    }
    template <class T> void append(MatrixView<const T> keys) {
        if (keys.rows == 0) return;
        if (!std::exchange(centred_, true)) detail::mean_of<MetricT>(keys, centre_);
        make_room(rows_ + keys.rows);
        for (index_t i = 0; i < keys.rows;) {
            const index_t lane = (rows_ + i) % detail::kPanel, p = (rows_ + i) / detail::kPanel;
            if (lane == 0) {
                const index_t n = std::min(detail::kPanel, keys.rows - i);
                rounding_.pack(keys.slice(i, n), centre_.data(), scratch(), buffer(), panel(p));
                i += n;
            } else { // goes on in a panel that is not full
                rounding_.pack_one(keys[i].data(), lane, centre_.data(), scratch(), buffer(), panel(p));
                ++i;
            }
        }
        rows_ += keys.rows;
    }
#endif

    index_t d_, rows_ = 0;
    bool centred_ = false;
    detail::Rounding<MetricT> rounding_;
    std::vector<float> centre_, bias_, scale_, scratch_;
    HugeVector<std::uint32_t> words_;
    std::vector<std::uint32_t> packing_, bound_;
    std::vector<std::int32_t> offset_;
    std::vector<detail::Norms> norms_;
};

} // namespace mnemo
