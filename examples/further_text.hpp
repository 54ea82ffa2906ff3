// SPDX-License-Identifier: MIT
#pragma once

// What examples/retomaton.cpp, adaptive_lambda.cpp, gnn_lm.cpp and combinations.cpp have in common: one small model,
// trained once on one text, the memory of another (a library's headers that the model does not know), and two pieces of
// held-out text of that other one, as the model sees them.
#include "knn_lm_text.hpp"

#include <mnemo/app/report.hpp>
#include <mnemo/app/svg.hpp>
#include <mnemo/app/table.hpp>
#include <mnemo/nn/train.hpp>

#include <CLI/CLI.hpp>
#include <torch/utils.h>

#include <mutex>

struct FurtherOptions {
    std::string folder = "further.out";
    CorpusPaths paths{};
    index_t threads = at::get_num_threads();
    bool quick = false;

    std::string file(const std::string& name) const { return (fs::path(folder) / name).string(); }
};

struct FurtherSettings {
    index_t vocab = 1024, dim = 128, layers = 3, steps = 1500, batch = 8, context = 128;
    index_t memory = 60000;                // entries
    std::size_t valid = 8192, test = 8192; // tokens that are scored, one after another
    std::size_t of_document = 0;           // of valid text: so many tokens of each document, for many of them; 0: all
    index_t block = 64;                    // they and the memory's keys see 64 to 127 tokens of context
};

// A text as the model saw it, in order.
struct SeenText {
    std::vector<std::int32_t> tokens; // [n + 1], the first has no prediction
    Matrix queries, last, prehead; // [n, dim]: input of the last feed-forward block, its output, that behind the norm
    std::vector<std::int32_t> targets; // [n]
    std::vector<float> log_p;          // [n], of the targets
    index_t size() const { return static_cast<index_t>(targets.size()); }
};

class Further {
  public:
    Further(const FurtherOptions& options, FurtherSettings set)
        : set_(quick(set, options.quick)), threads_{options.threads} {
        // The model knows one text; memory and evaluation are of another, if there is one.
        const std::vector<Corpus> corpora = read_corpora(options.paths);
        const Corpus &known = corpora[0], &corpus = corpora[corpora.size() > 1 ? 1 : 0];
        fs::create_directories(options.folder);
        at::set_num_threads(1); // windows are shared among threads instead of matrix products
        const Bpe bpe = Bpe::learn(join(known.train), set_.vocab);
        const auto tokens = [&](const std::vector<TextFile>& documents, std::size_t most, std::size_t of_each = 0) {
            std::vector<std::int32_t> ids;
            for (const TextFile& document : documents) {
                if (ids.size() >= most) break;
                const std::size_t before = ids.size();
                bpe.encode(document.text, ids);
                if (of_each > 0) ids.resize(std::min(ids.size(), before + of_each));
                ids.push_back(Bpe::eos);
            }
            ids.resize(std::min(ids.size(), most));
            return ids;
        };
        train_tokens = tokens(known.train, std::size_t(-1));
        domain_tokens = tokens(corpus.train, std::size_t(-1));
        model = trained(options);
        memory_text = see(
            {domain_tokens.begin(),
             domain_tokens.begin() + std::min<index_t>(set_.memory + 1, static_cast<index_t>(domain_tokens.size()))},
            "remembering");
        store = std::make_shared<TokenStore<half>>(set_.dim);
        store->append(memory_text.queries, memory_text.targets);
        valid = see(tokens(corpus.valid, set_.valid + 1, set_.of_document), "reading valid text");
        test = see(tokens(corpus.test, set_.test + 1), "reading test text");
        fmt::print("{}: {} entries in memory; {} and {} held-out tokens\n", corpus.name, store->size(), valid.size(),
                   test.size());
    }

    const FurtherSettings& settings() const { return set_; }
    Threads threads() const { return threads_; }
    // Log-probabilities [rows, vocab] of what the model says for rows of SeenText::prehead.
    at::Tensor log_probs(const Matrix& prehead, index_t first, index_t rows) const {
        const at::NoGradGuard no_grad;
        return model->log_prob_all(
            at::from_blob(const_cast<float*>(prehead[first].data()), {rows, prehead.cols}, at::kFloat));
    }

    std::vector<std::int32_t> train_tokens, domain_tokens; // of the text that trains, and of the memory's
    nn::TransformerLm model{nullptr};
    std::shared_ptr<TokenStore<half>> store; // the first of domain_tokens
    SeenText memory_text, valid, test;

    // What the model sees of a text: both states of every token but the first.
    SeenText see(std::vector<std::int32_t> tokens, const std::string& label) const {
        return see(model, std::move(tokens), label);
    }
    SeenText see(const nn::TransformerLm& by, std::vector<std::int32_t> tokens, const std::string& label) const {
        SeenText out;
        out.tokens = std::move(tokens);
        const auto n = static_cast<index_t>(out.tokens.size()) - 1;
        out.targets.assign(out.tokens.begin() + 1, out.tokens.end());
        for (Matrix* m : {&out.queries, &out.last, &out.prehead}) *m = Matrix(n, set_.dim);
        out.log_p.resize(out.targets.size());
        const index_t block = set_.block, blocks = (n + block - 1) / block;
        const std::vector<nn::Tap> taps{by->tap("ffn_in"), by->tap(fmt::format("hidden.{}", set_.layers)),
                                        by->tap("prehead")};
        Progress bar(label, "tokens");
        std::mutex one_at_a_time;
        index_t done = 0;
        threads_.run(blocks, [&](index_t b, index_t) {
            const at::NoGradGuard no_grad;
            at::init_num_threads(); // a new thread does not know what the program has set
            const index_t first = b * block, count = std::min(block, n - first),
                          from = std::max<index_t>(first - block, 0);
            const at::Tensor input = at::empty({1, first + count - from}, at::kLong),
                             target = at::empty({count}, at::kLong);
            std::copy_n(out.tokens.begin() + from, input.size(1), input.data_ptr<std::int64_t>());
            std::copy_n(out.targets.begin() + first, count, target.data_ptr<std::int64_t>());
            const auto states = by->states(input, taps);
            const auto scored = [&](const at::Tensor& s) { return s[0].narrow(0, first - from, count).contiguous(); };
            const at::Tensor keys = scored(states[0]), last = scored(states[1]), prehead = scored(states[2]);
            std::copy_n(last.data_ptr<float>(), last.numel(), out.last[first].data());
            std::copy_n(keys.data_ptr<float>(), keys.numel(), out.queries[first].data());
            std::copy_n(prehead.data_ptr<float>(), prehead.numel(), out.prehead[first].data());
            const at::Tensor log_p = by->log_prob_target(prehead, target).contiguous();
            std::copy_n(log_p.data_ptr<float>(), count, out.log_p.data() + first);
            const std::scoped_lock lock(one_at_a_time);
            bar(done += count, n);
        });
        return out;
    }
    nn::TransformerLm fresh() const {
        torch::manual_seed(1);
        return nn::TransformerLm(nn::TransformerLmOptions()
                                     .vocab_size(set_.vocab)
                                     .dim(set_.dim)
                                     .ffn_dim(4 * set_.dim)
                                     .layers(set_.layers)
                                     .max_positions(set_.context));
    }

  private:
    static FurtherSettings quick(FurtherSettings set, bool is_quick) {
        if (is_quick) {
            set.vocab = 300, set.dim = 32, set.layers = 2, set.steps = 40, set.context = 64, set.block = 32;
            set.memory = 4000, set.valid = 400, set.test = 400;
        }
        return set;
    }
    // To load the model is to go on with a training that has ended.
    nn::TransformerLm trained(const FurtherOptions& options) const {
        nn::TransformerLm out = fresh();
        nn::TrainOptions training;
        training.steps = set_.steps, training.batch = set_.batch, training.context = set_.context;
        training.windows = nn::TrainOptions::Windows::blocks;
        nn::Trainer trainer(out, train_tokens, training);
        const std::string checkpoint = options.file("model.safetensors");
        try {
            if (fs::exists(checkpoint)) trainer.resume(checkpoint);
        } catch (const Error& e) {
            fmt::print("Training anew: {}\n", e.what());
        }
        if (trainer.done() < set_.steps) {
            Progress bar("training", "tokens");
            trainer.run(
                [&](index_t done, index_t total, double) {
                    if (done % 200 == 0 || done == total) trainer.save(checkpoint);
                    return bar(done * set_.batch * set_.context, total * set_.batch * set_.context);
                },
                threads_);
        }
        out->eval();
        return out;
    }
    FurtherSettings set_;
    Threads threads_;
};

// The perplexity of log-probabilities.
inline double perplexity(std::span<const float> log_p) {
    Perplexity sum;
    sum.add(log_p);
    return sum.perplexity();
}

// The command line of these programs; run(options) says whether all that must hold does.
int further_main(int argc, char** argv, const char* name, const char* what, auto&& run) {
    std::setvbuf(stdout, nullptr, _IOLBF, 0); // in step with the progress on stderr
    CLI::App app(what);
    FurtherOptions options;
    app.add_option("folder", options.folder, "the model, shared by these programs, and the results")
        ->capture_default_str();
    app.add_option("--text", options.paths.text, "files or folders to train on, instead of Eigen's headers");
    app.add_option("--test", options.paths.test, "files to evaluate that text on, instead of a part of it");
    app.add_option("--other", options.paths.other, "the memory's text, instead of another library's headers");
    app.add_option("--threads", options.threads, "that work at a time")
        ->check(CLI::Range(1, 1024))
        ->capture_default_str();
    app.add_flag("--quick", options.quick, "a tiny model in seconds, to see that everything works");
    CLI11_PARSE(app, argc, argv);
    try {
        return run(options) ? 0 : 1;
    } catch (const std::exception& e) {
        fmt::print(stderr, "{}: {}\n", name, e.what());
        return 2;
    }
}
