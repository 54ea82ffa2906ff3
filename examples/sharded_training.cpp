// SPDX-License-Identifier: MIT
// A language model trained over processes, on one machine or many: each computes its rows of every batch, a token sees
// the earlier segments of all of them (TRIME_long), and all take the same steps. Half-way there is a checkpoint, from
// which a second run goes on, with as many processes as wanted, and ends where the first one has ended.
//
//     examples/start_ranks.sh 2 build/release/examples/sharded_training training.out
//     examples/start_ranks.sh 3 build/release/examples/sharded_training training.out
#include "knn_lm_text.hpp"
#include "trime_train.hpp"

#include <mnemo/app/table.hpp>
#include <mnemo/dist/learned_entries.hpp>
#include <mnemo/dist/training.hpp>

#include <CLI/CLI.hpp>

struct Options {
    std::string folder = "sharded_training.out";
    CorpusPaths paths{};
    index_t steps = 300, batch = 12, segment = 64, vocab = 512, dim = 64, scored = 4096;
    double rate = 3e-3;
    bool quick = false;
};

// This rank's part of step n, which n alone says: batches are consecutive segments, in an order that is drawn anew each
// time through the text.
nn::LossOfRank part_of_step(nn::Ranks& ranks, nn::TransformerLm& model, const Segments& segments,
                            const Options& options, index_t n) {
    const index_t batches = segments.count() / options.batch;
    const auto order = shuffled(consecutive(batches), static_cast<std::uint64_t>(n / batches));
    const auto [first, count] = nn::rows_of_rank(options.batch, ranks);
    std::vector<index_t> ids(static_cast<std::size_t>(count));
    std::iota(ids.begin(), ids.end(), order[static_cast<std::size_t>(n % batches)] * options.batch + first);

    const auto states = model->states(segments.rows(ids, 0), {model->tap("ffn_in"), model->tap("prehead")});
    const nn::TrimeBatch batch{states[1], states[0], segments.rows(ids, 1)};
    const nn::OutputLayer output = model->output_layer();
    const bool warm_up = 5 * n < options.steps; // cross-entropy alone
    const nn::TrimeLoss loss = warm_up
                                   ? nn::trime_loss(batch, output, {.cross_entropy = true})
                                   : nn::trime_long_loss(batch, output, {}, nn::gather_learned_entries(ranks, batch),
                                                         static_cast<std::size_t>(ranks.size()));
    loss.loss.backward();
    return {loss.loss.item<double>(), static_cast<double>(loss.tokens)};
}

int run(const Options& options) {
    const auto ranks = std::make_shared<nn::Ranks>(); // RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT; without them alone
    const bool speaks = ranks->rank() == 0;
    at::set_num_threads(1);

    // 1. The text; every rank reads it and cuts it alike.
    const Corpus corpus = read_corpora(options.paths)[0];
    const Bpe bpe = Bpe::learn(join(corpus.train), options.vocab);
    const auto train_tokens = tokens_of(corpus.train, bpe, options.steps * options.batch * options.segment + 1),
               test_tokens = tokens_of(corpus.test, bpe, options.scored);
    const Segments segments{train_tokens, options.segment};

    // 2. The same start on every rank; what a checkpoint must share with a run that goes on from it.
    torch::manual_seed(1);
    nn::TransformerLm model(nn::TransformerLmOptions()
                                .vocab_size(options.vocab)
                                .dim(options.dim)
                                .ffn_dim(4 * options.dim)
                                .layers(2)
                                .max_positions(options.segment));
    const auto optimizer = std::make_shared<torch::optim::AdamW>(
        model->parameters(), torch::optim::AdamWOptions(options.rate).betas({0.9, 0.95}).weight_decay(0.1));
    nn::SharedTraining training(ranks, model.ptr(), optimizer,
                                {{"text", Hash64().add(std::as_bytes(std::span(train_tokens))).text()},
                                 {"batch", text(options.batch, " ", options.segment)},
                                 {"steps", text(options.steps, " ", options.rate)}});
    const std::string half = options.folder + "/half.safetensors", result = options.folder + "/result";
    if (speaks) fs::create_directories(options.folder);
    ranks->gather(at::zeros({1})); // now it is there
    const bool goes_on = fs::exists(half);
    ranks->gather(at::zeros({1})); // all have looked
    if (goes_on) training.resume(half);
    if (speaks)
        fmt::print("{}: {} tokens to train on; {} ranks begin at step {} of {}\n", corpus.name, train_tokens.size(),
                   ranks->size(), training.done(), options.steps);

    // 3. Steps, all together.
    model->train();
    double loss = 0;
    while (training.done() < options.steps) {
        const double part = double(training.done()) / double(options.steps);
        for (auto& group : optimizer->param_groups())
            group.options().set_lr(options.rate * std::min((part * double(options.steps) + 1) / 50,
                                                           0.55 + 0.45 * std::cos(std::numbers::pi * part)));
        loss = training.step([&](index_t n) { return part_of_step(*ranks, model, segments, options, n); }, 1.0);
        if (training.done() == options.steps / 2) training.save(half);
        if (speaks && training.done() % std::max<index_t>(options.steps / 10, 1) == 0)
            fmt::print("step {:5}  {:.4f} nats a token\n", training.done(), loss), std::fflush(stdout);
    }
    if (!speaks) return 0;

    // 4. A text that training has not seen, scored without and with the last 1024 tokens as a memory.
    model->eval();
    const at::NoGradGuard no_grad;
    const Scored test(model, test_tokens, {.block_size = 32, .context = 32, .batch = {.max_rows = 16}});
    const nn::OutputLayer output = model->output_layer();
    const double alone = perplexity(test, output, {.local = false}),
                 with = perplexity(test, output, {.mem_size = 1024});
    Table table({"scored with", "perplexity"});
    table.add({"no memory", fmt::format("{:.6f}", alone)});
    table.add({"the last 1024 tokens", fmt::format("{:.6f}", with)});
    fmt::print("{}", table.str());

    // 5. What can fail: the memory must help, and every run must end where the first one has ended.
    if (!options.quick && !(with < alone)) fail("expected the memory to help");
    if (!fs::exists(result)) {
        atomic_write(result, fmt::format("{:.17g}\n", with));
        return 0;
    }
    const double first = std::stod(read_file(result)), off = std::abs(with / first - 1);
    fmt::print("off the first run of this folder by a factor of 1 +- {:.1e}\n", off);
    if (off > 1e-3) fail(result, ": expected ", first, " as of an earlier run, got ", with);
    return 0;
}

int main(int count, char** arguments) {
    Options options;
    CLI::App app("A language model trained over processes, with a memory that spans them.");
    app.add_option("folder", options.folder, "where everything is kept; all ranks must see it")->capture_default_str();
    app.add_option("--text", options.paths.text, "files or folders to train on, instead of installed headers");
    app.add_option("--steps", options.steps)->capture_default_str();
    app.add_option("--batch", options.batch, "segments a step, of all ranks together")->capture_default_str();
    app.add_option("--rate", options.rate, "of learning")->capture_default_str();
    app.add_flag("--quick", options.quick, "little of everything");
    CLI11_PARSE(app, count, arguments);
    if (options.quick) options.steps = 20, options.batch = 6, options.scored = 256;
    try {
        return run(options);
    } catch (const std::exception& e) {
        fmt::print(stderr, "{}\n", e.what());
        return 1;
    }
}
