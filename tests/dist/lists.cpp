// SPDX-License-Identifier: MIT
// Inverted lists over processes on the loopback: centroids and answers are, bit for bit, those of one store.
#include "../folder.hpp"
#include "shards.hpp"

#include <mnemo/dist/sharded.hpp>
#include <mnemo/dist/sharded_lists.hpp>

#include <filesystem>
#include <fstream>
#include <map>

namespace {

void require_equal_bits(const ListsDraft& a, const ListsDraft& b, const std::string& what) {
    const auto &x = a.centroids.data, &y = b.centroids.data;
    require(a.rounds == b.rounds && x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * 4) == 0,
            what + ": the centroids of one store, bit for bit");
}

// Sharded lists against lists over everything, and against exact search.
template <class MetricT, class S>
void compare_answers(const ShardedStore<S>& store, const PartLists& lists, const auto& whole, const KeyLists& expected,
                     Rows queries, const std::string& how) {
    const index_t all = whole.size() + 5;
    Hits found, expected_hits, nearest;
    index_t missed = 0;
    for (const auto& [nprobe, k] : {std::pair<index_t, index_t>{1, 10}, {1, all}, {4, 10}, {4, 1}, {1000, all}}) {
        const std::string what = text(how, ", nprobe = ", nprobe, ", k = ", k);
        const Sharded<ShardLists<MetricT>> sharded{.inner = {lists, k, nprobe}, .piece = k == 10 ? 24 : 1024};
        found = sharded.retrieve(store, queries, std::move(found));
        expected_hits = Lists<MetricT>{expected.view(), k, nprobe}.retrieve(whole, queries, std::move(expected_hits));
        require_same(found, expected_hits, what);
        nearest = Exact<MetricT>{k}.retrieve(whole, queries, std::move(nearest));
        for (index_t q = 0; q < found.rows(); ++q)
            missed +=
                !std::equal(found.ids(q).begin(), found.ids(q).end(), nearest.ids(q).begin(), nearest.ids(q).end());
        if (nprobe == 1000) require_same(found, nearest, what + ": all lists are the whole store");
        if (nprobe != 4) continue;
        const Sharded<ShardLists<MetricT>> exact{{lists, k, nprobe, Probe::exact}};
        require_same(exact.retrieve(store, queries, std::move(found)), nearest, what + ", exactly");
    }
    // Else the lists would not have been what was searched.
    require(missed > 0 || whole.size() < 100 || queries.rows < 5, how + ": few lists to miss some of the nearest");
}

template <class Key, class MetricT>
void compare(const std::shared_ptr<Ranks>& ranks, const char* how, index_t rows, bool ties, int round,
             ListsOptions options) {
    Matrix keys = random_rows(rows, 7, ties);
    if (ties) // most centroids lose all their keys
        for (index_t i = 0; i < rows; ++i) std::copy_n(keys[i % 9].begin(), kDim, keys[i].begin());
    TokenStore<Key> whole = store_of<Key>(keys, 0, rows);
    const auto [first, last] = range_of(split(how, rows, ranks->size()), ranks->rank());
    // The last rank holds its entries in two parts.
    std::vector<TokenStore<Key>> parts;
    const index_t middle = ranks->rank() + 1 == ranks->size() ? first + (last - first) / 3 : last;
    parts.push_back(store_of<Key>(keys, first, middle));
    if (middle < last) parts.push_back(store_of<Key>(keys, middle, last));
    ShardedStore<TokenStore<Key>> store(ranks, std::move(parts), 42);
    const std::string what = text(how, ", ", rows, " entries, ", options.lists, " lists");

    ListsBuilder<MetricT> one(whole.keys(), options);
    const KeyLists expected = one.build();
    std::vector<ListsDraft> drafts;
    const ListsDraft learned = learn_centroids<MetricT>(store, options, Serial{}, {},
                                                        [&](const ListsDraft& draft) { drafts.push_back(draft); });
    require_equal_bits(learned, one.draft(), what);
    require(static_cast<int>(drafts.size()) == options.rounds, what + ": every round is there to save");
    require_equal_bits(learn_centroids<MetricT>(store, options, Serial{}, drafts[0], [](const ListsDraft&) {}),
                       one.draft(), what + ", interrupted");
    const PartLists lists = build_lists<MetricT>(store, options);
    const Matrix queries = queries_of(ranks->rank(), ties, round);
    compare_answers<MetricT>(store, lists, whole, expected, queries, what);

    // What is appended since belongs to everybody's candidates, as in one store.
    if (round % 2 == 1 || store.size_of_rank(ranks->size() - 1) == 0) return;
    const Matrix more = random_rows(30, 8, ties);
    const std::vector<std::int32_t> tokens(30, 5);
    whole.append(more, tokens);
    auto& shard = store.shard();
    if (ranks->rank() + 1 == ranks->size()) shard.part(shard.parts() - 1).append(more, tokens);
    store.refresh();
    compare_answers<MetricT>(store, lists, whole, expected, queries, what + ", grown");
}

void same_as_one_store(const std::shared_ptr<Ranks>& ranks) {
    int round = 0;
    for (const char* how : {"even", "uneven", "one empty", "all with the last"})
        compare<half, L2>(ranks, how, 2001, false, round++, {.lists = 40, .sample = 8, .rounds = 3, .chunk = 300});
    for (const char* how : {"uneven", "one empty"}) {
        compare<float, InnerProduct>(ranks, how, 700, true, round++, {.lists = 30, .rounds = 2});
        compare<bfloat16, Cosine>(ranks, how, 400, false, round++, {.sample = 2, .rounds = 2, .seed = 5});
        compare<float, L2>(ranks, how, 3, false, round++, {.rounds = 2});               // fewer entries than ranks
        compare<float, L2>(ranks, how, 61, true, round++, {.lists = 300, .rounds = 2}); // and than lists
    }
}

// ---- Files ----

constexpr index_t kRows = 3000;
const ListsOptions kOptions{.lists = 50, .sample = 16, .rounds = 3, .chunk = 200};

void write_store(const RanksOptions& options, const std::string& folder) {
    const auto ranks = std::make_shared<Ranks>(options);
    const auto [first, last] = range_of(split("uneven", kRows, options.world), options.rank);
    DatastoreOptions store;
    store.host.key_dim = kDim, store.host.vocab_size = 60000;
    auto writer = ShardedDatastoreWriter::create(ranks, folder, store);
    std::vector<std::int32_t> tokens;
    for (index_t id = first; id < last; ++id) tokens.push_back(token_of(id));
    writer.append(Rows(random_rows(kRows, 7, false)).slice(first, last - first), tokens);
    writer.close();
}

// Files of lists, and when they were written.
std::map<std::string, std::filesystem::file_time_type> files_in(const std::string& folder) {
    std::map<std::string, std::filesystem::file_time_type> out;
    if (std::filesystem::exists(folder))
        for (const auto& file : std::filesystem::directory_iterator(folder))
            if (file.path().string().find(".tmp") == std::string::npos)
                out[file.path().string()] = file.last_write_time();
    return out;
}

std::vector<index_t> numbers_of(Ranks& ranks, index_t own) {
    std::vector<index_t> out;
    for (const at::Tensor& t : ranks.gather(at::full({1}, own, at::kLong))) out.push_back(t.item<std::int64_t>());
    return out;
}

// Opens the lists, on any number of ranks; what was there before stays as it is.
void open_store(const RanksOptions& options, const std::string& folder) {
    const auto ranks = std::make_shared<Ranks>(options);
    const auto before = files_in(folder + "/lists");
    ranks->gather(at::zeros({1})); // everybody has looked
    const auto store = open_sharded(ranks, folder);
    index_t last = 0, total = 0;
    const PartLists lists =
        open_lists<L2>(store, folder + "/lists", kOptions, Serial{}, [&](index_t done, index_t all) {
            require(done > last || (done == last && done == all), "progress");
            last = done, total = all;
        });
    require(last == total && total == kOptions.rounds * kOptions.lists * kOptions.sample + kRows, "all keys in lists");
    const auto after = files_in(folder + "/lists");
    for (const auto& [path, time] : before)
        require(after.count(path) == 1 && after.at(path) == time, path + ": a file that is used again");

    TokenStore<half> whole(kDim);
    whole.append(random_rows(kRows, 7, false), std::vector<std::int32_t>(static_cast<std::size_t>(kRows), 0));
    const KeyLists expected = ListsBuilder<L2>(whole.keys(), kOptions).build();
    for (const auto& part : lists)
        require(part && std::memcmp(part->centroids, expected.centroids.data(), 4 * expected.centroids.size()) == 0,
                "the centroids of one store, bit for bit");
    compare_answers<L2>(store, lists, whole, expected, queries_of(options.rank, false, 3), "from files");
}

// Only what belongs to these ranks, to another store, or to nobody known, is left; what is open stays as it was.
void remove_others(const RanksOptions& options, const std::string& folder) {
    const auto ranks = std::make_shared<Ranks>(options);
    const auto store = open_sharded(ranks, folder);
    const std::string in = folder + "/lists";
    const PartLists lists = open_lists<L2>(store, in, kOptions);
    const Sharded<ShardLists<L2>> retriever{{lists, 10, 4}};
    const Matrix queries = queries_of(options.rank, false, 3);
    const Hits before = retriever.retrieve(store, queries);
    const std::vector<std::string> strange = {in + "/another-0-5", in + "/notes", in + "/x-1"};
    if (options.rank == 0)
        for (const std::string& path : strange) std::ofstream(path) << "not ours";
    index_t ranges = 0;
    for (const index_t of_rank : numbers_of(*ranks, static_cast<index_t>(lists.size()))) ranges += of_rank;
    const auto all = static_cast<index_t>(files_in(in).size());
    const index_t expected = all - ranges - 1 - static_cast<index_t>(strange.size()); // centroids
    ranks->gather(at::zeros({1}));                                                    // everybody has looked
    require(expected > 0 && remove_other_lists(store, in) == expected, "lists of other ranges are removed");
    const auto left = files_in(in);
    require(static_cast<index_t>(left.size()) == all - expected, "and nothing else");
    ranks->gather(at::zeros({1}));
    require(remove_other_lists(store, in) == 0, "once");
    require_same(retriever.retrieve(store, queries), before, "what is open");
    open_lists<L2>(store, in, kOptions);
    require(files_in(in) == left, "what is left is used");
    ranks->gather(at::zeros({1}));
    if (options.rank == 0)
        for (const std::string& path : strange) std::filesystem::remove(path);
}

// Rank 1 dies when so many keys have been assigned; the others get an Error. What was made is there for the next run.
void die_at(const RanksOptions& options, const std::string& folder, index_t keys) {
    const auto ranks = std::make_shared<Ranks>(options);
    const auto store = open_sharded(ranks, folder);
    try {
        open_lists<L2>(store, folder + "/lists", kOptions, Serial{}, [&](index_t done, index_t) {
            if (options.rank == 1 && done >= keys) std::_Exit(0);
        });
    } catch (const Error&) {
        std::_Exit(0); // the group is of no use
    }
    fail("expected an error when a rank is gone");
}

void refuse(const RanksOptions& options, const std::string& folder) {
    const auto ranks = std::make_shared<Ranks>(options);
    const auto store = open_sharded(ranks, folder);
    const auto error = [&](ListsOptions with, const char* where) {
        return error_of([&] { open_lists<L2>(store, folder + where, with); });
    };
    ListsOptions other = kOptions;
    other.lists = 51;
    const std::string changed = error(other, "/lists");
    require(changed.find("rank 0: mnemo: " + folder + "/lists/centroids: of: expected the store and the options") !=
                std::string::npos,
            "an error for lists of other options, got '" + changed + "'");
    if (options.rank == 1) other.seed = 2;
    other.lists = kOptions.lists;
    const std::string different = error(other, "/other");
    require(different.find("rank 1: seed: expected 1 as on rank 0, got 2") != std::string::npos,
            "an error for ranks of different options, got '" + different + "'");
    // Ranks that would look at other lists than one another, or otherwise.
    const bool odd = options.rank == 1;
    const PartLists lists = open_lists<L2>(store, folder + "/lists", kOptions);
    const Matrix queries = random_rows(3, 5, false);
    const auto search = [&](index_t nprobe, Probe probe) {
        const Sharded<ShardLists<L2>> with{{lists, 10, nprobe, probe}};
        return error_of([&] { with.retrieve(store, queries); });
    };
    const std::string few = search(odd ? 3 : 4, Probe::rescored);
    require(few.find("sharded retrieval: rank 1: nprobe: expected 4 as on rank 0, got 3") != std::string::npos,
            "an error for another nprobe, got '" + few + "'");
    const std::string otherwise = search(4, odd ? Probe::exact : Probe::rescored);
    require(otherwise.find("sharded retrieval: rank 1: probe: expected 1 as on rank 0, got 2") != std::string::npos,
            "an error for another way to probe, got '" + otherwise + "'");
    require(search(4, Probe::rescored).empty(), "no error where ranks agree");
    const Sharded<ShardLists<L2>> without{};
    const std::string missing = error_of([&] { without.retrieve(store, Matrix(3, kDim)); });
    require(missing.find("expected inverted lists, got none") != std::string::npos,
            "an error without lists, got '" + missing + "'");
}

} // namespace

int main() {
    const auto alone = [](auto work) {
        return [work](const RanksOptions& options) { work(std::make_shared<Ranks>(options)); };
    };
    if (std::getenv("RANK") != nullptr) return run_as_rank(alone(same_as_one_store));
    bool passed = true;
    const Folder folder;
    for (const bool through_store : {false, true}) {
        if (!through_store && !Ranks::has_gloo) continue; // no headers of Gloo
        const auto run = [&](const char* what, int world, auto work) {
            passed =
                start(what, {world, through_store, std::chrono::seconds(20), std::chrono::seconds(90)}, work) && passed;
        };
        for (const int world : {1, 2, 3, 4, 8})
            if (!through_store || !Ranks::has_gloo || world == 3) // the same code
                run("lists as in one store", world, alone(same_as_one_store));
        const std::string store = folder / (through_store ? "through" : "gloo");
        const auto in = [&](auto work) { return [=](const RanksOptions& options) { work(options, store); }; };
        run("a store of three ranks", 3, in(write_store));
        // One round; all rounds and some lists.
        for (const index_t keys : {index_t{1}, kOptions.rounds * kOptions.lists * kOptions.sample + kRows / 2})
            run("dies while lists are made", 3, [=](const RanksOptions& options) { die_at(options, store, keys); });
        for (const int world : {3, 1, 2, 4, 8, 3}) run("lists from files", world, in(open_store));
        run("lists that belong to nobody", 2, in(remove_others));
        run("lists that do not fit", 2, in(refuse));
    }
    return passed ? 0 : 1;
}
