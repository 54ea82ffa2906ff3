// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/concepts.hpp>
#include <mnemo/core/error.hpp>
#include <mnemo/faiss/ivfpq.hpp>
#include <mnemo/io/file.hpp>
#include <mnemo/kernels/score.hpp>

#include <faiss/AutoTune.h>
#include <faiss/IVFlib.h>
#include <faiss/Index.h>
#include <faiss/IndexIVF.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/impl/FaissException.h>
#include <faiss/impl/io.h>
#include <faiss/index_factory.h>
#include <faiss/index_io.h>
#include <omp.h>

#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace mnemo {

namespace detail {

// Runs f and lets FAISS's exceptions out as Errors that begin with `where`.
template <class F> auto with_faiss(const std::string& where, F f) {
    try {
        return f();
    } catch (const Error&) {
        throw;
    } catch (const std::bad_alloc&) {
        throw;
    } catch (const std::exception& e) {
        fail(where, ": FAISS: ", e.what());
    }
}

// OpenMP's number of threads for a scope; 0 leaves it as it is.
class OmpThreads {
  public:
    explicit OmpThreads(int threads) : before_(omp_get_max_threads()) {
        if (threads > 0) omp_set_num_threads(threads);
    }
    OmpThreads(const OmpThreads&) = delete;
    OmpThreads& operator=(const OmpThreads&) = delete;
    ~OmpThreads() { omp_set_num_threads(before_); }

  private:
    int before_;
};

// FAISS writes numbers one at a time: they are collected before they reach the file.
struct FaissWriter final : ::faiss::IOWriter {
    explicit FaissWriter(AtomicFile& f) : file(f) { buffer.reserve(kBuffer); }
    std::size_t operator()(const void* data, std::size_t size, std::size_t items) override {
        const auto* bytes = static_cast<const std::byte*>(data);
        if (buffer.size() + size * items > kBuffer) flush();
        if (size * items > kBuffer)
            file.write({bytes, size * items});
        else
            buffer.insert(buffer.end(), bytes, bytes + size * items);
        return items;
    }
    void flush() {
        file.write(buffer);
        buffer.clear();
    }
    static constexpr std::size_t kBuffer = std::size_t{1} << 20;
    AtomicFile& file;
    std::vector<std::byte> buffer;
};

} // namespace detail

/// How a FAISS index is built. Any index_factory string of FAISS; `ivfpq` writes that of inverted lists with product
/// quantisation.
struct FaissBuild {
    std::string factory = ivfpq(4096, 64, 8);
    Metric metric = Metric::l2;
    index_t training_rows = 1000000; // drawn without replacement from entries that were not erased
    std::uint64_t seed = 1;          // of that draw and of FAISS's own clustering
    index_t rows_at_a_time = 100000; // read, widened to float and added in one go
    index_t rows_a_save = 1000000;   // the file is written after so many; later after an eighth of the index
    int threads = 0;                 // OpenMP's; 0: as they are

    /// "IVF<centroids>,PQ<code_size>x<bits>": code_size bytes a key with 8 bits, a divisor of the key width.
    static std::string ivfpq(index_t centroids, index_t code_size, index_t bits) {
        return text("IVF", centroids, ",PQ", code_size, "x", bits);
    }
};

/// A FAISS index as a retriever. Its scores are similarities: inner products, negated squared L2 (as far as the index
/// stores it exactly: wrap it in Rescored for exact scores), or cosine. Entries erased from the store are left out
/// after the search, so a row then holds fewer than k; -1, FAISS's missing id, never shows.
///
/// Copies share the index, which searching does not change. Setting parameters and adding do: nobody may search then.
/// FAISS's exceptions, and an index that does not belong to the store, are Errors that name what differs.
class FaissIndex {
  public:
    index_t k = 1024;
    int threads = 0; // OpenMP's during a search; 0: as they are

    /// Takes an index of one's own. Cosine: an inner-product index of normalised rows; queries are normalised here.
    FaissIndex(std::unique_ptr<::faiss::Index> index, Metric metric, std::string name = "FAISS index")
        : index_(std::move(index)), metric_(metric), name_(std::move(name)) {
        expect_metric();
    }

    /// Reads a FAISS file. `metric` is what the file must hold; cosine is stored as inner product. `io_flags` are
    /// FAISS's, for example ::faiss::IO_FLAG_MMAP for inverted lists that are left on disk.
    static FaissIndex read(const std::string& path, Metric metric, int io_flags = ::faiss::IO_FLAG_ONDISK_SAME_DIR) {
        const File readable(path, O_RDONLY); // names the path and the reason before FAISS says it its own way
        return detail::with_faiss(path, [&] {
            return FaissIndex(std::unique_ptr<::faiss::Index>(::faiss::read_index(path.c_str(), io_flags)), metric,
                              path);
        });
    }
    /// Writes a FAISS file that Python's faiss reads, too: whole, or not at all.
    void write(const std::string& path) const {
        detail::with_faiss(path, [&] {
            AtomicFile file(path);
            detail::FaissWriter writer(file);
            ::faiss::write_index(index_.get(), &writer);
            writer.flush();
            file.commit();
        });
    }

    /// Trains on a sample of the store's keys and adds all of them, in memory. `progress(done, rows)` is called after
    /// each addition.
    template <KeyedStore S, class Progress = void (*)(index_t, index_t)>
    static FaissIndex build(
        const S& store, const FaissBuild& how, Progress progress = [](index_t, index_t) {}) {
        FaissIndex built = untrained(store.key_dim(), how);
        built.train(store, how);
        built.add(store, how, [&] { progress(built.size(), store.size()); });
        return built;
    }
    /// The same into a file. What an interrupted run had written at `path` is gone on with: from the rows it holds, or
    /// from `path`.trained when there is no index yet. A file of another width or metric, or with more rows than the
    /// store has, is an Error.
    template <KeyedStore S, class Progress = void (*)(index_t, index_t)>
    static FaissIndex build(
        const S& store, const FaissBuild& how, const std::string& path, Progress progress = [](index_t, index_t) {}) {
        const std::string trained = path + ".trained";
        FaissIndex built = exists(path)      ? read(path, how.metric, 0)
                           : exists(trained) ? read(trained, how.metric, 0)
                                             : untrained(store.key_dim(), how);
        built.expect_width(store.key_dim());
        if (built.size() > store.size())
            fail(built.name_, ": expected at most the store's ", store.size(), " rows, got ", built.size());
        if (!built.index_->is_trained) {
            built.train(store, how);
            built.write(trained);
        }
        built.name_ = path;
        index_t saved = built.size();
        built.add(store, how, [&] {
            if (built.size() - saved >= std::max(how.rows_a_save, built.size() / 8)) {
                built.write(path);
                saved = built.size();
            }
            progress(built.size(), store.size());
        });
        if (saved < built.size() || !exists(path)) built.write(path);
        return built;
    }

    /// FAISS's own knobs by name, "nprobe=32" or "efSearch=64,k_factor_rf=4".
    void set(const std::string& parameters) {
        detail::with_faiss(text(name_, ": ", parameters),
                           [&] { ::faiss::ParameterSpace().set_index_parameters(index_.get(), parameters.c_str()); });
    }
    /// Inverted lists visited for a query.
    void set_nprobe(index_t lists) { set(text("nprobe=", lists)); }
    /// What a search looks at beside k, as a number that retrievers of one memory's shards must share: the inverted
    /// lists visited for a query, 0 where there are none.
    std::int64_t settings() const {
        const ::faiss::IndexIVF* lists = ::faiss::ivflib::try_extract_index_ivf(index_.get());
        return lists == nullptr ? 0 : static_cast<std::int64_t>(lists->nprobe);
    }

    index_t size() const { return index_->ntotal; }
    index_t key_dim() const { return index_->d; }
    Metric metric() const { return metric_; }
    const ::faiss::Index& index() const { return *index_; }

    /// The k entries that the index finds for each query, best first as FAISS orders them. The store may hold values
    /// only: keys are asked of the index.
    Hits retrieve(const MemoryStore auto& store, Rows queries) const { return retrieve(store, queries, Hits{}); }
    Hits retrieve(const MemoryStore auto& store, Rows queries, Hits hits) const {
        expect_width(store.key_dim());
        if constexpr (requires { store.size(); })
            expect_equal(name_ + ": rows, as the store has entries", size(), static_cast<index_t>(store.size()));
        expect_equal(name_ + ": width of the queries", queries.cols, key_dim());
        if (k < 0) fail(name_, ": expected k >= 0, got ", k);
        hits.resize(queries.rows, std::min(k, size()));
        if (queries.rows > 0 && k > 0 && size() > 0) search(queries, erased_ids(store), hits);
        return hits;
    }

  private:
    static FaissIndex untrained(index_t width, const FaissBuild& how) {
        const auto metric = how.metric == Metric::l2 ? ::faiss::METRIC_L2 : ::faiss::METRIC_INNER_PRODUCT;
        return detail::with_faiss(how.factory, [&] {
            std::unique_ptr<::faiss::Index> index(
                ::faiss::index_factory(static_cast<int>(width), how.factory.c_str(), metric));
            return FaissIndex(std::move(index), how.metric, how.factory);
        });
    }

    void expect_metric() const {
        const bool l2 = index_->metric_type == ::faiss::METRIC_L2;
        if (!l2 && index_->metric_type != ::faiss::METRIC_INNER_PRODUCT)
            fail(name_, ": expected an index of L2 or inner product, got FAISS's metric ",
                 static_cast<int>(index_->metric_type));
        if (l2 != (metric_ == Metric::l2))
            fail(name_, ": expected metric ", mnemo::name(metric_), ", got ", l2 ? "l2" : "inner_product");
    }
    void expect_width(index_t store_width) const {
        expect_equal(name_ + ": width of the keys", key_dim(), store_width);
    }

    void train(const KeyedStore auto& store, const FaissBuild& how) {
        if (index_->is_trained) return;
        const KeyRows keys = store.keys();
        const Matrix sample = training_sample(keys, erased_ids(store), how);
        prepare_training(how.seed);
        const detail::OmpThreads omp(how.threads);
        detail::with_faiss(name_, [&] { index_->train(sample.rows, sample.data.data()); });
    }
    // Selection sampling: one pass in the order of ids, every subset equally likely.
    Matrix training_sample(const KeyRows& keys, IdSet erased, const FaissBuild& how) const {
        index_t left = 0;
        for (index_t id = 0; id < keys.rows; ++id) left += !erased.contains(id);
        Matrix sample(std::min(how.training_rows, left), keys.cols);
        std::mt19937_64 random(how.seed);
        index_t taken = 0;
        for (index_t id = 0; taken < sample.rows; ++id) {
            if (erased.contains(id)) continue;
            const auto draw = static_cast<index_t>(random() % static_cast<std::uint64_t>(left--));
            if (draw < sample.rows - taken) read_row(keys, id, sample[taken++]);
        }
        return sample;
    }
    void read_row(const KeyRows& keys, index_t id, std::span<float> out) const {
        keys.visit([&](auto rows) { convert(rows[id], out); });
        if (metric_ == Metric::cosine) normalise(out);
    }
    static void normalise(std::span<float> row) {
        const double norm = detail::query_norm<Cosine>(row.data(), static_cast<index_t>(row.size()));
        if (norm > 0)
            for (float& x : row) x = static_cast<float>(x / norm);
    }
    void prepare_training(std::uint64_t seed) {
        ::faiss::Index* inner = index_.get();
        if (auto* transformed = dynamic_cast<::faiss::IndexPreTransform*>(inner)) inner = transformed->index;
        const auto set = [&](::faiss::ClusteringParameters& p) {
            p.seed = static_cast<int>(seed);
            p.min_points_per_centroid = 1; // FAISS would print what it thinks of fewer
        };
        if (auto* ivf = dynamic_cast<::faiss::IndexIVF*>(inner)) set(ivf->cp);
        const auto quantiser = [&](auto* pq) {
            if (pq == nullptr) return;
            set(pq->pq.cp);
            // The factory's default renumbers the codes for a Hamming filter that nobody asked for: minutes, no gain.
            pq->do_polysemous_training = false;
        };
        quantiser(dynamic_cast<::faiss::IndexIVFPQ*>(inner));
        quantiser(dynamic_cast<::faiss::IndexPQ*>(inner));
    }

    void add(const KeyedStore auto& store, const FaissBuild& how, auto&& added) {
        const KeyRows keys = store.keys();
        const detail::OmpThreads omp(how.threads);
        const index_t missing = std::max<index_t>(keys.rows - size(), 0);
        Matrix rows(std::min(std::max<index_t>(how.rows_at_a_time, 1), missing), keys.cols);
        while (size() < keys.rows) {
            const index_t first = size(), n = std::min(rows.rows, keys.rows - first);
            for (index_t i = 0; i < n; ++i) read_row(keys, first + i, rows[i]);
            detail::with_faiss(name_, [&] { index_->add(n, rows.data.data()); });
            added();
        }
    }

    void search(Rows queries, IdSet erased, Hits& hits) const {
        const auto width = static_cast<std::size_t>(queries.cols);
        const float* rows = queries.data;
        hits.scratch().reset();
        if (metric_ == Metric::cosine || queries.stride != queries.cols) {
            const auto copy = hits.scratch().take<float>(static_cast<std::size_t>(queries.rows) * width);
            for (index_t i = 0; i < queries.rows; ++i) {
                const auto row = copy.subspan(static_cast<std::size_t>(i) * width, width);
                std::copy(queries[i].begin(), queries[i].end(), row.begin());
                if (metric_ == Metric::cosine) normalise(row);
            }
            rows = copy.data();
        }
        const index_t found = std::min(k, size());
        const ::faiss::IndexIVFPQ* ours = detail::searchable_ivfpq(*index_);
        {
            const detail::OmpThreads omp(threads);
            detail::with_faiss(name_, [&] {
                if (ours)
                    detail::search_ivfpq(*ours, {rows, queries.rows, queries.cols}, static_cast<std::size_t>(found),
                                         hits);
                else // the rows of resized hits lie one after another, as FAISS writes them
                    index_->search(queries.rows, rows, found, hits.room_for_scores(0).data(),
                                   hits.room_for_ids(0).data());
            });
        }
        for (index_t row = 0; row < queries.rows; ++row) {
            const auto ids = hits.room_for_ids(row);
            const auto scores = hits.room_for_scores(row);
            const std::size_t filled = ours ? hits.ids(row).size() : ids.size();
            std::size_t n = 0;
            for (std::size_t j = 0; j < filled; ++j) {
                const float score = metric_ == Metric::l2 && !ours ? 0.0f - scores[j] : scores[j];
                if (ids[j] < 0 || erased.contains(ids[j]) || !(score >= std::numeric_limits<float>::lowest())) continue;
                ids[n] = ids[j];
                scores[n++] = score;
            }
            hits.set_size(row, static_cast<index_t>(n));
        }
    }

    std::shared_ptr<::faiss::Index> index_;
    Metric metric_;
    std::string name_; // the file or factory string, for messages
};
static_assert(Retriever<FaissIndex>);

} // namespace mnemo
