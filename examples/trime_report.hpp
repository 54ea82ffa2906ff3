// SPDX-License-Identifier: MIT
#pragma once

// What examples/trime.cpp found out: kept between runs, as a table, as a plot, and as checks.
#include "trime_train.hpp"

#include <mnemo/app/report.hpp>
#include <mnemo/app/svg.hpp>
#include <mnemo/app/table.hpp>

#include <cmath>
#include <filesystem>

using json = nlohmann::ordered_json;

class TrimeReport : public Report {
  public:
    // Goes on with the report in `folder` if its figures are of the same run.
    TrimeReport(const std::filesystem::path& folder, const std::string& run, const std::vector<index_t>& sizes)
        : folder_(folder) {
        if (std::filesystem::exists(path())) numbers = json::parse(read_file(path()), nullptr, false);
        if (!numbers.is_object() || numbers.value("run", "") != run) numbers = json::object();
        numbers["run"] = run, numbers["checks"] = json::array();
        memories_ = {{"none", "no memory"}, {"0", "local"}};
        for (const index_t size : sizes) memories_.emplace_back(fmt::format("{}", size), fmt::format("long {}", size));
        sizes_ = sizes;
    }

    bool has(const std::string& method, std::uint64_t seed) const {
        return numbers.contains("perplexity") && numbers["perplexity"].contains(method) &&
               numbers["perplexity"][method].contains(fmt::format("{}", seed));
    }
    void add(const std::string& method, std::uint64_t seed, const json& figures) {
        numbers["perplexity"][method][fmt::format("{}", seed)] = figures;
        save(path());
    }

    // Table, plot and figures; with `checked` also what must hold of them.
    void finish(const std::vector<std::string>& methods, index_t seeds, bool checked) {
        auto columns = memories_;
        columns.emplace_back("external", "datastore");
        columns.emplace_back("mixed", "mixed in");
        std::vector<std::string> header{"trained with"};
        for (const auto& [key, name] : columns) header.push_back(name);
        Table table(header);
        for (const std::string& method : methods) {
            std::vector<std::string> means{method}, spreads{""};
            for (const auto& [key, name] : columns) {
                const auto [mean, spread] = statistics(method, key, seeds);
                means.push_back(fmt::format("{:.2f}", mean)), spreads.push_back(fmt::format("\u00b1{:.2f}", spread));
                numbers["mean"][method][key] = mean, numbers["spread"][method][key] = spread;
            }
            table.add(means), table.add(spreads);
        }
        fmt::print("\nPerplexity of held-out text, mean of {} seeds and standard deviation:\n\n{}\n", seeds,
                   table.str());
        LineChart chart{.title = "Perplexity over the size of the long-term memory",
                        .x_label = "tokens remembered beside the window",
                        .y_label = "perplexity",
                        .log_x = true};
        for (const std::string& method : methods) {
            Series& line = chart.series.emplace_back(Series{method, {}, {}});
            for (const index_t size : sizes_)
                line.x.push_back(double(size)), line.y.push_back(mean(method, fmt::format("{}", size)));
        }
        atomic_write((folder_ / "memory.svg").string(), chart.svg());
        if (checked) check_all();
        save(path());
        fmt::print("Every number and the plot are in {}\n", folder_.string());
    }

  private:
    std::string path() const { return (folder_ / "trime.json").string(); }
    double mean(const std::string& method, const std::string& memory) const { return numbers["mean"][method][memory]; }

    std::pair<double, double> statistics(const std::string& method, const std::string& memory, index_t seeds) const {
        double sum = 0, squares = 0;
        const auto value = [&](index_t seed) {
            return numbers["perplexity"][method][fmt::format("{}", seed)][memory].get<double>();
        };
        for (index_t seed = 1; seed <= seeds; ++seed) sum += value(seed);
        const double average = sum / double(seeds);
        for (index_t seed = 1; seed <= seeds; ++seed) squares += (value(seed) - average) * (value(seed) - average);
        return {average, seeds > 1 ? std::sqrt(squares / double(seeds - 1)) : 0.0};
    }

    void check_all() {
        const double alone = mean("cross-entropy", "none"), cache = mean("cross-entropy", "0"),
                     local = mean("TRIME", "0");
        check("perplexity falls from cross-entropy to a test-time cache to TRIME with local memory",
              alone > cache && cache > local, fmt::format("{:.2f}, {:.2f}, {:.2f}", alone, cache, local));
        const double without = mean("TRIME", "none");
        check("TRIME's model without its memory is worse than with it by more than 2 %", without > 1.02 * local,
              fmt::format("{:.2f} and {:.2f}", without, local));
        bool falling = true;
        double last = mean("TRIME_long", "0");
        std::string figures = fmt::format("{:.2f}", last);
        for (const index_t size : sizes_) {
            const double next = mean("TRIME_long", fmt::format("{}", size));
            falling = falling && next < last;
            last = next;
            figures += fmt::format(", {:.2f}", next);
        }
        check("TRIME_long gains with every size of its memory", falling, figures);
    }

    std::filesystem::path folder_;
    std::vector<std::pair<std::string, std::string>> memories_; // key, name
    std::vector<index_t> sizes_;
};
