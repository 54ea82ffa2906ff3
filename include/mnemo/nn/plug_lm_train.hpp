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
#include <cstring>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace mnemo::nn {

struct PlugLmTraining {
    PolynomialDecay decay; // its total is the number of steps
    LambOptions lamb;
    index_t accumulation = 1;     // batches whose gradients make one step
    index_t piece = 1 << 15;      // documents that are encoded together, on which the last bits of their keys depend
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

/// Where a training runs: in this process. OverRanks (dist/plug_lm_train.hpp) is the same for several.
struct OneProcess {
    /// What batches read, made of the entries of each process.
    using Base = KnowledgeSnapshot;
    std::shared_ptr<const Base> joined(std::shared_ptr<const KnowledgeSnapshot> own, index_t /*length*/) const {
        return own;
    }
    index_t rank() const { return 0; }
    index_t size() const { return 1; }
    /// rows [n, ...] of each process; and of all for the first one, nothing for others.
    std::vector<at::Tensor> gather(const at::Tensor& rows) const { return {rows}; }
    at::Tensor collect(const at::Tensor& rows) const { return rows; }
    /// What fails in one process fails in all.
    void together(auto&& work) const { work(); }
    /// The gradients that `work` makes, of all processes added up.
    void add_up(const NamedWeights& /*weights*/, auto&& work) const { work(); }
};

/// Pre-training: the keys of all documents are encoded anew before the first step and every `refreshing_steps`; between
/// two refreshes entries are found by the keys of the last one and read as the model encodes them now, with gradient.
/// A run that was saved and resumed gives the same model, bit for bit, as one that was not interrupted.
///
/// Of several processes each has documents of its own, those of process 0 come first, and computes every size()-th
/// batch of a step. What a checkpoint says does not depend on how many there are.
template <class World> class BasicPlugLmTrainer {
  public:
    BasicPlugLmTrainer(PlugLm model, DocumentRows documents, PlugLmTraining options, World world = {})
        : world_(std::move(world)), model_(std::move(model)), documents_(std::move(documents)), options_(options),
          lamb_(model_->weights(), options.lamb), store_(model_->config().memory.query_size, 0, documents_.length) {
        if (options.accumulation < 1 || options.piece < 1)
            fail("pre-training: expected an accumulation and pieces of at least 1, got ", options.accumulation, " and ",
                 options.piece);
        if (model_->config().memory.memory_layers > 0 && !model_->reencodes())
            fail("pre-training: expected a model that encodes its entries, got one of fixed keys and values");
    }

    /// One update from `accumulation` batches, each `batches(n)` -> MaskedTensors for n counted from 0 over the whole
    /// run. Returns their mean loss (nats a masked token). All steps done, or a loss that is not finite, is an Error.
    template <class Batches, class RetrieverT> double step(const Batches& batches, const RetrieverT& retriever) {
        if (done_ >= options_.decay.total) fail("pre-training: all ", options_.decay.total, " steps are done");
        if (done_ % model_->config().memory.refreshing_steps == 0) refresh();
        const at::AutoGradMode with_gradients(true);
        model_->train();
        for (auto& layer : model_->memory_layers()) layer->tracks = world_.size() == 1;
        for (const auto& [name, p] : model_->weights()) p.mutable_grad() = at::Tensor();
        const index_t world = world_.size(), rank = world_.rank();
        std::vector<double> losses;     // of this process's batches
        std::vector<at::Tensor> pooled; // of each round of all
        world_.add_up(model_->weights(), [&] {
            for (index_t i = rank; i - rank < options_.accumulation; i += world) {
                at::Tensor& queries = pooled.emplace_back(no_queries());
                if (i < options_.accumulation)
                    losses.push_back(backward(batches, done_ * options_.accumulation + i, retriever, queries));
                else
                    sit_out(retriever);
                if (!losses.empty() && !std::isfinite(losses.back())) fail_at_step();
            }
        });
        const double loss = sum_in_order(losses);
        if (!std::isfinite(lamb_.step(options_.decay.at(done_)))) fail_at_step();
        if (world > 1)
            for (const at::Tensor& round : pooled) track(round);
        ++done_;
        return loss;
    }

    /// Encodes the keys of all documents with the weights as they are; the model's mode stays. Readers of store() that
    /// hold a snapshot keep theirs.
    void refresh() {
        KnowledgeStore fresh(store_.key_dim(), 0, documents_.length);
        world_.together([&] {
            const auto rows = documents_.view();
            for (index_t first = 0; first < rows.rows; first += options_.piece) {
                const auto part = rows.slice(first, std::min(options_.piece, rows.rows - first));
                const at::Tensor keys = model_->encoder()->refresh(document_ids(part)).key.contiguous();
                fresh.append(as_rows(keys), Rows(nullptr, part.rows, 0), {}, part);
            }
        });
        take(std::move(fresh));
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
    /// This process's entries, and those of all.
    const KnowledgeStore& store() const { return store_; }
    const std::shared_ptr<const typename World::Base>& base() const { return base_; }

    /// Writes model, optimizer, stored keys and position to one file, at once. As model.safetensors beside a
    /// config.json it is a folder that plug_lm_from_folder reads. Of several processes the first one writes, which
    /// holds the keys of all for a moment.
    void save(const std::string& path) const {
        const auto snapshot = store_.snapshot();
        const at::Tensor own = at::empty({snapshot->size(), store_.key_dim() * index_t{sizeof(half)}}, at::kByte);
        auto* to = own.data_ptr<std::uint8_t>();
        for (index_t row = 0; row < snapshot->size(); ++row, to += own.size(1))
            std::memcpy(to, snapshot->key(row).data(), static_cast<std::size_t>(own.size(1)));
        const at::Tensor keys = world_.collect(own);
        auto about = identity();
        about["done"] = text(done_), about["refreshed"] = text(refreshed_);
        world_.together([&] {
            if (world_.rank() == 0) write(path, keys, about);
        });
    }

    /// Goes on where `save` was, by as many processes as wanted. Throws Error if the file is damaged or from another
    /// model, other documents or other options; then nothing has changed.
    void resume(const std::string& path) {
        index_t done = 0, refreshed = 0;
        std::vector<std::pair<at::Tensor, at::Tensor>> copies, moments; // to and from; of the optimizer
        KnowledgeStore fresh(store_.key_dim(), 0, documents_.length);
        const auto expected = identity();
        const auto of_all = place();
        const index_t first = of_all.first, all = of_all.second; // clang captures no structured binding
        world_.together([&] {
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
            done = number("done"), refreshed = number("refreshed");
            for (const auto& [field, value] : expected)
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
            for (const auto& [name, t] : model_->weights()) copies.emplace_back(t, read(float{}, name, t));
            for (const auto& [name, t] : model_->running())
                copies.emplace_back(t, t.scalar_type() == at::kLong ? read(std::int64_t{}, name, t)
                                                                    : read(float{}, name, t));
            for (const auto& p : lamb_.parameters())
                moments.emplace_back(read(float{}, "optimizer.m." + p.name, p.m),
                                     read(float{}, "optimizer.v." + p.name, p.v));
            const Entry& keys = file.at("memory.keys");
            const std::vector<index_t> shape{all, store_.key_dim()};
            const bool none = !keys.shape.empty() && keys.shape[0] == 0;
            if (keys.dtype != safetensors_dtype<half>() || (keys.shape != shape && !none))
                fail(path, ": memory.keys: expected ", safetensors_dtype<half>(), " ", shape_text(shape), ", got ",
                     keys.dtype, " ", shape_text(keys.shape));
            if (none) return;
            const auto rows = documents_.view();
            const auto owner = std::make_shared<std::pair<std::vector<half>, DocumentRows>>(
                std::vector<half>(static_cast<std::size_t>(rows.rows * store_.key_dim())), documents_);
            const std::size_t width = static_cast<std::size_t>(store_.key_dim()) * sizeof(half);
            if (rows.rows > 0)
                std::memcpy(owner->first.data(), keys.bytes.data() + static_cast<std::size_t>(first) * width,
                            static_cast<std::size_t>(rows.rows) * width);
            fresh.append(MatrixView<const half>(owner->first.data(), rows.rows, store_.key_dim()),
                         MatrixView<const half>(nullptr, rows.rows, 0), owner, {}, owner->second.view());
        });
        const at::NoGradGuard no_grad;
        lamb_.restore(done, moments);
        for (const auto& [to, from] : copies) to.copy_(from);
        take(std::move(fresh));
        done_ = done, refreshed_ = refreshed;
    }

  private:
    [[noreturn]] void fail_at_step() const {
        fail("pre-training, step ", done_, ": loss or gradient is not finite; lower the learning rate");
    }
    // The gradients of batch n of the run; returns its part of the loss.
    template <class Batches, class RetrieverT>
    double backward(const Batches& batches, index_t n, const RetrieverT& retriever, at::Tensor& pooled) {
        // So that neither resuming nor the number of processes needs a generator's state.
        at::manual_seed(options_.seed + static_cast<std::uint64_t>(n));
        const MaskedTensors batch = batches(n);
        std::vector<at::Tensor> queries;
        const at::Tensor part = [&] {
            const Autocast autocast(options_.mixed_precision);
            const auto out = model_->forward(batch.tokens, batch.info, *base_, retriever);
            for (const auto& layer : out.layers) queries.push_back(layer.pooled.detach());
            return model_->mlm_loss(out.prehead, batch.labels) / static_cast<double>(options_.accumulation);
        }();
        const double loss = part.template item<double>();
        part.backward();
        if (!queries.empty()) pooled = at::stack(queries, 1);
        return loss;
    }
    // Others retrieve, for which they need everybody.
    template <class RetrieverT> void sit_out(const RetrieverT& retriever) const {
        for (index_t i = 0; i < model_->config().memory.memory_layers; ++i)
            retriever.retrieve(*base_, Rows(nullptr, 0, store_.key_dim()));
    }
    // [0, layers, q].
    at::Tensor no_queries() const { return at::empty({0, model_->config().memory.memory_layers, store_.key_dim()}); }
    // What each process has pooled of its batch moves the running numbers of all.
    void track(const at::Tensor& own) {
        for (const at::Tensor& theirs : world_.gather(own.to(at::kFloat)))
            for (index_t i = 0; i < theirs.size(1) && theirs.size(0) > 0; ++i)
                model_->memory_layers()[static_cast<std::size_t>(i)]->track(theirs.select(1, i).contiguous());
    }
    // Batch i is the i / size()-th of process i mod size().
    double sum_in_order(const std::vector<double>& losses) const {
        const auto all = world_.gather(at::tensor(losses, at::kDouble));
        double loss = 0;
        for (index_t i = 0; i < options_.accumulation; ++i)
            loss += all[static_cast<std::size_t>(i % world_.size())][i / world_.size()].template item<double>();
        return loss;
    }
    void take(KnowledgeStore&& fresh) {
        store_.swap_base(std::move(fresh));
        base_ = world_.joined(store_.snapshot(), documents_.length);
    }
    // The first of this process's documents among all, and how many all are.
    std::pair<index_t, index_t> place() const {
        const auto counts = world_.gather(at::full({1}, documents_.rows(), at::kLong));
        index_t first = 0, all = 0;
        for (std::size_t r = 0; r < counts.size(); ++r) {
            if (static_cast<index_t>(r) == world_.rank()) first = all;
            all += counts[r].template item<std::int64_t>();
        }
        return {first, all};
    }
    // Of all documents in their order, however they are spread.
    std::string documents_hash() const {
        index_t place = this->place().first;
        std::uint64_t sum = 0;
        const auto rows = documents_.view();
        for (index_t i = 0; i < rows.rows; ++i, ++place)
            sum += Hash64().add(std::as_bytes(std::span(&place, 1))).add(std::as_bytes(rows[i])).value();
        std::uint64_t all = 0;
        for (const at::Tensor& part : world_.gather(at::full({1}, static_cast<std::int64_t>(sum), at::kLong)))
            all += static_cast<std::uint64_t>(part.template item<std::int64_t>());
        return Hash64().add(std::as_bytes(std::span(&all, 1))).text();
    }
    void write(const std::string& path, const at::Tensor& keys, const std::map<std::string, std::string>& about) const {
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
        entries.push_back({"memory.keys",
                           std::string(safetensors_dtype<half>()),
                           {keys.size(0), store_.key_dim()},
                           std::as_bytes(std::span(keys.data_ptr<std::uint8_t>(), keys.nbytes()))});
        write_safetensors(path, entries, about);
    }

    // What a checkpoint must share with the run that goes on from it.
    std::map<std::string, std::string> identity() const {
        const auto& o = options_;
        return {{"config", plug_lm_json(model_->config()).dump()},
                {"documents", documents_hash()},
                {"schedule", text(o.decay.base, ' ', o.decay.warmup, ' ', o.decay.degree, ' ', o.decay.total, ' ',
                                  o.accumulation, ' ', o.seed, ' ', model_->config().memory.refreshing_steps, ' ',
                                  o.piece, o.mixed_precision ? " mixed precision" : "")},
                {"lamb", text(o.lamb.beta1, ' ', o.lamb.beta2, ' ', o.lamb.epsilon, ' ', o.lamb.weight_decay, ' ',
                              o.lamb.max_norm)}};
    }

    World world_;
    PlugLm model_;
    DocumentRows documents_; // of this process
    PlugLmTraining options_;
    Lamb lamb_;
    KnowledgeStore store_; // of this process
    std::shared_ptr<const typename World::Base> base_;
    index_t done_ = 0, refreshed_ = 0;
};
using PlugLmTrainer = BasicPlugLmTrainer<OneProcess>;

} // namespace mnemo::nn
