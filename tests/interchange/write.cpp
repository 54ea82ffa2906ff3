// SPDX-License-Identifier: MIT
// interchange FOLDER: a datastore, its reference form and an index of it, for read.py to look at with NumPy and
// Python's faiss. What it should find is printed as JSON.
#include <mnemo/faiss/index.hpp>
#include <mnemo/io/datastore.hpp>
#include <mnemo/mnemo.hpp>

#include <cstdio>
#include <random>

using namespace mnemo;

int main(int count, char** arguments) {
    if (count != 2) return 2;
    const std::string folder = arguments[1];
    const index_t rows = 3000, d = 32, k = 10;
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    Matrix keys(rows, d);
    for (float& x : keys.data) x = normal(random);
    std::vector<std::int32_t> values(static_cast<std::size_t>(rows));
    for (std::int32_t& v : values) v = static_cast<std::int32_t>(random() % 30000);

    DatastoreOptions options{.host = {.model = "test", .key_dim = d, .vocab_size = 30000}, .overwrite = true};
    DatastoreWriter writer = DatastoreWriter::create(folder + "/store", options);
    writer.append(Rows(keys), values);
    writer.close();
    const Datastore store = Datastore::open(folder + "/store");
    store.write_reference(folder + "/fp32");
    store.write_reference(folder + "/fp16", ReferenceFormat::fp16);

    FaissIndex index = FaissIndex::build(store, {.factory = FaissBuild::ivfpq(16, 8, 8)}, folder + "/index.faiss");
    index.k = k;
    index.set_nprobe(16);
    const Rows queries = Rows(keys).slice(0, 5);
    const Hits hits = index.retrieve(store, queries);
    std::printf("{\"rows\": %d, \"d\": %d, \"k\": %d, \"value_sum\": %lld, \"scores\": [", static_cast<int>(rows),
                static_cast<int>(d), static_cast<int>(k), [&] {
                    long long sum = 0;
                    for (const std::int32_t v : values) sum += v;
                    return sum;
                }());
    for (index_t i = 0; i < 5; ++i)
        for (index_t j = 0; j < k; ++j)
            std::printf("%s%.9g", i + j == 0 ? "" : ", ",
                        static_cast<double>(hits.scores(i)[static_cast<std::size_t>(j)]));
    std::printf("]}\n");
    return 0;
}
