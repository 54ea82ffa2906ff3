// SPDX-License-Identifier: MIT
#include <golden.hpp>
#include <mnemo/faiss/index.hpp>

#include <algorithm>

using namespace mnemo;

namespace {
// The index alone: a store with as many values and no keys.
struct Values {
    using value_type = std::int32_t;
    index_t entries, width;
    index_t key_dim() const { return width; }
    index_t size() const { return entries; }
    std::int32_t value(index_t) const { return 0; }
};
} // namespace

// Distances within 1e-4; ids as sets where distances tie, also across the end of the row. FAISS's -1 is a hit that is
// not there.
GOLDEN("knnlm.index_search") {
    FaissIndex index = FaissIndex::read(fixture.companion("index_file").string(), Metric::l2);
    index.k = fixture.integer("k");
    const Values store{fixture.integer("dstore_size"), fixture.integer("dimension")};
    const golden::Tolerance tolerance{1e-6, 1e-4};
    for (const std::string& probes : fixture.list("nprobes")) {
        index.set_nprobe(std::stoll(probes));
        const Hits hits = index.retrieve(store, fixture.matrix("in.queries"));
        const std::string name = "out.nprobe" + probes;
        const auto expected = fixture.ids(name + ".ids");
        const auto expected_distances = fixture.floats(name + ".dists");
        const auto k = static_cast<std::size_t>(index.k);
        std::vector<float> distances, present;
        bool ids_agree = true;
        for (index_t row = 0; row < hits.rows(); ++row) {
            const std::size_t first = static_cast<std::size_t>(row) * k;
            std::size_t n = 0;
            while (n < k && expected[first + n] >= 0) present.push_back(expected_distances[first + n++]);
            ids_agree = ids_agree && hits.ids(row).size() == n;
            for (const float score : hits.scores(row)) distances.push_back(-score);
            for (std::size_t j = 0; j < std::min(n, hits.ids(row).size()); ++j) {
                const auto found = std::find(&expected[first], &expected[first] + n, hits.ids(row)[j]);
                const double distance = -double(hits.scores(row)[j]);
                const float there = found < &expected[first] + n
                                        ? expected_distances[static_cast<std::size_t>(found - expected.data())]
                                        : expected_distances[first + n - 1]; // a tie with the last one, or wrong
                ids_agree = ids_agree && std::abs(distance - there) <= 1e-6 + 1e-4 * distance;
            }
        }
        check.close(name + ".dists", distances, present, tolerance);
        check.that(name + ".ids", ids_agree, "the same ids up to ties");
    }
    std::vector<float> rows(fixture.floats("out.reconstruct_0_8").size());
    auto* ivf = const_cast<::faiss::IndexIVF*>(dynamic_cast<const ::faiss::IndexIVF*>(&index.index()));
    check.that("out.reconstruct_0_8", ivf != nullptr, "inverted lists");
    if (!ivf) return;
    ivf->make_direct_map();
    ivf->reconstruct_n(0, fixture.size("out.reconstruct_0_8", 0), rows.data());
    check.close("out.reconstruct_0_8", rows, tolerance);
}
