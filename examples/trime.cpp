// SPDX-License-Identifier: MIT
// TRIME on real text: the same small language model is trained with cross-entropy and with in-batch memories, from the
// same starts with the same steps, and each is scored on held-out text with no memory, with the window's own tokens,
// with a long-term memory of growing size, and with a datastore of the training text. The text is the C++ headers that
// came with the libraries (or any files); what has been computed stays in the output folder.
#include "knn_lm_model.hpp"
#include "knn_lm_text.hpp"
#include "trime_report.hpp"

#include <CLI/CLI.hpp>

struct Settings {
    index_t vocab = 1024, dim = 96, layers = 2, seeds = 3;
    index_t segment = 64;    // tokens
    index_t segments = 9600; // of the training text, at most
    WindowOptions windows{.block_size = 32, .context = 32, .batch = {.max_rows = 16}};
    std::size_t valid = 4096, test = 8192;            // tokens that are scored
    std::vector<index_t> sizes{128, 512, 1024, 2048}; // of the long-term memory
    std::vector<double> temperatures{0.8, 1, 1.25, 1.6, 2};
    std::vector<double> shares{0.1, 0.25};  // lambda of the datastore's own distribution ...
    std::vector<double> sharpness{1, 2, 4}; // ... whose scores are divided by sqrt(dim) / this
    index_t entries = 65536, k = 128;       // of the datastore; recalled for a token
    Training training;
};

struct Options {
    std::string folder = "trime.out", model; // model: a folder of the Hugging Face hub; empty: small ones are trained
    CorpusPaths paths{};
    double rate = 0;
    index_t seeds = 0, steps = 0, threads = at::get_num_threads(); // 0: as the settings say
    bool quick = false;
};

// All methods from the same starts; `make_model()` is one start.
int compare(const Settings& set, const Options& options, const Corpus& corpus, const auto& tokenizer,
            const auto& make_model) {
    const Threads threads{options.threads};
    const fs::path folder = options.folder;

    // ---- 1. Tokens, and the orders in which segments make batches.
    const auto tokens = [&](const std::vector<TextFile>& documents, std::size_t most) {
        std::vector<std::int32_t> ids;
        for (const TextFile& document : documents)
            if (ids.size() < most) tokenizer.encode(document.text, ids), ids.push_back(tokenizer.eos);
        ids.resize(std::min(ids.size(), most));
        return ids;
    };
    const auto train_tokens = tokens(corpus.train, static_cast<std::size_t>(set.segments * set.segment + 1));
    const auto valid_tokens = tokens(corpus.valid, set.valid), test_tokens = tokens(corpus.test, set.test);
    const Segments segments{train_tokens, set.segment};
    const std::vector<index_t> in_order = consecutive(segments.count()), at_random = shuffled(in_order, 1),
                               alike = by_bm25(segments, 20);
    fmt::print("{}: {} segments of {} tokens; {} and {} tokens are scored\n", corpus.name, segments.count(),
               segments.length, valid_tokens.size(), test_tokens.size());
    const std::vector<Method> methods{{Method::none, "cross-entropy", &at_random},
                                      {Method::own_segment, "TRIME", &at_random},
                                      {Method::earlier_segments, "TRIME_long", &in_order},
                                      {Method::other_segments, "TRIME_ext, BM25", &alike},
                                      {Method::other_segments, "TRIME_ext, random", &at_random}};

    // ---- 2. The models: for each seed one start, from which every method sets out.
    struct Run {
        const Method& method;
        std::uint64_t seed;
        decltype(make_model()) model;
    };
    std::vector<Run> runs;
    for (index_t seed = 1; seed <= set.seeds; ++seed)
        for (const Method& method : methods) {
            torch::manual_seed(static_cast<std::uint64_t>(seed));
            runs.push_back({method, static_cast<std::uint64_t>(seed), make_model()});
        }

    // ---- 3. Training and scoring; runs are shared among threads.
    Hash64 identity; // of what the figures depend on
    identity.add(std::as_bytes(std::span(train_tokens))).add(std::as_bytes(std::span(test_tokens)));
    if (!options.model.empty()) identity.add(nn::weights_hash(*make_model()));
    identity.add(std::as_bytes(std::span(&set.training.learning_rate, 1)));
    for (const index_t n : {set.training.steps, set.training.batch, set.dim, set.layers, set.segment})
        identity.add(std::as_bytes(std::span(&n, 1)));
    TrimeReport report(folder, identity.text(), set.sizes);
    std::mutex one_at_a_time;
    index_t ticks = 0;
    Progress bar("training", "steps");
    threads.run(static_cast<index_t>(runs.size()), [&](index_t i, index_t) {
        at::init_num_threads(); // a new thread does not know what the program has set
        auto& [method, seed, model] = runs[static_cast<std::size_t>(i)];
        const auto tick = [&] {
            const std::scoped_lock lock(one_at_a_time);
            bar(++ticks, static_cast<index_t>(runs.size()) * set.training.steps);
        };
        if (report.has(method.name, seed)) {
            for (index_t step = 0; step < set.training.steps; ++step) tick();
            return;
        }
        train(model, segments, method, set.training, seed, tick);

        // Temperatures and shares are chosen on valid text, for each memory of each model; test text is reported.
        const at::NoGradGuard no_grad;
        const nn::OutputLayer output = model->output_layer();
        Scored valid(model, valid_tokens, set.windows), test(model, test_tokens, set.windows);
        const auto tuned = [&](const std::vector<nn::TrimeScoring>& settings, const TokenStore<>* store = nullptr) {
            std::size_t best = 0;
            double lowest = INFINITY;
            for (std::size_t j = 0; j < settings.size(); ++j)
                if (const double p = perplexity(valid, output, settings[j], store); p < lowest) lowest = p, best = j;
            return std::pair{settings[best], perplexity(test, output, settings[best], store)};
        };
        const auto at_temperatures = [&](nn::TrimeScoring scoring) {
            std::vector<nn::TrimeScoring> out;
            for (scoring.temperature = 0; const double t : set.temperatures)
                scoring.temperature = t, out.push_back(scoring);
            return out;
        };
        json figures;
        figures["none"] = perplexity(test, output, {.local = false});
        figures["0"] = tuned(at_temperatures({})).second;
        for (const index_t size : set.sizes)
            figures[fmt::format("{}", size)] = tuned(at_temperatures({.mem_size = size})).second;
        const TokenStore<> store = remember(model, segments, set.entries);
        valid.search(store, set.k), test.search(store, set.k);
        const auto [joint, with_store] = tuned(at_temperatures({}), &store);
        figures["external"] = with_store;
        std::vector<nn::TrimeScoring> mixed; // beside the joint softmax or in its place
        for (const bool external : {true, false})
            for (const double share : set.shares)
                for (const double sharpness : set.sharpness) {
                    nn::TrimeScoring& m = mixed.emplace_back(joint);
                    m.external = external, m.lambda = share;
                    m.interpolation_temperature = std::sqrt(double(store.key_dim())) / sharpness;
                }
        figures["mixed"] = tuned(mixed, &store).second;
        const std::scoped_lock lock(one_at_a_time);
        report.add(method.name, seed, figures);
    });

    // ---- 4. The table, the plot, and what must hold of the standard run.
    std::vector<std::string> names;
    for (const Method& method : methods) names.emplace_back(method.name);
    report.finish(names, set.seeds, !options.quick && options.model.empty() && corpus.name == "eigen");
    return report.passed() ? 0 : 1;
}

int run(const Options& options) {
    Settings set;
    const bool quick = options.quick;
    if (quick) {
        set.vocab = 300, set.dim = 32, set.layers = 1, set.seeds = 1, set.segment = 16, set.segments = 400;
        set.windows.block_size = set.windows.context = 8;
        set.valid = 64, set.test = 128, set.sizes = {32}, set.temperatures = {1};
        set.shares = {0.2}, set.sharpness = {1};
        set.entries = 400, set.k = 8, set.training.steps = 20, set.training.batch = 4;
    }
    if (options.seeds > 0) set.seeds = options.seeds;
    if (options.steps > 0) set.training.steps = options.steps;
    if (!options.model.empty()) set.training.learning_rate = 1e-4;
    if (options.rate > 0) set.training.learning_rate = options.rate;
    const Corpus corpus = read_corpora(options.paths)[0];
    fs::create_directories(options.folder);
    at::set_num_threads(1); // trainings run beside each other instead of matrix products
    if (options.model.empty())
        return compare(set, options, corpus, Bpe::learn(join(corpus.train), set.vocab), [&] {
            return nn::TransformerLm(nn::TransformerLmOptions()
                                         .vocab_size(set.vocab)
                                         .dim(set.dim)
                                         .ffn_dim(4 * set.dim)
                                         .layers(set.layers)
                                         .max_positions(set.segment));
        });
    return compare(set, options, corpus, FolderTokenizer(options.model),
                   [&] { return nn::load_hugging_face(options.model); });
}

int main(int argc, char** argv) {
    std::setvbuf(stdout, nullptr, _IOLBF, 0); // in step with the progress on stderr
    CLI::App app("Trains a language model with in-batch memories, and scores text with and without them.");
    Options options;
    app.add_option("folder", options.folder, "what was computed, and the results")->capture_default_str();
    app.add_option("--model", options.model, "GPT-2 or OPT in a Hugging Face folder, to be tuned further");
    app.add_option("--text", options.paths.text, "files or folders to train on, instead of Eigen's headers");
    app.add_option("--test", options.paths.test, "files to evaluate on, instead of a part of the text");
    app.add_option("--seeds", options.seeds, "starts and orders per method; default: 3")->check(CLI::Range(1, 100));
    app.add_option("--steps", options.steps, "of each training; default: 800")->check(CLI::Range(1, 1000000));
    app.add_option("--rate", options.rate, "of learning; default: 3e-3, with --model 1e-4")->check(CLI::PositiveNumber);
    app.add_option("--threads", options.threads, "trainings at a time")
        ->check(CLI::Range(1, 1024))
        ->capture_default_str();
    app.add_flag("--quick", options.quick, "tiny models in seconds, to see that everything works");
    CLI11_PARSE(app, argc, argv);
    try {
        return run(options);
    } catch (const std::exception& e) {
        fmt::print(stderr, "trime: {}\n", e.what());
        return 2;
    }
}
