// SPDX-License-Identifier: MIT
#pragma once

// The second part of examples/long_mem.cpp: a long text of a library that the model has never seen, read with memories
// of growing size and with memories that must not help.
#include "long_mem_recall.hpp"

#include <mnemo/text/passages.hpp>

#include <numeric>

struct Lesson {
    index_t steps, rows, length; // tokens a row
    double rate;                 // of learning
};
struct TextSettings {
    // Segments are short, as the model is small: what is beyond them, only memory knows.
    index_t vocab = 512, dim = 128, heads = 4, layers = 2, reduction = 1, layer = 1, segment = 64;
    // What the backbone learns from. Rows of the second lesson are longer: among more that looks alike, keys must say
    // more of what stood before.
    std::vector<Lesson> lessons{{2000, 16, 64, 4e-3}, {700, 8, 256, 2e-3}};
    index_t repeated = 2, meaningless = 2; // of so many rows one repeats itself, and of those one is of random tokens
    index_t side_steps = 1000, side_rows = 4, warm_up = 256; // segments that the banks hold before the first step
    std::vector<index_t> sizes{4096, 16384, 65536};
    index_t places = 150, every = 3; // segments that are scored, and how far they lie apart
    index_t chunk = 1, k = 32;       // tokens; smaller than published, as is everything
    double learning_rate = 3e-3;     // of the side network
    nn::SideStart start = nn::SideStart::quiet;
};

// Perplexities by memory, and which chunks were read.
struct TextFigures {
    std::vector<std::pair<std::string, double>> perplexity;
    std::vector<std::vector<double>> reads; // [place][age], ages in parts of the largest memory
    std::pair<double, double> said_again;
    double tokens_a_second = 0, bank_megabytes = 0;
};

// Random weights, but the heads of layer 0 begin as ones that look 1, 2, ... tokens back: positions turn each pair of a
// head's values, the bias of the norm is a direction that every token has, and in it keys begin turned against queries
// by so many positions. The keys of the layer above then say what stood before a token after a few hundred steps; a
// small model takes very many to find this by itself.
inline nn::HuggingFaceLm text_backbone(const TextSettings& set, std::uint64_t seed) {
    const auto options = nn::long_mem_backbone_options(set.vocab, set.dim, set.layers, set.heads,
                                                       nn::HuggingFaceOptions::Positions::rotary);
    nn::HuggingFaceLm backbone = nn::random_backbone(options, 0.12, seed);
    const at::NoGradGuard no_grad;
    const double bias = 0.5, size = 6.3 / (bias * double(set.dim));
    const index_t pairs = options.head_dim / 2;
    for (const auto& [name, weight] : backbone->weights()) {
        if (name == "layers.0.norm1.bias") weight.fill_(bias);
        const bool key = name == "layers.0.key.weight";
        if (!key && name != "layers.0.query.weight") continue;
        weight.mul_(0.25); // these heads care little for what a token is
        for (index_t head = 0; head < set.heads; ++head)
            for (index_t pair = 0; pair < pairs; ++pair) {
                const double turn = std::pow(options.rotary_base, -double(pair) / double(pairs));
                const double angle = key ? double(head + 1) * turn : 0.0;
                weight[head * options.head_dim + pair].add_(size * std::cos(angle));
                weight[head * options.head_dim + pairs + pair].add_(size * std::sin(angle));
            }
    }
    return backbone;
}
// Some rows say a passage, or random tokens of a few kinds, again and again: they teach heads to look for what followed
// the last time, behind more than one token if there are few kinds, which is what a memory is asked for.
inline void learn_text(nn::HuggingFaceLm& backbone, std::span<const std::int32_t> tokens, const TextSettings& set,
                       std::uint64_t seed, const Tick& tick) {
    std::mt19937_64 draw(seed);
    for (const Lesson& lesson : set.lessons) {
        torch::optim::AdamW optimizer(backbone->parameters(),
                                      torch::optim::AdamWOptions(lesson.rate).betas({0.9, 0.95}).weight_decay(0.1));
        const auto length = static_cast<std::size_t>(lesson.length);
        for (index_t step = 0; step < lesson.steps; ++step, tick()) {
            const double part = double(step) / double(lesson.steps);
            for (auto& group : optimizer.param_groups())
                group.options().set_lr(lesson.rate *
                                       std::min(double(step + 1) / 60, 0.55 + 0.45 * std::cos(3.14159 * part)));
            std::vector<std::vector<std::int32_t>> rows;
            for (index_t r = 0; r < lesson.rows; ++r) {
                const std::size_t first = draw() % (tokens.size() - length - 1);
                const auto row = tokens.subspan(first, length + 1);
                rows.emplace_back(row.begin(), row.end());
                if (draw() % std::uint64_t(set.repeated) != 0) continue;
                if (draw() % std::uint64_t(set.meaningless) == 0) {
                    std::vector<std::int32_t> few(std::size_t{2} << draw() % 7);
                    for (std::int32_t& token : few) token = std::int32_t(draw() % std::uint64_t(set.vocab));
                    for (std::int32_t& token : rows.back()) token = few[draw() % few.size()];
                }
                const std::size_t period = 4 + draw() % (length / 2 - 4);
                for (std::size_t i = period; i < rows.back().size(); ++i) rows.back()[i] = rows.back()[i - period];
            }
            const auto [inputs, targets] = recall_rows(rows, 0, lesson.length);
            optimizer.zero_grad();
            (-backbone->log_prob_target(backbone->forward(inputs), targets).mean()).backward();
            optimizer.step();
        }
    }
}

// Nats a token of passages that stand behind themselves, and of the same behind others: how far the backbone finds what
// followed the same words before, which is what keys in a memory must say.
inline std::pair<double, double> said_again(const nn::HuggingFaceLm& backbone, std::span<const std::int32_t> tokens) {
    const at::NoGradGuard no_grad;
    constexpr index_t passages = 256;
    const index_t length = std::min<index_t>(32, backbone->max_positions() / 2);
    const auto passage = [&](index_t i) {
        return tokens.subspan(static_cast<std::size_t>(i % passages * ((std::ssize(tokens) - length) / passages)),
                              static_cast<std::size_t>(length));
    };
    const auto loss = [&](index_t other) {
        std::vector<std::vector<std::int32_t>> rows;
        for (index_t i = 0; i < passages; ++i) {
            const auto before = passage(i + other), said = passage(i);
            auto& row = rows.emplace_back(before.begin(), before.end());
            row.insert(row.end(), said.begin(), said.end());
        }
        constexpr index_t unknown = 4; // what the first tokens are, nothing says yet
        const auto [inputs, targets] = recall_rows(rows, 0, 2 * length - 1);
        return -backbone->log_prob_target(backbone->forward(inputs), targets)
                    .narrow(1, length + unknown - 1, length - unknown)
                    .mean()
                    .item<double>();
    };
    return {loss(0), loss(passages / 2)};
}

// The side network, adapted with banks that are full of text from the first step on; `each` gets the steps' losses.
inline nn::LongMem<> text_model(const nn::HuggingFaceLm& backbone, std::span<const std::int32_t> tokens,
                                const TextSettings& set, auto&& each) {
    const LongMemOptions bank{.heads = set.heads,
                              .head_dim = set.dim / set.heads,
                              .memory_tokens = set.sizes.back(),
                              .chunk = set.chunk,
                              .k = set.k};
    nn::LongMem model(backbone, nn::side_network_from(backbone, set.reduction, set.layer, set.start), set.reduction,
                      set.layer, LongMemBanks(bank, set.side_rows));
    const Passages passages(tokens, {.block = set.segment, .rows = set.side_rows});
    Passages::Batch batch;
    for (index_t n = passages.batches(0), i = std::max<index_t>(n - set.warm_up, 0); i < n; ++i) {
        const at::NoGradGuard no_grad;
        passages.read(0, i, batch);
        const at::Tensor inputs = at::empty({batch.rows, batch.width}, at::kLong);
        std::copy(batch.inputs.begin(), batch.inputs.end(), inputs.data_ptr<std::int64_t>());
        model.forward(inputs);
        model.remember();
    }
    nn::LongMemTrainer trainer(
        model, passages,
        {.steps = set.side_steps, .learning_rate = set.learning_rate, .warm_up = 20, .clear_at_end = false});
    trainer.run([&](std::int64_t, std::int64_t, double loss) { return each(loss), true; });
    return model;
}

// The memory a reader would have had who remembers fewer tokens.
inline ChunkRing<half> newest(const ChunkRing<half>& ring, index_t tokens) {
    auto now = ring.contents();
    const index_t dropped = std::max<index_t>(now.used - tokens / ring.options().chunk, 0);
    now.first = (now.first + dropped) % ring.slots(), now.used -= dropped;
    return {ring.options(), std::move(now)};
}
// Controls: what is found by one chunk's mean is another chunk; or only its values are another's.
inline ChunkRing<half> mixed_up(const ChunkRing<half>& ring, bool values_alone, std::uint64_t seed) {
    auto now = ring.contents();
    std::vector<std::size_t> other(static_cast<std::size_t>(ring.size()));
    std::iota(other.begin(), other.end(), std::size_t{0});
    std::mt19937_64 draw(seed);
    std::shuffle(other.begin(), other.end(), draw);
    const auto permute = [&](auto& blocks, std::size_t length) {
        const auto old = blocks;
        for (std::size_t i = 0; i < other.size(); ++i)
            std::copy_n(old.begin() + std::ptrdiff_t(other[i] * length), length,
                        blocks.begin() + std::ptrdiff_t(i * length));
    };
    const auto d = static_cast<std::size_t>(ring.head_dim());
    for (std::size_t h = 0; h < now.means.size(); ++h) {
        if (values_alone)
            permute(now.values[h], d * static_cast<std::size_t>(ring.options().chunk));
        else
            permute(now.means[h], d);
    }
    return {ring.options(), std::move(now)};
}

inline TextFigures score_text(const nn::LongMem<>& trained, std::span<const std::int32_t> text,
                              std::span<const std::int32_t> wrong, const TextSettings& set, const Tick& tick) {
    const index_t most = set.sizes.back();
    LongMemOptions bank = trained.options();
    bank.memory_tokens = most;
    nn::LongMem model(trained.backbone(), trained.side(), set.reduction, set.layer, LongMemBanks(bank, 1));
    ChunkRing<half>& ring = model.banks().rings()[0];
    const ChunkRing<half> empty = ring;
    nn::read_text(model, wrong.first(std::min(wrong.size(), std::size_t(most))), {.segment = set.segment});
    const ChunkRing<half> stranger = ring;
    ring = empty;

    TextFigures figures;
    figures.said_again = said_again(model.backbone(), text);
    const auto start = std::chrono::steady_clock::now();
    nn::read_text(model, text.first(std::size_t(most)), {.segment = set.segment});
    figures.tokens_a_second =
        double(most) / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    figures.bank_megabytes = double(ring.bytes()) / 1e6;

    std::vector<std::pair<std::string, Perplexity>> sums{{"backbone", {}}, {"0", {}}};
    for (const index_t size : set.sizes) sums.emplace_back(std::to_string(size), Perplexity());
    for (const char* control : {"random chunks", "shuffled values", "wrong document"})
        sums.emplace_back(control, Perplexity());
    const at::NoGradGuard no_grad;
    for (index_t place = 0, at = most; place < set.places; ++place, tick()) {
        const auto rows = recall_rows({{text.begin() + at - 1, text.begin() + at + set.segment}}, 0, set.segment);
        const at::Tensor &tokens = rows.first, &targets = rows.second;
        ChunkRing<half> whole = std::move(ring);
        const auto score = [&](Perplexity& sum, ChunkRing<half> with) {
            ring = std::move(with);
            const at::Tensor log_p = model.log_prob_target(model.forward(tokens), targets).contiguous();
            sum.add(std::span<const float>(log_p.data_ptr<float>(), static_cast<std::size_t>(log_p.numel())));
        };
        std::size_t i = 1;
        score(sums[i++].second, empty);
        for (const index_t size : set.sizes) score(sums[i++].second, newest(whole, size));
        std::vector<double>& ages = figures.reads.emplace_back(64);
        for (const Hits& hits : model.last_reading()->parts[0].hits.heads)
            for (index_t q = 0; q < hits.rows(); ++q)
                for (const index_t slot : hits.ids(q))
                    ages[std::size_t(whole.chunks() - 1 - whole.age(slot)) * 64 / std::size_t(whole.slots())] += 1;
        const auto seed = static_cast<std::uint64_t>(place);
        score(sums[i++].second, mixed_up(whole, false, seed));
        score(sums[i++].second, mixed_up(whole, true, seed));
        score(sums[i++].second, stranger);
        const at::Tensor alone =
            model.backbone()->log_prob_target(model.backbone()->forward(tokens), targets).contiguous();
        sums[0].second.add({alone.data_ptr<float>(), static_cast<std::size_t>(alone.numel())});
        ring = std::move(whole); // and on to the next place
        const auto between = text.subspan(std::size_t(at), std::size_t(set.every * set.segment));
        nn::read_text(model, between, {.segment = set.segment, .before = text[std::size_t(at) - 1]});
        at += static_cast<index_t>(between.size());
    }
    for (const auto& [name, sum] : sums) figures.perplexity.emplace_back(name, sum.perplexity());
    return figures;
}
