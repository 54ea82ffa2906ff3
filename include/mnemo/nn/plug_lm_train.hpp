// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/io/safetensors.hpp>
#include <mnemo/nn/autocast.hpp>
#include <mnemo/nn/lamb.hpp>
#include <mnemo/nn/plug_lm_model.hpp>
#include <mnemo/text/hash.hpp>

#include <torch/utils.h>

#include <charconv>
#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace mnemo::nn {

struct PlugLmTraining {
    PolynomialDecay decay; // its total is the number of steps
    LambOptions lamb;
    index_t accumulation = 1;     // batches whose gradients make one step
    std::uint64_t seed = 42;      // of dropout
    bool mixed_precision = false; // products in bfloat16 (Autocast); the reference trains in half precision so
};

/// A batch for masked language modelling, Long [B, T] each; labels are -1 where nothing is asked.
struct MaskedTensors {
    at::Tensor tokens;
    TokenInfo info;
    at::Tensor labels;
};
inline MaskedTensors tensors_of(const MaskedBatch& batch) {
    const auto longs = [&](const std::vector<std::int32_t>& from) {
        const at::Tensor t = at::empty({batch.rows, batch.cols}, at::kLong);
        std::copy(from.begin(), from.end(), t.data_ptr<std::int64_t>());
        return t;
    };
    return {longs(batch.tokens), {longs(batch.attention), {}, longs(batch.segments)}, longs(batch.labels)};
}

/// Pre-training: the keys of all documents are encoded anew before the first step and every `refreshing_steps`; between
/// two refreshes entries are found by the keys of the last one and read as the model encodes them now, with gradient.
/// A run that was saved and resumed gives the same model, bit for bit, as one that was not interrupted.
class PlugLmTrainer {
  public:
    PlugLmTrainer(PlugLm model, DocumentRows documents, PlugLmTraining options)
        : model_(std::move(model)), documents_(std::move(documents)), options_(options),
          lamb_(model_->weights(), options.lamb), store_(model_->config().memory.query_size, 0, documents_.length) {
        if (options.accumulation < 1)
            fail("pre-training: accumulation: expected at least 1, got ", options.accumulation);
        if (model_->config().memory.memory_layers > 0 && !model_->reencodes())
            fail("pre-training: expected a model that encodes its entries, got one of fixed keys and values");
    }

    /// One update from `accumulation` batches, each `batches(n)` -> MaskedTensors for n counted from 0 over the whole
    /// run. Returns their mean loss (nats a masked token). All steps done, or a loss that is not finite, is an Error.
    template <class Batches, class RetrieverT> double step(const Batches& batches, const RetrieverT& retriever) {
        if (done_ >= options_.decay.total) fail("pre-training: all ", options_.decay.total, " steps are done");
        if (done_ % model_->config().memory.refreshing_steps == 0) refresh();
        const at::AutoGradMode with_gradients(true);
        at::manual_seed(options_.seed +
                        static_cast<std::uint64_t>(done_)); // so that resuming needs no generator's state
        model_->train();
        for (const auto& [name, p] : model_->weights()) p.mutable_grad() = at::Tensor();
        double loss = 0;
        const auto snapshot = store_.snapshot();
        for (index_t i = 0; i < options_.accumulation; ++i) {
            const MaskedTensors batch = batches(done_ * options_.accumulation + i);
            const at::Tensor part = [&] {
                const Autocast autocast(options_.mixed_precision);
                const auto out = model_->forward(batch.tokens, batch.info, *snapshot, retriever);
                return model_->mlm_loss(out.prehead, batch.labels) / static_cast<double>(options_.accumulation);
            }();
            loss += part.template item<double>();
            part.backward();
        }
        if (!std::isfinite(loss) || !std::isfinite(lamb_.step(options_.decay.at(done_))))
            fail("pre-training, step ", done_, ": loss or gradient is not finite; lower the learning rate");
        ++done_;
        return loss;
    }

    /// Encodes the keys of all documents with the weights as they are; the model's mode stays. Readers of store() that
    /// hold a snapshot keep theirs.
    void refresh() {
        KnowledgeStore fresh(store_.key_dim(), 0, documents_.length);
        const auto rows = documents_.view();
        for (index_t first = 0; first < rows.rows; first += kAtATime) {
            const auto part = rows.slice(first, std::min(kAtATime, rows.rows - first));
            const at::Tensor keys = model_->encoder()->refresh(document_ids(part)).key.contiguous();
            fresh.append(as_rows(keys), Rows(nullptr, part.rows, 0), {}, part);
        }
        store_.swap_base(std::move(fresh));
        refreshed_ = done_;
    }
    /// Other documents from the next refresh on, of the same length.
    void set_documents(DocumentRows documents) {
        expect_equal("pre-training: length of the documents", documents.length, documents_.length);
        documents_ = std::move(documents);
    }

    index_t done() const { return done_; }
    /// Steps since the keys were encoded.
    index_t staleness() const { return done_ - refreshed_; }
    const PlugLm& model() const { return model_; }
    const KnowledgeStore& store() const { return store_; }

    /// Writes model, optimizer, stored keys and position to one file, at once. As model.safetensors beside a
    /// config.json it is a folder that plug_lm_from_folder reads.
    void save(const std::string& path) const {
        std::vector<Entry> entries;
        std::vector<at::Tensor> kept;
        const auto add = [&]<class T>(T, const std::string& name, const at::Tensor& t) {
            kept.push_back(t.detach().contiguous());
            entries.push_back(
                tensor_entry(name, t.sizes().vec(),
                             std::span<const T>(kept.back().data_ptr<T>(), static_cast<std::size_t>(t.numel()))));
        };
        for (const auto& [name, t] : model_->weights()) add(float{}, name, t);
        for (const auto& [name, t] : model_->running())
            t.scalar_type() == at::kLong ? add(std::int64_t{}, name, t) : add(float{}, name, t);
        for (const auto& p : lamb_.parameters()) {
            add(float{}, "optimizer.m." + p.name, p.m);
            add(float{}, "optimizer.v." + p.name, p.v);
        }
        const auto snapshot = store_.snapshot();
        std::vector<half> keys;
        for (index_t row = 0; row < snapshot->size(); ++row)
            keys.insert(keys.end(), snapshot->key(row).begin(), snapshot->key(row).end());
        entries.push_back(tensor_entry("memory.keys", {snapshot->size(), store_.key_dim()}, keys));
        auto about = identity();
        about["done"] = text(done_), about["refreshed"] = text(refreshed_);
        write_safetensors(path, entries, about);
    }

    /// Goes on where `save` was. Throws Error if the file is damaged or from another model, other documents or other
    /// options; then nothing has changed.
    void resume(const std::string& path) {
        const SafeTensors file = SafeTensors::open(path);
        auto about = file.metadata();
        const auto number = [&](const char* field) {
            const std::string& s = about[field];
            index_t n = -1;
            if (std::from_chars(s.data(), s.data() + s.size(), n).ec != std::errc() || n < 0 ||
                n > options_.decay.total)
                fail(path, ": ", field, ": expected 0 to ", options_.decay.total, " steps, got ", in_quotes(s));
            return n;
        };
        const index_t done = number("done"), refreshed = number("refreshed");
        for (const auto& [field, value] : identity())
            if (about[field] != value)
                fail(path, ": ", field, ": expected ", value, " as in this run, got ", in_quotes(about[field]));
        const auto read = [&]<class T>(T, const std::string& name, const at::Tensor& like) {
            if (at::IntArrayRef(file.at(name).shape) != like.sizes())
                fail(path, ": ", name, ": expected shape ", shape_text(like.sizes()), ", got ",
                     shape_text(file.at(name).shape));
            const auto values = file.template values<T>(name);
            const at::Tensor t = at::empty(like.sizes(), like.scalar_type());
            std::copy(values.begin(), values.end(), t.template data_ptr<T>());
            return t;
        };
        std::vector<std::pair<at::Tensor, at::Tensor>> copies; // to, from
        for (const auto& [name, t] : model_->weights()) copies.emplace_back(t, read(float{}, name, t));
        for (const auto& [name, t] : model_->running())
            copies.emplace_back(t,
                                t.scalar_type() == at::kLong ? read(std::int64_t{}, name, t) : read(float{}, name, t));
        std::vector<std::pair<at::Tensor, at::Tensor>> moments;
        for (const auto& p : lamb_.parameters())
            moments.emplace_back(read(float{}, "optimizer.m." + p.name, p.m),
                                 read(float{}, "optimizer.v." + p.name, p.v));
        const auto keys = file.values<half>("memory.keys");
        const auto rows = documents_.view();
        if (!keys.empty() && static_cast<index_t>(keys.size()) != rows.rows * store_.key_dim())
            fail(path, ": memory.keys: expected ", rows.rows, " rows of ", store_.key_dim(), ", got ", keys.size(),
                 " numbers");
        KnowledgeStore fresh(store_.key_dim(), 0, documents_.length);
        if (!keys.empty()) {
            const auto owner = std::make_shared<std::pair<std::vector<half>, DocumentRows>>(keys, documents_);
            fresh.append(MatrixView<const half>(owner->first.data(), rows.rows, store_.key_dim()),
                         MatrixView<const half>(nullptr, rows.rows, 0), owner, {}, owner->second.view());
        }
        const at::NoGradGuard no_grad;
        lamb_.restore(done, moments);
        for (const auto& [to, from] : copies) to.copy_(from);
        store_.swap_base(std::move(fresh));
        done_ = done, refreshed_ = refreshed;
    }

  private:
    static constexpr index_t kAtATime = 1 << 15;

    // What a checkpoint must share with the run that goes on from it.
    std::map<std::string, std::string> identity() const {
        const auto& o = options_;
        return {{"config", plug_lm_json(model_->config()).dump()},
                {"documents", Hash64().add(std::as_bytes(std::span(documents_.tokens))).text()},
                {"schedule", text(o.decay.base, ' ', o.decay.warmup, ' ', o.decay.degree, ' ', o.decay.total, ' ',
                                  o.accumulation, ' ', o.seed, ' ', model_->config().memory.refreshing_steps,
                                  o.mixed_precision ? " mixed precision" : "")},
                {"lamb", text(o.lamb.beta1, ' ', o.lamb.beta2, ' ', o.lamb.epsilon, ' ', o.lamb.weight_decay, ' ',
                              o.lamb.max_norm)}};
    }

    PlugLm model_;
    DocumentRows documents_;
    PlugLmTraining options_;
    Lamb lamb_;
    KnowledgeStore store_;
    index_t done_ = 0, refreshed_ = 0;
};

} // namespace mnemo::nn
