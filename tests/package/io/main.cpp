// SPDX-License-Identifier: MIT
// A stranger's program: a datastore on disk, written, opened and read as a memory.
#include <mnemo/io/datastore.hpp>
#include <mnemo/mnemo.hpp>

#include <cmath>
#include <cstdio>

int main() {
    const float keys[] = {0, 0, 1, 1};
    const std::int32_t next[] = {3, 5};
    auto writer = mnemo::DatastoreWriter::create("store", {.host = {.key_dim = 2, .vocab_size = 8}, .overwrite = true});
    writer.append(mnemo::Rows(keys, 2, 2), next);
    writer.close();

    const mnemo::Memory memory(mnemo::LastHidden{}, mnemo::Datastore::open("store"), mnemo::Exact<mnemo::L2>{.k = 1},
                               mnemo::Interpolate<mnemo::TokenVotes>{{}, {0.5f}});
    float log_p[8];
    for (float& x : log_p) x = std::log(1.0f / 8);
    memory.read(mnemo::Rows(keys + 2, 1, 2), mnemo::MutRows(log_p, 1, 8));
    std::printf("p(5) = %.4f\n", std::exp(log_p[5]));
    return std::abs(std::exp(log_p[5]) - (0.5f / 8 + 0.5f)) < 1e-5f ? 0 : 1;
}
