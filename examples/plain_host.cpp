// SPDX-License-Identifier: MIT
// A host of one's own, without LibTorch: it decodes one token at a time and shows a hidden state and a row of logits as
// plain floats, as llama.cpp and llama2.c do. The memory edits the logits in place before the host picks a token.
#include <mnemo/mnemo.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

// The smallest host that has a state: random vectors of the characters, older ones fading. Its logits know how often
// characters occur and nothing else.
class Host {
  public:
    static constexpr int d = 32, vocab = 128;

    Host() {
        std::mt19937 random(1);
        for (float& x : embedding_) x = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
    }
    void decode(char token) {
        for (std::size_t j = 0; j < d; ++j)
            state_[j] = 0.8f * state_[j] + embedding_[static_cast<std::size_t>(token) * d + j];
        logits_.fill(-2);
        for (const char frequent : std::string("etaoin shr")) logits_[static_cast<std::size_t>(frequent)] = 2;
    }
    const float* state() const { return state_.data(); } // [d], valid until the next decode
    float* logits() { return logits_.data(); }           // [vocab], may be edited
    void reset() { state_.fill(0); }

  private:
    std::array<float, vocab * d> embedding_{}; // [vocab, d]
    std::array<float, d> state_{};
    std::array<float, vocab> logits_{};
};

// Greedy decoding; `edit` sees state and logits before a token is picked.
std::string continued(Host& host, const std::string& prompt, int tokens, auto&& edit) {
    host.reset();
    for (const char c : prompt) host.decode(c);
    std::string out = prompt;
    for (int i = 0; i < tokens; ++i) {
        edit(mnemo::Rows(host.state(), 1, Host::d), mnemo::MutRows(host.logits(), 1, Host::vocab));
        out += static_cast<char>(std::max_element(host.logits(), host.logits() + Host::vocab) - host.logits());
        host.decode(out.back());
    }
    return out;
}

int main() {
    const std::string fact = "The sea slug Elysia chlorotica lives on light: it keeps the chloroplasts it eats.";
    Host host;
    mnemo::Memory memory(mnemo::LastHidden{}, mnemo::TokenStore<>(Host::d), mnemo::Exact<mnemo::L2>{.k = 4},
                         mnemo::Interpolate{mnemo::TokenVotes{}, mnemo::Fixed{0.7f}});
    for (std::size_t i = 0; i + 1 < fact.size(); ++i) { // reads the text once
        host.decode(fact[i]);
        const std::array<std::int32_t, 1> next{fact[i + 1]};
        memory.write(mnemo::Rows(host.state(), 1, Host::d), std::span<const std::int32_t>(next));
    }

    // A session for each sequence: its buffers are kept, so that a step allocates nothing after the first.
    mnemo::Session<const decltype(memory), mnemo::Rows> session(memory);
    const std::string prompt = "The sea slug";
    const int rest = static_cast<int>(fact.size() - prompt.size());
    const std::string without = continued(host, prompt, rest, [](auto&&...) {});
    const std::string with = continued(host, prompt, rest, [&](mnemo::Rows state, mnemo::MutRows logits) {
        mnemo::Logits base{logits};
        session.read(state, base);
    });
    std::printf("without memory: %s\nwith memory:    %s\n", without.c_str(), with.c_str());
    return with == fact ? 0 : 1;
}
