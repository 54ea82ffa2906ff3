// SPDX-License-Identifier: MIT
// Adaptive retrieval on real text: a small network learns from held-out text when the memory is worth asking and how
// much it should weigh. Three quarters of the valid documents train it, the others choose; test text is reported
// beside the best constant weight. With and without the state among the features. Controls: features shuffled among
// tokens, and skipping at random.
#include "further_text.hpp"

#include <mnemo/io/parameters.hpp>

namespace {

// Features of every token of a text, and the memory's own word from what was found.
LambdaSample sample_of(const Further& demo, const SeenText& text, const NgramCounts& counts, const Hits& hits,
                       const TokenVotes& votes) {
    LambdaSample out;
    const index_t n = text.size(), width = text.queries.cols + 2 * counts.order() + 2;
    out.features = Matrix(n, width);
    out.host = text.log_p;
    for (index_t first = 0; first < n; first += 512) {
        const at::Tensor log_probs =
            demo.log_probs(text.prehead, first, std::min<index_t>(512, n - first)).contiguous();
        const Rows rows = nn::as_rows(log_probs);
        for (index_t i = 0; i < rows.rows; ++i)
            write_lambda_features(text.queries[first + i],
                                  std::span(text.tokens).first(static_cast<std::size_t>(first + i + 1)), counts,
                                  rows[i], out.features[first + i]);
    }
    out.memory = memory_log_probs(hits, *demo.store, text.targets, votes);
    return out;
}
// The first three quarters of a sample, or the last: other documents.
LambdaSample part(const LambdaSample& all, bool last) {
    LambdaSample out{Matrix(0, all.features.cols), {}, {}};
    for (index_t i = 0; i < all.features.rows; ++i) {
        if ((4 * i >= 3 * all.features.rows) != last) continue;
        const auto row = all.features[i];
        out.features.data.insert(out.features.data.end(), row.begin(), row.end());
        ++out.features.rows;
        out.host.push_back(all.host[static_cast<std::size_t>(i)]);
        out.memory.push_back(all.memory[static_cast<std::size_t>(i)]);
    }
    return out;
}
// Without the first `state` columns.
LambdaSample without_state(const LambdaSample& all, index_t state) {
    LambdaSample out{Matrix(all.features.rows, all.features.cols - state), all.host, all.memory};
    for (index_t i = 0; i < all.features.rows; ++i)
        std::copy(all.features[i].begin() + state, all.features[i].end(), out.features[i].begin());
    return out;
}
double constant(const LambdaSample& s, float lambda) {
    Perplexity sum;
    for (std::size_t i = 0; i < s.host.size(); ++i)
        sum.add(log_add(std::log1p(-double{lambda}) + s.host[i], std::log(double{lambda}) + s.memory[i]));
    return sum.perplexity();
}

} // namespace

int main(int argc, char** argv) {
    return further_main(
        argc, argv, "adaptive_lambda", "Learns when a memory of text is worth asking.",
        [](const FurtherOptions& options) {
            FurtherSettings settings;
            settings.valid = 32768, settings.of_document = 384; // of many documents
            const Further demo(options, settings);
            const TokenStore<half>& store = *demo.store;
            const Exact<L2, Threads> exact{options.quick ? 32 : 256, demo.threads()};
            Report report;

            // ---- 1. Features; n-grams are counted in what is remembered.
            NgramCounts counts(adaptive_lambda_knobs::ngrams);
            counts.add(demo.memory_text.tokens);
            KnnLmSample valid_sample{demo.valid.queries, demo.valid.targets, demo.valid.log_p};
            const Hits hits = exact.retrieve(store, Rows(demo.valid.queries));
            const KnnLmSweep found = sweep({{exact.k}, {0.3f, 1, 3}, {.05f, .1f, .15f, .2f, .25f, .3f, .35f, .4f, .5f}},
                                           hits, store, valid_sample.base());
            const TokenVotes votes{.temperature = found.best().temperature};
            const float best_constant = found.best().lambda;
            const LambdaSample valid = sample_of(demo, demo.valid, counts, hits, votes),
                               test = sample_of(demo, demo.test, counts, exact.retrieve(store, Rows(demo.test.queries)),
                                                votes);
            const index_t state = demo.store->key_dim();
            const LambdaSample train = part(valid, false), held_out = part(valid, true);

            // ---- 2. The networks. A state of many numbers says much about few documents: both ways are tried.
            LambdaTraining training;
            training.epochs = options.quick ? 2 : 6;
            struct Learned {
                LambdaNetwork network;
                bool stateless;
                double loss; // on held-out documents
            };
            const auto learn = [&](const LambdaSample& from, bool stateless, const char* label) {
                std::vector<LambdaFeature> features = lambda_features(state, counts.order());
                if (stateless) features.erase(features.begin());
                LambdaNetwork network({features});
                Progress bar(label, "steps");
                const auto losses = stateless ? train_lambda(network, without_state(from, state),
                                                             without_state(held_out, state), training, std::ref(bar))
                                              : train_lambda(network, from, held_out, training, std::ref(bar));
                for (const double loss : losses) report.numbers[label].push_back(std::exp(loss));
                return Learned{std::move(network), stateless, *std::min_element(losses.begin(), losses.end())};
            };
            const Learned with_state = learn(train, false, "training with the state"),
                          stateless = learn(train, true, "training without the state");
            const Learned& network = with_state.loss < stateless.loss ? with_state : stateless;
            save_parameters(options.file("lambda.safetensors"), network.network);
            LambdaSample mixed_up = train; // the same opinions, somebody else's features
            std::mt19937_64 random(1);
            for (index_t i = mixed_up.features.rows - 1; i > 0; --i) {
                const auto j = static_cast<index_t>(random() % static_cast<std::uint64_t>(i + 1));
                if (j != i)
                    std::swap_ranges(mixed_up.features[i].begin(), mixed_up.features[i].end(),
                                     mixed_up.features[j].begin());
            }
            const Learned blind = learn(mixed_up, network.stateless, "training on shuffled features");

            // ---- 3. Test text, through the memory; with a threshold it is asked only where that seems to pay.
            const double alone = perplexity(demo.test.log_p), fixed = constant(test, best_constant);
            index_t asked = 0;
            const auto with = [&](const Learned& learned, double skip) {
                const LambdaNetwork& by = learned.network;
                const auto features_of = [&](const LambdaSample& s) {
                    return learned.stateless ? without_state(s, state).features : s.features;
                };
                const Matrix features = features_of(test);
                const float threshold = skip_threshold(by, features_of(held_out), skip);
                const auto wanted = worth_asking(by, features, threshold);
                asked = std::count(wanted.begin(), wanted.end(), 1);
                const SkippingKnnLm<std::shared_ptr<TokenStore<half>>, Exact<L2, Threads>> memory(
                    LastHidden{}, demo.store, {exact}, {votes, {&by, threshold}}, {});
                std::vector<float> log_p = demo.test.log_p;
                memory.read(SelectedQueries{demo.test.queries, wanted},
                            FeaturedTargets{demo.test.targets, log_p, features});
                return perplexity(log_p);
            };
            Table table({"", "perplexity", "against the best constant", "searches"});
            const auto add = [&](const std::string& name, double p, double share) {
                table.add({name, fmt::format("{:.3f}", p), fmt::format("{:+.2f} %", 100 * (p / fixed - 1)),
                           fmt::format("{:.0f} %", 100 * share)});
                report.numbers["test"][name] = {{"perplexity", p}, {"searches", share}};
            };
            const auto n = double(demo.test.size());
            add("the model alone", alone, 0);
            add(fmt::format("kNN-LM, constant lambda {}", best_constant), fixed, 1);
            double oracle = INFINITY; // no method: chosen on test text itself
            for (const float l : {.1f, .15f, .2f, .25f, .3f, .35f, .4f, .45f, .5f})
                oracle = std::min(oracle, constant(test, l));
            add("the best constant lambda for test text", oracle, 1);
            const double adaptive = with(network, 0);
            add(fmt::format("adaptive lambda, chosen: {} the state", network.stateless ? "without" : "with"), adaptive,
                1);
            add(fmt::format("... {} the state", network.stateless ? "with" : "without"),
                with(network.stateless ? with_state : stateless, 0), 1);
            Series line{"where the network says", {}, {}}, chance{"at random, constant lambda", {}, {}};
            double half_skipped = 0, half_random = 0;
            for (const double skip : {0.25, 0.5, 0.75}) {
                const double p = with(network, skip), share = double(asked) / n;
                add(fmt::format("adaptive lambda, {:.0f} % of valid text not asked", 100 * skip), p, share);
                std::vector<float> log_p = demo.test.log_p; // as many searches, anywhere
                for (std::size_t i = 0; i < log_p.size(); ++i)
                    if (double(random() % 1000) < 1000 * share)
                        log_p[i] = log_add(std::log1p(-double{best_constant}) + test.host[i],
                                           std::log(double{best_constant}) + test.memory[i]);
                add("... as many at random, constant lambda", perplexity(log_p), share);
                line.x.push_back(share), line.y.push_back(p), chance.x.push_back(share),
                    chance.y.push_back(perplexity(log_p));
                if (skip == 0.5) half_skipped = p, half_random = perplexity(log_p);
            }
            const double blind_p = with(blind, 0);
            add("trained on shuffled features", blind_p, 1);
            fmt::print("\nTest text, {} tokens; k = {}, temperature {}:\n\n{}\n", demo.test.size(), exact.k,
                       votes.temperature, table.str());
            const LineChart chart{.title = "Perplexity of test text over searches",
                                  .x_label = "share of the tokens that are searched for",
                                  .y_label = "perplexity",
                                  .series = {line, chance, {"constant lambda", {0, 1}, {fixed, fixed}}}};
            atomic_write(options.file("adaptive_lambda.svg"), chart.svg());
            if (!options.quick) {
                report.check("adaptive lambda beats the best constant one, even the one that is best for test text",
                             adaptive < std::min(fixed, oracle),
                             fmt::format("{:.3f} and {:.3f}, {:.3f}", adaptive, fixed, oracle));
                report.check("its features are why", adaptive < blind_p,
                             fmt::format("{:.3f} and {:.3f}", adaptive, blind_p));
                report.check("half the searches, chosen, beat half at random", half_skipped < half_random,
                             fmt::format("{:.3f} and {:.3f}", half_skipped, half_random));
            }
            report.save(options.file("adaptive_lambda.json"));
            return report.passed();
        });
}
