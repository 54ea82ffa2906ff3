// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/dist/sharded_store.hpp>
#include <mnemo/kernels/convert.hpp>
#include <mnemo/retrieve/settings.hpp>

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <future>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace mnemo::nn {

/// What queries travel as. float32 is exact. float16 and bfloat16 take half the bytes; the answer is then the exact one
/// for the rounded queries, whose numbers are off by a factor of up to 1 +- 2^-11 and 1 +- 2^-8 (and by 2^-25 near zero
/// for float16, which takes no number above 65504): an inner product moves by at most that times sum |q_j x_j|.
using QueryWire = KeyType;

namespace detail {

/// Hits of one rank's shard for one rank's queries, as they travel: a word that says whether the search went well, then
/// for each query how many it found, and room for `width` scores and rows of the shard, best first.
class HitsOnWire {
  public:
    HitsOnWire(std::uint8_t* data, index_t queries, index_t width) : data_(data), queries_(queries), width_(width) {}
    static index_t bytes(index_t queries, index_t width) { return 8 + queries * (4 + 8 * width); }

    std::int64_t status() const { return load<std::int64_t>(0); }
    void set_status(std::int64_t status) { store(0, status); }
    index_t size(index_t q) const { return load<std::int32_t>(8 + 4 * q); }
    float score(index_t q, index_t i) const { return load<float>(scores() + 4 * (q * width_ + i)); }
    index_t row(index_t q, index_t i) const { return load<std::uint32_t>(rows() + 4 * (q * width_ + i)); }
    /// At most `width` hits; what remains of their room becomes zero.
    void set(index_t q, std::span<const float> scores_found, std::span<const std::uint32_t> rows_found) {
        set_size(q, static_cast<index_t>(scores_found.size()));
        fill(scores() + 4 * q * width_, scores_found);
        fill(rows() + 4 * q * width_, rows_found);
    }
    void clear() { std::memset(data_, 0, static_cast<std::size_t>(bytes(queries_, width_))); }

  private:
    void set_size(index_t q, index_t n) { store(8 + 4 * q, static_cast<std::int32_t>(n)); }
    template <class T> void fill(index_t at, std::span<const T> from) {
        if (!from.empty()) std::memcpy(data_ + at, from.data(), from.size_bytes());
        std::memset(data_ + at + from.size_bytes(), 0, static_cast<std::size_t>(4 * width_) - from.size_bytes());
    }
    index_t scores() const { return 8 + 4 * queries_; }
    index_t rows() const { return scores() + 4 * queries_ * width_; }
    // Messages lie one behind another: nothing is aligned.
    template <class T> T load(index_t at) const {
        T value;
        std::memcpy(&value, data_ + at, sizeof(T));
        return value;
    }
    template <class T> void store(index_t at, T value) { std::memcpy(data_ + at, &value, sizeof(T)); }
    std::uint8_t* data_;
    index_t queries_, width_;
};

inline constexpr auto better_hit = [](const std::pair<float, index_t>& a, const std::pair<float, index_t>& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
};

/// What searches part i of a shard: a retriever with an index for each part hands one out.
decltype(auto) of_part(const auto& retriever, std::size_t i) {
    if constexpr (requires { retriever.of_part(i); })
        return retriever.of_part(i);
    else
        return (retriever);
}

/// The best `width` hits of a rank's parts for each query, in order: f(query, scores, rows of the shard). `spare`
/// [parts] is kept from call to call.
template <class RetrieverT, class S>
void search_parts(const RetrieverT& retriever, const Shard<S>& shard, Rows queries, index_t width,
                  std::vector<Hits>& spare, auto&& f) {
    using Part = typename Shard<S>::part_type;
    using OfPart = std::remove_cvref_t<decltype(of_part(retriever, 0))>;
    using Found = recall_t<OfPart, Part, Rows>;
    std::vector<Found> other; // what cannot be handed back
    std::vector<const Found*> found;
    std::vector<index_t> first;
    spare.resize(shard.parts());
    for (std::size_t i = 0; i < shard.parts(); ++i)
        if (queries.rows > 0 && shard.part(i).size() > 0) {
            first.push_back(shard.first_of_part(i));
            if constexpr (std::same_as<Found, Hits>)
                spare[i] = retrieve_into(of_part(retriever, i), shard.part(i), queries, std::move(spare[i]));
            else
                other.push_back(of_part(retriever, i).retrieve(shard.part(i), queries));
        }
    if constexpr (std::same_as<Found, Hits>) {
        for (std::size_t i = 0; i < shard.parts(); ++i)
            if (queries.rows > 0 && shard.part(i).size() > 0) found.push_back(&spare[i]);
    } else {
        for (const Found& one : other) found.push_back(&one);
    }
    std::vector<std::pair<float, index_t>> hits;
    std::vector<float> scores;
    std::vector<std::uint32_t> rows;
    for (index_t q = 0; q < queries.rows; ++q) {
        scores.clear(), rows.clear();
        for (std::size_t i = 0; i < found.size(); ++i)
            found[i]->visit(q, [&](const Ids auto& ids, std::span<const float> of_ids) {
                const std::size_t before = rows.size(), n = of_ids.size();
                rows.resize(before + n);
                for (std::size_t j = 0; j < n; ++j)
                    rows[before + j] = static_cast<std::uint32_t>(first[i] + static_cast<index_t>(ids[j]));
                scores.insert(scores.end(), of_ids.begin(), of_ids.end());
            });
        bool sorted = true;
        for (std::size_t i = 1; i < rows.size(); ++i)
            sorted &= scores[i - 1] > scores[i] || (scores[i - 1] == scores[i] && rows[i - 1] < rows[i]);
        if (!sorted) {
            hits.clear();
            for (std::size_t i = 0; i < rows.size(); ++i) hits.emplace_back(scores[i], rows[i]);
            std::sort(hits.begin(), hits.end(), better_hit);
            for (std::size_t i = 0; i < rows.size(); ++i)
                scores[i] = hits[i].first, rows[i] = static_cast<std::uint32_t>(hits[i].second);
        }
        const std::size_t n = std::min(static_cast<std::size_t>(width), rows.size());
        f(q, std::span<const float>(scores).first(n), std::span<const std::uint32_t>(rows).first(n));
    }
}

/// The k best of several lists, each best first: best first, ties by lower id. A list is one rank's hits for a query;
/// its ids follow from `first`, and are above those of the lists before it.
class MergeHits {
  public:
    struct List {
        const HitsOnWire* hits;
        index_t query, first;
    };
    /// f(place, id, score, list, place in the list) for each; returns how many.
    index_t operator()(std::span<const List> lists, index_t k, auto&& f) {
        if (lists.size() == 1) return rest_of(lists[0], 0, 0, 0, k, f);
        if (lists.size() == 2) return two(lists, k, f);
        // A tournament without branches, for nobody can guess which list is next: leaves are the lists' best, each node
        // the better one of two.
        const std::size_t leaves = std::bit_ceil(std::max<std::size_t>(lists.size(), 1));
        tree_.assign(2 * leaves, kNone);
        heads_.clear();
        for (std::size_t i = 0; i < lists.size(); ++i) {
            heads_.push_back({0, lists[i].hits->size(lists[i].query)});
            if (heads_[i].size > 0) tree_[leaves + i] = key(lists[i].hits->score(lists[i].query, 0), i);
        }
        for (std::size_t node = leaves; node-- > 1;) tree_[node] = std::min(tree_[2 * node], tree_[2 * node + 1]);
        index_t n = 0;
        for (; n < k && tree_[1] != kNone; ++n) {
            const std::size_t i = tree_[1] & 0xffffffffu;
            const List& list = lists[i];
            Head& head = heads_[i];
            f(n, list.first + list.hits->row(list.query, head.at), list.hits->score(list.query, head.at), i, head.at);
            ++head.at;
            std::size_t node = leaves + i;
            tree_[node] = head.at < head.size ? key(list.hits->score(list.query, head.at), i) : kNone;
            while ((node /= 2) > 0) tree_[node] = std::min(tree_[2 * node], tree_[2 * node + 1]);
        }
        return n;
    }

  private:
    struct Head {
        index_t at, size;
    };
    static index_t rest_of(const List& list, std::size_t number, index_t at, index_t n, index_t k, auto&& f) {
        const index_t last = at + std::min(k - n, list.hits->size(list.query) - at);
        for (; at < last; ++at)
            f(n++, list.first + list.hits->row(list.query, at), list.hits->score(list.query, at), number, at);
        return n;
    }
    static index_t two(std::span<const List> lists, index_t k, auto&& f) {
        const List &a = lists[0], &b = lists[1];
        const index_t of_a = a.hits->size(a.query), of_b = b.hits->size(b.query);
        index_t n = 0, i = 0, j = 0;
        while (n < k && i < of_a && j < of_b) {
            const float from_a = a.hits->score(a.query, i), from_b = b.hits->score(b.query, j);
            const index_t second = from_b > from_a, at = second ? j : i;
            const index_t row_a = a.first + a.hits->row(a.query, i), row_b = b.first + b.hits->row(b.query, j);
            f(n++, second ? row_b : row_a, std::max(from_a, from_b), static_cast<std::size_t>(second), at);
            i += 1 - second, j += second;
        }
        n = rest_of(a, 0, i, n, k, f);
        return rest_of(b, 1, j, n, k, f);
    }
    static constexpr std::uint64_t kNone = ~std::uint64_t{0};
    // Lower for a higher score, then for a list before.
    static std::uint64_t key(float score, std::size_t list) {
        const auto bits = std::bit_cast<std::uint32_t>(score + 0.0f); // one zero
        const std::uint32_t falling = bits & 0x80000000u ? bits : ~(bits | 0x80000000u);
        return std::uint64_t{falling} << 32 | list;
    }
    std::vector<std::uint64_t> tree_;
    std::vector<Head> heads_;
};

} // namespace detail

/// Any retriever over a store that is spread over ranks: every rank hands over its queries (any number, none included),
/// every rank searches its shard for all of them, and each gets the best of all shards for its own: best first, ties by
/// lower id. With Exact inside, ids and scores are bit for bit those of the same entries in one store, however they are
/// spread. It takes the place of RetrieverT in any memory; on a store that is not spread it is RetrieverT.
///
/// retrieve() on a ShardedStore is called by all ranks together and leaves the values of what it found with the store.
/// What differs between ranks (k, widths, the retriever, the shards) and what goes wrong on one (an Error of its
/// search, a query that overflows) is the same Error on all of them, after which the ranks can go on. A rank that is
/// gone is an Error after Ranks' timeout at the latest, and these Ranks are of no use then.
template <class RetrieverT> struct Sharded {
    RetrieverT inner{};
    QueryWire wire = QueryWire::float32;
    index_t piece = 1024; // queries, of all ranks together, that are searched at once
    bool overlap = true;  // a thread searches while the next piece travels

    template <class Store, class Queries>
        requires RetrieverFor<RetrieverT, Store, Queries>
    auto retrieve(const Store& store, const Queries& queries) const {
        return inner.retrieve(store, queries);
    }
    template <class S> Hits retrieve(const ShardedStore<S>& store, Rows queries) const {
        return retrieve(store, queries, Hits{});
    }
    template <class S> Hits retrieve(const ShardedStore<S>& store, Rows queries, Hits hits) const {
        Run<S>(*this, store, queries, hits).all();
        return hits;
    }

  private:
    // One retrieval. Rounds of every rank, in this order: what must agree; the queries of piece 0; then for each piece
    // the queries of the next one and the hits of the one before, while this one is searched; the values.
    template <class S> class Run {
      public:
        Run(const Sharded& self, const ShardedStore<S>& store, Rows queries, Hits& hits)
            : self_(self), store_(store), ranks_(store.ranks()), buffers_(store.buffers()), queries_(queries),
              hits_(hits), world_(static_cast<std::size_t>(ranks_.size())), k_(k_of(self.inner)) {}

        void all() {
            agree();
            hits_.resize(queries_.rows, std::min(k_, store_.size()));
            std::optional<Piece> before;
            Piece now = queries_of(0);
            std::future<void> search; // joined by its destructor, before the piece is gone
            for (index_t i = 0; i < pieces_; ++i) {
                if (self_.overlap && pieces_ > 1)
                    search = std::async(std::launch::async, [this, &now] { find(now); });
                else
                    find(now);
                std::optional<Piece> next;
                if (i + 1 < pieces_) next = queries_of(i + 1);
                if (before) finish(*before);
                if (search.valid()) search.get();
                before = std::move(now);
                if (next) now = std::move(*next);
            }
            if (before) finish(*before);
            store_.fetch(hits_);
        }

      private:
        struct Piece {
            index_t first = 0;                // of the own queries
            std::vector<std::int64_t> counts; // queries of each rank
            std::vector<std::int64_t> bytes;  // of the answers to each rank
            Rows queries;                     // of all ranks
            at::Tensor answers;
            std::size_t buffers = 0; // which of two
            std::string failure;
        };

        void agree() {
            const char* const names[detail::kAgreed] = {"k",
                                                        "width of the queries",
                                                        "type of the queries on the wire",
                                                        "piece",
                                                        "overlap",
                                                        "type of the retriever",
                                                        "key_dim",
                                                        "entries of the store",
                                                        "nprobe",
                                                        "probe",
                                                        "settings of the retriever",
                                                        "queries",
                                                        "entries"};
            std::string failure;
            if (k_ < 0) failure = text("expected k >= 0, got ", k_);
            if (self_.piece < 1) failure = text("expected pieces of at least one query, got ", self_.piece);
            if (queries_.cols != store_.key_dim())
                failure = text("width of the queries: expected ", store_.key_dim(), ", got ", queries_.cols);
            if (store_.shard().entries_now() != store_.local_size())
                failure = text("the shard: expected ", store_.local_size(), " entries as when it was counted, got ",
                               store_.shard().entries_now(), ": call refresh() on all ranks");
            if (failure.empty()) failure = not_representable();
            const RetrieverSettings set = settings_of(self_.inner);
            const auto everybody =
                detail::agree(ranks_, "sharded retrieval", names,
                              {k_, queries_.cols, static_cast<std::int64_t>(self_.wire), self_.piece, self_.overlap,
                               detail::type_number<RetrieverT>(set), store_.key_dim(), store_.size(), set.nprobe,
                               set.probe, set.others, queries_.rows, store_.local_size()},
                              11, failure);
            index_t most = 0;
            for (std::size_t r = 0; r < world_; ++r) {
                counts_.push_back(everybody[r][11]);
                widths_.push_back(std::min<index_t>(k_, everybody[r][12]));
                most = std::max<index_t>(most, counts_.back());
            }
            // Pieces have as many queries of each rank as keep the sum of all below `piece`.
            of_a_rank_ = std::max<index_t>(self_.piece / static_cast<index_t>(world_), 1);
            pieces_ = (most + of_a_rank_ - 1) / of_a_rank_;
        }
        std::string not_representable() const {
            if (self_.wire == QueryWire::float32) return {};
            for (index_t q = 0; q < queries_.rows; ++q) {
                const auto row = queries_[q];
                const std::size_t bad =
                    self_.wire == QueryWire::float16 ? first_not_finite<half>(row) : first_not_finite<bfloat16>(row);
                if (bad < row.size())
                    return text("query ", q, ", column ", bad, ": expected a number that is finite as ",
                                name(self_.wire), ", got ", static_cast<double>(row[bad]));
            }
            return {};
        }

        Piece queries_of(index_t i) {
            Piece part;
            if (pieces_ == 0) return part;
            part.first = std::min(i * of_a_rank_, queries_.rows);
            index_t all = 0;
            for (std::size_t r = 0; r < world_; ++r) {
                part.counts.push_back(std::clamp<index_t>(counts_[r] - i * of_a_rank_, 0, of_a_rank_));
                part.bytes.push_back(
                    detail::HitsOnWire::bytes(part.counts[r], widths_[static_cast<std::size_t>(ranks_.rank())]));
                all += part.counts[r];
            }
            part.buffers = static_cast<std::size_t>(i % 2);
            const Rows own = queries_.slice(part.first, part.counts[static_cast<std::size_t>(ranks_.rank())]);
            if (world_ == 1 && self_.wire == QueryWire::float32) {
                part.queries = own;
                return part;
            }
            const at::Tensor rows =
                buffers_.queries[part.buffers].take(all, queries_.cols * static_cast<index_t>(sizeof(float)));
            auto* numbers = reinterpret_cast<float*>(rows.data_ptr());
            part.queries = Rows(numbers, all, queries_.cols);
            switch (self_.wire) {
            case QueryWire::float32:
                gather<float>(own, part, rows);
                break;
            case QueryWire::float16:
                gather_rounded<half>(own, part, numbers);
                break;
            case QueryWire::bfloat16:
                gather_rounded<bfloat16>(own, part, numbers);
                break;
            }
            return part;
        }
        template <class T> void gather(Rows own, const Piece& part, const at::Tensor& all) {
            const at::Tensor copies = buffers_.own_queries.take(ranks_.copies() * own.rows, all.size(1));
            auto* to = reinterpret_cast<T*>(copies.data_ptr());
            for (index_t r = 0; r < ranks_.copies(); ++r)
                for (index_t q = 0; q < own.rows; ++q, to += own.cols)
                    convert(own[q], std::span<T>(to, static_cast<std::size_t>(own.cols)));
            ranks_.gather_into(all, copies, part.counts);
        }
        template <class T> void gather_rounded(Rows own, const Piece& part, float* to) {
            const at::Tensor rows =
                buffers_.rounded.take(part.queries.rows, queries_.cols * static_cast<index_t>(sizeof(T)));
            gather<T>(own, part, rows);
            const auto n = static_cast<std::size_t>(part.queries.rows * queries_.cols);
            convert(std::span<const T>(reinterpret_cast<const T*>(rows.data_ptr()), n), std::span<float>(to, n));
        }

        // In a thread of its own: this rank's shard, for everybody's queries.
        void find(Piece& part) const {
            const index_t width = widths_[static_cast<std::size_t>(ranks_.rank())];
            part.answers = buffers_.answers[part.buffers].take(
                std::accumulate(part.bytes.begin(), part.bytes.end(), std::int64_t{0}), 1);
            std::vector<detail::HitsOnWire> answers;
            std::uint8_t* data = static_cast<std::uint8_t*>(part.answers.data_ptr());
            for (std::size_t r = 0; r < world_; ++r) {
                answers.emplace_back(data, part.counts[r], width);
                answers.back().set_status(0);
                data += part.bytes[r];
            }
            try {
                std::size_t asker = 0; // of a query: rank, and where its queries begin
                index_t first = 0;
                detail::search_parts(
                    self_.inner, store_.shard(), part.queries, width, buffers_.hits,
                    [&](index_t q, std::span<const float> scores, std::span<const std::uint32_t> rows) {
                        while (q - first >= part.counts[asker]) first += part.counts[asker++];
                        answers[asker].set(q - first, scores, rows);
                    });
            } catch (const std::exception& e) { // goes to all ranks with the answers
                part.failure = *e.what() == '\0' ? "the search failed" : e.what();
                for (detail::HitsOnWire& answer : answers) answer.clear(), answer.set_status(1);
            }
        }

        // The shards' hits for this rank's queries become one list.
        void finish(Piece& part) {
            const index_t own = part.counts[static_cast<std::size_t>(ranks_.rank())];
            std::vector<std::int64_t> from;
            for (const index_t width : widths_) from.push_back(detail::HitsOnWire::bytes(own, width));
            at::Tensor found = part.answers;
            if (world_ > 1) {
                found = buffers_.found.take(std::accumulate(from.begin(), from.end(), std::int64_t{0}), 1);
                ranks_.all_to_all_into(found, part.answers, part.bytes, from);
            }
            std::vector<detail::HitsOnWire> answers;
            std::uint8_t* data = static_cast<std::uint8_t*>(found.data_ptr());
            bool failed = false;
            for (std::size_t r = 0; r < world_; ++r) {
                answers.emplace_back(data, own, widths_[r]);
                failed = failed || answers.back().status() != 0;
                data += from[r];
            }
            if (failed) detail::fail_together(ranks_, "sharded retrieval", part.failure);
            std::vector<detail::MergeHits::List> lists;
            for (index_t q = 0; q < own; ++q) {
                lists.clear();
                for (std::size_t r = 0; r < world_; ++r)
                    lists.push_back({&answers[r], q, store_.first(static_cast<int>(r))});
                const index_t row = part.first + q;
                const auto ids = hits_.room_for_ids(row);
                const auto scores = hits_.room_for_scores(row);
                const auto n = merge_(lists, std::min(k_, store_.size()),
                                      [&](index_t i, index_t id, float score, std::size_t, index_t) {
                                          ids[static_cast<std::size_t>(i)] = id;
                                          scores[static_cast<std::size_t>(i)] = score;
                                      });
                hits_.set_size(row, n);
            }
        }

        const Sharded& self_;
        const ShardedStore<S>& store_;
        Ranks& ranks_;
        detail::Buffers& buffers_;
        Rows queries_;
        Hits& hits_;
        std::size_t world_;
        index_t k_;
        std::vector<index_t> counts_, widths_; // of each rank: queries, and hits a query
        index_t of_a_rank_ = 1, pieces_ = 0;
        detail::MergeHits merge_;
    };
};
template <class R> Sharded(R) -> Sharded<R>;

} // namespace mnemo::nn
