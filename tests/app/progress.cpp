// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/app/progress.hpp>
#include <mnemo/app/table.hpp>

#include <memory>

using namespace mnemo;

TEST_CASE("clock and counts are short") {
    CHECK(clock_text(0) == "0:00");
    CHECK(clock_text(75.2) == "1:15");
    CHECK(clock_text(3700) == "1:01:40");
    CHECK(clock_text(-1) == "0:00");
    CHECK(clock_text(1e30) == "1000:00:00");
    CHECK(short_count(999) == "999");
    CHECK(short_count(1234) == "1.23k");
    CHECK(short_count(12345) == "12.3k");
    CHECK(short_count(1234567) == "1.23M");
    CHECK(short_count(5e12) == "5000G");
}

TEST_CASE("progress in a file is silent for short work and never holds control characters") {
    std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::tmpfile(), std::fclose);
    REQUIRE(file);
    {
        Progress progress("reading", "rows", file.get());
        for (index_t i = 0; i <= 1000; ++i) CHECK(progress(i, 1000));
    }
    CHECK(std::ftell(file.get()) == 0);
}

TEST_CASE("a progress line has share, rate and remaining time") {
    std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::tmpfile(), std::fclose);
    REQUIRE(file);
    Progress progress("training", "tokens", file.get());
    progress(0, 4000);
    CHECK(progress.line(1000, 4000, 10) == "training                      25 %  100 tokens/s  0:30 left");
    CHECK(progress.line(4000, 4000, 10) == "training                     100 %  400 tokens/s");
    CHECK(progress.line(0, 0, 0) == "training                     100 %");
    Progress plain("waiting", "", file.get());
    CHECK(plain.line(1, 4, 10) == "waiting                       25 %  0:30 left");
    Progress resumed("training", "tokens", file.get());
    resumed(2000, 4000); // the rate counts what this run did
    CHECK(resumed.line(3000, 4000, 10) == "training                      75 %  100 tokens/s  0:10 left");
}

TEST_CASE("a table is aligned") {
    Table table({"model", "ppl"});
    table.add({"base", "20.0"});
    table.add_rule();
    table.add({"+ Gedächtnis", "15.7"});
    table.add({"only a name"});
    CHECK(table.str() == "model          ppl\n"
                         "------------------\n"
                         "base          20.0\n"
                         "------------------\n"
                         "+ Gedächtnis  15.7\n"
                         "only a name\n");
    CHECK_THROWS_AS(table.add({"1", "2", "3"}), Error);
}
