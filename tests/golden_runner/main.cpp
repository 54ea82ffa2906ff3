// SPDX-License-Identifier: MIT
#include "golden.hpp"

#include <mnemo/kernels/cpu.hpp>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <string_view>
#include <unistd.h>

namespace {

struct Totals {
    int passed = 0, failed = 0, unhandled = 0;
};

// All entries of a manifest together are one fixture; a kind without a reader leaves it unhandled.
void run_manifest(const std::filesystem::path& file, Totals& totals, auto&& line) {
    const auto manifest = nlohmann::json::parse(mnemo::read_file(file.string()));
    if (manifest.value("case", "") != "hosts.bad") {
        ++totals.unhandled;
        return line("UNHANDLED", "no handler for manifests of case `" + manifest.value("case", "") + "`");
    }
    int failures = 0, entries = 0;
    std::map<std::string, int> without_reader;
    for (const auto& entry : manifest.at("entries")) {
        ++entries;
        const auto reader = golden::readers().find(entry.at("kind").get<std::string>());
        if (reader == golden::readers().end()) {
            ++without_reader[entry.at("kind").get<std::string>()];
            continue;
        }
        const std::string failure = golden::bad_file_failure(file.parent_path(), entry, reader->second);
        if (failure.empty()) continue;
        ++failures;
        line("FAIL", entry.at("file").get<std::string>() + ": " + failure);
    }
    if (entries == 0) ++failures, line("FAIL", "the manifest has no entries");
    for (const auto& [kind, count] : without_reader)
        line("UNHANDLED", mnemo::text(count, " files of kind `", kind, "`: no reader was compiled in"));
    ++(failures > 0 ? totals.failed : without_reader.empty() ? totals.passed : totals.unhandled);
}

void run(const std::filesystem::path& file, const std::string& shown, Totals& totals) {
    const auto line = [&](const char* what, const std::string& message) {
        std::printf("%s %s: %s\n", what, shown.c_str(), message.c_str());
    };
    try {
        if (file.extension() == ".json") return run_manifest(file, totals, line);
        const golden::Fixture fixture(file);
        if (!fixture.has_text("case")) return; // another fixture's companion
        const auto handler = golden::handlers().find(fixture.text("case"));
        if (handler == golden::handlers().end()) {
            ++totals.unhandled;
            return line("UNHANDLED", "no handler for case `" + fixture.text("case") + "` was compiled in");
        }
        golden::Check check(fixture);
        try {
            handler->second(fixture, check);
        } catch (const std::exception& error) {
            check.failed(error.what());
        }
        const auto& failures = check.finish();
        for (const auto& failure : failures) line("FAIL", failure);
        ++(failures.empty() ? totals.passed : totals.failed);
    } catch (const std::exception& error) {
        ++totals.failed;
        line("FAIL", error.what());
    }
}

// Where OpenBLAS does not know the processor, as Debian 12's does not know Intel's of 2023, it multiplies with kernels
// for SSE3, without fused multiply-add. The references had it, and ill-conditioned cases are held to less than what it
// makes. OpenBLAS chooses when it is loaded: the program starts anew.
void start_with_fused_multiply_add(char** arguments) {
    const auto core = reinterpret_cast<char* (*)()>(::dlsym(RTLD_DEFAULT, "openblas_get_corename"));
    if (!core || std::getenv("OPENBLAS_CORETYPE") || std::string_view(core()) != "Prescott") return;
    if (mnemo::simd_level() < mnemo::SimdLevel::avx2) return;
    ::setenv("OPENBLAS_CORETYPE", "Haswell", 1);
    ::execv("/proc/self/exe", arguments); // where that fails it goes on as it is
}

} // namespace

int main(int count, char** arguments) {
    start_with_fused_multiply_add(arguments);
    const char* variable = std::getenv("MNEMO_GOLDEN_DIR");
    const std::filesystem::path folder = count > 1 ? arguments[1] : variable && *variable ? variable : MNEMO_GOLDEN;
    std::vector<std::filesystem::path> files;
    std::error_code error;
    // A folder with a manifest is one fixture: its files may be broken on purpose.
    if (std::filesystem::exists(folder / "manifest.json"))
        files.push_back(folder / "manifest.json");
    else
        for (std::filesystem::recursive_directory_iterator it(folder, error), end; !error && it != end;
             it.increment(error))
            if (it->is_directory() && std::filesystem::exists(it->path() / "manifest.json")) {
                files.push_back(it->path() / "manifest.json");
                it.disable_recursion_pending();
            } else if (it->is_regular_file() && it->path().extension() == ".safetensors") {
                files.push_back(it->path());
            }
    if (error) std::printf("FAIL %s: %s\n", folder.string().c_str(), error.message().c_str());
    std::sort(files.begin(), files.end());

    Totals totals;
    for (const auto& file : files) run(file, file.lexically_relative(folder).generic_string(), totals);
    const int all = totals.passed + totals.failed + totals.unhandled;
    if (all == 0) std::printf("no golden fixture below %s\n", folder.string().c_str());
    std::printf("golden: %d passed, %d failed, %d unhandled of %d files\n", totals.passed, totals.failed,
                totals.unhandled, all);
    return error || all == 0 || totals.failed > 0 || totals.unhandled > 0 ? 1 : 0;
}
