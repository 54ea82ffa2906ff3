// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/combine/choose_token.hpp>
#include <mnemo/core/session.hpp>
#include <mnemo/extract/last_hidden.hpp>
#include <mnemo/papers/knn_lm_sweep.hpp>
#include <mnemo/text/blocks.hpp>

#include <cmath>
#include <random>
#include <span>
#include <utility>
#include <vector>

// kNN-LM (Khandelwal et al., 2020, arXiv 1911.00172): a trained language model, unchanged, and a datastore of what
// followed each of its states. Keys are states of the model (the paper: the input of the last feed-forward block after
// its norm), values the next tokens; p = lambda p_kNN + (1 - lambda) p_LM.

namespace mnemo {

/// kNN-LM over any store of tokens and any retriever: Exact<L2>, Rescored<FaissIndex, L2>, AnyRetriever<Store>, ...
template <class StoreT, class RetrieverT, Executor X = Serial>
using KnnLm = Memory<LastHidden, StoreT, RetrieverT, Interpolate<TokenVotes, Fixed, X>, Nll>;

/// The published figures; the flag of the reference (urvashik/knnlm) stands behind each.
namespace knn_lm_knobs {
inline constexpr index_t k = 1024;                  // --k
inline constexpr float temperature = 1;             // none there; knn_temp in knn-transformers
inline constexpr float lambda = 0.25f;              // --lmbda, datastore of the model's own domain
inline constexpr float lambda_other_domain = 0.65f; // --lmbda, datastore of another domain
inline constexpr index_t nprobe = 32;               // --probe, lists visited by a search

inline constexpr index_t centroids = 4096;         // --ncentroids
inline constexpr index_t code_size = 64;           // --code_size, bytes of a product-quantised key
inline constexpr index_t code_bits = 8;            // fixed there
inline constexpr index_t training_keys = 1000000;  // fixed there; drawn without replacement
inline constexpr index_t keys_at_a_time = 1000000; // --num_keys_to_add_at_a_time
inline constexpr std::uint64_t seed = 1;           // --seed

/// Text that fills the datastore.
inline constexpr WindowOptions saving{
    .block_size = 1536, // --tokens-per-sample 3072 minus the context
    .context = 1536,    // --context-window
    .mode = BreakMode::none,
    .batch = {.max_tokens = 3072}, // --max-tokens
};
/// Text that is scored.
inline constexpr WindowOptions evaluating{
    .block_size = 512, // --tokens-per-sample 3072 minus the context
    .context = 2560,   // --context-window
    .mode = BreakMode::complete,
    .batch = {.max_tokens = 3072}, // --max-tokens
};
} // namespace knn_lm_knobs

// ---- What the drivers ask of a host. Views live until its next call. ----

/// What a host says about the scored tokens of a batch, row after row (WindowBatch::scored of them).
struct ScoredTokens {
    Rows keys;                    // [scored, d]
    std::span<const float> log_p; // [scored], of the targets
};
/// What a host says after one more token.
struct DecodedToken {
    Rows key;          // [1, d]
    MutRows log_probs; // [1, vocab], of the next token
};

/// A host whose states fill a datastore: `keys(batch)` gives [scored, d].
template <class H>
concept KeyHost = requires(H& host, const WindowBatch& batch) {
    { host.keys(batch) } -> std::convertible_to<Rows>;
};
/// ... that scores text: `score(batch)`.
template <class H>
concept ScoringHost = requires(H& host, const WindowBatch& batch) {
    { host.score(batch) } -> std::convertible_to<ScoredTokens>;
};
/// ... that writes text: `reset()`, then `step(token)` for each token of the prompt and of the continuation.
template <class H>
concept DecodingHost = requires(H& host, std::int32_t token) {
    host.reset();
    { host.step(token) } -> std::convertible_to<DecodedToken>;
};
/// Batches of a text, one after another: ContextWindows, or anything else that cuts.
template <class W>
concept WindowSource = requires(W& windows, WindowBatch& batch) {
    { windows.next(batch) } -> std::convertible_to<bool>;
    { windows.tokens() } -> std::convertible_to<index_t>;
};

/// Called as progress(tokens done, tokens in all).
template <class P> concept ProgressReport = std::invocable<P&, index_t, index_t>;
struct NoProgress {
    void operator()(index_t, index_t) const {}
};

// ---- The datastore ----

struct BuiltDatastore {
    index_t written = 0; // rows appended
    index_t skipped = 0; // tokens whose block had too little context
};

namespace detail {
/// f(at, values) for each row of a batch that has context enough: the keys of `values` begin with the batch's key `at`.
inline void for_each_kept(const WindowBatch& batch, index_t min_context, auto&& f) {
    for (index_t row = 0, at = 0; row < batch.rows; ++row) {
        const auto values = batch.scored_targets(row);
        if (batch.start[static_cast<std::size_t>(row)] >= min_context) f(at, values);
        at += static_cast<index_t>(values.size());
    }
}
} // namespace detail

/// Appends a row for each scored token of `windows` to `store` (append(Rows, std::span<const std::int32_t>)), in the
/// text's order: the key is the host's state, the value the token that followed. How many there will be is nobody's
/// guess. Blocks with less than `min_context` tokens before them are left out, as the reference leaves out the first
/// block: its rule is min_context = --context-window; 0 writes every token. A short last block is written like any
/// other.
template <KeyHost H, WindowSource W, class StoreT, ProgressReport P = NoProgress>
    requires WritableStoreFor<StoreT, Rows, std::span<const std::int32_t>>
BuiltDatastore build_datastore(H& host, W& windows, StoreT& store, index_t min_context, P&& progress = {}) {
    BuiltDatastore built;
    WindowBatch batch;
    while (windows.next(batch)) {
        const index_t scored = batch.scored(), before = built.written;
        Rows keys;
        detail::for_each_kept(batch, min_context, [&](index_t at, std::span<const std::int32_t> values) {
            if (keys.rows == 0) keys = host.keys(batch); // not asked where nothing is written
            expect_equal("build_datastore: keys of a batch", keys.rows, scored);
            store.append(keys.slice(at, static_cast<index_t>(values.size())), values);
            built.written += static_cast<index_t>(values.size());
        });
        built.skipped += scored - (built.written - before);
        progress(built.written + built.skipped, static_cast<index_t>(windows.tokens()));
    }
    return built;
}
template <KeyHost H, class StoreT, ProgressReport P = NoProgress>
BuiltDatastore build_datastore(H& host, ContextWindows& windows, StoreT& store, P&& progress = {}) {
    return build_datastore(host, windows, store, windows.options().context, progress);
}

// ---- Evaluation ----

/// A text under the host alone and with its memory.
struct KnnLmScores {
    Perplexity host, combined;
};

namespace detail {
/// What the host says about a batch, whose targets are written to `targets`.
template <ScoringHost H>
ScoredTokens score_batch(H& host, const WindowBatch& batch, std::vector<std::int32_t>& targets) {
    targets.clear();
    for (index_t row = 0; row < batch.rows; ++row) {
        const auto of_row = batch.scored_targets(row);
        targets.insert(targets.end(), of_row.begin(), of_row.end());
    }
    const ScoredTokens scored = host.score(batch);
    const auto n = static_cast<index_t>(targets.size());
    expect_equal("score: keys of a batch", scored.keys.rows, n);
    expect_equal("score: log-probabilities of a batch", static_cast<index_t>(scored.log_p.size()), n);
    return scored;
}
/// f(scored, targets) for each batch of a text that the host scored.
template <ScoringHost H, WindowSource W> void for_each_scored(H& host, W& windows, auto&& progress, auto&& f) {
    WindowBatch batch;
    std::vector<std::int32_t> targets;
    index_t done = 0;
    while (windows.next(batch)) {
        const ScoredTokens scored = score_batch(host, batch, targets);
        f(scored, std::span<const std::int32_t>(targets));
        progress(done += static_cast<index_t>(targets.size()), static_cast<index_t>(windows.tokens()));
    }
}
} // namespace detail

/// Scores a text with and without the memory: one search a batch.
template <class M, ScoringHost H, WindowSource W, ProgressReport P = NoProgress>
KnnLmScores evaluate(const M& memory, H& host, W& windows, P&& progress = {}) {
    KnnLmScores scores;
    Session<const M, Rows> session(memory);
    std::vector<float> log_p;
    detail::for_each_scored(host, windows, progress, [&](const ScoredTokens& scored, auto targets) {
        log_p.assign(scored.log_p.begin(), scored.log_p.end());
        session.read(scored.keys, TargetLogProbs{targets, log_p});
        scores.host.add(scored.log_p);
        scores.combined.add(log_p);
    });
    return scores;
}

/// The same under every setting of `grid`, still with one search a batch; the memory's own k must be the largest. Its
/// lambda and temperature are not used.
template <class M, ScoringHost H, WindowSource W, ProgressReport P = NoProgress>
KnnLmSweep sweep(const M& memory, H& host, W& windows, KnnLmGrid grid, P&& progress = {}) {
    KnnLmSweep total{std::move(grid), {}};
    total.perplexity.assign(total.grid.k.size() * total.grid.temperature.size() * total.grid.lambda.size(), 0.0);
    index_t tokens = 0;
    std::vector<float> log_p;
    detail::for_each_scored(host, windows, progress, [&](const ScoredTokens& scored, auto targets) {
        if (targets.empty()) return;
        log_p.assign(scored.log_p.begin(), scored.log_p.end());
        const auto part = sweep(total.grid, memory.recall(scored.keys), memory.store(), TargetLogProbs{targets, log_p});
        for (std::size_t i = 0; i < part.perplexity.size(); ++i)
            total.perplexity[i] += static_cast<double>(targets.size()) * std::log(part.perplexity[i]);
        tokens += static_cast<index_t>(targets.size());
    });
    for (double& p : total.perplexity) p = std::exp(p / static_cast<double>(tokens));
    return total;
}

// ---- Generation ----

struct Generation {
    index_t tokens = 50;    // at most
    float temperature = 0;  // 0: always the best token
    std::uint64_t seed = 0; // of the sampling
    std::int32_t stop = -1; // a token that ends the text; it is not part of it
};

/// What host and memory together write after `prompt`: at each step the host's distribution, combined with what the
/// memory recalls for its state. `seen(token)` is called for each new token.
template <class M, DecodingHost H>
std::vector<std::int32_t> generate(const M& memory, H& host, std::span<const std::int32_t> prompt,
                                   const Generation& options, auto&& seen) {
    if (prompt.empty()) fail("generate: expected a prompt of at least one token (the end-of-sentence token will do)");
    Session<const M, Rows> session(memory);
    ChooseToken choose(options.temperature, options.seed);
    std::vector<std::int32_t> out;
    host.reset();
    for (const std::int32_t token : prompt.first(prompt.size() - 1)) host.step(token);
    std::int32_t token = prompt.back();
    while (static_cast<index_t>(out.size()) < options.tokens) {
        DecodedToken next = host.step(token);
        session.read(next.key, next.log_probs);
        token = choose(next.log_probs[0]);
        if (token == options.stop) break;
        out.push_back(token);
        seen(token);
    }
    return out;
}
template <class M, DecodingHost H>
std::vector<std::int32_t> generate(const M& memory, H& host, std::span<const std::int32_t> prompt,
                                   const Generation& options = {}) {
    return generate(memory, host, prompt, options, [](std::int32_t) {});
}

// ---- A control ----

/// The values of a store in a random order, for WithValues: the same keys, the same frequencies, nothing remembered.
/// The same seed gives the same order on every machine.
template <TokenValued S> std::vector<typename S::value_type> shuffled_values(const S& store, std::uint64_t seed = 1) {
    std::vector<typename S::value_type> values;
    for (index_t id = 0; id < static_cast<index_t>(store.size()); ++id) values.push_back(store.value(id));
    std::mt19937_64 random(seed);
    for (std::size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[random() % i]);
    return values;
}

} // namespace mnemo
