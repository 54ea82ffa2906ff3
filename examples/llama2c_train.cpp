// SPDX-License-Identifier: MIT
// Makes a tiny llama2.c model for examples/llama2c.cpp where no weights are at hand: learns a vocabulary, trains a
// Llama of some hundred thousand parameters with LibTorch, and writes model.bin and tokenizer.bin, which run.c reads,
// too.
//
//     llama2c_train FOLDER [STEPS [TEXT]]
//
// TEXT is a file, each line a text of its own; without it the model learns to tell stories that this program makes up
// from a few sentences.
#include <mnemo/io/tokenizer_files.hpp>
#include <mnemo/nn/llama2c_export.hpp>

#include <torch/optim/adamw.h>

#include <cstdio>
#include <filesystem>
#include <random>
#include <sstream>
#include <string>
#include <vector>

namespace {

using namespace mnemo::nn;

// Stories of the same few sentences, with other heroes, things and places.
std::string stories(int count) {
    const std::vector<std::string> names = {"Anna", "Ben", "Zigo", "Mara", "Tom", "Lily", "Olm", "Pia"},
                                   heroes = {"robot", "cat", "dragon", "boy", "girl", "duck", "mouse"},
                                   colours = {"green", "small", "old", "happy", "blue", "brave"},
                                   places = {"lighthouse by the sea", "house in the forest", "castle on a hill",
                                             "boat on the river", "cave"},
                                   things = {"golden whistle", "red ball", "paper boat", "jar of honey",
                                             "silver spoon"};
    std::mt19937 random(1);
    const auto any = [&](const std::vector<std::string>& words) { return words[random() % words.size()]; };
    std::string out;
    for (int i = 0; i < count; ++i) {
        const std::string name = any(names), friend_name = any(names), thing = any(things);
        out += name + " was a " + any(colours) + " " + any(heroes) + " who lived in a " + any(places) + ". ";
        if (random() % 2 == 0) out += "Every morning " + name + " ate bread and sang to the " + any(heroes) + ". ";
        out += "One day the " + thing + " of " + name + " was lost, and " + name + " looked and looked. ";
        out += "Then " + friend_name + " the " + any(heroes) + " came by and saw the " + thing + ". ";
        if (random() % 2 == 0) out += "They laughed and played all day. ";
        out += name + " gave " + friend_name + " a " + any(things) + ".\n";
    }
    return out;
}

HuggingFaceLm small_llama(std::int64_t vocab) {
    HuggingFaceOptions o;
    o.model_type = "llama";
    o.vocab_size = vocab, o.dim = o.input_dim = 64, o.ffn_dim = 172, o.layers = 2;
    o.heads = 4, o.kv_heads = 2, o.head_dim = 16, o.max_positions = 256;
    o.positions = HuggingFaceOptions::Positions::rotary;
    o.rms_norm = o.gated = true, o.attention_bias = o.ffn_bias = false;
    o.activation = "silu", o.attention_scale = 0.25; // 1 / sqrt(16)
    return HuggingFaceLm(o, [](const std::string& name, at::IntArrayRef shape) {
        return name.find("norm") != name.npos ? at::ones(shape) : at::randn(shape) * 0.05;
    });
}

void run(int count, char** arguments) {
    const std::string folder = arguments[1];
    const int steps = count > 2 ? std::stoi(arguments[2]) : 600;
    const std::string text = count > 3 ? mnemo::read_file(arguments[3]) : stories(3000);
    std::filesystem::create_directories(folder);

    const auto tokenizer = mnemo::LlamaTokenizer::from_merges(mnemo::Bpe::learn(text, 450));
    mnemo::atomic_write(folder + "/tokenizer.bin", tokenizer.serialized());
    std::vector<std::int32_t> ids; // each line begins anew
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);)
        for (const std::int32_t id : tokenizer.encode(line)) ids.push_back(id);
    const at::Tensor tokens = at::tensor(std::vector<std::int64_t>(ids.begin(), ids.end()), at::kLong);
    std::printf("%zu tokens of %lld kinds\n", ids.size(), static_cast<long long>(tokenizer.vocab_size()));

    torch::manual_seed(1);
    const auto model = small_llama(tokenizer.vocab_size());
    torch::optim::AdamW optimizer(model->parameters(), torch::optim::AdamWOptions(3e-3).weight_decay(0.1));
    const std::int64_t batch = 8, context = 128;
    if (tokens.size(0) < 2 * context)
        mnemo::fail("text: expected at least ", 2 * context, " tokens, got ", tokens.size(0));
    for (int step = 0; step < steps; ++step) {
        std::vector<at::Tensor> rows; // windows of the text, [context + 1] each
        for (std::int64_t i = 0; i < batch; ++i)
            rows.push_back(tokens.narrow(0, at::randint(tokens.size(0) - context, {1}, at::kLong).item<std::int64_t>(),
                                         context + 1));
        const at::Tensor windows = at::stack(rows);
        const at::Tensor logits = model->logits(model->forward(windows.narrow(1, 0, context)));
        const at::Tensor loss = at::cross_entropy_loss(logits.flatten(0, 1), windows.narrow(1, 1, context).flatten());
        optimizer.zero_grad();
        loss.backward();
        optimizer.step();
        if (step % 100 == 0 || step + 1 == steps)
            std::printf("step %d: perplexity %.1f\n", step, std::exp(loss.item<double>()));
    }
    save_llama2c(*model, folder + "/model.bin");
    std::printf("now: llama2c %s/model.bin %s/tokenizer.bin\n", folder.c_str(), folder.c_str());
}

} // namespace

int main(int count, char** arguments) {
    if (count < 2 || count > 4) {
        std::fprintf(stderr, "usage: %s FOLDER [STEPS [TEXT]]\n", arguments[0]);
        return 2;
    }
    try {
        run(count, arguments);
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
