// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/combine/choose_token.hpp>
#include <mnemo/combine/head.hpp>
#include <mnemo/combine/interpolate.hpp>
#include <mnemo/combine/schedule.hpp>
#include <mnemo/core/memory.hpp>
#include <mnemo/extract/last_hidden.hpp>
#include <mnemo/kernels/mixture.hpp>
#include <mnemo/papers/knn_lm.hpp>
#include <mnemo/retrieve/recite.hpp>
#include <mnemo/store/low_rank.hpp>

#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

// PEMA (Kim et al. 2024): what a language model's states were followed by in a data owner's text is distilled into a
// low-rank map; decoding mixes the map's predictions with the model's. The states are the last layer's output before
// the final norm. p = (1 - lambda_t) p_LM + lambda_t softmax(W norm(s B A c)), where lambda_t falls along the sentence.

namespace mnemo {

/// The memory of PEMA: nothing is searched, the low-rank map recites. Its combiner is kNN-LM's with another evidence
/// and a weight that depends on the position (PositionedLogProbs).
template <class LambdaT = GradualUnrolling, class StoreT = LowRankMap>
using Pema = Memory<LastHidden, StoreT, Recite, Interpolate<HeadEvidence, LambdaT>>;

/// The published figures (WMT22, OPT-IML-MAX-1.3B); the flag of the reference (agwaBom/PEMA) stands behind each.
namespace pema_knobs {
inline constexpr index_t rank = 512;                                          // --num_rank; scale is 1 / rank
inline constexpr double kappa = 0.2;                                          // --kappa, share of the reconstruction
inline constexpr double dropout = 0.2;                                        // fixed there; of the adapter's input
inline constexpr double learning_rate = 1e-3;                                 // Adam, betas 0.9 and 0.999, epsilon 1e-8
inline constexpr index_t reconstruction_batch = 20480;                        // --batch_size with --method 1
inline constexpr index_t joint_batch = 2048;                                  // --batch_size with --method 3
inline constexpr index_t epochs = 200;                                        // --num_epochs
inline constexpr index_t validate_every = 100;                                // steps; fixed there
inline constexpr GradualUnrolling schedule{.lambda = 0.9f, .min_percent = 0}; // --lmbda, --gradual_unrolling_min
inline constexpr index_t batch = 30;                                          // --batch_size of building and decoding
inline constexpr index_t extra_tokens = 10;                                   // beyond the longest label
inline constexpr std::int32_t pad = 1, begin = 2, end = 50118;                // OPT's; the end is a line break
inline constexpr std::uint64_t seed = 123;                                    // --seed
} // namespace pema_knobs

/// The prompts of the reference. The blank at the end matters: it merges with the target's first word.
inline std::string pema_translation_prompt(std::string_view english) {
    return text("Translate this from English to German: \n", english, "\nGerman: ");
}
inline std::string pema_formality_prompt(std::string_view informal) {
    return text("Convert the following informal sentence into a formal sentence: \nInformal: ", informal, "\nFormal: ");
}

// ---- What the drivers ask of a host: the model's owner stands behind this interface. Views live until its next call.
// ----

/// Prompts of one batch, padded on the left to the longest.
struct PromptBatch {
    index_t rows = 0, width = 0;
    std::vector<std::int32_t> ids; // [rows, width]
    std::vector<index_t> padding;  // [rows], so many ids at the beginning are padding

    PromptBatch() = default;
    PromptBatch(std::span<const std::vector<std::int32_t>> prompts, std::int32_t pad)
        : rows(static_cast<index_t>(prompts.size())) {
        for (const auto& p : prompts) width = std::max(width, static_cast<index_t>(p.size()));
        for (const auto& p : prompts) {
            if (p.empty()) fail("prompts: expected at least one token in each, got none in row ", padding.size());
            padding.push_back(width - static_cast<index_t>(p.size()));
            ids.insert(ids.end(), static_cast<std::size_t>(padding.back()), pad);
            ids.insert(ids.end(), p.begin(), p.end());
        }
    }
};

/// What a host says about the newest tokens of a batch.
struct BatchStates {
    Rows states;  // [rows, d], the last layer's output before the final norm: what the memory is asked
    Rows head_in; // [rows, d], what the host multiplies with its output matrix
};

/// A host that decodes batches: `start(prompts)`, then `next(tokens)` with one token a row; `logits(rows, out)`
/// multiplies any rows [n, d] with the output matrix into out [n, vocab].
template <class H>
concept BatchDecodingHost =
    requires(H& host, const PromptBatch& prompts, std::span<const std::int32_t> tokens, Rows rows, MutRows logits) {
        { host.key_dim() } -> std::convertible_to<index_t>;
        { host.vocab_size() } -> std::convertible_to<index_t>;
        { host.start(prompts) } -> std::convertible_to<BatchStates>;
        { host.next(tokens) } -> std::convertible_to<BatchStates>;
        host.logits(rows, logits);
    };
/// ... and goes on with row from[i] as row i, for beams.
template <class H>
concept BeamHost = BatchDecodingHost<H> && requires(H& host, std::span<const index_t> from) { host.reorder(from); };
/// ... and reads whole texts at once: `read(texts)` gives the states [rows * width, d] of all positions.
template <class H>
concept ReadingHost = requires(H& host, const PromptBatch& texts) {
    { host.read(texts) } -> std::convertible_to<Rows>;
};

// ---- Decoding ----

struct PemaDecoding {
    index_t max_length = std::numeric_limits<index_t>::max() / 2; // of prompt with padding and output
    index_t max_tokens = 50;                                      // of the output
    std::int32_t end = -1;                                        // ends a row; it is part of the output
    std::int32_t fill = 1;                           // what the host reads in rows that have ended; the reference: pad
    UnrollingRows rows = UnrollingRows::independent; // coupled: as the reference, results depend on the batch
    index_t mixed_steps = std::numeric_limits<index_t>::max(); // then the base alone; the reference: label's columns
    float temperature = 0;                                     // 0: the best token
    std::uint64_t seed = 0;                                    // of the sampling; row i of all prompts has seed + i
    index_t beams = 1;                                         // more than 1: beam search, temperature 0
    float length_power = 1;                                    // beams: scores are log p / tokens^length_power
};

/// One step of a batch, for those who look on: before a token is chosen.
struct PemaStep {
    index_t step = 0;
    std::span<const float> lambda; // [rows]
    Rows base, memory;             // [rows, vocab], logits
};

struct PemaOutput {
    std::vector<std::vector<std::int32_t>> tokens; // of each prompt, with the end token where one came
    std::vector<double> log_p;                     // of each output under the mixture
};

/// How long a sequence will be, where nobody knows: prompt tokens * ratio + extra. The reference takes the length of
/// prompt and gold target instead, which is not there in real use.
struct LengthPrior {
    double ratio = 2;
    index_t extra = 0;
    index_t operator()(index_t prompt_tokens) const {
        return static_cast<index_t>(std::lround(ratio * static_cast<double>(prompt_tokens))) + extra;
    }
};

namespace detail {
/// The two logits of every row, by one product with the output matrix: rows [0, n) the base's, [n, 2n) the memory's.
class PemaHeads {
  public:
    template <class M, BatchDecodingHost H>
    void compute(const M& memory, H& host, const BatchStates& states, bool mixed) {
        const index_t n = states.states.rows, d = states.head_in.cols;
        rows_ = n;
        in_.rows = mixed ? 2 * n : n, in_.cols = d, in_.data.resize(static_cast<std::size_t>(in_.rows * d));
        logits_.rows = in_.rows, logits_.cols = host.vocab_size();
        logits_.data.resize(static_cast<std::size_t>(logits_.rows * logits_.cols));
        for (index_t row = 0; row < n; ++row)
            std::copy(states.head_in[row].begin(), states.head_in[row].end(), in_[row].begin());
        if (mixed) {
            const Vectors recalled = memory.retriever().retrieve(memory.store(), states.states);
            expect_equal("width of the memory's vectors", recalled.values.cols, d);
            for (index_t row = 0; row < n; ++row) memory.combiner().evidence.norm(recalled.vector(row), in_[n + row]);
        }
        host.logits(in_, logits_);
    }
    MutRows base() { return MutRows(logits_).slice(0, rows_); }
    MutRows memory() { return MutRows(logits_).slice(rows_, logits_.rows - rows_); }

  private:
    index_t rows_ = 0;
    Matrix in_, logits_;
};

/// The reference's loop: `choose(step, states)` gives the next token of each row and whether it has ended.
template <BatchDecodingHost H>
void decode_rows(H& host, const PromptBatch& prompts, const PemaDecoding& options, auto&& choose) {
    std::vector<char> alive(static_cast<std::size_t>(prompts.rows), 1);
    std::vector<std::int32_t> tokens(alive.size());
    BatchStates states = host.start(prompts);
    for (index_t step = 0;; ++step) {
        expect_equal("decoding: rows of the host", states.states.rows, prompts.rows);
        choose(step, states, std::span<std::int32_t>(tokens), std::span<const char>(alive));
        bool any = false;
        for (std::size_t row = 0; row < alive.size(); ++row) {
            if (!alive[row]) tokens[row] = options.fill;
            if (tokens[row] == options.end) alive[row] = 0;
            any |= alive[row] != 0;
        }
        if (!any || step + 1 >= options.max_tokens || prompts.width + step + 1 >= options.max_length) return;
        states = host.next(tokens);
    }
}
} // namespace detail

/// Host and memory together go on after each prompt. `lengths[i]` is how long sequence i is expected to be, prompt
/// included (LengthPrior). Both heads are one product with the output matrix, and the best token is found without
/// writing the mixture. The result of a row does not depend on the other rows, unless options.rows couples them.
/// `look(PemaStep)` is called at each step.
template <class M, BatchDecodingHost H, class Look>
PemaOutput pema_generate(const M& memory, H& host, std::span<const std::vector<std::int32_t>> prompts,
                         std::span<const index_t> lengths, const PemaDecoding& options, Look&& look) {
    expect_equal("pema_generate: lengths", lengths.size(), prompts.size());
    if (prompts.empty()) return {};
    if (options.beams != 1) fail("pema_generate: beams: expected 1 with an onlooker, got ", options.beams);
    const GradualUnrolling& schedule = memory.combiner().lambda;
    UnrollingWeights weights(schedule, lengths, options.rows);
    std::vector<ChooseToken> sampler;
    for (std::size_t row = 0; row < prompts.size(); ++row)
        sampler.emplace_back(options.temperature, options.seed + row);
    PemaOutput out{std::vector<std::vector<std::int32_t>>(prompts.size()), std::vector<double>(prompts.size())};
    detail::PemaHeads heads;
    const PromptBatch batch(prompts, options.fill);
    const auto choose = [&](index_t step, const BatchStates& states, std::span<std::int32_t> next,
                            std::span<const char> alive) {
        const bool mixed = step < options.mixed_steps && schedule.lambda > 0;
        heads.compute(memory, host, states, mixed);
        look(PemaStep{step, weights.lambda(), heads.base(), heads.memory()});
        for (std::size_t row = 0; row < next.size(); ++row) {
            if (!alive[row]) continue;
            const auto i = static_cast<index_t>(row);
            const float lambda = mixed ? weights.lambda()[row] : 0;
            const std::span<float> base = heads.base()[i], own = mixed ? heads.memory()[i] : base;
            BestToken best;
            if (options.temperature == 0) {
                best = best_of_mixture(base, own, lambda);
            } else {
                mix_logits(base, own, lambda);
                best.token = sampler[row](base);
                best.log_p = base[static_cast<std::size_t>(best.token)];
            }
            next[row] = best.token;
            out.tokens[row].push_back(best.token);
            out.log_p[row] += double{best.log_p};
        }
        weights.advance();
    };
    detail::decode_rows(host, batch, options, choose);
    return out;
}

namespace detail {
/// Beam search: the options.beams best outputs of each prompt go on together.
template <class M, BeamHost H>
PemaOutput pema_beams(const M& memory, H& host, std::span<const std::vector<std::int32_t>> prompts,
                      std::span<const index_t> lengths, const PemaDecoding& options) {
    if (options.temperature != 0) fail("pema_generate: temperature: expected 0 with beams");
    if (options.rows == UnrollingRows::coupled) fail("pema_generate: rows: expected independent ones with beams");
    struct Hypothesis {
        std::vector<std::int32_t> tokens;
        double log_p = 0;
        bool ended = false;
    };
    const auto score = [&](const Hypothesis& h) {
        return h.log_p / std::pow(static_cast<double>(std::max<std::size_t>(h.tokens.size(), 1)),
                                  static_cast<double>(options.length_power));
    };
    const auto beams = static_cast<std::size_t>(options.beams);
    PemaOutput out;
    for (std::size_t p = 0; p < prompts.size(); ++p) { // a prompt at a time: its beams are the batch
        const std::vector<std::vector<std::int32_t>> copies(beams, prompts[p]);
        const std::vector<index_t> length(beams, lengths[p]);
        UnrollingWeights weights(memory.combiner().lambda, length);
        std::vector<Hypothesis> live(1), done;
        PemaHeads heads;
        BatchStates states = host.start(PromptBatch(copies, options.fill));
        for (index_t step = 0;; ++step) {
            const bool mixed = step < options.mixed_steps && memory.combiner().lambda.lambda > 0;
            heads.compute(memory, host, states, mixed);
            struct Next {
                std::size_t from;
                std::int32_t token;
                double log_p;
            };
            std::vector<Next> next;
            for (std::size_t row = 0; row < live.size(); ++row) {
                const auto i = static_cast<index_t>(row);
                const std::span<float> log_p = heads.base()[i];
                mix_logits(log_p, mixed ? heads.memory()[i] : log_p, mixed ? weights.lambda()[row] : 0);
                std::vector<std::int32_t> ids(log_p.size());
                for (std::size_t v = 0; v < ids.size(); ++v) ids[v] = static_cast<std::int32_t>(v);
                const auto better = [&](std::int32_t a, std::int32_t b) {
                    const float x = log_p[static_cast<std::size_t>(a)], y = log_p[static_cast<std::size_t>(b)];
                    return x != y ? x > y : a < b;
                };
                const std::size_t some = std::min(2 * beams, ids.size()); // half of them may end
                std::partial_sort(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(some), ids.end(), better);
                for (std::size_t v = 0; v < some; ++v)
                    next.push_back({row, ids[v], live[row].log_p + double{log_p[static_cast<std::size_t>(ids[v])]}});
            }
            std::stable_sort(next.begin(), next.end(), [](const Next& a, const Next& b) { return a.log_p > b.log_p; });
            const bool last = step + 1 >= options.max_tokens ||
                              static_cast<index_t>(prompts[p].size()) + step + 1 >= options.max_length;
            std::vector<Hypothesis> chosen;
            std::vector<index_t> from;
            std::vector<std::int32_t> tokens;
            for (const Next& n : next) {
                if (chosen.size() == beams) break;
                Hypothesis h = live[n.from];
                h.tokens.push_back(n.token), h.log_p = n.log_p, h.ended = n.token == options.end;
                if (h.ended || last)
                    done.push_back(std::move(h));
                else
                    from.push_back(static_cast<index_t>(n.from)), tokens.push_back(n.token),
                        chosen.push_back(std::move(h));
                if (last && done.size() >= beams) break;
            }
            const auto best_done = std::max_element(done.begin(), done.end(),
                                                    [&](const auto& a, const auto& b) { return score(a) < score(b); });
            if (last || chosen.empty() || (done.size() >= beams && score(*best_done) >= score(chosen.front()))) break;
            while (from.size() < beams) from.push_back(from.back()), tokens.push_back(tokens.back()); // idle rows
            host.reorder(from);
            states = host.next(tokens);
            weights.advance();
            live = std::move(chosen);
        }
        const auto best = std::max_element(done.begin(), done.end(),
                                           [&](const auto& a, const auto& b) { return score(a) < score(b); });
        out.tokens.push_back(best->tokens), out.log_p.push_back(best->log_p);
    }
    return out;
}
} // namespace detail

template <class M, BatchDecodingHost H>
PemaOutput pema_generate(const M& memory, H& host, std::span<const std::vector<std::int32_t>> prompts,
                         std::span<const index_t> lengths, const PemaDecoding& options = {}) {
    if (options.beams < 1) fail("pema_generate: beams: expected at least 1, got ", options.beams);
    if constexpr (BeamHost<H>)
        if (options.beams > 1) return detail::pema_beams(memory, host, prompts, lengths, options);
    return pema_generate(memory, host, prompts, lengths, options, [](const PemaStep&) {});
}

// ---- Building what the map is trained on: states, and the tokens that should have followed ----

/// A prompt and what should follow it.
struct PemaExample {
    std::vector<std::int32_t> prompt, target;

    /// As the reference cuts a label, the ids of prompt and target in one string: its first target token stands where
    /// the prompt's last one does, because the blank at the prompt's end merges with the target's first word.
    static PemaExample from_label(std::vector<std::int32_t> prompt, std::span<const std::int32_t> label) {
        if (prompt.empty() || label.size() + 1 < prompt.size())
            fail("label: expected at least ", prompt.size(), " - 1 tokens as in the prompt, got ", label.size());
        const auto target = label.subspan(prompt.size() - 1);
        return {std::move(prompt), {target.begin(), target.end()}};
    }
};

/// Whose words stand between the prompt and a state: the model's own, as in the reference and while decoding, or the
/// target's. The latter is one pass instead of one a token, and a state always stands before the token it is stored
/// with; the keys are others.
enum class PemaContexts { free_running, teacher_forced };

struct PemaBuilding {
    PemaContexts contexts = PemaContexts::free_running;
    index_t batch = pema_knobs::batch;
    std::int32_t end = -1; // of a row: it is read no further, but its states are stored as the reference stores them
    std::int32_t fill = 1; // what rows that have ended read
    index_t extra_tokens = pema_knobs::extra_tokens; // the model may write so many beyond the longest label
    bool whole_output = false; // go on when all targets have their states, as the reference does; changes no row
    index_t first_batch = 0;   // of an interrupted run: earlier batches are in the store
};

struct BuiltPemaMemory {
    index_t written = 0; // rows
    index_t dropped = 0; // target tokens without a state, because every row of the batch had ended before
    std::vector<index_t> rows_of_example;
};

/// One batch: `store(example, keys, values)` is called for each example in order. Returns what the model wrote,
/// [rows, prompt width + steps], for free-running contexts.
template <class H>
std::vector<std::vector<std::int32_t>> pema_states(H& host, std::span<const PemaExample> batch,
                                                   const PemaBuilding& options, auto&& store) {
    const index_t d = host.key_dim();
    std::vector<std::vector<std::int32_t>> texts;
    std::vector<Matrix> keys;
    std::vector<index_t> filled(batch.size());
    index_t longest = 0, most = 0;
    for (const PemaExample& e : batch) {
        texts.push_back(e.prompt);
        keys.emplace_back(static_cast<index_t>(e.target.size()), d);
        most = std::max(most, keys.back().rows);
        longest = std::max(longest, static_cast<index_t>(e.prompt.size()) - 1 + keys.back().rows);
    }
    const auto take = [&](std::size_t row, std::span<const float> state) {
        std::copy(state.begin(), state.end(), keys[row][filled[row]].begin());
        ++filled[row];
    };
    std::vector<std::vector<std::int32_t>> written;
    if (options.contexts == PemaContexts::teacher_forced) {
        if constexpr (ReadingHost<H>) {
            for (std::size_t row = 0; row < batch.size(); ++row) // nobody reads the last token
                if (!batch[row].target.empty())
                    texts[row].insert(texts[row].end(), batch[row].target.begin(), batch[row].target.end() - 1);
            const PromptBatch read(texts, options.fill);
            const Rows states = host.read(read);
            expect_equal("pema_states: states of the host", states.rows, read.rows * read.width);
            for (std::size_t row = 0; row < batch.size(); ++row)
                for (index_t i = 0; i < keys[row].rows; ++i)
                    take(row, states[(static_cast<index_t>(row) + 1) * read.width - keys[row].rows + i]);
        } else {
            fail("pema_states: this host does not read whole texts: expected free-running contexts");
        }
    } else {
        const PromptBatch prompts(texts, options.fill);
        for (index_t row = 0; row < prompts.rows; ++row) {
            const auto first = prompts.ids.begin() + row * prompts.width;
            written.emplace_back(first, first + prompts.width);
        }
        Matrix logits(prompts.rows, host.vocab_size());
        PemaDecoding decoding;
        decoding.end = options.end, decoding.fill = options.fill;
        decoding.max_length = longest + options.extra_tokens;
        decoding.max_tokens = options.whole_output ? decoding.max_length : std::max<index_t>(most, 1);
        detail::decode_rows(
            host, prompts, decoding,
            [&](index_t, const BatchStates& states, std::span<std::int32_t> next, std::span<const char> alive) {
                for (std::size_t row = 0; row < next.size(); ++row)
                    if (filled[row] < keys[row].rows) take(row, states.states[static_cast<index_t>(row)]);
                host.logits(states.head_in, logits);
                for (std::size_t row = 0; row < next.size(); ++row) {
                    const auto of_row = logits[static_cast<index_t>(row)];
                    next[row] =
                        static_cast<std::int32_t>(std::max_element(of_row.begin(), of_row.end()) - of_row.begin());
                    written[row].push_back(alive[row] ? next[row] : options.fill);
                }
            });
    }
    for (std::size_t row = 0; row < batch.size(); ++row)
        store(batch[row], Rows(keys[row].data.data(), filled[row], d),
              std::span(batch[row].target).first(static_cast<std::size_t>(filled[row])));
    return written;
}

/// Appends the states and target tokens of all examples to `store` (append(Rows, std::span<const std::int32_t>)), a
/// batch at a time, in order; no prompt token is stored. `progress(examples done, all)` is called after each batch.
template <class H, class StoreT, ProgressReport P = NoProgress>
    requires WritableStoreFor<StoreT, Rows, std::span<const std::int32_t>>
BuiltPemaMemory build_pema_memory(H& host, std::span<const PemaExample> examples, StoreT& store,
                                  const PemaBuilding& options = {}, P&& progress = {}) {
    if (options.batch < 1) fail("build_pema_memory: batch: expected at least 1, got ", options.batch);
    BuiltPemaMemory built;
    const auto size = static_cast<std::size_t>(options.batch);
    for (std::size_t first = static_cast<std::size_t>(options.first_batch) * size; first < examples.size();
         first += size) {
        const auto batch = examples.subspan(first, std::min(size, examples.size() - first));
        pema_states(host, batch, options, [&](const PemaExample& e, Rows keys, std::span<const std::int32_t> values) {
            if (keys.rows > 0) store.append(keys, values);
            built.written += keys.rows;
            built.dropped += static_cast<index_t>(e.target.size()) - keys.rows;
            built.rows_of_example.push_back(keys.rows);
        });
        progress(static_cast<index_t>(first + batch.size()), static_cast<index_t>(examples.size()));
    }
    return built;
}

} // namespace mnemo
