// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/retrieve/attribution.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/retrieve/segments.hpp>
#include <mnemo/store/knowledge.hpp>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <random>
#include <thread>

using namespace mnemo;

namespace {
// Row i is first + i in every column: exact in fp16, and a torn row shows.
Matrix counting_rows(index_t rows, index_t cols, index_t first = 0) {
    Matrix m(rows, cols);
    for (index_t i = 0; i < rows; ++i)
        for (float& x : m[i]) x = static_cast<float>(first + i);
    return m;
}
std::vector<float> wide(std::span<const half> row) {
    std::vector<float> out(row.size());
    convert(row, std::span(out));
    return out;
}
std::vector<float> constant(std::size_t n, float x) { return std::vector<float>(n, x); }
std::vector<index_t> living_ids(const KnowledgeSnapshot& s) {
    std::vector<index_t> out;
    for (index_t row = 0; row < s.size(); ++row)
        if (!s.is_erased(row)) out.push_back(s.id(row));
    return out;
}
Matrix random_rows(index_t rows, index_t cols, unsigned seed) {
    std::mt19937 random(seed);
    std::uniform_int_distribution<int> numbers(-8, 8); // small integers: scores are exact, ties are many
    Matrix m(rows, cols);
    for (float& x : m.data) x = static_cast<float>(numbers(random));
    return m;
}
} // namespace

TEST_CASE("knowledge: what was appended is read, in the next snapshot") {
    KnowledgeStore store(3, 5, 2);
    const auto before = store.snapshot();
    const std::vector<std::uint16_t> documents = {1, 2, 3, 0, 5, 6};
    CHECK(store.append(counting_rows(3, 3), counting_rows(3, 5, 10), "wiki", {documents.data(), 3, 2}) == 0);
    CHECK(store.append(counting_rows(2, 3, 3), counting_rows(2, 5, 13), "news", {documents.data(), 2, 2}) == 3);
    const auto after = store.snapshot();
    CHECK(before->size() == 0);
    CHECK(before->version() == 0);
    REQUIRE(after->size() == 5);
    CHECK(after->entries() == 5);
    CHECK(after->version() == 2);
    for (index_t row = 0; row < 5; ++row) {
        CHECK(wide(after->key(row)) == constant(3, static_cast<float>(row)));
        CHECK(wide(after->value(row)) == constant(5, static_cast<float>(10 + row)));
        CHECK(after->id(row) == row);
    }
    CHECK(after->document(1)[0] == 3);
    CHECK(after->document(4)[1] == 0);
    REQUIRE(after->sources().size() == 2);
    CHECK(after->sources()[1].name == "news");
    CHECK(after->source_of(2) == 0);
    CHECK(after->source_of(3) == 1);
    CHECK(store.append(Matrix(0, 3), Matrix(0, 5), "none", {nullptr, 0, 2}) == 5);
    CHECK(store.snapshot()->version() == 2);
}

TEST_CASE("knowledge: a replaced entry keeps its id, an erased one loses it, earlier snapshots keep both") {
    KnowledgeStore store(2, 2);
    store.append(counting_rows(4, 2), counting_rows(4, 2));
    const auto before = store.snapshot();
    store.replace(1, constant(2, 50), constant(2, 60));
    store.erase(2);
    const auto after = store.snapshot();
    CHECK(after->entries() == 3);
    CHECK(living_ids(*after) == std::vector<index_t>{0, 3, 1});
    CHECK(wide(after->key(4)) == constant(2, 50));
    CHECK(wide(after->value(4)) == constant(2, 60));
    CHECK(living_ids(*before) == std::vector<index_t>{0, 1, 2, 3});
    CHECK(wide(before->key(1)) == constant(2, 1));
    CHECK_THROWS_AS(store.erase(2), Error);
    CHECK_THROWS_AS(store.replace(2, constant(2, 0), constant(2, 0)), Error);
    CHECK_THROWS_AS(store.erase(4), Error);
    CHECK_THROWS_AS(store.erase(-1), Error);

    store.replace(1, constant(2, 70), constant(2, 80)); // the new row is one that can be left out too
    CHECK(living_ids(*store.snapshot()) == std::vector<index_t>{0, 3, 1});
    store.compact();
    const auto compact = store.snapshot();
    CHECK(compact->size() == 3);
    CHECK(living_ids(*compact) == std::vector<index_t>{0, 1, 3});
    CHECK(wide(compact->key(1)) == constant(2, 70));
    CHECK(store.append(counting_rows(1, 2), counting_rows(1, 2)) == 4); // an id is not used again
    store.erase(0), store.erase(1), store.erase(3), store.erase(4);
    store.compact();
    CHECK(store.snapshot()->size() == 0);
    CHECK(store.append(counting_rows(1, 2), counting_rows(1, 2)) == 5);
}

TEST_CASE("knowledge: rows that lie elsewhere are used where they are, and edited beside") {
    auto memory = std::make_shared<std::vector<half>>(12);
    for (std::size_t i = 0; i < 12; ++i) (*memory)[i] = to_half(static_cast<float>(i));
    KnowledgeStore store(2, 2);
    store.append(counting_rows(1, 2, 100), counting_rows(1, 2, 100));
    store.append(MatrixView<const half>(memory->data(), 3, 2), MatrixView<const half>(memory->data() + 6, 3, 2), memory,
                 "file");
    const auto first = store.snapshot();
    CHECK(first->key(1).data() == memory->data());
    memory.reset();
    store.replace(2, constant(2, 7), constant(2, 8));
    const auto edited = store.snapshot();
    CHECK(living_ids(*edited) == std::vector<index_t>{0, 1, 3, 2});
    CHECK(edited->source_of(2) == 1);
    CHECK(wide(edited->key(3)) == std::vector<float>{4, 5});
    CHECK(edited->segments().size() == 3);
}

TEST_CASE("knowledge: the whole base is exchanged at once") {
    KnowledgeStore store(2, 3), fresh(2, 3), narrow(1, 3);
    store.append(counting_rows(3, 2), counting_rows(3, 3), "old");
    fresh.append(counting_rows(5, 2, 20), counting_rows(5, 3, 20), "new");
    fresh.erase(0);
    const auto before = store.snapshot();
    store.swap_base(std::move(fresh));
    const auto after = store.snapshot();
    CHECK(before->entries() == 3);
    CHECK(after->entries() == 4);
    CHECK(after->base() == before->base() + 1);
    CHECK(after->version() == before->version() + 1);
    CHECK(after->sources()[0].name == "new");
    CHECK(wide(after->key(1)) == constant(2, 21));
    CHECK_THROWS_AS(store.swap_base(std::move(narrow)), Error);
    CHECK_THROWS_AS(store.swap_base(std::move(store)), Error);
    store.replace(1, constant(2, 9), constant(3, 9)); // what came over can be edited
    CHECK(store.append(counting_rows(1, 2), counting_rows(1, 3)) == 5);
    CHECK(living_ids(*store.snapshot()) == std::vector<index_t>{2, 3, 4, 1, 5});
}

TEST_CASE("knowledge: wrong sizes and numbers change nothing") {
    KnowledgeStore store(2, 2);
    store.append(counting_rows(2, 2), counting_rows(2, 2));
    Matrix large(2, 2);
    large[1][0] = 70000; // not finite in fp16
    const std::string message = [&]() -> std::string {
        try {
            store.append(counting_rows(2, 2), large);
        } catch (const Error& e) {
            return e.what();
        }
        return {};
    }();
    CHECK(message.find("row 1, column 0") != std::string::npos);
    CHECK_THROWS_AS(store.append(counting_rows(2, 3), counting_rows(2, 2)), Error);
    CHECK_THROWS_AS(store.append(counting_rows(2, 2), counting_rows(1, 2)), Error);
    CHECK_THROWS_AS(store.replace(0, constant(2, std::numeric_limits<float>::quiet_NaN()), constant(2, 0)), Error);
    CHECK_THROWS_AS(store.replace(0, constant(2, 0), constant(1, 0)), Error);
    CHECK_THROWS_AS(KnowledgeStore(0, 1), Error);
    CHECK(store.snapshot()->version() == 1);
    CHECK(living_ids(*store.snapshot()) == std::vector<index_t>{0, 1});
    CHECK_THROWS_AS(store.snapshot()->key(2), Error);
}

TEST_CASE("knowledge: search by parts finds what search of the whole finds") {
    const index_t n = 3000, d = 8, k = 7;
    const Matrix keys = random_rows(n, d, 1), values = random_rows(n, 2, 2), queries = random_rows(9, d, 3);
    KnowledgeStore parts(d, 2), whole(d, 2);
    for (index_t i = 0; i < n; i += 500) parts.append(Rows(keys).slice(i, 500), Rows(values).slice(i, 500));
    whole.append(keys, values);
    for (KnowledgeStore* s : {&parts, &whole})
        for (const index_t id : {3, 700, 2999}) s->erase(id);
    REQUIRE(parts.snapshot()->segments().size() > 1);
    REQUIRE(whole.snapshot()->segments().size() == 1);
    const RetrieveSegments search{Exact<InnerProduct>{k}, k};
    const Hits a = search.retrieve(*parts.snapshot(), queries), b = search.retrieve(*whole.snapshot(), queries);
    const Hits c = Exact<InnerProduct>{k}.retrieve(whole.snapshot()->segments()[0], queries);
    for (index_t q = 0; q < queries.rows; ++q) {
        const auto same = [](auto x, auto y) { return std::equal(x.begin(), x.end(), y.begin(), y.end()); };
        CHECK(same(a.ids(q), b.ids(q)));
        CHECK(same(a.scores(q), b.scores(q)));
        CHECK(same(b.ids(q), c.ids(q)));
        CHECK(a.ids(q).size() == static_cast<std::size_t>(k));
    }
    // Packed copies change nothing, with entries that came after them neither.
    for (KnowledgeStore* s : {&parts, &whole}) {
        s->pack();
        s->append(Rows(queries), Rows(values).slice(0, 9));
    }
    CHECK(whole.snapshot()->segments()[0].packed().rows == n);
    const Hits packed = search.retrieve(*parts.snapshot(), queries);
    for (index_t q = 0; q < queries.rows; ++q) CHECK(packed.scores(q)[0] >= a.scores(q)[0]);
    for (index_t q = 0; q < 9; ++q) {
        parts.erase(n + q), whole.erase(n + q);
    }
    const Hits again = search.retrieve(*parts.snapshot(), queries), other = search.retrieve(*whole.snapshot(), queries);
    for (index_t q = 0; q < queries.rows; ++q) {
        const auto same = [](auto x, auto y) { return std::equal(x.begin(), x.end(), y.begin(), y.end()); };
        CHECK((same(again.ids(q), a.ids(q)) && same(again.scores(q), a.scores(q)) && same(other.ids(q), a.ids(q))));
    }
    KnowledgeStore empty(d, 2);
    const Hits none = search.retrieve(*empty.snapshot(), queries);
    REQUIRE(none.rows() == queries.rows);
    CHECK(none.ids(0).empty());
}

TEST_CASE("attribution says which entries fired, by id, and how often a source was used") {
    KnowledgeStore store(1, 1);
    store.append(counting_rows(3, 1), counting_rows(3, 1), "a");
    store.append(counting_rows(2, 1, 3), counting_rows(2, 1, 3), "b");
    store.replace(0, constant(1, 10), constant(1, 10)); // the best now, in row 5
    const auto snapshot = store.snapshot();
    const Matrix queries = counting_rows(2, 1, 1);
    const Hits hits = RetrieveSegments{Exact<InnerProduct>{2}, 2}.retrieve(*snapshot, queries);
    Attribution fired;
    fired.add(4, 1, hits, *snapshot);
    REQUIRE(fired.fired().size() == 4);
    const Fired first = fired.fired()[0], second = fired.fired()[1];
    CHECK((first.sequence == 4 && first.layer == 1 && first.rank == 0 && first.row == 5 && first.id == 0));
    CHECK((first.source == 0 && first.score == 10));
    CHECK((second.rank == 1 && second.id == 4 && second.source == 1));
    const auto uses = fired.uses(2);
    CHECK((uses[0].total == 2 && uses[0].sequences == 2 && uses[1].total == 2 && uses[1].sequences == 2));
    CHECK_THROWS_AS(fired.uses(1), Error);
}

TEST_CASE("knowledge: readers beside an editor never see half an entry") {
    const index_t d = 16;
    KnowledgeStore store(d, d);
    store.append(counting_rows(64, d), counting_rows(64, d));
    std::atomic<bool> done{false};
    std::atomic<index_t> torn{0}, read{0};
    const auto whole = [](std::span<const half> row) {
        return std::all_of(row.begin(), row.end(), [&](half x) { return x == row[0]; });
    };
    std::vector<std::jthread> readers;
    for (int t = 0; t < 2; ++t)
        readers.emplace_back([&] {
            index_t version = 0;
            while (!done) {
                const auto s = store.snapshot();
                if (s->version() < version) ++torn;
                version = s->version();
                index_t living = 0;
                for (index_t row = 0; row < s->size(); ++row) {
                    if (s->is_erased(row)) continue;
                    ++living;
                    if (!whole(s->key(row)) || !whole(s->value(row)) || s->key(row)[0] != s->value(row)[0]) ++torn;
                }
                if (living != s->entries()) ++torn;
                ++read;
            }
        });
    std::mt19937 random(7);
    index_t next = 64, edits = 0;
    // MNEMO_RACE_SECONDS makes it longer, as for a minute under the thread sanitizer.
    const char* const seconds = std::getenv("MNEMO_RACE_SECONDS");
    const auto end = std::chrono::steady_clock::now() +
                     std::chrono::milliseconds(seconds == nullptr ? 300 : 1000 * std::atoi(seconds));
    std::vector<index_t> ids(64);
    std::iota(ids.begin(), ids.end(), 0);
    while (std::chrono::steady_clock::now() < end || read == 0) {
        const auto pick = random() % ids.size();
        const auto number = static_cast<float>(++edits % 2000);
        const std::vector<float> row = constant(static_cast<std::size_t>(d), number);
        switch (random() % 8) {
        case 0:
            CHECK(store.append(Rows(row.data(), 1, d), Rows(row.data(), 1, d)) == next);
            ids.push_back(next++);
            break;
        case 1:
            if (ids.size() > 32) {
                store.erase(ids[pick]);
                ids[pick] = ids.back();
                ids.pop_back();
            }
            break;
        case 2:
            if (edits % 16 == 0) store.compact();
            break;
        case 3:
            if (edits % 64 == 0) {
                KnowledgeStore fresh(d, d);
                fresh.append(counting_rows(64, d), counting_rows(64, d));
                store.swap_base(std::move(fresh));
                ids.resize(64);
                std::iota(ids.begin(), ids.end(), 0);
                next = 64;
            }
            break;
        default:
            store.replace(ids[pick], row, row);
        }
    }
    done = true;
    readers.clear();
    CHECK(torn == 0);
    CHECK(store.snapshot()->entries() == static_cast<index_t>(ids.size()));
}
