// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>
#include <mnemo/core/matrix_view.hpp>
#include <mnemo/io/file.hpp>

#include <sentencepiece_processor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mnemo {

/// A SentencePiece model (`tokenizer.model`, `spiece.model`), by its own library: Llama, T5, XLNet and others. Constant
/// after construction, so threads may share it.
class SentencePiece {
  public:
    /// The contents of a model file. Throws Error naming `source` for anything else.
    static SentencePiece parse(std::string_view contents, const std::string& source = "tokenizer.model") {
        SentencePiece t;
        // The library takes nothing for a model without pieces.
        const auto status = t.processor_->LoadFromSerializedProto(contents);
        if (!status.ok() || t.vocab_size() < 1)
            fail(source, ": not a SentencePiece model: ", status.ok() ? "it has no pieces" : status.message());
        return t;
    }
    static SentencePiece load(const std::string& path) { return parse(read_file(path), path); }

    index_t vocab_size() const { return processor_->GetPieceSize(); }
    /// Ids of special tokens; -1 if the model has none.
    std::int32_t bos() const { return processor_->bos_id(); }
    std::int32_t eos() const { return processor_->eos_id(); }
    std::int32_t pad() const { return processor_->pad_id(); }

    /// The ids of a text, `bos` first if asked for and there is one.
    std::vector<std::int32_t> encode(std::string_view text, bool with_bos = true) const {
        std::vector<int> found;
        if (const auto status = processor_->Encode(text, &found); !status.ok())
            fail("SentencePiece: ", status.message());
        std::vector<std::int32_t> ids(found.begin(), found.end());
        if (with_bos && bos() >= 0) ids.insert(ids.begin(), bos());
        return ids;
    }
    /// The text of ids; special tokens give none. Throws Error for an id out of range.
    std::string decode(std::span<const std::int32_t> ids) const {
        for (const std::int32_t id : ids) check(id);
        std::string text;
        if (const auto status = processor_->Decode(std::vector<int>(ids.begin(), ids.end()), &text); !status.ok())
            fail("SentencePiece: ", status.message());
        return text;
    }
    /// The vocabulary's spelling of a token. Throws Error for an id out of range.
    std::string piece(std::int32_t id) const {
        check(id);
        return processor_->IdToPiece(id);
    }

  private:
    void check(std::int32_t id) const {
        if (id < 0 || id >= vocab_size()) fail("token id: expected 0 to ", vocab_size() - 1, ", got ", id);
    }
    std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_ =
        std::make_unique<sentencepiece::SentencePieceProcessor>();
};

} // namespace mnemo
