// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/kernels/packed_keys.hpp>
#include <mnemo/kernels/panel.hpp>

#include <array>

namespace mnemo {

/// The first pass over a block of queries (kernels/filter_bound.hpp): against keys that were packed before, or packing
/// them as it goes, which pays from some 16 queries on.
template <MetricTag MetricT> class Filter {
  public:
    /// Whether this machine, level and width have a filter.
    static bool available(index_t d) { return simd_level() >= SimdLevel::avx2 && d <= detail::kMostFilterWidth; }
    /// Whether it has integers; else only floats pay.
    static bool has_integers() { return detail::multiplies_integers(); }

#if MNEMO_X86
    /// Buffers for up to `block` queries of width d from `arena`.
    Filter(Arena& arena, index_t block, index_t d) : d_(d), rounding_(d, FilterFormat::float32) {
        const auto n = [](index_t x) { return static_cast<std::size_t>(x); };
        const index_t rows = (block + detail::kGroup - 1) / detail::kGroup * detail::kGroup;
        const index_t words = detail::filter_words(FilterFormat::float32, d);
        rounded_ = arena.take<std::uint32_t>(n(rows * words)).data();
        rounded_scale_ = arena.take<float>(n(2 * rows)).data();
        query_words_ = arena.take<std::uint32_t>(n(rows * words)).data();
        query_scale_ = arena.take<float>(n(rows)).data();
        query_norms_ = arena.take<detail::Norms>(n(rows)).data();
        bounds_ = arena.take<detail::BoundOfQuery>(n(rows)).data();
        roundings_ = arena.take<float>(n(rows)).data();
        limits_ = arena.take<float>(n(rows)).data();
        slopes_ = arena.take<float>(n(rows)).data();
        ratios_ = arena.take<float>(n(rows / detail::kGroup)).data();
        shifts_ = arena.take<float>(n(rows)).data();
        bias_ = arena.take<float>(n(detail::kPanel)).data();
        panel_.words = arena.take<std::uint32_t>(n(words * detail::kPanel)).data();
        panel_.bias = arena.take<float>(n(detail::kPanel)).data();
        panel_.scale = arena.take<float>(n(detail::kPanel)).data();
        panel_.offset = arena.take<std::int32_t>(n(detail::kPanel)).data();
        panel_.bound = arena.take<std::uint32_t>(n(detail::kPanel)).data();
        std::fill_n(panel_.bound, detail::kPanel, 0u);
        panel_.norms = arena.take<detail::Norms>(1).data();
        *panel_.norms = {};
        rows_ = arena.take<std::uint32_t>(n(detail::kPanel * words)).data();
        scratch_ = arena.take<float>(n(words)).data();
        zeros_ = arena.take<float>(n(d)).data();
        std::fill_n(zeros_, d, 0.0f);
    }

    /// The queries from here on, [1 .. block, d], for keys of this format and centre. False where one is too large for
    /// the bound: then score all keys. Without `bounded` there are no bounds: candidates hold the first pass's scores.
    bool use(Rows queries, FilterFormat format, const float* centre, bool bounded = true) {
        all_ = queries.rows, centre_ = centre, level_ = simd_level();
        rounding_ = detail::Rounding<MetricT>(d_, format);
        widest_ = {-1, -1, -1};
        bounded_ = bounded;
        panels_ = 0, seen_ = {};
        // Few queries leave the arithmetic idle while keys come from memory: a second plane of integers is free.
        planes_ = detail::is_integer(format) && all_ <= detail::kGroup / 2 ? 2 : 1;
        const index_t words = rounding_.words();
        for (index_t i = 0; i < all_; ++i) {
            std::uint32_t* out = rounded_ + i * planes_ * words;
            const auto r = rounding_.round(queries[i].data(), MetricT::metric == Metric::l2 ? centre : zeros_, true,
                                           scratch_, out, planes_ == 2 ? out + words : nullptr);
            if (!r.norms.usable()) return false;
            query_norms_[i] = r.norms;
            bounds_[i] = bounded ? detail::BoundOfQuery(r.norms) : detail::BoundOfQuery();
            shifts_[i] = shift_of(queries[i].data(), r);
            rounded_scale_[2 * i] = r.first.scale, rounded_scale_[2 * i + 1] = r.second.scale;
        }
        gather(nullptr, all_);
        return true;
    }
    /// Of these, the ones that are scanned for: `which` [n], ascending, or the first n. It is read until the next call.
    void gather(const std::uint32_t* which, index_t n) {
        which_ = which, queries_ = n;
        const index_t a_group = detail::kGroup / planes_, groups = (n + a_group - 1) / a_group;
        const index_t words = rounding_.words();
        std::fill_n(query_scale_, groups * detail::kGroup, 0.0f);
        std::fill_n(limits_, groups * detail::kGroup, std::numeric_limits<float>::infinity());
        std::fill_n(slopes_, groups * detail::kGroup, 0.0f);
        std::fill_n(ratios_, groups, 0.0f);
        for (index_t i = 0; i < n; ++i) {
            slopes_[place(i)] = bounds_[query(i)].slope;
            ratios_[i / a_group] = std::max(ratios_[i / a_group], bounds_[query(i)].ratio);
        }
        for (index_t i = 0; i < groups * a_group; ++i)
            for (index_t plane = 0; plane < planes_; ++plane) {
                const index_t row = i % a_group * planes_ + plane;
                std::uint32_t* out = query_words_ + i / a_group * words * detail::kGroup + row;
                if (i >= n) {
                    for (index_t w = 0; w < words; ++w) out[w * detail::kGroup] = 0;
                    continue;
                }
                const std::uint32_t* in = rounded_ + (query(i) * planes_ + plane) * words;
                for (index_t w = 0; w < words; ++w) out[w * detail::kGroup] = in[w];
                query_scale_[i / a_group * detail::kGroup + row] = rounded_scale_[2 * query(i) + plane];
            }
    }

    /// Looks for candidates among keys [first, last), every `step`-th panel of them, in the order of their ids:
    /// c[query * stride]. `full(query)` is called when a query's buffer has no room for a panel after raise(). Returns
    /// false, with nothing promised about the candidates, where a key is too large for the bound.
    template <class T, class Full>
    bool scan(MatrixView<const T> keys, IdSet erased, index_t first, index_t last, Candidates* c, index_t stride,
              Full&& full, index_t step = 1) {
        begin(c, stride);
        for (index_t id = first; id < last; id += step * detail::kPanel) {
            rounding_.pack(keys.slice(id, std::min(detail::kPanel, last - id)), centre_, scratch_, rows_, panel_);
            if (!panel_.norms->usable()) return false;
            scan_panel(panel_, id, last, erased, nullptr, c, stride, full);
        }
        end(c, stride);
        return true;
    }
    /// The same among packed keys; `first` is a multiple of 48. With `ids` [panels, 48] keys stand in another order.
    template <class Full>
    bool scan(const PackedView& keys, IdSet erased, index_t first, index_t last, Candidates* c, index_t stride,
              Full&& full, index_t step = 1, const std::uint32_t* ids = nullptr) {
        assert(first % detail::kPanel == 0 && last <= keys.panels() * detail::kPanel);
        begin(c, stride);
        for (index_t slot = first; slot < last; slot += step * detail::kPanel) {
            // What the kernels only read is never written to.
            const detail::Panel panel{const_cast<std::uint32_t*>(keys.words) + slot * rounding_.words(),
                                      const_cast<float*>(keys.bias) + slot,
                                      const_cast<float*>(keys.scale) + slot,
                                      const_cast<std::int32_t*>(keys.offset) + slot,
                                      const_cast<std::uint32_t*>(keys.bound) + slot,
                                      const_cast<detail::Norms*>(keys.norms) + slot / detail::kPanel};
            if (!panel.norms->usable()) return false;
            scan_panel(panel, slot, last, erased, ids ? ids + slot : nullptr, c, stride, full);
        }
        end(c, stride);
        return true;
    }

    /// The same among `n` keys that are made as they are scanned: make(first, count, rows, bias, ids) writes rounded
    /// rows [count, words], count <= 48, what to add to their products, and their ids. `offset` [queries], as they were
    /// gathered, is added to all products of a query. To be used without bounds.
    template <class Make, class Full>
    void scan_made(index_t n, IdSet erased, const float* offset, Candidates* c, index_t stride, Make&& make,
                   Full&& full) {
        alignas(64) std::array<std::uint32_t, detail::kPanel> ids;
        offset_ = offset;
        begin(c, stride);
        for (index_t first = 0; first < n; first += detail::kPanel) {
            make(first, std::min(detail::kPanel, n - first), rows_, panel_.bias, ids.data());
            detail::transpose_panel(rows_, rounding_.words(), panel_.words);
            scan_panel(panel_, first, n, erased, ids.data(), c, stride, full);
        }
        offset_ = nullptr;
    }
    /// 32-bit words of a row of the format in use.
    index_t words() const { return rounding_.words(); }

  private:
    // What to add to an exact score (to half of it, for L2) for a lower bound of s.
    float shift_of([[maybe_unused]] const float* query, [[maybe_unused]] const auto& row) const {
        const float rounding = 0x1p-24f * (static_cast<float>(d_) / 8 + 64);
        if constexpr (MetricT::metric == Metric::l2) return 0.5f * row.squares * (1 - rounding);
        float product = 0, norm = 0;
        detail::sum_avx2<detail::Sum::products, 1>(query, 0, centre_, d_, &product);
        detail::sum_avx2<detail::Sum::products, 1>(centre_, 0, centre_, d_, &norm);
        return -rounding_.normaliser(query) * product - rounding * row.norms.centred * std::sqrt(norm);
    }
    index_t query(index_t i) const { return which_ ? static_cast<index_t>(which_[i]) : i; }

    // Of the i-th query that was gathered, in the groups.
    index_t place(index_t i) const {
        const index_t a_group = detail::kGroup / planes_;
        return i / a_group * detail::kGroup + i % a_group;
    }
    // Of the i-th query and a key of these norms, without what rounding adds; a group takes the largest of its ratios.
    float bound(index_t i, float residual, float rounded) const {
        return slopes_[place(i)] * (residual + ratios_[i / (detail::kGroup / planes_)] * rounded);
    }
    void begin(Candidates* c, index_t stride) {
        for (index_t i = 0; i < queries_; ++i) {
            const index_t q = query(i);
            Candidates& mine = c[q * stride];
            if (widest_.centred >= 0) // of keys, norms are rounded up
                mine.error = 1.01f * bound(i, widest_.residual, widest_.centred + widest_.residual) + roundings_[q];
            mine.factor = MetricT::metric == Metric::l2 ? 0.5f : 1.0f;
            mine.shift = shifts_[q];
            limits_[place(i)] = limit_of(i, mine);
        }
    }
    void end(Candidates* c, index_t stride) {
        if (panels_ == 0 || !bounded_) return;
        const float keys = static_cast<float>((panels_ + kSeen - 1) / kSeen * detail::kPanel);
        for (index_t i = 0; i < queries_; ++i) {
            const index_t q = query(i);
            c[q * stride].typical = bound(i, seen_.residual / keys, seen_.centred / keys) + roundings_[q];
        }
    }
    float offset(index_t i) const { return offset_ ? offset_[i] : 0.0f; }
    float more(index_t i) const { return (widest_.centred >= 0 ? roundings_[query(i)] : 0.0f) + offset(i); }
    float limit_of(index_t i, const Candidates& c) const { return c.threshold - more(i); }

    // One bound a query for all panels so far: it changes only where a panel's norms are the largest yet.
    void update_errors(detail::Norms n, Candidates* c, index_t stride) {
        if (!bounded_) return;
        if (n.centred <= widest_.centred && n.residual <= widest_.residual && n.raw <= widest_.raw) return;
        widest_.widen(n);
        for (index_t i = 0; i < all_; ++i)
            roundings_[i] = detail::filter_rounding<MetricT>(query_norms_[i], widest_, rounding_.format(), d_);
        begin(c, stride);
    }

    // Keys are at `slot` and behind; `last` ends them. Lanes without one, and of erased keys, get bias -inf.
    template <class Full>
    void scan_panel(detail::Panel panel, index_t slot, index_t last, IdSet erased, const std::uint32_t* ids,
                    Candidates* c, index_t stride, Full&& full) {
        alignas(64) std::array<std::uint32_t, detail::kPanel> own_ids;
        if (!ids) {
            for (index_t l = 0; l < detail::kPanel; ++l)
                own_ids[static_cast<std::size_t>(l)] = static_cast<std::uint32_t>(slot + l);
            ids = own_ids.data();
        }
        leave_out(panel, std::min(detail::kPanel, last - slot), erased, ids);
        update_errors(*panel.norms, c, stride);
        if (panels_++ % kSeen == 0) // some tell what a key's bound is like
            for (index_t l = 0; l < detail::kPanel; ++l) {
                seen_.residual += detail::residual_norm(panel.bound[l]);
                seen_.centred += detail::rounded_norm(panel.bound[l]);
            }
        // What a group has found is taken after the next one's products: then it is known early, and the processor
        // guesses wrong while it still has products to work at.
        constexpr index_t size = detail::kGroup * detail::kPanel;
        alignas(64) std::array<float, 2 * static_cast<std::size_t>(size)> t;
        const index_t a_group = detail::kGroup / planes_, words = rounding_.words();
        unsigned hits = 0;
        index_t g = 0;
        for (; g * a_group < queries_; ++g) {
            const detail::Group group{query_words_ + g * words * detail::kGroup, query_scale_ + g * detail::kGroup,
                                      limits_ + g * detail::kGroup, slopes_ + g * detail::kGroup, ratios_[g]};
            const index_t rows = std::min(a_group, queries_ - g * a_group);
            for (index_t m = 0; m < rows; ++m) { // every second of these is written to
                const Candidates& likely = c[query(g * a_group + m) * stride];
                __builtin_prefetch(likely.scores + likely.count, 1);
                __builtin_prefetch(likely.ids + likely.count, 1);
            }
            const unsigned found = multiply(group, rows, panel, words, t.data() + g % 2 * size);
            take(hits, g - 1, t.data() + (g + 1) % 2 * size, ids, c, stride, full);
            hits = found;
        }
        take(hits, g - 1, t.data() + (g + 1) % 2 * size, ids, c, stride, full);
    }
    // Of group g, the queries with a bit in `hits`.
    template <class Full>
    void take(unsigned hits, index_t g, const float* t, const std::uint32_t* ids, Candidates* c, index_t stride,
              Full&& full) {
        for (; hits != 0; hits &= hits - 1) {
            const index_t m = std::countr_zero(hits), i = g * (detail::kGroup / planes_) + m;
            Candidates& mine = c[query(i) * stride];
            if (!mine.has_room_for(detail::kPanel)) mine.raise();
            if (!mine.has_room_for(detail::kPanel)) full(query(i));
            const float limit = limits_[place(i)] = limit_of(i, mine);
            if (level_ >= SimdLevel::avx512)
                detail::take_avx512(t + m * detail::kPanel, limit, more(i), ids, mine);
            else
                detail::take_plain(t + m * detail::kPanel, limit, more(i), ids, mine);
        }
    }
    void leave_out(detail::Panel& panel, index_t lanes, IdSet erased, const std::uint32_t* ids) {
        bool any = lanes < detail::kPanel;
        if (!erased.words.empty())
            for (index_t l = 0; l < lanes && !any; ++l) any = erased.contains(ids[l]);
        if (!any) return;
        for (index_t l = 0; l < detail::kPanel; ++l)
            bias_[l] = l < lanes && !erased.contains(ids[l]) ? panel.bias[l] : -std::numeric_limits<float>::infinity();
        panel.bias = bias_;
    }
    unsigned multiply(const detail::Group& g, index_t rows, const detail::Panel& p, index_t words, float* out) const {
        if (detail::is_integer(rounding_.format()) && level_ < SimdLevel::avx512)
            return detail::multiply_int8_avx2(g, p, words, rows, planes_, out);
        if (planes_ == 2) {
            if (rows == 1) return detail::multiply_int8<1, 2>(g, p, words, out);
            if (rows == 2) return detail::multiply_int8<2, 2>(g, p, words, out);
            return detail::multiply_int8<4, 2>(g, p, words, out);
        }
        if (detail::is_integer(rounding_.format())) {
            if (rows == 1) return detail::multiply_int8<1, 1>(g, p, words, out);
            if (rows == 2) return detail::multiply_int8<2, 1>(g, p, words, out);
            if (rows <= 4) return detail::multiply_int8<4, 1>(g, p, words, out);
            return detail::multiply_int8<8, 1>(g, p, words, out);
        }
        if (rounding_.format() == FilterFormat::bfloat16) return detail::multiply_bfloat16<8>(g, p, words, out);
        if (level_ >= SimdLevel::avx512) return detail::multiply_float_avx512<8>(g, p, words, out);
        return detail::multiply_float_avx2(g, p, words, out);
    }

    index_t d_, all_ = 0, queries_ = 0, planes_ = 1; // of the block, and those that are scanned for
    SimdLevel level_ = SimdLevel::plain;
    const std::uint32_t* which_ = nullptr; // [queries_]
    const float* offset_ = nullptr;        // [queries_], see scan_made
    detail::Rounding<MetricT> rounding_;
    const float* centre_ = nullptr;
    static constexpr index_t kSeen = 16;
    bool bounded_ = true;
    index_t panels_ = 0;              // scanned
    detail::Norms widest_;            // of the panels so far
    detail::Norms seen_{};            // of every kSeen-th panel, sums of residual norms and of those of rounded keys
    std::uint32_t* rounded_;          // [block, planes, words]
    float* rounded_scale_;            // [block, 2]
    std::uint32_t* query_words_;      // [groups, words, kGroup]
    float* query_scale_;              // [groups, kGroup]
    detail::Norms* query_norms_;      // [block]
    detail::BoundOfQuery* bounds_;    // [block]
    float* roundings_;                // [block], what rounding adds to them for these panels
    float *limits_, *slopes_;         // [groups, kGroup]
    float* ratios_;                   // [groups]
    float* shifts_;                   // [block]
    detail::Panel panel_{};           // packed here
    float *bias_, *scratch_, *zeros_; // [kPanel], [stride], [d]
    std::uint32_t* rows_;             // [kPanel, words]
#endif
};

} // namespace mnemo
