// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/app/svg.hpp>

using namespace mnemo;

namespace {
std::size_t count(const std::string& text, const std::string& part) {
    std::size_t n = 0;
    for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
    return n;
}
} // namespace

TEST_CASE("ticks are round, inside, and increasing") {
    for (const bool log : {false, true})
        for (const auto& [low, high] : {std::pair{0.0123, 0.0987},
                                        {1.0, 2.0},
                                        {0.1, 1.0},
                                        {7.5, 70.6},
                                        {1.0, 250000.0},
                                        {15.6, 20.1},
                                        {1e-3, 1e9}}) {
            const detail::Axis axis({low, high}, log, false, 0, 100);
            const auto ticks = axis.ticks();
            CAPTURE(log, low, high);
            REQUIRE(ticks.size() >= 2);
            REQUIRE(ticks.size() <= 13);
            for (std::size_t i = 0; i < ticks.size(); ++i) {
                CHECK(axis(ticks[i]) >= -1e-4);
                CHECK(axis(ticks[i]) <= 100 + 1e-4);
                if (i > 0) CHECK(ticks[i] > ticks[i - 1]);
            }
        }
    CHECK(detail::Axis({0, 1}, false, false, 0, 100).ticks() ==
          std::vector<double>{0, 0.2, 0.4, 0.6000000000000001, 0.8, 1});
    CHECK(detail::Axis({10, 1000}, true, false, 0, 100)(100) == Approx(50));
}

TEST_CASE("an axis without values or with one value can still be drawn") {
    for (const auto& values : {std::vector<double>{}, {3.0}, {std::numeric_limits<double>::quiet_NaN()}, {-1.0, 0.0}})
        for (const bool log : {false, true}) {
            const detail::Axis axis(values, log, false, 0, 100);
            CHECK(axis.high > axis.low);
            CHECK(axis.ticks().size() < 100);
        }
}

TEST_CASE("a line chart draws each series, gaps included") {
    const double gap = std::numeric_limits<double>::quiet_NaN();
    const LineChart chart{.title = "a < b & c",
                          .x_label = "x",
                          .y_label = "y",
                          .series = {{"one", {0, 1, 2, 3}, {4, 5, 6, 7}}, {"two", {0, 1, 2, 3}, {1, gap, 2, 3}, true}}};
    const std::string svg = chart.svg();
    CHECK(svg.rfind("<svg ", 0) == 0);
    CHECK(svg.find("a &lt; b &amp; c") != std::string::npos);
    CHECK(count(svg, "<path") == 2);
    CHECK(count(svg, "<circle") == 4);
    CHECK(svg.find("nan") == std::string::npos);
    const std::string two = svg.substr(svg.rfind("<path"));
    CHECK(count(two.substr(0, two.find('>')), "M") == 2); // the pen is lifted at the gap
    LineChart pair = chart;
    pair.series[1].colour = 0; // as the first one, dashed
    CHECK(count(pair.svg(), detail::Canvas::colours[1]) == 0);
    CHECK(count(chart.svg(), detail::Canvas::colours[1]) == 2); // line and legend
    CHECK_THROWS_AS((LineChart{.series = {{"bad", {1}, {1, 2}}}}.svg()), Error);
}

TEST_CASE("a logarithmic chart leaves out what has no logarithm") {
    LineChart chart{.log_x = true, .log_y = true, .series = {{"s", {0, 10, 100}, {1, 2, 3}}}};
    CHECK(count(chart.svg(), "<circle") == 2);
    BarChart bars{.log_y = true, .groups = {"a", "b"}, .series = {{"s", {}, {0, 5}}}};
    CHECK(count(bars.svg(), "<rect") == 2); // background and one bar
}

TEST_CASE("a bar chart draws each value from zero") {
    const BarChart chart{
        .title = "bars", .groups = {"a", "b", "c"}, .series = {{"up", {}, {1, 2, 3}}, {"down", {}, {-1, -2, -3}}}};
    const std::string svg = chart.svg();
    CHECK(count(svg, "<rect") == 1 + 6);
    CHECK(svg.find("height=\"-") == std::string::npos);
    CHECK_THROWS_AS((BarChart{.groups = {"a"}, .series = {{"bad", {}, {1, 2}}}}.svg()), Error);
}
