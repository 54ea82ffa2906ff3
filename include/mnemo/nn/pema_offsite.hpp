// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/datastore.hpp>
#include <mnemo/nn/pema_adapter.hpp>
#include <mnemo/text/hash.hpp>

#include <cstdlib>
#include <limits>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

// A model's owner and a data's owner tune together without showing each other what is theirs. What crosses, each thing
// in a file that says its format, its version and whose head it belongs to:
//
//   owner -> tuner   head.safetensors      output matrix, one norm, end and padding ids (save_head, load_head)
//   tuner -> owner   prompts               the source side only, as text or ids
//   owner -> tuner   states                a datastore: for each prompt the states of the model's own words, with the
//                                          number of the step in place of a token (export_states)
//   tuner -> owner   adapter.safetensors   A and B (save_adapter with adapter_metadata), checked by load_adapter_for
//
// Targets and training stay with the tuner; the model's body stays with its owner.

namespace mnemo::nn {

/// Of the matrix, the norm and epsilon: what an adapter was trained for.
inline std::string head_hash(const FrozenHead& head) {
    Hash64 hash;
    for (const at::Tensor& t : {head.output, head.norm_weight, head.norm_bias}) {
        if (!t.defined()) continue;
        const at::Tensor c = t.detach().to(at::kCPU, at::kFloat).contiguous();
        hash.add(text(c.numel()));
        hash.add(std::as_bytes(std::span(c.data_ptr<float>(), static_cast<std::size_t>(c.numel()))));
    }
    return hash.add(text(head.epsilon)).text();
}

/// What a head file carries besides the head.
struct HeadFile {
    FrozenHead head;
    std::string tokenizer_hash, hash; // hash: head_hash
    std::int32_t end = -1, pad = 1;
};

inline void save_head(const std::string& path, const FrozenHead& head, std::string tokenizer_hash, std::int32_t end,
                      std::int32_t pad) {
    head.check(head.dim());
    std::vector<at::Tensor> kept;
    std::vector<Entry> entries;
    for (const auto& [name, t] : {std::pair{"lm_head.weight", head.output},
                                  {"layer_norm.weight", head.norm_weight},
                                  {"layer_norm.bias", head.norm_bias}}) {
        if (!t.defined()) continue;
        kept.push_back(t.detach().to(at::kCPU).contiguous());
        entries.push_back(
            tensor_entry(name, t.sizes().vec(),
                         std::span<const float>(kept.back().data_ptr<float>(), static_cast<std::size_t>(t.numel()))));
    }
    char epsilon[32];
    std::snprintf(epsilon, sizeof epsilon, "%.17g", head.epsilon);
    write_safetensors(path, entries,
                      {{"format", "mnemo-head"},
                       {"version", "1"},
                       {"epsilon", epsilon},
                       {"norm", head.norm_name},
                       {"tokenizer_hash", std::move(tokenizer_hash)},
                       {"end", text(end)},
                       {"pad", text(pad)},
                       {"hash", head_hash(head)}});
}
/// Throws Error for another format, a later version, tensors that make no head, and contents that do not have the hash
/// they say.
inline HeadFile load_head(const std::string& path) {
    const SafeTensors file = SafeTensors::open(path);
    auto about = file.metadata();
    const auto expect = [&](const char* field, const std::string& want) {
        if (about[field] != want) fail(path, ": ", field, ": expected ", want, ", got ", in_quotes(about[field]));
    };
    expect("format", "mnemo-head"), expect("version", "1");
    const auto number = [&](const char* field) {
        char* end = nullptr;
        const double x = std::strtod(about[field].c_str(), &end);
        if (about[field].empty() || *end != '\0')
            fail(path, ": ", field, ": expected a number, got ", in_quotes(about[field]));
        return x;
    };
    const auto read = [&](const char* name) {
        if (file.find(name) == nullptr) return at::Tensor();
        std::vector<float> values = file.values<float>(name);
        return at::from_blob(values.data(), file.at(name).shape, at::kFloat).clone();
    };
    HeadFile out{
        {read("lm_head.weight"), read("layer_norm.weight"), read("layer_norm.bias"), number("epsilon"), about["norm"]},
        about["tokenizer_hash"],
        about["hash"],
        static_cast<std::int32_t>(number("end")),
        static_cast<std::int32_t>(number("pad"))};
    if (!out.head.output.defined() || out.head.output.dim() != 2) fail(path, ": expected a matrix lm_head.weight");
    out.head.check(out.head.output.size(1));
    expect("hash", head_hash(out.head));
    return out;
}

/// What save_adapter shall say about the head that an adapter was trained for.
inline std::map<std::string, std::string> adapter_metadata(const FrozenHead& head) {
    return {{"head_hash", head_hash(head)}, {"norm", head.norm_name}};
}
/// An adapter that was trained for this head; any other is refused.
inline PemaAdapter load_adapter_for(const std::string& path, const FrozenHead& head) {
    PemaAdapterFile file = load_adapter(path);
    const std::string hash = head_hash(head);
    if (file.metadata["head_hash"] != hash)
        fail(path, ": head_hash: expected ", hash, " as this model's head (norm ", in_quotes(head.norm_name), "), got ",
             in_quotes(file.metadata["head_hash"]), " (norm ", in_quotes(file.metadata["norm"]), ")");
    head.check(file.adapter->options().dim());
    return file.adapter;
}

/// build_pema_memory into a datastore folder, committed batch by batch: an interrupted run goes on behind the last
/// batch that is on the disk, with the same result. Key type float32 keeps what the model computed.
template <class H, ProgressReport P = NoProgress>
index_t build_pema_memory_in(const std::string& folder, const Fingerprint& fingerprint, H& host,
                             std::span<const PemaExample> examples, PemaBuilding options = {}, P&& progress = {}) {
    const bool there = exists(folder + "/mnemo.json");
    DatastoreWriter writer = there
                                 ? DatastoreWriter::resume(folder, fingerprint)
                                 : DatastoreWriter::create(folder, {.host = fingerprint, .key_type = KeyType::float32});
    writer.set_commit_every(std::numeric_limits<index_t>::max());
    // How many rows there were after each batch. A line is written before its rows are committed.
    const std::string log = folder + "/batches.txt";
    std::vector<index_t> rows_after;
    if (there && exists(log)) {
        std::istringstream lines(read_file(log));
        for (index_t rows = 0; lines >> rows;) rows_after.push_back(rows);
        while (!rows_after.empty() && rows_after.back() != writer.committed()) rows_after.pop_back();
    }
    if (rows_after.empty() && writer.committed() > 0)
        fail(folder, ": expected batches.txt to say which batches the ", writer.committed(), " rows come from");
    const auto batch = static_cast<std::size_t>(std::max<index_t>(options.batch, 1));
    for (std::size_t first = rows_after.size() * batch; first < examples.size(); first += batch) {
        const auto part = examples.subspan(first, std::min(batch, examples.size() - first));
        options.first_batch = 0;
        build_pema_memory(host, part, writer, options);
        rows_after.push_back(writer.size());
        std::string lines;
        for (const index_t rows : rows_after) lines += text(rows, "\n");
        atomic_write(log, lines);
        writer.commit();
        progress(static_cast<index_t>(first + part.size()), static_cast<index_t>(examples.size()));
    }
    const index_t rows = writer.size();
    writer.close();
    return rows;
}

/// The owner's side of building: states of what the model writes after each prompt, `steps` of them, in a datastore
/// whose values are the numbers of the steps. The prompts are all that is asked for.
template <class H, ProgressReport P = NoProgress>
index_t export_states(const std::string& folder, const Fingerprint& fingerprint, H& host,
                      std::span<const std::vector<std::int32_t>> prompts, index_t steps, PemaBuilding options = {},
                      P&& progress = {}) {
    if (steps < 1) fail("export_states: steps: expected at least 1, got ", steps);
    std::vector<std::int32_t> numbers(static_cast<std::size_t>(steps));
    for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<std::int32_t>(i);
    std::vector<PemaExample> examples;
    for (const auto& prompt : prompts) examples.push_back({prompt, numbers});
    options.contexts = PemaContexts::free_running; // the owner has no targets
    return build_pema_memory_in(folder, fingerprint, host, examples, options, progress);
}

/// The tuner's side: the states of prompt i, step by step, with the tokens of targets[i], appended to `store`. States
/// beyond a target are left out, tokens beyond the states are, too. Throws Error if there are not as many prompts.
template <class StoreT>
index_t pair_states(const Datastore& states, std::span<const std::vector<std::int32_t>> targets, StoreT& store) {
    index_t written = 0;
    std::size_t prompt = 0;
    std::vector<float> key(static_cast<std::size_t>(states.key_dim()));
    for (index_t id = 0; id < states.size(); ++id) {
        const std::int32_t step = states.value(id);
        if (step == 0) ++prompt;
        if (prompt == 0 || prompt > targets.size())
            fail(states.path(), ": entry ", id, ": expected the states of ", targets.size(),
                 " prompts, got another one's");
        const auto& target = targets[prompt - 1];
        if (step < 0 || static_cast<std::size_t>(step) >= target.size()) continue;
        states.keys().read(id, key);
        store.append(Rows(key.data(), 1, states.key_dim()),
                     std::span(target).subspan(static_cast<std::size_t>(step), 1));
        ++written;
    }
    if (prompt != targets.size())
        fail(states.path(), ": expected the states of ", targets.size(), " prompts, got ", prompt);
    return written;
}

} // namespace mnemo::nn
