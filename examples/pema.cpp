// SPDX-License-Identifier: MIT
// PEMA on real text: a small model learns to copy phrases from the comments of installed headers; a data owner, who
// never sees the model, teaches it a house style for some words. The parties meet in files alone (nn/pema_offsite.hpp):
// `--party owner`, `tuner` and `decoder` run one part each, without it all run in turn.
#include "pema_model.hpp"
#include "pema_report.hpp"

#include <mnemo/nn/batch_host.hpp>
#include <mnemo/nn/lm_host.hpp>
#include <mnemo/nn/pema_offsite.hpp>
#include <mnemo/nn/pema_train.hpp>

#include <CLI/CLI.hpp>

constexpr index_t kSteps = 14; // states exported for each prompt

std::vector<Line> prompts_of(const std::vector<Line>& lines) {
    std::vector<Line> out;
    for (const Line& line : lines) out.push_back(prompt_of(line));
    return out;
}

// ---- The owner: a base model, its head, and the states after the prompts that he is sent.

void owner(const Settings& set, const Language& language, const Lines& lines, index_t seed, const fs::path& folder) {
    const nn::TransformerLm model =
        base_model(set, language, lines.base, seed, (folder / "model.safetensors").string());
    nn::save_head((folder / "head.safetensors").string(), nn::exported_head(model, nn::ExportedNorm::last), "", kEnd,
                  kPad);
    nn::BatchHost host(model);
    PemaBuilding options;
    options.end = kEnd, options.fill = kEnd;
    const Fingerprint print{.model_hash = nn::weights_hash(*model),
                            .key_tap = "hidden.2",
                            .key_dim = set.dim,
                            .vocab_size = language.vocab()};
    for (const auto& [name, part] : {std::pair{"states", &lines.adapting}, {"held_out_states", &lines.held_out}})
        nn::export_states((folder / name).string(), print, host, prompts_of(*part), kSteps, options);
}

// ---- The tuner: knows the head, the states and the targets, and not the model.

TokenStore<float> memory_of(const Language& language, const std::vector<Line>& lines, const fs::path& states,
                            index_t dim) {
    std::vector<Line> targets;
    for (const Line& line : lines)
        targets.push_back(language.in_style(line)); // labels hold no end, as in the reference
    TokenStore<float> store(dim);
    nn::pair_states(Datastore::open(states.string()), targets, store);
    return store;
}
PemaRunLosses tuner(const Settings& set, const Language& language, const Lines& lines, index_t seed,
                    const fs::path& folder) {
    const nn::HeadFile file = nn::load_head((folder / "head.safetensors").string());
    const auto memory = memory_of(language, lines.adapting, folder / "states", set.dim);
    const auto held_out = memory_of(language, lines.held_out, folder / "held_out_states", set.dim);
    using Trainer = nn::PemaTrainer<TokenStore<float>>;
    PemaRunLosses losses;
    torch::manual_seed(static_cast<std::uint64_t>(seed));
    const auto fresh = [&] { return nn::PemaAdapter(nn::PemaAdapterOptions().dim(set.dim).rank(set.rank)); };
    nn::PemaTrainOptions options;
    options.batch = 128, options.epochs = set.epochs, options.seed = static_cast<std::uint64_t>(seed);
    options.phase = nn::PemaPhase::reconstruct;
    const nn::PemaAdapter first = fresh();
    Trainer reconstruct(first, file.head, memory, &held_out, options);
    losses.first = reconstruct.mean_loss(held_out);
    reconstruct.run([&](const Trainer::Progress& p) {
        if (p.validation) losses.reconstruct.x.push_back(double(p.step)), losses.reconstruct.y.push_back(*p.validation);
        return true;
    });
    reconstruct.restore_best();
    losses.reconstruction = reconstruct.mean_loss(held_out);
    const nn::PemaAdapter closed = fresh();
    nn::reconstruct_in_closed_form(closed, memory, pema_knobs::dropout);
    losses.closed_form = Trainer(closed, file.head, memory, nullptr, options).mean_loss(held_out);

    options.phase = nn::PemaPhase::joint;
    const nn::PemaAdapter adapter = fresh(); // a new A; what reconstructs stays
    at::NoGradGuard no_grad;
    adapter->lora_B_rct.copy_(first->lora_B_rct);
    Trainer joint(adapter, file.head, memory, &held_out, options);
    joint.run([&](const Trainer::Progress& p) {
        if (p.validation) losses.joint.x.push_back(double(p.step)), losses.joint.y.push_back(*p.validation);
        return true;
    });
    joint.restore_best();
    nn::save_adapter((folder / "adapter.safetensors").string(), adapter, nn::adapter_metadata(file.head));
    return losses;
}

// ---- The owner again: decodes with the adapter that came back. The tuner's memory is there for kNN-LM only.

PemaRunScores decoder(const Settings& set, const Language& language, const Lines& lines, index_t seed,
                      const fs::path& folder) {
    const nn::TransformerLm model =
        base_model(set, language, lines.base, seed, (folder / "model.safetensors").string());
    nn::BatchHost host(model);
    const nn::FrozenHead head = nn::exported_head(model, nn::ExportedNorm::last);
    const nn::PemaAdapter adapter = nn::load_adapter_for((folder / "adapter.safetensors").string(), head);
    const std::vector<Line> prompts = prompts_of(lines.test);
    std::vector<index_t> lengths; // nobody knows the targets: a copy is as long as its phrase, behind the frame
    for (const Line& line : lines.test) lengths.push_back(static_cast<index_t>(kWords + 1 + line.size()));
    PemaDecoding decoding;
    decoding.end = kEnd, decoding.fill = kEnd, decoding.max_tokens = 2 * kSteps;
    std::vector<Line> of_base;
    const auto score = [&](const std::vector<Line>& outputs) {
        PemaScore s;
        Bleu bleu;
        for (std::size_t i = 0; i < outputs.size(); ++i) {
            const std::string target = language.text(language.in_style(lines.test[i])), got = language.text(outputs[i]);
            s.exact += got == target, s.as_base += outputs[i] == of_base[i];
            s.words += double(tokenize_13a(got).size()) / double(outputs.size());
            bleu.add(got, target);
        }
        s.exact *= 100 / double(outputs.size()), s.as_base *= 100 / double(outputs.size()), s.bleu = bleu.score();
        return s;
    };
    PemaRunScores scores;
    const auto with = [&](const std::string& name, GradualUnrolling schedule) {
        const auto outputs =
            pema_generate(nn::pema_memory(adapter, head, schedule), host, prompts, lengths, decoding).tokens;
        if (of_base.empty()) of_base = outputs;
        scores.emplace_back(name, score(outputs));
    };
    with("base", {.lambda = 0});
    for (const float lambda : {0.3f, 0.5f, 0.9f, 0.97f}) {
        with(fmt::format("fixed {}", lambda), {.lambda = lambda, .on = false});
        with(fmt::format("gradual {}", lambda), {.lambda = lambda});
    }
    nn::LmHost single(model, "hidden.2");
    const auto memory = memory_of(language, lines.adapting, folder / "states", set.dim);
    for (const float lambda : {0.5f, 0.9f}) {
        const KnnLm<TokenStore<float>, Exact<L2>> knn(LastHidden{}, memory, {16}, {{.temperature = 1}, {lambda}}, {});
        std::vector<Line> outputs;
        for (const Line& p : prompts) {
            outputs.push_back(generate(knn, single, p, Generation{.tokens = decoding.max_tokens, .stop = kEnd}));
            outputs.back().push_back(kEnd);
        }
        scores.emplace_back(fmt::format("kNN-LM {}", lambda), score(outputs));
    }
    if (seed == 1)
        fmt::print("\n{}\n", [&] {
            std::string out;
            const auto outputs = pema_generate(nn::pema_memory(adapter, head), host, prompts, lengths, decoding).tokens;
            for (std::size_t i = 0; i < 3; ++i)
                out += fmt::format("phrase: {}\n  base: {}\n  PEMA: {}\n", language.text(lines.test[i]),
                                   language.text(of_base[i]), language.text(outputs[i]));
            return out;
        }());
    return scores;
}

int run(const Settings& set) {
    if (!set.model.empty()) {
        fs::create_directories(set.folder);
        return adapt_model(set) ? 0 : 1;
    }
    at::set_num_threads(1); // everything is small
    const Language language = read_language(set);
    const Lines lines = split(language, set);
    fmt::print("{} words; {} phrases to copy, {} to adapt to, {} held out, {} to test\nstyle:", language.vocab(),
               lines.base.size(), lines.adapting.size(), lines.held_out.size(), lines.test.size());
    for (const auto& [from, to] : language.style) fmt::print(" {} -> {},", language.text({from}), language.text({to}));
    fmt::print("\n");
    PemaReport report;
    for (index_t seed = 1; seed <= set.seeds; ++seed) {
        const fs::path folder = fs::path(set.folder) / fmt::format("seed{}", seed);
        fs::create_directories(folder);
        if (set.party != "tuner" && set.party != "decoder") owner(set, language, lines, seed, folder);
        if (set.party != "owner" && set.party != "decoder")
            report.losses.push_back(tuner(set, language, lines, seed, folder));
        if (set.party != "owner" && set.party != "tuner")
            report.scores.push_back(decoder(set, language, lines, seed, folder));
    }
    return report.finish(set) ? 0 : 1;
}

int main(int argc, char** argv) {
    std::setvbuf(stdout, nullptr, _IOLBF, 0); // in step with the progress on stderr
    CLI::App app("Distils a text into a low-rank memory of a language model, and decodes with it.");
    Settings set;
    app.add_option("folder", set.folder, "what crosses between the parties, and the results")->capture_default_str();
    app.add_option("--model", set.model, "GPT-2 or OPT in a Hugging Face folder, instead of training a small one");
    app.add_option("--pairs", set.pairs, "JSON lines to adapt that model to, instead of the house style");
    app.add_option("--source", set.source, "field of a pair")->capture_default_str();
    app.add_option("--target", set.target, "field of a pair")->capture_default_str();
    app.add_option("--prompt", set.prompt, "translation, formality, or a text with {} for the source")
        ->capture_default_str();
    app.add_option("--party", set.party, "run one part alone")->check(CLI::IsMember({"owner", "tuner", "decoder"}));
    app.add_option("--seeds", set.seeds, "of model and training: so many runs")
        ->check(CLI::Range(1, 100))
        ->capture_default_str();
    app.add_option("--steps", set.steps, "of the base model's training")->capture_default_str();
    app.add_option("--epochs", set.epochs, "of the adapter's training, at most")->capture_default_str();
    app.add_flag("--quick", set.quick, "a tiny model in seconds, to see that everything works");
    CLI11_PARSE(app, argc, argv);
    if (set.quick)
        set.dim = 32, set.steps = 150, set.epochs = 20, set.adapting = 150, set.held_out = 20, set.test = 10,
        set.seeds = 1;
    try {
        return run(set);
    } catch (const std::exception& e) {
        fmt::print(stderr, "pema: {}\n", e.what());
        return 2;
    }
}
