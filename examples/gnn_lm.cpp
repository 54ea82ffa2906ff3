// SPDX-License-Identifier: MIT
// GNN-LM on real text: a frozen small model whose states attend to the states that an index found in a remembered text
// and to those beside them. The graph layers are trained on that text, each token's own neighbourhood left out.
// Controls: layers trained without neighbours, and neighbours drawn at random. kNN-LM is mixed in on top of all.
#include "further_text.hpp"

#include <mnemo/faiss/quantizer.hpp>
#include <mnemo/io/neighbour_table.hpp>
#include <mnemo/nn/gnn_lm.hpp>

int main(int argc, char** argv) {
    return further_main(
        argc, argv, "gnn_lm", "Lets a language model attend to what it retrieves.", [](const FurtherOptions& options) {
            FurtherSettings settings;
            settings.valid = 4096, settings.test = 4096;
            const Further demo(options, settings);
            const bool quick = options.quick;
            const index_t k = quick ? 4 : 16, block = 64, trained = quick ? 512 : 16384, own_text = 2 * block;
            const TokenStore<half>& keys = *demo.store;
            const index_t corpus = keys.size();
            Report report;

            // ---- 1. Neighbours of every token, found once and kept in files. More are found for the training text,
            // whose nearest neighbours are itself.
            const auto neighbours = [&](const SeenText& text, const char* name, index_t tokens, index_t width) {
                const std::string path = options.file(fmt::format("{}.neighbors.mmap.{}", name, width));
                if (!fs::exists(path) || NeighbourTable::open(path, width).tokens() != tokens) {
                    Progress bar(fmt::format("neighbours of {} text", name), "tokens");
                    NeighbourTableWriter writer(path, width);
                    for (index_t first = 0; first < tokens; first += 1024) {
                        const index_t n = std::min<index_t>(1024, tokens - first);
                        const Exact<Cosine, Threads> exact{width, demo.threads()};
                        const auto table =
                            neighbour_table(exact.retrieve(keys, Rows(text.queries).slice(first, n)), width);
                        writer.append({table.data(), n, width});
                        bar(first + n, tokens);
                    }
                    writer.commit();
                }
                return NeighbourTable::open(path, width);
            };
            const index_t step = std::max<index_t>(1, corpus / block / (trained / block)); // blocks all over the corpus
            const NeighbourTable of_train = neighbours(demo.memory_text, "train", corpus, k + 8),
                                 of_test = neighbours(demo.test, "test", demo.test.size(), k),
                                 of_valid = neighbours(demo.valid, "valid", demo.valid.size(), k);

            // ---- 2. The corpus' states as codes; the quantizer is a FAISS file.
            const index_t d = demo.memory_text.prehead.cols;
            const std::string path = options.file("quantizer");
            if (!fs::exists(path))
                save_quantizer(path,
                               train_quantizer(Rows(demo.memory_text.prehead).slice(0, std::min<index_t>(corpus, 8000)),
                                               fmt::format("PQ{}", d / 4)));
            const ProductQuantizer quantizer = load_quantizer(path);
            std::vector<std::uint8_t> codes(static_cast<std::size_t>(corpus * quantizer.parts));
            demo.threads().run((corpus + 999) / 1000, [&](index_t task, index_t) {
                const index_t first = task * 1000, n = std::min<index_t>(1000, corpus - first);
                quantizer.encode(Rows(demo.memory_text.prehead).slice(first, n),
                                 {codes.data() + first * quantizer.parts, n, quantizer.parts});
            });
            const nn::CodedStates states{&quantizer, {codes.data(), corpus, quantizer.parts}};

            // ---- 3. Graph layers, the model frozen.
            const nn::OutputLayer output = demo.model->output_layer();
            const NeighbourGraphOptions graph{.left = 1, .right = 1, .own_text = own_text};
            const auto text_of = [&](const SeenText& text, MatrixView<const index_t> table, index_t place) {
                return nn::GraphText{text.prehead, text.targets, table, corpus, place};
            };
            std::mt19937 random(1);
            const auto random_table = [&](index_t tokens, index_t width) {
                std::vector<index_t> table;
                for (index_t i = 0; i < tokens * width; ++i)
                    table.push_back(static_cast<index_t>(random() % static_cast<std::uint32_t>(corpus)));
                return table;
            };
            const std::vector<index_t> none_train(static_cast<std::size_t>(corpus * k), -1),
                none_test(static_cast<std::size_t>(demo.test.size() * k), -1),
                random_train = random_table(corpus, k), random_test = random_table(demo.test.size(), k);
            nn::GraphTrainOptions training;
            training.steps = quick ? 3 : 200, training.blocks_a_step = 2, training.learning_rate = 5e-4;
            training.warm_up = quick ? 1 : 50, training.clip = 1;
            const auto layers = [&](const char* name, MatrixView<const index_t> table) {
                torch::manual_seed(1);
                nn::GraphDecoder decoder(
                    nn::GraphDecoderOptions().in_dim(d).layers(2).heads(4).dropout(0.1).attention_dropout(0.1));
                const std::string file = options.file(fmt::format("graph_{}.safetensors", name));
                if (fs::exists(file)) {
                    nn::load_graph_decoder(SafeTensors::open(file), file, decoder);
                    return decoder;
                }
                const nn::GraphText text = text_of(demo.memory_text, table, 0);
                Progress bar(fmt::format("training {}", name), "blocks");
                nn::train_graph(
                    decoder, output,
                    [&](index_t i) { return nn::graph_block(text, i * step * block, block, states, graph); },
                    corpus / block / step, training,
                    [&](std::int64_t done, std::int64_t total, double) { bar(done, total); });
                nn::save_graph_decoder(file, decoder);
                return decoder;
            };
            const auto scored = [&](const nn::GraphDecoder& decoder, const SeenText& text,
                                    MatrixView<const index_t> table, double share) {
                return nn::graph_log_probs(decoder, output, text_of(text, table, -1), states, block, graph, share);
            };
            const nn::GraphDecoder gnn = layers("neighbours", of_train.rows()),
                                   alone = layers("none", {none_train.data(), corpus, k}),
                                   chance = layers("random", {random_train.data(), corpus, k});

            // ---- 4. Evaluation; the share of the model alone, and kNN-LM's weight, are chosen on valid text.
            double share = 0, lowest = INFINITY;
            for (const double s : {0.0, 0.25, 0.5, 0.75})
                if (const double p = perplexity(scored(gnn, demo.valid, of_valid.rows(), s)); p < lowest)
                    lowest = p, share = s;
            const Exact<Cosine, Threads> exact{quick ? 32 : 256, demo.threads()};
            const auto tuned = [&](const std::vector<float>& valid_log_p, const std::vector<float>& test_log_p) {
                KnnLmSample valid{demo.valid.queries, demo.valid.targets, valid_log_p},
                    test{demo.test.queries, demo.test.targets, test_log_p};
                return tune({{exact.k}, {.01f, .02f, .05f, .1f}, {0, .05f, .1f, .15f, .2f, .25f, .3f}}, exact, keys,
                            valid, test)
                    .perplexity();
            };
            const auto test_gnn = scored(gnn, demo.test, of_test.rows(), share);
            const double base = perplexity(demo.test.log_p), with_graph = perplexity(test_gnn),
                         without = perplexity(scored(alone, demo.test, {none_test.data(), demo.test.size(), k}, share)),
                         at_random =
                             perplexity(scored(chance, demo.test, {random_test.data(), demo.test.size(), k}, share)),
                         knn = tuned(demo.valid.log_p, demo.test.log_p),
                         both = tuned(scored(gnn, demo.valid, of_valid.rows(), share), test_gnn);
            Table table({"", "perplexity", "against the model"});
            for (const auto& [name, p] : {std::pair{"the model alone", base},
                                          {"graph layers without neighbours", without},
                                          {"graph layers, random neighbours", at_random},
                                          {"GNN-LM", with_graph},
                                          {"kNN-LM", knn},
                                          {"GNN-LM with kNN-LM on top", both}}) {
                table.add({name, fmt::format("{:.3f}", p), fmt::format("{:+.2f} %", 100 * (p / base - 1))});
                report.numbers["test"][name] = p;
            }
            fmt::print("\nTest text, {} tokens; {} neighbours, states of {} bytes, share of the model {}:\n\n{}\n",
                       demo.test.size(), k, quantizer.parts, share, table.str());
            if (!quick) {
                report.check("GNN-LM beats the model", with_graph < base,
                             fmt::format("{:.3f} and {:.3f}", with_graph, base));
                report.check("its neighbours are why", with_graph < without && with_graph < at_random,
                             fmt::format("{:.3f}; {:.3f} without, {:.3f} at random", with_graph, without, at_random));
                report.check("kNN-LM on top improves it", both < with_graph,
                             fmt::format("{:.3f} and {:.3f}", both, with_graph));
            }
            report.save(options.file("gnn_lm.json"));
            return report.passed();
        });
}
