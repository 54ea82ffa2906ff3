// SPDX-License-Identifier: MIT
#pragma once

// What the tests of files share.
#include <mnemo/io/file.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

/// A folder of its own for one test, removed at the end.
class Folder {
  public:
    Folder() {
        std::string name = (std::filesystem::temp_directory_path() / "mnemo-test-XXXXXX").string();
        if (::mkdtemp(name.data()) == nullptr) mnemo::fail_system(name, "create");
        path_ = name;
    }
    ~Folder() { std::filesystem::remove_all(path_); }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;
    std::string path() const { return path_; }
    std::string operator/(const std::string& name) const { return path_ + "/" + name; }
    std::vector<std::string> names() const {
        std::vector<std::string> out;
        for (const auto& e : std::filesystem::directory_iterator(path_)) out.push_back(e.path().filename().string());
        std::sort(out.begin(), out.end());
        return out;
    }

  private:
    std::string path_;
};

/// The message of the Error that `f` throws; empty if it throws none.
std::string error_of(auto&& f) {
    try {
        f();
    } catch (const mnemo::Error& e) {
        return e.what();
    }
    return {};
}

inline std::string golden(const std::string& name) { return MNEMO_GOLDEN "/" + name; }
inline std::string bad_file(const std::string& name) { return MNEMO_GOLDEN "/../bad/" + name; }

/// The manifest's entries of one kind.
inline std::vector<nlohmann::json> bad_files(const std::string& kind) {
    std::vector<nlohmann::json> out;
    const auto manifest = nlohmann::json::parse(mnemo::read_file(bad_file("manifest.json")));
    for (const auto& entry : manifest.at("entries"))
        if (entry.at("kind") == kind) out.push_back(entry);
    return out;
}
