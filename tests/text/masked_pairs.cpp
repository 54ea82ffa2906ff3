// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/text/document_rows.hpp>
#include <mnemo/text/masked_pairs.hpp>

#include <numeric>

using namespace mnemo;

namespace {
const MaskingOptions kMasking{2, 3, 4, 0, 50, -1, 0.15, 0.8, 8, 1000};
using TokenIds = std::vector<std::int32_t>;
} // namespace

TEST_CASE("masked pairs: rows are framed, padded to the alignment and have no targets") {
    const TokenIds a = {10, 11, 12}, b = {20}, longer = {5, 6, 7, 8, 9};
    const std::vector<TokenPair> pairs = {{a, b}, {longer, {}}};
    const MaskedBatch batch = collate_pairs(pairs, kMasking);
    CHECK(batch.rows == 2);
    CHECK(batch.cols == 8);
    CHECK(batch.tokens == TokenIds{2, 10, 11, 12, 3, 20, 3, 0, 2, 5, 6, 7, 8, 9, 3, 3});
    CHECK(batch.segments == TokenIds{0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1});
    CHECK(batch.attention == TokenIds{1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1});
    CHECK(batch.labels == TokenIds(16, -1));
    MaskedBatch targets = batch;
    const std::vector<index_t> positions = {1, 5};
    set_targets(targets, 0, positions, TokenIds{30, 31});
    CHECK(targets.labels[1] == 30);
    CHECK(targets.labels[5] == 31);
    CHECK_THROWS_AS(set_targets(targets, 2, positions, TokenIds{1, 2}), Error);
    CHECK_THROWS_AS(set_targets(targets, 0, positions, TokenIds{1}), Error);
    CHECK_THROWS_AS(set_targets(targets, 0, std::vector<index_t>{8}, TokenIds{1}), Error);
    CHECK(collate_pairs({}, kMasking).rows == 0);
    const TokenIds bad = {50};
    const std::vector<TokenPair> outside = {{bad, {}}};
    CHECK_THROWS_AS(collate_pairs(outside, kMasking), Error);
}

TEST_CASE("masked pairs: dynamic masking leaves special tokens alone and keeps its proportions") {
    TokenIds words(4000);
    for (std::size_t i = 0; i < words.size(); ++i) words[i] = 5 + static_cast<std::int32_t>(i % 45);
    const TokenIds few = {7};
    MaskingOptions wide = kMasking;
    wide.max_width = 5000;
    const std::vector<TokenPair> pairs = {{words, few}, {few, words}};
    const MaskedBatch before = collate_pairs(pairs, wide);
    MaskedBatch batch = before;
    MaskingDraws draws{std::mt19937_64(3)};
    mask_dynamically(batch, wide, draws);
    double chosen = 0, masked = 0, same = 0;
    for (std::size_t i = 0; i < batch.tokens.size(); ++i) {
        if (batch.labels[i] == -1) {
            CHECK(batch.tokens[i] == before.tokens[i]);
            continue;
        }
        REQUIRE(before.special[i] == 0);
        REQUIRE(batch.labels[i] == before.tokens[i]);
        ++chosen;
        masked += batch.tokens[i] == wide.mask;
        same += batch.tokens[i] == before.tokens[i];
    }
    CHECK(std::abs(chosen / 8002 - 0.15) < 0.02); // five standard deviations
    CHECK(std::abs(masked / chosen - 0.8) < 0.06);
    CHECK(std::abs(same / chosen - 0.1) < 0.05);
}

TEST_CASE("masked pairs: static masking chooses the stated number of positions") {
    const TokenIds a(40, 9), one = {8};
    const std::vector<TokenPair> pairs = {{a, one}, {one, {}}, {{}, {}}};
    const MaskedBatch before = collate_pairs(pairs, kMasking);
    MaskedBatch batch = before;
    MaskingDraws draws{std::mt19937_64(5)};
    mask_statically(batch, kMasking, draws);
    const auto targets = [&](index_t row) {
        const auto labels = batch.row(batch.labels, row);
        return std::count_if(labels.begin(), labels.end(), [](std::int32_t id) { return id != -1; });
    };
    CHECK(targets(0) == 7); // round(0.15 * 44)
    CHECK(targets(1) == 1);
    CHECK(targets(2) == 0);
    for (std::size_t i = 0; i < batch.tokens.size(); ++i)
        if (batch.labels[i] != -1) CHECK(batch.labels[i] == before.tokens[i]);
}

TEST_CASE("documents are cut between sentences, lose no token and keep to their bounds") {
    TokenIds tokens(100);
    std::iota(tokens.begin(), tokens.end(), 1);
    const std::vector<index_t> sentences = {4, 12, 3, 50, 1, 0, 30};
    const DocumentRows rows = cut_documents({tokens, sentences}, {10, 20});
    TokenIds read;
    std::vector<index_t> sizes;
    for (index_t i = 0; i < rows.rows(); ++i) {
        const auto row = rows.view()[i];
        const auto end = std::find(row.begin(), row.end(), std::uint16_t{0});
        CHECK(std::all_of(end, row.end(), [](std::uint16_t x) { return x == 0; }));
        read.insert(read.end(), row.begin(), end);
        sizes.push_back(end - row.begin());
    }
    CHECK(read == tokens);
    CHECK(sizes == std::vector<index_t>{19, 20, 20, 11, 20, 10});
    const DocumentRows framed = cut_documents({tokens, {}}, {10, 20, 101, 102});
    CHECK(framed.view()[0][0] == 101);
    CHECK(framed.view()[0][19] == 102);
    CHECK(framed.view()[5][11] == 102); // 100 = 5 * 18 + 10
    CHECK(framed.rows() == 6);
    CHECK(cut_documents({}, {10, 20}).rows() == 0);
    const TokenIds padding = {0}, large = {65536};
    CHECK_THROWS_AS(cut_documents({padding, {}}, {10, 20}), Error);
    CHECK_THROWS_AS(cut_documents({large, {}}, {10, 20}), Error);
    CHECK_THROWS_AS(cut_documents({tokens, {}}, {10, 2, 101, 102}), Error);
}
