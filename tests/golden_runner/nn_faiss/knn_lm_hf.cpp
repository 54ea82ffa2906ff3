// SPDX-License-Identifier: MIT
#include "../../folder.hpp"
#include "../nn/fairseq_model.hpp"

#include <mnemo/faiss/index.hpp>
#include <mnemo/nn/hugging_face.hpp>
#include <mnemo/papers/knn_lm.hpp>
#include <mnemo/retrieve/rescore.hpp>
#include <mnemo/store/tokens.hpp>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

namespace {

using namespace mnemo;
using nn::Tap;

// The GPT-2 of a fixture, by way of a model folder.
nn::HuggingFaceLm gpt2_in(const golden::Fixture& fixture) {
    const Folder folder;
    std::vector<Entry> entries;
    for (Entry entry : fixture.tensors().entries()) {
        if (entry.name.rfind("w.", 0) != 0) continue;
        entry.name = entry.name.substr(2);
        entries.push_back(std::move(entry));
    }
    write_safetensors(folder.path() + "/model.safetensors", entries, {});
    const nlohmann::json config = {{"model_type", "gpt2"},
                                   {"vocab_size", fixture.integer("vocab_size")},
                                   {"n_embd", fixture.size("w.transformer.wte.weight", 1)},
                                   {"n_positions", fixture.size("w.transformer.wpe.weight", 0)},
                                   {"n_layer", fixture.integer("n_layer")},
                                   {"n_head", fixture.integer("n_head")},
                                   {"n_inner", fixture.size("w.transformer.h.0.mlp.c_fc.weight", 1)},
                                   {"layer_norm_epsilon", fixture.number("layer_norm_eps")},
                                   {"activation_function", fixture.text("activation")}};
    atomic_write(folder.path() + "/config.json", config.dump());
    return nn::load_hugging_face(folder.path());
}
std::vector<float> floats(const at::Tensor& t) {
    const at::Tensor flat = t.contiguous();
    return {flat.data_ptr<float>(), flat.data_ptr<float>() + flat.numel()};
}
// Mean negative log-likelihood of labels[t + 1] under the row t; -100 is no label.
double loss(const at::Tensor& rows, const at::Tensor& labels) {
    const std::int64_t v = rows.size(2);
    return at::cross_entropy_loss(rows.narrow(1, 0, rows.size(1) - 1).reshape({-1, v}),
                                  labels.narrow(1, 1, labels.size(1) - 1).reshape(-1), {}, at::Reduction::Mean, -100)
        .item<double>();
}

} // namespace

// knn-transformers: rows whose next token is a label get the mixture's log-probabilities, the others stay as they are.
GOLDEN("knnlm.hf_e2e") {
    const at::NoGradGuard no_grad;
    const double bound = fixture.number("tolerance");
    const golden::Tolerance tolerance{bound, 0};
    const auto model = gpt2_in(fixture);
    const at::Tensor tokens = golden::ids_of(fixture, "in.input_ids"), labels = golden::ids_of(fixture, "in.labels");
    const auto states = model->states(tokens, {model->tap("ffn_in"), Tap{Tap::prehead, 0}});
    const at::Tensor keys = states[0], logits = model->logits(states[1]);
    check.close("out.hidden", floats(keys), tolerance);
    check.close("out.base_logits", floats(logits), tolerance);
    check.close("out.base_loss", std::vector{loss(logits, labels)}, tolerance);

    // The memory: the fixture's datastore behind its index.
    TokenStore<half> store(keys.size(2));
    const Matrix stored = fixture.matrix("in.keys");
    store.append(stored, fixture.tokens("in.vals"));
    FaissIndex index = FaissIndex::read(fixture.companion("index_file").string(), Metric::l2);
    index.k = fixture.integer("k");
    index.set_nprobe(fixture.integer("probe"));

    // Which rows ask: those whose next label counts.
    const at::Tensor asks = at::zeros_like(tokens, at::kBool);
    asks.narrow(1, 0, tokens.size(1) - 1).copy_(labels.narrow(1, 1, labels.size(1) - 1).ne(-100));
    const at::Tensor queries = keys.index({asks}).contiguous(),
                     mixed = at::log_softmax(logits.index({asks}), -1).contiguous();
    check.close("out.queries", floats(queries), tolerance);
    // What the index finds, in its own distances; product quantisation gives ties, so ids are compared as sets.
    const Hits hits = index.retrieve(store, nn::as_rows(queries));
    std::vector<float> distances;
    std::vector<index_t> ids, expected = fixture.ids("out.ids");
    const auto sort_from = [](std::vector<index_t>& all, std::size_t first, std::size_t end) {
        std::sort(all.begin() + static_cast<index_t>(first), all.begin() + static_cast<index_t>(end));
    };
    for (index_t row = 0; row < hits.rows(); ++row) {
        const std::size_t first = ids.size();
        ids.insert(ids.end(), hits.ids(row).begin(), hits.ids(row).end());
        for (const float score : hits.scores(row)) distances.push_back(-score);
        sort_from(ids, first, ids.size());
        sort_from(expected, first, std::min(ids.size(), expected.size()));
    }
    check.equal("out.ids", ids, expected);
    check.close("out.dists", distances, tolerance);
    const auto mix = [&](auto retriever) {
        Memory memory(LastHidden{}, std::move(store), std::move(retriever),
                      Interpolate{TokenVotes{.temperature = static_cast<float>(fixture.number("knn_temp"))},
                                  Fixed{static_cast<float>(fixture.number("lmbda"))}});
        memory.read(nn::as_rows(queries), nn::as_mut_rows(mixed));
    };
    fixture.flag("recompute_dists") ? mix(Rescored<FaissIndex, L2>{index, {}}) : mix(index);
    const at::Tensor all = logits.clone();
    all.index_put_({asks}, mixed);
    check.close("out.logits", floats(all), tolerance);
    check.close("out.loss", std::vector{loss(all, labels)}, tolerance);
}
