// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/file.hpp>
#include <mnemo/text/llama_tokenizer.hpp>
#include <mnemo/text/word_dictionary.hpp>

#include <string>

namespace mnemo {

/// llama2.c's tokenizer.bin for a model of `vocab_size` tokens (0: as many as the file has).
inline LlamaTokenizer load_llama_tokenizer(const std::string& path, index_t vocab_size = 0) {
    return LlamaTokenizer::parse(read_file(path), vocab_size, path);
}

/// fairseq's dict.txt.
inline WordDictionary load_word_dictionary(const std::string& path) {
    return WordDictionary::parse(read_file(path), path);
}

} // namespace mnemo
