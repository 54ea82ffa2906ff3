// SPDX-License-Identifier: MIT
// Processes on the loopback train together: gradients, losses, models and checkpoints are those of one process.
#include "../folder.hpp"
#include "processes.hpp"

#include <mnemo/dist/learned_entries.hpp>
#include <mnemo/dist/plug_lm_train.hpp>
#include <mnemo/dist/training.hpp>
#include <mnemo/papers/plug_lm.hpp>

#include <c10/core/CPUAllocator.h>
#include <torch/nn/functional.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adam.h>

#include <atomic>
#include <cstring>
#include <random>

using namespace mnemo;
using namespace mnemo::nn;

namespace {

void expect_error(const std::string& got, std::string_view wanted) {
    require(got.find(wanted) != got.npos, text("'", wanted, "' in the error of every rank, got '", got, "'"));
}
void require_near(const at::Tensor& a, const at::Tensor& b, double tolerance, const std::string& what) {
    require(a.sizes() == b.sizes(), what + ": the same shape");
    if (a.numel() == 0) return;
    const double off = (a - b).abs().max().item<double>() / std::max(1.0, b.abs().max().item<double>());
    require(off <= tolerance, text(what, ": as of one process, within ", tolerance, ", got ", off));
}
void require_same_everywhere(Ranks& ranks, const at::Tensor& t, const std::string& what) {
    for (const at::Tensor& theirs : ranks.gather(t.reshape({1, -1})))
        require(at::equal(theirs, t.reshape({1, -1})), what + ": the same bits on all ranks");
}

// ---- Gradients ----

struct Net : torch::nn::Module {
    torch::nn::Linear first{register_module("first", torch::nn::Linear(5, 7))},
        second{register_module("second", torch::nn::Linear(7, 3))};
    at::Tensor unused = register_parameter("unused", at::ones({4}));
    at::Tensor losses(const at::Tensor& x) { return second(at::tanh(first(x))).square().sum(1); }
};
std::shared_ptr<Net> net(at::ScalarType type) {
    torch::manual_seed(3);
    auto out = std::make_shared<Net>();
    out->to(type);
    return out;
}

void gradients(const std::shared_ptr<Ranks>& ranks) {
    for (const auto& [type, tolerance] : {std::pair{at::kDouble, 1e-14}, {at::kFloat, 1e-6}})
        for (const std::int64_t piece : {7, 1 << 20}) {
            const auto one = net(type), mine = net(type);
            SharedGradients shared(ranks, mine->parameters(), piece);
            shared.check_parameters();
            for (int step = 0; step < 3; ++step) {
                // Rows differ from rank to rank and from step to step; some have none.
                std::vector<std::int64_t> counts;
                for (int r = 0; r < ranks->size(); ++r) counts.push_back((2 * r + 1 + step) % 4);
                at::manual_seed(static_cast<std::uint64_t>(10 + step));
                std::int64_t rows = 0;
                for (const std::int64_t n : counts) rows += n;
                const auto parts = at::randn({rows, 5}, type).split_with_sizes(counts);
                const at::Tensor x = parts[static_cast<std::size_t>(ranks->rank())];
                one->zero_grad();
                const at::Tensor expected = one->losses(at::cat(parts)).mean();
                expected.backward();
                for (const bool sums : {true, false}) {
                    mine->zero_grad();
                    const auto work = [&]() -> LossOfRank {
                        const at::Tensor each = mine->losses(x), loss = sums ? each.sum() : each.mean();
                        loss.backward(); // the mean of nothing is NaN
                        return {loss.item<double>(), static_cast<double>(x.size(0))};
                    };
                    const double loss = sums ? shared.mean_of_sums(work) : shared.mean_of_means(work);
                    require(std::abs(loss - expected.item<double>()) < tolerance * 10, "the loss of one process");
                    for (std::size_t i = 0; i < 5; ++i) {
                        const at::Tensor g = mine->parameters()[i].grad(), e = one->parameters()[i].grad();
                        require(g.defined() == (mine->named_parameters()[i].key() != "unused"),
                                "a gradient where one process has one");
                        if (!g.defined()) continue;
                        require_near(g, e, tolerance, "a gradient");
                        require_same_everywhere(*ranks, g, "a gradient");
                    }
                }
            }
        }
    // What one rank has, all have.
    const auto mine = net(at::kFloat);
    SharedGradients shared(ranks, mine->parameters(), 16);
    shared.sum([&]() -> LossOfRank {
        if (ranks->rank() == ranks->size() - 1) mine->unused.sum().backward();
        return {1, 0};
    });
    require(mine->unused.grad().defined() && at::equal(mine->unused.grad(), at::ones({4})), "the gradient of one rank");
    require(!mine->first->weight.grad().defined(), "no gradient where no rank has one");

    // Errors of one rank are everybody's, and all go on.
    const bool odd = ranks->rank() == ranks->size() - 1;
    const std::string who = text("rank ", ranks->size() - 1, ": ");
    const auto step_with = [&](auto&& spoil) {
        return error_of([&] {
            shared.mean_of_sums([&]() -> LossOfRank {
                mine->zero_grad();
                const at::Tensor loss = mine->losses(at::ones({2, 5})).sum();
                loss.backward();
                LossOfRank own{loss.item<double>(), 2};
                if (odd) spoil(own);
                return own;
            });
        });
    };
    expect_error(step_with([](LossOfRank&) { fail("disk on fire"); }), who + "mnemo: disk on fire");
    expect_error(step_with([](LossOfRank& own) { own.loss = NAN; }), who + "the loss is not finite");
    expect_error(step_with([](LossOfRank& own) { own.examples = -1; }), who + "examples: expected a number");
    expect_error(step_with([&](LossOfRank&) { mine->second->bias.mutable_grad()[1] = INFINITY; }),
                 who + "the gradient of parameter");
    mine->zero_grad();
    expect_error(error_of([&] { shared.mean_of_sums([] { return LossOfRank{}; }); }),
                 "an example on at least one rank");
    require(step_with([](LossOfRank&) {}).empty(), "all to go on");
    if (ranks->size() > 1) {
        if (odd) {
            const at::NoGradGuard no_grad;
            mine->first->bias.add_(1e-3);
        }
        expect_error(error_of([&] { shared.check_parameters(); }), who + "hash of the parameters");
    }
}

// Counts what is allocated beside small things.
struct CountingAllocator : c10::Allocator {
    c10::Allocator* inner = c10::GetCPUAllocator();
    mutable std::atomic<int> large{0};
    // Versions differ in what they want overridden: no `override`.
    at::DataPtr allocate(std::size_t n) const { return count(n), inner->allocate(n); }
    at::DataPtr allocate(std::size_t n) { return count(n), inner->allocate(n); }
    void count(std::size_t n) const { large += n >= 4096 ? 1 : 0; }
    void copy_data(void* to, const void* from, std::size_t n) const { std::memcpy(to, from, n); }
};
void allocates_once(const RanksOptions& options) {
    static CountingAllocator counting; // outlives what it has allocated
    c10::SetCPUAllocator(&counting, 100);
    const auto ranks = std::make_shared<Ranks>(options);
    const at::Tensor p = at::ones({100, 100}).requires_grad_();
    SharedGradients shared(ranks, {p}, 3000);
    p.mutable_grad() = at::ones({100, 100});
    const auto step = [&] { shared.mean_of_sums([] { return LossOfRank{1, 1}; }); };
    step();
    const int before = counting.large;
    require(before > 0, "allocations that are counted");
    for (int i = 0; i < 3; ++i) step();
    require(counting.large == before, text("no allocation after the first step, got ", counting.large - before));
}

// ---- TRIME ----

// Features, keys and the output layer of a model of nothing but embeddings.
struct Lm : torch::nn::Module {
    torch::nn::Embedding words{register_module("words", torch::nn::Embedding(20, 8))};
    torch::nn::Linear keys{register_module("keys", torch::nn::Linear(8, 6))};
    torch::nn::Linear out{register_module("out", torch::nn::Linear(torch::nn::LinearOptions(8, 20).bias(false)))};
};
constexpr index_t kSegments = 4, kLength = 5, kSteps = 6;

// Step n of a training of TRIME_long or TRIME_ext, on all rows or on those of a rank.
struct TrimeStep {
    bool ext, plain;
    std::pair<at::Tensor, at::Tensor> rows(index_t n) const { // inputs, targets of the whole batch
        at::manual_seed(static_cast<std::uint64_t>(50 + n));
        const std::int64_t segments = n == 4 ? 2 : kSegments; // fewer than ranks
        const at::Tensor inputs = at::randint(20, {segments, kLength}, at::kLong);
        return {inputs, at::randint(20, {segments, kLength}, at::kLong)};
    }
    static double rate(index_t n) { return 0.02 / static_cast<double>(n + 1); }
    LossOfRank operator()(Lm& lm, index_t n, Ranks* ranks) const {
        auto [inputs, targets] = rows(n);
        if (ranks != nullptr) {
            const auto [first, count] = rows_of_rank(inputs.size(0), *ranks);
            inputs = inputs.narrow(0, first, count), targets = targets.narrow(0, first, count);
        }
        const at::Tensor x = lm.words(inputs);
        const TrimeBatch batch{at::tanh(x), lm.keys(x), targets};
        const OutputLayer output{lm.out->weight, {}, {}};
        const TrimeOptions options{.plain = plain};
        TrimeLoss loss;
        if (ranks == nullptr) {
            loss = ext ? trime_ext_loss(batch, output, options, n % 2 == 0)
                       : trime_long_loss_same_device(batch, output, options);
        } else {
            const RankEntries all = gather_learned_entries(*ranks, batch);
            loss = ext ? trime_ext_loss(batch, output, options, n % 2 == 0, all)
                       : trime_long_loss(batch, output, options, all, static_cast<std::size_t>(ranks->size()));
        }
        loss.loss.backward();
        return {loss.loss.item<double>(), static_cast<double>(loss.tokens)};
    }
};
struct TrimeRun {
    std::shared_ptr<Lm> lm;
    std::shared_ptr<torch::optim::Adam> adam;
    explicit TrimeRun(std::uint64_t seed = 8) {
        torch::manual_seed(seed);
        lm = std::make_shared<Lm>();
        lm->to(at::kDouble);
        adam = std::make_shared<torch::optim::Adam>(lm->parameters());
    }
    void set_rate(double rate) {
        for (auto& group : adam->param_groups()) group.options().set_lr(rate);
    }
};
// What one process gets, losses and parameters.
std::pair<std::vector<double>, std::shared_ptr<Lm>> trime_alone(const TrimeStep& step) {
    TrimeRun run;
    std::vector<double> losses;
    for (index_t n = 0; n < kSteps; ++n) {
        run.adam->zero_grad();
        const LossOfRank loss = step(*run.lm, n, nullptr);
        for (const at::Tensor& p : run.lm->parameters())
            if (p.grad().defined()) p.grad().div_(loss.examples);
        run.set_rate(TrimeStep::rate(n));
        run.adam->step();
        losses.push_back(loss.loss / loss.examples);
    }
    return {losses, run.lm};
}
std::map<std::string, std::string> about(const TrimeStep& step) { return {{"memory", step.ext ? "ext" : "long"}}; }

void require_trime(Ranks& ranks, SharedTraining& training, TrimeRun& run, const TrimeStep& step, index_t until) {
    const auto [losses, lm] = trime_alone(step);
    while (training.done() < until) {
        const index_t n = training.done();
        run.set_rate(TrimeStep::rate(n));
        const double loss = training.step([&](index_t i) { return step(*run.lm, i, &ranks); });
        require(std::abs(loss - losses[static_cast<std::size_t>(n)]) < 1e-11,
                text("the loss of one process in step ", n));
    }
    if (until < kSteps) return;
    for (std::size_t i = 0; i < lm->parameters().size(); ++i) {
        require_near(run.lm->parameters()[i], lm->parameters()[i], 1e-9, "a parameter after the last step");
        require_same_everywhere(ranks, run.lm->parameters()[i].detach(), "a parameter");
    }
}
void trime(const std::shared_ptr<Ranks>& ranks) {
    for (const bool ext : {false, true})
        for (const bool plain : {false, true}) {
            TrimeRun run;
            SharedTraining training(ranks, run.lm, run.adam);
            require_trime(*ranks, training, run, {ext, plain}, kSteps);
        }
}
// As many steps as there are before the checkpoint, by these ranks; and from there on, by others.
constexpr TrimeStep kTrime{true, false};
void trime_saves(const std::shared_ptr<Ranks>& ranks, const std::string& path) {
    TrimeRun run;
    SharedTraining training(ranks, run.lm, run.adam, about(kTrime));
    require_trime(*ranks, training, run, kTrime, 3);
    training.save(path);
}
void trime_resumes(const std::shared_ptr<Ranks>& ranks, const std::string& path) {
    TrimeRun run(9), other(9);
    SharedTraining training(ranks, run.lm, run.adam, about(kTrime));
    SharedTraining wrong(ranks, other.lm, other.adam, about({false, false}));
    expect_error(error_of([&] { wrong.resume(path); }), "memory: expected \"long\" as in this run, got \"ext\"");
    expect_error(error_of([&] { training.resume(path + ".none"); }), ".none");
    training.resume(path);
    require(training.done() == 3, "the position");
    require_trime(*ranks, training, run, kTrime, kSteps);
}

// ---- PlugLM ----

constexpr index_t kDocuments = 45, kWidth = 6;

PlugLmConfig small_config() {
    PlugLmConfig config;
    auto& b = config.bert;
    b.model_type = "bert", b.vocab_size = 40, b.dim = b.input_dim = 16, b.ffn_dim = 24, b.layers = 2;
    b.heads = b.kv_heads = 4, b.head_dim = 4, b.max_positions = 16, b.segments = 2, b.activation = "gelu";
    b.causal = b.norm_first = b.final_norm = false, b.embedding_norm = true, b.norm_epsilon = 1e-12;
    b.attention_scale = 0.5, b.dropout = b.attention_dropout = 0.1;
    config.memory.memory_layers = 2;
    config.memory.memory_ffn_dim = 16, config.memory.memory_k = 3, config.memory.query_size = 8;
    config.memory.refreshing_steps = 2;
    return config;
}
PlugLm small_model(std::uint64_t seed = 1) {
    torch::manual_seed(seed);
    return PlugLm(small_config(), fresh_plug_lm(0.25));
}
PlugLmTraining options_of(index_t accumulation) {
    PlugLmTraining options;
    options.decay = {5e-3, 0.2, 0.5, 7}, options.accumulation = accumulation, options.piece = 4;
    // A bias before batch norm has no gradient but rounding, which LAMB would make as long as any other.
    options.lamb.epsilon = 1e-3;
    return options;
}
DocumentRows documents() {
    std::mt19937 random(9);
    DocumentRows out;
    out.length = kWidth;
    for (index_t i = 0; i < kDocuments * kWidth; ++i) {
        const auto word = static_cast<std::uint16_t>(1 + random() % 39);
        out.tokens.push_back(i % kWidth < 3 + (i / kWidth) % 4 ? word : 0);
    }
    return out;
}
MaskedTensors batch_of(index_t n) {
    at::Tensor tokens;
    {
        std::mt19937_64 random(static_cast<std::uint64_t>(n));
        tokens = at::empty({2 + n % 3, 7}, at::kLong);
        for (std::int64_t i = 0; i < tokens.numel(); ++i)
            tokens.data_ptr<std::int64_t>()[i] = 5 + static_cast<std::int64_t>(random() % 35);
    }
    const at::Tensor labels = at::full_like(tokens, -1);
    labels.narrow(1, 2, 2).copy_(tokens.narrow(1, 2, 2));
    tokens.narrow(1, 2, 2).fill_(3);
    return {tokens, {at::ones_like(tokens), {}, at::zeros_like(tokens)}, labels};
}

using State = std::vector<std::pair<std::string, at::Tensor>>;
State state_of(const PlugLm& model) {
    State out;
    for (const auto* part : {&model->weights(), &model->running()})
        for (const auto& [name, t] : *part) out.emplace_back(name, t.detach().clone());
    return out;
}
// The losses of one process, and its model after each step.
struct Alone {
    std::vector<double> losses;
    std::vector<State> states;
    explicit Alone(index_t accumulation) {
        PlugLmTrainer trainer(small_model(), documents(), options_of(accumulation));
        while (trainer.done() < 7) {
            losses.push_back(trainer.step(batch_of, plug_lm_retriever(3)));
            states.push_back(state_of(trainer.model()));
        }
    }
};
void require_plug_lm(Ranks& ranks, auto& trainer, const auto& retriever, const Alone& alone, double tolerance,
                     index_t until) {
    while (trainer.done() < until) {
        const auto n = static_cast<std::size_t>(trainer.done());
        const double loss = trainer.step(batch_of, retriever);
        require(tolerance == 0 ? loss == alone.losses[n] : std::abs(loss - alone.losses[n]) <= tolerance,
                text("the loss of one process in step ", n, ", got ", loss, " for ", alone.losses[n]));
        const State state = state_of(trainer.model());
        for (std::size_t i = 0; i < state.size(); ++i) {
            const std::string what = text(state[i].first, " after step ", n);
            require_near(state[i].second, alone.states[n][i].second, tolerance, what);
            require_same_everywhere(ranks, state[i].second, what);
        }
    }
}
// Of floats that are added in another order, for seven steps: 2e-5 with OpenBLAS, 2.6e-5 with MKL, whose products have
// other bits for other shapes.
constexpr double kRounding = 5e-5;
const Sharded<decltype(plug_lm_retriever(3))> kRetriever{plug_lm_retriever(3)};

void plug_lm(const std::shared_ptr<Ranks>& ranks) {
    for (const index_t accumulation : {index_t{ranks->size()}, index_t{4}, index_t{1}}) {
        const Alone alone(accumulation);
        const bool exact = accumulation <= ranks->size(); // then each rank's gradients are one batch's
        ShardedPlugLmTrainer trainer(small_model(), shard_of(documents(), *ranks, 4), options_of(accumulation),
                                     OverRanks(ranks));
        require_plug_lm(*ranks, trainer, kRetriever, alone, exact || ranks->size() == 1 ? 0 : kRounding, 7);
        require(trainer.base()->size() == kDocuments, "all documents");
    }
    // What fails on one rank, before a retrieval or after the last one, fails on all.
    const int last = ranks->size() - 1;
    ShardedPlugLmTrainer trainer(small_model(), shard_of(documents(), *ranks, 4), options_of(ranks->size()),
                                 OverRanks(ranks));
    const auto spoilt = [&](auto&& spoil) {
        return error_of([&] {
            trainer.step(
                [&](index_t n) {
                    MaskedTensors batch = batch_of(n);
                    if (ranks->rank() == last) spoil(batch);
                    return batch;
                },
                kRetriever);
        });
    };
    const std::string who = text("rank ", last, ": ");
    expect_error(spoilt([](MaskedTensors&) { fail("no such file"); }), who + "mnemo: no such file");
    expect_error(spoilt([](MaskedTensors& batch) { batch.labels.narrow(1, 2, 1).fill_(4000); }), who);
    require(trainer.done() == 0, "no step");
    require(std::isfinite(trainer.step(batch_of, kRetriever)), "a step after an error");
}
void plug_lm_saves(const std::shared_ptr<Ranks>& ranks, const std::string& path) {
    ShardedPlugLmTrainer trainer(small_model(), shard_of(documents(), *ranks, 4), options_of(6), OverRanks(ranks));
    require_plug_lm(*ranks, trainer, kRetriever, Alone(6), ranks->size() == 1 ? 0 : kRounding, 3);
    require(trainer.staleness() == 1, "keys that are not those of the weights");
    trainer.save(path);
}
void plug_lm_resumes(const std::shared_ptr<Ranks>& ranks, const std::string& path) {
    const Alone alone(6);
    ShardedPlugLmTrainer trainer(small_model(2), shard_of(documents(), *ranks, 4), options_of(6), OverRanks(ranks));
    trainer.resume(path);
    require(trainer.done() == 3 && trainer.staleness() == 1 && trainer.base()->size() == kDocuments, "the position");
    require_plug_lm(*ranks, trainer, kRetriever, alone, kRounding, 7);
    PlugLmTrainer plain(small_model(2), documents(), options_of(6)); // one that knows nothing of ranks
    plain.resume(path);
    require_plug_lm(*ranks, plain, plug_lm_retriever(3), alone, kRounding, 7);
    DocumentRows others = documents();
    std::swap(others.tokens[0], others.tokens[1]);
    ShardedPlugLmTrainer wrong(small_model(2), shard_of(others, *ranks, 4), options_of(6), OverRanks(ranks));
    expect_error(error_of([&] { wrong.resume(path); }), "rank 0: mnemo: " + path + ": documents: expected");
    expect_error(error_of([&] { trainer.save(path + ".none/x"); }), "rank 0: ");
}

} // namespace

int main() {
    if (std::getenv("RANK") != nullptr) // torchrun --no-python has started this
        return run_as_rank([](const RanksOptions& options) {
            const auto ranks = std::make_shared<Ranks>(options);
            for (const auto work : {gradients, trime, plug_lm}) work(ranks);
        });
    bool passed = true;
    const auto with_ranks = [](auto work) {
        return [work](const RanksOptions& options) {
            at::set_num_threads(1); // the processes share the machine
            work(std::make_shared<Ranks>(options));
        };
    };
    const Folder folder;
    for (const bool through_store : {false, true}) {
        if (!through_store && !Ranks::has_gloo) continue; // no headers of Gloo
        const auto run = [&](const char* what, int world, auto work) {
            passed = start(what, {.world = world, .through_store = through_store}, work) && passed;
        };
        for (const int world : {1, 2, 3}) {
            if (through_store && Ranks::has_gloo && world != 2) continue; // slow, and the same code
            run("gradients", world, with_ranks(gradients));
            if (!through_store) run("allocations", world, allocates_once);
            run("TRIME", world, with_ranks(trime));
            run("PlugLM", world, with_ranks(plug_lm));
        }
        for (const int world : {1, 2, 3}) {
            if (through_store && Ranks::has_gloo) continue;
            const auto at_path = [&](const char* name, auto work) {
                return with_ranks([work, path = folder / (name + std::to_string(world))](
                                      const std::shared_ptr<Ranks>& ranks) { work(ranks, path); });
            };
            run("TRIME saves", world, at_path("trime", trime_saves));
            run("PlugLM saves", world, at_path("plug_lm", plug_lm_saves));
            for (const int others : {1, 2, 3}) {
                run("TRIME resumes", others, at_path("trime", trime_resumes));
                run("PlugLM resumes", others, at_path("plug_lm", plug_lm_resumes));
            }
        }
    }
    return passed ? 0 : 1;
}
