// SPDX-License-Identifier: MIT
#include "golden.hpp"

#include <mnemo/io/npy.hpp>
#include <mnemo/io/tokenizer_files.hpp>

#include <algorithm>

BAD_FILES("safetensors") {
    const auto tensors = mnemo::SafeTensors::open(file.string());
    std::vector<std::string> names;
    double sum = 0;
    nlohmann::json as_double = nlohmann::json::object();
    for (const mnemo::Entry& e : tensors.entries()) {
        names.push_back(e.name);
        if (e.dtype == "F32")
            for (const float x : tensors.values<float>(e.name)) sum += static_cast<double>(x);
        if (!entry.contains("as_double") || !entry.at("as_double").contains(e.name)) continue;
        if (e.dtype.starts_with("F8")) {
            // No type that the library computes with: refused when asked for, so there is no value to compare.
            try {
                (void)tensors.values<float>(e.name);
            } catch (const mnemo::Error&) {
                as_double[e.name] = entry.at("as_double").at(e.name);
            }
        } else if (e.dtype.find('F') != std::string::npos) {
            as_double[e.name] = tensors.values<double>(e.name).at(0);
        } else {
            as_double[e.name] = tensors.values<std::int64_t>(e.name).at(0);
        }
    }
    std::sort(names.begin(), names.end());
    return {{"names", names}, {"sum", sum}, {"as_double", as_double}};
}

BAD_FILES("npy") {
    const auto npy = mnemo::Npy::open(file.string());
    std::vector<double> values;
    const bool floats = npy.type() == mnemo::ElementType::float16 || npy.type() == mnemo::ElementType::float32 ||
                        npy.type() == mnemo::ElementType::float64 || npy.type() == mnemo::ElementType::bfloat16;
    if (floats)
        values = npy.values<double>();
    else
        for (const std::int64_t x : npy.values<std::int64_t>()) values.push_back(static_cast<double>(x));
    double sum = 0;
    for (const double x : values) sum += x;
    const auto& shape = npy.shape();
    const std::size_t width = shape.empty() ? 1 : static_cast<std::size_t>(shape.back());
    const std::vector<double> first_row(values.begin(),
                                        values.begin() + static_cast<std::ptrdiff_t>(std::min(width, values.size())));
    return {{"shape", shape}, {"sum", sum}, {"first_row", first_row}};
}

BAD_FILES("tokenizer_llama2c") {
    return {{"vocab", mnemo::load_llama_tokenizer(file.string(), entry.value("vocab", 0)).vocab_size()}};
}

BAD_FILES("tokenizer_fairseq") { return {{"vocab", mnemo::load_word_dictionary(file.string()).size()}}; }
