// SPDX-License-Identifier: MIT
// Processes on the loopback: what is found in shards is, bit for bit, what is found in one store.
#include "../papers/toy_host.hpp"
#include "shards.hpp"

#include <mnemo/dist/knn_lm.hpp>
#include <mnemo/dist/sharded.hpp>
#include <mnemo/papers/knn_lm.hpp>
#include <mnemo/papers/plug_lm.hpp>
#include <mnemo/retrieve/any.hpp>
#include <mnemo/retrieve/rescore.hpp>
#include <mnemo/store/knowledge.hpp>
#include <mnemo/store/tokens.hpp>

namespace {

template <class Key, class MetricT>
void compare(const std::shared_ptr<Ranks>& ranks, const char* how, index_t rows, bool ties, int round) {
    const Matrix keys = random_rows(rows, 7, ties);
    const TokenStore<Key> whole = store_of<Key>(keys, 0, rows);
    const std::vector<index_t> sizes = split(how, rows, ranks->size());
    const auto [first, last] = range_of(sizes, ranks->rank());
    // The last rank holds its entries in two parts.
    std::vector<TokenStore<Key>> parts;
    const index_t middle = ranks->rank() + 1 == ranks->size() ? first + (last - first) / 3 : last;
    parts.push_back(store_of<Key>(keys, first, middle));
    if (middle < last) parts.push_back(store_of<Key>(keys, middle, last));
    const ShardedStore<TokenStore<Key>> store(ranks, std::move(parts), 42);
    require(store.size() == rows && store.key_dim() == kDim && store.first() == first, "the store as a whole");
    const Matrix queries = queries_of(ranks->rank(), ties, round);
    Hits recycled;
    for (const index_t k : {index_t{1}, index_t{10}, index_t{300}, rows + 5})
        for (const index_t piece : {index_t{1024}, index_t{24}}) {
            const std::string what = text(how, ", ", rows, " entries, k = ", k, ", pieces of ", piece);
            const Sharded<Exact<MetricT>> sharded{.inner = {.k = k}, .piece = piece, .overlap = round % 2 == 0};
            const Hits expected = Exact<MetricT>{k}.retrieve(whole, queries);
            recycled = sharded.retrieve(store, queries, std::move(recycled));
            require_same(recycled, expected, what);
            for (index_t q = 0; q < expected.rows(); ++q)
                for (const index_t id : expected.ids(q))
                    require(store.value(id) == whole.value(id), what + ": the value of every entry found");
        }
    // Messages and hits stay where they are from one retrieval to the next.
    const auto places = [&] {
        mnemo::nn::detail::Buffers& b = store.buffers();
        std::vector<const void*> out;
        for (auto* room : {&b.own_queries, &b.queries[0], &b.queries[1], &b.rounded, &b.answers[0], &b.answers[1],
                           &b.found, &b.rows, &b.wanted, &b.values, &b.got})
            out.push_back(room->take(1, 1).data_ptr());
        out.push_back(b.ids.data());
        for (const Hits& hits : b.hits) out.push_back(hits.rows() > 0 ? hits.scores(0).data() : nullptr);
        if (recycled.rows() > 0) out.push_back(recycled.scores(0).data());
        return out;
    };
    const Sharded<Exact<MetricT>> again{.inner = {.k = rows + 5}, .piece = 24};
    recycled = again.retrieve(store, queries, std::move(recycled));
    const auto before = places();
    for (int i = 0; i < 3; ++i) recycled = again.retrieve(store, queries, std::move(recycled));
    require(places() == before, "a retrieval to allocate nothing that the one before has left");
    // The same by a retriever that is chosen at run time; and with queries that are rounded on the wire.
    using Part = TokenStore<Key>;
    const Sharded<AnyRetriever<Part>> any{AnyRetriever<Part>(Exact<MetricT>{9})};
    require_same(any.retrieve(store, queries), Exact<MetricT>{9}.retrieve(whole, queries), "a retriever of any type");
    for (const QueryWire wire : {QueryWire::float16, QueryWire::bfloat16}) {
        Matrix rounded = queries;
        for (float& x : rounded.data) x = wire == QueryWire::float16 ? to_float(to_half(x)) : to_float(to_bfloat16(x));
        const Sharded<Exact<MetricT>> sharded{.inner = {.k = 10}, .wire = wire};
        require_same(sharded.retrieve(store, queries), Exact<MetricT>{10}.retrieve(whole, rounded),
                     "rounded queries: those of one store for what they were rounded to");
    }
}

void same_as_one_store(const std::shared_ptr<Ranks>& ranks) {
    int round = 0;
    for (const char* how : {"even", "uneven", "one empty", "all with the last"}) {
        compare<float, L2>(ranks, how, 700, true, round++);
        compare<half, InnerProduct>(ranks, how, 3001, false, round++);
        compare<bfloat16, Cosine>(ranks, how, 61, true, round++);
        compare<float, L2>(ranks, how, 3, false, round++); // fewer entries than ranks
    }
    compare<float, L2>(ranks, "even", 0, false, round); // and none at all
}

// ---- What goes wrong on one rank is the same Error on all, in time, and the next call is right again. ----

struct FailsOnce {
    index_t k = 5;
    int rank = 0;
    mutable int calls = 0;
    Hits retrieve(const TokenStore<>& store, Rows queries) const {
        if (rank == 1 && ++calls == 2) fail("disk on fire");
        return Exact<L2>{k}.retrieve(store, queries);
    }
};

// A retriever with a setting of its own.
struct Tuned {
    index_t k = 5;
    std::int64_t effort = 0;
    std::int64_t settings() const { return effort; }
    Hits retrieve(const TokenStore<>& store, Rows queries) const { return Exact<L2>{k}.retrieve(store, queries); }
};

void errors(const RanksOptions& options) {
    const auto ranks = std::make_shared<Ranks>(options);
    const Matrix keys = random_rows(100, 1, false);
    const TokenStore<> whole = store_of<float>(keys, 0, 100);
    const auto [first, last] = range_of(split("even", 100, options.world), options.rank);
    ShardedStore<TokenStore<>> store(ranks, store_of<float>(keys, first, last), 42);
    const Matrix queries = random_rows(40, static_cast<unsigned>(options.rank), false);
    const Hits expected = Exact<L2>{5}.retrieve(whole, queries);
    const auto expect = [&](const std::string& got, std::string_view wanted) {
        require(got.find(wanted) != got.npos, text("'", wanted, "' in the error on every rank, got '", got, "'"));
        require_same(Sharded<Exact<L2>>{{.k = 5}}.retrieve(store, queries), expected, "after an error");
    };
    const bool odd = options.rank == 1;
    const auto search = [&](Sharded<Exact<L2>> with, Rows q) { return error_of([&] { with.retrieve(store, q); }); };
    expect(search({{.k = odd ? 7 : 5}}, queries), "rank 1: k: expected 5 as on rank 0, got 7");
    expect(search({{.k = 5}, odd ? QueryWire::float16 : QueryWire::float32}, queries), "rank 1: type of the queries");
    expect(search({{.k = odd ? -1 : 5}}, queries), "rank 1: expected k >= 0, got -1");
    const Matrix narrow = random_rows(3, 5, false, kDim - 1);
    expect(search({{.k = 5}}, odd ? Rows(narrow) : Rows(queries)), "rank 1: width of the queries: expected 24, got 23");
    Matrix large = queries;
    if (odd) large[3][2] = 1e6f;
    expect(search({{.k = 5}, QueryWire::float16}, large),
           "rank 1: query 3, column 2: expected a number that is finite as float16");
    if (odd) {
        expect(error_of([&] { Sharded<Exact<InnerProduct>>{{.k = 5}}.retrieve(store, queries); }), "rank 1: type of");
    } else {
        expect(search({{.k = 5}}, queries), "rank 1: type of the retriever");
    }
    const auto tuned = [&](std::int64_t effort) { // within another one, too
        return error_of([&] { Sharded<Rescored<Tuned, L2>>{{{5, effort}}}.retrieve(store, queries); });
    };
    expect(tuned(odd ? 7 : 6), "rank 1: settings of the retriever: expected 6 as on rank 0, got 7");
    require(tuned(7).empty(), "no error where settings agree");
    using Chosen = AnyRetriever<TokenStore<>>;
    const auto chosen = [&](Chosen any) { // at run time
        return error_of([&] { Sharded<Chosen>{std::move(any)}.retrieve(store, queries); });
    };
    expect(chosen(Tuned{5, odd ? 7 : 6}), "rank 1: settings of the retriever: expected 6 as on rank 0, got 7");
    expect(chosen(odd ? Chosen(Exact<L2>{5}) : Chosen(Exact<InnerProduct>{5})), "rank 1: type of the retriever");
    expect(chosen(Exact<L2>{odd ? 6 : 5}), "rank 1: k: expected 5 as on rank 0, got 6");
    require(chosen(Tuned{5, 7}).empty(), "no error where the retrievers chosen agree");
    for (const bool overlap : {false, true}) // in the second of several pieces
        expect(error_of([&] {
                   const Sharded<FailsOnce> fails{{.rank = options.rank}, QueryWire::float32, 20, overlap};
                   fails.retrieve(store, queries);
               }),
               "rank 1: mnemo: disk on fire");
    // A shard that has grown, until it is counted anew.
    const std::vector<std::int32_t> token{5};
    const index_t before = store.size();
    if (odd) store.shard().part(0).append(Rows(keys).slice(0, 1), token);
    const std::string grown = search({{.k = 5}}, queries);
    require(grown.find("rank 1: the shard: expected 33 entries") != grown.npos ||
                grown.find("rank 1: the shard: expected 50 entries") != grown.npos,
            "an error for a shard that has grown, got '" + grown + "'");
    store.refresh();
    require(store.size() == before + 1, "one entry more");
    // Shards of different stores.
    const auto joined = [&](TokenStore<> part, std::uint64_t identity) {
        return error_of([&] { ShardedStore<TokenStore<>>(ranks, std::move(part), identity); });
    };
    const std::string other = joined(store_of<float>(keys, first, last), odd ? 43 : 42);
    require(other.find("rank 1 holds a shard of another store: the store's identity: expected 42 as on rank 0, got "
                       "43") != other.npos,
            "an error for another store's shard, got '" + other + "'");
    const std::string wide = joined(odd ? TokenStore<>(kDim + 1) : TokenStore<>(kDim), 0);
    require(wide.find("rank 1 holds a shard of another store: key_dim: expected 24") != wide.npos,
            "an error for another width, got '" + wide + "'");
    const std::string unknown = error_of([&] { (void)store.value(options.rank == 0 ? store.size() - 1 : 0); });
    require(unknown.find("expected an entry of this rank") != unknown.npos, "an error for a value that is elsewhere");
}

// Rank `lost` dies, or stops; everybody else gets an Error in time.
void lose(const RanksOptions& options, int lost, bool dies) {
    const auto ranks = std::make_shared<Ranks>(options);
    const Matrix keys = random_rows(400, 1, false), queries = random_rows(16, 3, false);
    const TokenStore<> whole = store_of<float>(keys, 0, 400);
    const auto [first, last] = range_of(split("even", 400, options.world), options.rank);
    const ShardedStore<TokenStore<>> store(ranks, store_of<float>(keys, first, last));
    const Sharded<Exact<L2>> sharded{{.k = 5}};
    const Hits expected = Exact<L2>{5}.retrieve(whole, queries);
    auto last_answer = std::chrono::steady_clock::now();
    for (int i = 0;; ++i) {
        if (options.rank == lost && i == 3) {
            if (dies) std::_Exit(0);
            std::raise(SIGSTOP);
        }
        std::string error;
        try {
            require_same(sharded.retrieve(store, queries), expected, "before the loss");
        } catch (const Error& e) {
            error = e.what();
        }
        const auto now = std::chrono::steady_clock::now();
        if (error.empty()) {
            require(i <= 3, "no answer without a rank");
            last_answer = now;
            continue;
        }
        require(error.find("ranks: ") != error.npos, "an error that says what, got '" + error + "'");
        require(now - last_answer < 2 * options.timeout + std::chrono::seconds(1), "an error in time");
        require(error_of([&] { sharded.retrieve(store, queries); }).find("an earlier call has failed") != error.npos,
                "an error at once from then on");
        std::_Exit(0); // the group is of no use
    }
}

// ---- Papers over shards ----

void knn_lm(const std::shared_ptr<Ranks>& ranks) {
    std::mt19937 random(3);
    std::vector<std::int32_t> words(900), text_to_score(400);
    for (auto* tokens : {&words, &text_to_score})
        for (std::int32_t& t : *tokens) t = static_cast<std::int32_t>(random() % 30);
    for (std::size_t i = 0; i < 60; ++i) text_to_score[100 + i] = words[300 + i]; // something to remember
    const auto windows_of = [](const std::vector<std::int32_t>& tokens) {
        return ContextWindows({tokens, {}}, {.block_size = 16, .context = 8, .batch = {.max_tokens = 48}});
    };
    ToyHost host;
    TokenStore<> whole(ToyHost::kWidth);
    auto filling = windows_of(words);
    build_datastore(host, filling, whole, 0);
    const auto [first, last] = range_of(split("uneven", whole.size(), ranks->size()), ranks->rank());
    TokenStore<> part(ToyHost::kWidth);
    part.append(Rows(whole.keys()).slice(first, last - first),
                whole.values().subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(last - first)));

    const Interpolate<TokenVotes> combiner{{.temperature = 3}, {.lambda = 0.4f}};
    const KnnLm<TokenStore<>, Exact<L2>> one(LastHidden{}, std::move(whole), Exact<L2>{32}, combiner);
    using Spread = ShardedStore<TokenStore<>>;
    const KnnLm<Spread, Sharded<Exact<L2>>> memory(LastHidden{}, Spread(ranks, std::move(part)), {{.k = 32}}, combiner);
    auto alone = windows_of(text_to_score), together = windows_of(text_to_score);
    const KnnLmScores expected = mnemo::evaluate(one, host, alone);
    const KnnLmScores scores = evaluate(*ranks, memory, host, together);
    require(scores.combined.count() == expected.combined.count(), "every token scored once");
    require(scores.host.log_p() == expected.host.log_p(), "the host's score, in every bit");
    require(scores.combined.log_p() == expected.combined.log_p(), "the score with the memory, in every bit");
    require(expected.combined.perplexity() < expected.host.perplexity(), "a memory that helps");
}

void plug_lm(const std::shared_ptr<Ranks>& ranks) {
    const Matrix keys = random_rows(500, 11, true), values = random_rows(500, 12, false, 40);
    const auto filled = [&](index_t first, index_t last) {
        KnowledgeStore store(kDim, 40);
        for (index_t id = first; id < last; id += 70) { // several segments
            const index_t n = std::min<index_t>(70, last - id);
            store.append(Rows(keys).slice(id, n), Rows(values).slice(id, n));
        }
        for (index_t id = first; id < last; ++id)
            if (id % 11 == 3) store.erase(id - first);
        return store.snapshot();
    };
    const auto [first, last] = range_of(split("one empty", 500, ranks->size()), ranks->rank());
    const auto whole = filled(0, 500);
    const ShardedStore<std::shared_ptr<const KnowledgeSnapshot>> store(ranks, filled(first, last));
    const Matrix queries = queries_of(ranks->rank(), true, 2);
    const auto retriever = plug_lm_retriever(5);
    const Hits found = Sharded{retriever}.retrieve(store, queries);
    require_same(found, retriever.retrieve(*whole, queries), "a knowledge base");
    for (index_t q = 0; q < found.rows(); ++q)
        for (const index_t row : found.ids(q)) {
            const auto got = store.value(row), expected = whole->value(row);
            require(got.size() == 40 && std::memcmp(got.data(), expected.data(), got.size_bytes()) == 0,
                    "the value rows of every entry found");
        }
}

} // namespace

int main() {
    if (std::getenv("RANK") != nullptr) // somebody else has started this: torchrun, or one that uses several networks
        return run_as_rank([](const RanksOptions& options) {
            const auto ranks = std::make_shared<Ranks>(options);
            for (const auto work : {same_as_one_store, knn_lm, plug_lm}) work(ranks);
        });
    bool passed = true;
    const auto alone = [](auto work) {
        return [work](const RanksOptions& options) { work(std::make_shared<Ranks>(options)); };
    };
    for (const bool through_store : {false, true}) {
        if (!through_store && !Ranks::has_gloo) continue; // no headers of Gloo
        const auto run = [&](const char* what, int world, auto work, int lost = -1) {
            const std::chrono::seconds timeout(lost >= 0 ? 2 : 20);
            passed = start(what, {world, through_store, timeout, std::chrono::seconds(90), lost}, work) && passed;
        };
        for (const int world : {1, 2, 3, 4, 8}) {
            if (through_store && Ranks::has_gloo && world != 2 && world != 4) continue; // slow, and the same code
            run("the same as one store", world, alone(same_as_one_store));
            run("kNN-LM", world, alone(knn_lm));
            run("PlugLM", world, alone(plug_lm));
        }
        for (const int world : {2, 3})
            if (world == 3 || !through_store) run("errors", world, errors);
        for (const int lost : {1, 0})
            for (const bool dies : {true, false})
                run(
                    dies ? "a rank that dies" : "a rank that hangs", 3,
                    [lost, dies](const RanksOptions& options) { lose(options, lost, dies); }, lost);
    }
    return passed ? 0 : 1;
}
