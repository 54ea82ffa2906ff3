// SPDX-License-Identifier: MIT
#include "catch.hpp"
#include "noise.hpp"

#include <mnemo/papers/combinations.hpp>
#include <mnemo/papers/trime.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/retrieve/lists.hpp>
#include <mnemo/retrieve/rescore.hpp>
#include <mnemo/store/low_rank.hpp>
#include <mnemo/store/views.hpp>

#include <random>

using namespace mnemo;

// docs/combinations.md in the compiler's words. ---------------------------------------------------------------------

namespace {

using Tokens = TokenStore<>;
using Joined = Both<RingStore, Tokens>;
using Votes = Interpolate<TokenVotes>;
using Learned = Interpolate<TokenVotes, LearnedLambda>;
using Falling = Interpolate<HeadEvidence, GradualUnrolling>;
template <class S, class R, class C, class States = Rows, class Base = MutRows>
inline constexpr bool fits = Composes<LastHidden, S, R, C, States, Base>;

// Stores and retrievers.
static_assert(fits<Tokens, Exact<L2>, Votes> && fits<RingStore, Exact<InnerProduct>, Votes>);
static_assert(fits<WithValues<Tokens>, Exact<L2>, Votes> && fits<FirstEntries<Tokens>, Exact<L2>, Votes>);
static_assert(fits<Joined, RetrieveBoth<Exact<L2>, Exact<L2>>, Votes>);
static_assert(!fits<Joined, Exact<L2>, Votes>);                          // two stores have no one matrix of keys
static_assert(!fits<Tokens, RetrieveBoth<Exact<L2>, Exact<L2>>, Votes>); // one store is not two
static_assert(!fits<LowRankMap, Exact<L2>, Votes>);                      // a map has no entries
static_assert(!fits<Tokens, Recite, Falling>);                           // entries do not recite
static_assert(fits<LowRankMap, Recite, Falling, Rows, PositionedLogProbs>);

// Following pointers.
static_assert(fits<Tokens, Follow<Exact<L2>, L2>, Votes, TrailQueries>);
static_assert(fits<TokenStore<half>, Follow<Rescored<Exact<L2>, L2>, L2>, Votes, TrailQueries>);
static_assert(fits<FirstEntries<Tokens>, Follow<Exact<L2>, L2>, Learned, TrailQueries, FeaturedTargets>);
static_assert(!fits<Joined, Follow<RetrieveBoth<Exact<L2>, Exact<L2>>, L2>, Votes, TrailQueries>);
static_assert(!fits<Tokens, Follow<Exact<L2>, L2>, Votes, Rows>); // rows alone have no state
static_assert(fits<Tokens, Exact<L2>, Votes, TrailQueries>);      // others take the rows and leave the state
static_assert(
    !fits<Tokens, Follow<Selected<Exact<L2>>, L2>, Votes, TrailQueries>); // who skips a search, and who needs one
static_assert(
    !fits<Tokens, Selected<Follow<Exact<L2>, L2>>, Votes, SelectedQueries>); // skipped steps would lose the trail

// Skipping.
static_assert(fits<Tokens, Selected<Exact<L2>>, Votes, SelectedQueries>);
static_assert(fits<Joined, Selected<RetrieveBoth<Exact<L2>, Exact<L2>>>, Learned, SelectedQueries, FeaturedTargets>);
static_assert(fits<WithWeights<Tokens>, Selected<Weighted<Exact<L2>>>, Learned, SelectedQueries, FeaturedTargets>);
static_assert(!fits<Tokens, Selected<Exact<L2>>, Votes, Rows>); // nobody says which rows
static_assert(!fits<LowRankMap, Selected<Recite>, Falling, SelectedQueries, PositionedLogProbs>); // nothing is searched

// Weights of merged entries.
static_assert(fits<WithWeights<Tokens>, Weighted<Exact<L2>>, Votes>);
static_assert(!fits<Tokens, Weighted<Exact<L2>>, Votes>); // no weights
static_assert(fits<WithWeights<Tokens>, Follow<Weighted<Exact<L2>>, L2>, Votes, TrailQueries>);

// Combiners and recalls.
static_assert(!fits<Tokens, Exact<L2>, Falling, Rows, PositionedLogProbs>); // a head wants vectors, not entries
static_assert(!fits<LowRankMap, Recite, Votes>);                            // votes want entries, not vectors

// Stores that are edited.
static_assert(fits<KnowledgeTokens, RetrieveSegments<Exact<L2>>, Votes>);
static_assert(!fits<KnowledgeSnapshot, RetrieveSegments<Exact<L2>>, Votes>); // its values are vectors
static_assert(EditableStore<Tokens> && !EditableStore<RingStore> && !EditableStore<Joined>);

std::vector<std::int32_t> tokens(index_t n) {
    std::vector<std::int32_t> out;
    for (index_t i = 0; i < n; ++i) out.push_back(static_cast<std::int32_t>(i * 7 % 5));
    return out;
}

} // namespace

TEST_CASE("Four memories read as one are one memory of all", "[combinations]") {
    const auto local = std::make_shared<RingStore>(4, 8), far = std::make_shared<RingStore>(4, 32);
    const auto document = std::make_shared<TokenStore<>>(4);
    const auto datastore = std::make_shared<const TokenStore<half>>([] {
        TokenStore<half> s(4);
        s.append(noise(50, 4, 4), tokens(50));
        return s;
    }());
    using Datastore = std::shared_ptr<const TokenStore<half>>;
    const Exact<L2> exact{100};
    const FourMemoriesLm<Datastore, Exact<L2>, Exact<L2>> memory(LastHidden{}, {local, {far, {document, datastore}}},
                                                                 {exact, {exact, {exact, exact}}}, {{}, {0.4f}}, {});
    const Matrix queries = noise(6, 4, 9);
    const auto targets = tokens(6);
    const auto read = [&](const auto& of) {
        std::vector<float> log_p(6, -1.5f);
        of.read(Rows(queries), TargetLogProbs{targets, log_p});
        return log_p;
    };
    const KnnLm<Datastore, Exact<L2>> external(LastHidden{}, datastore, exact, {{}, {0.4f}}, {});
    CHECK(read(memory) == read(external)); // the others are empty

    TokenStore<> all(4);
    const auto write = [&](index_t n, std::uint32_t seed, auto& store) {
        store.append(noise(n, 4, seed), tokens(n));
        all.append(noise(n, 4, seed), tokens(n));
    };
    write(8, 1, *local), write(20, 2, *far), write(5, 3, *document);
    Matrix rounded(50, 4);
    for (index_t i = 0; i < 50; ++i) KeyRows(datastore->keys()).read(i, rounded[i]);
    all.append(rounded, tokens(50));
    const KnnLm<TokenStore<>, Exact<L2>> one(LastHidden{}, all, exact, {{}, {0.4f}}, {});
    const auto joined = read(memory), single = read(one);
    for (std::size_t i = 0; i < 6; ++i) CHECK(joined[i] == Approx(single[i]).margin(1e-5));

    // The same, asked for every other row.
    const SelectiveFourMemoriesLm<Datastore, Exact<L2>, Exact<L2>> selective(
        LastHidden{}, {local, {far, {document, datastore}}}, {{exact, {exact, {exact, exact}}}}, {{}, {0.4f}}, {});
    const std::vector<std::uint8_t> wanted{1, 0, 1, 0, 1, 0};
    std::vector<float> log_p(6, -1.5f);
    selective.read(SelectedQueries{queries, wanted}, TargetLogProbs{targets, log_p});
    for (std::size_t i = 0; i < 6; ++i) CHECK(log_p[i] == (wanted[i] != 0 ? joined[i] : -1.5f));
}

TEST_CASE("Memories read in turn give the second the first's word", "[combinations]") {
    TokenStore<> store(4);
    store.append(noise(30, 4, 1), tokens(30));
    LowRankMap map{noise(2, 4, 2), noise(4, 2, 3), 0.5f};
    const Matrix output = noise(5, 4, 4), queries = noise(3, 4, 5);
    const PemaOverKnnLm<TokenStore<>, Exact<L2>> both{
        {LastHidden{}, store, {10}, {{}, {0.3f}}, {}},
        {LastHidden{}, map, Recite{}, {{{}, KeyRows(output)}, GradualUnrolling{.lambda = 0.5f}}, {}}};
    Matrix log_p(3, 5);
    for (float& x : log_p.data) x = std::log(0.2f);
    Matrix alone = log_p;
    const std::vector<index_t> steps{0, 3, 7}, lengths{8, 8, 8};
    both.read(Rows(queries), Rows(queries), PositionedLogProbs{log_p, steps, lengths});
    both.first.read(Rows(queries), MutRows(alone));
    both.second.read(Rows(queries), PositionedLogProbs{alone, steps, lengths});
    CHECK(log_p.data == alone.data);
    for (index_t row = 0; row < 3; ++row) CHECK(log_sum_exp(log_p[row]) == Approx(0).margin(1e-5));
}

TEST_CASE("An edited store is read as it is now", "[combinations]") {
    TokenStore<> store(4);
    const Matrix keys = noise(20, 4, 1);
    store.append(keys, tokens(20));
    const KnnLm<TokenStore<>, Exact<L2>> memory(LastHidden{}, store, {1}, {{}, {1}}, {});
    KnnLm<TokenStore<>, Exact<L2>> edited = memory;
    const Rows query = Rows(keys).slice(6, 1);
    const auto log_p = [&](const auto& of, std::int32_t token) {
        std::vector<float> p{-1};
        const std::vector<std::int32_t> target{token};
        of.read(query, TargetLogProbs{target, p});
        return p[0];
    };
    const std::int32_t before = store.value(6);
    CHECK(log_p(memory, before) == 0);
    edited.store().replace(6, std::as_const(keys)[6], 4);
    CHECK(before != 4);
    CHECK(log_p(edited, 4) == 0);
    CHECK(log_p(edited, before) == kLogZero);
    edited.store().erase(6);
    CHECK(log_p(edited, edited.store().value(edited.recall(query).ids(0)[0])) == 0);
    CHECK(edited.recall(query).ids(0)[0] != 6);
}

TEST_CASE("A knowledge store is read by votes, as it was when the snapshot was taken", "[combinations]") {
    const auto store = std::make_shared<KnowledgeStore>(4, 0, 1);
    const Matrix keys = noise(20, 4, 1);
    const auto values = tokens(20);
    const std::vector<std::uint16_t> documents(values.begin(), values.end());
    store->append(keys, Matrix(20, 0), "first", {documents.data(), 20, 1});
    const auto memory_of = [&] {
        return KnnLmOfKnowledge<>(LastHidden{}, KnowledgeTokens(store->snapshot()), {{4}, 4}, {{}, {0.5f}}, {});
    };
    const auto before = memory_of();
    TokenStore<half> plain(4);
    plain.append(keys, values);
    const KnnLm<TokenStore<half>, Exact<L2>> same(LastHidden{}, plain, {4}, {{}, {0.5f}}, {});
    const Matrix queries = noise(6, 4, 3);
    const auto targets = tokens(6);
    const auto read = [&](const auto& memory) {
        std::vector<float> log_p(6, -1.5f);
        memory.read(Rows(queries), TargetLogProbs{targets, log_p});
        return log_p;
    };
    const auto unedited = read(before);
    CHECK(unedited == read(same));
    for (index_t id = 0; id < 20; ++id) {
        const std::uint16_t other = static_cast<std::uint16_t>(4 - documents[static_cast<std::size_t>(id)]);
        if (id % 3 == 0)
            store->erase(id);
        else
            store->replace(id, std::as_const(keys)[id], {}, std::span(&other, 1));
    }
    CHECK(read(before) == unedited); // it holds its snapshot
    const auto after = memory_of();
    CHECK(read(after) != unedited);
    const Hits found = after.recall(Rows(queries));
    for (const index_t row : found.ids(0)) {
        const index_t id = after.store().snapshot().id(row);
        CHECK(id % 3 != 0);
        CHECK(after.store().value(row) == 4 - values[static_cast<std::size_t>(id)]);
    }
    const auto bare = std::make_shared<KnowledgeStore>(4, 2);
    bare->append(keys, noise(20, 2, 5));
    CHECK_THROWS_WITH(KnowledgeTokens(bare->snapshot()), Catch::Contains("documents"));
}
