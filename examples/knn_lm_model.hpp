// SPDX-License-Identifier: MIT
#pragma once

// A model that is there already, for examples/knn_lm.cpp: a folder of the Hugging Face hub.
#include <mnemo/nn/hugging_face.hpp>
#include <mnemo/text/hash.hpp>
#include <mnemo/tokenize/byte_level_bpe.hpp>

#include <filesystem>

// The folder's tokenizer: GPT-2's kind, which OPT has, too.
class FolderTokenizer {
  public:
    explicit FolderTokenizer(const std::string& folder)
        : bpe_(std::filesystem::exists(folder + "/tokenizer.json")
                   ? mnemo::ByteLevelBpe::load(folder + "/tokenizer.json")
                   : mnemo::ByteLevelBpe::load(folder + "/vocab.json", folder + "/merges.txt")) {
        const std::string config = folder + "/config.json";
        eos = static_cast<std::int32_t>(mnemo::JsonObject::parse(mnemo::read_file(config), config)
                                            .integer("eos_token_id", 0, bpe_.vocab_size() - 1));
        mnemo::Hash64 of_tokens;
        for (mnemo::index_t id = 0; id < bpe_.vocab_size(); ++id) of_tokens.add(token(static_cast<std::int32_t>(id)));
        hash_ = of_tokens.text();
    }
    void encode(std::string_view text, std::vector<std::int32_t>& ids) const { bpe_.encode(text, ids); }
    std::string decode(std::span<const std::int32_t> ids) const { return bpe_.decode(ids); }
    const std::string& token(mnemo::index_t id) const { return bpe_.token(id); }
    const std::string& hash() const { return hash_; }

    std::int32_t eos = 0;

  private:
    mnemo::ByteLevelBpe bpe_;
    std::string hash_;
};
