// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/core/error.hpp>

#include <libstemmer.h>

#include <memory>
#include <string>
#include <string_view>

namespace mnemo {

/// One word for all its forms, by the Snowball library; EnglishWords<SnowballStemmer> analyses text as the reference's
/// BM25 search does. Algorithms by their names there: "porter", "english", "german", ... One stemmer serves one thread.
class SnowballStemmer {
  public:
    explicit SnowballStemmer(const std::string& algorithm = "porter")
        : stemmer_(::sb_stemmer_new(algorithm.c_str(), nullptr), &::sb_stemmer_delete) {
        if (!stemmer_) fail("stemmer: expected an algorithm of libstemmer, got '", algorithm, "'");
    }
    /// The stem; it lives until the next call.
    std::string_view operator()(std::string_view word) const {
        const auto* out = ::sb_stemmer_stem(stemmer_.get(), reinterpret_cast<const ::sb_symbol*>(word.data()),
                                            static_cast<int>(word.size()));
        if (out == nullptr) fail("stemmer: out of memory");
        return {reinterpret_cast<const char*>(out), static_cast<std::size_t>(::sb_stemmer_length(stemmer_.get()))};
    }

  private:
    std::shared_ptr<::sb_stemmer> stemmer_;
};

} // namespace mnemo
