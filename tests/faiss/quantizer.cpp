// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <folder.hpp>
#include <mnemo/faiss/quantizer.hpp>

#include <random>

using namespace mnemo;

TEST_CASE("A quantizer goes through FAISS's files both ways") {
    const Folder folder;
    Matrix rows(600, 12);
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (float& x : rows.data) x = normal(random);
    for (const char* factory : {"PQ4", "OPQ4_8,PQ4"}) {
        const ProductQuantizer learned = train_quantizer(rows, factory);
        const std::string path = folder / "quantizer";
        save_quantizer(path, learned);
        const ProductQuantizer back = load_quantizer(path);
        CHECK(back.centroids == learned.centroids);
        CHECK(back.rotation == learned.rotation);
        CHECK(back.dim == 12);

        // FAISS decodes our codes to what we decode them to.
        std::vector<std::uint8_t> codes(600 * 4);
        back.encode(rows, {codes.data(), 600, 4});
        Matrix ours(600, 12);
        back.decode({codes.data(), 600, 4}, ours);
        const std::unique_ptr<::faiss::Index> index(::faiss::read_index(path.c_str()));
        std::vector<float> theirs(600 * 12);
        index->sa_decode(600, codes.data(), theirs.data());
        double worst = 0, error = 0;
        for (std::size_t i = 0; i < theirs.size(); ++i) {
            worst = std::max(worst, double(std::abs(theirs[i] - ours.data[i])));
            error += (ours.data[i] - rows.data[i]) * (ours.data[i] - rows.data[i]) / double(theirs.size());
        }
        CHECK(worst < 1e-5);
        CHECK(error < 0.7); // of variance 1
    }
    const std::unique_ptr<::faiss::Index> flat(::faiss::index_factory(12, "Flat"));
    ::faiss::write_index(flat.get(), (folder / "flat").c_str());
    CHECK_THROWS_WITH(load_quantizer(folder / "flat"), Catch::Contains("product quantizer"));
    CHECK_THROWS_AS(load_quantizer(folder / "none"), Error);
}
