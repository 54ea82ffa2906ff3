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

#include <CLI/CLI.hpp>

#include <chrono>
#include <fstream>

// p(token | last) = 0.9 pairs + 0.1 (unigram, smoothed), counted in `text`.
class PairCounts {
  public:
    static constexpr index_t kWidth = 128, kLast = 12;

    PairCounts(std::span<const std::int32_t> text, index_t vocab) : vocab_(vocab), counts_(vocab) {
        for (const std::int32_t token : text) ++counts_[token];
        for (std::size_t i = 1; i < text.size(); ++i) ++pairs_[pair(text[i - 1], text[i])];
        total_ = static_cast<double>(text.size());
        projection_ = Matrix(vocab, kWidth); // of each token: +-1
        std::uint64_t state = 1;
        for (float& x : projection_.data) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            x = state >> 63 != 0 ? 1.0f : -1.0f;
        }
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
    static std::uint64_t pair(std::int32_t a, std::int32_t b) {
        return static_cast<std::uint64_t>(a) << 32 | static_cast<std::uint32_t>(b);
    }
    float log_p(std::int32_t last, std::int32_t token) const {
        const auto found = pairs_.find(pair(last, token));
        const double seen = counts_[last], both = found == pairs_.end() ? 0 : found->second;
        const double unigram = (counts_[token] + 1) / (total_ + static_cast<double>(vocab_));
        return static_cast<float>(std::log(seen > 0 ? 0.9 * both / seen + 0.1 * unigram : unigram));
    }
    struct Counts : std::vector<double> {
        explicit Counts(index_t n) : std::vector<double>(static_cast<std::size_t>(n)) {}
        double& operator[](std::int32_t i) { return at(static_cast<std::size_t>(i)); }
        double operator[](std::int32_t i) const { return at(static_cast<std::size_t>(i)); }
    };
    index_t vocab_;
    Counts counts_;
    std::map<std::uint64_t, double> pairs_;
    double total_ = 0;
    Matrix projection_, keys_;
    std::vector<float> log_p_;
};

struct Options {
    std::string folder = "sharded_knn_lm.out";
    CorpusPaths paths{};
    index_t memory = 400000, scored = 8192, threads = 1;
    double lambda = 0.35, temperature = 40;
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
    const auto tokens_of = [&](const std::vector<TextFile>& files, index_t most) {
        std::vector<std::int32_t> ids;
        for (const TextFile& f : files)
            if (static_cast<index_t>(ids.size()) < most) bpe.encode(f.text, ids), ids.push_back(Bpe::eos);
        ids.resize(std::min(ids.size(), static_cast<std::size_t>(most)));
        return ids;
    };
    const auto memory_text = tokens_of(corpus.train, options.memory),
               test_text = tokens_of(corpus.test, options.scored);
    PairCounts host(memory_text, bpe.vocab_size());
    const auto windows_of = [](const std::vector<std::int32_t>& text) {
        return ContextWindows({text, {}}, {.block_size = 64, .context = 64, .batch = {.max_rows = 8}, .eos = Bpe::eos});
    };
    say(fmt::format("{} of {}: {} tokens to remember, {} to score; {} ranks", corpus.name, corpora.size(),
                    memory_text.size(), test_text.size(), ranks->size()));

    // 2. The datastore: each rank writes its part of the text, unless it is there already (all ranks see the folder).
    Fingerprint fingerprint{.model = "pairs of tokens",
                            .tokenizer_hash = bpe.hash(),
                            .key_tap = "last twelve tokens",
                            .key_dim = PairCounts::kWidth,
                            .vocab_size = bpe.vocab_size()};
    fingerprint.more["text"] = Hash64().add(std::as_bytes(std::span(memory_text))).text();
    if (speaks) fs::create_directories(options.folder);
    ranks->gather(at::zeros({1})); // now it is there
    const std::string folder = options.folder + "/memory", built = options.folder + "/built";
    if (!fs::exists(built)) {
        const auto writer = [&] {
            if (fs::exists(nn::ShardsManifest::path(folder)) &&
                static_cast<int>(nn::ShardsManifest::read(folder).shards.size()) == ranks->size())
                return nn::ShardedDatastoreWriter::resume(ranks, folder, fingerprint);
            return nn::ShardedDatastoreWriter::create(ranks, folder, {.host = fingerprint, .overwrite = true});
        };
        nn::ShardedDatastoreWriter shards = writer();
        auto windows = windows_of(memory_text);
        nn::build_datastore(*ranks, host, windows, shards);
        shards.close();
        if (speaks) std::ofstream(built) << "complete\n";
        say(fmt::format("written: {} entries by {} ranks", shards.size(), ranks->size()));
    }

    // 3. The memory: a datastore in shards instead of one, Sharded around the retriever, and nothing else.
    using Store = nn::ShardedStore<nn::DatastoreRange>;
    const KnnLm<Store, nn::Sharded<Exact<L2, Threads>>> memory(
        LastHidden{}, nn::open_sharded(ranks, folder, fingerprint), {{.k = 256, .executor = {options.threads}}},
        {{.temperature = static_cast<float>(options.temperature)}, {.lambda = static_cast<float>(options.lambda)}});
    say(fmt::format("opened: {} entries, {} of them on this rank", memory.store().size(), memory.store().local_size()));
    ranks->gather(at::zeros({1})); // nobody looks for `built` any more

    // 4. A text, scored by all together.
    auto windows = windows_of(test_text);
    const KnnLmScores scores = nn::evaluate(*ranks, memory, host, windows);
    say("scored");
    if (!speaks) return 0;
    Table table({"", "perplexity", "bits a token"});
    const auto row = [&](const char* name, const Perplexity& p) {
        table.add({name, fmt::format("{:.15g}", p.perplexity()), fmt::format("{:.4f}", p.bits())});
    };
    row("pairs of tokens", scores.host);
    row("with the memory", scores.combined);
    fmt::print("{}", table.str());

    // 5. What can fail: the memory must help, and every run must agree with the first one.
    const std::string result = fmt::format("{:a} {:a}\n", scores.host.log_p(), scores.combined.log_p()),
                      path = options.folder + "/result";
    if (!(scores.combined.perplexity() < scores.host.perplexity())) fail("expected the memory to help");
    if (!fs::exists(path)) {
        atomic_write(path, result);
    } else if (read_file(path) != result) {
        fail(path, ": expected the sums of an earlier run, ", read_file(path), ", got ", result);
    } else {
        fmt::print("The same in every bit as in the first run of this folder.\n");
    }
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
