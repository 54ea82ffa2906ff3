// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/json.hpp>
#include <mnemo/io/safetensors.hpp>

#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace mnemo {

/// The tensors of a model folder: `model.safetensors`, or the shards that `model.safetensors.index.json` names.
class TensorFolder {
  public:
    /// Maps and checks every file. Throws Error for a folder without weights, an index that points out of the folder,
    /// and a shard that is missing or lacks a tensor that the index promises.
    static TensorFolder open(const std::string& folder) {
        TensorFolder out(folder);
        const std::string whole = folder + "/model.safetensors", index = whole + ".index.json";
        std::error_code error; // a folder that cannot be read has no files
        if (std::filesystem::exists(whole, error)) {
            out.add(whole);
            for (const Entry& entry : out.files_[0].entries()) out.places_.emplace(entry.name, 0);
        } else if (std::filesystem::exists(index, error)) {
            out.open_shards(index);
        } else {
            fail(folder, ": expected model.safetensors or model.safetensors.index.json, got neither");
        }
        return out;
    }
    /// Which file each tensor lies in, by the JSON of an index. `where` names the index in errors.
    static std::map<std::string, std::string> parse_index(std::string_view json, const std::string& where) {
        const JsonObject map = JsonObject::parse(json, where).object("weight_map");
        std::map<std::string, std::string> out;
        for (const auto& [tensor, file] : map.raw().items()) {
            const std::string shard = map.string(tensor);
            if (shard.empty() || shard == "." || shard == ".." || shard.find_first_of("/\\") != shard.npos ||
                shard.find('\0') != shard.npos)
                fail(where, ": tensor ", in_quotes(tensor), ": expected the name of a file in this folder, got ",
                     in_quotes(shard));
            out.emplace(tensor, shard);
        }
        if (out.empty()) fail(where, ": weight_map: expected tensors, got none");
        return out;
    }

    const std::string& folder() const { return folder_; }
    /// The tensor of that name, or nullptr.
    const Entry* find(const std::string& name) const {
        const auto place = places_.find(name);
        return place == places_.end() ? nullptr : files_[place->second].find(name);
    }
    /// The tensor's elements as SafeTensors::values gives them.
    template <class T> std::vector<T> values(const std::string& name) const {
        const auto place = places_.find(name);
        if (place == places_.end()) fail(folder_, ": expected a tensor ", in_quotes(name), ", got none of that name");
        return files_[place->second].template values<T>(name);
    }
    /// All names, sorted.
    std::vector<std::string> names() const {
        std::vector<std::string> out;
        for (const auto& [name, place] : places_) out.push_back(name);
        return out;
    }

  private:
    explicit TensorFolder(std::string folder) : folder_(std::move(folder)) {}

    void add(const std::string& path) { files_.push_back(SafeTensors::open(path)); }
    void open_shards(const std::string& index) {
        std::map<std::string, std::size_t> opened;
        for (const auto& [tensor, shard] : parse_index(read_file(index, 100'000'000), index)) {
            const auto [place, is_new] = opened.emplace(shard, files_.size());
            if (is_new) add(folder_ + "/" + shard);
            if (files_[place->second].find(tensor) == nullptr)
                fail(index, ": tensor ", in_quotes(tensor), ": expected it in ", shard,
                     ", which has none of that name");
            places_.emplace(tensor, place->second);
        }
    }

    std::string folder_;
    std::vector<SafeTensors> files_;
    std::map<std::string, std::size_t> places_; // the file that a tensor lies in
};

} // namespace mnemo
