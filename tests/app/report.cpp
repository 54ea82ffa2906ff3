// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/app/report.hpp>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>

using namespace mnemo;
namespace fs = std::filesystem;

TEST_CASE("a report counts its checks and keeps every number") {
    std::unique_ptr<std::FILE, int (*)(std::FILE*)> out(std::tmpfile(), std::fclose);
    REQUIRE(out);
    Report report;
    CHECK(report.passed());
    CHECK(report.check("gain", true, "12 %", out.get()));
    CHECK(report.passed());
    CHECK(!report.check("order", false, "3 < 2", out.get()));
    CHECK(report.check("after", true, "1", out.get()));
    CHECK(!report.passed()); // one failure is enough

    std::string printed(100, '\0');
    std::rewind(out.get());
    printed.resize(std::fread(printed.data(), 1, printed.size(), out.get()));
    CHECK(printed == "ok      gain: 12 %\nFAILED  order: 3 < 2\nok      after: 1\n");

    report.numbers["perplexity"] = 15.5;
    report.numbers["infinite"] = std::numeric_limits<double>::infinity();
    report.numbers["half a character"] = "\xc3";
    const std::string path = (fs::temp_directory_path() / text("mnemo_report_", getpid(), ".json")).string();
    report.save(path);
    std::ifstream file(path);
    const auto read = nlohmann::json::parse(file);
    fs::remove(path);
    CHECK(read["perplexity"] == 15.5);
    CHECK(read["infinite"].is_null());
    CHECK(read["checks"].size() == 3);
    CHECK(read["checks"][1]["holds"] == false);
}
