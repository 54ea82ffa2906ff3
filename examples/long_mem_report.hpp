// SPDX-License-Identifier: MIT
#pragma once

// What examples/long_mem.cpp found out: tables, pictures and checks.
#include "long_mem_text.hpp"

#include <mnemo/app/report.hpp>
#include <mnemo/app/svg.hpp>
#include <mnemo/app/table.hpp>

#include <fmt/ranges.h>

// Mean and standard deviation.
inline std::pair<double, double> spread_of(const std::vector<double>& values) {
    double sum = 0, squares = 0;
    for (const double v : values) sum += v;
    const double mean = sum / double(values.size());
    for (const double v : values) squares += (v - mean) * (v - mean);
    return {mean, values.size() > 1 ? std::sqrt(squares / double(values.size() - 1)) : 0.0};
}

// Which past chunks were read when: a column for each scored segment, the newest chunks below.
inline std::string picture_of_reads(const std::vector<std::vector<double>>& reads, index_t tokens) {
    mnemo::detail::Canvas canvas("Which past tokens were read", "scored segments, in the order of the text",
                                 "tokens ago, in thousands");
    const double columns = double(reads.size()), rows = double(reads[0].size());
    const double width = (canvas.right - canvas.left) / columns, height = (canvas.bottom - canvas.top) / rows;
    for (std::size_t c = 0; c < reads.size(); ++c) {
        const double most = std::max(*std::max_element(reads[c].begin(), reads[c].end()), 1.0);
        for (std::size_t r = 0; r < reads[c].size(); ++r)
            canvas.out += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" "
                                      "fill=\"#3366aa\" fill-opacity=\"{:.2f}\"/>\n",
                                      canvas.left + width * double(c), canvas.bottom - height * double(r + 1), width,
                                      height, std::sqrt(reads[c][r] / most));
    }
    for (int i = 0; i <= 4; ++i)
        canvas.label(canvas.left - 8, canvas.bottom - (canvas.bottom - canvas.top) * i / 4 + 4.5, "end",
                     fmt::format("{}", tokens * i / 4000), "fill=\"#555\"");
    return canvas.finish();
}

struct RecallFigures { // accuracy by segment
    std::vector<double> memory, memory_off, trained_without, unaligned;
    bool backbone_kept = false;
};

class LongMemReport : public Report {
  public:
    using Json = nlohmann::ordered_json;

    // Goes on with what the report in `folder` says of the same runs.
    LongMemReport(const std::string& folder, const std::string& recall_run, const std::string& text_run)
        : path_(folder + "/long_mem.json") {
        const Json before = fs::exists(path_) ? Json::parse(read_file(path_), nullptr, false) : Json();
        for (const auto& [kind, run] : {std::pair{"recall", recall_run}, std::pair{"text", text_run}}) {
            const auto kept = Json::json_pointer("/kept") / kind;
            numbers["kept"][kind] = {{"run", run}};
            if (before.is_object() && before.value(kept / "run", "") == run) numbers["kept"][kind] = before.at(kept);
        }
    }
    // A seed's figures, if they are there.
    bool find(std::uint64_t seed, RecallFigures& to) const {
        const Json all = of_seed("recall", seed);
        if (all.is_null()) return false;
        const auto values = [&](const char* name) { return all.at(name).get<std::vector<double>>(); };
        to = {values("memory"), values("memory_off"), values("trained_without"), values("unaligned"),
              all.at("backbone_kept").get<bool>()};
        return true;
    }
    bool find(std::uint64_t seed, TextFigures& to) const {
        const Json all = of_seed("text", seed);
        if (all.is_null()) return false;
        all.at("perplexity").get_to(to.perplexity), all.at("reads").get_to(to.reads);
        all.at("said_again").get_to(to.said_again);
        all.at("tokens_a_second").get_to(to.tokens_a_second), all.at("bank_megabytes").get_to(to.bank_megabytes);
        return true;
    }
    void keep(std::uint64_t seed, const RecallFigures& of) {
        numbers["kept"]["recall"][std::to_string(seed)] = {{"memory", of.memory},
                                                           {"memory_off", of.memory_off},
                                                           {"trained_without", of.trained_without},
                                                           {"unaligned", of.unaligned},
                                                           {"backbone_kept", of.backbone_kept}};
        save(path_);
    }
    void keep(std::uint64_t seed, const TextFigures& of) {
        numbers["kept"]["text"][std::to_string(seed)] = {{"perplexity", of.perplexity},
                                                         {"reads", of.reads},
                                                         {"said_again", of.said_again},
                                                         {"tokens_a_second", of.tokens_a_second},
                                                         {"bank_megabytes", of.bank_megabytes}};
        save(path_);
    }

    void recall(const std::vector<RecallFigures>& seeds, bool checked) {
        Table table({"accuracy of values, by segment", "1", "2", "3", "4", "5", "6", "7", "8"});
        const std::vector<std::pair<const char*, std::vector<double> RecallFigures::*>> rows{
            {"memory", &RecallFigures::memory},
            {"memory, switched off", &RecallFigures::memory_off},
            {"trained without memory", &RecallFigures::trained_without},
            {"keys of another layer", &RecallFigures::unaligned}};
        std::vector<std::vector<double>> last(rows.size());
        for (std::size_t r = 0; r < rows.size(); ++r) {
            const auto& [name, field] = rows[r];
            std::vector<std::string> cells{name};
            for (std::size_t s = 0; s < (seeds[0].*field).size(); ++s) {
                std::vector<double> values;
                for (const RecallFigures& f : seeds) values.push_back((f.*field)[s]);
                cells.push_back(fmt::format("{:.2f}", spread_of(values).first));
                numbers["recall"][name].push_back(values);
                if (s + 1 == (seeds[0].*field).size()) last[r] = values;
            }
            table.add(cells);
        }
        fmt::print("\nThe recall task, mean of {} seeds:\n\n{}\n", seeds.size(), table.str());
        if (!checked) return;
        const auto all = [](const std::vector<double>& v, auto&& holds) {
            return std::all_of(v.begin(), v.end(), holds);
        };
        check("values are foretold from memory, accuracy above 0.95 in the last segment",
              all(last[0], [](double a) { return a > 0.95; }), fmt::format("{:.3f}", fmt::join(last[0], ", ")));
        for (std::size_t r = 1; r < rows.size(); ++r)
            check(fmt::format("not so: {}", rows[r].first), all(last[r], [](double a) { return a < 0.5; }),
                  fmt::format("{:.3f}", fmt::join(last[r], ", ")));
        check("backbones are bit for bit what they were",
              std::all_of(seeds.begin(), seeds.end(), [](const auto& f) { return f.backbone_kept; }),
              fmt::format("{} seeds", seeds.size()));
    }

    void text(const std::vector<TextFigures>& seeds, const TextSettings& set, const std::string& folder, bool checked) {
        Table table({"perplexity with", "mean", "\u00b1", "against no memory"});
        std::vector<std::vector<double>> values; // by row, by seed
        for (std::size_t r = 0; r < seeds[0].perplexity.size(); ++r) {
            std::vector<double>& row = values.emplace_back();
            for (const TextFigures& f : seeds) row.push_back(f.perplexity[r].second);
            const std::string& name = seeds[0].perplexity[r].first;
            numbers["perplexity"][name] = row;
            const bool size = r >= 1 && r <= set.sizes.size() + 1;
            const auto [mean, spread] = spread_of(row);
            if (r == set.sizes.size() + 2) table.add_rule();
            table.add({size     ? fmt::format("a memory of {} tokens", name)
                       : r == 0 ? "the backbone alone"
                                : name,
                       fmt::format("{:.3f}", mean), fmt::format("{:.3f}", spread),
                       r == 0 ? "" : fmt::format("{:+.2f} %", 100 * (mean / spread_of(values[1]).first - 1))});
        }
        fmt::print("\nA long text of another library, {} segments of {} tokens, {} seeds:\n\n{}\n", set.places,
                   set.segment, seeds.size(), table.str());
        std::vector<double> again, other;
        for (const TextFigures& f : seeds) again.push_back(f.said_again.first), other.push_back(f.said_again.second);
        fmt::print("The backbones alone: passages that stand behind themselves cost {:.2f} nats a token, behind other "
                   "passages {:.2f}.\n",
                   fmt::join(again, ", "), fmt::join(other, ", "));
        for (const TextFigures& f : seeds) {
            numbers["tokens_a_second"].push_back(f.tokens_a_second);
            numbers["bank_megabytes"].push_back(f.bank_megabytes);
        }
        fmt::print("Read at {:.0f} tokens a second beside the other runs; the memory of {} tokens takes {:.1f} MB.\n",
                   seeds[0].tokens_a_second, set.sizes.back(), seeds[0].bank_megabytes);
        LineChart chart{.title = "Perplexity of a long text over the size of the memory",
                        .x_label = "tokens remembered",
                        .y_label = "perplexity",
                        .log_x = true};
        for (std::size_t seed = 0; seed < seeds.size(); ++seed) {
            Series& line = chart.series.emplace_back(Series{fmt::format("seed {}", seed + 1), {}, {}});
            for (std::size_t i = 0; i < set.sizes.size(); ++i)
                line.x.push_back(double(set.sizes[i])), line.y.push_back(values[i + 2][seed]);
        }
        atomic_write(folder + "/memory.svg", chart.svg());
        atomic_write(folder + "/reads.svg", picture_of_reads(seeds[0].reads, set.sizes.back()));
        if (!checked) return;
        const std::size_t largest = set.sizes.size() + 1;
        for (std::size_t r = 2; r <= largest; ++r)
            check(fmt::format("in every seed a memory of {} tokens is better than {}", seeds[0].perplexity[r].first,
                              seeds[0].perplexity[r - 1].first),
                  smaller(values[r], values[r - 1]), joined(values[r], values[r - 1]));
        for (std::size_t r = largest + 1; r < values.size(); ++r)
            check(fmt::format("in every seed the largest memory is better than the control: {}",
                              seeds[0].perplexity[r].first),
                  smaller(values[largest], values[r]), joined(values[largest], values[r]));
    }

  private:
    std::string path_;

    Json of_seed(const char* kind, std::uint64_t seed) const {
        const Json& kept = numbers.at("kept").at(kind);
        const std::string key = std::to_string(seed);
        return kept.contains(key) ? kept.at(key) : Json();
    }
    static bool smaller(const std::vector<double>& a, const std::vector<double>& b) {
        return std::equal(a.begin(), a.end(), b.begin(), [](double x, double y) { return x < y; });
    }
    static std::string joined(const std::vector<double>& a, const std::vector<double>& b) {
        return fmt::format("{:.3f} and {:.3f}", fmt::join(a, ", "), fmt::join(b, ", "));
    }
};
