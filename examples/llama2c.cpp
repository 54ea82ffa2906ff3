// SPDX-License-Identifier: MIT
// kNN-LM on a llama2.c model, without LibTorch: it reads a text, remembers it, and goes on writing with what it
// remembers. The memory sees nothing of the model but a state and a row of logits, as plain floats.
//
//     llama2c CHECKPOINT TOKENIZER [TEXT [OTHER_TEXT [PROMPT]]]
//
// such as stories260K.bin and tok512.bin of karpathy/tinyllamas. TEXT and OTHER_TEXT are files; without them two short
// stories are used.
#include <mnemo/host/llama2c_host.hpp>
#include <mnemo/host/llama2c_sampler.hpp>
#include <mnemo/io/tokenizer_files.hpp>
#include <mnemo/mnemo.hpp>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

namespace {

using mnemo::index_t;

const char* const kStory =
    "Zigo was a green robot who lived in a lighthouse by the sea. Every morning Zigo ate seven copper spoons and sang "
    "to the ships. One day the lamp of the lighthouse broke, and it was dark. Zigo climbed up the stairs and held a "
    "jar of glow worms high over his head. The captain of the red ship saw the light and came home safely. The captain "
    "gave Zigo a golden whistle, and Zigo blew it every night.";
const char* const kOtherStory =
    "Mara had a small blue boat with a paper sail. She put it on the river and ran along the bank. The boat went under "
    "the bridge and did not come out again. Mara looked and looked. Then a duck swam by, and on its back was the boat. "
    "Mara laughed and gave the duck some bread.";

// The memory: what followed each state, as float16; of the 32 nearest states, those that are really near speak up.
using Store = mnemo::TokenStore<mnemo::half>;
using Memory = mnemo::KnnLm<Store, mnemo::Exact<mnemo::L2>>;
Memory memory_of(Store store, float temperature, float lambda) {
    return Memory(mnemo::LastHidden{}, std::move(store), mnemo::Exact<mnemo::L2>{.k = 32},
                  {.evidence = {.temperature = temperature}, .lambda = {lambda}});
}

// A text in windows of as many tokens as the model has positions; the first input of each is the token before it.
mnemo::ContextWindows windows_of(const std::vector<std::int32_t>& tokens, const mnemo::Llama2cConfig& config) {
    return {{tokens, {}},
            {.block_size = config.seq_len, .batch = {.max_rows = 1}, .pad = 0, .eos = mnemo::LlamaTokenizer::bos}};
}

// Greedy text after a prompt, as run.c writes it, until `bos` or the last position. `edit(state, logits)` sees every
// step before its token is picked.
std::string written(const mnemo::Llama2cModel& model, const mnemo::LlamaTokenizer& tokenizer, const std::string& prompt,
                    index_t steps, auto&& edit) {
    const mnemo::Llama2cConfig& config = model.config();
    mnemo::Llama2cDecoder decoder(model.weights());
    mnemo::Llama2cSampler sample; // temperature 0
    const std::vector<std::int32_t> given = tokenizer.encode(prompt);
    std::string out;
    std::int32_t token = given[0];
    for (std::size_t at = 1; static_cast<index_t>(at) <= std::min(steps, config.seq_len); ++at) {
        decoder.forward(token);
        edit(mnemo::Rows(decoder.ffn_in().data(), 1, config.dim),            // [1, dim]
             mnemo::MutRows(decoder.logits().data(), 1, config.vocab_size)); // [1, vocab]
        const std::int32_t next = at < given.size() ? given[at] : sample(decoder.logits());
        if (next == mnemo::LlamaTokenizer::bos) break;
        out += tokenizer.decode(token, next);
        token = next;
    }
    return out;
}
// The same with a memory: a session keeps its buffers, so that steps allocate nothing.
std::string written_with(const Memory& memory, const mnemo::Llama2cModel& model, const mnemo::LlamaTokenizer& tokenizer,
                         const std::string& prompt, index_t steps) {
    mnemo::Session<const Memory, mnemo::Rows> session(memory);
    return written(model, tokenizer, prompt, steps,
                   [&](mnemo::Rows state, mnemo::MutRows logits) { session.read(state, mnemo::Logits{logits}); });
}

int run(int count, char** arguments) {
    if (count < 3) {
        std::fprintf(stderr, "usage: %s CHECKPOINT TOKENIZER [TEXT [OTHER_TEXT [PROMPT]]]\n", arguments[0]);
        return 2;
    }
    const auto model = std::make_shared<mnemo::Llama2cModel>(mnemo::Llama2cModel::open(arguments[1]));
    const auto tokenizer = mnemo::load_llama_tokenizer(arguments[2], model->config().vocab_size);
    const std::string text = count > 3 ? mnemo::read_file(arguments[3]) : kStory;
    const std::string other = count > 4 ? mnemo::read_file(arguments[4]) : kOtherStory;
    const std::string prompt = count > 5 ? arguments[5] : text.substr(0, text.find(' ', text.size() / 12));

    // Reads the text once.
    mnemo::Llama2cHost host(model);
    Store store(host.key_dim());
    const auto tokens = tokenizer.encode(text, false), other_tokens = tokenizer.encode(other, false);
    auto windows = windows_of(tokens, model->config()), other_windows = windows_of(other_tokens, model->config());
    mnemo::build_datastore(host, windows, store, 0);
    std::printf("remembered %lld tokens\n", static_cast<long long>(store.size()));

    // Distances grow with the states: the temperature follows the median distance to the nearest other state.
    std::vector<float> nearest;
    const mnemo::Exact<mnemo::L2> search{.k = 2};
    mnemo::Matrix key(1, host.key_dim());
    for (index_t i = 0; i < store.size(); ++i) {
        mnemo::convert(store.keys()[i], key[0]);
        const auto hits = search.retrieve(store, mnemo::Rows(key));
        nearest.push_back(-hits.scores(0).back());
    }
    std::nth_element(nearest.begin(), nearest.begin() + static_cast<std::ptrdiff_t>(nearest.size() / 2), nearest.end());
    const float temperature = std::max(nearest[nearest.size() / 2] / 4, 1e-3f);
    const Memory memory = memory_of(store, temperature, 0.4f);

    windows.rewind();
    const auto known = mnemo::evaluate(memory, host, windows), unknown = mnemo::evaluate(memory, host, other_windows);
    std::printf("perplexity a token          without memory   with memory\n"
                "text that it remembers   %17.2f %13.2f\nanother text             %17.2f %13.2f\n",
                known.host.perplexity(), known.combined.perplexity(), unknown.host.perplexity(),
                unknown.combined.perplexity());

    const index_t steps = 200;
    const std::string nothing = written(*model, tokenizer, "", steps, [](auto&&...) {});
    const std::string without = written(*model, tokenizer, prompt, steps, [](auto&&...) {});
    const std::string with = written_with(memory, *model, tokenizer, prompt, steps);
    std::printf("\nwithout prompt: %s\n\nwithout memory: %s\n\nwith memory: %s\n", nothing.c_str(), without.c_str(),
                with.c_str());
    // A weight of 0 leaves every logit as it is.
    const bool same = written_with(memory_of(store, temperature, 0), *model, tokenizer, prompt, steps) == without;
    std::printf("\nlambda 0 writes the same bytes as no memory: %s\n", same ? "yes" : "no");
    return same && known.combined.perplexity() < known.host.perplexity() / 2 ? 0 : 1;
}

} // namespace

int main(int count, char** arguments) {
    try {
        return run(count, arguments);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
