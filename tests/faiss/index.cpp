// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <io/files.hpp>
#include <mnemo/faiss/index.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/retrieve/recall_report.hpp>
#include <mnemo/retrieve/rescore.hpp>
#include <mnemo/store/tokens.hpp>
#include <retrieve/random_rows.hpp>

#include <faiss/IndexFlat.h>
#include <faiss/IndexIDMap.h>

using namespace mnemo;

namespace {
template <class Key = float> TokenStore<Key> filled(index_t n, index_t d, unsigned seed) {
    TokenStore<Key> store(d);
    store.append(clustered(n, d, seed), numbered(n));
    return store;
}
FaissBuild small(std::string factory, Metric metric = Metric::l2) {
    FaissBuild how;
    how.factory = std::move(factory);
    how.metric = metric;
    how.rows_at_a_time = 700;
    how.rows_a_save = 1000;
    return how;
}
bool same(const Hits& a, const Hits& b) {
    for (index_t row = 0; row < a.rows(); ++row)
        if (!std::equal(a.ids(row).begin(), a.ids(row).end(), b.ids(row).begin(), b.ids(row).end()) ||
            !std::equal(a.scores(row).begin(), a.scores(row).end(), b.scores(row).begin(), b.scores(row).end()))
            return false;
    return a.rows() == b.rows();
}
} // namespace

TEMPLATE_TEST_CASE("a flat index, re-scored, is exact search", "", L2, InnerProduct, Cosine) {
    const auto store = filled<half>(2000, 24, 1);
    const Matrix q = clustered(70, 24, 2);
    FaissIndex index = FaissIndex::build(store, small("Flat", TestType::metric));
    index.k = 50;
    const Hits expected = Exact<TestType>{40}.retrieve(store, q);
    const Rescored<FaissIndex, TestType> rescored{index};
    const Hits found = rescored.retrieve(store, q);
    for (index_t row = 0; row < 70; ++row)
        for (std::size_t j = 0; j < 40; ++j) {
            REQUIRE(found.ids(row)[j] == expected.ids(row)[j]);
            REQUIRE(found.scores(row)[j] == expected.scores(row)[j]);
        }
    // FAISS's own scores have our sign and scale.
    const Hits raw = index.retrieve(store, q);
    for (index_t row = 0; row < 70; ++row) CHECK(raw.scores(row)[0] == Approx(expected.scores(row)[0]).epsilon(1e-4));
}

TEST_CASE("queries may be rows of something wider") {
    const auto store = filled(300, 8, 1);
    FaissIndex index = FaissIndex::build(store, small("Flat"));
    index.k = 5;
    const Matrix q = clustered(6, 8, 2);
    Matrix wide(6, 11);
    for (index_t i = 0; i < 6; ++i) std::copy(q[i].begin(), q[i].end(), wide[i].begin() + 3);
    const Hits found = index.retrieve(store, Rows(wide.data.data() + 3, 6, 8, 11));
    CHECK(same(found, index.retrieve(store, q)));
    CHECK(index.retrieve(store, Rows(nullptr, 0, 8)).rows() == 0);
}

TEST_CASE("product-quantised lists find most, and more with more probes") {
    const auto store = filled(4000, 32, 3);
    const Matrix q = clustered(100, 32, 4);
    FaissBuild how = small(FaissBuild::ivfpq(32, 16, 8));
    CHECK(how.factory == "IVF32,PQ16x8");
    how.training_rows = 2000;
    FaissIndex index = FaissIndex::build(store, how);
    CHECK(index.size() == 4000);
    index.k = 100;
    const Exact<L2> exact{100};
    double before = 0, one_probe = 0;
    for (const index_t probes : {1, 4, 32}) {
        index.set_nprobe(probes);
        const RecallReport report = recall_report(index, exact, store, Rows(q));
        CHECK(report.queries == 100);
        CHECK(report.lowest <= report.recall);
        CHECK(report.recall >= before);
        before = report.recall;
        if (probes == 1) one_probe = before;
    }
    CHECK(before > one_probe);
    CHECK(before > 0.7);
    index.k = 1000;
    const Rescored<FaissIndex, L2> rescored{index};
    CHECK(recall_report(rescored, exact, store, Rows(q)).recall > 0.99);
}

TEST_CASE("the same seed trains the same index, another seed another sample") {
    const auto store = filled(1500, 8, 5);
    const Matrix q = clustered(30, 8, 6);
    FaissBuild how = small("IVF8,PQ4x8");
    how.training_rows = 500;
    how.threads = 1;
    FaissIndex first = FaissIndex::build(store, how), second = FaissIndex::build(store, how);
    how.seed = 2;
    FaissIndex third = FaissIndex::build(store, how);
    CHECK(same(first.retrieve(store, q), second.retrieve(store, q)));
    CHECK(!same(first.retrieve(store, q), third.retrieve(store, q)));
}

TEST_CASE("erased entries are left out, and lists without enough rows give fewer hits") {
    auto store = filled(400, 8, 7);
    FaissIndex index = FaissIndex::build(store, small("IVF40,Flat"));
    index.k = 400;
    index.set_nprobe(40);
    CHECK(index.settings() == 40); // what ranks compare
    const Matrix q = clustered(9, 8, 8);
    store.erase(17), store.erase(399);
    for (index_t row = 0; row < 9; ++row) {
        const Hits hits = index.retrieve(store, q);
        REQUIRE(hits.ids(row).size() == 398);
        for (const index_t id : hits.ids(row)) CHECK((id != 17 && id != 399));
    }
    index.set("nprobe=1");
    const Hits hits = index.retrieve(store, q);
    for (index_t row = 0; row < 9; ++row) {
        CHECK(hits.ids(row).size() < 398);
        for (const float s : hits.scores(row)) CHECK(s > -1e30f);
    }
}

TEST_CASE("the index is trained on entries that were not erased") {
    TokenStore<> store(4);
    store.append(Matrix(clustered(600, 4, 9)), numbered(600));
    for (index_t id = 0; id < 600; ++id)
        if (id % 2 == 0) store.erase(id);
    FaissBuild how = small("IVF4,Flat");
    how.training_rows = 1000000; // more than there are
    const FaissIndex index = FaissIndex::build(store, how);
    CHECK(index.size() == 600); // ids are the store's
}

TEST_CASE("files are written whole, read back, and gone on with") {
    const Folder folder;
    const std::string path = folder / "keys.index";
    const auto store = filled<half>(3000, 16, 10);
    const Matrix q = clustered(20, 16, 11);
    FaissBuild how = small("IVF16,PQ8x8");
    how.threads = 1;
    FaissIndex whole = FaissIndex::build(store, how);
    whole.k = 50;
    whole.set_nprobe(4);
    const Hits expected = whole.retrieve(store, q);

    // Interrupted after each number of chunks in turn: what was saved is gone on with, and nothing is added twice.
    struct Stop {};
    for (index_t stop = 700; stop <= 3000; stop += 700) {
        ::unlink(path.c_str());
        ::unlink((path + ".trained").c_str());
        index_t saved_at_stop = 0;
        CHECK_THROWS_AS(FaissIndex::build(store, how, path,
                                          [&](index_t done, index_t rows) {
                                              CHECK(rows == 3000);
                                              if (done >= stop) throw Stop{};
                                          }),
                        Stop);
        if (exists(path)) saved_at_stop = FaissIndex::read(path, Metric::l2).size();
        CHECK(exists(path + ".trained"));
        index_t first_done = 0;
        FaissIndex resumed = FaissIndex::build(store, how, path, [&](index_t done, index_t) {
            if (first_done == 0) first_done = done;
        });
        CHECK(first_done == std::min<index_t>(saved_at_stop + 700, 3000));
        FaissIndex read = FaissIndex::read(path, Metric::l2);
        for (FaissIndex* index : {&resumed, &read}) {
            index->k = 50;
            index->set_nprobe(4);
            CHECK(index->size() == 3000);
            CHECK(same(index->retrieve(store, q), expected));
        }
    }
    // A store that has grown: only the new rows are added.
    auto grown = store;
    grown.append(clustered(10, 16, 12), numbered(10));
    int calls = 0;
    CHECK(FaissIndex::build(grown, how, path, [&](index_t, index_t) { ++calls; }).size() == 3010);
    CHECK(calls == 1);
    CHECK(FaissIndex::read(path, Metric::l2).size() == 3010);
    CHECK_THROWS_WITH(FaissIndex::build(store, how, path),
                      Catch::Contains("expected at most the store's 3000 rows, got 3010"));
}

TEST_CASE("an index that does not belong is refused by name") {
    const Folder folder;
    const std::string path = folder / "a.index";
    const auto store = filled(100, 8, 13);
    FaissIndex::build(store, small("Flat", Metric::inner_product)).write(path);
    CHECK_THROWS_WITH(FaissIndex::read(path, Metric::l2),
                      Catch::Contains("a.index: expected metric l2, got inner_product"));
    FaissIndex index = FaissIndex::read(path, Metric::inner_product);
    const auto other = filled(99, 8, 13);
    CHECK_THROWS_WITH(index.retrieve(other, Matrix(1, 8)),
                      Catch::Contains("a.index: rows, as the store has entries: expected 99, got 100"));
    const auto wide = filled(100, 9, 13);
    CHECK_THROWS_WITH(index.retrieve(wide, Matrix(1, 9)),
                      Catch::Contains("a.index: width of the keys: expected 9, got 8"));
    CHECK_THROWS_WITH(index.retrieve(store, Matrix(1, 9)),
                      Catch::Contains("a.index: width of the queries: expected 8, got 9"));
    CHECK_THROWS_WITH(FaissIndex::read(folder / "none.index", Metric::l2), Catch::Contains("none.index"));
    index.k = -1;
    CHECK_THROWS_WITH(index.retrieve(store, Matrix(1, 8)), Catch::Contains("expected k >= 0, got -1"));
    CHECK_THROWS_AS(FaissIndex(std::make_unique<::faiss::IndexFlat>(8, ::faiss::METRIC_L1), Metric::l2), Error);
}

TEST_CASE("FAISS's own complaints are Errors") {
    const Folder folder;
    const auto store = filled(100, 8, 14);
    CHECK_THROWS_WITH(FaissIndex::build(store, small("IVF8,PQ3x8")), Catch::Contains("mnemo: IVF8,PQ3x8: FAISS: "));
    CHECK_THROWS_WITH(FaissIndex::build(store, small("no such index")),
                      Catch::Contains("mnemo: no such index: FAISS: "));
    CHECK_THROWS_WITH(FaissIndex::build(store, small("IVF101,Flat")), Catch::Contains("FAISS: "));
    FaissIndex flat = FaissIndex::build(store, small("Flat"));
    CHECK_THROWS_WITH(flat.set("nprobe=4"), Catch::Contains("nprobe=4: FAISS: "));
    const std::string path = folder / "torn.index";
    FaissIndex::build(store, small("IVF4,Flat")).write(path);
    const std::string bytes = read_file(path);
    for (const std::size_t n : {std::size_t{0}, std::size_t{3}, std::size_t{30}, bytes.size() / 2, bytes.size() - 1}) {
        atomic_write(path, std::string_view(bytes).substr(0, n));
        CHECK_THROWS_AS(FaissIndex::read(path, Metric::l2), Error);
        CHECK_THROWS_AS(FaissIndex::build(store, small("IVF4,Flat"), path), Error); // never starts again by itself
    }
}

TEST_CASE("the number of threads is set for a search and given back") {
    const auto store = filled(300, 8, 15);
    FaissIndex index = FaissIndex::build(store, small("IVF4,Flat"));
    const int before = omp_get_max_threads();
    const Matrix q = clustered(40, 8, 16);
    const Hits one = [&] {
        index.threads = 1;
        return index.retrieve(store, q);
    }();
    index.threads = before + 3;
    CHECK(same(index.retrieve(store, q), one));
    CHECK(omp_get_max_threads() == before);
}

TEST_CASE("an index of one's own is taken as it is") {
    auto inner = std::make_unique<::faiss::IndexIDMap2>(new ::faiss::IndexFlatL2(2));
    inner->own_fields = true;
    const std::vector<float> rows = {0, 0, 3, 4};
    const std::vector<std::int64_t> ids = {1, 0};
    inner->add_with_ids(2, rows.data(), ids.data());
    FaissIndex index(std::move(inner), Metric::l2, "mine");
    index.k = 9;
    TokenStore<> store(2);
    store.append(Rows(rows.data(), 2, 2), numbered(2));
    const Hits hits = index.retrieve(store, Matrix(1, 2));
    REQUIRE(hits.ids(0).size() == 2);
    CHECK(hits.ids(0)[0] == 1);
    CHECK(hits.scores(0)[1] == -25);
}

TEST_CASE("recall is counted by ids") {
    Hits exact, found;
    for (const index_t id : {1, 2, 3, 4}) exact.push(id, 0);
    exact.end_row(), exact.end_row();
    for (const index_t id : {4, 9, 2}) found.push(id, 0);
    found.end_row(), found.end_row();
    const RecallReport report = compare(found, exact);
    CHECK(report.recall == 0.5);
    CHECK(report.lowest == 0.5);
    CHECK(report.first == 0.5);
    CHECK(compare(Hits{}, Hits{}).recall == 1);
    CHECK_THROWS_AS(compare(Hits{}, exact), Error);
}
