// SPDX-License-Identifier: MIT
#include <mnemo/nn/long_mem_tasks.hpp>
#include <mnemo/text/bpe.hpp>

#include <catch.hpp>

using namespace mnemo;

namespace {
constexpr index_t kTaskHeads = 2, kTaskDim = 16;
constexpr InContextTask kTask{"colours", "Thing: {} Colour: {}. ", {"red", "green", "grey"}, 3, true};

nn::LongMem<> tiny(const Bpe& bytes) {
    const nn::HuggingFaceLm backbone =
        nn::random_backbone(nn::long_mem_backbone_options(bytes.vocab_size(), kTaskDim, 2, kTaskHeads), 0.4, 5);
    return {
        backbone, nn::side_network_from(backbone, 1, 1, nn::SideStart::quiet), 1, 1,
        LongMemBanks(
            {.heads = kTaskHeads, .head_dim = kTaskDim / kTaskHeads, .memory_tokens = 4096, .chunk = 2, .k = 8}, 1)};
}
const std::vector<InContextExample> kExamples = {{"rose", "red"}, {"leaf", "green"}, {"ash", "grey"}, {"blood", "red"}};
} // namespace

TEST_CASE("demonstrations are remembered in whole segments, and with the tail if asked for") {
    const Bpe bytes;
    nn::LongMem model = tiny(bytes);
    std::size_t tokens = 0;
    for (const InContextExample& e : kExamples) tokens += demonstration(kTask, e.text, e.label).size() + 2;
    nn::InContext whole(model, kTask, bytes, {.segment = 30, .begin = Bpe::bos, .end = Bpe::eos});
    whole.remember(kExamples);
    CHECK(model.banks().rings()[0].tokens() == static_cast<index_t>(tokens / 30 * 30));
    REQUIRE(tokens % 30 > 2);
    nn::InContext all(model, kTask, bytes, {.segment = 30, .tail = true, .begin = Bpe::bos, .end = Bpe::eos});
    all.remember(kExamples); // forgets the others
    CHECK(model.banks().rings()[0].tokens() == static_cast<index_t>(tokens / 2 * 2));
    all.remember({});
    CHECK(model.banks().rings()[0].tokens() == 0);
    CHECK_THROWS_AS((nn::InContext{model, kTask, bytes, {.segment = 0}}), Error);
}

TEST_CASE("a prompt shows its demonstrations and ends where the label begins; reading it leaves the memory as it is") {
    const Bpe bytes;
    nn::LongMem model = tiny(bytes);
    nn::InContext in_context(model, kTask, bytes, {.segment = 20, .begin = -1, .end = Bpe::eos});
    const auto prompt = in_context.prompt(std::span(kExamples).first(1), "sky");
    CHECK(bytes.decode(prompt) == "Thing: rose Colour: red. Thing: sky Colour:");
    CHECK(std::count(prompt.begin(), prompt.end(), Bpe::eos) == 1);
    CHECK(prompt.back() != Bpe::eos);

    const at::Tensor alone = in_context.next(prompt);
    CHECK(alone.exp().sum().item<double>() == Approx(1).margin(1e-5));
    in_context.remember(kExamples);
    const index_t held = model.banks().rings()[0].tokens();
    const at::Tensor with = in_context.next(prompt);
    CHECK_FALSE(at::allclose(alone, with, 1e-4, 1e-4));
    CHECK(at::equal(with, in_context.next(prompt)));
    CHECK(model.banks().rings()[0].tokens() == held);
}

TEST_CASE("labels are scored by all their tokens, and answers counted in both ways") {
    const Bpe bytes;
    nn::LongMem model = tiny(bytes);
    nn::InContext in_context(model, kTask, bytes, {.segment = 20});
    in_context.remember(kExamples);
    const std::vector<InContextExample> asked = {{"sea", "green"}, {"fire", "red"}, {"dust", "grey"}};
    index_t begins = 0, ranks = 0;
    for (const InContextExample& e : asked) {
        const auto prompt = in_context.prompt({}, e.text);
        const auto scores = in_context.label_log_probs(prompt);
        REQUIRE(scores.size() == 3);
        std::size_t best = 0;
        for (std::size_t c = 0; c < 3; ++c) { // token by token
            auto ids = prompt;
            double sum = 0;
            for (const std::int32_t token : bytes.encode(" " + std::string(kTask.labels[c]))) {
                sum += in_context.next(ids)[token].item<double>();
                ids.push_back(token);
            }
            CHECK(scores[c] == Approx(sum).margin(1e-3));
            if (scores[c] > scores[best]) best = c;
        }
        ranks += kTask.labels[best] == e.label ? 1 : 0;
        const auto token = static_cast<std::int32_t>(in_context.next(prompt).argmax().item<std::int64_t>());
        begins += begins_label(bytes.decode({&token, 1}), e.label) ? 1 : 0;
    }
    const nn::InContextFigures figures = in_context.score({}, asked);
    CHECK(figures.queries == 3);
    CHECK(figures.begins == begins);
    CHECK(figures.ranks == ranks);
    CHECK(figures.label_accuracy() == static_cast<double>(ranks) / 3);
}
