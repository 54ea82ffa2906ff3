// SPDX-License-Identifier: MIT
#pragma once

// The base model of examples/pema.cpp: a tiny transformer that copies phrases.
#include "pema_text.hpp"

#include <mnemo/app/progress.hpp>
#include <mnemo/nn/fairseq.hpp>

#include <fmt/core.h>
#include <torch/optim/adam.h>
#include <torch/utils.h>

struct Settings {
    std::string folder = "pema.out", party;
    std::string model, pairs, source = "source", target = "target", prompt = "{} ->"; // another model, other data
    index_t seeds = 3;
    bool quick = false;
    std::size_t words = 250, replaced = 6, adapting = 200, held_out = 60, test = 60;
    index_t dim = 64, steps = 2000, rank = 40, epochs = 400;
};

struct Lines {
    std::vector<Line> base, adapting, held_out, test;
};
inline Lines split(const Language& language, const Settings& set) {
    Lines out;
    for (const Line& line : shuffled(language.phrases, 1)) {
        const bool styled = language.needs_style(line);
        auto& part = styled && out.test.size() < set.test           ? out.test
                     : styled && out.held_out.size() < set.held_out ? out.held_out
                     : styled && out.adapting.size() < set.adapting ? out.adapting
                                                                    : out.base;
        part.push_back(line);
    }
    return out;
}

inline Language read_language(const Settings& set) {
    std::vector<fs::path> folders;
    std::istringstream known(MNEMO_INCLUDE_FOLDERS);
    for (std::string folder; std::getline(known, folder, ':');) folders.emplace_back(folder);
    std::vector<TextFile> files;
    for (const Corpus& corpus : installed_headers(folders))
        for (const auto* part : {&corpus.train, &corpus.valid, &corpus.test})
            files.insert(files.end(), part->begin(), part->end());
    return Language::of(phrases_of(files), set.words, set.replaced);
}

inline nn::TransformerLm base_model(const Settings& set, const Language& language, const std::vector<Line>& lines,
                                    index_t seed, const std::string& path) {
    torch::manual_seed(static_cast<std::uint64_t>(seed));
    nn::TransformerLm model(nn::TransformerLmOptions()
                                .vocab_size(language.vocab())
                                .dim(set.dim)
                                .ffn_dim(4 * set.dim)
                                .layers(2)
                                .heads(4)
                                .max_positions(48)
                                .learned_positions(true)
                                .scale_embedding(false)
                                .pad(kPad));
    if (fs::exists(path)) {
        nn::load_weights(*model, SafeTensors::open(path));
        return model;
    }
    torch::optim::Adam adam(model->parameters(), torch::optim::AdamOptions(2e-3));
    std::mt19937_64 random(static_cast<std::uint64_t>(seed));
    Progress bar(fmt::format("base model, seed {}", seed), "steps");
    constexpr std::int64_t kBatch = 32, kWidth = 18;
    for (index_t step = 0; step < set.steps; ++step) {
        const at::Tensor tokens = at::full({kBatch, kWidth}, kPad, at::kLong), targets = tokens.clone();
        auto *token = tokens.data_ptr<std::int64_t>(), *target = targets.data_ptr<std::int64_t>();
        for (std::int64_t row = 0; row < kBatch; ++row) {
            const Line& line = lines[random() % lines.size()];
            Line text = prompt_of(line);
            text.insert(text.end(), line.begin(), line.end()), text.push_back(kEnd);
            for (std::size_t i = 0; i + 1 < text.size(); ++i) {
                const auto column = static_cast<std::int64_t>(i);
                token[row * kWidth + column] = text[i];
                if (i >= kWords) target[row * kWidth + column] = text[i + 1]; // the copy is what is learned
            }
        }
        adam.zero_grad();
        const at::Tensor loss = model->loss(tokens, targets);
        loss.backward();
        for (auto& group : adam.param_groups()) // to a fifth at the end
            static_cast<torch::optim::AdamOptions&>(group.options())
                .lr(2e-3 * (1 - 0.8 * double(step) / double(set.steps)));
        adam.step();
        bar(step + 1, set.steps);
    }
    model->eval();
    std::vector<Entry> entries;
    for (const auto& [name, tensor] : model->weights())
        entries.push_back(
            tensor_entry(name, tensor.sizes().vec(),
                         std::span<const float>(tensor.data_ptr<float>(), static_cast<std::size_t>(tensor.numel()))));
    write_safetensors(path, entries);
    return model;
}
