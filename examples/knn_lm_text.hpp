// SPDX-License-Identifier: MIT
#pragma once

// The texts of examples/knn_lm.cpp: where they come from, what becomes of them, what is recalled from them.
#include <mnemo/app/progress.hpp>
#include <mnemo/io/datastore.hpp>
#include <mnemo/mnemo.hpp>
#include <mnemo/nn/lm_host.hpp>
#include <mnemo/text/excerpts.hpp>

#include <fmt/core.h>

#include <cmath>
#include <filesystem>
#include <numeric>
#include <sstream>

using namespace mnemo;
namespace fs = std::filesystem;

using KnnLmResults = std::vector<KnnLmTuned>;

// A domain: its tokens, held-out text as the model saw it, its memory, and what was found out.
struct Text {
    std::string name;
    std::vector<std::int32_t> tokens;
    WindowBatch valid_windows, test_windows;
    KnnLmSample valid{}, test{};
    std::shared_ptr<const Datastore> store{};

    KnnLmResults own_and_controls{}; // its own memory; with shuffled values; its unigram
    KnnLmResults wrong{};            // another domain's memory, if there is one
    std::vector<std::pair<index_t, KnnLmTuned>> sizes{};

    const KnnLmTuned& own() const { return own_and_controls[0]; }
    const KnnLmTuned& shuffled() const { return own_and_controls[1]; }
    const KnnLmTuned& unigram() const { return own_and_controls[2]; }
    double wrong_perplexity() const { return wrong.empty() ? NAN : wrong[0].perplexity(); }
    double wrong_at(const KnnLmSetting& s) const { return wrong.empty() ? NAN : wrong[0].test.at(s); }
    double alone() const { return own().test.at(0, 0, 0); } // lambda 0
    double gain(double perplexity) const { return 100 * (perplexity / alone() - 1); }
    double gain(const KnnLmTuned& t) const { return gain(t.perplexity()); }
};

struct CorpusPaths {
    std::vector<std::string> text{}, test{}, other{};
};

// Eigen trains and the other installed libraries are strangers, unless files are named.
inline std::vector<Corpus> read_corpora(const CorpusPaths& paths) {
    const auto named = [](const std::vector<std::string>& names) { return read_paths({names.begin(), names.end()}); };
    std::vector<TextFile> text = named(paths.text), test = named(paths.test), other = named(paths.other);
    std::vector<Corpus> corpora;
    if (text.empty()) {
        std::vector<fs::path> folders;
        std::istringstream known(MNEMO_INCLUDE_FOLDERS);
        for (std::string folder; std::getline(known, folder, ':');) folders.emplace_back(folder);
        corpora = installed_headers(folders);
        if (corpora[0].name != "eigen") fmt::print("No headers of Eigen: {} trains instead.\n", corpora[0].name);
        if (!other.empty()) corpora.resize(1);
    } else {
        corpora.push_back(split_by_name("text", std::move(text), test.empty() ? Shares{} : Shares{92, 8}));
    }
    if (!test.empty()) corpora[0].test = std::move(test);
    if (!other.empty()) corpora.push_back(split_by_name("other", std::move(other)));
    return corpora;
}

// The files one after the other, each with an end, up to `most` tokens.
inline std::vector<std::int32_t> tokens_of(const std::vector<TextFile>& files, const Bpe& bpe, index_t most) {
    std::vector<std::int32_t> ids;
    for (const TextFile& f : files)
        if (static_cast<index_t>(ids.size()) < most) bpe.encode(f.text, ids), ids.push_back(Bpe::eos);
    ids.resize(std::min(ids.size(), static_cast<std::size_t>(most)));
    return ids;
}

// The tokens of all texts, and samples of the held-out ones: `scored` tokens at the end of `context`.
struct SampleSizes {
    index_t valid, test, scored, context;
};
inline std::vector<Text> read_texts(const SampleSizes& set, const std::vector<Corpus>& corpora, const auto& tokenizer) {
    std::vector<Text> texts;
    for (const Corpus& corpus : corpora) {
        const auto tokens = [&](const std::vector<TextFile>& documents) {
            std::vector<std::int32_t> ids;
            for (const TextFile& document : documents)
                tokenizer.encode(document.text, ids), ids.push_back(tokenizer.eos);
            return ids;
        };
        const auto sample = [&](const std::vector<TextFile>& documents, index_t count) {
            return excerpts(tokens(documents), count, set.scored, set.context - set.scored);
        };
        texts.push_back(
            {corpus.name, tokens(corpus.train), sample(corpus.valid, set.valid), sample(corpus.test, set.test)});
        fmt::print("{:<10} {:>6} tokens to learn or remember; {} + {} + {} documents\n", corpus.name,
                   short_count(double(texts.back().tokens.size())), corpus.train.size(), corpus.valid.size(),
                   corpus.test.size());
    }
    return texts;
}

// The datastore at `path`, filled; what an earlier run has written is not computed again.
inline std::shared_ptr<const Datastore> remember(const Text& text, auto& host, index_t most, index_t block,
                                                 const std::string& path, std::string tokenizer_hash,
                                                 std::int32_t eos) {
    const auto tokens = std::span(text.tokens).first(std::min(text.tokens.size(), static_cast<std::size_t>(most)));
    Fingerprint fingerprint = host.fingerprint(std::move(tokenizer_hash));
    fingerprint.more["text"] = Hash64().add(std::as_bytes(tokens)).text();
    const auto open_writer = [&] {
        try {
            if (fs::exists(path + "/mnemo.json")) return DatastoreWriter::resume(path, fingerprint);
        } catch (const Error& e) {
            fmt::print("Remembering {} anew: {}\n", text.name, e.what());
        }
        for (const char* old : {"/index.faiss", "/index.faiss.trained"}) fs::remove(path + old);
        return DatastoreWriter::create(path, {.host = fingerprint, .overwrite = true});
    };
    DatastoreWriter writer = open_writer();
    ContextWindows windows({tokens, {}},
                           {.block_size = block, .context = block, .batch = {.max_rows = 64}, .eos = eos});
    RemainingWindows remaining(windows, writer.size());
    Progress bar("remembering " + text.name, "tokens");
    build_datastore(host, remaining, writer, 0, [&](index_t, index_t total) {
        if (writer.size() - writer.committed() > 30000) writer.commit(); // an interrupted run goes on from here
        bar(writer.size(), total);
    });
    writer.close();
    return std::make_shared<const Datastore>(Datastore::open(path, fingerprint));
}

// The tokens that the memory helped most, and which entries it recalled for them.
void show_recall(Text& text, const auto& tokenizer, const auto& memory) {
    const KnnLmSample& all = text.test;
    const index_t scored = all.size() / text.test_windows.rows; // the last token of each window is looked at
    Matrix queries(text.test_windows.rows, all.queries.cols);
    std::vector<std::int32_t> targets;
    std::vector<float> alone;
    for (index_t row = 0, i = scored - 1; row < queries.rows; ++row, i += scored) {
        std::copy_n(all.queries[i].begin(), queries.cols, queries[row].begin());
        targets.push_back(all.targets[static_cast<std::size_t>(i)]),
            alone.push_back(all.log_p[static_cast<std::size_t>(i)]);
    }
    std::vector<float> log_p = alone;
    memory.read(Rows(queries), TargetLogProbs{targets, log_p});
    std::vector<std::size_t> order(targets.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return log_p[a] - alone[a] > log_p[b] - alone[b]; });
    const Hits hits = memory.recall(Rows(queries));
    for (const std::size_t i : std::span(order).first(3)) {
        const auto row = static_cast<index_t>(i);
        fmt::print("\n{}: ...{} -> [{}]   p = {:.4f} without memory, {:.4f} with it, which recalled\n", text.name,
                   one_line(tokenizer, text.test_windows.input(row).last(12)),
                   one_line(tokenizer, std::span(targets).subspan(i, 1)), std::exp(double(alone[i])),
                   std::exp(double(log_p[i])));
        fmt::print("{}", explain(neighbours(hits, row, *text.store, memory.combiner().evidence.temperature),
                                 *text.store, tokenizer));
    }
}
