// SPDX-License-Identifier: MIT
#include "catch.hpp"

#include <mnemo/nn/trime.hpp>

#include <torch/csrc/autograd/autograd.h>

using mnemo::index_t;
using mnemo::Visibility;
using namespace mnemo::nn;

namespace {

// A random problem: an output layer with 0 to 2 bands, entries of others before and after, any visibility.
struct Problem {
    JointInputs in;
    std::vector<at::Tensor> leaves;

    Problem(std::int64_t seed, at::ScalarType type, double spread = 1) {
        at::manual_seed(static_cast<std::uint64_t>(seed));
        const auto number = [](std::int64_t low, std::int64_t high) {
            return at::randint(low, high, {1}).item<std::int64_t>();
        };
        const auto leaf = [&](at::IntArrayRef shape) {
            leaves.push_back((at::randn(shape, at::kDouble) * spread).to(type).requires_grad_());
            return leaves.back();
        };
        const std::int64_t rows = number(1, 70), dim = number(1, 20), width = number(1, 20), bands = number(0, 3);
        in.features = leaf({rows, dim});
        in.output.words = leaf({number(3, 40), dim});
        if (bands > 0) in.output.classes = leaf({bands, dim});
        for (std::int64_t i = 0; i < bands; ++i) {
            const std::int64_t narrow = number(1, 6);
            const at::Tensor projection = leaf({narrow, dim});
            in.output.bands.push_back({projection, leaf({number(1, 12), narrow})});
        }
        in.targets = at::randint(in.output.vocab_size(), {rows});
        in.scoring.scale = 0.7 / std::sqrt(static_cast<double>(width));
        if (seed % 7 == 0) return; // no memory: cross-entropy
        in.keys = leaf({rows, width});
        if (seed % 4 == 1) in.scoring.top_k = number(1, 9);
        const std::int64_t before = seed % 2 == 0 ? number(0, 30) : 0, after = seed % 3 == 0 ? number(0, 30) : 0;
        const auto others = [&](std::int64_t n, std::vector<at::Tensor>& keys, std::vector<at::Tensor>& labels) {
            for (const std::int64_t part : {n / 3, n - n / 3}) {
                keys.push_back(at::randn({part, width}, at::kDouble).to(type));
                labels.push_back(at::randint(in.output.vocab_size(), {part}));
            }
        };
        others(before, in.keys_before, in.labels_before);
        others(after, in.keys_after, in.labels_after);
        const index_t entries = before + rows + after;
        std::vector<index_t> lengths;
        for (std::int64_t left = rows; left > 0; left -= lengths.back())
            lengths.push_back(std::min(left, number(1, 20)));
        switch (seed % 5) {
        case 0:
            in.visible = Visibility::same_segment(lengths, entries, before);
            break;
        case 1:
            in.visible = Visibility::earlier(rows, entries, before, before / 2);
            break;
        case 2:
            in.visible = Visibility::other_segments(lengths, entries, before, true);
            break;
        case 3:
            in.visible = Visibility::other_segments(lengths, entries, before, false);
            break;
        default: { // ranges of any kind, empty ones too
            std::vector<mnemo::VisibleRow> seen;
            for (std::int64_t i = 0; i < rows; ++i) {
                index_t cut[4];
                for (index_t& c : cut) c = number(0, entries + 1);
                std::sort(cut, cut + 4);
                seen.push_back({{cut[0], cut[1]}, {cut[2], cut[3]}});
            }
            in.visible = Visibility(seen, entries);
        }
        }
    }
    // Others' keys have gradients, too.
    void learn_others() {
        in.others_learn = true;
        for (auto* keys : {&in.keys_before, &in.keys_after})
            for (at::Tensor& k : *keys)
                if (k.size(0) > 0) leaves.push_back(k.requires_grad_());
    }
    // The loss and its gradients, times `factor`.
    std::vector<at::Tensor> run(bool fused, double factor = 1, FusedTiles tiles = {}) {
        at::Tensor rows;
        at::Tensor loss;
        if (fused) {
            const FusedLoss result = fused_joint_loss(in, tiles);
            loss = result.loss, rows = result.token_loss;
        } else {
            rows = joint_terms(in).token_loss;
            loss = rows.sum();
        }
        std::vector<at::Tensor> out{loss.detach(), rows.detach()};
        const auto gradients = torch::autograd::grad({loss * factor}, leaves, {}, c10::nullopt, false, true);
        out.insert(out.end(), gradients.begin(), gradients.end());
        return out;
    }
};

double difference_of_gradients(const at::Tensor& a, const at::Tensor& b) {
    if (!a.defined() || !b.defined()) {
        const at::Tensor& one = a.defined() ? a : b;
        return one.defined() ? one.abs().max().item<double>() : 0;
    }
    const at::Tensor x = a.to(at::kDouble), y = b.to(at::kDouble);
    return (x - y).abs().max().item<double>() / std::max(1e-3, y.abs().max().item<double>());
}

// Bit for bit; MKL cuts even a product of one thread by the number of threads it was told of, so that its last bits
// differ: there, up to `rounding`.
void require_same(const at::Tensor& a, const at::Tensor& b, double rounding) {
    if (at::hasMKL())
        REQUIRE(difference_of_gradients(a, b) < rounding);
    else
        REQUIRE(at::equal(a, b));
}

} // namespace

TEST_CASE("the fused loss equals the plain one") {
    for (std::int64_t seed = 0; seed < 60; ++seed) {
        Problem problem(seed, at::kFloat, seed % 4 == 3 ? 4 : 1);
        if (seed % 3 == 0) problem.learn_others();
        const FusedTiles tiles{1 + seed % 33, 1 + seed % 17};
        const auto plain = problem.run(false, 0.5), fused = problem.run(true, 0.5, tiles);
        INFO("seed " << seed);
        REQUIRE(difference_of_gradients(fused[0], plain[0]) < 1e-5);
        REQUIRE(difference_of_gradients(fused[1], plain[1]) < 1e-5);
        for (std::size_t i = 2; i < plain.size(); ++i) {
            INFO("gradient " << i - 2);
            REQUIRE(difference_of_gradients(fused[i], plain[i]) < 1e-4);
        }
    }
}

TEST_CASE("the fused loss of bfloat16 tensors is that of their values") {
    for (std::int64_t seed = 1; seed < 12; ++seed) {
        Problem problem(seed, at::kBFloat16), same(seed, at::kBFloat16);
        const auto fused = problem.run(true, 1, {16, 8});
        same.leaves.clear();
        const auto widen = [&](at::Tensor& t) {
            if (!t.defined()) return;
            t = t.detach().to(at::kFloat).requires_grad_();
            same.leaves.push_back(t);
        };
        widen(same.in.features), widen(same.in.output.words), widen(same.in.output.classes);
        for (auto& band : same.in.output.bands) widen(band.projection), widen(band.embedding);
        widen(same.in.keys);
        const auto plain = same.run(false);
        INFO("seed " << seed);
        REQUIRE(difference_of_gradients(fused[0], plain[0]) < 1e-5);
        for (std::size_t i = 2; i < plain.size(); ++i) { // gradients are rounded to bfloat16
            INFO("gradient " << i - 2);
            REQUIRE(difference_of_gradients(fused[i], plain[i]) < 1e-2);
        }
    }
}

TEST_CASE("tiles in bfloat16 are near the plain loss, whatever the number of threads") {
    const int threads = at::get_num_threads();
    for (std::int64_t seed = 0; seed < 24; ++seed) {
        Problem problem(seed, at::kFloat);
        problem.in.scoring.top_k = 0; // rounding may choose others
        const auto plain = problem.run(false), fused = problem.run(true, 1, {16, 8, true});
        INFO("seed " << seed);
        REQUIRE(difference_of_gradients(fused[0], plain[0]) < 5e-3);
        for (std::size_t i = 2; i < plain.size(); ++i) {
            INFO("gradient " << i - 2);
            REQUIRE(difference_of_gradients(fused[i], plain[i]) < 5e-2);
        }
        at::set_num_threads(seed % 2 == 0 ? 1 : 3);
        const auto again = problem.run(true, 1, {16, 8, true});
        at::set_num_threads(threads);
        for (std::size_t i = 0; i < fused.size(); ++i)
            if (fused[i].defined()) require_same(fused[i], again[i], 1e-2); // a last bit may turn a rounding
    }
}

TEST_CASE("gradients of the fused loss are differences of its values") {
    for (const std::int64_t seed : {1, 2, 3, 4, 5, 6}) {
        Problem problem(seed, at::kDouble);
        const auto fused = problem.run(true, 1, {16, 8});
        const at::NoGradGuard no_grad;
        for (std::size_t leaf = 0; leaf < problem.leaves.size(); ++leaf) {
            const at::Tensor x = problem.leaves[leaf];
            const at::Tensor direction = at::randn_like(x);
            const auto value = [&](double step) {
                x.add_(direction, step);
                const double loss = fused_joint_loss(problem.in, {16, 8}).loss.item<double>();
                x.sub_(direction, step);
                return loss;
            };
            const double expected = (value(1e-5) - value(-1e-5)) / 2e-5;
            const double got = fused[leaf + 2].defined() ? (fused[leaf + 2] * direction).sum().item<double>() : 0;
            INFO("seed " << seed << " leaf " << leaf);
            REQUIRE(std::abs(got - expected) < 1e-6 * std::max(1.0, std::abs(expected)));
        }
    }
}

TEST_CASE("sums of the vocabulary and of the memory come apart") {
    for (std::int64_t seed = 1; seed < 12; ++seed)
        for (const auto type : {at::kFloat, at::kDouble}) {
            Problem problem(seed, type);
            const at::NoGradGuard no_grad;
            const JointTerms plain = joint_terms(problem.in);
            const FusedSums fused = fused_joint_sums(problem.in, {16, 8});
            const auto same = [](const at::Tensor& a, const at::Tensor& b) { return at::allclose(a, b, 1e-5, 1e-5); };
            INFO("seed " << seed);
            REQUIRE(same(fused.vocabulary.all, plain.vocabulary.all));
            REQUIRE(same(fused.vocabulary.target, plain.vocabulary.target));
            REQUIRE(same(fused.token_loss, plain.token_loss));
            if (!problem.in.keys.defined()) continue;
            REQUIRE(same(fused.memory.all, plain.memory.all));
            REQUIRE(same(fused.memory.target, plain.memory.target));
        }
}

TEST_CASE("the fused loss gives the same bits for any number of threads, to rounding where MKL multiplies") {
    const int threads = at::get_num_threads();
    for (const std::int64_t seed : {2, 3, 4, 9}) {
        Problem problem(seed, at::kFloat);
        at::set_num_threads(1);
        const auto one = problem.run(true, 1, {16, 8});
        for (const int n : {2, 3, 5}) {
            at::set_num_threads(n);
            const auto more = problem.run(true, 1, {16, 8});
            for (std::size_t i = 0; i < one.size(); ++i) {
                INFO("seed " << seed << ", " << n << " threads, result " << i);
                if (one[i].defined()) require_same(one[i], more[i], 1e-6);
            }
        }
    }
    at::set_num_threads(threads);
}

TEST_CASE("the fused loss keeps far-off logits apart and is taken back once") {
    Problem problem(5, at::kFloat, 30);
    const auto plain = problem.run(false), fused = problem.run(true);
    for (std::size_t i = 0; i < plain.size(); ++i) REQUIRE(difference_of_gradients(fused[i], plain[i]) < 1e-4);
    const at::Tensor loss = fused_joint_loss(problem.in).loss;
    torch::autograd::grad({loss}, problem.leaves, {}, true, false, true);
    REQUIRE_THROWS_WITH(torch::autograd::grad({loss}, problem.leaves, {}, true, false, true),
                        Catch::Contains("retain_graph"));
}

TEST_CASE("padding neither costs nor is remembered") {
    at::manual_seed(3);
    const OutputLayer output{at::randn({20, 8}), {}, {}};
    const at::Tensor features = at::randn({3, 6, 8}), keys = at::randn({3, 6, 8}), targets = at::randint(2, 20, {3, 6});
    const std::vector<index_t> lengths{6, 0, 2};
    at::Tensor padded = targets.clone();
    padded.select(0, 1).fill_(1), padded.select(0, 2).slice(0, 2, 6).fill_(1);
    REQUIRE(lengths_of(padded, 1) == lengths);
    REQUIRE_THROWS_AS(lengths_of(padded.flip(1), 1), mnemo::Error);
    for (const bool plain : {false, true}) {
        const TrimeOptions options{.plain = plain};
        const TrimeLoss with = trime_long_loss_same_device({features, keys, padded, lengths, {}}, output, options);
        // The same eight tokens, once in two segments without padding around them.
        const auto flat = [](const at::Tensor& t) {
            return at::cat({t.select(0, 0), t.select(0, 2).slice(0, 0, 2)}).unsqueeze(0);
        };
        const TrimeLoss without =
            trime_long_loss_same_device({flat(features), flat(keys), flat(targets), {}, {}}, output, options);
        REQUIRE(with.tokens == 8);
        REQUIRE(at::allclose(with.token_loss, without.token_loss));
        // The first token of a segment sees nothing: cross-entropy.
        const TrimeLoss local = trime_loss({features, keys, padded, lengths, {}}, output, options);
        const TrimeLoss ce =
            trime_loss({features, keys, padded, lengths, {}}, output, {.cross_entropy = true, .plain = plain});
        for (const std::int64_t first : {0, 6})
            REQUIRE(std::abs(local.token_loss[first].item<float>() - ce.token_loss[first].item<float>()) < 1e-5);
    }
}

TEST_CASE("wrong shapes of a batch are named") {
    const OutputLayer output{at::randn({20, 8}), {}, {}};
    const at::Tensor features = at::randn({3, 6, 8}), keys = at::randn({3, 6, 4}), targets = at::randint(20, {3, 6});
    REQUIRE_THROWS_WITH(trime_loss({features, keys, targets, {6, 7, 1}, {}}, output),
                        Catch::Contains("got 7 for segment 1"));
    REQUIRE_THROWS_WITH(trime_loss({features.narrow(2, 0, 7), keys, targets, {}, {}}, output),
                        Catch::Contains("words"));
    REQUIRE_THROWS_WITH(trime_loss({features, keys.narrow(1, 0, 5), targets, {}, {}}, output), Catch::Contains("keys"));
    REQUIRE_THROWS_WITH(trime_loss({features, keys, targets + 20, {}, {}}, output), Catch::Contains("ids below 20"));
}
