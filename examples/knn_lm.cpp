// SPDX-License-Identifier: MIT
// kNN-LM on real text: a small language model is trained on one library's C++ headers (or on any files) and gets a
// memory of that text; then memories of other libraries, which it has never seen, without more training. Everything
// stays in the output folder: a second run loads it, an interrupted one goes on.
#include "knn_lm_model.hpp"
#include "knn_lm_report.hpp"

#include <mnemo/app/progress.hpp>
#include <mnemo/faiss/index.hpp>
#include <mnemo/nn/train.hpp>
#include <mnemo/retrieve/recall_report.hpp>

#include <CLI/CLI.hpp>

struct Settings {
    index_t vocab = 1024, dim = 128, layers = 3, steps = 1800, batch = 8, context = 128;
    index_t memory = 250000;                    // entries, at most
    std::vector<index_t> smaller{10000, 50000}; // memories, to see what size does
    index_t block = 64;                         // keys see 64 to 127 tokens of context
    index_t valid = 100, test = 200;            // excerpts that are scored ...
    index_t scored = 16;                        // ... and tokens of each
    KnnLmGrid grid{
        {16, 64, 256}, {0.3f, 1, 3}, {0, .02f, .05f, .1f, .15f, .2f, .25f, .3f, .4f, .5f, .6f, .7f, .8f, .9f}};
    std::string index = FaissBuild::ivfpq(256, 32, 8);
    index_t nprobe = 32;

    SampleSizes samples() const { return {valid, test, scored, context}; }
};

struct Options {
    std::string folder = "knn_lm.out";
    std::string model; // a folder of the Hugging Face hub; empty: one is trained
    CorpusPaths paths{};
    index_t threads = omp_get_max_threads(); // OMP_NUM_THREADS, or all cores
    std::uint64_t seed = 1;
    bool quick = false;

    std::string file(const std::string& name) const { return (fs::path(folder) / name).string(); }
};

// ---- 1. The model, from scratch. To load it is to go on with a training that has ended.
nn::TransformerLm trained(const Settings& set, const Options& options, const Text& text) {
    torch::manual_seed(options.seed);
    nn::TransformerLm model(nn::TransformerLmOptions()
                                .vocab_size(set.vocab)
                                .dim(set.dim)
                                .ffn_dim(4 * set.dim)
                                .layers(set.layers)
                                .max_positions(set.context));
    nn::TrainOptions training;
    training.steps = set.steps, training.batch = set.batch, training.context = set.context;
    training.seed = options.seed;
    training.windows = nn::TrainOptions::Windows::blocks;
    nn::Trainer trainer(model, text.tokens, training);
    const std::string checkpoint = options.file("model.safetensors");
    try {
        if (fs::exists(checkpoint)) trainer.resume(checkpoint);
    } catch (const Error& e) {
        fmt::print("Training anew: {}\n", e.what());
    }
    if (trainer.done() < set.steps) {
        Progress bar("training on " + text.name, "tokens");
        trainer.run(
            [&](index_t done, index_t total, double) {
                if (done % 200 == 0 || done == total) trainer.save(checkpoint);
                return bar(done * set.batch * set.context, total * set.batch * set.context);
            },
            Threads{options.threads});
    }
    return model;
}

int remember_and_evaluate(const Settings& set, const Options& options, std::vector<Text> texts, const auto& tokenizer,
                          auto& host) {
    const Threads threads{options.threads};
    const std::uint64_t seed = options.seed;

    // ---- 2. The memories: the model's states in each text, with the tokens that followed.
    Hash64 run_hash; // of everything that the figures depend on
    for (Text& t : texts) {
        t.store =
            remember(t, host, set.memory, set.block, options.file("stores/" + t.name), tokenizer.hash(), tokenizer.eos);
        t.valid = score_sample(host, t.valid_windows), t.test = score_sample(host, t.test_windows);
        const Fingerprint& memory = t.store->fingerprint();
        run_hash.add(memory.model_hash).add(memory.tokenizer_hash).add(memory.more.at("text"));
        for (const WindowBatch* w : {&t.valid_windows, &t.test_windows})
            run_hash.add(std::as_bytes(std::span(w->inputs)));
    }

    // ---- 3. Evaluation: k, temperature and lambda are tuned on valid, and test is reported. One search serves every
    // setting; what an earlier run has found out stands in its report.
    KnnLmReport report(options.folder, run_hash.text());
    const Exact<L2, Threads> exact{set.grid.k.back(), threads};
    index_t done = 0;
    for (Progress bar("evaluating"); Text & t : texts) {
        const auto by = [&](const auto& store) { return KnnLmResults{tune(set.grid, exact, store, t.valid, t.test)}; };
        t.own_and_controls = report.kept(t.name + " with its own memory", [&] {
            const Hits valid = exact.retrieve(*t.store, t.valid.queries),
                       test = exact.retrieve(*t.store, t.test.queries);
            const auto with = [&](const auto& store) {
                return KnnLmTuned{sweep(set.grid, valid, store, t.valid.base()),
                                  sweep(set.grid, test, store, t.test.base())};
            };
            const auto shuffled = shuffled_values(*t.store, seed); // the same retrieval, with nothing to remember
            const Unigram unigram = Unigram::of(*t.store, host.vocab_size()); // no retrieval
            return KnnLmResults{
                with(*t.store),
                with(WithValues(*t.store, shuffled)),
                {sweep(set.grid.lambda, unigram, t.valid.base()), sweep(set.grid.lambda, unigram, t.test.base())}};
        });
        if (texts.size() > 1) {
            const Text& stranger = texts[&t == &texts[0] ? 1 : 0];
            t.wrong = report.kept(t.name + " with the memory of " + stranger.name, [&] { return by(*stranger.store); });
        }
        for (const index_t size : set.smaller) {
            const auto key = fmt::format("{} with {} entries of its memory", t.name, size);
            t.sizes.emplace_back(size, report.kept(key, [&] { return by(FirstEntries(*t.store, size)); })[0]);
        }
        t.sizes.emplace_back(t.store->size(), t.own());
        bar(++done, static_cast<index_t>(texts.size()));
    }

    // ---- 4. The memory at work, on the first text that the model does not know.
    Text& t = texts[texts.size() > 1 ? 1 : 0];
    const auto [k, temperature, lambda] = t.own().setting();
    KnnLm<std::shared_ptr<const Datastore>, Exact<L2, Threads>> memory(LastHidden{}, t.store, {k, threads},
                                                                       {{.temperature = temperature}, {lambda}}, {});
    show_recall(t, tokenizer, memory);

    const Generation generation{.tokens = set.context / 2, .temperature = 0.5f, .seed = seed};
    const auto prompt = t.test_windows.input(0).first(static_cast<std::size_t>(set.context / 2));
    const std::string with = tokenizer.decode(generate(memory, host, prompt, generation));
    memory.combiner().lambda.lambda = 0;
    const std::string without = tokenizer.decode(generate(memory, host, prompt, generation));
    fmt::print("\n{} goes on after\n...{}\n---- without memory:\n{}\n---- with memory:\n{}\n----\n\n", t.name,
               tokenizer.decode(prompt.last(prompt.size() / 2)), without, with);

    const index_t some = std::min<index_t>(800, t.test.size());
    const Rows queries = Rows(t.test.queries).slice(0, some);
    const auto alone = std::span(t.test.log_p).first(static_cast<std::size_t>(some));
    std::vector<float> log_p(alone.begin(), alone.end());
    memory.read(queries, TargetLogProbs{std::span(t.test.targets).first(alone.size()), log_p}); // lambda is 0 now
    report.check("lambda 0 is the model alone, bit for bit",
                 std::memcmp(log_p.data(), alone.data(), alone.size_bytes()) == 0, fmt::format("{} tokens", some));

    // ---- 5. An index, for stores that are too large to be scanned.
    Progress adding("indexing " + t.name, "entries");
    const auto width = static_cast<int>(threads.count);
    FaissIndex index = FaissIndex::build(*t.store, {.factory = set.index, .training_rows = 10000, .threads = width},
                                         options.file("stores/" + t.name + "/index.faiss"), std::ref(adding));
    index.k = k, index.threads = width;
    index.set_nprobe(set.nprobe);
    const RecallReport recall = recall_report(Rescored<FaissIndex, L2>{index}, memory.retriever(), *t.store, queries);
    fmt::print("{} with {} lists visited finds {:.1f} % of the {} nearest keys.\n", set.index, set.nprobe,
               100 * recall.recall, k);
    report.numbers["index"] = {{"factory", set.index}, {"nprobe", set.nprobe}, {"recall", recall.recall}};

    // What is known about the standard run must hold.
    report.finish(texts, tokenizer, !options.quick && options.model.empty() && texts[0].name == "eigen");
    return report.passed() ? 0 : 1;
}

int run(const Options& options) {
    Settings set;
    if (options.quick) {
        set.vocab = 300, set.dim = 32, set.layers = 2, set.steps = 40, set.context = 64, set.block = 32;
        set.memory = 4000, set.smaller = {500, 2000}, set.valid = 10, set.test = 20;
        set.index = FaissBuild::ivfpq(8, 8, 4);
    }
    const Threads threads{options.threads};
    const std::vector<Corpus> corpora = read_corpora(options.paths);
    fs::create_directories(options.file("stores"));
    at::set_num_threads(1); // windows are shared among threads instead of matrix products

    if (options.model.empty()) {
        // A byte-level BPE, learned from the text that trains the model.
        const Bpe bpe = Bpe::learn(join(corpora[0].train), set.vocab);
        bpe.save(options.file("bpe.txt"));
        std::vector<Text> texts = read_texts(set.samples(), corpora, bpe);
        nn::LmHost host(trained(set, options, texts[0]), "ffn_in", threads);
        return remember_and_evaluate(set, options, std::move(texts), bpe, host);
    }
    const FolderTokenizer tokenizer(options.model);
    nn::LmHost host(nn::load_hugging_face(options.model), "ffn_in", threads);
    set.context = std::min(set.context, index_t{host.model()->max_positions()});
    set.block = std::min(set.block, set.context / 2);
    return remember_and_evaluate(set, options, read_texts(set.samples(), corpora, tokenizer), tokenizer, host);
}

int main(int argc, char** argv) {
    std::setvbuf(stdout, nullptr, _IOLBF, 0); // in step with the progress on stderr
    CLI::App app("Gives a language model a memory of text, and evaluates it. Everything is kept in FOLDER.");
    app.footer("For example: knn_lm wiki --text wiki.valid.tokens --test wiki.test.tokens");
    Options options;
    app.add_option("folder", options.folder, "what was computed, and the results")->capture_default_str();
    app.add_option("--model", options.model, "GPT-2 or OPT in a Hugging Face folder, instead of training a small one");
    app.add_option("--text", options.paths.text, "files or folders to train on, instead of Eigen's headers");
    app.add_option("--test", options.paths.test, "files to evaluate that text on, instead of a part of it");
    app.add_option("--other", options.paths.other, "another domain's text, instead of other libraries' headers");
    app.add_option("--threads", options.threads, "that work at a time")
        ->check(CLI::Range(1, 1024))
        ->capture_default_str();
    app.add_option("--seed", options.seed, "of the first weights and of training")->capture_default_str();
    app.add_flag("--quick", options.quick, "a tiny model in seconds, to see that everything works");
    CLI11_PARSE(app, argc, argv);
    try {
        return run(options);
    } catch (const std::exception& e) {
        fmt::print(stderr, "knn_lm: {}\n", e.what());
        return 2;
    }
}
