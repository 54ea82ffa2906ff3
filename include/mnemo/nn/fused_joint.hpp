// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/combine/joint_softmax.hpp>
#include <mnemo/kernels/find.hpp>
#include <mnemo/nn/joint.hpp>

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

namespace mnemo::nn {

/// Sizes of the tiles of the fused loss; results do not depend on the number of threads, but on these in the last bits.
struct FusedTiles {
    std::int64_t rows = 256;   // whose logits exist at a time
    std::int64_t piece = 1024; // of columns, the unit of work of a thread
    // Matrix products of values that are rounded to bfloat16, as under automatic mixed precision: more than twice as
    // fast where the machine has such instructions. Scores keep two to three digits; sums over tiles stay float.
    bool bfloat16 = false;
};

namespace detail {

/// Work on tiles: no graph is recorded, matrix products are cut into pieces that do not depend on the threads.
class Tiles {
  public:
    Tiles(const at::Tensor& like, const FusedTiles& sizes)
        : cpu_(like.device().is_cpu()), type_(like.scalar_type() == at::kDouble ? at::kDouble : at::kFloat),
          rounded_(sizes.bfloat16 && type_ == at::kFloat), sizes_(sizes) {
        if (sizes.rows < 1 || sizes.piece < 1) fail("fused loss: expected tiles of at least 1 row and column");
    }

    at::ScalarType type() const { return type_; }
    at::TensorOptions options(const at::Tensor& like) const { return like.options().dtype(type_).requires_grad(false); }
    at::Tensor cast(const at::Tensor& t) const { return t.to(type_); }

    /// f(first, count) for each piece of [0, size). A single piece is cut in two, so that no product runs threads of
    /// its own, whose sums would depend on their number.
    template <class F> void pieces(std::int64_t size, F&& f) const {
        const std::int64_t step = std::min(sizes_.piece, (size + 1) / 2);
        if (size < 1) return;
        if (!cpu_) return f(std::int64_t{0}, size);
        at::parallel_for(0, at_least_two((size + step - 1) / step), 1, [&](std::int64_t begin, std::int64_t end) {
            const at::NoGradGuard no_grad;
            for (std::int64_t i = begin; i < end && i * step < size; ++i) f(i * step, std::min(step, size - i * step));
        });
    }
    /// out [n, m] = a [n, d] b[m, d]^T
    void scores(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b) const {
        if (rounded_) {
            const at::Tensor left = a.to(at::kBFloat16);
            return pieces(b.size(0), [&](std::int64_t first, std::int64_t count) {
                out.narrow(1, first, count).copy_(at::mm(left, b.narrow(0, first, count).to(at::kBFloat16).t()));
            });
        }
        pieces(b.size(0), [&](std::int64_t first, std::int64_t count) {
            at::Tensor part = out.narrow(1, first, count);
            at::mm_out(part, a, cast(b.narrow(0, first, count)).t());
        });
    }
    /// sum [m, d] += g [n, m]^T a [n, d]
    void add_outer(const at::Tensor& sum, const at::Tensor& g, const at::Tensor& a) const {
        if (rounded_) {
            const at::Tensor right = a.to(at::kBFloat16);
            return pieces(g.size(1), [&](std::int64_t first, std::int64_t count) {
                sum.narrow(0, first, count).add_(at::mm(g.narrow(1, first, count).to(at::kBFloat16).t(), right));
            });
        }
        pieces(g.size(1), [&](std::int64_t first, std::int64_t count) {
            at::Tensor part = sum.narrow(0, first, count);
            part.addmm_(g.narrow(1, first, count).t(), a);
        });
    }
    /// sum [n, d] += g [n, m] b [m, d]
    void add_product(const at::Tensor& sum, const at::Tensor& g, const at::Tensor& b) const {
        if (rounded_) { // a block at a time, whose sums are added up in float
            for (std::int64_t i = 0; i < b.size(0); i += sizes_.piece) {
                const std::int64_t n = std::min(sizes_.piece, b.size(0) - i);
                const at::Tensor left = g.narrow(1, i, n).to(at::kBFloat16),
                                 right = b.narrow(0, i, n).to(at::kBFloat16);
                pieces_of_width(b.size(1), [&](std::int64_t first, std::int64_t count) {
                    sum.narrow(1, first, count).add_(at::mm(left, right.narrow(1, first, count)));
                });
            }
        } else if (b.scalar_type() == type_) {
            pieces_of_width(b.size(1), [&](std::int64_t first, std::int64_t count) {
                at::Tensor part = sum.narrow(1, first, count);
                part.addmm_(g, b.narrow(1, first, count));
            });
        } else { // a block at a time, so that no second copy of b exists
            for (std::int64_t i = 0; i < b.size(0); i += sizes_.piece) {
                const std::int64_t n = std::min(sizes_.piece, b.size(0) - i);
                const at::Tensor block = cast(b.narrow(0, i, n));
                pieces_of_width(b.size(1), [&](std::int64_t first, std::int64_t count) {
                    at::Tensor part = sum.narrow(1, first, count);
                    part.addmm_(g.narrow(1, i, n), block.narrow(1, first, count));
                });
            }
        }
    }

  private:
    // One task alone would run outside of a parallel region, where MKL's products use threads of their own.
    static std::int64_t at_least_two(std::int64_t tasks) { return std::max<std::int64_t>(tasks, 2); }
    // Rows of g are packed once for each piece: wide ones.
    template <class F> void pieces_of_width(std::int64_t width, F&& f) const {
        if (!cpu_) return f(std::int64_t{0}, width);
        const std::int64_t step = std::max<std::int64_t>((width + 1) / 2, 1);
        at::parallel_for(0, at_least_two((width + step - 1) / step), 1, [&](std::int64_t begin, std::int64_t end) {
            const at::NoGradGuard no_grad;
            for (std::int64_t i = begin; i < end && i * step < width; ++i)
                f(i * step, std::min(step, width - i * step));
        });
    }

    bool cpu_;
    at::ScalarType type_;
    bool rounded_;
    FusedTiles sizes_;
};

/// One tile: `vocabulary` [n, V] and `memory` [n, m] hold scores, of which the row sees what its ranges say.
struct Tile {
    at::Tensor vocabulary, memory;
    std::vector<VisibleRow> seen; // [n], in columns of `memory`
    at::Tensor labels;            // [m], Int on cpu for the kernel, else Long
    at::Tensor column;            // [n] Long, of the target in `vocabulary`
    at::Tensor targets;           // [n] Long
    at::Tensor bonus;             // [n], added to the target's logit where it counts as the target
    at::Tensor loss;              // [n], out
    at::Tensor sums;              // [4, n], out without gradients: all and target of the vocabulary, of the memory
    at::Tensor inverse;           // [n], out: of the normaliser, by which the gradients in the tile are to be scaled
    at::Tensor bonus_gradient;    // [n], out
    std::int64_t top_k = 0;       // only so many entries of a row take part; 0: all
};

/// The places of the `k` highest of what a row sees, the first of equal ones, in no order.
inline void best_places(const float* s, VisibleRow seen, std::int64_t k, std::vector<std::uint32_t>& places) {
    // A heap whose front is the worst that is kept.
    const auto better = [s](std::uint32_t a, std::uint32_t b) { return s[a] != s[b] ? s[a] > s[b] : a < b; };
    places.clear();
    for (const IdRange range : {seen.left, seen.right})
        for (index_t j = range.first; j < range.last; ++j) {
            const auto place = static_cast<std::uint32_t>(j);
            if (static_cast<std::int64_t>(places.size()) < k) {
                places.push_back(place);
                std::push_heap(places.begin(), places.end(), better);
            } else if (s[j] > s[places.front()]) { // later ones of equal score stay out
                std::pop_heap(places.begin(), places.end(), better);
                places.back() = place;
                std::push_heap(places.begin(), places.end(), better);
            }
        }
}

/// Scores become gradients with respect to them, times the normaliser of the row. One row, floats on the cpu.
inline void tile_row(const Tile& t, std::int64_t row, std::vector<std::uint32_t>& hits, bool gradients) {
    const std::int64_t vocab = t.vocabulary.size(1), width = t.memory.size(1);
    float* const z = t.vocabulary.data_ptr<float>() + row * t.vocabulary.stride(0);
    float* const s = t.memory.data_ptr<float>() + row * t.memory.stride(0);
    const auto* labels = t.labels.data_ptr<std::int32_t>();
    const auto target = static_cast<std::int32_t>(t.targets.data_ptr<std::int64_t>()[row]);
    const std::int64_t column = t.column.data_ptr<std::int64_t>()[row];
    const auto span = [](float* from, std::int64_t n) { return std::span<float>(from, static_cast<std::size_t>(n)); };
    const std::span<float> words = span(z, vocab);
    const double own = double{z[column]} + double{t.bonus.data_ptr<float>()[row]};
    auto [left, right] = t.seen[static_cast<std::size_t>(row)];
    static thread_local std::vector<std::uint32_t> places; // of the best, in the row
    if (t.top_k > 0) {
        // The best are brought to the row's beginning, and to their places afterwards.
        static thread_local std::vector<float> best;
        static thread_local std::vector<std::int32_t> best_labels;
        best_places(s, {left, right}, t.top_k, places);
        best.clear(), best_labels.clear();
        for (const std::uint32_t place : places) best.push_back(s[place]), best_labels.push_back(labels[place]);
        std::copy(best.begin(), best.end(), s);
        labels = best_labels.data();
        left = {0, static_cast<index_t>(best.size())}, right = {left.last, left.last};
    }
    const std::span<float> parts[] = {span(s + left.first, left.size()), span(s + right.first, right.size())};
    hits.clear();
    for (const IdRange range : {left, right})
        find_equal({labels + range.first, static_cast<std::size_t>(range.size())}, target,
                   static_cast<std::uint32_t>(range.first), hits);
    if (!gradients) {
        TargetSums memory, all;
        all.all.add(words), all.target.add(static_cast<float>(own));
        float* const out = t.sums.data_ptr<float>() + row;
        const auto put = [&](std::int64_t i, double value) { out[i * t.sums.stride(0)] = static_cast<float>(value); };
        put(0, all.all.value()), put(1, own);
        for (const std::span<float> part : parts) memory.all.add(part);
        for (const std::uint32_t j : hits) memory.target.add(s[j]);
        put(2, memory.all.value()), put(3, memory.target.value());
        all.add(memory);
        t.loss.data_ptr<float>()[row] = static_cast<float>(-all.log_p());
        return;
    }
    float highest = max_value(words);
    LogSumExp same;
    same.add(static_cast<float>(own));
    for (const std::span<float> part : parts) highest = std::max(highest, max_value(part));
    for (const std::uint32_t j : hits) same.add(s[j]);
    const double log_target = same.value();

    // What is taken from the targets' entries, kept until the sum is known.
    static thread_local std::vector<float> shares;
    shares.clear();
    for (const std::uint32_t j : hits) shares.push_back(static_cast<float>(std::exp(double{s[j]} - log_target)));
    double sum = exp_sum(words, highest, 1, words);
    for (const std::span<float> part : parts)
        if (!part.empty()) sum += exp_sum(part, highest, 1, part);
    t.loss.data_ptr<float>()[row] = static_cast<float>(double{highest} + std::log(sum) - log_target);

    const double own_share = std::exp(own - log_target);
    z[column] -= static_cast<float>(sum * own_share);
    for (std::size_t j = 0; j < hits.size(); ++j) s[hits[j]] -= static_cast<float>(sum * double{shares[j]});
    std::fill(s, s + left.first, 0.0f);
    std::fill(s + left.last, s + right.first, 0.0f);
    std::fill(s + right.last, s + width, 0.0f);
    if (t.top_k > 0) {
        shares.assign(s, s + left.last);
        std::fill(s, s + left.last, 0.0f);
        for (std::size_t j = 0; j < places.size(); ++j) s[places[j]] = shares[j];
    }
    t.inverse.data_ptr<float>()[row] = static_cast<float>(1 / sum);
    t.bonus_gradient.data_ptr<float>()[row] = static_cast<float>(-own_share);
}

/// The same for all rows by tensor operations: other devices and types.
inline void tile_by_tensors(Tile& t, bool gradients) {
    const double nothing = -std::numeric_limits<double>::infinity();
    at::Tensor mask = t.memory.size(1) > 0 ? visible_mask(Visibility(t.seen, t.memory.size(1)), t.memory.device())
                                           : at::empty(t.memory.sizes(), t.memory.options().dtype(at::kBool));
    if (t.top_k > 0 && t.top_k < t.memory.size(1)) {
        const at::Tensor best = std::get<1>(at::topk(t.memory.masked_fill(mask.logical_not(), nothing), t.top_k, 1));
        mask = mask.logical_and(at::zeros_like(mask).scatter(1, best, true));
    }
    const at::Tensor same = t.labels.unsqueeze(0).eq(t.targets.unsqueeze(1)).logical_and(mask);
    const at::Tensor memory = t.memory.masked_fill(mask.logical_not(), nothing);
    const at::Tensor own = t.vocabulary.gather(1, t.column.unsqueeze(1)).squeeze(1) + t.bonus;
    const at::Tensor all = at::logsumexp(at::cat({t.vocabulary, memory}, 1), 1);
    const at::Tensor target =
        at::logsumexp(at::cat({own.unsqueeze(1), t.memory.masked_fill(same.logical_not(), nothing)}, 1), 1);
    t.loss.copy_(all - target);
    if (!gradients) {
        const bool some = memory.size(1) > 0;
        const at::Tensor empty = at::full_like(all, nothing);
        t.sums[0].copy_(at::logsumexp(t.vocabulary, 1));
        t.sums[1].copy_(own);
        t.sums[2].copy_(some ? at::logsumexp(memory, 1) : empty);
        t.sums[3].copy_(some ? at::logsumexp(memory.masked_fill(same.logical_not(), nothing), 1) : empty);
        return;
    }
    const at::Tensor own_share = at::exp(own - target);
    t.vocabulary.copy_(at::exp(t.vocabulary - all.unsqueeze(1)));
    t.vocabulary.scatter_add_(1, t.column.unsqueeze(1), -own_share.unsqueeze(1));
    t.memory.copy_(at::exp(memory - all.unsqueeze(1)) -
                   at::exp(t.memory - target.unsqueeze(1)).masked_fill(same.logical_not(), 0));
    t.inverse.fill_(1);
    t.bonus_gradient.copy_(-own_share);
}

/// d_queries += g keys and d_keys += g^T queries for a g [n, m] that is zero almost everywhere.
inline void add_few(const at::Tensor& g, const at::Tensor& keys, const at::Tensor& queries, const at::Tensor& d_queries,
                    const at::Tensor& d_keys) {
    const std::int64_t d = keys.size(1);
    const auto add = [d](const at::Tensor& to, std::int64_t i, float by, const at::Tensor& from, std::int64_t j) {
        float* const out = to.data_ptr<float>() + i * to.stride(0);
        const float* const in = from.data_ptr<float>() + j * from.stride(0);
        for (std::int64_t c = 0; c < d; ++c) out[c] += by * in[c];
    };
    for (std::int64_t i = 0; i < g.size(0); ++i) {
        const float* const row = g.data_ptr<float>() + i * g.stride(0);
        for (std::int64_t j = 0; j < g.size(1); ++j) {
            if (row[j] == 0) continue;
            add(d_queries, i, row[j], keys, j);
            if (d_keys.defined()) add(d_keys, j, row[j], queries, i);
        }
    }
}

/// What goes into the fused function beside tensors with gradients.
struct FusedContext {
    std::vector<at::Tensor> keys_before, labels_before, keys_after, labels_after;
    at::Tensor targets, column;
    Visibility visible;
    double scale = 1;
    std::int64_t top_k = 0;
    FusedTiles tiles;
    bool gradients = false;
    at::Tensor token_loss, sums; // out
};

/// sum of loss over rows, with gradients made on the way: the loss is a sum, so they only wait for a factor.
struct FusedJoint : torch::autograd::Function<FusedJoint> {
    static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& features_in,
                              const at::Tensor& words_in, const at::Tensor& classes_in, const at::Tensor& bonus_in,
                              const at::Tensor& keys_in, const at::Tensor& others_in, FusedContext* context) {
        const at::Tensor features = features_in.detach(), words = words_in.detach(), classes = classes_in.detach(),
                         keys = keys_in.detach();
        const Tiles tiles(features, context->tiles);
        const bool fast = features.device().is_cpu() && tiles.type() == at::kFloat;
        const at::TensorOptions options = tiles.options(features);
        const at::Tensor bonus = bonus_in.detach().to(options);
        const std::int64_t rows = features.size(0), c0 = words.size(0), vocab = c0 + classes.size(0);
        const bool gradients = context->gradients;

        // Entries: those before, the batch's, those after.
        std::vector<at::Tensor> blocks, labels;
        std::size_t own = 0;
        const auto others = [&](const std::vector<at::Tensor>& k, const std::vector<at::Tensor>& l) {
            for (std::size_t i = 0; i < k.size(); ++i) blocks.push_back(k[i].detach()), labels.push_back(l[i]);
        };
        others(context->keys_before, context->labels_before);
        own = blocks.size();
        blocks.push_back(keys), labels.push_back(context->targets);
        others(context->keys_after, context->labels_after);
        const at::Tensor all_labels = at::cat(labels).to(fast ? at::kInt : at::kLong);

        const auto zeros = [&](const at::Tensor& input) {
            return gradients && input.requires_grad() ? at::zeros(input.sizes(), options) : at::Tensor();
        };
        const at::Tensor d_features = zeros(features_in), d_words = zeros(words_in), d_classes = zeros(classes_in),
                         d_bonus = zeros(bonus_in), d_keys = zeros(keys_in), d_others = zeros(others_in);
        std::vector<at::Tensor> d_blocks(blocks.size()); // where a block's keys have gradients
        d_blocks[own] = d_keys;
        for (std::size_t b = 0, offset = 0; d_others.defined() && b < blocks.size(); ++b) {
            if (b == own) continue;
            d_blocks[b] = d_others.narrow(0, static_cast<std::int64_t>(offset), blocks[b].size(0));
            offset += static_cast<std::size_t>(blocks[b].size(0));
        }
        const at::Tensor loss = at::empty({rows}, options), sums = at::empty({4, gradients ? 0 : rows}, options);
        const std::int64_t step = std::min(context->tiles.rows, std::max<std::int64_t>(rows, 1));
        const at::Tensor buffer = at::empty({step, vocab}, options);
        at::Tensor memory_buffer = at::empty({0}, options);

        for (std::int64_t first = 0; first < rows; first += step) {
            const std::int64_t n = std::min(step, rows - first);
            const at::Tensor x = tiles.cast(features.narrow(0, first, n));
            Tile tile;
            tile.vocabulary = buffer.narrow(0, 0, n);
            tiles.scores(tile.vocabulary.narrow(1, 0, c0), x, words);
            if (vocab > c0) tiles.scores(tile.vocabulary.narrow(1, c0, vocab - c0), x, classes);

            // The memory's columns: what any row of the tile sees, and nothing else is computed.
            struct Part {
                std::size_t block;
                std::int64_t first, count, column; // in the block, in the tile
            };
            std::vector<Part> parts;
            std::vector<at::Tensor> part_labels;
            std::int64_t width = 0;
            VisibleRow hull;
            at::Tensor q;
            if (keys.numel() > 0) {
                q = tiles.cast(keys.narrow(0, first, n)) * context->scale;
                hull = context->visible.hull(first, first + n);
                for (const IdRange range : {hull.left, hull.right}) {
                    index_t begin = 0;
                    for (std::size_t b = 0; b < blocks.size(); ++b) {
                        const IdRange in_block = range.within({begin, begin + blocks[b].size(0)});
                        if (in_block.size() > 0) {
                            parts.push_back({b, in_block.first - begin, in_block.size(), width});
                            width += in_block.size();
                        }
                        begin += blocks[b].size(0);
                    }
                    if (range.size() > 0) part_labels.push_back(all_labels.narrow(0, range.first, range.size()));
                }
            }
            if (memory_buffer.numel() < n * width) memory_buffer = at::empty({n * width}, options);
            tile.memory = memory_buffer.narrow(0, 0, n * width).view({n, width});
            for (const Part& part : parts)
                tiles.scores(tile.memory.narrow(1, part.column, part.count), q,
                             blocks[part.block].narrow(0, part.first, part.count));
            tile.labels = part_labels.empty() ? all_labels.narrow(0, 0, 0) : at::cat(part_labels);
            for (std::int64_t i = first; i < first + n; ++i) {
                VisibleRow seen = keys.numel() > 0 ? context->visible[i] : VisibleRow{};
                // A row's range lies within one of the hull's, whose gap is left out; both of its ranges may.
                const auto moved = [&](IdRange range) -> IdRange {
                    if (range.size() == 0) return {0, 0};
                    const index_t by =
                        hull.left.last > range.first ? hull.left.first : hull.right.first - hull.left.size();
                    return {range.first - by, range.last - by};
                };
                seen = {moved(seen.left), moved(seen.right)};
                if (seen.right.size() == 0) seen.right = {seen.left.last, seen.left.last};
                if (seen.left.size() == 0) seen.left = {seen.right.first, seen.right.first};
                tile.seen.push_back(seen);
            }
            tile.column = context->column.narrow(0, first, n);
            tile.targets = context->targets.narrow(0, first, n);
            tile.bonus = bonus.narrow(0, first, n);
            tile.loss = loss.narrow(0, first, n);
            if (!gradients) tile.sums = sums.narrow(1, first, n);
            tile.inverse = at::empty({n}, options);
            tile.bonus_gradient = at::empty({n}, options);
            tile.top_k = context->top_k;
            if (fast) {
                at::parallel_for(0, n, 8, [&](std::int64_t begin, std::int64_t end) {
                    std::vector<std::uint32_t> hits;
                    for (std::int64_t i = begin; i < end; ++i) tile_row(tile, i, hits, gradients);
                });
            } else {
                tile_by_tensors(tile, gradients);
            }
            if (!gradients) continue;

            const at::Tensor factor = tile.inverse.unsqueeze(1);
            if (d_bonus.defined()) d_bonus.narrow(0, first, n).copy_(tile.bonus_gradient);
            if (d_features.defined()) {
                const at::Tensor d = d_features.narrow(0, first, n);
                tiles.add_product(d, tile.vocabulary.narrow(1, 0, c0), words);
                if (vocab > c0) tiles.add_product(d, tile.vocabulary.narrow(1, c0, vocab - c0), classes);
                d.mul_(factor);
            }
            const at::Tensor scaled = x * factor;
            if (d_words.defined()) tiles.add_outer(d_words, tile.vocabulary.narrow(1, 0, c0), scaled);
            if (d_classes.defined() && vocab > c0)
                tiles.add_outer(d_classes, tile.vocabulary.narrow(1, c0, vocab - c0), scaled);
            if (!d_keys.defined() || parts.empty()) continue;
            const at::Tensor d_queries = at::zeros_like(q);
            const at::Tensor scaled_queries = q * factor;
            for (const Part& part : parts) {
                const at::Tensor block = blocks[part.block].narrow(0, part.first, part.count);
                const at::Tensor& d_all = d_blocks[part.block];
                const at::Tensor d_block = d_all.defined() ? d_all.narrow(0, part.first, part.count) : d_all;
                if (fast && context->top_k > 0 && block.scalar_type() == at::kFloat && block.stride(1) == 1) {
                    add_few(tile.memory.narrow(1, part.column, part.count), block, scaled_queries, d_queries, d_block);
                    continue;
                }
                const at::Tensor g = tile.memory.narrow(1, part.column, part.count);
                tiles.add_product(d_queries, g, block);
                if (d_block.defined()) tiles.add_outer(d_block, g, scaled_queries);
            }
            d_keys.narrow(0, first, n).add_(d_queries.mul_(factor), context->scale);
        }
        context->token_loss = loss, context->sums = sums;
        const std::pair<const at::Tensor&, const at::Tensor&> results[] = {
            {d_features, features_in}, {d_words, words_in}, {d_classes, classes_in},
            {d_bonus, bonus_in},       {d_keys, keys_in},   {d_others, others_in}};
        int i = 0;
        for (const auto& [gradient, input] : results)
            ctx->saved_data["gradient" + std::to_string(i++)] =
                gradient.defined() ? gradient.to(input.scalar_type()) : at::Tensor();
        return loss.sum(at::kDouble).to(tiles.type());
    }

    static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                   torch::autograd::variable_list upstream) {
        // The buffers are handed out, not copied: a second run has none.
        torch::autograd::variable_list out(7);
        for (int i = 0; i < 6; ++i) {
            auto& saved = ctx->saved_data["gradient" + std::to_string(i)];
            if (saved.isNone())
                fail("fused loss: gradients are made once: a second backward pass (retain_graph) needs the plain loss");
            at::Tensor gradient = saved.toTensor();
            saved = c10::IValue();
            if (!gradient.defined()) continue;
            // A host sees the factor; elsewhere looking at it would wait for the device.
            if (!gradient.device().is_cpu() || upstream[0].item<double>() != 1) gradient.mul_(upstream[0]);
            out[static_cast<std::size_t>(i)] = gradient;
        }
        return out;
    }
};

/// log p(target) within a band for rows whose target it holds. Logits exist for a tile of rows; the backward pass
/// computes them again.
struct BandLogProb : torch::autograd::Function<BandLogProb> {
    static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const at::Tensor& projection,
                              const at::Tensor& embedding, const at::Tensor& within, std::int64_t step) {
        const Tiles tiles(x, {});
        const at::Tensor norm = at::empty({x.size(0)}, tiles.options(x)), out = at::empty_like(norm);
        for (std::int64_t i = 0; i < x.size(0); i += step) {
            const std::int64_t n = std::min(step, x.size(0) - i);
            const at::Tensor logits =
                logits_of(tiles, x.detach().narrow(0, i, n), projection.detach(), embedding.detach());
            norm.narrow(0, i, n).copy_(at::logsumexp(logits, 1));
            out.narrow(0, i, n).copy_(logits.gather(1, within.narrow(0, i, n).unsqueeze(1)).squeeze(1));
        }
        ctx->save_for_backward({x, projection, embedding, within, norm});
        ctx->saved_data["step"] = step;
        return out - norm;
    }
    static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                   torch::autograd::variable_list upstream) {
        const auto saved = ctx->get_saved_variables();
        const at::Tensor x = saved[0].detach(), projection = saved[1].detach(), embedding = saved[2].detach();
        const Tiles tiles(x, {});
        const std::int64_t step = ctx->saved_data["step"].toInt();
        const at::TensorOptions options = tiles.options(x);
        const at::Tensor dx = at::zeros(x.sizes(), options), dp = at::zeros(projection.sizes(), options),
                         de = at::zeros(embedding.sizes(), options);
        for (std::int64_t i = 0; i < x.size(0); i += step) {
            const std::int64_t n = std::min(step, x.size(0) - i);
            const at::Tensor rows = tiles.cast(x.narrow(0, i, n));
            const at::Tensor narrow = narrow_of(tiles, rows, projection);
            at::Tensor g = at::empty({n, embedding.size(0)}, options);
            tiles.scores(g, narrow, embedding);
            g.sub_(saved[4].narrow(0, i, n).unsqueeze(1)).exp_().neg_();
            const at::Tensor at_target = saved[3].narrow(0, i, n).unsqueeze(1);
            g.scatter_add_(1, at_target, at::ones({n, 1}, options));
            g.mul_(upstream[0].narrow(0, i, n).unsqueeze(1));
            tiles.add_outer(de, g, narrow);
            const at::Tensor d_narrow = at::zeros_like(narrow);
            tiles.add_product(d_narrow, g, embedding);
            tiles.add_outer(dp, d_narrow, rows);
            tiles.add_product(dx.narrow(0, i, n), d_narrow, projection);
        }
        return {dx.to(x.scalar_type()), dp.to(projection.scalar_type()), de.to(embedding.scalar_type()), at::Tensor(),
                at::Tensor()};
    }

  private:
    static at::Tensor narrow_of(const Tiles& tiles, const at::Tensor& x, const at::Tensor& projection) {
        at::Tensor narrow = at::empty({x.size(0), projection.size(0)}, tiles.options(x));
        tiles.scores(narrow, x, projection);
        return narrow;
    }
    static at::Tensor logits_of(const Tiles& tiles, const at::Tensor& x, const at::Tensor& projection,
                                const at::Tensor& embedding) {
        const at::Tensor narrow = narrow_of(tiles, tiles.cast(x), projection);
        at::Tensor logits = at::empty({x.size(0), embedding.size(0)}, tiles.options(x));
        tiles.scores(logits, narrow, embedding);
        return logits;
    }
};

/// Prepares a batch for the fused function and calls it; returns the sum of the losses.
inline at::Tensor fused_joint(const JointInputs& in, const FusedTiles& sizes, FusedContext& context) {
    in.check();
    if (in.logits.defined() || in.scoring.metric != Metric::inner_product || in.parity.free_target)
        fail("fused loss: expected features and an output layer, inner products, and no free target");
    context.keys_before = in.keys_before, context.labels_before = in.labels_before;
    context.keys_after = in.keys_after, context.labels_after = in.labels_after;
    context.targets = in.targets.contiguous();
    context.visible = in.visible;
    context.scale = in.scoring.scale;
    context.top_k = in.scoring.top_k;
    context.tiles = sizes;
    context.gradients = at::GradMode::is_enabled();

    // Within its band a target has a log-probability of its own, which is added to the logit of the band's class.
    at::Tensor column = in.targets;
    at::Tensor bonus = at::zeros(
        {in.rows()}, in.features.options().dtype(in.features.scalar_type() == at::kDouble ? at::kDouble : at::kFloat));
    std::int64_t first = in.output.words.size(0);
    for (std::size_t i = 0; i < in.output.bands.size(); ++i) {
        const auto& [projection, embedding] = in.output.bands[i];
        const std::int64_t size = embedding.size(0);
        const at::Tensor inside = in.targets.ge(first).logical_and(in.targets.lt(first + size));
        column = column.masked_fill(inside, in.output.words.size(0) + static_cast<std::int64_t>(i));
        const at::Tensor rows = at::nonzero(inside).view(-1);
        if (rows.size(0) > 0) {
            const at::Tensor within = in.targets.index_select(0, rows) - first;
            at::Tensor log_p =
                BandLogProb::apply(in.features.index_select(0, rows), projection, embedding, within, sizes.rows);
            if (in.parity.free_in_band) log_p = log_p.masked_fill(within.eq(*in.parity.free_in_band), 0.0);
            bonus = bonus.index_add(0, rows, log_p);
        }
        first += size;
    }
    context.column = column.contiguous();
    const at::Tensor classes =
        in.output.bands.empty() ? in.features.new_empty({0, in.features.size(1)}) : in.output.classes;
    const at::Tensor keys = in.keys.defined() ? in.keys : in.features.new_empty({0, 1});
    at::Tensor others; // where they have gradients
    if (in.others_learn) {
        std::vector<at::Tensor> all = in.keys_before;
        all.insert(all.end(), in.keys_after.begin(), in.keys_after.end());
        if (!all.empty()) others = at::cat(all);
    }
    if (!others.defined()) others = keys.new_empty({0, keys.size(1)});
    return FusedJoint::apply(in.features, in.output.words, classes, bonus, keys, others, &context);
}

} // namespace detail

/// The joint loss without a [rows, vocabulary + memory] matrix: a tile of rows at a time gets its scores, its
/// normaliser and at once its gradients, which stay; tiles of the memory that no row sees are never computed. Equal to
/// joint_terms up to rounding, the same bits for any number of threads (with MKL up to rounding). float, bfloat16 and
/// half inputs, sums and scores in float; double in double. Inner products. The gradient can be taken once.
struct FusedLoss {
    at::Tensor loss;       // scalar, the sum over rows
    at::Tensor token_loss; // [rows], detached
};
inline FusedLoss fused_joint_loss(const JointInputs& in, const FusedTiles& sizes = {}) {
    detail::FusedContext context;
    const at::Tensor loss = detail::fused_joint(in, sizes, context);
    return {loss, context.token_loss};
}

/// The sums behind it, for scoring: of the vocabulary and of the memory, detached. Other sources may be added to them.
struct FusedSums {
    Sums vocabulary, memory;
    at::Tensor token_loss; // [rows], of both
};
inline FusedSums fused_joint_sums(const JointInputs& in, const FusedTiles& sizes = {}) {
    const at::NoGradGuard no_grad;
    detail::FusedContext context;
    detail::fused_joint(in, sizes, context);
    const at::Tensor& sums = context.sums;
    return {{sums[0], sums[1]}, {sums[2], sums[3]}, context.token_loss};
}

} // namespace mnemo::nn
