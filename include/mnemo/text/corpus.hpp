// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mnemo {

/// One document.
struct TextFile {
    std::string name; // path below its folder, with forward slashes: the same on every machine
    std::string text;
};

/// `text` without the comments and blank lines at its head, where licences stand. Text that is nothing but comments
/// becomes empty.
inline std::string_view without_head_comment(std::string_view text) {
    while (true) {
        const std::size_t start = text.find_first_not_of(" \t\r\n\f\v");
        if (start == std::string_view::npos) return {};
        text.remove_prefix(start);
        std::size_t end;
        if (text.starts_with("/*")) {
            end = text.find("*/", 2);
        } else if (text.starts_with("//")) {
            end = text.find('\n');
        } else {
            return text;
        }
        if (end == std::string_view::npos) return {};
        text.remove_prefix(text[end] == '*' ? end + 2 : end + 1);
    }
}

/// The whole file, as bytes.
inline std::string read_text(const std::filesystem::path& path) {
    std::ifstream in(path, std::ios::binary);
    std::error_code error;
    if (!in || std::filesystem::is_directory(path, error)) fail(path.string(), ": expected a readable text file");
    std::string out{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    if (in.bad()) fail(path.string(), ": reading failed");
    return out;
}

/// The text files below `root / folder` for each of `folders`, ordered by name, without their licences. Files with a
/// zero byte are no text; files of less than `min_bytes` say too little. Links to folders are not followed.
inline std::vector<TextFile> read_folder(const std::filesystem::path& root, const std::vector<std::string>& folders,
                                         std::size_t min_bytes = 200) {
    namespace fs = std::filesystem;
    std::vector<TextFile> files;
    for (const std::string& folder : folders) {
        if (!fs::is_directory(root / folder)) fail((root / folder).string(), ": expected a folder of text files");
        for (const auto& entry :
             fs::recursive_directory_iterator(root / folder, fs::directory_options::skip_permission_denied)) {
            if (!entry.is_regular_file()) continue;
            const std::string all = read_text(entry.path());
            const std::string_view kept = without_head_comment(all);
            if (kept.size() < min_bytes || kept.find('\0') != std::string_view::npos) continue;
            files.push_back(
                {entry.path().lexically_relative(root).lexically_normal().generic_string(), std::string(kept)});
        }
    }
    std::sort(files.begin(), files.end(), [](const TextFile& a, const TextFile& b) { return a.name < b.name; });
    // Overlapping folders give a file once.
    files.erase(
        std::unique(files.begin(), files.end(), [](const TextFile& a, const TextFile& b) { return a.name == b.name; }),
        files.end());
    return files;
}

/// One long file as many documents of about `block_bytes`, each ending at a line's end, so that it can be split and
/// stored like a folder of files.
inline std::vector<TextFile> cut_at_lines(const TextFile& file, std::size_t block_bytes = 16384) {
    std::vector<TextFile> out;
    for (std::size_t first = 0; first < file.text.size();) {
        std::size_t last = file.text.find('\n', std::min(first + block_bytes, file.text.size()) - 1);
        last = last == std::string::npos ? file.text.size() : last + 1;
        out.push_back({text(file.name, "#", out.size()), file.text.substr(first, last - first)});
        first = last;
    }
    return out;
}

/// A text in three parts that share no document.
struct Corpus {
    std::string name;
    std::vector<TextFile> train, valid, test;
};

namespace detail {
// FNV-1a and a final mixing: the split must not depend on the standard library's hash.
inline std::uint64_t stable_hash(std::string_view s) {
    std::uint64_t h = 0xcbf29ce484222325u;
    for (const char c : s) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
    h = (h ^ (h >> 33)) * 0xff51afd7ed558ccdu;
    h = (h ^ (h >> 33)) * 0xc4ceb9fe1a85ec53u;
    return h ^ (h >> 33);
}
} // namespace detail

/// Shares of a split in percent; test takes the rest.
struct Shares {
    unsigned train = 84, valid = 8;
};

/// Deals documents out by a hash of their names, and orders them by it: a document stays in its part when others come
/// or go, and the first tokens of a part are a fair sample of it.
inline Corpus split_by_name(std::string name, std::vector<TextFile> files, Shares shares = {}) {
    std::vector<std::pair<std::uint64_t, TextFile>> hashed;
    for (TextFile& file : files) hashed.emplace_back(detail::stable_hash(file.name), std::move(file));
    std::sort(hashed.begin(), hashed.end(), [](const auto& a, const auto& b) {
        return a.first != b.first ? a.first < b.first : a.second.name < b.second.name;
    });
    Corpus out{std::move(name), {}, {}, {}};
    for (auto& [hash, file] : hashed) {
        auto& part = hash % 100 < shares.train                  ? out.train
                     : hash % 100 < shares.train + shares.valid ? out.valid
                                                                : out.test;
        part.push_back(std::move(file));
    }
    return out;
}

/// Files and folders that a user names, in the order given; a single file is cut at lines.
inline std::vector<TextFile> read_paths(const std::vector<std::filesystem::path>& paths) {
    std::vector<TextFile> out;
    for (const auto& path : paths) {
        std::vector<TextFile> found;
        if (std::filesystem::is_directory(path))
            found = read_folder(path, {"."});
        else
            found = cut_at_lines({path.filename().string(), read_text(path)});
        out.insert(out.end(), std::make_move_iterator(found.begin()), std::make_move_iterator(found.end()));
    }
    return out;
}

/// Where the headers of an installed C++ library are.
struct Headers {
    std::filesystem::path root;
    std::vector<std::string> folders; // below root
};

/// Looks for `library` ("eigen", "libtorch", "faiss", "libstdc++") in each of `include_folders`, in order; of several
/// versions of libstdc++ in one folder it takes the newest.
inline std::optional<Headers> find_headers(std::string_view library,
                                           const std::vector<std::filesystem::path>& include_folders) {
    namespace fs = std::filesystem;
    std::error_code ignored; // a folder that is not there is no error here
    for (const fs::path& folder : include_folders) {
        if (library == "eigen") {
            for (const fs::path& root : {folder / "eigen3", folder})
                if (fs::exists(root / "Eigen" / "Core", ignored))
                    return fs::is_directory(root / "unsupported", ignored) ? Headers{root, {"Eigen", "unsupported"}}
                                                                           : Headers{root, {"Eigen"}};
        } else if (library == "libtorch") {
            // The hand-written C++ interface; most of the rest is generated.
            if (fs::is_directory(folder / "torch/csrc/api", ignored) && fs::is_directory(folder / "c10", ignored))
                return Headers{folder, {"torch/csrc/api", "c10"}};
        } else if (library == "faiss") {
            if (fs::exists(folder / "faiss/Index.h", ignored)) return Headers{folder, {"faiss"}};
        } else if (library == "libstdc++") {
            int newest = 0;
            fs::path root;
            for (const auto& entry : fs::directory_iterator(folder / "c++", ignored)) {
                const int version = std::atoi(entry.path().filename().c_str());
                if (version > newest && fs::exists(entry.path() / "vector", ignored)) newest = version, root = entry;
            }
            if (newest > 0) return Headers{root, {"."}};
        } else {
            fail("headers: expected eigen, libtorch, faiss or libstdc++, got ", library);
        }
    }
    return std::nullopt;
}

/// The text that every machine with the library's dependencies holds: Eigen's headers, or libstdc++'s without Eigen,
/// and the other libraries of find_headers that are there, in this order. Throws Error if there are none at all.
inline std::vector<Corpus> installed_headers(const std::vector<std::filesystem::path>& include_folders) {
    std::vector<Corpus> out;
    for (const char* library : {"eigen", "libtorch", "faiss", "libstdc++"})
        if (const auto headers = find_headers(library, include_folders))
            out.push_back(split_by_name(library, read_folder(headers->root, headers->folders)));
    if (out.empty()) {
        std::string searched;
        for (const auto& folder : include_folders) searched += (searched.empty() ? "" : ", ") + folder.string();
        fail("expected the headers of Eigen (Debian: libeigen3-dev) or libstdc++, found none in ", searched,
             ": name files to train on");
    }
    if (out[0].name != "eigen")
        std::rotate(out.begin(), out.end() - 1, out.end()); // the largest and last of the others
    return out;
}

/// Documents one after another, each followed by `separator`.
inline std::string join(const std::vector<TextFile>& files, std::string_view separator = "\n") {
    std::string out;
    for (const TextFile& file : files) out.append(file.text).append(separator);
    return out;
}

} // namespace mnemo
