// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/papers/pema.hpp>
#include <mnemo/store/tokens.hpp>

#include <random>

using namespace mnemo;

namespace {

constexpr index_t kWidth = 12, kVocab = 30;
constexpr std::int32_t kEnd = 5;

Matrix random_matrix(index_t rows, index_t cols, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    Matrix m(rows, cols);
    for (float& x : m.data) x = normal(random);
    return m;
}

/// A model whose state is a random function of the last three tokens; padding leaves no trace.
class ToyHost {
  public:
    index_t key_dim() const { return kWidth; }
    index_t vocab_size() const { return kVocab; }
    BatchStates start(const PromptBatch& prompts) {
        texts_.clear();
        for (index_t row = 0; row < prompts.rows; ++row) {
            const auto first = prompts.ids.begin() + row * prompts.width;
            texts_.emplace_back(first + prompts.padding[static_cast<std::size_t>(row)], first + prompts.width);
        }
        return newest();
    }
    BatchStates next(std::span<const std::int32_t> tokens) {
        for (std::size_t row = 0; row < texts_.size(); ++row) texts_[row].push_back(tokens[row]);
        return newest();
    }
    void reorder(std::span<const index_t> from) {
        std::vector<std::vector<std::int32_t>> moved;
        for (const index_t row : from) moved.push_back(texts_[static_cast<std::size_t>(row)]);
        texts_ = std::move(moved);
    }
    Rows read(const PromptBatch& texts) {
        all_ = Matrix(texts.rows * texts.width, kWidth);
        for (index_t row = 0; row < texts.rows; ++row)
            for (index_t i = texts.padding[static_cast<std::size_t>(row)]; i < texts.width; ++i) {
                const auto first = texts.ids.begin() + row * texts.width;
                const std::vector<std::int32_t> text(first + texts.padding[static_cast<std::size_t>(row)],
                                                     first + i + 1);
                const Matrix s = state(text);
                std::copy(s.data.begin(), s.data.end(), all_[row * texts.width + i].begin());
            }
        return all_;
    }
    void logits(Rows states, MutRows out) const { head_logits(states, output(), out); }
    const Matrix& output() const { return output_; }

    static Matrix state(const std::vector<std::int32_t>& text) {
        std::uint64_t seed = 1;
        for (std::size_t i = text.size() > 3 ? text.size() - 3 : 0; i < text.size(); ++i)
            seed = seed * 1000003 + static_cast<std::uint64_t>(text[i]);
        return random_matrix(1, kWidth, seed);
    }

  private:
    BatchStates newest() {
        states_ = Matrix(static_cast<index_t>(texts_.size()), kWidth);
        for (std::size_t row = 0; row < texts_.size(); ++row) {
            const Matrix s = state(texts_[row]);
            std::copy(s.data.begin(), s.data.end(), states_[static_cast<index_t>(row)].begin());
        }
        head_in_ = states_;
        for (float& x : head_in_.data) x *= 1.5f;
        return {states_, head_in_};
    }
    Matrix output_ = random_matrix(kVocab, kWidth, 99);
    std::vector<std::vector<std::int32_t>> texts_;
    Matrix states_, head_in_, all_;
};
static_assert(BeamHost<ToyHost> && ReadingHost<ToyHost>);

Pema<> memory_of(const ToyHost& host, GradualUnrolling schedule) {
    return {LastHidden{},
            LowRankMap(random_matrix(4, kWidth, 7), random_matrix(kWidth, 4, 8), 0.25f),
            Recite{},
            {{{std::vector<float>(kWidth, 1.2f), std::vector<float>(kWidth, 0.1f)}, Rows(host.output())}, schedule},
            {}};
}
const std::vector<std::vector<std::int32_t>> kPrompts{{3, 4}, {9}, {11, 12, 13, 14}, {2, 2, 7}};
const std::vector<index_t> kLengths{12, 8, 20, 9};

/// One prompt through Memory::read, a token at a time: nothing fused, nothing batched.
std::vector<std::int32_t> plainly(const Pema<>& memory, const ToyHost& host, std::vector<std::int32_t> text,
                                  index_t length, const PemaDecoding& options) {
    std::vector<std::int32_t> out;
    for (index_t step = 0; step < options.max_tokens; ++step) {
        const Matrix c = ToyHost::state(text);
        Matrix in = c, log_p(1, kVocab);
        for (float& x : in.data) x *= 1.5f;
        host.logits(in, log_p);
        log_softmax(log_p[0]);
        const std::vector<index_t> steps{step}, lengths{length};
        if (step < options.mixed_steps) memory.read(Rows(c), PositionedLogProbs{log_p, steps, lengths});
        text.push_back(ChooseToken()(log_p[0]));
        out.push_back(text.back());
        if (text.back() == options.end) break;
    }
    return out;
}

} // namespace

TEST_CASE("fused decoding in batches is the memory read token by token, prompt by prompt") {
    ToyHost host;
    for (const GradualUnrolling schedule :
         {GradualUnrolling{.lambda = 0}, GradualUnrolling{.lambda = 0.9f},
          GradualUnrolling{.lambda = 0.9f, .on = false}, GradualUnrolling{.lambda = 1, .min_percent = 25}}) {
        const Pema<> memory = memory_of(host, schedule);
        for (const std::int32_t end : {-1, kEnd}) {
            PemaDecoding options;
            options.max_tokens = 15, options.end = end;
            const PemaOutput together = pema_generate(memory, host, kPrompts, kLengths, options);
            for (std::size_t i = 0; i < kPrompts.size(); ++i) {
                CHECK(together.tokens[i] == plainly(memory, host, kPrompts[i], kLengths[i], options));
                const PemaOutput alone = pema_generate(memory, host, std::span(kPrompts).subspan(i, 1),
                                                       std::span(kLengths).subspan(i, 1), options);
                CHECK(together.tokens[i] == alone.tokens[0]);
                CHECK(together.log_p[i] == alone.log_p[0]);
            }
            options.mixed_steps = 3; // what the reference does when a label is used up
            CHECK(pema_generate(memory, host, kPrompts, kLengths, options).tokens[2] ==
                  plainly(memory, host, kPrompts[2], kLengths[2], options));
        }
    }
}

TEST_CASE("sampling is drawn from the mixture, the same for a batch and for one") {
    ToyHost host;
    const Pema<> memory = memory_of(host, {.lambda = 0.7f});
    PemaDecoding options;
    options.temperature = 1, options.seed = 3, options.max_tokens = 12;
    const PemaOutput first = pema_generate(memory, host, kPrompts, kLengths, options);
    CHECK(first.tokens == pema_generate(memory, host, kPrompts, kLengths, options).tokens);
    CHECK(first.tokens[0] ==
          pema_generate(memory, host, std::span(kPrompts).first(1), std::span(kLengths).first(1), options).tokens[0]);
    options.seed = 4;
    CHECK(first.tokens != pema_generate(memory, host, kPrompts, kLengths, options).tokens);

    // Frequencies of the first token.
    options.max_tokens = 1;
    std::vector<int> counts(kVocab);
    const std::vector<std::vector<std::int32_t>> many(4000, kPrompts[0]);
    const std::vector<index_t> lengths(many.size(), 10);
    for (const auto& tokens : pema_generate(memory, host, many, lengths, options).tokens)
        ++counts[static_cast<std::size_t>(tokens[0])];
    const Matrix c = ToyHost::state(kPrompts[0]);
    Matrix in = c, log_p(1, kVocab);
    for (float& x : in.data) x *= 1.5f;
    host.logits(in, log_p);
    log_softmax(log_p[0]);
    const std::vector<index_t> steps{0}, length{10};
    memory.read(Rows(c), PositionedLogProbs{log_p, steps, length});
    for (std::size_t v = 0; v < counts.size(); ++v) {
        const double p = std::exp(double{log_p[0][v]});
        CHECK(std::abs(counts[v] - 4000 * p) < 5 * std::sqrt(4000 * p * (1 - p)) + 1);
    }
}

TEST_CASE("beams never find less than greedy decoding, and enough of them find the best") {
    ToyHost host;
    const Pema<> memory = memory_of(host, {.lambda = 0.6f});
    PemaDecoding options;
    options.max_tokens = 2, options.length_power = 0;
    const PemaOutput greedy = pema_generate(memory, host, kPrompts, kLengths, options);
    options.beams = kVocab; // every first token stays: the search is complete
    const PemaOutput all = pema_generate(memory, host, kPrompts, kLengths, options);
    for (std::size_t i = 0; i < kPrompts.size(); ++i) {
        CHECK(all.log_p[i] >= greedy.log_p[i] - 1e-5);
        double best = -1e9;
        const auto log_p_after = [&](const std::vector<std::int32_t>& text, index_t step) {
            const Matrix c = ToyHost::state(text);
            Matrix in = c, log_p(1, kVocab);
            for (float& x : in.data) x *= 1.5f;
            host.logits(in, log_p);
            log_softmax(log_p[0]);
            const std::vector<index_t> steps{step}, length{kLengths[i]};
            memory.read(Rows(c), PositionedLogProbs{log_p, steps, length});
            return log_p;
        };
        const Matrix first = log_p_after(kPrompts[i], 0);
        for (std::int32_t a = 0; a < kVocab; ++a) {
            auto text = kPrompts[i];
            text.push_back(a);
            const Matrix second = log_p_after(text, 1);
            best = std::max(best, double{first[0][static_cast<std::size_t>(a)]} + double{max_value(second[0])});
        }
        CHECK(all.log_p[i] == Approx(best).margin(1e-4));
    }
    options.beams = 3, options.max_tokens = 10, options.end = kEnd, options.length_power = 1;
    for (const auto& tokens : pema_generate(memory, host, kPrompts, kLengths, options).tokens) {
        CHECK(!tokens.empty());
        CHECK(std::count(tokens.begin(), tokens.end(), kEnd) <= 1);
    }
}

TEST_CASE("a memory is built from what the model itself wrote, or from the targets") {
    ToyHost host;
    const std::vector<PemaExample> examples{
        {{3, 4}, {10, 11, 12}}, {{9}, {}}, {{11, 12, 13}, {20}}, {{2, 8}, {7, 6, 5, 4}}};
    for (const PemaContexts contexts : {PemaContexts::free_running, PemaContexts::teacher_forced})
        for (const index_t batch : {1, 2, 30}) {
            TokenStore<float> store(kWidth);
            PemaBuilding options;
            options.contexts = contexts, options.batch = batch;
            index_t reports = 0;
            const BuiltPemaMemory built =
                build_pema_memory(host, examples, store, options, [&](index_t, index_t all) { reports += all == 4; });
            CHECK(reports == (4 + batch - 1) / batch);
            CHECK(built.written == 8);
            CHECK(built.dropped == 0);
            CHECK(built.rows_of_example == std::vector<index_t>{3, 0, 1, 4});
            index_t row = 0;
            for (const PemaExample& e : examples) {
                std::vector<std::int32_t> text = e.prompt;
                for (const std::int32_t token : e.target) {
                    const Matrix c = ToyHost::state(text);
                    std::vector<float> key(kWidth);
                    KeyRows(store.keys()).read(row, key);
                    CHECK(key == c.data);
                    CHECK(store.value(row++) == token);
                    Matrix in = c, logits(1, kVocab);
                    for (float& x : in.data) x *= 1.5f;
                    host.logits(in, logits);
                    text.push_back(contexts == PemaContexts::teacher_forced ? token : ChooseToken()(logits[0]));
                }
            }
            // An interrupted run goes on behind its last batch.
            if (batch == 2) {
                TokenStore<float> rest(kWidth);
                options.first_batch = 1;
                CHECK(build_pema_memory(host, examples, rest, options).written == 5);
                CHECK(rest.value(0) == 20);
            }
        }
}

TEST_CASE("targets that no state is left for are counted") {
    ToyHost host;
    // The end is what the model writes first: one state a row, where the reference's script gives up.
    Matrix logits(1, kVocab), in = ToyHost::state({3, 4});
    host.logits(in, logits);
    TokenStore<float> store(kWidth);
    PemaBuilding options;
    options.end = ChooseToken()(logits[0]);
    const std::vector<PemaExample> examples{{{3, 4}, {10, 11, 12}}};
    const BuiltPemaMemory built = build_pema_memory(host, examples, store, options);
    CHECK(built.written == 1);
    CHECK(built.dropped == 2);
}

TEST_CASE("labels are cut as the reference cuts them, and prompts are its own") {
    const std::vector<std::int32_t> label{2, 7, 8, 30, 31};
    const PemaExample e = PemaExample::from_label({2, 7, 8, 1437}, label);
    CHECK(e.target == std::vector<std::int32_t>{30, 31}); // 30 stands where the prompt's lone blank was
    CHECK_THROWS_WITH(PemaExample::from_label({1, 2, 3, 4, 5}, std::span(label).first(3)),
                      Catch::Contains("label: expected at least 5"));
    CHECK(pema_translation_prompt("A b") == "Translate this from English to German: \nA b\nGerman: ");
    CHECK(LengthPrior{1.5, 3}(10) == 18);
}
