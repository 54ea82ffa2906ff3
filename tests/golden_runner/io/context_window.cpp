// SPDX-License-Identifier: MIT
#include "golden.hpp"

#include <mnemo/text/blocks.hpp>

GOLDEN("knnlm.context_window") {
    using namespace mnemo;
    const auto tokens = fixture.tokens("in.tokens");
    const auto sentences = fixture.ids("in.sentence_sizes");
    for (const BreakMode mode : {BreakMode::none, BreakMode::complete, BreakMode::complete_doc, BreakMode::eos}) {
        const std::string prefix = text("out.", name(mode), ".");
        if (fixture.names(prefix).empty()) continue;
        WindowOptions options{.block_size = fixture.integer("block_size"),
                              .context = fixture.integer("context_window"),
                              .mode = mode,
                              .batch = {.max_rows = fixture.integer("batch_size"), .multiple = 1},
                              .pad = static_cast<std::int32_t>(fixture.integer("pad")),
                              .eos = static_cast<std::int32_t>(fixture.integer("eos"))};
        ContextWindows windows({tokens, sentences}, options);
        std::vector<index_t> sizes;
        for (const Block& block : windows.blocks()) sizes.push_back(block.size);
        check.equal(prefix + "block_sizes", sizes);
        WindowBatch batch;
        for (int i = 0; windows.next(batch); ++i) {
            const std::string at = text(prefix, "batch", i, ".");
            check.that(at + "src_tokens",
                       fixture.shape(at + "src_tokens") == std::vector<index_t>{batch.rows, batch.width},
                       "the shape of the batch");
            check.equal(at + "src_tokens", batch.inputs);
            check.equal(at + "target", batch.targets);
            check.equal(at + "start_indices", batch.start);
            check.equal(at + "src_lengths", batch.length);
        }
    }
}
