// SPDX-License-Identifier: MIT
#include "golden.hpp"

#include <mnemo/retrieve/per_head.hpp>
#include <mnemo/store/chunk_ring.hpp>
#include <mnemo/text/passages.hpp>

#include <limits>

using namespace mnemo;

namespace {

// Keys and values [heads, slots, chunk, head_dim] and means [heads, chunks, head_dim], oldest chunk first, as the
// reference has them: what is not in use is zero.
struct Laid {
    std::vector<float> keys, values, means;
};
Laid laid_out(const ChunkRing<half>& ring) {
    const index_t c = ring.options().chunk, d = ring.head_dim();
    const auto size = static_cast<std::size_t>(ring.heads() * ring.slots() * c * d);
    Laid out{std::vector<float>(size), std::vector<float>(size), {}};
    for (index_t h = 0; h < ring.heads(); ++h)
        for (index_t age = 0; age < ring.chunks(); ++age) {
            const auto mean = ring.means(h)[ring.slot(age)];
            out.means.insert(out.means.end(), mean.begin(), mean.end());
            for (index_t t = 0; t < c; ++t)
                for (index_t j = 0; j < d; ++j) {
                    const auto at = static_cast<std::size_t>(((h * ring.slots() + age) * c + t) * d + j);
                    const index_t row = ring.slot(age) * c + t;
                    out.keys[at] = to_float(ring.keys(h)[row][static_cast<std::size_t>(j)]);
                    out.values[at] = to_float(ring.values(h)[row][static_cast<std::size_t>(j)]);
                }
        }
    return out;
}

} // namespace

GOLDEN("longmem.memory_bank") {
    const index_t heads = fixture.integer("num_heads"), d = fixture.integer("head_dim");
    const index_t c = fixture.integer("chunk_size"), k = fixture.integer("k");
    if (k % c != 0) fail("metadata `k`: expected a multiple of chunk_size ", c, ", got ", k);
    const bool ties = fixture.integer("ties") != 0;
    const index_t wanted = k / c;
    ChunkRing<half> ring({.heads = heads,
                          .head_dim = d,
                          .chunk = c,
                          .memory_tokens = fixture.integer("memory_size"),
                          .reference = true});
    std::vector<index_t> levels;
    for (const auto& op : nlohmann::json::parse(fixture.text("ops"))) {
        const std::string kind = op.at("op");
        if (kind == "reset") {
            ring.clear();
        } else if (kind == "add") {
            const std::string in = text("in.add", op.at("i").get<index_t>());
            ring.append(fixture.matrix(in + ".k"), fixture.matrix(in + ".v")); // rows one after the other
        } else if (kind == "search") {
            const std::string at = text("search", op.at("i").get<index_t>());
            const Matrix queries = fixture.matrix("in." + at + ".q"); // [seq * bsz, heads * d]
            const index_t bsz = op.at("bsz").get<index_t>(), seq = op.at("seq").get<index_t>();
            const HeadHits hits = PerHead{Exact<InnerProduct>{.k = wanted}}.retrieve(ring, Rows(queries));
            const Laid laid = laid_out(ring);
            std::vector<index_t> ids;
            std::vector<float> scores;
            for (index_t h = 0; h < heads; ++h)
                for (index_t row = 0; row < seq * bsz; ++row)
                    for (index_t i = 0; i < wanted; ++i) {
                        const bool found = i < static_cast<index_t>(hits[h].ids(row).size());
                        const auto rank = static_cast<std::size_t>(i);
                        ids.push_back(found ? ring.age(hits[h].ids(row)[rank]) : -1);
                        scores.push_back(found ? hits[h].scores(row)[rank] : std::numeric_limits<float>::lowest());
                    }
            check.close("out." + at + ".scores", scores, {1e-5, 1e-5});
            if (ties) { // which of equals is named is open: each that was must have the score it was given
                ids = fixture.ids("out." + at + ".ids");
                std::vector<float> rescored;
                for (std::size_t i = 0; i < ids.size(); ++i) {
                    const auto n = static_cast<index_t>(i);
                    const index_t h = n / (wanted * seq * bsz), row = n / wanted % (seq * bsz);
                    const Rows query(queries.data.data() + row * queries.cols + h * d, 1, d);
                    rescored.push_back(ids[i] < 0 ? std::numeric_limits<float>::lowest()
                                                  : score<InnerProduct>(query[0], ring.means(h)[ring.slot(ids[i])]));
                    for (std::size_t j = i - i % static_cast<std::size_t>(wanted); j < i; ++j)
                        check.that("out." + at + ".ids", ids[i] < 0 || ids[j] != ids[i], "no chunk to be found twice");
                }
                check.close("out." + at + ".scores", rescored, {1e-5, 1e-5});
            }
            check.equal("out." + at + ".ids", ids);
            std::vector<float> keys, values; // [bsz * heads, seq, k, d]
            for (index_t b = 0; b < bsz; ++b)
                for (index_t h = 0; h < heads; ++h)
                    for (index_t t = 0; t < seq; ++t)
                        for (index_t i = 0; i < wanted; ++i) {
                            const index_t id =
                                ids[static_cast<std::size_t>((h * seq * bsz + t * bsz + b) * wanted + i)];
                            for (index_t j = 0; j < c * d; ++j) {
                                const auto from = static_cast<std::size_t>((h * ring.slots() + id) * c * d + j);
                                keys.push_back(id < 0 ? 0 : laid.keys[from]);
                                values.push_back(id < 0 ? 0 : laid.values[from]);
                            }
                        }
            check.close("out." + at + ".k", keys, {0, 0});
            check.close("out." + at + ".v", values, {0, 0});
        } else {
            fail("metadata `ops`: expected add, search or reset, got ", kind);
        }
        levels.push_back(ring.chunks());
    }
    check.equal("out.dstore_idx", levels);
    check.equal("out.ntotal", levels);
    const Laid laid = laid_out(ring);
    check.close("out.final.keys", laid.keys, {0, 0});
    check.close("out.final.vals", laid.values, {0, 0});
    check.close("out.final.index", laid.means, {1e-6, 1e-6});
}

GOLDEN("longmem.batching") {
    const auto tokens = fixture.tokens("in.tokens");
    index_t lines = 0;
    for (const index_t n : fixture.ids("in.line_lens")) lines += n;
    if (lines != static_cast<index_t>(tokens.size()))
        fail("in.line_lens: expected ", tokens.size(), " tokens in all, got ", lines);
    const index_t workers = fixture.integer("num_shards");
    const Passages passages(tokens, {.block = fixture.integer("tokens_per_sample"),
                                     .rows = fixture.integer("batch_size"),
                                     .workers = workers,
                                     .before = static_cast<std::int32_t>(fixture.integer("eos_idx")),
                                     .drop_last_block = true});
    const auto stated = nlohmann::json::parse(fixture.text("batches_per_shard"));
    Passages::Batch batch;
    for (index_t worker = 0; worker < workers; ++worker) {
        const index_t n = passages.batches(worker);
        if (stated.at(static_cast<std::size_t>(worker)) != n)
            check.failed(text("batches of shard ", worker, ": expected ",
                              stated.at(static_cast<std::size_t>(worker)).dump(), ", got ", n));
        for (index_t i = 0; i < n; ++i) {
            passages.read(worker, i, batch);
            const std::string at = text("out.shard", worker, ".batch", i, ".");
            check.that(at + "src", fixture.shape(at + "src") == std::vector<index_t>{batch.rows, batch.width},
                       "the shape of the batch");
            check.equal(at + "src", batch.inputs);
            check.equal(at + "tgt", batch.targets);
            check.equal(at + "id", batch.blocks);
        }
    }
}
