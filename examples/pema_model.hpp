// SPDX-License-Identifier: MIT
#pragma once

// examples/pema.cpp on a model that is there already: a folder of the Hugging Face hub, and pairs of sentences.
#include "knn_lm_model.hpp"
#include "pema_report.hpp"

#include <mnemo/io/sentence_pairs.hpp>
#include <mnemo/nn/batch_host.hpp>
#include <mnemo/nn/lm_host.hpp>
#include <mnemo/nn/pema_offsite.hpp>
#include <mnemo/nn/pema_train.hpp>

#include <cmath>

// The prompt around a source sentence: a published one by its name, or a text with {} in the sentence's place. A blank
// at its end merges with the target's first word.
inline std::string prompt_of(const std::string& frame, const std::string& source) {
    if (frame == "translation") return pema_translation_prompt(source);
    if (frame == "formality") return pema_formality_prompt(source);
    const std::size_t place = frame.find("{}");
    if (place == frame.npos) fail("--prompt: expected translation, formality or a text with {}, got ", frame);
    return frame.substr(0, place) + source + frame.substr(place + 2);
}

// The pairs of a file, or phrases of installed headers in a house style.
inline std::vector<SentencePair> read_pairs(const Settings& set) {
    if (!set.pairs.empty()) return read_sentence_pairs(set.pairs, set.source, set.target);
    const Language language = read_language(set);
    std::vector<SentencePair> pairs;
    for (const Line& line : shuffled(language.phrases, 1))
        if (language.needs_style(line)) pairs.push_back({language.text(line), language.text(language.in_style(line))});
    return pairs;
}

inline bool adapt_model(Settings set) {
    const FolderTokenizer tokenizer(set.model);
    const nn::HuggingFaceLm model = nn::load_hugging_face(set.model);
    nn::BatchHost host(model);
    const nn::FrozenHead head = nn::exported_head(model, nn::ExportedNorm::last);
    const auto encode = [&](const std::string& text) {
        Line ids;
        tokenizer.encode(text, ids);
        return ids;
    };
    // A line break ends an output, as in the reference.
    const std::int32_t end = encode("\n").at(0);

    // ---- 1. Pairs as tokens; what does not fit the model's positions is left out.
    std::vector<PemaExample> adapting, held_out, test;
    std::vector<SentencePair> test_pairs;
    index_t left_out = 0;
    double ratio = 0;
    for (const SentencePair& pair : read_pairs(set)) {
        const std::string prompt = prompt_of(set.prompt, pair.source);
        const PemaExample e = prompt.back() == ' '
                                  ? PemaExample::from_label(encode(prompt), encode(prompt + pair.target))
                                  : PemaExample{encode(prompt), encode(" " + pair.target)};
        if (e.prompt.empty() ||
            static_cast<std::int64_t>(e.prompt.size() + 2 * e.target.size()) > model->max_positions()) {
            ++left_out;
            continue;
        }
        auto& part = test.size() < set.test           ? test
                     : held_out.size() < set.held_out ? held_out
                     : adapting.size() < set.adapting ? adapting
                                                      : test;
        if (&part == &test && test.size() == set.test) break;
        if (&part == &test) test_pairs.push_back(pair);
        if (&part == &adapting) ratio += double(e.prompt.size() + e.target.size()) / double(e.prompt.size());
        part.push_back(e);
    }
    fmt::print("{}: {} pairs to adapt to, {} held out, {} to test; {} were too long\n", model->description(),
               adapting.size(), held_out.size(), test.size(), left_out);
    if (adapting.empty() || held_out.empty()) fail("expected more pairs that fit the model's positions");
    const LengthPrior prior{.ratio = ratio / double(adapting.size())};

    // ---- 2. The memory, and what is distilled from it.
    const auto remember = [&](const char* name, const std::vector<PemaExample>& examples) {
        TokenStore<float> store(host.key_dim());
        PemaBuilding options;
        options.end = end, options.fill = tokenizer.eos, options.contexts = PemaContexts::teacher_forced;
        Progress bar(name, "examples");
        build_pema_memory(host, examples, store, options, bar);
        return store;
    };
    const auto memory = remember("remembering", adapting), validation = remember("held out", held_out);
    using Trainer = nn::PemaTrainer<TokenStore<float>>;
    nn::PemaTrainOptions options;
    options.batch = std::min<index_t>(pema_knobs::joint_batch, memory.size()), options.epochs = set.epochs;
    const auto fresh = [&] {
        return nn::PemaAdapter(
            nn::PemaAdapterOptions().dim(host.key_dim()).rank(std::min<index_t>(pema_knobs::rank, host.key_dim())));
    };
    torch::manual_seed(pema_knobs::seed);
    const nn::PemaAdapter adapter = fresh(), first = fresh();
    const at::NoGradGuard no_grad;
    PemaRunLosses losses;
    options.phase = nn::PemaPhase::reconstruct;
    losses.first = Trainer(first, head, memory, nullptr, options).mean_loss(validation);
    nn::reconstruct_in_closed_form(first, memory, pema_knobs::dropout); // in place of steps
    losses.reconstruction = losses.closed_form = Trainer(first, head, memory, nullptr, options).mean_loss(validation);
    adapter->lora_B_rct.copy_(first->lora_B_rct);
    options.phase = nn::PemaPhase::joint, options.validate_every = 10;
    Trainer trainer(adapter, head, memory, &validation, options);
    Progress bar("training", "steps");
    trainer.run([&](const Trainer::Progress& p) {
        bar(p.step, p.steps);
        if (p.validation) losses.joint.x.push_back(double(p.step)), losses.joint.y.push_back(*p.validation);
        return true;
    });
    trainer.restore_best();
    nn::save_adapter(set.folder + "/adapter.safetensors", adapter, nn::adapter_metadata(head));

    // ---- 3. Outputs with and without it.
    std::vector<Line> prompts;
    std::vector<index_t> lengths;
    for (const PemaExample& e : test) {
        prompts.push_back(e.prompt);
        lengths.push_back(prior(static_cast<index_t>(e.prompt.size())));
    }
    PemaDecoding decoding;
    decoding.end = end, decoding.fill = tokenizer.eos, decoding.max_length = model->max_positions();
    PemaRunScores scores;
    std::vector<std::string> of_base;
    const auto with = [&](const std::string& name, GradualUnrolling schedule) {
        PemaScore s;
        Bleu bleu;
        const auto memory_of = nn::pema_memory(adapter, head, schedule);
        for (std::size_t at = 0; at < prompts.size(); at += pema_knobs::batch) {
            const std::size_t n = std::min<std::size_t>(pema_knobs::batch, prompts.size() - at);
            const auto outputs = pema_generate(memory_of, host, std::span(prompts).subspan(at, n),
                                               std::span(lengths).subspan(at, n), decoding)
                                     .tokens;
            for (std::size_t i = 0; i < n; ++i) {
                std::string got = clean_generated(tokenizer.decode(outputs[i]));
                got.erase(0, got.find_first_not_of(' '));
                const std::string& target = test_pairs[at + i].target;
                if (schedule.lambda == 0) of_base.push_back(got);
                const double share = 1 / double(prompts.size());
                s.exact += 100 * share * double(got == target),
                    s.as_base += 100 * share * double(got == of_base[at + i]);
                s.words += share * double(tokenize_13a(got).size());
                bleu.add(got, target);
                if (at + i == 0) fmt::print("{:<12} {} -> {}\n", name, test_pairs[0].source, got);
            }
        }
        s.bleu = bleu.score();
        scores.emplace_back(name, s);
    };
    with("base", {.lambda = 0});
    for (const float lambda : {0.5f, 0.9f})
        for (const bool gradual : {false, true})
            with(fmt::format("{} {}", gradual ? "gradual" : "fixed", lambda), {.lambda = lambda, .on = gradual});
    PemaReport report;
    report.losses = {losses}, report.scores = {scores};
    set.quick = true; // the checks are those of the example's own model
    return report.finish(set);
}
