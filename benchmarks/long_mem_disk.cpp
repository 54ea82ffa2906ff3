// SPDX-License-Identifier: MIT
// A memory of millions of tokens in a file: how fast it is written, how fast it answers, and how much memory the
// process takes meanwhile, which must stay below a budget.
//
//     bench_long_mem_disk [file = long_mem.bank] [tokens = 4194304] [budget in MB = 128]
#include <mnemo/combine/gated_attention.hpp>
#include <mnemo/io/chunk_file.hpp>
#include <mnemo/retrieve/in_parts.hpp>
#include <mnemo/retrieve/per_head.hpp>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <random>
#include <string>

using namespace mnemo;

namespace {

constexpr index_t kHeads = 4, kHeadDim = 32, kWidth = kHeads * kHeadDim, kChunk = 4, kK = 64, kQueries = 32;

double peak_megabytes() { // resident, with the pages of mapped files
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);)
        if (line.rfind("VmHWM:", 0) == 0) return std::strtod(line.c_str() + 6, nullptr) / 1024;
    return 0;
}
Matrix random_rows(index_t n, unsigned seed) {
    std::mt19937 draw(seed);
    std::uniform_real_distribution<float> uniform(-1, 1);
    Matrix m(n, kWidth);
    for (float& x : m.data) x = uniform(draw);
    return m;
}
double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

int run(const std::string& path, index_t tokens, double budget) {
    const Matrix keys = random_rows(4096, 1), values = random_rows(4096, 2);
    const auto start = std::chrono::steady_clock::now();
    {
        std::optional<ChunkFile<half>> bank = ChunkFile<half>::create(
            path, {.heads = kHeads, .head_dim = kHeadDim, .chunk = kChunk, .memory_tokens = tokens});
        Matrix own = keys;
        for (index_t done = 0; done < tokens; done += own.rows) {
            const auto turn = static_cast<float>(done % 1021) / 1021; // no two blocks are alike
            for (std::size_t i = 0; i < own.data.size(); ++i) own.data[i] = keys.data[i] * (0.5f + turn);
            bank->append(own, values);
        }
    }
    const double writing = seconds_since(start);
    const ChunkFile<half> bank = ChunkFile<half>::open(path, false);
    std::printf("%lld tokens of %lld heads of %lld in %.2f GB, written at %.0f tokens a second\n",
                static_cast<long long>(bank.tokens()), static_cast<long long>(kHeads), static_cast<long long>(kHeadDim),
                static_cast<double>(bank.bytes()) / 1e9, static_cast<double>(tokens) / writing);

    const index_t chunks = kK / kChunk;
    const PerHead<InParts<Exact<InnerProduct>>> search{{.inner = {.k = chunks}, .k = chunks, .part = 1 << 16}};
    const std::vector<float> gates(static_cast<std::size_t>(kHeads), 0.5f);
    Arena scratch;
    for (unsigned round = 0; round < 4; ++round) {
        const Matrix queries = random_rows(kQueries, 10 + round);
        Matrix out(kQueries, kWidth);
        const Rows rows = queries;
        HeadOutputs base{out, gates};
        const auto begin = std::chrono::steady_clock::now();
        const HeadHits hits = search.retrieve(bank, rows);
        GatedAttention<>{}.combine(base, Reading{rows, hits, bank, scratch});
        const double seconds = seconds_since(begin);
        bank.release();
        // The best hit of one query, by going through all chunks.
        const index_t head = static_cast<index_t>(round), query = 3;
        float best = -INFINITY;
        const Rows means = bank.means(head);
        for (index_t slot = 0; slot < means.rows; ++slot) {
            best = std::max(
                best, score<InnerProduct>(queries[query].subspan(static_cast<std::size_t>(head * kHeadDim), kHeadDim),
                                          means[slot]));
            if (slot % 65536 == 65535) bank.release();
        }
        bank.release();
        const bool right = hits[head].scores(query)[0] == best;
        std::printf("%lld queries: %.2f ms each, best hit %s\n", static_cast<long long>(kQueries),
                    1000 * seconds / kQueries, right ? "right" : "WRONG");
        if (!right) return 1;
    }
    const double peak = peak_megabytes();
    std::printf("peak of resident memory %.1f MB, mapped pages and all; budget %.0f MB: %s\n", peak, budget,
                peak <= budget ? "kept" : "BROKEN");
    return peak <= budget ? 0 : 1;
}

} // namespace

int main(int count, char** arguments) {
    const std::string path = count > 1 ? arguments[1] : "long_mem.bank";
    try {
        const int result = run(path, count > 2 ? std::atoll(arguments[2]) : index_t{1} << 22,
                               count > 3 ? std::atof(arguments[3]) : 128);
        remove_file(path);
        return result;
    } catch (const std::exception& e) {
        std::fprintf(stderr, "%s\n", e.what());
        return 2;
    }
}
