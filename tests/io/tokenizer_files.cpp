// SPDX-License-Identifier: MIT
#include "files.hpp"

#include <catch.hpp>
#include <mnemo/io/tokenizer_files.hpp>

using namespace mnemo;

TEST_CASE("tokenizer files of the bad set behave as the manifest says") {
    int seen = 0;
    const auto check = [&](const std::string& kind, auto&& size_of) {
        for (const auto& entry : bad_files(kind)) {
            const std::string file = entry.at("file"), expect = entry.at("expect");
            INFO(file);
            ++seen;
            index_t size = 0;
            const std::string message = error_of([&] { size = size_of(bad_file(file), entry.value("vocab", 0)); });
            INFO(message);
            if (expect == "error") REQUIRE(message.find(file) != std::string::npos);
            if (expect == "ok") REQUIRE(message.empty());
            if (message.empty() && entry.contains("vocab")) REQUIRE(size == entry.at("vocab").get<index_t>());
        }
    };
    check("tokenizer_llama2c",
          [](const std::string& path, index_t vocab) { return load_llama_tokenizer(path, vocab).vocab_size(); });
    check("tokenizer_fairseq", [](const std::string& path, index_t) { return load_word_dictionary(path).size(); });
    REQUIRE(seen == 11);
}
