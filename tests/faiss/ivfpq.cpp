// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/faiss/ivfpq_products.hpp>
#include <mnemo/retrieve/recall_report.hpp>
#include <mnemo/store/tokens.hpp>

#include <map>
#include <random>

using namespace mnemo;

namespace {

Matrix random_rows(index_t rows, index_t cols, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    Matrix m(rows, cols);
    for (float& x : m.data) x = normal(random);
    return m;
}

/// What FAISS itself finds, and what we find in the same index: the same ids with the same distances up to rounding,
/// but for ids whose distances cannot be told apart at the end of a row.
void compare(const FaissIndex& index, const TokenStore<>& store, const Matrix& queries) {
    const auto k = std::min(index.k, index.size());
    std::vector<float> distances(static_cast<std::size_t>(queries.rows * k));
    std::vector<mnemo::index_t> ids(distances.size());
    index.index().search(queries.rows, queries.data.data(), k, distances.data(), ids.data());
    const Hits hits = index.retrieve(store, queries);
    REQUIRE(hits.rows() == queries.rows);
    for (index_t row = 0; row < queries.rows; ++row) {
        const auto first = static_cast<std::size_t>(row * k);
        std::map<index_t, float> theirs;
        for (std::size_t j = 0; j < static_cast<std::size_t>(k); ++j)
            if (ids[first + j] >= 0) theirs[ids[first + j]] = -distances[first + j];
        const auto found = hits.ids(row);
        const auto scores = hits.scores(row);
        REQUIRE(found.size() == theirs.size());
        REQUIRE(std::is_sorted(scores.begin(), scores.end(), std::greater<>()));
        if (found.empty()) continue;
        const float margin = 1e-5f * (1 + std::abs(scores.back()));
        std::map<index_t, float> ours;
        for (std::size_t j = 0; j < found.size(); ++j) {
            REQUIRE(ours.emplace(found[j], scores[j]).second); // no id twice
            const auto same = theirs.find(found[j]);
            if (same != theirs.end())
                REQUIRE(std::abs(same->second - scores[j]) <= margin);
            else
                REQUIRE(std::abs(scores[j] - scores.back()) <= margin);
        }
        for (const auto& [id, score] : theirs)
            if (ours.count(id) == 0) REQUIRE(std::abs(score - scores.back()) <= margin);
    }
}

} // namespace

TEST_CASE("inverted lists of quantised residuals are searched as FAISS searches them") {
    for (const index_t code_size : {4, 16, 24}) { // less than, as much as, and more than one part of the tables
        const index_t width = code_size * 3;
        TokenStore<> store(width);
        const Matrix keys = random_rows(2000, width, 1);
        store.append(keys, std::vector<std::int32_t>(2000));
        FaissIndex index = FaissIndex::build(store, {.factory = FaissBuild::ivfpq(12, code_size, 8), .threads = 1});
        REQUIRE(detail::searchable_ivfpq(index.index()) != nullptr);
        const Matrix queries = random_rows(37, width, 2);
        for (const index_t k : {1, 10, 300, 5000})
            for (const index_t probes : {1, 5, 12, 40})
                for (const int threads : {1, 3}) {
                    index.k = k;
                    index.threads = threads;
                    index.set_nprobe(probes);
                    compare(index, store, queries);
                }
    }
}

TEST_CASE("kinds of index that only FAISS can search are left to it") {
    TokenStore<> store(16);
    store.append(random_rows(700, 16, 3), std::vector<std::int32_t>(700));
    for (const char* factory : {"IVF4,PQ8x4", "IVF4,Flat", "PQ8x4", "Flat", "PCA8,IVF4,PQ4"}) {
        FaissIndex index = FaissIndex::build(store, {.factory = factory, .threads = 1});
        CHECK(detail::searchable_ivfpq(index.index()) == nullptr);
        index.k = 20;
        compare(index, store, random_rows(5, 16, 4));
    }
    const FaissIndex product = FaissIndex::build(store, {.factory = "IVF4,PQ8", .metric = Metric::inner_product});
    CHECK(detail::searchable_ivfpq(product.index()) == nullptr);
}

TEST_CASE("codes are summed in the order of their bytes, whatever their number") {
    std::mt19937 random(5);
    for (const std::size_t width : {1, 15, 16, 17, 64})
        for (const std::size_t n : {1, 7, 8, 9, 127, 128, 129, 300}) {
            std::vector<std::uint8_t> codes(n * width);
            for (auto& c : codes) c = static_cast<std::uint8_t>(random());
            const Matrix table = random_rows(static_cast<index_t>(width), 256, static_cast<unsigned>(n));
            std::vector<float> sums(n, 0.5f);
            detail::sum_codes(codes.data(), n, width, table.data.data(), sums.data());
            for (std::size_t i = 0; i < n; ++i) {
                float sum = 0.5f;
                for (std::size_t b = 0; b < width; ++b) sum += table[static_cast<index_t>(b)][codes[i * width + b]];
                REQUIRE(sums[i] == sum);
            }
        }
}

TEST_CASE("lists that are decoded for a batch give nearly what their tables give") {
    for (const index_t part : {1, 2, 3, 4, 8, 20}) { // floats where it is odd
        const index_t width = 8 * part;
        TokenStore<> store(width);
        store.append(random_rows(3000, width, 1), std::vector<std::int32_t>(3000));
        FaissBuild how;
        how.factory = FaissBuild::ivfpq(30, 8, 8);
        FaissIndex index = FaissIndex::build(store, how);
        index.set_nprobe(7);
        index.k = 100;
        const Matrix queries = random_rows(97, width, 2);
        const Hits by_tables = index.retrieve(store, queries);
        const IvfPqProducts<> products(index);
        REQUIRE(products.k == 100);
        const Hits found = products.retrieve(store, queries);
        const bool rounded = simd_level() >= SimdLevel::avx512_bf16 && part % 2 == 0;
        INFO("parts of " << part << ", recall " << mnemo::compare(found, by_tables).recall);
        REQUIRE(mnemo::compare(found, by_tables).recall >= (rounded ? 0.98 : 0.999));
        for (index_t row = 0; row < queries.rows; ++row) {
            std::map<index_t, float> tables;
            for (std::size_t j = 0; j < by_tables.ids(row).size(); ++j)
                tables[by_tables.ids(row)[j]] = by_tables.scores(row)[j];
            REQUIRE(found.ids(row).size() == by_tables.ids(row).size());
            const auto scores = found.scores(row);
            REQUIRE(std::is_sorted(scores.begin(), scores.end(), std::greater<>()));
            // Each factor is off by 2^-9 at most; both norms are below 2 sqrt(width).
            const float margin = (rounded ? 0x1p-6f : 1e-4f) * static_cast<float>(width);
            for (std::size_t j = 0; j < scores.size(); ++j)
                if (const auto same = tables.find(found.ids(row)[j]); same != tables.end())
                    REQUIRE(std::abs(same->second - scores[j]) <= margin);
        }
        // The same bits for any number of threads, rows of something wider, and erased entries left out.
        IvfPqProducts<Threads> threaded(index, {3});
        Matrix wide(queries.rows, width + 5);
        for (index_t i = 0; i < queries.rows; ++i) std::copy(queries[i].begin(), queries[i].end(), wide[i].begin());
        const Hits again = threaded.retrieve(store, Rows(wide.data.data(), wide.rows, width, wide.cols));
        const Hits alone = products.retrieve(store, Rows(queries).slice(50, 1));
        for (index_t row = 0; row < queries.rows; ++row) {
            REQUIRE(std::ranges::equal(again.ids(row), found.ids(row)));
            REQUIRE(std::ranges::equal(again.scores(row), found.scores(row)));
        }
        REQUIRE(std::abs(alone.scores(0)[0] - found.scores(50)[0]) <= 1e-4f * static_cast<float>(width));
        const index_t nearest = found.ids(3)[0];
        store.erase(nearest);
        const Hits without = products.retrieve(store, queries);
        REQUIRE(std::ranges::count(without.ids(3), nearest) == 0);
        REQUIRE(without.ids(3)[0] == found.ids(3)[1]);
        // More than the lists hold; nothing; a query that is no number.
        threaded.k = 3000;
        REQUIRE(threaded.retrieve(store, queries).ids(0).size() < 3000);
        threaded.k = 0;
        REQUIRE(threaded.retrieve(store, queries).ids(0).empty());
        Matrix nan = queries;
        nan[0][0] = std::numeric_limits<float>::quiet_NaN();
        REQUIRE(products.retrieve(store, nan).ids(0).empty());
        REQUIRE(products.retrieve(store, nan).ids(1).size() + 1 >= by_tables.ids(1).size());
    }
}

TEST_CASE("products refuse an index that they cannot search") {
    TokenStore<> store(8);
    store.append(random_rows(500, 8, 1), std::vector<std::int32_t>(500));
    FaissBuild how;
    how.factory = "IVF4,Flat";
    REQUIRE_THROWS_AS(IvfPqProducts<>(FaissIndex::build(store, how)), Error);
    how.factory = FaissBuild::ivfpq(4, 4, 8), how.metric = Metric::inner_product;
    REQUIRE_THROWS_AS(IvfPqProducts<>(FaissIndex::build(store, how)), Error);
}
