// SPDX-License-Identifier: MIT
#pragma once

// What examples/knn_lm.cpp found out: kept between runs, as a table, as plots, and as checks.
#include "knn_lm_text.hpp"

#include <mnemo/app/report.hpp>
#include <mnemo/app/svg.hpp>
#include <mnemo/app/table.hpp>

#include <cmath>
#include <filesystem>

using json = nlohmann::ordered_json;

class KnnLmReport : public Report {
  public:
    // Goes on with the report in `folder` if its figures are of the same run.
    KnnLmReport(const fs::path& folder, const std::string& run) : folder_(folder) {
        if (fs::exists(path())) numbers = json::parse(read_file(path()), nullptr, false);
        if (!numbers.is_object() || numbers.value("run", "") != run) numbers = json::object();
        numbers["run"] = run, numbers["checks"] = json::array();
    }

    // What `compute` says, or has said in an earlier run.
    KnnLmResults kept(const std::string& key, auto&& compute) {
        json& entry = numbers["evaluations"][key];
        if (entry.is_null()) {
            for (const KnnLmTuned& t : compute())
                entry.push_back({{"k", t.test.grid.k},
                                 {"temperature", t.test.grid.temperature},
                                 {"lambda", t.test.grid.lambda},
                                 {"valid", t.valid.perplexity},
                                 {"test", t.test.perplexity}});
            save(path());
        }
        KnnLmResults out;
        for (const json& e : entry) {
            const KnnLmGrid grid{e["k"], e["temperature"], e["lambda"]};
            out.push_back({{grid, e["valid"]}, {grid, e["test"]}});
        }
        return out;
    }

    // Table, plots and figures; with `checked` also what must hold of them.
    void finish(const std::vector<Text>& texts, const auto& tokenizer, bool checked) {
        for (const Text& t : texts) numbers["texts"][t.name] = figures(t, tokenizer);
        atomic_write((folder_ / "perplexity.svg").string(), perplexity_chart(texts));
        atomic_write((folder_ / "lambda.svg").string(), lambda_chart(texts));
        atomic_write((folder_ / "size.svg").string(), size_chart(texts));
        fmt::print("\n{}\n", table(texts));
        if (checked)
            for (const Text& t : texts) check_text(t, &t == &texts[0]);
        save(path());
        fmt::print("Every number and the plots are in {}\n", folder_.string());
    }

  private:
    static constexpr KnnLmSetting kUntuned{256, 1, 0.25f};
    std::string path() const { return (folder_ / "knn_lm.json").string(); }
    static std::string percent(double x) { return std::isnan(x) ? "-" : fmt::format("{:+.1f} %", x); }

    static std::string table(const std::vector<Text>& texts) {
        Table out({"perplexity", "alone", "own memory", "", "entries", "k", "T", "lambda", "wrong", "shuffled",
                   "unigram", "untuned: own", "wrong"});
        for (const Text& t : texts) {
            const auto [k, temperature, lambda] = t.own().setting();
            out.add({t.name, fmt::format("{:.2f}", t.alone()), fmt::format("{:.2f}", t.own().perplexity()),
                     percent(t.gain(t.own())), fmt::format("{}", t.store->size()), fmt::format("{}", k),
                     fmt::format("{}", temperature), fmt::format("{:.2f}", lambda),
                     percent(t.gain(t.wrong_perplexity())), percent(t.gain(t.shuffled())), percent(t.gain(t.unigram())),
                     percent(t.gain(t.own().test.at(kUntuned))), percent(t.gain(t.wrong_at(kUntuned)))});
        }
        return out.str() +
               "wrong: the memory of another domain; shuffled: its own keys with their values in random order;\n"
               "unigram: how often each token is in its memory; untuned: k 256, T 1, lambda 0.25\n";
    }

    static json figures(const Text& t, const auto& tokenizer) {
        std::size_t bytes = 0;
        for (const std::int32_t target : t.test.targets)
            bytes += std::max<std::size_t>(1, tokenizer.token(target).size());
        const double bits = double(t.test.size()) / double(bytes) / std::log(2.0); // a byte, for a nat a token
        const auto [k, temperature, lambda] = t.own().setting();
        json sizes;
        for (const auto& [entries, tuned] : t.sizes) sizes[fmt::format("{}", entries)] = tuned.perplexity();
        return {{"entries", t.store->size()},
                {"test_tokens", t.test.size()},
                {"alone", t.alone()},
                {"own_memory", t.own().perplexity()},
                {"k", k},
                {"temperature", temperature},
                {"lambda", lambda},
                {"wrong_memory", t.wrong_perplexity()},
                {"shuffled_values", t.shuffled().perplexity()},
                {"unigram", t.unigram().perplexity()},
                {"untuned", t.own().test.at(kUntuned)},
                {"untuned_wrong_memory", t.wrong_at(kUntuned)},
                {"by_entries", sizes},
                {"bits_per_byte_alone", bits * std::log(t.alone())},
                {"bits_per_byte_own_memory", bits * std::log(t.own().perplexity())}};
    }

    static std::string perplexity_chart(const std::vector<Text>& texts) {
        BarChart chart{.title = "Perplexity with and without memory", .y_label = "perplexity", .log_y = true};
        chart.series = {
            {"alone", {}, {}}, {"own memory", {}, {}}, {"wrong memory", {}, {}}, {"shuffled values", {}, {}}};
        for (const Text& t : texts) {
            chart.groups.push_back(t.name);
            const double bars[] = {t.alone(), t.own().perplexity(), t.wrong_perplexity(), t.shuffled().perplexity()};
            for (std::size_t i = 0; i < std::size(bars); ++i) chart.series[i].y.push_back(bars[i]);
        }
        return chart.svg();
    }
    static std::string lambda_chart(const std::vector<Text>& texts) {
        LineChart chart{.title = "Perplexity over the weight of the memory",
                        .x_label = "\u03bb",
                        .y_label = "perplexity",
                        .log_y = true};
        for (const bool own : {true, false})
            for (std::size_t i = 0; i < texts.size(); ++i) {
                if (!own && texts[i].wrong.empty()) continue;
                const KnnLmTuned& tuned = own ? texts[i].own() : texts[i].wrong[0];
                Series line{texts[i].name + (own ? "" : ", wrong memory"), {}, {}, !own, static_cast<int>(i)};
                KnnLmSetting at = tuned.setting();
                for (const float lambda : tuned.test.grid.lambda) {
                    at.lambda = lambda;
                    line.x.push_back(double(lambda)), line.y.push_back(tuned.test.at(at));
                }
                chart.series.push_back(std::move(line));
            }
        return chart.svg();
    }
    static std::string size_chart(const std::vector<Text>& texts) {
        LineChart chart{.title = "Perplexity over the size of the memory",
                        .x_label = "entries",
                        .y_label = "perplexity",
                        .log_x = true,
                        .log_y = true};
        for (const Text& t : texts) {
            Series& line = chart.series.emplace_back(Series{t.name, {}, {}});
            for (const auto& [entries, tuned] : t.sizes)
                line.x.push_back(double(entries)), line.y.push_back(tuned.perplexity());
        }
        return chart.svg();
    }

    void check_text(const Text& t, bool home) {
        const int least = home ? 10 : 40;
        const double own = t.gain(t.own()), wrong = t.gain(t.wrong_perplexity()), shuffled = t.gain(t.shuffled()),
                     unigram = t.gain(t.unigram());
        check(fmt::format("{}: its own memory lowers perplexity by more than {} %", t.name, least),
              own < -double(least), percent(own));
        if (!t.wrong.empty())
            check(t.name + ": another domain's memory lowers it by less than 10 %", wrong > -10, percent(wrong));
        check(t.name + ": shuffled values are no better than the unigram, within 2 points", shuffled > unigram - 2,
              fmt::format("{} and {}", percent(shuffled), percent(unigram)));
        if (home) return; // its own text is also in the model: a small memory of it has little to add
        bool falling = true;
        std::string sizes;
        for (std::size_t i = 0; i < t.sizes.size(); ++i) {
            falling = falling && (i == 0 || t.sizes[i].second.perplexity() < t.sizes[i - 1].second.perplexity());
            sizes += fmt::format("{}{:.2f} ({})", i == 0 ? "" : ", ", t.sizes[i].second.perplexity(), t.sizes[i].first);
        }
        check(t.name + ": the larger the memory the better", falling, sizes);
    }

    fs::path folder_;
};
