// SPDX-License-Identifier: MIT
// How fast a datastore is written, against write() of the same bytes, and read. Time is the clock's: disks are waited
// for. TMPDIR chooses the disk; a tmpfs there shows what the processor costs.
#include "../tests/folder.hpp"
#include <mnemo/io/datastore.hpp>

#include <benchmark/benchmark.h>

#include <filesystem>
#include <random>
#include <string>
#include <vector>

using namespace mnemo;

namespace {

constexpr index_t kDim = 1024, kRows = 100'000; // 195 MiB as float16

/// A batch of keys as hosts hand them out.
const Matrix& batch(index_t rows) {
    static Matrix keys;
    if (keys.rows != rows) {
        keys = Matrix(rows, kDim);
        std::mt19937 random(1);
        for (float& x : keys.data) x = static_cast<float>(random() % 4096) / 512 - 4;
    }
    return keys;
}

DatastoreOptions options(KeyType type) {
    DatastoreOptions o;
    o.host.key_dim = kDim;
    o.host.vocab_size = 50'000;
    o.key_type = type;
    o.overwrite = true;
    return o;
}

void count(benchmark::State& state, index_t row_bytes) {
    const auto rows = static_cast<double>(state.iterations() * kRows);
    state.counters["rows/s"] = benchmark::Counter(rows, benchmark::Counter::kIsRate);
    state.SetBytesProcessed(static_cast<std::int64_t>(rows) * row_bytes);
}

/// The floor: the same bytes from one buffer, nothing converted, summed or checked.
void raw_write(benchmark::State& state) {
    const Folder folder;
    const index_t row_bytes = kDim * state.range(0) + 4, total = kRows * row_bytes;
    const std::vector<std::byte> buffer(std::size_t{1} << 20, std::byte{7});
    for (auto _ : state) {
        remove_file(folder.path() + "/raw");
        File file(folder.path() + "/raw", O_WRONLY | O_CREAT);
        for (index_t at = 0; at < total; at += static_cast<index_t>(buffer.size()))
            file.write_at(static_cast<std::uint64_t>(at), std::span(buffer).first(std::min<std::size_t>(
                                                              buffer.size(), static_cast<std::size_t>(total - at))));
        file.sync();
    }
    count(state, row_bytes);
}
BENCHMARK(raw_write)->ArgName("key_bytes")->Arg(2)->Arg(4)->UseRealTime()->Unit(benchmark::kMillisecond);

/// Rows of float, as a datastore.
void append(benchmark::State& state) {
    const Folder folder;
    const auto type = state.range(0) == 2 ? KeyType::float16 : KeyType::float32;
    const index_t rows = state.range(1);
    const Matrix& keys = batch(rows);
    const std::vector<std::int32_t> values(static_cast<std::size_t>(rows), 17);
    for (auto _ : state) {
        auto writer = DatastoreWriter::create(folder.path(), options(type));
        for (index_t i = 0; i < kRows; i += rows) {
            const index_t n = std::min(rows, kRows - i);
            writer.append(Rows(keys).slice(0, n), std::span(values).first(static_cast<std::size_t>(n)));
        }
        writer.close();
    }
    count(state, kDim * state.range(0) + 4);
}
BENCHMARK(append)
    ->ArgNames({"key_bytes", "batch"})
    ->ArgsProduct({{2, 4}, {1, 512, 4096}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

/// Every byte read and summed.
void verify(benchmark::State& state) {
    const Folder folder;
    {
        auto writer = DatastoreWriter::create(folder.path(), options(KeyType::float16));
        const std::vector<std::int32_t> values(1000, 17);
        for (index_t i = 0; i < kRows; i += 1000) writer.append(batch(1000), values);
    }
    const Datastore store = Datastore::open(folder.path());
    for (auto _ : state) store.verify(Threads{state.range(0)});
    count(state, 2 * kDim + 4);
}
BENCHMARK(verify)->ArgName("threads")->Arg(1)->Arg(2)->UseRealTime()->Unit(benchmark::kMillisecond);

void checksum(benchmark::State& state) {
    const SimdLevel before = use_simd_level(state.range(0) != 0 ? SimdLevel::avx2 : SimdLevel::plain);
    const std::vector<std::byte> bytes(std::size_t{1} << 20, std::byte{7});
    for (auto _ : state) benchmark::DoNotOptimize(crc32c(bytes));
    state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(bytes.size()));
    use_simd_level(before);
}
BENCHMARK(checksum)->ArgName("sse4.2")->Arg(0)->Arg(1);

} // namespace

BENCHMARK_MAIN();
