// SPDX-License-Identifier: MIT
#include <mnemo/nn/pema_train.hpp>
#include <mnemo/store/tokens.hpp>

#include "difference.hpp"
#include <catch.hpp>
#include <error_of.hpp>

#include <ATen/ops/cross_entropy_loss.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/utils.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>

namespace {

using namespace mnemo;
using namespace mnemo::nn;

constexpr std::int64_t kWidth = 24, kWords = 37;

FrozenHead made_head() {
    torch::manual_seed(2);
    return {at::randn({kWords, kWidth}), 1 + 0.1 * at::randn({kWidth}), 0.1 * at::randn({kWidth}), 1e-5, "final"};
}
PemaAdapter made_adapter(std::int64_t rank = 6, double dropout = 0.2) {
    torch::manual_seed(3);
    PemaAdapter adapter(PemaAdapterOptions().dim(kWidth).rank(rank).dropout(dropout));
    const at::NoGradGuard no_grad;
    adapter->lora_B.normal_(), adapter->lora_B_rct.normal_();
    return adapter;
}
/// States with a few strong directions, each followed by a token that the state tells.
TokenStore<float> made_memory(index_t rows, unsigned seed) {
    const at::NoGradGuard no_grad;
    torch::manual_seed(7);
    const at::Tensor mixing = at::randn({6, kWidth}), words = at::randn({6, kWords});
    torch::manual_seed(seed);
    const at::Tensor latent = at::randn({rows, 6}), c = at::mm(latent, mixing) + 0.1 * at::randn({rows, kWidth});
    const at::Tensor tokens = at::mm(latent, words).argmax(1).to(at::kInt);
    TokenStore<float> store(kWidth);
    store.append(as_rows(c),
                 std::span<const std::int32_t>(tokens.data_ptr<std::int32_t>(), static_cast<std::size_t>(rows)));
    return store;
}
at::Tensor keys_of(const TokenStore<float>& store) { return PemaRows<TokenStore<float>>(store).keys(0, store.size()); }
struct Targets {
    std::span<const std::int32_t> targets;
};
using TestTrainer = PemaTrainer<TokenStore<float>>;
constexpr auto keep_going = [](const TestTrainer::Progress&) { return true; };

/// A file that is gone at the end.
struct TemporaryFile {
    std::string path = (std::filesystem::temp_directory_path() / "mnemo-test-XXXXXX").string();
    TemporaryFile() {
        const int descriptor = ::mkstemp(path.data());
        if (descriptor < 0) fail_system(path, "create");
        ::close(descriptor);
    }
    ~TemporaryFile() { std::remove(path.c_str()); }
};

} // namespace

TEST_CASE("the loss of the frozen head in pieces is cross-entropy, with its gradient") {
    const FrozenHead head = made_head();
    torch::manual_seed(4);
    const at::Tensor y = at::randn({11, kWidth}).requires_grad_(), ids = at::randint(kWords, {11}, at::kLong);
    const at::Tensor small = ids.to(at::kInt);
    const std::span<const std::int32_t> targets(small.data_ptr<std::int32_t>(), 11);
    const at::Tensor expected = at::cross_entropy_loss(at::linear(head.norm(y), head.output), ids);
    const at::Tensor by_y = torch::autograd::grad({expected}, {y})[0];
    for (const std::int64_t rows : {1, 4, 11, 100}) {
        const at::Tensor loss = head_cross_entropy(head, y, targets, rows);
        CHECK(loss.item<double>() == Approx(expected.item<double>()).epsilon(1e-6));
        CHECK(difference(torch::autograd::grad({2 * loss}, {y})[0], 2 * by_y) < 2e-6);
    }
    const at::Tensor half = head_cross_entropy(head.with_bfloat16(), y, targets);
    CHECK(half.item<double>() == Approx(expected.item<double>()).margin(3e-2));
    CHECK(difference(torch::autograd::grad({half}, {y})[0], by_y) < 2e-2 * by_y.abs().max().item<double>());
    const std::vector<std::int32_t> wrong(11, kWords);
    CHECK_THAT(error_of([&] { (void)head_cross_entropy(head, y, wrong); }),
               Catch::Contains("expected a token below 37"));
}

TEST_CASE("gradients by hand are autograd's, and those of a Memory's loss") {
    const FrozenHead head = made_head();
    const TokenStore<float> memory = made_memory(600, 1); // more rows than a piece
    PemaRows<TokenStore<float>> rows(memory);
    const at::Tensor c = rows.keys(0, 600);
    const auto targets = rows.values(0, 600);
    PemaAdapter adapter = made_adapter(6, 0);
    adapter->train();
    const at::Tensor ids = at::empty({600}, at::kLong);
    std::copy(targets.begin(), targets.end(), ids.data_ptr<std::int64_t>());
    for (const PemaPhase phase : {PemaPhase::reconstruct, PemaPhase::joint, PemaPhase::predict}) {
        PemaTrainOptions o;
        o.phase = phase, o.kappa = 0.3;
        const at::Tensor back = (adapter->reconstruct(c) - c).square().mean();
        const at::Tensor prediction =
            at::cross_entropy_loss(at::linear(head.norm(adapter->forward(c)), head.output), ids);
        const at::Tensor loss = phase == PemaPhase::reconstruct ? back
                                : phase == PemaPhase::predict   ? prediction
                                                                : 0.3 * back + 0.7 * prediction;
        const at::Tensor b = phase == PemaPhase::reconstruct ? adapter->lora_B_rct : adapter->lora_B;
        const auto expected = torch::autograd::grad({loss}, {adapter->lora_A, b});
        PemaGradients gradients(adapter, &head);
        const PemaLosses losses = gradients.compute(o, c, targets, true, {});
        CHECK(losses.total(phase, 0.3) == Approx(loss.item<double>()).epsilon(1e-5));
        CHECK(difference(gradients.a, expected[0]) < 2e-5 * (1 + expected[0].abs().max().item<double>()));
        CHECK(difference(gradients.b, expected[1]) < 2e-5 * (1 + expected[1].abs().max().item<double>()));
    }
    const Memory composed(LastHidden{}, std::shared_ptr<PemaAdapterImpl>(adapter.ptr()), Recite{},
                          Interpolate{HeadEvidence{head.plain_norm(), head.plain_output()}, Fixed{0.5f}},
                          ReconstructPredict{head, 0.3});
    const at::Tensor loss = composed.loss(c, Targets{targets});
    loss.backward();
    PemaTrainOptions o;
    o.kappa = 0.3;
    PemaGradients gradients(adapter, &head);
    CHECK(gradients.compute(o, c, targets, true, {}).total(o.phase, 0.3) == Approx(loss.item<double>()).epsilon(1e-5));
    CHECK(difference(gradients.a, adapter->lora_A.grad()) < 2e-5);
    CHECK(difference(gradients.b, adapter->lora_B.grad()) < 2e-5);
    CHECK(!adapter->lora_B_rct.grad().defined());
}

TEST_CASE("an adapter as a store says the same to tensors and to rows") {
    const FrozenHead head = made_head();
    PemaAdapter adapter = made_adapter();
    adapter->eval();
    const at::NoGradGuard no_grad;
    torch::manual_seed(9);
    const at::Tensor c = at::randn({5, kWidth});
    const at::Tensor base = at::log_softmax(at::randn({5, kWords}), 1);
    const at::Tensor expected = ((1 - 0.4) * base.exp() + 0.4 * head.log_probs(adapter->forward(c)).exp()).log();
    const Interpolate combiner{HeadEvidence{head.plain_norm(), head.plain_output()}, Fixed{0.4f}};
    const std::shared_ptr<PemaAdapterImpl> store = adapter.ptr();
    const Memory memory(LastHidden{}, store, Recite{}, combiner);
    const at::Tensor by_tensor = base.clone(), by_rows = base.clone();
    memory.read(c, as_mut_rows(by_tensor));
    memory.read(as_rows(c), as_mut_rows(by_rows));
    CHECK(difference(by_tensor, expected) < 1e-5);
    CHECK(difference(by_rows, expected) < 1e-5);
    CHECK(head.plain_output().data == head.output.data_ptr<float>()); // shared, not copied
}

TEST_CASE("the closed form is the bound of principal components, and beats its neighbours under dropout") {
    const TokenStore<float> memory = made_memory(500, 1);
    const at::Tensor c = keys_of(memory).to(at::kDouble), s = at::mm(c.t(), c) / 500;
    for (const std::int64_t rank : {1, 4, 6, 30}) {
        PemaAdapter adapter = made_adapter(rank);
        adapter->eval();
        const double left = reconstruct_in_closed_form(adapter, memory, 0, 128);
        const at::Tensor values = std::get<0>(at::linalg_eigh(s));
        const double bound =
            values.narrow(0, 0, std::max<std::int64_t>(kWidth - rank, 0)).sum().item<double>() / kWidth;
        CHECK(left == Approx(bound).margin(1e-6));
        CHECK((adapter->reconstruct(c.to(at::kFloat)) - c).square().mean().item<double>() ==
              Approx(bound).margin(1e-5));
    }
    const at::NoGradGuard no_grad;
    PemaAdapter adapter = made_adapter(3);
    adapter->eval();
    const double error = reconstruct_in_closed_form(adapter, memory, 0.2);
    CHECK((adapter->reconstruct(c.to(at::kFloat)) - c).square().mean().item<double>() == Approx(error).epsilon(1e-4));
    // The expected loss with dropout on the input: |M c - c|^2 + p / (1 - p) |M diag(c)|^2.
    const auto objective = [&](const at::Tensor& a, const at::Tensor& b) {
        const at::Tensor m = (at::mm(b, a) * adapter->options().scale()).to(at::kDouble);
        return ((at::mm(c, m.t()) - c).square().sum() / 500 + 0.25 * (m.square() * s.diagonal()).sum()).item<double>();
    };
    const double least = objective(adapter->lora_A, adapter->lora_B_rct);
    torch::manual_seed(11);
    for (int i = 0; i < 50; ++i)
        CHECK(objective(adapter->lora_A + 0.02 * at::randn_like(adapter->lora_A),
                        adapter->lora_B_rct + 0.02 * at::randn_like(adapter->lora_B_rct)) > least);
}

TEST_CASE("both phases learn, and gradients come to the closed form") {
    const TokenStore<float> memory = made_memory(640, 1), held_out = made_memory(192, 2);
    torch::manual_seed(3);
    PemaAdapter adapter(PemaAdapterOptions().dim(kWidth).rank(8));
    const FrozenHead head = made_head();
    PemaTrainOptions first;
    first.phase = PemaPhase::reconstruct, first.batch = 64, first.epochs = 150, first.learning_rate = 1e-2;
    first.validate_every = 1000000;
    TestTrainer one(adapter, head, memory, nullptr, first);
    const double before = one.mean_loss(held_out);
    CHECK(before == Approx(keys_of(held_out).square().mean().item<double>()).epsilon(0.01)); // B is 0
    CHECK(one.run(keep_going));
    const double by_steps = one.mean_loss(held_out);
    CHECK(by_steps < 0.1 * before);
    PemaAdapter closed = made_adapter(8);
    closed->eval();
    reconstruct_in_closed_form(closed, memory, 0.2);
    const double in_closed_form = TestTrainer(closed, head, memory, nullptr, first).mean_loss(held_out);
    CHECK(in_closed_form < by_steps * 1.1);
    CHECK(in_closed_form > by_steps * 0.5);

    PemaTrainOptions second;
    second.batch = 64, second.epochs = 40, second.learning_rate = 1e-2, second.validate_every = 50;
    PemaAdapter joint(PemaAdapterOptions().dim(kWidth).rank(8)); // a new A
    {
        const at::NoGradGuard no_grad;
        joint->lora_B_rct.copy_(adapter->lora_B_rct);
    }
    TestTrainer two(joint, head, memory, &held_out, second);
    std::vector<double> validations;
    two.run([&](const TestTrainer::Progress& p) {
        if (p.validation) validations.push_back(*p.validation);
        return true;
    });
    REQUIRE(validations.size() >= 3);
    CHECK(validations.back() < validations.front());
    CHECK(at::equal(joint->lora_B_rct, adapter->lora_B_rct)); // frozen
    two.restore_best();
    CHECK(two.mean_loss(held_out) == Approx(*std::min_element(validations.begin(), validations.end())).epsilon(1e-9));
}

TEST_CASE("a run that is saved and resumed is the run that was not, bit for bit") {
    const TokenStore<float> memory = made_memory(150, 1), held_out = made_memory(40, 2);
    const FrozenHead head = made_head();
    for (const PemaPhase phase : {PemaPhase::reconstruct, PemaPhase::joint})
        for (const bool quirk : {false, true}) {
            PemaTrainOptions o;
            o.phase = phase, o.batch = 40, o.epochs = 5, o.validate_every = 3, o.no_dropout_after_validation = quirk;
            const TemporaryFile file;
            const PemaAdapter whole = made_adapter(), parts = made_adapter(), later = made_adapter();
            TestTrainer(whole, head, memory, &held_out, o).run(keep_going);
            TestTrainer interrupted(parts, head, memory, &held_out, o);
            for (int i = 0; i < 8; ++i) interrupted.step();
            interrupted.save(file.path);
            TestTrainer resumed(later, head, memory, &held_out, o);
            resumed.resume(file.path);
            CHECK(resumed.done() == 8);
            resumed.run(keep_going);
            CHECK(at::equal(whole->lora_A, later->lora_A));
            CHECK(at::equal(whole->lora_B, later->lora_B));
            CHECK(at::equal(whole->lora_B_rct, later->lora_B_rct));
            o.kappa = 0.5;
            TestTrainer other(parts, head, memory, &held_out, o);
            CHECK_THAT(error_of([&] { other.resume(file.path); }), Catch::Contains("options: expected"));
        }
}

TEST_CASE("after a validation dropout is off until the epoch ends, where the reference is followed") {
    // One row of ones and A, B that add up: without dropout the loss is known.
    TokenStore<float> memory(kWidth);
    const std::vector<float> ones(static_cast<std::size_t>(kWidth) * 60, 1);
    memory.append(Rows(ones.data(), 60, kWidth), std::vector<std::int32_t>(60));
    PemaTrainOptions o;
    o.phase = PemaPhase::reconstruct, o.batch = 10, o.epochs = 3, o.validate_every = 4, o.learning_rate = 0;
    for (const bool quirk : {false, true}) {
        o.no_dropout_after_validation = quirk;
        PemaAdapter adapter = made_adapter();
        TestTrainer trainer(adapter, {}, memory, &memory, o);
        const double known = trainer.mean_loss(memory);
        std::string pattern; // 1: dropout
        trainer.run([&](const TestTrainer::Progress& p) {
            pattern += std::abs(p.losses.reconstruction - known) > 1e-6 * known ? '1' : '0';
            return true;
        });
        // Validations come after steps 0, 4, 8, 12, 16.
        CHECK(pattern == (quirk ? "100000111000100000" : "111111111111111111"));
    }
}

TEST_CASE("training stops when validation is worse than twice before") {
    const TokenStore<float> memory = made_memory(80, 1), held_out = made_memory(20, 2);
    PemaTrainOptions o;
    o.phase = PemaPhase::reconstruct, o.batch = 80, o.epochs = 1000, o.validate_every = 2, o.learning_rate = 0.3;
    TestTrainer trainer(made_adapter(), {}, memory, &held_out, o);
    std::vector<double> sums;
    CHECK(trainer.run([&](const TestTrainer::Progress& p) {
        if (p.validation) sums.push_back(*p.validation); // one batch: the mean is the sum
        return true;
    }));
    REQUIRE(sums.size() >= 3);
    REQUIRE(trainer.done() < 1000);
    for (std::size_t i = 2; i < sums.size(); ++i)
        CHECK((sums[i] > sums[i - 1] && sums[i] > sums[i - 2]) == (i + 1 == sums.size()));
    CHECK_THAT(error_of([&] { trainer.step(); }), Catch::Contains("it has ended"));
}

TEST_CASE("adapter files come back, and others are refused") {
    const TemporaryFile file;
    PemaAdapter adapter = made_adapter(6);
    save_adapter(file.path, adapter, {{"norm", "final"}});
    const PemaAdapterFile back = load_adapter(file.path);
    CHECK(at::equal(back.adapter->lora_A, adapter->lora_A));
    CHECK(at::equal(back.adapter->lora_B, adapter->lora_B));
    CHECK(at::equal(back.adapter->lora_B_rct, adapter->lora_B_rct));
    CHECK(back.adapter->options().scale() == adapter->options().scale());
    CHECK(back.metadata.at("norm") == "final");
    // A state dict of the reference, converted: with the weight and bias that it never used.
    const std::vector<float> a(8), b(8, 1), square(16), bias(4);
    write_safetensors(file.path,
                      std::vector<Entry>{tensor_entry("lora_A", {2, 4}, a), tensor_entry("lora_B", {4, 2}, b),
                                         tensor_entry("weight", {4, 4}, square), tensor_entry("bias", {4}, bias)});
    const PemaAdapterFile foreign = load_adapter(file.path);
    CHECK(foreign.adapter->options().rank() == 2);
    CHECK(foreign.adapter->options().scale() == 0.5);
    CHECK(foreign.adapter->lora_B_rct.abs().sum().item<double>() == 0);
    write_safetensors(file.path,
                      std::vector<Entry>{tensor_entry("lora_A", {2, 4}, a), tensor_entry("lora_B", {2, 4}, b)});
    CHECK_THAT(error_of([&] { (void)load_adapter(file.path); }), Catch::Contains("lora_B: expected [4, 2]"));
    const std::vector<float> broken{0, 1, INFINITY, 0, 0, 0, 0, 0};
    write_safetensors(file.path,
                      std::vector<Entry>{tensor_entry("lora_A", {2, 4}, a), tensor_entry("lora_B", {4, 2}, broken)});
    CHECK_THAT(error_of([&] { (void)load_adapter(file.path); }), Catch::Contains("lora_B: expected finite numbers"));
    write_safetensors(file.path,
                      std::vector<Entry>{tensor_entry("lora_A", {2, 4}, a), tensor_entry("lora_B", {4, 2}, b)},
                      {{"format", "mnemo-adapter"}, {"version", "9"}});
    CHECK_THAT(error_of([&] { (void)load_adapter(file.path); }), Catch::Contains("version: expected 1, got \"9\""));
}

TEST_CASE("names of checkpoints are the reference's") {
    CHECK(pema_checkpoint_name(PemaPhase::reconstruct, 0, 1.2704) == "rct_0_step_1.27_loss");
    CHECK(pema_checkpoint_name(PemaPhase::joint, 300, 5.3109) == "rct_cls_300_step_5.311_loss");
    CHECK(pema_checkpoint_name(PemaPhase::joint, 100, 2) == "rct_cls_100_step_2.0_loss");
    CHECK(pema_checkpoint_name(PemaPhase::predict, 7, 0.1) == "0.1_loss");
}
