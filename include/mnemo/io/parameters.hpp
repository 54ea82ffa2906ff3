// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/safetensors.hpp>

namespace mnemo {

/// Writes the parameters of anything that has parameters() and visit(all, f(name, shape, span)) as float32 tensors.
template <class T>
void save_parameters(const std::string& path, const T& network,
                     const std::map<std::string, std::string>& metadata = {}) {
    std::vector<Entry> entries;
    network.visit(network.parameters(), [&](std::string name, std::vector<index_t> shape, std::span<const float> part) {
        entries.push_back({std::move(name), "F32", std::move(shape), std::as_bytes(part)});
    });
    write_safetensors(path, entries, metadata);
}

/// Reads them back. Throws Error, with the file's name, for a tensor that is missing or of another shape; then nothing
/// has changed.
template <class T> void load_parameters(const std::string& path, T& network) {
    const SafeTensors file = SafeTensors::open(path);
    std::vector<float> all(network.parameters().size());
    network.visit(std::span(all),
                  [&](const std::string& name, const std::vector<index_t>& shape, std::span<float> part) {
                      const Entry& entry = file.at(name);
                      if (entry.shape != shape) fail(path, ": tensor ", name, ": expected another shape");
                      const std::vector<float> values = file.values<float>(name);
                      std::copy(values.begin(), values.end(), part.begin());
                  });
    const std::span<float> parameters = network.parameters();
    std::copy(all.begin(), all.end(), parameters.begin());
}

} // namespace mnemo
