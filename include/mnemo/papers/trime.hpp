// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/combine/joint_softmax.hpp>
#include <mnemo/core/memory.hpp>
#include <mnemo/extract/last_hidden.hpp>
#include <mnemo/kernels/metric.hpp>
#include <mnemo/loss/nll.hpp>
#include <mnemo/retrieve/both.hpp>
#include <mnemo/retrieve/dense.hpp>
#include <mnemo/store/both.hpp>
#include <mnemo/store/ring.hpp>
#include <mnemo/store/tokens.hpp>
#include <mnemo/text/blocks.hpp>

#include <array>
#include <optional>
#include <string_view>

// TRIME (Zhong, Lei and Chen 2022, arXiv 2205.12674): a language model whose next token is decided by one softmax over
// the vocabulary and over what it remembers, in training, where the batch is the memory, as in evaluation. One hidden
// vector of each position is key and query, its next token the value. The losses are in nn/trime.hpp.

namespace mnemo {

// ---- The method as policies. Write a window's states and tokens into the local store, then read with the same states
// and a JointLogProbs; the combiner's scale is 1 / (sqrt(d) * temperature), trime_scale. ----

/// The joint softmax over the vocabulary and what went before in the window.
using TrimeLm = Memory<LastHidden, TokenStore<>, Earlier<InnerProduct>, JointSoftmax, Nll>;

/// ... and over the newest tokens that were scored before the window.
using TrimeLmLong = Memory<LastHidden, Both<RingStore, TokenStore<>>,
                           RetrieveBoth<Everything<InnerProduct>, Earlier<InnerProduct>>, JointSoftmax, Nll>;

/// ... and over entries recalled from a datastore by any retriever, whose own distribution then takes a share.
template <class DatastoreT, class RetrieverT>
using TrimeLmExt =
    Memory<LastHidden, Both<Both<RingStore, TokenStore<>>, DatastoreT>,
           RetrieveBoth<RetrieveBoth<Everything<InnerProduct>, Earlier<InnerProduct>>, RetrieverT>, JointThenMix, Nll>;

/// Translation: raw logits and entries recalled from a datastore of target tokens become one softmax.
template <class DatastoreT, class RetrieverT> using TrimeMt = Memory<LastHidden, DatastoreT, RetrieverT, JointSoftmax>;

/// What scores of keys [d] are multiplied with.
inline float trime_scale(index_t key_dim, double temperature = 1) {
    return static_cast<float>(1 / (std::sqrt(static_cast<double>(key_dim)) * temperature));
}

// ---- Published configurations; the flag of the reference (princeton-nlp/TRIME) stands behind each. ----

/// Which memory a token sees while training.
enum class TrimeCriterion {
    own_segment,               // trime_loss
    earlier_segments,          // trime_long_loss_same_device
    earlier_segments_of_ranks, // trime_long_loss
    other_segments,            // trime_ext_loss
    other_sentences,           // trime_mt_loss
};

/// One published run: the model, its training, its evaluation, and what it reached.
struct TrimeConfig {
    std::string_view name;

    // The model: a pre-norm decoder with tied adaptive input and output.
    index_t layers, dim, ffn_dim, heads; // --decoder-layers, --decoder-embed-dim, ...
    std::array<index_t, 2> cutoffs;      // --adaptive-softmax-cutoff; 0: none
    double factor;                       // --adaptive-softmax-factor
    bool final_norm;                     // the key is the last feed-forward's input with and without
    double dropout, attention_dropout, activation_dropout, softmax_dropout = 0;

    // Training.
    TrimeCriterion criterion;               // --criterion
    index_t tokens_per_sample;              // --tokens-per-sample
    index_t max_tokens;                     // --max-tokens, of a rank
    index_t ranks, update_freq;             // GPUs, --update-freq
    index_t group = 1;                      // ranks that share a memory: --train-mem-size / max_tokens
    bool keep_order = false;                // --keep-order
    bool predefined_batches = false;        // --predefined-batches: BM25 order
    std::optional<double> cross_sentence{}; // --cross-sent-ratio
    index_t warm_up_epochs;                 // --ce-warmup-epoch
    std::string_view optimizer;             // --optimizer
    double learning_rate;                   // --lr, at its peak
    index_t updates, warm_up_updates = 0;   // --max-update, --warmup-updates
    double weight_decay = 0, clip_norm = 0;

    // Evaluation.
    WindowOptions windows;     // --tokens-per-sample minus --context-window, --context-window, --sample-break-mode
    double temperature;        // --softmax-temp
    index_t mem_size = 0;      // --mem-size, beside the window's own tokens
    index_t k = 0, nprobe = 0; // --k, --probe; 0: no datastore
    double interpolation_temperature = 1, lambda = 0; // --interp-temp, --lmbda

    // Published.
    double dev, test; // perplexity, or bits per character
};

namespace trime_knobs {

namespace detail {
constexpr TrimeConfig large{
    .name = "WikiText-103 247M, TrimeLM",
    .layers = 16,
    .dim = 1024,
    .ffn_dim = 4096,
    .heads = 8,
    .cutoffs = {20000, 60000},
    .factor = 4,
    .final_norm = false,
    .dropout = 0.3,
    .attention_dropout = 0.1,
    .activation_dropout = 0.1,
    .softmax_dropout = 0.2,
    .criterion = TrimeCriterion::own_segment,
    .tokens_per_sample = 3072,
    .max_tokens = 3072,
    .ranks = 4,
    .update_freq = 6,
    .warm_up_epochs = 9,
    .optimizer = "nag",
    .learning_rate = 1,
    .updates = 286000,
    .warm_up_updates = 16000,
    .clip_norm = 0.1,
    .windows = {.block_size = 512, .context = 2560, .mode = BreakMode::complete, .batch = {.max_rows = 1}},
    .temperature = 1.17,
    .dev = 17.10,
    .test = 17.76};
constexpr TrimeConfig medium{
    .name = "WikiText-103 150M, TrimeLM",
    .layers = 16,
    .dim = 410,
    .ffn_dim = 2100,
    .heads = 10,
    .cutoffs = {20000, 60000},
    .factor = 1,
    .final_norm = true,
    .dropout = 0.3,
    .attention_dropout = 0.1,
    .activation_dropout = 0.1,
    .criterion = TrimeCriterion::own_segment,
    .tokens_per_sample = 150,
    .max_tokens = 9000,
    .ranks = 4,
    .update_freq = 2,
    .warm_up_epochs = 3,
    .optimizer = "adam",
    .learning_rate = 5e-4,
    .updates = 200000,
    .warm_up_updates = 8000,
    .weight_decay = 0.01,
    .windows = {.block_size = 64, .context = 86, .mode = BreakMode::none, .batch = {.max_rows = 1}},
    .temperature = 1.03,
    .dev = 24.45,
    .test = 25.61};
constexpr TrimeConfig characters{
    .name = "enwik8 38M, TrimeLM",
    .layers = 12,
    .dim = 512,
    .ffn_dim = 2048,
    .heads = 8,
    .cutoffs = {208, 0},
    .factor = 1,
    .final_norm = true,
    .dropout = 0.3,
    .attention_dropout = 0.1,
    .activation_dropout = 0.1,
    .criterion = TrimeCriterion::own_segment,
    .tokens_per_sample = 512,
    .max_tokens = 12288,
    .ranks = 4,
    .update_freq = 1,
    .warm_up_epochs = 3,
    .optimizer = "adam",
    .learning_rate = 2.5e-4,
    .updates = 400000,
    .weight_decay = 0.01,
    .windows = {.block_size = 80, .context = 432, .mode = BreakMode::none, .batch = {.max_rows = 1}},
    .temperature = 1.05,
    .dev = 1.14,
    .test = 1.12};

constexpr TrimeConfig changed(TrimeConfig config, auto&& change) {
    change(config);
    return config;
}
} // namespace detail

inline constexpr TrimeConfig lm_247m = detail::large;
inline constexpr TrimeConfig long_247m = detail::changed(detail::large, [](TrimeConfig& c) {
    c.name = "WikiText-103 247M, TrimeLM_long";
    c.criterion = TrimeCriterion::earlier_segments_of_ranks, c.group = 4, c.keep_order = true; // --train-mem-size 12288
    c.temperature = 1.22, c.mem_size = 12288;
    c.dev = 17.01, c.test = 17.64;
});
inline constexpr TrimeConfig ext_247m = detail::changed(detail::large, [](TrimeConfig& c) {
    c.name = "WikiText-103 247M, TrimeLM_ext";
    c.criterion = TrimeCriterion::other_segments, c.predefined_batches = true, c.cross_sentence = 0.9;
    c.temperature = 1.25, c.mem_size = 12288, c.k = 1024, c.nprobe = 32;
    c.interpolation_temperature = 10.5, c.lambda = 0.3;
    c.dev = 15.54, c.test = 15.46;
});
inline constexpr TrimeConfig lm_150m = detail::medium;
inline constexpr TrimeConfig long_150m = detail::changed(detail::medium, [](TrimeConfig& c) {
    c.name = "WikiText-103 150M, TrimeLM_long";
    c.criterion = TrimeCriterion::earlier_segments, c.keep_order = true;
    c.temperature = 1.07, c.mem_size = 15000;
    c.dev = 21.76, c.test = 22.62;
});
inline constexpr TrimeConfig lm_enwik8 = detail::characters;
inline constexpr TrimeConfig long_enwik8 = detail::changed(detail::characters, [](TrimeConfig& c) {
    c.name = "enwik8 38M, TrimeLM_long";
    c.criterion = TrimeCriterion::earlier_segments, c.keep_order = true;
    c.temperature = 1.10, c.mem_size = 24576;
    c.dev = 1.08, c.test = 1.05;
});
inline constexpr std::array<TrimeConfig, 7> all{lm_247m,   long_247m, ext_247m,   lm_150m,
                                                long_150m, lm_enwik8, long_enwik8};

/// Translation, IWSLT'14 German to English.
inline constexpr double mt_temperature = 10;        // --temp
inline constexpr index_t mt_top_k = 8;              // --topk-mem
inline constexpr index_t mt_warm_up_epochs = 5;     // --ce-warmup-epoch
inline constexpr index_t mt_max_tokens = 4096;      // --max-tokens
inline constexpr index_t mt_decode_k = 16;          // k of decoding
inline constexpr double mt_decode_temperature = 15; // knn_temperature_value; times sqrt(D)
inline constexpr index_t mt_beam = 4;
inline constexpr double mt_length_penalty = 0.6;
inline constexpr double mt_bleu = 33.73; // published; 32.58 without memory, 33.15 kNN-MT

} // namespace trime_knobs

} // namespace mnemo
