// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/kernels/key_lists.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/store/tokens.hpp>

#include <algorithm>
#include <optional>
#include <random>
#include <utility>
#include <vector>

namespace mnemo {

/// How inverted lists are built.
struct ListsOptions {
    index_t lists = 0;                                 // 0: four times the root of the number of keys
    index_t sample = 64;                               // keys a list to learn the centroids from
    int rounds = 8;                                    // of k-means
    std::uint64_t seed = 1;                            // of the first centroids
    index_t chunk = 16384;                             // keys that a step assigns
    std::optional<FilterFormat> format = std::nullopt; // of the packed keys; none: chosen by the keys
};

/// What a build has done so far; it can be saved and gone on with.
struct ListsDraft {
    int rounds = 0;
    Matrix centroids;                   // [lists, d]
    std::vector<std::int32_t> assigned; // the list of each of the first keys
};

/// Sorts keys into inverted lists, a step at a time: a round of k-means, or a chunk of keys. The lists depend on the
/// keys and the options only, not on the executor or on interruptions.
template <MetricTag MetricT, Executor X = Serial> class ListsBuilder {
  public:
    /// For the keys of a store, which must not change meanwhile. A `draft` of the same keys and options is gone on
    /// with.
    ListsBuilder(const KeyRows& keys, ListsOptions options, X executor = {}, ListsDraft draft = {})
        : keys_(keys), options_(options), executor_(executor), draft_(std::move(draft)) {
        if (keys.rows < 1) fail("ListsBuilder: expected keys, got none");
        if (keys.rows >= index_t{ListsView::kNone})
            fail("ListsBuilder: expected fewer than 2^32 - 1 keys, got ", keys.rows);
        if (options.lists < 0 || options.sample < 1 || options.rounds < 1 || options.chunk < 1)
            fail("ListsBuilder: expected positive options");
        lists_ =
            options.lists > 0 ? options.lists : static_cast<index_t>(4 * std::sqrt(static_cast<double>(keys.rows)));
        lists_ = std::clamp<index_t>(lists_, 1, keys.rows);
        if (draft_.rounds > 0 && (draft_.centroids.rows != lists_ || draft_.centroids.cols != keys.cols ||
                                  static_cast<index_t>(draft_.assigned.size()) > keys.rows))
            fail("ListsBuilder: expected a draft of ", lists_, " lists of width ", keys.cols, " for ", keys.rows,
                 " keys, got ", draft_.centroids.rows, " of width ", draft_.centroids.cols);
    }

    index_t total() const { return options_.rounds + (keys_.rows + options_.chunk - 1) / options_.chunk; }
    index_t done() const {
        return draft_.rounds + (static_cast<index_t>(draft_.assigned.size()) + options_.chunk - 1) / options_.chunk;
    }
    const ListsDraft& draft() const { return draft_; }

    /// One more step; false when none is left.
    bool step() {
        if (draft_.rounds < options_.rounds) {
            learn();
            ++draft_.rounds;
        } else if (static_cast<index_t>(draft_.assigned.size()) < keys_.rows) {
            const auto first = static_cast<index_t>(draft_.assigned.size());
            const Matrix rows = read(first, std::min(options_.chunk, keys_.rows - first), 1);
            assign(rows, draft_.assigned);
        }
        return done() < total();
    }

    /// All the steps that are left, and the lists.
    KeyLists build() {
        while (step()) {
        }
        return pack();
    }

    /// The lists, when all steps are done.
    KeyLists pack() const {
        if (done() < total()) fail("ListsBuilder: expected ", total(), " steps, got ", done());
        KeyLists out;
        out.metric = MetricT::metric, out.d = keys_.cols, out.entries = keys_.rows;
        out.format = options_.format ? *options_.format : packed_format_for<MetricT>(keys_);
        out.centroids = draft_.centroids.data;
        std::vector<std::int64_t> count(size(lists_)), next;
        for (const std::int32_t list : draft_.assigned) ++count[size(list)];
        out.first.push_back(0);
        for (const std::int64_t n : count)
            out.first.push_back(out.first.back() + (n + detail::kPanel - 1) / detail::kPanel * detail::kPanel);
        out.ids.assign(size(out.first.back()), ListsView::kNone);
        next.assign(out.first.begin(), out.first.end() - 1);
        for (std::size_t id = 0; id < draft_.assigned.size(); ++id)
            out.ids[size(next[size(draft_.assigned[id])]++)] = static_cast<std::uint32_t>(id);
        find_radius(out);
#if MNEMO_X86
        if (out.view().keys.runs_here()) keys_.visit([&]<class T>(MatrixView<const T> keys) { pack(keys, out); });
#endif
        return out;
    }

  private:
    static std::size_t size(index_t n) { return static_cast<std::size_t>(n); }

    // Keys first, first + step, ... as floats; normalised for Cosine.
    Matrix read(index_t first, index_t n, index_t step) const {
        Matrix out(n, keys_.cols);
        for (index_t i = 0; i < n; ++i) {
            keys_.read(first + i * step, out[i]);
            if constexpr (MetricT::metric == Metric::cosine) {
                const float squares = score<InnerProduct>(std::as_const(out)[i], std::as_const(out)[i]);
                const float factor = squares > 0 ? 1 / std::sqrt(squares) : 0.0f;
                for (float& x : out[i]) x *= factor;
            }
        }
        return out;
    }
    // Appends the nearest centroid of each row.
    void assign(const Matrix& rows, std::vector<std::int32_t>& out) const {
        TokenStore<> centroids(keys_.cols);
        centroids.append(draft_.centroids, std::vector<std::int32_t>(size(lists_)));
        const Hits hits = Exact<L2, X>{1, executor_}.retrieve(centroids, rows);
        for (index_t i = 0; i < rows.rows; ++i)
            out.push_back(hits.ids(i).empty() ? 0 : static_cast<std::int32_t>(hits.ids(i)[0]));
    }
    // A round of k-means on a sample. A centroid that lost all its keys moves to a key drawn by chance.
    void learn() {
        const index_t step = std::max<index_t>(keys_.rows / (lists_ * options_.sample), 1);
        const Matrix sample = read(0, std::min(keys_.rows / step, lists_ * options_.sample), step);
        std::mt19937_64 gen(options_.seed + static_cast<std::uint64_t>(draft_.rounds));
        if (draft_.rounds == 0) {
            std::vector<index_t> rows(size(sample.rows));
            for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<index_t>(i);
            draft_.centroids = Matrix(lists_, keys_.cols);
            for (index_t l = 0; l < lists_; ++l) {
                std::swap(rows[size(l % sample.rows)],
                          rows[size(l % sample.rows) + gen() % size(sample.rows - l % sample.rows)]);
                std::copy_n(sample[rows[size(l % sample.rows)]].begin(), keys_.cols, draft_.centroids[l].begin());
            }
        }
        std::vector<std::int32_t> nearest;
        assign(sample, nearest);
        std::vector<double> sums(draft_.centroids.data.size()), count(size(lists_));
        for (index_t i = 0; i < sample.rows; ++i) {
            const std::size_t l = size(nearest[size(i)]);
            ++count[l];
            for (std::size_t j = 0; j < size(keys_.cols); ++j) sums[l * size(keys_.cols) + j] += sample[i][j];
        }
        for (index_t l = 0; l < lists_; ++l)
            for (std::size_t j = 0, lost = gen() % size(sample.rows); j < size(keys_.cols); ++j)
                draft_.centroids[l][j] = count[size(l)] > 0
                                             ? static_cast<float>(sums[size(l) * size(keys_.cols) + j] / count[size(l)])
                                             : sample[static_cast<index_t>(lost)][j];
    }
    // Distances in double, so that only the last rounding is left: it goes up.
    void find_radius(KeyLists& out) const {
        out.radius.assign(size(lists_), 0.0f);
        for (std::size_t id = 0; id < draft_.assigned.size(); ++id) {
            const Matrix key = read(static_cast<index_t>(id), 1, 1);
            const index_t list = draft_.assigned[id];
            double squares = 0;
            for (std::size_t j = 0; j < key.data.size(); ++j) {
                const double e = double(key.data[j]) - draft_.centroids[list][j];
                squares += e * e;
            }
            const auto distance = static_cast<float>(std::sqrt(squares) * (1 + 1e-6));
            out.radius[size(list)] = std::max(out.radius[size(list)], distance);
        }
    }
#if MNEMO_X86
    template <class T> void pack(MatrixView<const T> keys, KeyLists& out) const {
        const detail::Rounding<MetricT> rounding(keys.cols, out.format);
        const index_t places = static_cast<index_t>(out.ids.size()), words = rounding.words();
        out.centre.resize(size(keys.cols));
        detail::mean_of<MetricT>(keys, out.centre);
        out.words.resize(size(places * words));
        out.bias.resize(out.ids.size()), out.scale.resize(out.ids.size()), out.offset.resize(out.ids.size());
        out.bound.resize(out.ids.size());
        out.norms.resize(out.ids.size() / size(detail::kPanel));
        std::vector<std::vector<T>> rows(size(executor_.threads()), std::vector<T>(size(detail::kPanel * keys.cols)));
        std::vector<std::vector<float>> scratch(rows.size(),
                                                std::vector<float>(size(detail::filter_stride(keys.cols))));
        std::vector<std::vector<std::uint32_t>> buffer(rows.size(),
                                                       std::vector<std::uint32_t>(size(detail::kPanel * words)));
        executor_.run(places / detail::kPanel, [&](index_t panel, index_t thread) {
            const index_t first = panel * detail::kPanel;
            T* mine = rows[size(thread)].data();
            index_t n = 0;
            for (; n < detail::kPanel && out.ids[size(first + n)] != ListsView::kNone; ++n)
                std::copy_n(keys[out.ids[size(first + n)]].data(), keys.cols, mine + n * keys.cols);
            rounding.pack(MatrixView<const T>(mine, n, keys.cols), out.centre.data(), scratch[size(thread)].data(),
                          buffer[size(thread)].data(),
                          {out.words.data() + first * words, out.bias.data() + first, out.scale.data() + first,
                           out.offset.data() + first, out.bound.data() + first, &out.norms[size(panel)]});
        });
    }
#endif

    KeyRows keys_;
    ListsOptions options_;
    index_t lists_ = 0;
    X executor_;
    ListsDraft draft_;
};

} // namespace mnemo
