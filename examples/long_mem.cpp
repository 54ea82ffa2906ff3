// SPDX-License-Identifier: MIT
// LongMem on tasks and texts that are longer than a model's context. First a text whose values can be foretold from
// memory alone; then the headers of one library train a small backbone and its side network, and a long text of another
// library is read with memories of growing size, beside controls. With --model the backbone is a model of the Hugging
// Face hub in a folder.
#include "knn_lm_model.hpp"
#include "knn_lm_text.hpp"
#include "long_mem_report.hpp"

#include <mnemo/nn/long_mem_files.hpp>

#include <CLI/CLI.hpp>

#include <mutex>

struct Options {
    std::string folder = "long_mem.out", model{};
    CorpusPaths paths{};
    index_t seeds = 3, steps = 0, threads = at::get_num_threads();
    bool quick = false;
};

RecallFigures recall(const RecallTask& task, const RecallSettings& set, std::uint64_t seed, const Tick& tick) {
    const nn::HuggingFaceLm backbone = recall_backbone(task, set, seed, tick);
    const std::string before = nn::weights_hash(*backbone);
    const auto learned = [&](index_t layer, bool remember) {
        nn::LongMem model = recall_model(backbone, set, layer);
        train_recall(model, task, set, remember, seed, tick);
        return model;
    };
    nn::LongMem model = learned(1, true), without = learned(1, false), unaligned = learned(3, true);
    const auto accuracy = [&](nn::LongMem<>& m, bool remember) {
        return recall_accuracy(m, task, set, remember, seed);
    };
    return {accuracy(model, true), accuracy(model, false), accuracy(without, true), accuracy(unaligned, true),
            nn::weights_hash(*backbone) == before};
}

// What figures of finished seeds must share with this run.
std::string run_name(const RecallSettings& set) {
    return fmt::format("{} and {} steps, {} tests", set.backbone_steps, set.side_documents, set.tests);
}
std::string run_name(const TextSettings& set, std::span<const std::int32_t> train, std::span<const std::int32_t> text,
                     std::span<const std::int32_t> wrong, const std::string& model) {
    Hash64 texts;
    for (const auto ids : {train, text, wrong}) texts.add(std::as_bytes(ids));
    std::vector<std::string> lessons;
    for (const Lesson& l : set.lessons)
        lessons.push_back(fmt::format("{} x {} x {} at {}", l.steps, l.rows, l.length, l.rate));
    return fmt::format("text of {} in segments of {} through {} x {} dimensions in {} heads, lessons {}, {} steps "
                       "of {} at {}, layer {} of {}, chunk {}, k {}, memories {}, {} places, model {}",
                       texts.text(), set.segment, set.layers, set.dim, set.heads, fmt::join(lessons, ", "),
                       set.side_steps, set.side_rows, set.learning_rate, set.layer, set.reduction, set.chunk, set.k,
                       fmt::join(set.sizes, " "), set.places, model);
}

// Of the libraries that are installed FAISS is read where it is: what its headers say they say again far away.
const std::vector<TextFile>& long_text(const std::vector<Corpus>& corpora, const CorpusPaths& paths) {
    if (corpora.size() == 1 || !paths.test.empty()) return corpora[0].test;
    const auto found =
        std::find_if(corpora.begin() + 1, corpora.end(), [](const Corpus& c) { return c.name == "faiss"; });
    return (found != corpora.end() ? *found : corpora[1]).train;
}

int run(const Options& options) {
    RecallTask task;
    RecallSettings toy;
    TextSettings set;
    if (options.quick) {
        toy.backbone_steps = 5, toy.side_documents = 8, toy.tests = 4;
        set.vocab = 300, set.dim = 32, set.segment = 32, set.lessons = {{8, 16, 32, 4e-3}}, set.side_steps = 12;
        set.sizes = {128, 512}, set.places = 3;
    }
    if (options.steps > 0) set.side_steps = options.steps;
    const auto seeds = static_cast<std::size_t>(options.quick ? 1 : options.seeds);
    fs::create_directories(options.folder);
    at::set_num_threads(1); // runs stand beside each other instead of matrix products

    // ---- 1. The texts: one library to learn, the next to read, a third that does not belong there.
    const std::vector<Corpus> corpora = read_corpora(options.paths);
    const std::vector<TextFile>& reading = long_text(corpora, options.paths);
    const std::vector<TextFile>& stranger = corpora.back().train;
    std::function<void(std::string_view, std::vector<std::int32_t>&)> encode;
    nn::HuggingFaceLm loaded = nullptr;
    if (options.model.empty()) {
        const Bpe bpe = Bpe::learn(join(corpora[0].train), set.vocab);
        bpe.save(options.folder + "/bpe");
        encode = [bpe](auto text, auto& ids) { bpe.encode(text, ids); };
    } else {
        encode = [tokenizer = FolderTokenizer(options.model)](auto text, auto& ids) { tokenizer.encode(text, ids); };
        loaded = nn::load_hugging_face(options.model);
        const auto& o = loaded->options();
        set.vocab = o.vocab_size, set.dim = o.dim, set.heads = o.heads, set.layers = o.layers;
        set.reduction = set.layers % 2 == 0 ? 2 : 1;
        set.layer = set.layers / set.reduction * 2 / 3 * set.reduction;
        set.lessons.clear();
        set.segment = std::min(set.segment, o.max_positions);
    }
    const auto tokens = [&](const std::vector<TextFile>& documents, index_t most) {
        std::vector<std::int32_t> ids;
        for (const TextFile& document : documents)
            if (static_cast<index_t>(ids.size()) < most) encode(document.text + "\n", ids);
        ids.resize(std::min(ids.size(), static_cast<std::size_t>(most)));
        return ids;
    };
    const index_t needed = set.sizes.back() + set.segment * (set.every * set.places + 1);
    const auto train = tokens(corpora[0].train, 1'500'000), text = tokens(reading, needed),
               wrong = tokens(stranger, set.sizes.back());
    if (static_cast<index_t>(text.size()) < needed || wrong.empty())
        fail("a text of ", needed, " tokens is needed to read and another beside it, got ", text.size());
    fmt::print("{} tokens to learn, {} to read\n", short_count(double(train.size())), short_count(double(text.size())));

    // ---- 2. The runs, shared among threads; those that an earlier run with the same settings has finished are done.
    std::vector<RecallFigures> recalled(seeds);
    std::vector<TextFigures> read(seeds);
    std::mutex one_at_a_time;
    LongMemReport report(options.folder, run_name(toy), run_name(set, train, text, wrong, options.model));
    index_t total = toy.backbone_steps + 3 * toy.side_documents / toy.side_rows + set.side_steps + set.places;
    for (const Lesson& lesson : set.lessons) total += lesson.steps;
    total *= static_cast<index_t>(seeds);
    index_t ticks = 0;
    Progress bar("training and reading", "steps");
    const Tick tick = [&] {
        const std::scoped_lock lock(one_at_a_time);
        bar(++ticks, total);
    };
    Threads{options.threads}.run(2 * static_cast<index_t>(seeds), [&](index_t job, index_t) {
        at::init_num_threads(); // a new thread does not know what the program has set
        const auto seed = static_cast<std::uint64_t>(job % static_cast<index_t>(seeds) + 1);
        const auto is_there = [&](auto& figures) {
            const std::scoped_lock lock(one_at_a_time);
            return report.find(seed, figures);
        };
        if (job >= static_cast<index_t>(seeds)) {
            if (is_there(recalled[seed - 1])) return;
            recalled[seed - 1] = recall(task, toy, seed, tick);
            const std::scoped_lock lock(one_at_a_time);
            report.keep(seed, recalled[seed - 1]);
            fmt::print("Recall task, seed {}: accuracy {:.3f} in the last segment\n", seed,
                       recalled[seed - 1].memory.back());
            return;
        }
        if (is_there(read[seed - 1])) return;
        nn::HuggingFaceLm backbone = loaded ? loaded : text_backbone(set, seed);
        if (!loaded) learn_text(backbone, train, set, seed, tick);
        // Another seed starts at another place of the text.
        std::vector<std::int32_t> turned = train;
        std::rotate(turned.begin(), turned.begin() + std::ptrdiff_t((seed - 1) * 12'345 % turned.size()), turned.end());
        const nn::LongMem<> model = text_model(backbone, turned, set, [&](double) { tick(); });
        read[seed - 1] = score_text(model, text, wrong, set, tick);
        const std::scoped_lock lock(one_at_a_time);
        report.keep(seed, read[seed - 1]);
        if (!loaded && seed == 1) // for examples/long_mem_tasks
            nn::save_long_mem(options.folder + "/model.safetensors", backbone, model.side(),
                              {.heads = set.heads, .reduction = set.reduction, .retrieval_layer = set.layer});
        fmt::print("Text, seed {}: perplexity", seed);
        for (const auto& [name, perplexity] : read[seed - 1].perplexity) fmt::print(", {} {:.3f}", name, perplexity);
        fmt::print("\n");
    });

    // ---- 3. Tables, pictures, and what must hold.
    const bool checked = !options.quick;
    report.recall(recalled, checked);
    report.text(read, set, options.folder, checked && options.model.empty());
    report.save(options.folder + "/long_mem.json");
    fmt::print("Every number, memory.svg and reads.svg are in {}\n", options.folder);
    return report.passed() ? 0 : 1;
}

int main(int argc, char** argv) {
    std::setvbuf(stdout, nullptr, _IOLBF, 0); // in step with the progress on stderr
    CLI::App app("Reads a long text with a memory of what a frozen model has seen.");
    Options options;
    app.add_option("folder", options.folder, "the results")->capture_default_str();
    app.add_option("--model", options.model, "a folder of the Hugging Face hub (GPT-2) as the backbone");
    app.add_option("--text", options.paths.text, "files or folders to train on, instead of Eigen's headers");
    app.add_option("--test", options.paths.test, "files of the long text, instead of another library's headers");
    app.add_option("--seeds", options.seeds, "runs of each kind")->check(CLI::Range(1, 100))->capture_default_str();
    app.add_option("--steps", options.steps, fmt::format("of the side network; default: {}", TextSettings().side_steps))
        ->check(CLI::Range(1, 1000000));
    app.add_option("--threads", options.threads, "runs at a time")->check(CLI::Range(1, 1024))->capture_default_str();
    app.add_flag("--quick", options.quick, "tiny models in seconds, to see that everything works");
    CLI11_PARSE(app, argc, argv);
    try {
        return run(options);
    } catch (const std::exception& e) {
        fmt::print(stderr, "long_mem: {}\n", e.what());
        return 2;
    }
}
