// SPDX-License-Identifier: MIT
// Memories that no paper has tried, on one text and (but for one line) one model: the policies of one method beside
// those of another, as papers/combinations.hpp names them. Weights are chosen on valid text, test text is reported.
#include "further_text.hpp"
#include "trime_train.hpp"

#include <mnemo/nn/batch_host.hpp>
#include <mnemo/nn/pema_train.hpp>
#include <mnemo/papers/combinations.hpp>

namespace {

using DomainStore = std::shared_ptr<TokenStore<half>>;
const std::vector<float> kWeights{.1f, .2f, .3f, .4f, .5f, .6f};

// The best of the weights on valid text, and what it gives on test text; perplexity_at(text, weight).
std::pair<float, double> tuned(const Further& demo, auto&& perplexity_at) {
    float best = 0;
    double lowest = INFINITY;
    for (const float weight : kWeights)
        if (const double p = perplexity_at(demo.valid, weight); p < lowest) lowest = p, best = weight;
    return {best, perplexity_at(demo.test, best)};
}

} // namespace

int main(int argc, char** argv) {
    return further_main(
        argc, argv, "combinations", "Puts memories of several methods together.", [](const FurtherOptions& options) {
            const Further demo(options, {});
            const bool quick = options.quick;
            const Exact<L2, Threads> exact{quick ? 32 : 256, demo.threads()};
            Report report;
            Table table({"", "perplexity", "against kNN-LM", "weight"});
            double knn = 0;
            const auto add = [&](const std::string& name, double p, const std::string& weight) {
                table.add({name, fmt::format("{:.3f}", p), knn > 0 ? fmt::format("{:+.2f} %", 100 * (p / knn - 1)) : "",
                           weight});
                report.numbers["test"][name] = p;
                fmt::print("{}: {:.3f}\n", name, p); // the table comes at the end
                return p;
            };
            const auto weight_text = [](float w) { return fmt::format("{:.1f}", w); };

            // ---- kNN-LM itself.
            KnnLmSample valid{demo.valid.queries, demo.valid.targets, demo.valid.log_p},
                test{demo.test.queries, demo.test.targets, demo.test.log_p};
            const auto tuned_knn = [&](const auto& store, const auto& retriever, std::vector<float> temperatures,
                                       KnnLmSample& on_valid, KnnLmSample& on_test) {
                return tune({{exact.k}, std::move(temperatures), kWeights}, retriever, store, on_valid, on_test);
            };
            const KnnLmTuned plain = tuned_knn(*demo.store, exact, {0.3f, 1, 3}, valid, test);
            const TokenVotes votes{.temperature = plain.setting().temperature};
            const double alone = perplexity(demo.test.log_p);
            add("the model alone", alone, "");
            knn = plain.perplexity();
            add("kNN-LM", knn, weight_text(plain.setting().lambda));

            // ---- A knowledge store of the model's own text, edited as PlugLM's is: half of its entries become this
            // text's, the others are erased.
            const index_t entries =
                std::min<index_t>(demo.store->size(), static_cast<index_t>(demo.train_tokens.size()) - 1);
            const SeenText other = demo.see({demo.train_tokens.begin(), demo.train_tokens.begin() + entries + 1},
                                            "remembering the model's text");
            KnowledgeStore knowledge(demo.store->key_dim(), 0, 1); // keys, and documents of one token
            const std::vector<std::uint16_t> documents(other.targets.begin(), other.targets.end());
            knowledge.append(other.queries, Matrix(entries, 0), "own text", {documents.data(), entries, 1});
            const RetrieveSegments<Exact<L2, Threads>> segments_of{exact, exact.k}; // KnnLmOfKnowledge's
            const auto read_knowledge = [&] {
                return tuned_knn(KnowledgeTokens(knowledge.snapshot()), segments_of, {0.3f, 1, 3}, valid, test)
                    .perplexity();
            };
            add("kNN-LM, knowledge store of the model's own text", read_knowledge(), "");
            for (index_t id = 0; id < entries; ++id)
                if (id % 2 == 0) {
                    const auto token =
                        static_cast<std::uint16_t>(demo.memory_text.targets[static_cast<std::size_t>(id)]);
                    knowledge.replace(id, demo.memory_text.queries[id], {}, std::span(&token, 1));
                } else {
                    knowledge.erase(id);
                }
            const double after_edit = add("... edited: half replaced, half erased", read_knowledge(), "");

            // ---- Four memories read as one: the last 256 tokens, the last 4096, this document, the datastore.
            const auto read_four = [&](const SeenText& text, float weight, bool only_unsure, double surest,
                                       index_t& asked) {
                const auto local = std::make_shared<RingStore>(text.queries.cols, 256),
                           far = std::make_shared<RingStore>(text.queries.cols, 4096);
                const auto document = std::make_shared<TokenStore<>>(text.queries.cols);
                const FourMemories<DomainStore> stores{local, {far, {document, demo.store}}};
                const RetrieveFour<Exact<L2, Threads>, Exact<L2, Threads>> retrievers{exact, {exact, {exact, exact}}};
                const FourMemoriesLm<DomainStore, Exact<L2, Threads>, Exact<L2, Threads>> all(
                    LastHidden{}, stores, retrievers, {votes, {weight}}, {});
                const SelectiveFourMemoriesLm<DomainStore, Exact<L2, Threads>, Exact<L2, Threads>> some(
                    LastHidden{}, stores, {retrievers}, {votes, {weight}}, {});
                std::vector<float> log_p = text.log_p;
                asked = 0;
                for (index_t first = 0; first < text.size(); first += 64) { // read, then write
                    const index_t n = std::min<index_t>(64, text.size() - first);
                    const Rows states = Rows(text.queries).slice(first, n);
                    const auto at = static_cast<std::size_t>(first), count = static_cast<std::size_t>(n);
                    const auto targets = std::span(text.targets).subspan(at, count);
                    const TargetLogProbs base{targets, std::span(log_p).subspan(at, count)};
                    if (only_unsure) {
                        const at::Tensor surest_of = std::get<0>(demo.log_probs(text.prehead, first, n).max(1));
                        std::vector<std::uint8_t> wanted;
                        for (index_t i = 0; i < n; ++i) wanted.push_back(surest_of[i].item<double>() < surest ? 1 : 0);
                        asked += std::count(wanted.begin(), wanted.end(), 1);
                        some.read(SelectedQueries{states, wanted}, base);
                    } else {
                        all.read(states, base);
                    }
                    local->append(states, targets), far->append(states, targets);
                    for (index_t i = 0; i < n; ++i) {
                        const auto one = targets.subspan(static_cast<std::size_t>(i), 1);
                        document->append(states.slice(i, 1), one);
                        if (one[0] == Bpe::eos) document->clear();
                    }
                }
                return perplexity(log_p);
            };
            index_t asked = 0;
            const auto [four_weight, four] =
                tuned(demo, [&](const SeenText& text, float w) { return read_four(text, w, false, 0, asked); });
            add("local, long-term, document and datastore as one", four, weight_text(four_weight));
            const double surest = std::log(0.9); // the model is asked alone where it gives one token 90 %
            const double unsure = read_four(demo.test, four_weight, true, surest, asked);
            const double share = double(asked) / double(demo.test.size());
            add(fmt::format("... searched for {:.0f} % of the tokens, where the model is unsure", 100 * share), unsure,
                weight_text(four_weight));

            // ---- RetoMaton around the same search.
            const RetoMaton<DomainStore, Exact<L2, Threads>> automaton(
                LastHidden{}, demo.store, {exact, nullptr, retomaton_knobs::always_search, exact.k},
                {votes, {plain.setting().lambda}}, {});
            std::vector<Trail> trails(1);
            std::vector<float> log_p = demo.test.log_p;
            automaton.read(TrailQueries{demo.test.queries, trails, {}, demo.test.targets},
                           TargetLogProbs{demo.test.targets, log_p});
            add("RetoMaton, always searching", perplexity(log_p), weight_text(plain.setting().lambda));

            // ---- PEMA, whose weight falls within every 64 tokens, alone and over kNN-LM.
            TokenStore<float> contexts(demo.store->key_dim());
            contexts.append(demo.memory_text.last, demo.memory_text.targets);
            const nn::FrozenHead head = nn::exported_head(demo.model, nn::ExportedNorm::last);
            torch::manual_seed(1);
            nn::PemaAdapter adapter(nn::PemaAdapterOptions().dim(contexts.key_dim()).rank(64));
            nn::reconstruct_in_closed_form(adapter, contexts, 0.2);
            {
                const at::NoGradGuard no_grad;
                adapter->lora_A.uniform_(-0.1, 0.1); // phase 1's is thrown away
            }
            at::set_num_threads(static_cast<int>(options.threads));
            nn::PemaTrainOptions training;
            training.batch = 1024, training.epochs = quick ? 1 : 3;
            nn::PemaTrainer<TokenStore<float>> trainer(adapter, head, contexts, nullptr, training);
            Progress pema_bar("training PEMA's adapter", "steps");
            trainer.run([&](const auto& p) { return pema_bar(p.step, p.steps); });
            const auto with_pema = [&](const SeenText& text, float weight, bool over_knn) {
                const PemaOverKnnLm<DomainStore, Exact<L2, Threads>> both{
                    {LastHidden{}, demo.store, exact, {votes, {plain.setting().lambda}}, {}},
                    nn::pema_memory(adapter, head, GradualUnrolling{.lambda = weight})};
                Perplexity sum;
                for (index_t first = 0; first < text.size(); first += 512) {
                    const index_t n = std::min<index_t>(512, text.size() - first);
                    at::Tensor log_probs = demo.log_probs(text.prehead, first, n).contiguous();
                    std::vector<index_t> steps, lengths(static_cast<std::size_t>(n), 64);
                    for (index_t i = 0; i < n; ++i) steps.push_back(i % 64);
                    const PositionedLogProbs base{nn::as_mut_rows(log_probs), steps, lengths};
                    const Rows keys = Rows(text.queries).slice(first, n), last = Rows(text.last).slice(first, n);
                    over_knn ? both.read(keys, last, base) : both.second.read(last, base);
                    for (index_t i = 0; i < n; ++i)
                        sum.add(base.log_probs[i][static_cast<std::size_t>(
                            text.targets[static_cast<std::size_t>(first + i)])]);
                }
                return sum.perplexity();
            };
            const auto [pema_weight, pema] =
                tuned(demo, [&](const SeenText& text, float w) { return with_pema(text, w, false); });
            add("PEMA", pema, weight_text(pema_weight));
            const auto [over_weight, over] =
                tuned(demo, [&](const SeenText& text, float w) { return with_pema(text, w, true); });
            add("PEMA over kNN-LM", over, weight_text(over_weight));

            // ---- Another model: trained with in-batch memories, as long as the first one.
            nn::TransformerLm trime = demo.fresh();
            const Segments segments{demo.train_tokens, 64};
            const std::vector<index_t> order = shuffled(consecutive(segments.count()), 1);
            Training in_batch;
            in_batch.batch = 16;
            in_batch.steps = demo.settings().steps * demo.settings().batch * demo.settings().context / (16 * 64);
            Progress bar("training with in-batch memories", "steps");
            index_t done = 0;
            const std::string trained = options.file("trime");
            if (fs::exists(trained + "/config.json")) {
                trime = nn::load_transformer_lm(trained);
            } else {
                train(trime, segments, {Method::own_segment, "TRIME", &order}, in_batch, 1,
                      [&] { bar(++done, in_batch.steps); });
                nn::save_transformer_lm(*trime, trained);
            }
            at::set_num_threads(1);
            const SeenText trime_memory = demo.see(trime, demo.memory_text.tokens, "remembering"),
                           trime_valid = demo.see(trime, demo.valid.tokens, "reading valid text"),
                           trime_test = demo.see(trime, demo.test.tokens, "reading test text");
            TokenStore<half> trime_store(demo.store->key_dim());
            trime_store.append(trime_memory.queries, trime_memory.targets);
            KnnLmSample v{trime_valid.queries, trime_valid.targets, trime_valid.log_p},
                t{trime_test.queries, trime_test.targets, trime_test.log_p};
            const float root = std::sqrt(float(trime_store.key_dim()));
            const Exact<InnerProduct, Threads> products{exact.k, demo.threads()};
            add("a model trained with TRIME, alone", perplexity(trime_test.log_p), "");
            const KnnLmTuned of_trime = tuned_knn(trime_store, products, {root / 4, root / 2, root}, v, t);
            add("... with kNN-LM (inner products)", of_trime.perplexity(), weight_text(of_trime.setting().lambda));

            fmt::print("\nTest text, {} tokens; {} entries, k = {}, temperature {}:\n\n{}\n", demo.test.size(),
                       demo.store->size(), exact.k, votes.temperature, table.str());
            if (!quick) {
                report.check("kNN-LM beats the model alone", knn < alone, fmt::format("{:.3f} and {:.3f}", knn, alone));
                report.check("four memories as one beat the datastore alone", four < knn,
                             fmt::format("{:.3f} and {:.3f}", four, knn));
                report.check("skipping costs less than 2 %", unsure < 1.02 * four,
                             fmt::format("{:.3f} and {:.3f}, {:.0f} % searched", unsure, four, 100 * share));
                report.check("PEMA over kNN-LM beats both", over < knn && over < pema,
                             fmt::format("{:.3f}; {:.3f}, {:.3f}", over, knn, pema));
                report.check("editing a memory makes it this text's", after_edit < alone,
                             fmt::format("{:.3f} and {:.3f}", after_edit, alone));
            }
            report.save(options.file("combinations.json"));
            return report.passed();
        });
}
