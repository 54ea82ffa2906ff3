// SPDX-License-Identifier: MIT
#include "fairseq_model.hpp"

#include <mnemo/io/datastore.hpp>
#include <mnemo/nn/lm_host.hpp>
#include <mnemo/store/tokens.hpp>

namespace {

using namespace mnemo;

void compare_batch(golden::Check& check, const std::string& prefix, const WindowBatch& batch) {
    check.equal(prefix + "src_tokens", batch.inputs);
    check.equal(prefix + "target", batch.targets);
    check.equal(prefix + "start_indices", batch.start);
}

std::vector<float> widened(const KeyRows& keys) {
    std::vector<float> out(static_cast<std::size_t>(keys.rows * keys.cols));
    for (index_t id = 0; id < keys.rows; ++id)
        keys.read(
            id, std::span(out).subspan(static_cast<std::size_t>(id * keys.cols), static_cast<std::size_t>(keys.cols)));
    return out;
}
std::vector<index_t> values_of(const TokenValued auto& store) {
    std::vector<index_t> out;
    for (index_t id = 0; id < static_cast<index_t>(store.size()); ++id) out.push_back(store.value(id));
    return out;
}

template <class Key> void rebuild(const golden::Fixture& fixture, golden::Check& check, const Datastore& reference) {
    const auto tokens = fixture.tokens("in.tokens");
    const auto sentences = fixture.ids("in.sentence_sizes");
    const WindowOptions options{.block_size = fixture.integer("block_size"),
                                .context = fixture.integer("context_window"),
                                .mode = fixture.text("sample_break_mode") == "complete" ? BreakMode::complete
                                                                                        : BreakMode::none,
                                .batch = {.max_tokens = fixture.integer("max_tokens")},
                                .pad = static_cast<std::int32_t>(fixture.integer("pad")),
                                .eos = static_cast<std::int32_t>(fixture.integer("eos"))};
    ContextWindows windows({tokens, sentences}, options);
    WindowBatch batch;
    for (index_t i = 0; windows.next(batch); ++i) {
        if (i < 3) compare_batch(check, text("out.batch", i, "."), batch);
        if (i + 1 == windows.batches()) compare_batch(check, "out.batchlast.", batch);
    }

    windows.rewind();
    nn::LmHost<> host(golden::model_in(fixture));
    TokenStore<Key> store(host.key_dim());
    const BuiltDatastore built = build_datastore(host, windows, store);
    check.that("out.vals", built.written == fixture.integer("dstore_size"), "as many rows as the reference wrote");
    check.that("out.vals", built.written + built.skipped == fixture.integer("total_tokens"), "every token seen");
    const double tolerance = std::is_same_v<Key, half> ? 2e-3 : 1e-4;
    check.close("out.keys", widened(store.keys()), {tolerance, tolerance});
    check.equal("out.vals", values_of(store));
    check.close("out.keys", widened(reference.keys()), {0, 0});
    check.equal("out.vals", values_of(reference));
}

} // namespace

GOLDEN("knnlm.datastore_roundtrip") {
    const bool small = fixture.flag("dstore_fp16");
    const Datastore reference =
        Datastore::open_raw(fixture.companion("keys_file").string(), fixture.companion("vals_file").string(),
                            {.rows = fixture.integer("dstore_size"),
                             .key_dim = fixture.integer("dimension"),
                             .key_type = small ? KeyType::float16 : KeyType::float32,
                             .value_type = small ? ElementType::int16 : ElementType::int64,
                             .vocab_size = fixture.integer("vocab_size")});
    if (small)
        rebuild<half>(fixture, check, reference);
    else
        rebuild<float>(fixture, check, reference);
}
