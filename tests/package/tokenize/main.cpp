// SPDX-License-Identifier: MIT
// A stranger's program: a tokenizer from its files' contents.
#include <mnemo/tokenize/byte_level_bpe.hpp>

#include <cstdio>

int main() {
    const auto tokenizer = mnemo::ByteLevelBpe::parse(R"({"a": 0, "b": 1, "ab": 2})", "a b\n", {});
    const auto ids = tokenizer.encode("abba");
    std::printf("%zu tokens: %s\n", ids.size(), tokenizer.decode(ids).c_str());
    return ids.size() == 3 && tokenizer.decode(ids) == "abba" ? 0 : 1;
}
