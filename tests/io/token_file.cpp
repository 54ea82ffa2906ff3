// SPDX-License-Identifier: MIT
#include "catch.hpp"
#include "files.hpp"

#include <mnemo/io/token_file.hpp>

using namespace mnemo;

TEST_CASE("token files are read as they were written, in 16 and in 32 bits") {
    const Folder folder;
    for (const index_t vocab : {100, 65499, 65500, 300000}) {
        std::vector<std::int32_t> tokens;
        for (std::int32_t i = 0; i < 50; ++i) tokens.push_back(static_cast<std::int32_t>(vocab) - 1 - i);
        const std::vector<index_t> sentences{20, 0, 30};
        write_token_file(folder / "train", tokens, sentences, vocab);
        REQUIRE(std::filesystem::file_size(folder / "train.bin") == (vocab < 65500 ? 100 : 200));
        const TokenFile read = read_token_file(folder / "train");
        REQUIRE(read.tokens == tokens);
        REQUIRE(read.sentences == sentences);
    }
    write_token_file(folder / "empty", {}, {}, 10);
    REQUIRE(read_token_file(folder / "empty").tokens.empty());
}

TEST_CASE("a token file is laid out as fairseq lays it out") {
    const Folder folder;
    const std::vector<std::int32_t> tokens{5, 2, 258};
    write_token_file(folder / "t", tokens, std::vector<index_t>{2, 1}, 1000);
    const std::string expected("MMIDIDX\0\0"
                               "\1\0\0\0\0\0\0\0"
                               "\x08"
                               "\2\0\0\0\0\0\0\0"
                               "\2\0\0\0"
                               "\1\0\0\0"
                               "\0\0\0\0\0\0\0\0"
                               "\4\0\0\0\0\0\0\0",
                               9 + 8 + 1 + 8 + 8 + 16);
    REQUIRE(read_file(folder / "t.idx") == expected);
    REQUIRE(read_file(folder / "t.bin") == std::string("\5\0\2\0\2\1", 6));
}

TEST_CASE("damaged token files are refused by name, wherever they are cut or changed") {
    const Folder folder;
    const std::vector<std::int32_t> tokens{5, 2, 258};
    write_token_file(folder / "t", tokens, std::vector<index_t>{2, 1}, 1000);
    const std::string index = read_file(folder / "t.idx"), data = read_file(folder / "t.bin");
    const auto error = [&](const std::string& i, const std::string& d) {
        atomic_write(folder / "b.idx", i), atomic_write(folder / "b.bin", d);
        return error_of([&] { read_token_file(folder / "b"); });
    };
    REQUIRE(error(index, data).empty());
    for (std::size_t n = 0; n < index.size(); ++n)
        REQUIRE(error(index.substr(0, n), data).find("b.idx") != std::string::npos);
    for (std::size_t n = 0; n < data.size(); ++n)
        REQUIRE(error(index, data.substr(0, n)).find("b.bin") != std::string::npos);
    REQUIRE_FALSE(error(index + "x", data).empty());
    REQUIRE_FALSE(error(index, data + "x").empty());
    for (std::size_t i = 0; i < index.size(); ++i)
        for (const unsigned char bit : {1, 128}) {
            std::string changed = index;
            changed[i] = static_cast<char>(static_cast<unsigned char>(changed[i]) ^ bit);
            INFO("byte " << i);
            REQUIRE_FALSE(error(changed, data).empty());
        }
}

TEST_CASE("what does not fit a token file is not written") {
    const Folder folder;
    const std::vector<std::int32_t> tokens{5, 2};
    REQUIRE(error_of([&] { write_token_file(folder / "t", tokens, std::vector<index_t>{2}, 5); }).find("below 5") !=
            std::string::npos);
    for (const std::vector<index_t>& sizes : {std::vector<index_t>{1}, {3}, {-1, 3}})
        REQUIRE(error_of([&] { write_token_file(folder / "t", tokens, sizes, 9); }).find("sum to 2") !=
                std::string::npos);
    REQUIRE(folder.names().empty());
}
