// SPDX-License-Identifier: MIT
// RetoMaton on real text: kNN-LM searches its memory at every token; the automaton follows pointers and searches only
// where none is left. Settings are chosen on valid text: the fewest searches within 0.5 % of kNN-LM's perplexity; test
// text is reported. Controls: pointers into a memory whose text was shuffled, and searching as rarely at random.
#include "further_text.hpp"

#include <mnemo/io/clusters.hpp>

struct Outcome {
    double perplexity = 0, saved = 0;
};

int main(int argc, char** argv) {
    return further_main(
        argc, argv, "retomaton", "Saves searches of a memory of text by following it.",
        [](const FurtherOptions& options) {
            const Further demo(options, {});
            const index_t k = options.quick ? 32 : 256;
            const Exact<L2> exact{k};
            const TokenStore<half>& store = *demo.store;
            Report report;

            // ---- 1. kNN-LM: one search for each token; temperature and lambda are chosen on valid text.
            const KnnLmGrid grid{{k}, {0.3f, 1, 3}, {.05f, .1f, .15f, .2f, .25f, .3f, .4f, .5f}};
            KnnLmSample valid{demo.valid.queries, demo.valid.targets, demo.valid.log_p},
                test{demo.test.queries, demo.test.targets, demo.test.log_p};
            const KnnLmTuned knn = tune(grid, Exact<L2, Threads>{k, demo.threads()}, store, valid, test);
            const auto [same_k, temperature, lambda] = knn.setting();
            const double alone = perplexity(demo.test.log_p), base_valid = knn.valid.at(knn.setting()),
                         base = knn.perplexity();

            // ---- 2. The clusters, kept in a file.
            const std::string path = options.file("clusters.npy");
            Clusters clusters;
            try {
                clusters = load_clusters(path, store.size());
            } catch (const Error&) {
                clusters = cluster_keys(store, {.lists = store.size() / 100, .rounds = 5}, demo.threads());
                save_clusters(path, clusters);
            }

            // ---- 3. The automaton, one sequence from the text's first token to its last.
            const auto follow = [&](const SeenText& text, index_t min_knns, index_t max_knns, const Clusters* with,
                                    const auto& in) {
                using Store = std::remove_cvref_t<decltype(in)>;
                const RetoMaton<std::shared_ptr<const Store>, Exact<L2>> memory(
                    LastHidden{}, std::shared_ptr<const Store>(std::shared_ptr<void>(), &in), // borrowed
                    {exact, with, min_knns, max_knns}, {{.temperature = temperature}, {lambda}}, {});
                std::vector<Trail> trails(1);
                std::vector<float> log_p = text.log_p;
                memory.read(TrailQueries{text.queries, trails, {}, text.targets}, TargetLogProbs{text.targets, log_p});
                return Outcome{perplexity(log_p), trails[0].saved()};
            };
            struct Row {
                index_t min_knns, max_knns;
                bool clustered;
                Outcome valid;
            };
            std::vector<Row> rows;
            const std::vector<index_t> least =
                options.quick ? std::vector<index_t>{1, 8} : std::vector<index_t>{1, 2, 4, 8, 16, 32};
            index_t done = 0;
            for (Progress bar("following"); const bool clustered : {false, true})
                for (const index_t max_knns : {k, 4 * k})
                    for (const index_t min_knns : least) {
                        if (!clustered && max_knns > k) continue; // pointers alone are never so many
                        rows.push_back(
                            {min_knns, max_knns, clustered,
                             follow(demo.valid, min_knns, max_knns, clustered ? &clusters : nullptr, store)});
                        bar(++done, 3 * static_cast<index_t>(least.size()));
                    }
            const Row* best = nullptr;
            for (const Row& row : rows)
                if (row.valid.perplexity <= 1.005 * base_valid &&
                    (best == nullptr || row.valid.saved > best->valid.saved))
                    best = &row;
            if (best == nullptr) // nothing is as good: the nearest
                best = &*std::min_element(rows.begin(), rows.end(), [](const Row& a, const Row& b) {
                    return a.valid.perplexity < b.valid.perplexity;
                });

            // ---- 4. Test text, and controls.
            const Clusters* with = best->clustered ? &clusters : nullptr;
            const Outcome chosen = follow(demo.test, best->min_knns, best->max_knns, with, store);
            const Outcome always = follow(demo.test, retomaton_knobs::always_search, best->max_knns, nullptr, store);
            const auto shuffled_tokens = shuffled_values(store);
            const Outcome shuffled = follow(demo.test, best->min_knns, best->max_knns, with,
                                            WithValues(store, std::span<const std::int32_t>(shuffled_tokens)));
            // As many searches, at tokens drawn at random; the others keep the model's own probability.
            const Hits hits = Exact<L2, Threads>{k, demo.threads()}.retrieve(store, Rows(demo.test.queries));
            std::vector<float> random_log_p = demo.test.log_p;
            {
                Arena arena;
                const Rows queries = demo.test.queries;
                TargetLogProbs all{demo.test.targets, random_log_p};
                Interpolate{TokenVotes{.temperature = temperature}, Fixed{lambda}}.combine(
                    all, Reading{queries, hits, store, arena});
                std::mt19937 random(1);
                for (std::size_t i = 0; i < random_log_p.size(); ++i)
                    if (random() % 1000 < 1000 * chosen.saved) random_log_p[i] = demo.test.log_p[i];
            }

            Table table({"", "perplexity", "against kNN-LM", "searches saved"});
            const auto add = [&](const std::string& name, double p, double saved) {
                table.add({name, fmt::format("{:.3f}", p), fmt::format("{:+.2f} %", 100 * (p / base - 1)),
                           fmt::format("{:.1f} %", 100 * saved)});
                report.numbers["test"][name] = {{"perplexity", p}, {"saved", saved}};
            };
            add("the model alone", alone, 1);
            add("kNN-LM", base, 0);
            add(fmt::format("RetoMaton, min_knns {}, max_knns {}{}", best->min_knns, best->max_knns,
                            best->clustered ? ", clusters" : ""),
                chosen.perplexity, chosen.saved);
            add("... always searching, pointers besides", always.perplexity, 0);
            add("as many searches at random tokens", perplexity(random_log_p), chosen.saved);
            add("RetoMaton, values of the memory shuffled", shuffled.perplexity, shuffled.saved);
            fmt::print("\nTest text, {} tokens; k = {}, temperature {}, lambda {}:\n\n{}\n", demo.test.size(), k,
                       temperature, lambda, table.str());
            LineChart chart{.title = "Perplexity of valid text over searches saved",
                            .x_label = "share of searches saved",
                            .y_label = "perplexity"};
            for (const bool clustered : {false, true}) {
                Series& line =
                    chart.series.emplace_back(Series{clustered ? "with clusters" : "pointers alone", {}, {}});
                for (const Row& row : rows) {
                    report.numbers["valid"].push_back({{"min_knns", row.min_knns},
                                                       {"max_knns", row.max_knns},
                                                       {"clusters", row.clustered},
                                                       {"perplexity", row.valid.perplexity},
                                                       {"saved", row.valid.saved}});
                    if (row.clustered == clustered && (!clustered || row.max_knns > k))
                        line.x.push_back(row.valid.saved), line.y.push_back(row.valid.perplexity);
                }
            }
            chart.series.push_back({"kNN-LM", {0, 1}, {base_valid, base_valid}});
            atomic_write(options.file("retomaton.svg"), chart.svg());
            if (!options.quick) {
                report.check("RetoMaton is within 0.5 % of kNN-LM", chosen.perplexity < 1.005 * base,
                             fmt::format("{:.3f} and {:.3f}", chosen.perplexity, base));
                report.check("it saves more than half of the searches", chosen.saved > 0.5,
                             fmt::format("{:.1f} %", 100 * chosen.saved));
                report.check("searching as rarely at random is worse", perplexity(random_log_p) > chosen.perplexity,
                             fmt::format("{:.3f} and {:.3f}", perplexity(random_log_p), chosen.perplexity));
            }
            report.save(options.file("retomaton.json"));
            return report.passed();
        });
}
