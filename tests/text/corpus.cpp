// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <error_of.hpp>
#include <mnemo/text/corpus.hpp>

#include <set>

using namespace mnemo;
namespace fs = std::filesystem;

namespace {
struct Folder {
    fs::path path = fs::temp_directory_path() / text("mnemo_corpus_", reinterpret_cast<std::uintptr_t>(this));
    Folder() { fs::create_directories(path); }
    ~Folder() { fs::remove_all(path); }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;
    void put(const std::string& name, const std::string& content) const {
        fs::create_directories((path / name).parent_path());
        std::ofstream(path / name, std::ios::binary) << content;
    }
};
} // namespace

TEST_CASE("comments at the head go, others stay") {
    CHECK(without_head_comment("/* licence */\n// author\n\n#pragma once\n// kept\n") == "#pragma once\n// kept\n");
    CHECK(without_head_comment("int x; /* kept */") == "int x; /* kept */");
    CHECK(without_head_comment("\n\n  a") == "a");
    CHECK(without_head_comment("/* never closed").empty());
    CHECK(without_head_comment("/*/").empty());
    CHECK(without_head_comment("// only").empty());
    CHECK(without_head_comment("// only\n").empty());
    CHECK(without_head_comment("").empty());
    CHECK(without_head_comment("/") == "/");
    CHECK(without_head_comment("/**/x") == "x");
}

TEST_CASE("a folder is read in one order, without what is no text") {
    Folder folder;
    const std::string body(300, 'x');
    folder.put("b/two.hpp", "// licence\n" + body);
    folder.put("b/one", body);
    folder.put("a.h", body);
    folder.put("binary", body + std::string(1, '\0') + body);
    folder.put("short.h", "// licence\nx");
    const auto files = read_folder(folder.path, {"."});
    REQUIRE(files.size() == 3);
    CHECK(files[0].name == "a.h");
    CHECK(files[1].name == "b/one");
    CHECK(files[2].name == "b/two.hpp");
    CHECK(files[2].text == body);
    CHECK(read_folder(folder.path, {"b"}).size() == 2);
    CHECK(read_folder(folder.path, {"b"})[0].name == "b/one"); // below root, wherever the folder begins
    CHECK(error_of([&] { read_folder(folder.path, {"c"}); }).find("expected a folder of text files") !=
          std::string::npos);
    CHECK(read_folder(folder.path, {".", "b"}).size() == 3); // nothing twice
    CHECK_THROWS_AS(read_text(folder.path / "none"), Error);
    CHECK_THROWS_AS(read_text(folder.path), Error);
}

TEST_CASE("a long file is cut at lines and nothing is lost") {
    TextFile file{"valid.tokens", {}};
    for (int i = 0; i < 1000; ++i) file.text += text("line ", i, "\n");
    for (const std::size_t block : {std::size_t{1}, std::size_t{100}, std::size_t{5000}, std::size_t{1} << 40}) {
        const auto parts = cut_at_lines(file, block);
        std::string all;
        for (const TextFile& part : parts) {
            REQUIRE(part.text.back() == '\n');
            REQUIRE((part.text.size() >= block || &part == &parts.back()));
            all += part.text;
        }
        CHECK(all == file.text);
        CHECK(parts.size() == (block == 1 ? 1000 : block == (std::size_t{1} << 40) ? 1 : parts.size()));
    }
    CHECK(cut_at_lines({"empty", ""}).empty());
    CHECK(cut_at_lines({"no newline", "abc"}, 2).size() == 1);
}

TEST_CASE("the split depends on names alone") {
    std::vector<TextFile> files;
    for (int i = 0; i < 5000; ++i) files.push_back({text("src/file", i, ".h"), "x"});
    const Corpus corpus = split_by_name("some", files);
    CHECK(corpus.train.size() + corpus.valid.size() + corpus.test.size() == files.size());
    CHECK(corpus.train.size() == Approx(4200).margin(120));
    CHECK(corpus.valid.size() == Approx(400).margin(80));
    // The order is mixed, and the same for any order of the files.
    std::vector<TextFile> backwards(files.rbegin(), files.rend());
    CHECK(split_by_name("some", backwards).train[0].name == corpus.train[0].name);
    CHECK(!std::is_sorted(corpus.train.begin(), corpus.train.end(),
                          [](const TextFile& a, const TextFile& b) { return a.name < b.name; }));
    // Fewer files, the same parts.
    files.resize(2500);
    const Corpus smaller = split_by_name("some", files);
    std::set<std::string> train;
    for (const TextFile& file : corpus.train) train.insert(file.name);
    for (const TextFile& file : smaller.train) REQUIRE(train.count(file.name) == 1);
    for (const TextFile& file : smaller.test) REQUIRE(train.count(file.name) == 0);
    CHECK(split_by_name("all", files, {100, 0}).train.size() == files.size());
    CHECK(detail::stable_hash("Eigen/Core") == detail::stable_hash(std::string("Eigen/") + "Core"));
    CHECK(detail::stable_hash("a") != detail::stable_hash("b"));
}

TEST_CASE("installed headers are found by what they hold") {
    Folder folder;
    folder.put("eigen3/Eigen/Core", "x");
    folder.put("torch/csrc/api/include/torch/all.h", "x");
    folder.put("c++/9/vector", "x");
    folder.put("c++/12/vector", "x");
    folder.put("c++/13/nothing", "x");
    const std::vector<fs::path> folders{folder.path / "missing", folder.path};
    CHECK(find_headers("eigen", folders)->root == folder.path / "eigen3");
    CHECK(find_headers("libstdc++", folders)->root == folder.path / "c++" / "12");
    CHECK(!find_headers("libtorch", folders)); // c10 is missing
    folder.put("c10/util/Half.h", "x");
    CHECK(find_headers("libtorch", folders)->folders.size() == 2);
    CHECK(!find_headers("faiss", folders));
    CHECK(installed_headers(folders).front().name == "eigen");
    CHECK(installed_headers(folders).back().name == "libstdc++");
    fs::remove_all(folder.path / "eigen3");
    CHECK(installed_headers(folders).front().name == "libstdc++");
    CHECK(installed_headers(folders).size() == 2);
    CHECK(error_of([&] { installed_headers({folder.path / "missing"}); }).find("libeigen3-dev") != std::string::npos);
    CHECK(error_of([&] { find_headers("boost", folders); }).find("got boost") != std::string::npos);
}

TEST_CASE("named files and folders are one list of documents") {
    Folder folder;
    folder.put("wiki.tokens", std::string(40000, 'a') + "\n" + std::string(100, 'b') + "\n");
    folder.put("more/one.txt", std::string(300, 'c'));
    const auto files = read_paths({folder.path / "wiki.tokens", folder.path / "more"});
    REQUIRE(files.size() == 3);
    CHECK(files[0].name == "wiki.tokens#0");
    CHECK(join(files, "|").size() == 40001 + 101 + 300 + 3);
    CHECK_THROWS_AS(read_paths({folder.path / "none"}), Error);
}
