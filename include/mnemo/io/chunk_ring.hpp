// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/safetensors.hpp>
#include <mnemo/store/chunk_ring.hpp>

#include <charconv>
#include <map>
#include <string>
#include <utility>
#include <vector>

// A ring of chunks as a safetensors file: `keys.{h}` and `values.{h}` [slots written, chunk, head_dim] in the ring's
// type, `means.{h}` [slots written, head_dim] float, `positions` [slots written] int64, `next_keys` and `next_values`
// [tokens that wait, heads * head_dim] float; sizes and counters are metadata. Slots are as in memory: nothing is
// copied to be written.

namespace mnemo {

/// Adds a ring's tensors and metadata to those of a file, under `prefix`. The ring must outlive them.
template <KeyElement T>
void add_chunk_ring(std::vector<Entry>& tensors, std::map<std::string, std::string>& about, const ChunkRing<T>& ring,
                    const std::string& prefix = "") {
    const ChunkRingOptions& options = ring.options();
    const auto& now = ring.contents();
    const auto span = []<class V>(const V& v) { return std::span<const typename V::value_type>(v); };
    for (index_t h = 0; h < ring.heads(); ++h) {
        const auto head = static_cast<std::size_t>(h);
        const std::vector<index_t> blocks = {ring.size(), options.chunk, options.head_dim};
        tensors.push_back(tensor_entry(text(prefix, "keys.", h), blocks, span(now.keys[head])));
        tensors.push_back(tensor_entry(text(prefix, "values.", h), blocks, span(now.values[head])));
        tensors.push_back(
            tensor_entry(text(prefix, "means.", h), {ring.size(), options.head_dim}, span(now.means[head])));
    }
    tensors.push_back(tensor_entry(prefix + "positions", {ring.size()}, now.positions));
    tensors.push_back(tensor_entry(prefix + "next_keys", {ring.waiting(), ring.key_dim()}, now.next_keys));
    tensors.push_back(tensor_entry(prefix + "next_values", {ring.waiting(), ring.key_dim()}, now.next_values));
    for (const auto& [name, number] : {std::pair{"heads", options.heads},
                                       {"head_dim", options.head_dim},
                                       {"chunk", options.chunk},
                                       {"memory_tokens", options.memory_tokens},
                                       {"first", now.first},
                                       {"used", now.used},
                                       {"tokens", now.tokens},
                                       {"document", now.document}})
        about[prefix + name] = text(number);
    about[prefix + "format"] = "mnemo chunk ring 1";
    about[prefix + "reference"] = options.reference ? "true" : "false";
}

/// Writes the ring atomically: a process that is killed meanwhile leaves the file that was there before.
template <KeyElement T> void save_chunk_ring(const std::string& path, const ChunkRing<T>& ring) {
    std::vector<Entry> tensors;
    std::map<std::string, std::string> about;
    add_chunk_ring(tensors, about, ring);
    write_safetensors(path, tensors, about);
}

/// The ring that add_chunk_ring put into a file under `prefix`. Throws Error, naming the file, where there is none, or
/// it is damaged or holds another element type.
template <KeyElement T = half>
ChunkRing<T> chunk_ring_in(const SafeTensors& file, const std::string& path, const std::string& prefix = "") {
    const auto field = [&](const std::string& key) -> const std::string& {
        const std::string name = prefix + key;
        const auto found = file.metadata().find(name);
        if (found == file.metadata().end()) fail(path, ": expected metadata `", name, "`, got none");
        return found->second;
    };
    const auto number = [&](const std::string& name) {
        const std::string& value = field(name);
        index_t n = 0;
        const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), n);
        if (error != std::errc() || end != value.data() + value.size())
            fail(path, ": metadata `", name, "`: expected a number, got \"", value, "\"");
        return n;
    };
    if (field("format") != "mnemo chunk ring 1")
        fail(path, ": expected the format \"mnemo chunk ring 1\", got \"", field("format"), "\"");
    const ChunkRingOptions options{.heads = number("heads"),
                                   .head_dim = number("head_dim"),
                                   .chunk = number("chunk"),
                                   .memory_tokens = number("memory_tokens"),
                                   .reference = field("reference") == "true"};
    // Three tensors a head: a head count that the file cannot have is refused before anything is made for it.
    if (options.heads < 1 || options.heads > static_cast<index_t>(file.entries().size()))
        fail(path, ": metadata `heads`: expected 1 to ", file.entries().size(), ", got ", options.heads);
    constexpr index_t most = index_t{1} << 24;
    if (options.head_dim < 1 || options.head_dim > most || options.chunk < 1 || options.chunk > most)
        fail(path, ": metadata `head_dim` and `chunk`: expected 1 to ", most, ", got ", options.head_dim, " and ",
             options.chunk);
    // A negative size is any.
    const auto read = [&]<class V>(V& into, const std::string& key, const std::vector<index_t>& shape) {
        using Element = typename V::value_type;
        const std::string name = prefix + key;
        const Entry& entry = file.at(name);
        if (entry.dtype != safetensors_dtype<Element>())
            fail(path, ": ", name, ": expected ", safetensors_dtype<Element>(), ", got ", entry.dtype);
        bool same = entry.shape.size() == shape.size();
        for (std::size_t i = 0; same && i < shape.size(); ++i) same = shape[i] < 0 || shape[i] == entry.shape[i];
        if (!same) fail(path, ": ", name, ": expected another shape for the sizes that the metadata states");
        into.resize(entry.bytes.size() / sizeof(Element));
        if (!into.empty()) std::memcpy(into.data(), entry.bytes.data(), entry.bytes.size());
    };
    typename ChunkRing<T>::Contents now;
    const auto heads = static_cast<std::size_t>(options.heads);
    now.keys.resize(heads), now.values.resize(heads), now.means.resize(heads);
    read(now.positions, "positions", {-1});
    const auto written = static_cast<index_t>(now.positions.size());
    for (std::size_t h = 0; h < heads; ++h) {
        read(now.keys[h], text("keys.", h), {written, options.chunk, options.head_dim});
        read(now.values[h], text("values.", h), {written, options.chunk, options.head_dim});
        read(now.means[h], text("means.", h), {written, options.head_dim});
    }
    read(now.next_keys, "next_keys", {-1, options.heads * options.head_dim});
    read(now.next_values, "next_values", {-1, options.heads * options.head_dim});
    now.first = number("first"), now.used = number("used"), now.tokens = number("tokens");
    now.document = number("document");
    try {
        return ChunkRing<T>(options, std::move(now));
    } catch (const Error& error) {
        fail(path, ": ", std::string_view(error.what()).substr(std::string_view("mnemo: ").size()));
    }
}

/// Reads what save_chunk_ring wrote.
template <KeyElement T = half> ChunkRing<T> load_chunk_ring(const std::string& path) {
    return chunk_ring_in<T>(SafeTensors::open(path), path);
}

} // namespace mnemo
