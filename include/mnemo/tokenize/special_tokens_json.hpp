// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/json.hpp>
#include <mnemo/text/special_tokens.hpp>

#include <cstdint>
#include <map>
#include <string>

namespace mnemo {

/// The `added_tokens` of a tokenizer.json.
class AddedTokens {
  public:
    AddedTokens(const JsonObject& all, const std::string& source) {
        if (!all.has("added_tokens") || all.raw().at("added_tokens").is_null()) return;
        std::size_t number = 0;
        for (const auto& entry : all.list("added_tokens")) {
            const JsonObject token(entry, text(source, ": added_tokens[", number++, "]"));
            const auto flag = [&](const char* field) { return token.has(field) && token.boolean(field); };
            if (flag("single_word")) token.wrong("single_word", "false");
            const std::string content = token.string("content");
            const auto id = static_cast<std::int32_t>(token.integer("id", 0, INT32_MAX));
            tokens_.add(content, {id, flag("lstrip"), flag("rstrip")});
            ids_.emplace(content, id);
        }
    }
    const SpecialTokens& tokens() const { return tokens_; }
    const std::map<std::string, std::int32_t>& ids() const { return ids_; }

  private:
    SpecialTokens tokens_;
    std::map<std::string, std::int32_t> ids_;
};

} // namespace mnemo
