// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/kernels/key_lists.hpp>
#include <mnemo/retrieve/learn_centroids.hpp>

#include <algorithm>
#include <optional>
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

/// Which keys the centroids are learned from: `rows` of them, each `step`-th of the store from the first on.
struct ListsSample {
    index_t lists = 1, rows = 0, step = 1;

    ListsSample(index_t keys, const ListsOptions& o) {
        if (keys < 1) fail("inverted lists: expected keys, got none");
        if (o.lists < 0 || o.sample < 1 || o.rounds < 1 || o.chunk < 1)
            fail("inverted lists: expected positive options");
        lists = o.lists > 0 ? o.lists : static_cast<index_t>(4 * std::sqrt(static_cast<double>(keys)));
        lists = std::clamp<index_t>(lists, 1, keys);
        step = std::max<index_t>(keys / (lists * o.sample), 1);
        rows = std::min(keys / step, lists * o.sample);
    }
};

/// What a build has done so far; it can be saved and gone on with. One that has had all its rounds may be that of a
/// larger store: its centroids are taken as they are.
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
        : keys_(keys), options_(options), sample_(keys.rows, options), executor_(executor), draft_(std::move(draft)) {
        if (keys.rows >= index_t{ListsView::kNone})
            fail("ListsBuilder: expected fewer than 2^32 - 1 keys, got ", keys.rows);
        if (draft_.rounds == 0) return;
        const bool learned = draft_.rounds == options.rounds && draft_.centroids.rows > 0 &&
                             (options.lists == 0 || options.lists == draft_.centroids.rows);
        if (learned) sample_.lists = draft_.centroids.rows;
        if (draft_.centroids.rows != sample_.lists || draft_.centroids.cols != keys.cols ||
            static_cast<index_t>(draft_.assigned.size()) > keys.rows)
            fail("ListsBuilder: expected a draft of ", sample_.lists, " lists of width ", keys.cols, " for ", keys.rows,
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
            const WholeSample sample{read(0, sample_.rows, sample_.step), executor_};
            detail::learn_centroids(sample, sample_.lists, options_.seed + static_cast<std::uint64_t>(draft_.rounds),
                                    draft_.centroids);
            ++draft_.rounds;
        } else if (static_cast<index_t>(draft_.assigned.size()) < keys_.rows) {
            const auto first = static_cast<index_t>(draft_.assigned.size());
            const Matrix rows = read(first, std::min(options_.chunk, keys_.rows - first), 1);
            detail::append_nearest(draft_.centroids, rows, executor_, draft_.assigned);
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
        std::vector<std::int64_t> count(size(sample_.lists)), next;
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

    struct WholeSample { // for detail::learn_centroids
        Matrix keys;
        const X& executor;
        index_t rows() const { return keys.rows; }
        Matrix at(const std::vector<index_t>& chosen) const {
            Matrix out(static_cast<index_t>(chosen.size()), keys.cols);
            for (index_t i = 0; i < out.rows; ++i) {
                const auto row = keys[chosen[size(i)]];
                std::copy(row.begin(), row.end(), out[i].begin());
            }
            return out;
        }
        std::vector<double> sums(const Matrix& centroids) const {
            std::vector<std::int32_t> nearest;
            detail::append_nearest(centroids, keys, executor, nearest);
            std::vector<double> out(size(centroids.rows * (centroids.cols + 1)));
            detail::add_to_nearest(keys, nearest, out.data());
            return out;
        }
    };
    Matrix read(index_t first, index_t n, index_t step) const {
        Matrix out(n, keys_.cols);
        detail::read_keys<MetricT>(keys_, first, step, out);
        return out;
    }
    // Distances in double, so that only the last rounding is left: it goes up.
    void find_radius(KeyLists& out) const {
        out.radius.assign(size(sample_.lists), 0.0f);
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
    ListsSample sample_;
    X executor_;
    ListsDraft draft_;
};

} // namespace mnemo
