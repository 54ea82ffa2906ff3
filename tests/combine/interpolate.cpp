// SPDX-License-Identifier: MIT
#include "toy_store.hpp"

#include "normal_rows.hpp"
#include <catch.hpp>
#include <mnemo/combine/interpolate.hpp>

#include <limits>

using namespace mnemo;

namespace {

constexpr index_t kRows = 40;
constexpr std::int32_t kVocab = 37;
const float kInf = std::numeric_limits<float>::infinity();

Matrix random_logits(index_t rows, index_t cols, unsigned seed) { return normal_rows(rows, cols, seed, 3); }
Matrix log_softmaxed(Matrix m) {
    for (index_t i = 0; i < m.rows; ++i) log_softmax(m[i]);
    return m;
}
double probability(const std::map<std::int32_t, double>& p, std::int32_t token) {
    const auto found = p.find(token);
    return found == p.end() ? 0.0 : found->second;
}

/// Every combination against the formula in double precision.
void compare(ToyRecall& toy, const Matrix& base, const Matrix& combined, double lambda, double temperature) {
    for (index_t row = 0; row < base.rows; ++row) {
        const auto memory = toy.expected(row, temperature);
        CHECK(total(combined[row]) == Approx(1.0).epsilon(2e-6));
        for (std::size_t v = 0; v < static_cast<std::size_t>(base.cols); ++v) {
            if (memory.empty() || lambda == 0) {
                CHECK(combined[row][v] == base[row][v]); // bit for bit
                continue;
            }
            const double p = (1 - lambda) * std::exp(double{base[row][v]}) +
                             lambda * probability(memory, static_cast<std::int32_t>(v));
            if (p == 0)
                CHECK(combined[row][v] == -kInf);
            else
                CHECK(double{combined[row][v]} == Approx(std::log(p)).margin(3e-6).epsilon(1e-6));
        }
    }
}

} // namespace

TEST_CASE("interpolation in full is the formula, at every lambda and temperature") {
    for (const float lambda : {0.0f, 0.1f, 0.25f, 0.999f, 1.0f})
        for (const float temperature : {0.2f, 1.0f, 10.0f, 1e6f}) {
            ToyRecall toy = ToyRecall::random(kRows, kVocab, 150, 30, 5);
            const Matrix base = log_softmaxed(random_logits(kRows, kVocab, 6));
            Matrix combined = base;
            MutRows rows(combined);
            Interpolate<TokenVotes>{{temperature}, {lambda}}.combine(rows, toy.reading());
            compare(toy, base, combined, double{lambda}, double{temperature});
        }
}

TEST_CASE("scoring targets only equals the full distribution") {
    for (const float lambda : {0.0f, 0.25f, 1.0f})
        for (const float spread : {5.0f, 400.0f}) { // votes that underflow beside the best keep their share
            ToyRecall toy = ToyRecall::random(kRows, kVocab, 150, spread, 7);
            const Matrix base = log_softmaxed(random_logits(kRows, kVocab, 8));
            const Interpolate<TokenVotes> combiner{{2.0f}, {lambda}};
            Matrix full = base;
            MutRows rows(full);
            combiner.combine(rows, toy.reading());
            for (std::int32_t token = 0; token < kVocab; ++token) {
                std::vector<std::int32_t> targets(kRows, token);
                std::vector<float> log_p(kRows);
                for (index_t i = 0; i < kRows; ++i)
                    log_p[static_cast<std::size_t>(i)] = base[i][static_cast<std::size_t>(token)];
                TargetLogProbs base_of_targets{targets, log_p};
                combiner.combine(base_of_targets, toy.reading());
                for (index_t i = 0; i < kRows; ++i) {
                    const float expected = full[i][static_cast<std::size_t>(token)],
                                got = log_p[static_cast<std::size_t>(i)];
                    if (std::isinf(expected))
                        CHECK(got == expected);
                    else
                        CHECK(got == Approx(expected).margin(2e-6).epsilon(1e-6));
                }
            }
        }
}

TEST_CASE("logits in place equal log-probabilities up to a shift of the row") {
    for (const float lambda : {0.0f, 0.25f, 0.9f, 1.0f}) {
        ToyRecall toy = ToyRecall::random(kRows, kVocab, 150, 30, 9);
        Matrix logits = random_logits(kRows, kVocab, 10);
        for (float& x : logits.data) x += 50; // the shift is the host's own business
        logits.data[3] = -kInf;               // p = 0 in the host, a token that the memory may know
        Matrix expected = log_softmaxed(logits);
        const Matrix before = logits;
        const Interpolate<TokenVotes> combiner{{1.0f}, {lambda}};
        MutRows rows(expected);
        combiner.combine(rows, toy.reading());
        Logits base{logits};
        combiner.combine(base, toy.reading());
        if (lambda == 0) CHECK(logits.data == before.data);
        const Matrix got = log_softmaxed(logits);
        for (std::size_t i = 0; i < got.data.size(); ++i)
            if (std::isinf(expected.data[i]))
                CHECK(got.data[i] == expected.data[i]);
            else
                CHECK(got.data[i] == Approx(expected.data[i]).margin(1e-5));
    }
}

TEST_CASE("tokens that the memory does not know keep their logits") {
    ToyRecall toy;
    toy.store.tokens = {2, 2};
    toy.hits.push(0, -1.0f), toy.hits.push(1, -2.0f), toy.hits.end_row();
    Matrix logits(1, 4);
    logits.data = {1, 2, -kInf, 4};
    Logits base{logits};
    Interpolate<TokenVotes>{}.combine(base, toy.reading());
    CHECK(logits.data[0] == 1);
    CHECK(logits.data[1] == 2);
    CHECK(logits.data[3] == 4);
    CHECK(std::exp(double{logits.data[2]}) ==
          Approx(0.25 / 0.75 * (std::exp(1.0) + std::exp(2.0) + std::exp(4.0))).epsilon(1e-6));
}

TEST_CASE("a row without an opinion keeps the base, whatever its weight") {
    ToyRecall toy;
    toy.store.tokens = {1};
    toy.hits.end_row();                           // nothing found
    toy.hits.push(0, -kInf), toy.hits.end_row();  // found, but infinitely far
    toy.hits.push(0, -1e30f), toy.hits.end_row(); // far, but the only one
    const Matrix base = log_softmaxed(random_logits(3, 4, 11));
    const Interpolate<TokenVotes> combiner{{}, {1.0f}};

    Matrix full = base;
    MutRows rows(full);
    combiner.combine(rows, toy.reading());
    for (index_t row = 0; row < 2; ++row)
        for (std::size_t v = 0; v < 4; ++v) CHECK(full[row][v] == base[row][v]);
    CHECK(full[2][1] == 0);
    CHECK(full[2][0] == -kInf);

    const std::vector<std::int32_t> targets{1, 1, 0};
    std::vector<float> log_p{-2, -3, -4};
    TargetLogProbs scores{targets, log_p};
    combiner.combine(scores, toy.reading());
    CHECK(log_p == std::vector<float>{-2, -3, -kInf});

    SparseLogProbs lists;
    combiner.combine(lists, toy.reading());
    CHECK(lists.offsets == std::vector<std::size_t>{0, 0, 0, 1});
    CHECK(lists.lambda == std::vector<float>{0, 0, 1});
    CHECK(lists.tokens == std::vector<std::int32_t>{1});
    CHECK(lists.log_p == std::vector<float>{0});
}

TEST_CASE("ties and repeated tokens share the probability") {
    ToyRecall toy;
    toy.store.tokens = {5, 3, 5, 4};
    for (index_t id = 0; id < 4; ++id) toy.hits.push(id, -7.5f);
    toy.hits.end_row();
    SparseLogProbs lists;
    Interpolate<TokenVotes>{}.combine(lists, toy.reading());
    CHECK(lists.tokens == std::vector<std::int32_t>{5, 3, 4});
    CHECK(lists.log_p[0] == Approx(std::log(0.5)));
    CHECK(lists.log_p[1] == Approx(std::log(0.25)));
    CHECK(TokenVotes{}.log_prob(toy.reading(), 0, 5).value() == Approx(std::log(0.5)));
}

TEST_CASE("temperature: towards 0 the nearest decides, towards infinity all count the same") {
    ToyRecall toy;
    toy.store.tokens = {1, 2, 3, 1};
    toy.hits.push(0, -3), toy.hits.push(1, -1), toy.hits.push(2, -2), toy.hits.push(3, -9);
    toy.hits.end_row();
    CHECK(TokenVotes{1e-4f}.log_prob(toy.reading(), 0, 2).value() == 0);
    CHECK(TokenVotes{1e-4f}.log_prob(toy.reading(), 0, 3).value() == Approx(-1e4));
    CHECK(TokenVotes{1e30f}.log_prob(toy.reading(), 0, 1).value() == Approx(std::log(0.5)));
    for (const float bad : {0.0f, -1.0f, std::numeric_limits<float>::quiet_NaN(), kInf})
        CHECK_THROWS_AS((TokenVotes{bad}.log_prob(toy.reading(), 0, 1)), Error);
}

TEST_CASE("the reference's floor is a switch") {
    ToyRecall toy;
    toy.store.tokens = {1, 2};
    toy.hits.push(0, 0.0f), toy.hits.push(1, -30000.0f);
    toy.hits.end_row();
    const TokenVotes parity{.temperature = 1, .floor = TokenVotes::kReferenceFloor};
    CHECK(TokenVotes{}.log_prob(toy.reading(), 0, 9).value() == -kInf);
    CHECK(parity.log_prob(toy.reading(), 0, 9).value() == -10000);
    CHECK(TokenVotes{}.log_prob(toy.reading(), 0, 2).value() == -30000);
    CHECK(parity.log_prob(toy.reading(), 0, 2).value() == -10000);
    CHECK(parity.log_prob(toy.reading(), 0, 1).value() == 0);
}

TEST_CASE("wrong sizes, weights and tokens are errors, not memory faults") {
    ToyRecall toy;
    toy.store.tokens = {7, -3};
    toy.hits.push(0, 0.0f), toy.hits.end_row();
    Matrix small(1, 7), right(1, 8), two(2, 8);
    const Interpolate<TokenVotes> combiner;
    MutRows rows(small);
    CHECK_THROWS_WITH(combiner.combine(rows, toy.reading()),
                      "mnemo: Interpolate: expected tokens below 7, the memory's store has 7");
    rows = MutRows(right);
    CHECK_NOTHROW(combiner.combine(rows, toy.reading()));
    rows = MutRows(two);
    CHECK_THROWS_WITH(combiner.combine(rows, toy.reading()), "mnemo: Interpolate: rows of the base: expected 1, got 2");
    rows = MutRows(right);
    for (const float bad : {-0.1f, 1.5f, std::numeric_limits<float>::quiet_NaN()})
        CHECK_THROWS_AS((Interpolate<TokenVotes>{{}, {bad}}.combine(rows, toy.reading())), Error);
    std::vector<std::int32_t> targets(2);
    std::vector<float> log_p(1);
    TargetLogProbs scores{targets, log_p};
    CHECK_THROWS_WITH(combiner.combine(scores, toy.reading()), "mnemo: TargetLogProbs: targets: expected 1, got 2");

    toy.hits.clear();
    toy.hits.push(1, 0.0f), toy.hits.end_row();
    CHECK_THROWS_WITH(combiner.combine(rows, toy.reading()),
                      "mnemo: TokenVotes: value of entry 1: expected a token, got -3");
}

TEST_CASE("any number of threads gives the same bits") {
    ToyRecall toy = ToyRecall::random(kRows, kVocab, 150, 30, 12);
    const Matrix base = log_softmaxed(random_logits(kRows, kVocab, 13));
    Matrix one = base, four = base;
    MutRows one_rows(one), four_rows(four);
    Interpolate<TokenVotes>{}.combine(one_rows, toy.reading());
    Interpolate<TokenVotes, Fixed, Threads>{{}, {}, {4}}.combine(four_rows, toy.reading());
    CHECK(one.data == four.data);

    std::vector<std::int32_t> targets(kRows, 2);
    std::vector<float> a(kRows, -1.0f), b = a;
    TargetLogProbs base_a{targets, a}, base_b{targets, b};
    Interpolate<TokenVotes>{}.combine(base_a, toy.reading());
    Interpolate<TokenVotes, Fixed, Threads>{{}, {}, {4}}.combine(base_b, toy.reading());
    CHECK(a == b);
}

TEST_CASE("dense recalls and joined ones vote like lists") {
    ToyRecall toy = ToyRecall::random(1, kVocab, 150, 30, 14);
    DenseHits dense{Matrix(1, 200), {{20, 170}}};
    Hits list;
    for (index_t id = 0; id < 200; ++id)
        dense.scores[0][static_cast<std::size_t>(id)] = -0.1f * static_cast<float>(id % 70);
    for (index_t id = 20; id < 170; ++id) list.push(id, dense.scores[0][static_cast<std::size_t>(id)]);
    list.end_row();
    const JoinedHits joined{list, DenseHits{Matrix(1, 5), {{2, 2}}}, 200}; // the second one is empty
    Arena scratch;
    const Rows none;
    for (std::int32_t token = 0; token < kVocab; ++token) {
        const auto expected = TokenVotes{}.log_prob(Reading{none, list, toy.store, scratch}, 0, token);
        CHECK(TokenVotes{}.log_prob(Reading{none, dense, toy.store, scratch}, 0, token) == expected);
        CHECK(TokenVotes{}.log_prob(Reading{none, joined, toy.store, scratch}, 0, token) == expected);
    }
}

// ---- what later memories bring along: dense evidence, weights that look at the base ----

namespace {
/// A head over recalled vectors.
struct Head {
    Matrix weight; // [vocab, d]
    template <class Q, ParametricRecall R, class S>
    void log_probs(const Reading<Q, R, S>& reading, index_t row, std::span<float> out) const {
        const std::span<const float> x = reading.recall.vector(row);
        for (std::size_t v = 0; v < out.size(); ++v) {
            out[v] = 0;
            for (std::size_t j = 0; j < x.size(); ++j) out[v] += weight[static_cast<index_t>(v)][j] * x[j];
        }
        log_softmax(out);
    }
};
struct Decoding {
    MutRows log_probs;
    std::span<const index_t> position;
};
struct FallingEvidence {
    float operator()(const Decoding& d, index_t row) const {
        return 1.0f / static_cast<float>(1 + d.position[static_cast<std::size_t>(row)]);
    }
};
struct ToyMap {
    index_t key_dim() const { return 3; }
};
} // namespace

TEST_CASE("a head over recalled vectors and a schedule fit the same combiner") {
    Vectors recalled{random_logits(3, 3, 15)};
    const Head head{random_logits(kVocab, 3, 16)};
    const ToyMap store;
    Arena scratch;
    const Rows queries;
    const Reading reading{queries, recalled, store, scratch};
    const Matrix base = log_softmaxed(random_logits(3, kVocab, 17));
    Matrix combined = base;
    const std::vector<index_t> position{0, 1, 7};
    Decoding decoding{combined, position};
    Interpolate<Head, FallingEvidence>{head, {}}.combine(decoding, reading);
    for (index_t row = 0; row < 3; ++row) {
        std::vector<float> memory(kVocab);
        head.log_probs(reading, row, memory);
        const double weight = 1.0 / (1 + static_cast<double>(position[static_cast<std::size_t>(row)]));
        CHECK(total(combined[row]) == Approx(1.0).epsilon(2e-6));
        for (std::size_t v = 0; v < memory.size(); ++v)
            CHECK(double{combined[row][v]} ==
                  Approx(std::log((1 - weight) * std::exp(double{base[row][v]}) + weight * std::exp(double{memory[v]})))
                      .margin(2e-6));
    }
}

TEST_CASE("dense evidence on raw logits gives normalised log-probabilities") {
    Vectors recalled{random_logits(2, 3, 18)};
    const Head head{random_logits(kVocab, 3, 19)};
    const ToyMap store;
    Arena scratch;
    const Rows queries;
    const Reading reading{queries, recalled, store, scratch};
    Matrix logits = random_logits(2, kVocab, 20), expected = log_softmaxed(logits);
    MutRows rows(expected);
    Interpolate<Head>{head, {0.3f}}.combine(rows, reading);
    Logits base{logits};
    Interpolate<Head>{head, {0.3f}}.combine(base, reading);
    CHECK(logits.data == expected.data);
}
