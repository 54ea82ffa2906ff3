// SPDX-License-Identifier: MIT
// In-context learning with demonstrations in the memory: thousands of examples are read into LongMem's bank, a few more
// stand in the prompt, and the model names the label of a text. Without arguments the model is what examples/long_mem
// left in long_mem.out and the task is made of installed headers: is a line a comment or code? With --model the
// backbone is a GPT-2 of the Hugging Face hub, beside which a side network begins; with --train and --test the task is
// one of the published ones.
#include "knn_lm_model.hpp"
#include "knn_lm_text.hpp"

#include <mnemo/app/report.hpp>
#include <mnemo/app/table.hpp>
#include <mnemo/io/task_rows.hpp>
#include <mnemo/nn/long_mem_files.hpp>
#include <mnemo/nn/long_mem_tasks.hpp>
#include <mnemo/text/bpe.hpp>

#include <CLI/CLI.hpp>

#include <random>

using Examples = std::vector<InContextExample>;

struct Options {
    std::string folder = "long_mem.out", model{}, task = "SST-2", train{}, test{};
    index_t remembered = 2000, shown = 4, asked = 200, seeds = 3, segment = 0;
    bool quick = false;
};

// A task's file in the published form, or one JSON object a line with `sentence` or `text` and `label`.
Examples read_examples(const InContextTask& task, const std::string& path) {
    Examples out;
    const auto label_named = [&](const std::string& label) {
        for (std::size_t c = 0; c < task.classes; ++c)
            if (label == task.labels[c] || label == std::to_string(c)) return task.labels[c];
        fail(path, ": expected a label of ", task.name, ", got '", label, "'");
    };
    if (fs::path(path).extension() == ".jsonl") {
        for (const LabelledText& row : read_labelled_texts(path)) out.push_back({row.first, label_named(row.label)});
        return out;
    }
    std::istringstream lines(read_file(path));
    for (std::string line; std::getline(lines, line);) {
        if (line.empty() || line.rfind("sentence\t", 0) == 0) continue; // the head of a table
        auto [text, label] = in_context_example(task, line);
        out.push_back({std::move(text), label});
    }
    return out;
}

// As many comments as lines of code, each as it stands.
constexpr InContextTask lines_task{"lines", "Line: {} Kind: {}. ", {"comment", "code"}, 2, true};
Examples lines_of(const std::vector<TextFile>& files) {
    Examples comments, code;
    for (const TextFile& file : files) {
        std::istringstream lines(file.text);
        for (std::string line; std::getline(lines, line);) {
            const std::size_t first = line.find_first_not_of(" \t");
            if (first == line.npos || line.size() - first < 8) continue;
            line = line.substr(first, 60);
            if (line.rfind("//", 0) == 0)
                comments.push_back(
                    {line.substr(line.find_first_not_of("/ <") == line.npos ? 2 : line.find_first_not_of("/ <")),
                     lines_task.labels[0]});
            else if (line[0] != '*' && line[0] != '/' && line[0] != '#')
                code.push_back({line, lines_task.labels[1]});
        }
    }
    Examples out;
    for (std::size_t i = 0; i < std::min(comments.size(), code.size()); ++i) {
        out.push_back(comments[i]);
        out.push_back(code[i * (code.size() / comments.size())]);
    }
    return out;
}

struct Row {
    std::vector<double> published, labels; // accuracies by seed
};

// Accuracies with all demonstrations in the memory, and with none, over seeds.
void run(const Options& options, nn::LongMem<>& model, const auto& tokenizer, index_t segment, index_t most,
         std::int32_t begin, std::int32_t end) {
    const bool named = !options.train.empty();
    const InContextTask task = named ? long_mem_task(options.task) : lines_task;
    std::vector<Corpus> corpora;
    if (!named) corpora = read_corpora({});
    Examples train = named ? read_examples(task, options.train) : lines_of(corpora[0].train);
    Examples test = named ? read_examples(task, options.test) : lines_of(corpora[0].test);
    nn::InContext in_context(model, task, tokenizer,
                             {.segment = segment, .most = most, .tail = options.quick, .begin = begin, .end = end});
    Row with, without;
    Progress bar("asking", "seeds");
    index_t chunks = 0, queries = 0;
    for (index_t seed = 1; seed <= options.seeds; ++seed, bar(seed - 1, options.seeds)) {
        std::mt19937_64 draw(static_cast<std::uint64_t>(seed));
        const auto drawn = [&](Examples& from, index_t n) {
            std::shuffle(from.begin(), from.end(), draw);
            return Examples(from.begin(), from.begin() + std::min<std::ptrdiff_t>(n, std::ssize(from)));
        };
        const Examples shown = drawn(train, options.shown), remembered = drawn(train, options.remembered);
        const Examples asked = drawn(test, options.asked);
        for (Row* row : {&with, &without}) {
            in_context.remember(row == &with ? std::span(remembered) : std::span<const InContextExample>());
            chunks = std::max(chunks, model.banks().rings()[0].chunks());
            const nn::InContextFigures figures = in_context.score(shown, asked);
            row->published.push_back(figures.published_accuracy()), row->labels.push_back(figures.label_accuracy());
            queries = figures.queries;
        }
    }
    Table table({fmt::format("accuracy on {}", task.name), "token begins the label", "most probable label"});
    const auto mean = [](const std::vector<double>& v) {
        return std::accumulate(v.begin(), v.end(), 0.0) / double(v.size());
    };
    Report report;
    for (const auto& [name, row] :
         {std::pair{"demonstrations in the prompt alone", &without}, {"and thousands in the memory", &with}}) {
        table.add({name, fmt::format("{:.3f}", mean(row->published)), fmt::format("{:.3f}", mean(row->labels))});
        report.numbers[name] = {{"published", row->published}, {"labels", row->labels}};
    }
    fmt::print("\n{} queries, {} seeds, {} demonstrations shown, {} tokens in the memory:\n\n{}\n", queries,
               options.seeds, options.shown, chunks * model.options().chunk, table.str());
    fs::create_directories(options.folder);
    report.save(options.folder + "/long_mem_tasks.json");
}

int main(int argc, char** argv) {
    CLI::App app("Learns a task from demonstrations in the memory.");
    Options options;
    app.add_option("folder", options.folder, "of examples/long_mem, and the results")->capture_default_str();
    app.add_option("--model", options.model, "a folder of the Hugging Face hub (GPT-2) in its place");
    app.add_option("--task", options.task, "SST-2, sst-5, mr, mpqa or subj")->capture_default_str();
    auto* train = app.add_option("--train", options.train, "the task's demonstrations: its published form, or .jsonl");
    app.add_option("--test", options.test, "its queries")->needs(train);
    app.add_option("--remembered", options.remembered, "demonstrations in the memory")->capture_default_str();
    app.add_option("--shown", options.shown, "demonstrations in the prompt")->capture_default_str();
    app.add_option("--asked", options.asked, "queries of a seed")->capture_default_str();
    app.add_option("--seeds", options.seeds, "draws of all three")->check(CLI::Range(1, 100))->capture_default_str();
    app.add_flag("--quick", options.quick, "a few demonstrations and queries, to see that everything works");
    CLI11_PARSE(app, argc, argv);
    try {
        if (options.quick) options.remembered = 40, options.shown = 1, options.asked = 3, options.seeds = 1;
        if (!options.train.empty() && options.test.empty()) fail("--train: expected --test beside it");
        at::set_num_threads(1);
        if (options.model.empty()) {
            const std::string path = options.folder + "/model.safetensors";
            if (!fs::exists(path)) fail(path, ": not there: run examples/long_mem first, or name a --model");
            nn::LongMem model = nn::load_long_mem(path, {.chunk = long_mem_knobs::in_context_chunk, .k = 32}, 1);
            run(options, model, Bpe::load(options.folder + "/bpe"), 64, 0, Bpe::bos, Bpe::eos);
        } else {
            const FolderTokenizer tokenizer(options.model);
            const nn::HuggingFaceLm backbone = nn::load_hugging_face(options.model);
            const auto& o = backbone->options();
            const index_t reduction = o.layers % 2 == 0 ? 2 : 1, layer = o.layers / reduction * 2 / 3 * reduction;
            nn::LongMem model(
                backbone, nn::side_network_from(backbone, reduction, layer, nn::SideStart::quiet), reduction, layer,
                LongMemBanks({.heads = o.heads, .head_dim = o.head_dim, .chunk = long_mem_knobs::in_context_chunk}, 1));
            run(options, model, tokenizer, std::min(long_mem_knobs::segment, o.max_positions), o.max_positions, -1,
                tokenizer.eos);
        }
        return 0;
    } catch (const std::exception& e) {
        fmt::print(stderr, "long_mem_tasks: {}\n", e.what());
        return 2;
    }
}
