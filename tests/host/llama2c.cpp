// SPDX-License-Identifier: MIT
#include "../io/files.hpp"

#include <catch.hpp>
#include <mnemo/host/llama2c_host.hpp>
#include <mnemo/host/llama2c_sampler.hpp>
#include <mnemo/retrieve/exact.hpp>
#include <mnemo/store/tokens.hpp>

#include <cstring>
#include <numeric>

using namespace mnemo;

namespace {
std::shared_ptr<const Llama2cModel> shared_model() {
    return std::make_shared<Llama2cModel>(Llama2cModel::open(golden("hosts/llama2c_shared.bin")));
}
} // namespace

TEST_CASE("llama2.c checkpoints of the bad set behave as the manifest says") {
    int seen = 0;
    for (const auto& entry : bad_files("llama2c")) {
        const std::string file = entry.at("file"), expect = entry.at("expect");
        INFO(file);
        ++seen;
        Llama2cConfig config;
        const std::string message = error_of([&] { config = Llama2cModel::open(bad_file(file)).config(); });
        INFO(message);
        if (expect != "ok") REQUIRE(message.find(file) != std::string::npos);
        if (expect == "ok") {
            REQUIRE(message.empty());
            REQUIRE(config.dim == entry.at("dim").get<index_t>());
            REQUIRE(config.vocab_size == entry.at("vocab").get<index_t>());
        }
    }
    REQUIRE(seen == 17);
}

TEST_CASE("every cut and every changed header byte of a checkpoint opens or is an Error") {
    for (const char* const name : {"hosts/llama2c_untied.bin", "hosts/llama2c_v1.bin"}) {
        std::string file = read_file(golden(name));
        std::vector<float> aligned(file.size() / 4 + 1);
        const auto opens = [&](std::size_t size) {
            std::memcpy(aligned.data(), file.data(), size);
            return error_of([&] {
                const auto w = Llama2cWeights::parse(std::as_bytes(std::span(aligned)).first(size), "file");
                Llama2cDecoder(w).forward(0);
            });
        };
        REQUIRE(opens(file.size()).empty());
        for (std::size_t size = 0; size < file.size(); size += 1 + size / 50) REQUIRE_FALSE(opens(size).empty());
        for (std::size_t i = 0; i < 48; ++i)
            for (const int bit : {0, 1, 7}) {
                file[i] = static_cast<char>(file[i] ^ (1 << bit));
                opens(file.size()); // throws nothing but Error, and asks for no memory that is not there
                file[i] = static_cast<char>(file[i] ^ (1 << bit));
            }
    }
}

TEST_CASE("both versions of a checkpoint are the same model") {
    const auto v0 = Llama2cModel::open(golden("hosts/llama2c_shared.bin"));
    const auto v1 = Llama2cModel::open(golden("hosts/llama2c_v1.bin"));
    REQUIRE(v0.config() == v1.config());
    REQUIRE(v0.weights().hash() == v1.weights().hash());
    REQUIRE(v0.weights().hash() != Llama2cModel::open(golden("hosts/llama2c_untied.bin")).weights().hash());
    Llama2cDecoder a(v0.weights()), b(v1.weights());
    for (const int token : {1, 7, 100, 3}) {
        a.forward(token), b.forward(token);
        REQUIRE(std::equal(a.logits().begin(), a.logits().end(), b.logits().begin()));
    }
}

TEST_CASE("a decoder refuses what it cannot read and begins again after a reset") {
    const auto model = shared_model();
    Llama2cDecoder decoder(model->weights());
    REQUIRE_THROWS_AS(decoder.forward(-1), Error);
    REQUIRE_THROWS_AS(decoder.forward(static_cast<std::int32_t>(model->config().vocab_size)), Error);
    decoder.forward(5);
    const std::vector<float> first(decoder.logits().begin(), decoder.logits().end());
    while (decoder.position() < model->config().seq_len) decoder.forward(9);
    REQUIRE(error_of([&] { decoder.forward(9); }).find("positions") != std::string::npos);
    decoder.reset();
    decoder.forward(5);
    REQUIRE(std::equal(first.begin(), first.end(), decoder.logits().begin()));
}

TEST_CASE("the sampler refuses what it cannot draw from") {
    const std::vector<float> one{0.5f}, none, nan{NAN, NAN};
    REQUIRE(Llama2cSampler(1, 0.9f, 3)(one) == 0);
    REQUIRE_THROWS_AS(Llama2cSampler(0)(none), Error);
    REQUIRE_THROWS_AS(Llama2cSampler(-1.0f), Error);
    REQUIRE_THROWS_AS(Llama2cSampler(1, 0.9f, 0), Error);
    REQUIRE_THROWS_AS(Llama2cSampler(1, 0.9f, 3)(nan), Error);
}

TEST_CASE("a llama2.c model remembers a text through kNN-LM's drivers") {
    for (const Llama2cTap tap : {Llama2cTap::ffn_in, Llama2cTap::prehead}) {
        Llama2cHost host(shared_model(), tap);
        std::vector<std::int32_t> text(60);
        for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<std::int32_t>((i * i * 7 + i * 3) % 110);
        const WindowOptions options{.block_size = 20, .batch = {.max_rows = 2}, .pad = 0, .eos = 1};
        ContextWindows windows({text, {}}, options);
        TokenStore<> store(host.key_dim());
        REQUIRE(build_datastore(host, windows, store, 0).written == 60);
        REQUIRE(store.values()[3] == text[3]);

        const KnnLm<TokenStore<>, Exact<L2>> memory(
            LastHidden{}, store, Exact<L2>{.k = 8},
            Interpolate<TokenVotes, Fixed>{.evidence = {.temperature = 0.1f}, .lambda = {0.9f}});
        windows.rewind();
        const KnnLmScores scores = evaluate(memory, host, windows);
        REQUIRE(scores.host.count() == 60);
        REQUIRE(scores.combined.perplexity() < 0.2 * scores.host.perplexity());
        // Decoding finds the same states as the windows did: the memory continues the text by heart.
        const std::vector<std::int32_t> prompt{1};
        const auto written = generate(memory, host, prompt, {.tokens = 15});
        REQUIRE(written == std::vector<std::int32_t>(text.begin(), text.begin() + 15));
        // Beyond the last position it goes on with the newer half of the text.
        REQUIRE(generate(memory, host, prompt, {.tokens = 70}).size() == 70);
        REQUIRE(host.fingerprint().key_tap == name(tap));
    }
}

TEST_CASE("a checkpoint that is written is the one that was read") {
    const Folder folder;
    for (const char* const name : {"hosts/llama2c_shared.bin", "hosts/llama2c_untied.bin", "hosts/llama2c_v1.bin"}) {
        const auto model = Llama2cModel::open(golden(name));
        model.weights().save(folder / "model.bin");
        const auto again = Llama2cModel::open(folder / "model.bin");
        REQUIRE(again.config() == model.config());
        REQUIRE(again.weights().hash() == model.weights().hash());
    }
    const auto model = Llama2cModel::open(golden("hosts/llama2c_v1.bin"));
    auto cut = model.weights();
    cut.wq = cut.wq.first(cut.wq.size() - 1);
    REQUIRE(error_of([&] { cut.save(folder / "cut.bin"); }).find("cut.bin: expected a block of") != std::string::npos);
    REQUIRE(folder.names() == std::vector<std::string>{"model.bin"});
}
