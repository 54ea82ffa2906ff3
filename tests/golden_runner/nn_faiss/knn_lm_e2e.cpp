// SPDX-License-Identifier: MIT
#include "../nn/fairseq_model.hpp"

#include <mnemo/faiss/index.hpp>
#include <mnemo/io/datastore.hpp>
#include <mnemo/nn/lm_host.hpp>
#include <mnemo/retrieve/rescore.hpp>

#include <memory>

namespace {

using namespace mnemo;
using Store = std::shared_ptr<const Datastore>;

/// The fixture's batches, as the reference made them.
class FixtureBatches {
  public:
    explicit FixtureBatches(const golden::Fixture& fixture) : fixture_(fixture) {}
    bool next(WindowBatch& batch) {
        const std::string prefix = text("in.batch", at_++, ".");
        if (!fixture_.has(prefix + "target")) return false;
        batch.rows = fixture_.size(prefix + "target", 0), batch.width = fixture_.size(prefix + "target", 1);
        batch.inputs = fixture_.tokens(prefix + "src_tokens"), batch.targets = fixture_.tokens(prefix + "target");
        batch.start = fixture_.ids(prefix + "start_indices");
        batch.length.clear();
        const auto pad = static_cast<std::int32_t>(fixture_.integer("pad"));
        for (index_t row = 0; row < batch.rows; ++row) {
            const auto targets = batch.target(row);
            const auto scored = std::count_if(targets.begin(), targets.end(), [&](auto t) { return t != pad; });
            batch.length.push_back(batch.start[static_cast<std::size_t>(row)] + scored);
        }
        return true;
    }
    index_t tokens() const { return fixture_.size("in.valid_targets", 0); }
    void rewind() { at_ = 0; }

  private:
    const golden::Fixture& fixture_;
    int at_ = 0;
};

/// For each scored token in sentence order, its place in the reference's search: time-major within a batch.
std::vector<std::size_t> search_places(const golden::Fixture& fixture) {
    std::vector<std::size_t> places;
    FixtureBatches batches(fixture);
    WindowBatch batch;
    while (batches.next(batch)) {
        const std::size_t first = places.size();
        std::size_t next = first;
        std::vector<std::size_t> of_cell(batch.targets.size());
        const auto scored = [&](index_t row, index_t t) {
            const auto r = static_cast<std::size_t>(row);
            return t >= batch.start[r] && t < batch.length[r];
        };
        for (index_t t = 0; t < batch.width; ++t)
            for (index_t row = 0; row < batch.rows; ++row)
                if (scored(row, t)) of_cell[static_cast<std::size_t>(row * batch.width + t)] = next++;
        for (index_t row = 0; row < batch.rows; ++row)
            for (index_t t = 0; t < batch.width; ++t)
                if (scored(row, t)) places.push_back(of_cell[static_cast<std::size_t>(row * batch.width + t)]);
    }
    return places;
}
template <class T>
std::vector<T> in_search_order(const std::vector<T>& rows, const std::vector<std::size_t>& places, std::size_t width) {
    std::vector<T> out(rows.size());
    for (std::size_t i = 0; i < places.size(); ++i)
        for (std::size_t j = 0; j < width; ++j) out[places[i] * width + j] = rows[i * width + j];
    return out;
}

} // namespace

GOLDEN("knnlm.e2e") {
    const bool small = fixture.flag("dstore_fp16");
    const std::string name = fixture.companion("index_file").stem().string();
    const auto beside = [&](const std::string& end) {
        const auto file = fixture.file().parent_path() / (name + end);
        if (!std::filesystem::is_regular_file(file)) fail("missing companion file ", file.filename().string());
        return file.string();
    };
    const Store store = std::make_shared<const Datastore>(
        Datastore::open_raw(beside("_keys.npy"), beside("_vals.npy"),
                            {.rows = fixture.integer("dstore_size"),
                             .key_dim = fixture.integer("dimension"),
                             .key_type = small ? KeyType::float16 : KeyType::float32,
                             .value_type = small ? ElementType::int16 : ElementType::int64,
                             .vocab_size = fixture.integer("vocab_size")}));
    FaissIndex index = FaissIndex::read(fixture.companion("index_file").string(), Metric::l2);
    index.k = fixture.integer("k");
    index.set_nprobe(fixture.integer("probe"));
    const golden::Tolerance tolerance{1e-3, 1e-3};
    const auto places = search_places(fixture);
    const auto lambdas = fixture.values<double>("in.lambdas");
    nn::LmHost<> host(golden::model_in(fixture));
    FixtureBatches batches(fixture);

    const auto run = [&](const std::string& route, auto retriever) {
        const TokenVotes votes{.floor = TokenVotes::kReferenceFloor};
        KnnLm<Store, decltype(retriever)> memory({}, store, retriever, {votes, {}});
        std::vector<float> queries, log_p_host, log_p_memory, distances;
        std::vector<index_t> ids;
        std::vector<std::vector<float>> log_p(lambdas.size());
        WindowBatch batch;
        batches.rewind();
        while (batches.next(batch)) {
            const ScoredTokens scored = host.score(batch);
            std::vector<std::int32_t> targets;
            for (index_t row = 0; row < batch.rows; ++row)
                targets.insert(targets.end(), batch.scored_targets(row).begin(), batch.scored_targets(row).end());
            const auto mixed = [&](float lambda) {
                std::vector<float> out(scored.log_p.begin(), scored.log_p.end());
                memory.combiner().lambda.lambda = lambda;
                memory.read(scored.keys, TargetLogProbs{targets, out});
                return out;
            };
            const auto append = [](std::vector<float>& all, const std::vector<float>& part) {
                all.insert(all.end(), part.begin(), part.end());
            };
            append(log_p_memory, mixed(1));
            for (std::size_t l = 0; l < lambdas.size(); ++l) append(log_p[l], mixed(static_cast<float>(lambdas[l])));
            log_p_host.insert(log_p_host.end(), scored.log_p.begin(), scored.log_p.end());
            for (index_t row = 0; row < scored.keys.rows; ++row)
                queries.insert(queries.end(), scored.keys[row].begin(), scored.keys[row].end());
            const Hits hits = memory.recall(scored.keys);
            for (index_t row = 0; row < hits.rows(); ++row)
                for (std::size_t j = 0; j < static_cast<std::size_t>(index.k); ++j) {
                    const bool missing = j >= hits.ids(row).size();
                    ids.push_back(missing ? -1 : hits.ids(row)[j]);
                    distances.push_back(missing ? std::numeric_limits<float>::max() : -hits.scores(row)[j]);
                }
        }
        check.close("out.queries", in_search_order(queries, places, static_cast<std::size_t>(host.key_dim())),
                    tolerance);
        check.close("out.lm_logp", log_p_host, tolerance);
        check.close("out.knn_logp." + route, log_p_memory, tolerance); // in sentence order, unlike queries and hits
        std::vector<float> all;
        std::vector<double> perplexities;
        for (std::size_t l = 0; l < lambdas.size(); ++l) {
            all.insert(all.end(), log_p[l].begin(), log_p[l].end());
            memory.combiner().lambda.lambda = static_cast<float>(lambdas[l]);
            batches.rewind();
            perplexities.push_back(evaluate(memory, host, batches).combined.perplexity());
        }
        check.close("out.logp." + route, all, tolerance);
        check.close("out.ppl." + route, perplexities, {0, 1e-3});
        if (route == "recompute") return;
        const auto k = static_cast<std::size_t>(index.k);
        check.close("out.knn_dists", in_search_order(distances, places, k), tolerance);
        // Product quantisation gives equal codes, and with them ties: ids are compared as sets.
        auto got = in_search_order(ids, places, k), expected = fixture.ids("out.knn_ids");
        for (std::size_t row = 0; row < places.size(); ++row)
            for (auto* all_ids : {&got, &expected})
                std::sort(all_ids->begin() + static_cast<index_t>(row * k),
                          all_ids->begin() + static_cast<index_t>((row + 1) * k));
        check.equal("out.knn_ids", got, expected);
    };
    run("do_not_recomp_l2", index);
    run("recompute", Rescored<FaissIndex, L2>{index, {}});

    std::vector<float> keys;
    std::vector<index_t> values;
    std::vector<float> row(static_cast<std::size_t>(store->key_dim()));
    for (index_t id = 0; id < store->size(); ++id) {
        store->keys().read(id, row);
        keys.insert(keys.end(), row.begin(), row.end());
        values.push_back(store->value(id));
    }
    check.close("in.keys", keys, {0, 0});
    check.equal("in.vals", values);
}
