// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/file.hpp>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

/// A folder of its own for one test, removed at the end unless it is to be looked at.
class Folder {
  public:
    Folder() {
        std::string name = (std::filesystem::temp_directory_path() / "mnemo-test-XXXXXX").string();
        if (::mkdtemp(name.data()) == nullptr) mnemo::fail_system(name, "create");
        path_ = name;
    }
    ~Folder() {
        if (!kept_) std::filesystem::remove_all(path_);
    }
    void keep() { kept_ = true; }
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
    bool kept_ = false;
};
