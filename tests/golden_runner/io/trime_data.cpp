// SPDX-License-Identifier: MIT
#include "golden.hpp"

#include <mnemo/text/blocks.hpp>
#include <mnemo/text/bm25.hpp>
#include <mnemo/text/shards.hpp>

using namespace mnemo;

GOLDEN("trime.windows") {
    const auto tokens = fixture.tokens("in.tokens");
    const auto sentences = fixture.ids("in.sentence_sizes");
    WindowOptions options{.block_size = fixture.integer("block"), .context = fixture.integer("context_window")};
    options.batch = {.max_rows = fixture.integer("sentences_per_batch"), .multiple = 1};
    options.pad = static_cast<std::int32_t>(fixture.integer("pad_idx"));
    options.eos = static_cast<std::int32_t>(fixture.integer("eos_idx"));
    for (const BreakMode mode : {BreakMode::none, BreakMode::complete, BreakMode::complete_doc, BreakMode::eos})
        if (name(mode) == fixture.text("break_mode")) options.mode = mode;
    ContextWindows windows({tokens, sentences}, options);
    std::vector<index_t> blocks;
    for (const Block& block : windows.blocks()) blocks.insert(blocks.end(), {block.first, block.first + block.size});
    check.equal("out.blocks", blocks);
    WindowBatch batch;
    index_t id = 0;
    for (int t = 0; windows.next(batch); ++t) {
        const std::string at = text("out.w", t, ".");
        check.that(at + "src_tokens", fixture.shape(at + "src_tokens") == std::vector<index_t>{batch.rows, batch.width},
                   "the shape of the batch");
        check.equal(at + "src_tokens", batch.inputs);
        check.equal(at + "target", batch.targets);
        check.equal(at + "start", batch.start);
        std::vector<index_t> ids(static_cast<std::size_t>(batch.rows));
        for (index_t& i : ids) i = id++;
        check.equal(at + "id", ids);
    }
}

GOLDEN("trime.shards") {
    const index_t batches = fixture.integer("n_batches"), world = fixture.integer("world");
    for (index_t rank = 0; rank < world; ++rank) {
        check.equal(text("out.shard", rank),
                    sequential_shard(batches, world, rank, fixture.integer("num_comb_shards")));
        check.equal(text("out.interleaved", rank), interleaved_shard(batches, world, rank));
    }
    std::vector<Block> blocks;
    for (const index_t size : fixture.ids("in.sizes")) blocks.push_back({0, size});
    for (const index_t multiple : {1, 2}) {
        std::vector<index_t> ids, sizes;
        for (const auto& [first, last] :
             cut_batches(blocks, {.max_tokens = fixture.integer("max_tokens"), .multiple = multiple})) {
            sizes.push_back(last - first);
            for (index_t i = first; i < last; ++i) ids.push_back(i);
        }
        check.equal(text("out.batches_mult", multiple), ids);
        check.equal(text("out.batch_sizes_mult", multiple), sizes);
    }
}

GOLDEN("trime.bm25_search") {
    const auto words = fixture.tokens("in.words");
    const auto sizes = fixture.ids("in.doc_sizes");
    const index_t top = fixture.integer("top");
    const Bm25Index index(words, sizes, {fixture.number("k1"), fixture.number("b")});
    Bm25Index::Scratch scratch;
    std::vector<index_t> ids;
    std::vector<double> scores;
    std::size_t at = 0;
    for (const index_t size : sizes) {
        const auto hits = index.search(std::span(words).subspan(at, static_cast<std::size_t>(size)), top, scratch);
        at += static_cast<std::size_t>(size);
        for (index_t i = 0; i < top; ++i) {
            const bool found = i < static_cast<index_t>(hits.size());
            ids.push_back(found ? hits[static_cast<std::size_t>(i)].id : -1);
            scores.push_back(found ? hits[static_cast<std::size_t>(i)].score : 0);
        }
    }
    const auto expected = fixture.floats("out.scores");
    for (std::size_t i = 0; i < scores.size() && i < expected.size(); ++i)
        if (ids[i] < 0) scores[i] = double{expected[i]}; // no hit, no score
    check.equal("out.retrieved", ids);
    check.close("out.scores", scores, {fixture.number("atol"), 0});
}

GOLDEN("trime.bm25_batches") {
    const auto flat = fixture.ids("in.retrieved");
    const auto rows = static_cast<std::size_t>(fixture.size("in.retrieved", 0)), width = flat.size() / rows;
    std::vector<std::vector<index_t>> neighbours(rows);
    for (std::size_t i = 0; i < flat.size(); ++i)
        if (flat[i] >= 0) neighbours[i / width].push_back(flat[i]);
    const auto seed = static_cast<std::uint32_t>(fixture.integer("seed"));
    check.equal("out.shuffle", python_shuffle(static_cast<index_t>(rows), seed));
    check.equal("out.order", chain_neighbours(neighbours, seed, fixture.text("id_type") == "int"));
}
