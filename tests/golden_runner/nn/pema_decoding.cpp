// SPDX-License-Identifier: MIT
#include "../../folder.hpp"
#include "golden.hpp"

#include <mnemo/io/datastore.hpp>
#include <mnemo/nn/batch_host.hpp>
#include <mnemo/nn/hugging_face_lm.hpp>
#include <mnemo/papers/pema.hpp>

#include <cstdlib>

namespace {

using namespace mnemo;
using golden::Fixture;
using golden::Tolerance;

constexpr Tolerance kDecoded{2e-5, 2e-5};

/// The OPT whose weights lie in a fixture.
nn::HuggingFaceLm opt_in(const Fixture& fixture) {
    const std::string decoder = "w.model.decoder.";
    nn::HuggingFaceOptions o;
    o.model_type = "opt";
    o.vocab_size = fixture.integer("V"), o.dim = o.input_dim = fixture.integer("d");
    o.ffn_dim = fixture.integer("ffn"), o.layers = fixture.integer("layers");
    o.heads = o.kv_heads = fixture.integer("heads"), o.head_dim = o.dim / o.heads;
    o.position_offset = fixture.integer("position_offset");
    o.max_positions = fixture.size(decoder + "embed_positions.weight", 0) - o.position_offset;
    o.positions = nn::HuggingFaceOptions::Positions::learned_by_mask;
    o.activation = fixture.text("activation");
    o.attention_scale = 1 / std::sqrt(static_cast<double>(o.head_dim));
    o.norm_first = o.final_norm = fixture.integer("do_layer_norm_before") == 1;
    const auto file_name = [&](std::string name) {
        const std::pair<std::string, std::string> parts[] = {{"tokens.", "embed_tokens."},
                                                             {"positions.", "embed_positions."},
                                                             {"final_norm.", "final_layer_norm."},
                                                             {".norm1.", ".self_attn_layer_norm."},
                                                             {".norm2.", ".final_layer_norm."},
                                                             {".query.", ".self_attn.q_proj."},
                                                             {".key.", ".self_attn.k_proj."},
                                                             {".value.", ".self_attn.v_proj."},
                                                             {".out.", ".self_attn.out_proj."},
                                                             {".up.", ".fc1."},
                                                             {".down.", ".fc2."}};
        for (const auto& [ours, theirs] : parts)
            if (const std::size_t at = name.find(ours); at != std::string::npos) {
                name.replace(at, ours.size(), theirs);
                break;
            }
        return decoder + name;
    };
    nn::HuggingFaceLm model(o, [&](const std::string& name, at::IntArrayRef shape) {
        auto values = fixture.floats(file_name(name));
        if (at::IntArrayRef(fixture.shape(file_name(name))) != shape) fail(name, ": the shape differs");
        return at::from_blob(values.data(), shape, at::kFloat).clone();
    });
    model->eval();
    return model;
}

/// Rows of ids without their padding, which must all be on one side.
std::vector<std::vector<std::int32_t>> rows_in(const Fixture& fixture, const std::string& name,
                                               const auto& is_padding) {
    const auto ids = fixture.tokens(name);
    const index_t rows = fixture.size(name, 0), width = fixture.size(name, 1);
    std::vector<std::vector<std::int32_t>> out;
    index_t longest = 0;
    for (index_t row = 0; row < rows; ++row) {
        out.emplace_back();
        for (index_t i = row * width; i < (row + 1) * width; ++i)
            if (!is_padding(i)) out.back().push_back(ids[static_cast<std::size_t>(i)]);
        longest = std::max(longest, static_cast<index_t>(out.back().size()));
    }
    expect_equal(name + ": width beside the longest row", width, longest);
    return out;
}
std::vector<std::vector<std::int32_t>> prompts_in(const Fixture& fixture, const std::string& suffix) {
    const auto mask = fixture.ids("in.attention_mask" + suffix);
    const auto prompts =
        rows_in(fixture, "in.input_ids" + suffix, [&](index_t i) { return mask[static_cast<std::size_t>(i)] == 0; });
    const index_t width = fixture.size("in.input_ids" + suffix, 1);
    for (std::size_t i = 1; i < mask.size(); ++i)
        if (static_cast<index_t>(i) % width != 0 && mask[i] < mask[i - 1])
            fail("prompts: expected padding on the left");
    return prompts;
}
std::vector<std::vector<std::int32_t>> labels_in(const Fixture& fixture, const std::string& suffix) {
    const auto ids = fixture.ids("in.label_ids" + suffix);
    const index_t pad = fixture.integer("pad_id");
    return rows_in(fixture, "in.label_ids" + suffix,
                   [&](index_t i) { return ids[static_cast<std::size_t>(i)] == pad; });
}

} // namespace

GOLDEN("pema.datastore") {
    nn::BatchHost host(opt_in(fixture));
    const index_t d = fixture.integer("d"), reserved = fixture.integer("em_size");
    const Folder folder;
    const std::string prefix = folder.path() + "/dstore";
    auto writer =
        DatastoreWriter::create(folder.path() + "/store", {.host = {.key_dim = d, .vocab_size = fixture.integer("V")},
                                                           .key_type = KeyType::float32});
    PemaBuilding options;
    options.end = static_cast<std::int32_t>(fixture.integer("eos_id"));
    options.fill = static_cast<std::int32_t>(fixture.integer("pad_id"));
    options.whole_output = true;
    std::vector<index_t> rows_of_example;
    index_t planned = 0;
    for (index_t batch = 0; batch < fixture.integer("batches"); ++batch) {
        const std::string suffix = text(".", batch);
        const auto prompts = prompts_in(fixture, suffix), labels = labels_in(fixture, suffix);
        std::vector<PemaExample> examples;
        for (std::size_t i = 0; i < prompts.size(); ++i) {
            examples.push_back(PemaExample::from_label(prompts[i], labels[i]));
            planned += static_cast<index_t>(examples.back().target.size());
        }
        const auto written = pema_states(host, examples, options, [&](const PemaExample&, Rows keys, auto values) {
            writer.append(keys, values);
            rows_of_example.push_back(keys.rows);
        });
        std::vector<std::int32_t> sequences;
        for (const auto& row : written) sequences.insert(sequences.end(), row.begin(), row.end());
        check.equal("out.sequences" + suffix, sequences);
    }
    writer.close();
    check.equal("out.rows_per_example", rows_of_example);
    expect_equal("planned_rows", planned, fixture.integer("planned_rows"));

    const Datastore store = Datastore::open(folder.path() + "/store");
    expect_equal("rows", store.write_reference(prefix, ReferenceFormat::fp32_int32, reserved), fixture.integer("rows"));
    const auto bytes = [](const std::string& contents) {
        return std::vector<std::uint8_t>(contents.begin(), contents.end());
    };
    check.equal("out.vals_file", bytes(read_file(prefix + "_vals.npy")));
    const auto key_bytes = fixture.values<std::uint8_t>("out.keys_file");
    std::vector<float> wanted(key_bytes.size() / 4), got(wanted.size());
    std::memcpy(wanted.data(), key_bytes.data(), key_bytes.size());
    const std::string key_file = read_file(prefix + "_keys.npy");
    check.that("out.keys_file", key_file.size() == key_bytes.size(), "as many bytes as the reference wrote");
    std::memcpy(got.data(), key_file.data(), std::min(key_file.size(), key_bytes.size()));
    check.close("out.keys_file", got, wanted, kDecoded);

    // Read back as the files of the reference are: by a row count, or without the rows that were never written.
    RawLayout layout{.rows = store.size(), .key_dim = d, .key_type = KeyType::float32, .prefix = true};
    const Datastore raw = Datastore::open_raw(prefix + "_keys.npy", prefix + "_vals.npy", layout);
    layout.rows = 0, layout.drop_zero_tail = true;
    expect_equal("rows without the zero tail",
                 Datastore::open_raw(prefix + "_keys.npy", prefix + "_vals.npy", layout).size(), store.size());
    std::vector<float> keys(static_cast<std::size_t>(raw.size() * d));
    std::vector<index_t> values;
    for (index_t id = 0; id < raw.size(); ++id) {
        raw.keys().read(id, std::span(keys).subspan(static_cast<std::size_t>(id * d), static_cast<std::size_t>(d)));
        values.push_back(raw.value(id));
    }
    check.close("out.keys", keys, kDecoded);
    check.equal("out.vals", values);
}

GOLDEN("pema.generate") {
    nn::BatchHost host(opt_in(fixture));
    const auto prompts = prompts_in(fixture, "");
    const auto label_ids = fixture.ids("in.label_ids");
    const index_t columns = fixture.size("in.label_ids", 1), vocab = fixture.integer("V");
    std::vector<index_t> lengths;
    for (std::size_t row = 0; row < prompts.size(); ++row) {
        const auto first = label_ids.begin() + static_cast<index_t>(row) * columns;
        lengths.push_back(std::count_if(first, first + columns, [](index_t id) { return id >= 2; }));
    }
    const GradualUnrolling schedule{.lambda = static_cast<float>(fixture.number("lmbda")),
                                    .min_percent = fixture.number("min_percent"),
                                    .on = fixture.integer("gradual_unrolling") == 1};
    const nn::FrozenHead head = [&] {
        nn::FrozenHead h = nn::exported_head(host.model(), nn::ExportedNorm::before_last_feed_forward);
        h.epsilon = fixture.number("ln_eps");
        return h;
    }();
    LayerNorm norm = head.plain_norm();
    // The exported norm is the one before the last layer's feed-forward.
    check.close("w.export_ln_weight", norm.weight, {0, 0});
    check.close("w.export_ln_bias", norm.bias, {0, 0});
    const Pema<> memory{LastHidden{},
                        LowRankMap(fixture.matrix("w.lora_A"), fixture.matrix("w.lora_B_pd"),
                                   static_cast<float>(fixture.number("scaling"))),
                        Recite{},
                        {{norm, head.plain_output()}, schedule},
                        {}};
    PemaDecoding options;
    options.end = static_cast<std::int32_t>(fixture.integer("eos_id"));
    options.fill = static_cast<std::int32_t>(fixture.integer("pad_id"));
    options.max_length = options.max_tokens = fixture.integer("max_length");
    options.rows = UnrollingRows::coupled, options.mixed_steps = columns;
    std::vector<float> lambda, log_p;
    std::vector<index_t> base_best; // [steps, rows]
    index_t steps = 0;
    const PemaOutput out = pema_generate(memory, host, prompts, lengths, options, [&](const PemaStep& step) {
        lambda.insert(lambda.end(), step.lambda.begin(), step.lambda.end());
        for (index_t row = 0; row < step.base.rows; ++row) {
            std::vector<float> a(step.base[row].begin(), step.base[row].end());
            if (step.step < columns) { // then the reference hands on raw logits
                std::vector<float> b =
                    step.memory.rows > 0 ? std::vector<float>(step.memory[row].begin(), step.memory[row].end()) : a;
                mix_logits(a, b, step.memory.rows > 0 ? step.lambda[static_cast<std::size_t>(row)] : 0);
            }
            base_best.push_back(std::max_element(step.base[row].begin(), step.base[row].end()) -
                                step.base[row].begin());
            log_p.insert(log_p.end(), a.begin(), a.end());
        }
        ++steps;
    });
    check.close("out.lambda", lambda, {1e-6, 1e-6});
    expect_equal<index_t>("out.log_probs: numbers", static_cast<index_t>(log_p.size()),
                          steps * static_cast<index_t>(prompts.size()) * vocab);
    check.close("out.log_probs", log_p, kDecoded);
    std::vector<std::int32_t> tokens;
    for (auto row : out.tokens) {
        row.resize(static_cast<std::size_t>(steps), options.fill);
        tokens.insert(tokens.end(), row.begin(), row.end());
    }
    check.equal("out.new_tokens", tokens);
    index_t differs = 0; // what was written, padding included, from what the base would have
    for (std::size_t i = 0; i < base_best.size(); ++i)
        differs += base_best[i] != tokens[i % prompts.size() * static_cast<std::size_t>(steps) + i / prompts.size()];
    expect_equal("base_argmax_differs", differs, fixture.integer("base_argmax_differs"));

    // One by one, with weights of their own, nothing changes for a prompt that shares its batch with nobody.
    for (std::size_t row = 0; row < prompts.size(); ++row) {
        options.rows = UnrollingRows::independent;
        const auto alone = pema_generate(memory, host, std::span(prompts).subspan(row, 1),
                                         std::span(lengths).subspan(row, 1), options);
        const auto together = pema_generate(memory, host, prompts, lengths, options);
        const std::size_t both =
            std::min(alone.tokens[0].size(), together.tokens[row].size()); // max_length counts padding
        check.that("out.new_tokens",
                   std::equal(alone.tokens[0].begin(), alone.tokens[0].begin() + static_cast<std::ptrdiff_t>(both),
                              together.tokens[row].begin()),
                   "the same tokens in a batch as alone");
    }
}
