// SPDX-License-Identifier: MIT
// A memory that is spread over processes, on one machine or many: each writes its part of one datastore, each holds and
// searches a part of it, all score a text together. Whatever the number of processes, then and now, the perplexity is
// the same in every digit; a second run, on any number of them, checks that.
//
//     examples/start_ranks.sh 3 build/release/examples/sharded_knn_lm sharded.out
//     torchrun --standalone --no-python --nproc-per-node 3 build/release/examples/sharded_knn_lm sharded.out
//
// The language model counts pairs of tokens; its states are random projections of the last twelve tokens. So nothing is
// trained and the memory is all that can look further back than one token.
#include "knn_lm_text.hpp"

#include <mnemo/app/table.hpp>
#include <mnemo/dist/knn_lm.hpp>
#include <mnemo/dist/sharded.hpp>
#include <mnemo/dist/sharded_lists.hpp>

#include <CLI/CLI.hpp>

#include <chrono>
#include <fstream>
#include <random>

// p(token | last) = 0.9 pairs + 0.1 (unigram, smoothed), counted in `text`.
class PairCounts {
  public:
    static constexpr index_t kWidth = 128, kLast = 12;

    PairCounts(std::span<const std::int32_t> text, index_t vocab)
        : vocab_(vocab), counts_(static_cast<std::size_t>(vocab)) {
        for (const std::int32_t token : text) ++counts_[place(token)];
        for (std::size_t i = 1; i < text.size(); ++i) ++pairs_[{text[i - 1], text[i]}];
        total_ = static_cast<double>(text.size());
        projection_ = Matrix(vocab, kWidth); // of each token: +-1
        std::mt19937 random(1);
        for (float& x : projection_.data) x = random() % 2 != 0 ? 1.0f : -1.0f;
    }
    Rows keys(const WindowBatch& batch) {
        keys_ = Matrix(batch.scored(), kWidth);
        log_p_.clear();
        for (index_t row = 0, i = 0; row < batch.rows; ++row) {
            const auto input = batch.input(row), target = batch.target(row);
            const auto r = static_cast<std::size_t>(row);
            for (index_t t = batch.start[r]; t < batch.length[r]; ++t, ++i) {
                float weight = 1;
                for (index_t back = 0; back < std::min(kLast, t + 1); ++back, weight *= 0.8f) {
                    const auto of_token = projection_[input[static_cast<std::size_t>(t - back)]];
                    for (std::size_t j = 0; j < kWidth; ++j) keys_[i][j] += weight * of_token[j];
                }
                log_p_.push_back(log_p(input[static_cast<std::size_t>(t)], target[static_cast<std::size_t>(t)]));
            }
        }
        return keys_;
    }
    ScoredTokens score(const WindowBatch& batch) { return {keys(batch), log_p_}; }

  private:
    float log_p(std::int32_t last, std::int32_t token) const {
        const auto found = pairs_.find({last, token});
        const double seen = counts_[place(last)], both = found == pairs_.end() ? 0 : found->second;
        const double unigram = (counts_[place(token)] + 1) / (total_ + static_cast<double>(vocab_));
        return static_cast<float>(std::log(seen > 0 ? 0.9 * both / seen + 0.1 * unigram : unigram));
    }
    static std::size_t place(std::int32_t token) { return static_cast<std::size_t>(token); }
    index_t vocab_;
    std::vector<double> counts_;
    std::map<std::pair<std::int32_t, std::int32_t>, double> pairs_;
    double total_ = 0;
    Matrix projection_, keys_;
    std::vector<float> log_p_;
};

struct Options {
    std::string folder = "sharded_knn_lm.out";
    CorpusPaths paths{};
    index_t memory = 400000, scored = 8192, threads = 1, lists = 0, nprobe = 32;
    bool quick = false;
};

int run(const Options& options) {
    const auto ranks = std::make_shared<nn::Ranks>(); // RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT; without them alone
    const bool speaks = ranks->rank() == 0;
    const auto start = std::chrono::steady_clock::now();
    const auto say = [&](const std::string& line) {
        if (!speaks) return;
        const std::chrono::duration<double> so_far = std::chrono::steady_clock::now() - start;
        fmt::print("{:6.1f} s  {}\n", so_far.count(), line);
        std::fflush(stdout);
    };

    // 1. The text. Every rank reads it and cuts it alike; each could as well read what another program has prepared.
    const std::vector<Corpus> corpora = read_corpora(options.paths);
    const Corpus& corpus = corpora[0];
    std::string known;
    for (const TextFile& f : corpus.train)
        if (known.size() < std::size_t{1} << 20) known += f.text;
    const Bpe bpe = Bpe::learn(known, 1024);
    const auto memory_text = tokens_of(corpus.train, bpe, options.memory),
               test_text = tokens_of(corpus.test, bpe, options.scored);
    PairCounts host(memory_text, bpe.vocab_size());
    const auto windows_of = [](const std::vector<std::int32_t>& text) {
        return ContextWindows({text, {}}, {.block_size = 64, .context = 64, .batch = {.max_rows = 8}, .eos = Bpe::eos});
    };
    say(fmt::format("{} of {}: {} tokens to remember, {} to score; {} ranks", corpus.name, corpora.size(),
                    memory_text.size(), test_text.size(), ranks->size()));

    // 2. The datastore: each rank writes its part of the text, unless it is there already (all ranks see the folder).
    Fingerprint fingerprint{.model = "pairs of tokens",
                            .tokenizer_hash = bpe.hash(),
                            .key_tap = "last twelve tokens, each 0.8 of the next",
                            .key_dim = PairCounts::kWidth,
                            .vocab_size = bpe.vocab_size()};
    fingerprint.more["text"] = Hash64().add(std::as_bytes(std::span(memory_text))).text();
    if (speaks) fs::create_directories(options.folder);
    ranks->gather(at::zeros({1})); // now it is there
    const std::string folder = options.folder + "/memory", built = options.folder + "/built";
    if (!fs::exists(built)) {
        const bool go_on = fs::exists(nn::ShardsManifest::path(folder)) &&
                           static_cast<int>(nn::ShardsManifest::read(folder).shards.size()) == ranks->size();
        auto shards = go_on
                          ? nn::ShardedDatastoreWriter::resume(ranks, folder, fingerprint)
                          : nn::ShardedDatastoreWriter::create(ranks, folder, {.host = fingerprint, .overwrite = true});
        auto windows = windows_of(memory_text);
        nn::build_datastore(*ranks, host, windows, shards);
        shards.close();
        if (speaks) std::ofstream(built) << "complete\n";
        say(fmt::format("written: {} entries by {} ranks", shards.size(), ranks->size()));
    }

    // 3. The memory: a datastore in shards instead of one, Sharded around the retriever, and nothing else.
    using Store = nn::ShardedStore<nn::DatastoreRange>;
    Store store = nn::open_sharded(ranks, folder, fingerprint);
    say(fmt::format("opened: {} entries, {} of them on this rank", store.size(), store.local_size()));
    ranks->gather(at::zeros({1})); // nobody looks for `built` any more

    // 4. A text, scored by all together.
    const auto score = [&](auto retriever) {
        const KnnLm<Store, nn::Sharded<decltype(retriever)>> memory(
            LastHidden{}, std::move(store), {std::move(retriever)}, {{.temperature = 40}, {.lambda = 0.35f}});
        auto windows = windows_of(test_text);
        return nn::evaluate(*ranks, memory, host, windows);
    };
    const Threads threads{options.threads};
    const auto lists = [&] { // of centroids that all ranks share
        const std::string files = fmt::format("{}/lists-{}", options.folder, options.lists);
        return nn::open_lists<L2>(store, files, {.lists = options.lists}, threads);
    };
    const KnnLmScores scores =
        options.lists == 0 ? score(Exact<L2, Threads>{256, threads})
                           : score(nn::ShardLists<L2, Threads>{lists(), 256, options.nprobe, Probe::rescored, threads});
    if (!speaks) return 0;
    Table table({"", "perplexity", "bits a token"});
    for (const bool combined : {false, true}) {
        const Perplexity& p = combined ? scores.combined : scores.host;
        table.add({combined ? "with the memory" : "pairs of tokens", fmt::format("{:.15g}", p.perplexity()),
                   fmt::format("{:.4f}", p.bits())});
    }
    fmt::print("{}", table.str());

    // 5. What can fail: the memory must help, and every run must agree with the first one.
    const std::string result = fmt::format("{:a} {:a}\n", scores.host.log_p(), scores.combined.log_p()),
                      path = fmt::format("{}/result-{}-{}", options.folder, options.lists, options.nprobe);
    if (!(scores.combined.perplexity() < scores.host.perplexity())) fail("expected the memory to help");
    if (!fs::exists(path))
        atomic_write(path, result);
    else if (read_file(path) != result)
        fail(path, ": expected the sums of an earlier run, ", read_file(path), ", got ", result);
    else
        fmt::print("The same in every bit as in the first run of this folder.\n");
    return 0;
}

int main(int count, char** arguments) {
    Options options;
    CLI::App app("A memory that is spread over processes.");
    app.add_option("folder", options.folder, "where everything is kept; all ranks must see it")->capture_default_str();
    app.add_option("--text", options.paths.text, "files or folders to remember, instead of installed headers");
    app.add_option("--memory", options.memory, "entries, at most")->capture_default_str();
    app.add_option("--scored", options.scored, "tokens that are scored, at most")->capture_default_str();
    app.add_option("--threads", options.threads, "of each rank")->capture_default_str();
    app.add_option("--lists", options.lists, "inverted lists instead of exact search")->capture_default_str();
    app.add_option("--nprobe", options.nprobe, "lists that are looked at")->capture_default_str();
    app.add_flag("--quick", options.quick, "little of everything");
    CLI11_PARSE(app, count, arguments);
    if (options.quick) options.memory = 30000, options.scored = 1500;
    try {
        return run(options);
    } catch (const std::exception& e) {
        fmt::print(stderr, "{}\n", e.what());
        return 1;
    }
}
