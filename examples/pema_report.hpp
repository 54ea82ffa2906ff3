// SPDX-License-Identifier: MIT
#pragma once

// What examples/pema.cpp found out: table, checks and plots.
#include "pema_base.hpp"

#include <mnemo/app/svg.hpp>
#include <mnemo/app/table.hpp>

#include <cmath>

// What the tuner saw, one run.
struct PemaRunLosses {
    Series reconstruct{"reconstruction", {}, {}}, joint{"both, held out", {}, {}};
    double first = 0, reconstruction = 0, closed_form = 0;
};
// One way of decoding, one run: shares in percent.
struct PemaScore {
    double exact = 0, words = 0, bleu = 0, as_base = 0;
};
using PemaRunScores = std::vector<std::pair<std::string, PemaScore>>;

struct PemaReport {
    std::vector<PemaRunLosses> losses;
    std::vector<PemaRunScores> scores;

    bool finish(const Settings& set) {
        if (!losses.empty()) show_losses();
        if (!scores.empty()) show_scores();
        if (!set.quick) check();
        plot(set.folder);
        return passed_;
    }

  private:
    // Mean and standard deviation over the runs.
    struct Spread {
        double mean = 0, deviation = 0;
        std::string str(int digits = 1) const {
            return fmt::format("{:.{}f} \u00b1 {:.{}f}", mean, digits, deviation, digits);
        }
    };
    template <class Runs> static Spread spread(const Runs& runs, auto&& value) {
        Spread s;
        for (const auto& r : runs) s.mean += value(r) / double(runs.size());
        for (const auto& r : runs)
            s.deviation +=
                (value(r) - s.mean) * (value(r) - s.mean) / double(std::max<std::size_t>(runs.size() - 1, 1));
        s.deviation = std::sqrt(s.deviation);
        return s;
    }
    Spread of(std::size_t row, double PemaScore::*field) const {
        return spread(scores, [&](const PemaRunScores& r) { return r[row].second.*field; });
    }
    std::size_t row(const std::string& name) const {
        for (std::size_t i = 0; i < scores[0].size(); ++i)
            if (scores[0][i].first == name) return i;
        fail("report: no row ", name);
    }
    void show_losses() const {
        fmt::print("held-out reconstruction: {} at first, {} by steps, {} in closed form\n",
                   spread(losses, [](const auto& l) { return l.first; }).str(4),
                   spread(losses, [](const auto& l) { return l.reconstruction; }).str(4),
                   spread(losses, [](const auto& l) { return l.closed_form; }).str(4));
        fmt::print("held-out joint loss: {} at first, {} at best\n",
                   spread(losses, [](const auto& l) { return l.joint.y.empty() ? NAN : l.joint.y.front(); }).str(3),
                   spread(losses, [](const auto& l) {
                       return l.joint.y.empty() ? NAN : *std::min_element(l.joint.y.begin(), l.joint.y.end());
                   }).str(3));
    }
    void show_scores() const {
        Table table({"", "exact %", "BLEU", "words", "as base %"});
        for (std::size_t i = 0; i < scores[0].size(); ++i)
            table.add({scores[0][i].first, of(i, &PemaScore::exact).str(), of(i, &PemaScore::bleu).str(),
                       of(i, &PemaScore::words).str(2), of(i, &PemaScore::as_base).str()});
        fmt::print("\n{}", table.str());
    }
    void expect(const std::string& what, bool ok) {
        fmt::print("{} {}\n", ok ? "ok  " : "FAIL", what);
        passed_ = passed_ && ok;
    }
    // What is known about the standard run.
    void check() {
        if (!losses.empty())
            for (const auto& l : losses)
                expect(fmt::format("reconstruction loss falls by more than 90 % ({:.1f} %)",
                                   100 * (1 - l.reconstruction / l.first)),
                       l.reconstruction < 0.1 * l.first);
        if (scores.empty()) return;
        const auto mean = [&](const char* name, double PemaScore::*field) { return of(row(name), field).mean; };
        for (const char* name : {"fixed 0.3", "gradual 0.3", "fixed 0.5", "gradual 0.5"})
            expect(fmt::format("{} writes what the base writes ({:.1f} %)", name, mean(name, &PemaScore::as_base)),
                   mean(name, &PemaScore::as_base) >= 98);
        for (const char* lambda : {"0.9", "0.97"}) {
            const std::string fixed = fmt::format("fixed {}", lambda), gradual = fmt::format("gradual {}", lambda);
            const double base = mean("base", &PemaScore::words);
            expect(fmt::format("{} overruns and {} does not ({:.2f} and {:.2f} words, base {:.2f})", fixed, gradual,
                               mean(fixed.c_str(), &PemaScore::words), mean(gradual.c_str(), &PemaScore::words), base),
                   mean(fixed.c_str(), &PemaScore::words) > 1.05 * base &&
                       mean(gradual.c_str(), &PemaScore::words) < 1.02 * base);
        }
        expect("gradual 0.9 writes more lines as they should be than base",
               mean("gradual 0.9", &PemaScore::exact) > mean("base", &PemaScore::exact));
    }
    void plot(const std::string& folder) const {
        LineChart weights{.title = "Weight of the memory along a line", .x_label = "step", .y_label = "\u03bb"};
        for (const bool on : {false, true}) {
            Series& line = weights.series.emplace_back(Series{on ? "gradual unrolling, length 12" : "fixed", {}, {}});
            const GradualUnrolling schedule{.lambda = 0.9f, .on = on};
            for (index_t step = 0; step < 14; ++step)
                line.x.push_back(double(step)), line.y.push_back(double(schedule.weight(step, 12)));
        }
        atomic_write(folder + "/lambda.svg", weights.svg());
        if (losses.empty()) return;
        LineChart chart{.title = "Losses on held-out states", .x_label = "step", .y_label = "loss", .log_y = true};
        for (std::size_t i = 0; i < losses.size(); ++i)
            for (Series line : {losses[i].reconstruct, losses[i].joint}) {
                line.colour = line.name == losses[i].joint.name ? 1 : 0;
                line.name += fmt::format(", seed {}", i + 1);
                if (!line.x.empty()) chart.series.push_back(line);
            }
        atomic_write(folder + "/losses.svg", chart.svg());
        fmt::print("plots: {0}/lambda.svg, {0}/losses.svg\n", folder);
    }
    bool passed_ = true;
};
