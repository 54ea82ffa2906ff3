// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/text/blocks.hpp>

#include <numeric>
#include <random>

using namespace mnemo;

namespace {

constexpr BreakMode kModes[] = {BreakMode::none, BreakMode::complete, BreakMode::complete_doc, BreakMode::eos};

struct Corpus {
    std::vector<std::int32_t> tokens; // its own position, so that windows can be checked; 2 ends a sentence
    std::vector<index_t> sentences;
    operator TokenStream() const { return {tokens, sentences}; }
};
Corpus random_corpus(unsigned seed) {
    std::mt19937 random(seed);
    Corpus corpus;
    for (int i = 0; i < 40; ++i) {
        const auto size = static_cast<index_t>(1 + random() % 12);
        corpus.sentences.push_back(size);
        for (index_t j = 0; j + 1 < size; ++j)
            corpus.tokens.push_back(10 + static_cast<std::int32_t>(corpus.tokens.size()));
        corpus.tokens.push_back(2);
    }
    return corpus;
}
std::vector<index_t> sizes(const std::vector<Block>& blocks) {
    std::vector<index_t> out;
    for (const Block& b : blocks) out.push_back(b.size);
    return out;
}

} // namespace

TEST_CASE("blocks of each mode") {
    const std::vector<std::int32_t> tokens(31, 7);
    const std::vector<index_t> sentences{3, 4, 1, 1, 12, 2, 1, 5, 2};
    const TokenStream stream{tokens, sentences};
    CHECK(sizes(cut_blocks(stream, 10, BreakMode::none)) == std::vector<index_t>{10, 10, 10, 1});
    CHECK(sizes(cut_blocks(stream, 8, BreakMode::complete)) == std::vector<index_t>{8, 1, 12, 8, 2});
    CHECK(sizes(cut_blocks(stream, 8, BreakMode::complete_doc)) == std::vector<index_t>{7, 12, 2, 7});
    CHECK(sizes(cut_blocks(stream, 8, BreakMode::eos)) == sentences);
    const auto documents = cut_blocks(stream, 8, BreakMode::complete_doc);
    CHECK(documents[1].first == 9);
    CHECK(documents[3].first == 24);
    const auto slices = cut_blocks(stream, 7, BreakMode::none); // 0, 7, 14, 21, 28: the first two start sentences
    CHECK(slices[0].starts_sentence);
    CHECK(slices[1].starts_sentence);
    CHECK_FALSE(slices[2].starts_sentence);
    CHECK(sizes(cut_blocks({tokens, {}}, 16, BreakMode::none)) == std::vector<index_t>{16, 15});
    CHECK(cut_blocks({}, 16, BreakMode::complete).empty());
}

TEST_CASE("wrong sentence sizes are errors") {
    const std::vector<std::int32_t> tokens(5);
    for (const auto& bad : {std::vector<index_t>{2, 2}, std::vector<index_t>{2, 4}, std::vector<index_t>{-1, 6},
                            std::vector<index_t>{INT64_MAX, INT64_MAX, 7}})
        for (const BreakMode mode : kModes) CHECK_THROWS_AS(cut_blocks({tokens, bad}, 4, mode), Error);
    CHECK_THROWS_AS(cut_blocks({tokens, {}}, 0, BreakMode::none), Error);
}

TEST_CASE("batches keep within their limits and lose no block") {
    std::mt19937 random(3);
    for (int round = 0; round < 300; ++round) {
        std::vector<Block> blocks(random() % 60);
        for (Block& b : blocks) b.size = static_cast<index_t>(1 + random() % 20);
        const BatchLimits limits{.max_tokens = static_cast<index_t>(random() % 3 == 0 ? 0 : 20 + random() % 200),
                                 .max_rows = static_cast<index_t>(random() % 2 == 0 ? 0 : 1 + random() % 20),
                                 .multiple = static_cast<index_t>(1 + random() % 8)};
        index_t at = 0;
        for (const auto& [first, last] : cut_batches(blocks, limits)) {
            REQUIRE(first == at);
            REQUIRE(last > first);
            index_t width = 0;
            for (index_t i = first; i < last; ++i) width = std::max(width, blocks[static_cast<std::size_t>(i)].size);
            if (limits.max_tokens > 0) REQUIRE((last - first) * width <= limits.max_tokens);
            if (limits.max_rows > 0) REQUIRE(last - first <= limits.max_rows);
            at = last;
        }
        REQUIRE(at == static_cast<index_t>(blocks.size()));
    }
}

TEST_CASE("full batches are a multiple of rows, and one long block is a batch") {
    const std::vector<Block> equal(25, Block{0, 10, false});
    const auto batches = cut_batches(equal, {.max_tokens = 105, .multiple = 4}); // ten would fit
    REQUIRE(batches.size() == 3);
    CHECK(batches[0] == std::pair<index_t, index_t>{0, 8});
    CHECK(batches[1] == std::pair<index_t, index_t>{8, 16});
    CHECK(batches[2] == std::pair<index_t, index_t>{16, 25}); // the rest, within the limit
    const std::vector<Block> one_long{{0, 5, false}, {0, 50, false}, {0, 5, false}};
    CHECK(cut_batches(one_long, {.max_tokens = 20}).size() == 3);
}

TEST_CASE("every token is scored once, after what came before it") {
    const Corpus corpus = random_corpus(4);
    for (const BreakMode mode : kModes)
        for (const index_t context : {0, 3, 30})
            for (const index_t rows : {1, 3, 0}) {
                const WindowOptions options{
                    .block_size = 9, .context = context, .mode = mode, .batch = {.max_tokens = 40, .max_rows = rows}};
                ContextWindows windows(corpus, options);
                std::vector<int> seen(corpus.tokens.size(), 0);
                WindowBatch batch;
                std::size_t block = 0;
                index_t scored = 0;
                while (windows.next(batch)) {
                    scored += batch.scored();
                    for (index_t row = 0; row < batch.rows; ++row, ++block) {
                        const Block b = windows.blocks()[block];
                        const auto r = static_cast<std::size_t>(row);
                        REQUIRE(batch.start[r] <= context);
                        REQUIRE(batch.length[r] - batch.start[r] == b.size);
                        for (index_t j = 0; j < batch.width; ++j) {
                            const std::int32_t in = batch.input(row)[static_cast<std::size_t>(j)];
                            const std::int32_t out = batch.target(row)[static_cast<std::size_t>(j)];
                            const index_t place = b.first + j - batch.start[r]; // in the stream
                            const auto p = static_cast<std::size_t>(place);
                            REQUIRE((in == options.pad) == (j >= batch.length[r]));
                            REQUIRE((out != options.pad) == (j >= batch.start[r] && j < batch.length[r]));
                            if (j < batch.start[r] || j >= batch.length[r]) continue;
                            ++seen[p];
                            REQUIRE(out == corpus.tokens[p]);
                            REQUIRE(in == (place == 0 ? options.eos : corpus.tokens[p - 1]));
                        }
                    }
                }
                REQUIRE(scored == windows.tokens());
                REQUIRE(block == windows.blocks().size());
                index_t missed = 0;
                for (const int n : seen) missed += n != 1;
                if (mode == BreakMode::complete_doc)
                    REQUIRE(missed == static_cast<index_t>(seen.size()) - windows.tokens());
                else
                    REQUIRE(missed == 0);
            }
}

TEST_CASE("context reaches across rows and batches; rewinding forgets it") {
    std::vector<std::int32_t> tokens(20);
    std::iota(tokens.begin(), tokens.end(), 10);
    ContextWindows windows({tokens, {}}, {.block_size = 4, .context = 6, .batch = {.max_rows = 2}});
    WindowBatch batch, again;
    for (int i = 0; i < 2; ++i) REQUIRE(windows.next(batch));
    CHECK(batch.start == std::vector<index_t>{6, 6});
    const std::vector<std::int32_t> expected{11, 12, 13, 14, 15, 16, 17, 18, 19, 20};
    CHECK(std::vector<std::int32_t>(batch.input(0).begin(), batch.input(0).end()) == expected);
    REQUIRE(windows.next(batch));
    CHECK(batch.rows == 1);
    CHECK_FALSE(windows.next(batch));
    windows.rewind();
    REQUIRE(windows.next(again));
    CHECK(again.start == std::vector<index_t>{0, 4});
    CHECK(again.input(0)[0] == 2);
}
