// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/safetensors.hpp>
#include <mnemo/nn/long_mem.hpp>

#include <algorithm>
#include <charconv>
#include <map>
#include <string>
#include <vector>

// LongMem's models as safetensors under the published checkpoints' names: `decoder.` and the side network's weights,
// `decoder.pretrained_model.decoder.model.` and the backbone's. docs/long_mem.md says how a checkpoint becomes such a
// file.

namespace mnemo::nn {

/// What the tensors' shapes do not say. Files written here say it in their metadata, others are told.
struct LongMemShape {
    std::int64_t heads = 0, reduction = 0, retrieval_layer = -1;
    HuggingFaceOptions::Positions positions = HuggingFaceOptions::Positions::alibi; // or rotary, which has no weights
};

namespace detail {

inline constexpr const char* kSidePrefix = "decoder.";
inline constexpr const char* kBackbonePrefix = "decoder.pretrained_model.decoder.model.";

inline at::Tensor weight_of(const SafeTensors& file, const std::string& path, const std::string& name,
                            at::IntArrayRef shape) {
    const Entry& entry = file.at(name);
    if (!shape.equals(entry.shape))
        fail(path, ": ", name, ": expected shape ", shape_text(shape), ", got ", shape_text(entry.shape));
    auto values = file.values<float>(name);
    return at::from_blob(values.data(), shape, at::kFloat).clone();
}

} // namespace detail

/// Writes side network and backbone to one file, at once. The backbone is of the published kind; its positions may be
/// rotary.
inline void save_long_mem(const std::string& path, const HuggingFaceLm& backbone, const SideNetwork& side,
                          const LongMemShape& shape) {
    const auto& o = backbone->options();
    const bool rotary = o.positions == HuggingFaceOptions::Positions::rotary;
    if (!rotary && o.positions != HuggingFaceOptions::Positions::alibi)
        fail(path, ": expected a backbone with ALiBi or rotary positions, got learned ones");
    if (rotary && o.rotary_base != HuggingFaceOptions().rotary_base)
        fail(path, ": expected a rotary base of ", HuggingFaceOptions().rotary_base, ", got ", o.rotary_base);
    std::vector<at::Tensor> kept;
    std::vector<Entry> tensors;
    const auto add = [&](const std::string& name, const at::Tensor& t) {
        kept.push_back(t.detach().contiguous());
        tensors.push_back(
            tensor_entry(name, t.sizes().vec(),
                         std::span<const float>(kept.back().data_ptr<float>(), static_cast<std::size_t>(t.numel()))));
    };
    for (const auto& [name, weight] : side->weights()) add(detail::kSidePrefix + name, weight);
    for (const auto& [name, weight] : backbone->weights())
        add(detail::kBackbonePrefix + long_mem_backbone_name(name), weight);
    write_safetensors(path, tensors,
                      {{"format", "mnemo LongMem 1"},
                       {"heads", text(shape.heads)},
                       {"layer_reduction_factor", text(shape.reduction)},
                       {"retrieval_layer_index", text(shape.retrieval_layer)},
                       {"positions", rotary ? "rotary" : "alibi"}});
}

/// What a file's metadata says, the rest from the caller.
inline LongMemShape long_mem_shape(const std::string& path, LongMemShape shape = {}) {
    const SafeTensors file = SafeTensors::open(path);
    for (const auto& [name, to] :
         {std::pair{"heads", &shape.heads}, std::pair{"layer_reduction_factor", &shape.reduction},
          std::pair{"retrieval_layer_index", &shape.retrieval_layer}})
        if (const auto found = file.metadata().find(name); found != file.metadata().end()) {
            const std::string& s = found->second;
            if (std::from_chars(s.data(), s.data() + s.size(), *to).ec != std::errc())
                fail(path, ": metadata `", name, "`: expected a number, got \"", s, "\"");
        }
    if (const auto found = file.metadata().find("positions"); found != file.metadata().end()) {
        if (found->second != "alibi" && found->second != "rotary")
            fail(path, ": metadata `positions`: expected alibi or rotary, got \"", found->second, "\"");
        shape.positions =
            found->second == "rotary" ? HuggingFaceOptions::Positions::rotary : HuggingFaceOptions::Positions::alibi;
    }
    if (shape.heads < 1 || shape.reduction < 1 || shape.retrieval_layer < 0)
        fail(path, ": expected heads, layer reduction and retrieval layer in the metadata or from the caller");
    return shape;
}
/// The backbone of a file; `prefix` is `decoder.model.` in a backbone's own file.
inline HuggingFaceLm
load_long_mem_backbone(const std::string& path, std::int64_t heads, const std::string& prefix = detail::kBackbonePrefix,
                       HuggingFaceOptions::Positions positions = HuggingFaceOptions::Positions::alibi) {
    const SafeTensors file = SafeTensors::open(path);
    const Entry& words = file.at(prefix + "transformer.wte.weight");
    if (words.shape.size() != 2) fail(path, ": ", words.name, ": expected [vocabulary, dim]");
    std::int64_t layers = 0;
    while (file.find(text(prefix, "transformer.h.", layers, ".ln_1.weight")) != nullptr) ++layers;
    if (layers == 0) fail(path, ": expected layers under `", prefix, "transformer.h.`, got none");
    HuggingFaceLm backbone(long_mem_backbone_options(words.shape[0], words.shape[1], layers, heads, positions),
                           [&](const std::string& name, at::IntArrayRef shape) {
                               return detail::weight_of(file, path, prefix + long_mem_backbone_name(name), shape);
                           });
    backbone->eval();
    return backbone;
}
/// The side network of a file.
inline SideNetwork load_side_network(const std::string& path, const LongMemShape& shape) {
    const SafeTensors file = SafeTensors::open(path);
    const std::string prefix = detail::kSidePrefix;
    const Entry& up = file.at(prefix + "layers.0.fc1.weight");
    if (up.shape.size() != 2) fail(path, ": ", up.name, ": expected [ffn_dim, dim]");
    SideNetworkOptions options{.dim = up.shape[1], .ffn_dim = up.shape[0], .heads = shape.heads};
    while (file.find(text(prefix, "layers.", options.layers, ".fc1.weight")) != nullptr) ++options.layers;
    options.memory_layer = shape.retrieval_layer / shape.reduction;
    return SideNetwork(options, [&](const std::string& name, at::IntArrayRef wanted) {
        return detail::weight_of(file, path, prefix + name, wanted);
    });
}
/// What save_long_mem wrote, or a published checkpoint that was converted and whose shape is told; with empty banks.
inline LongMem<> load_long_mem(const std::string& path, LongMemOptions bank, index_t batch, LongMemShape shape = {}) {
    shape = long_mem_shape(path, shape);
    const HuggingFaceLm backbone = load_long_mem_backbone(path, shape.heads, detail::kBackbonePrefix, shape.positions);
    bank.heads = shape.heads, bank.head_dim = backbone->options().head_dim;
    return {backbone, load_side_network(path, shape), shape.reduction, shape.retrieval_layer,
            LongMemBanks(bank, batch)};
}

} // namespace mnemo::nn
