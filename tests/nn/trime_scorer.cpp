// SPDX-License-Identifier: MIT
#include "catch.hpp"

#include <mnemo/nn/trime_scorer.hpp>
#include <mnemo/papers/trime.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/retrieve/nothing.hpp>

using namespace mnemo;
using namespace mnemo::nn;

namespace {

constexpr std::int64_t kTokenTypes = 12, kKeyDim = 5, kWindow = 8, kStart = 3, kScored = 5;

// A text in windows that overlap: the context of one is the scored part of those before.
struct Text {
    at::Tensor keys, features, tokens; // [n, ...]
    OutputLayer output;
    explicit Text(std::uint64_t seed, std::int64_t n = 60) {
        at::manual_seed(seed);
        keys = at::randn({n, kKeyDim}), features = at::randn({n, kKeyDim}), tokens = at::randint(kTokenTypes, {n + 1});
        output.words = at::randn({kTokenTypes, kKeyDim});
    }
    TrimeWindow window(index_t id) const {
        const std::int64_t first = id * kScored;
        return {features.narrow(0, first, kWindow),
                keys.narrow(0, first, kWindow),
                tokens.narrow(0, first, kWindow),
                tokens.narrow(0, first + kStart + 1, kScored),
                kStart,
                id};
    }
    // log p of window `id`, token by token, with these positions of the text as long-term memory.
    at::Tensor expected(index_t id, const std::vector<std::int64_t>& long_memory, double temperature) const {
        const std::int64_t first = id * kScored;
        std::vector<float> out;
        for (std::int64_t i = 0; i < kScored; ++i) {
            const std::int64_t at = first + kStart + i, target = tokens[at + 1].item<std::int64_t>();
            const at::Tensor logits = at::mv(output.words, features[at]).to(at::kDouble);
            double all = logits.exp().sum().item<double>(), same = logits[target].exp().item<double>();
            std::vector<std::int64_t> seen = long_memory;
            for (std::int64_t j = first; j < at; ++j) seen.push_back(j);
            for (const std::int64_t j : seen) {
                const double s = at::dot(keys[at], keys[j]).item<double>() / std::sqrt(double(kKeyDim)) / temperature;
                all += std::exp(s);
                if (tokens[j + 1].item<std::int64_t>() == target) same += std::exp(s);
            }
            out.push_back(static_cast<float>(std::log(same / all)));
        }
        return at::tensor(out);
    }
};

std::vector<std::int64_t> positions(std::int64_t first, std::int64_t last) {
    std::vector<std::int64_t> out;
    for (std::int64_t i = first; i < last; ++i) out.push_back(i);
    return out;
}

} // namespace

TEST_CASE("windows are scored with local and long-term memory, the newest tokens of it") {
    const Text text(1);
    for (const index_t size : {0, 4, 7, 100}) {
        TrimeScorer scorer(text.output, {.temperature = 1.3, .mem_size = size}, kKeyDim);
        for (index_t id = 0; id < 8; ++id) {
            // Scored so far: positions [kStart, id * kScored + kStart).
            const std::int64_t end = id * kScored + kStart, kept = std::min<std::int64_t>(size, end - kStart);
            INFO("window " << id << ", size " << size);
            REQUIRE(scorer.memory().size() == kept);
            const TrimeScores scores = scorer.score(text.window(id));
            REQUIRE(at::allclose(scores.log_p, text.expected(id, positions(end - kept, end), 1.3), 1e-4, 1e-5));
            REQUIRE(scores.entries == kept + kWindow);
        }
    }
}

TEST_CASE("tokens of the context count once where that is asked for") {
    const Text text(2);
    TrimeScorer scorer(text.output, {.mem_size = 10, .count_context_twice = false}, kKeyDim);
    for (index_t id = 0; id < 8; ++id) {
        const std::int64_t end = id * kScored + kStart, kept = std::min<std::int64_t>(10, end - kStart);
        const TrimeScores scores = scorer.score(text.window(id));
        // The window begins kStart before the first scored position.
        REQUIRE(at::allclose(
            scores.log_p, text.expected(id, positions(end - kept, std::max(end - kStart, end - kept)), 1), 1e-4, 1e-5));
    }
}

TEST_CASE("a gap between windows clears the long-term memory") {
    const Text text(3);
    TrimeScorer scorer(text.output, {.mem_size = 100}, kKeyDim);
    scorer.score(text.window(0)), scorer.score(text.window(1));
    REQUIRE(scorer.memory().size() == 2 * kScored);
    const TrimeScores scores = scorer.score(text.window(4));
    REQUIRE(at::allclose(scores.log_p, text.expected(4, {}, 1), 1e-4, 1e-5));
    REQUIRE(scorer.memory().size() == kScored);
    scorer.clear();
    REQUIRE(scorer.memory().size() == 0);
}

TEST_CASE("the scorer says what the composition of policies says") {
    const Text text(4), other(5, 40);
    const double temperature = 1.2, lambda = 0.3, own = 2;
    TokenStore<> datastore(kKeyDim);
    const auto append = [](auto& store, const Text& from, std::int64_t first, std::int64_t n) {
        const at::Tensor keys = from.keys.narrow(0, first, n).contiguous(),
                         values = from.tokens.narrow(0, first + 1, n).to(at::kInt).contiguous();
        store.append(as_rows(keys), {values.data_ptr<std::int32_t>(), static_cast<std::size_t>(n)});
    };
    append(datastore, other, 0, 40);
    const Exact<InnerProduct> search{6};
    TrimeScorer scorer(text.output,
                       {.temperature = temperature, .mem_size = 9, .lambda = lambda, .interpolation_temperature = own},
                       kKeyDim);
    for (index_t id = 0; id < 4; ++id) {
        const TrimeScores scores = scorer.score(text.window(id), search, datastore);
        // One long-term memory, the window's context and the scored positions.
        const std::int64_t first = id * kScored, scored = first + kStart;
        Both memories(RingStore(kKeyDim, 9), TokenStore<>(kKeyDim));
        append(memories.first(), text, kStart, scored - kStart);
        append(memories.second(), text, first, kWindow);
        TrimeLmExt<TokenStore<>, Exact<InnerProduct>> memory(
            LastHidden{}, Both(memories, datastore), {{}, search},
            {{trime_scale(kKeyDim, temperature)}, static_cast<float>(lambda), static_cast<float>(own)});
        const at::Tensor queries = text.keys.narrow(0, scored, kScored).contiguous();
        const at::Tensor all = scores.vocabulary.all.clone(), target = scores.vocabulary.target.clone();
        const at::Tensor targets = text.tokens.narrow(0, scored + 1, kScored).to(at::kInt).contiguous();
        std::vector<float> log_p(kScored);
        const auto span = [](const at::Tensor& t) { return std::span<float>(t.data_ptr<float>(), kScored); };
        JointLogProbs base{{targets.data_ptr<std::int32_t>(), kScored}, span(all), span(target), log_p};
        memory.read(as_rows(queries), base);
        REQUIRE(at::allclose(scores.log_p, at::tensor(log_p), 1e-4, 1e-5));
    }
}

TEST_CASE("where a datastore has nothing to say the joint softmax stays") {
    const Text text(6);
    const TokenStore<> empty(kKeyDim);
    TrimeScorer without(text.output, {}, kKeyDim), with(text.output, {.lambda = 0.4}, kKeyDim);
    const TrimeScores scores = with.score(text.window(0), Nothing{}, empty);
    REQUIRE(at::allclose(scores.log_p, without.score(text.window(0)).log_p));
    REQUIRE_THROWS_WITH(with.score(text.window(0)), Catch::Contains("retriever"));
}

TEST_CASE("no memory at all is the vocabulary alone, and wrong windows are named") {
    const Text text(7);
    TrimeScorer scorer(text.output, {.local = false}, kKeyDim);
    const TrimeScores scores = scorer.score(text.window(0));
    REQUIRE(at::allclose(scores.log_p, scores.vocabulary.target - scores.vocabulary.all));
    TrimeWindow w = text.window(0);
    w.start = 4;
    REQUIRE_THROWS_WITH(scorer.score(w), Catch::Contains("got 5 from 4"));
    REQUIRE_THROWS_WITH(TrimeScorer(text.output, {.temperature = 0}, kKeyDim), Catch::Contains("temperatures above 0"));
    REQUIRE_THROWS_WITH(TrimeScorer(text.output, {.lambda = 2}, kKeyDim), Catch::Contains("lambda"));
}
