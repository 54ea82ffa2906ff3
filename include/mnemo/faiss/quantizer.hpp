// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/faiss/index.hpp>
#include <mnemo/kernels/product_quantizer.hpp>

#include <faiss/IndexPQ.h>
#include <faiss/VectorTransform.h>

namespace mnemo {

namespace detail {
inline ProductQuantizer quantizer_of(const ::faiss::Index& index, const std::string& where) {
    ProductQuantizer out;
    out.dim = index.d;
    const ::faiss::Index* inner = &index;
    if (const auto* chain = dynamic_cast<const ::faiss::IndexPreTransform*>(inner)) {
        if (chain->chain.size() != 1) fail(where, ": expected at most one transformation, got ", chain->chain.size());
        const auto* linear = dynamic_cast<const ::faiss::LinearTransform*>(chain->chain[0]);
        if (linear == nullptr) fail(where, ": expected a linear transformation before the quantizer, got another");
        out.rotation = linear->A;
        out.shift = linear->b;
        inner = chain->index;
    }
    const auto* pq = dynamic_cast<const ::faiss::IndexPQ*>(inner);
    if (pq == nullptr || !pq->is_trained) fail(where, ": expected a trained product quantizer, got another index");
    if (pq->pq.nbits > 8) fail(where, ": expected codes of at most 8 bits, got ", pq->pq.nbits);
    out.parts = static_cast<index_t>(pq->pq.M), out.width = static_cast<index_t>(pq->pq.d);
    out.centroids_a_part = static_cast<index_t>(pq->pq.ksub);
    out.centroids = pq->pq.centroids;
    out.check();
    return out;
}
} // namespace detail

/// Reads a quantizer that FAISS wrote: a trained "PQ<parts>" or "OPQ<parts>_<width>,PQ<parts>" index of up to 8 bits.
/// Throws Error, with the file's name, for anything else.
inline ProductQuantizer load_quantizer(const std::string& path) {
    const std::unique_ptr<::faiss::Index> index(
        detail::with_faiss(path, [&] { return ::faiss::read_index(path.c_str()); }));
    return detail::quantizer_of(*index, path);
}

/// Writes one that FAISS and the reference read.
inline void save_quantizer(const std::string& path, const ProductQuantizer& quantizer) {
    quantizer.check();
    if (quantizer.centroids_a_part != 256)
        fail(path, ": expected 256 centroids a part, got ", quantizer.centroids_a_part);
    auto pq = std::make_unique<::faiss::IndexPQ>(static_cast<int>(quantizer.width),
                                                 static_cast<std::size_t>(quantizer.parts), 8);
    pq->pq.centroids = quantizer.centroids;
    pq->is_trained = true;
    std::unique_ptr<::faiss::Index> index;
    std::unique_ptr<::faiss::LinearTransform> linear;
    if (!quantizer.rotation.empty()) {
        linear = std::make_unique<::faiss::LinearTransform>(
            static_cast<int>(quantizer.dim), static_cast<int>(quantizer.width), !quantizer.shift.empty());
        linear->A = quantizer.rotation;
        linear->b = quantizer.shift;
        linear->is_trained = true;
        linear->set_is_orthonormal();
        auto chain = std::make_unique<::faiss::IndexPreTransform>(linear.get(), pq.get());
        chain->own_fields = true; // both are its own now
        linear.release(), pq.release();
        chain->is_trained = true;
        index = std::move(chain);
    } else {
        index = std::move(pq);
    }
    AtomicFile file(path);
    detail::FaissWriter writer(file);
    detail::with_faiss(path, [&] { ::faiss::write_index(index.get(), &writer); });
    writer.flush();
    file.commit();
}

/// Learns one from rows [n, d] by a FAISS factory string: "PQ16", "OPQ16_64,PQ16". `threads` are OpenMP's.
inline ProductQuantizer train_quantizer(Rows rows, const std::string& factory, int threads = 1) {
    const detail::OmpThreads of_this_call(threads);
    return detail::with_faiss(factory, [&] {
        const std::unique_ptr<::faiss::Index> index(
            ::faiss::index_factory(static_cast<int>(rows.cols), factory.c_str()));
        std::vector<float> contiguous;
        for (index_t i = 0; i < rows.rows; ++i) contiguous.insert(contiguous.end(), rows[i].begin(), rows[i].end());
        // FAISS would print that rows are few; whoever trains knows.
        ::faiss::Index* inner = index.get();
        std::unique_ptr<::faiss::ProductQuantizer> of_rotation; // OPQ learns with one of its own
        if (auto* chain = dynamic_cast<::faiss::IndexPreTransform*>(inner)) {
            inner = chain->index;
            auto* opq = chain->chain.size() == 1 ? dynamic_cast<::faiss::OPQMatrix*>(chain->chain[0]) : nullptr;
            if (opq != nullptr) {
                of_rotation = std::make_unique<::faiss::ProductQuantizer>(
                    static_cast<std::size_t>(opq->d_out), static_cast<std::size_t>(opq->M), std::size_t{8});
                of_rotation->cp.min_points_per_centroid = 1;
                opq->pq = of_rotation.get();
            }
        }
        if (auto* pq = dynamic_cast<::faiss::IndexPQ*>(inner)) {
            pq->pq.cp.min_points_per_centroid = 1;
            pq->do_polysemous_training = false; // an order of codes that only FAISS's own search has a use for
        }
        index->train(rows.rows, contiguous.data());
        return detail::quantizer_of(*index, factory);
    });
}

} // namespace mnemo
