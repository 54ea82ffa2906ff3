// SPDX-License-Identifier: MIT
// PlugLM on real text: a small model learns to look up words in a knowledge base of phrases whose words change with
// every step, so that its weights can know none of them. Then (a) the base is exchanged for others, never seen, (b) one
// entry is edited, (c) another library's phrases are added.
#include "plug_lm_train.hpp"

#include <mnemo/app/table.hpp>

#include <CLI/CLI.hpp>

int run(const Settings& set) {
    std::vector<std::filesystem::path> folders;
    std::istringstream known(MNEMO_INCLUDE_FOLDERS);
    for (std::string folder; std::getline(known, folder, ':');) folders.emplace_back(folder);
    std::vector<Corpus> corpora;
    for (const std::string& folder : set.text)
        corpora.push_back(split_by_name(std::filesystem::path(folder).filename().string(), read_paths({folder})));
    const Facts facts = read_facts(corpora.empty() ? installed_headers(folders) : corpora, set.facts, set.words);
    const double chance = 100.0 / static_cast<double>(facts.values.size());
    const auto mine = numbers(0, facts.first), others = numbers(facts.first, facts.all.size());
    fmt::print("{} facts of {} and {} of {}, {} words that are exchanged (chance {:.1f} %), vocabulary {}\n",
               mine.size(), facts.names[0], others.size(), facts.names[1], facts.values.size(), chance,
               facts.words.size());

    Series curve{"a base never seen", {}, {}};
    const nn::PlugLm model = train(set, facts, curve);
    Reader reader(model, facts);
    Checks checks{true, set.quick};
    std::mt19937_64 draw(static_cast<std::uint64_t>(set.seed) + 1000);

    // (a) The text as it is, which training never showed; then another base in its place.
    const Assignment truth = facts.truths(), other = facts.unlike(truth, draw);
    KnowledgeStore base = reader.empty();
    reader.encode(base, truth, 0, facts.first);
    const auto before = base.snapshot();
    KnowledgeStore fresh = reader.empty();
    reader.encode(fresh, other, 0, facts.first);
    base.swap_base(std::move(fresh));
    const auto after = base.snapshot();
    Assignment mixed = other; // each entry says another entry's word: the right phrase is found in vain
    for (std::size_t i = 0; i < facts.first; ++i) mixed[i] = other[(i + 7) % facts.first];
    KnowledgeStore shuffled = reader.empty(), nothing = reader.empty();
    reader.encode(shuffled, mixed, 0, facts.first);
    Table table({"base", "entry found %", "as the text %", "as the new base %"});
    std::vector<double> bars;
    const auto row = [&](const std::string& name, const KnowledgeSnapshot& snapshot) {
        const double old_words = reader.share(snapshot, truth, mine), new_words = reader.share(snapshot, other, mine);
        table.add({name, fmt::format("{:.1f}", reader.found(snapshot)), fmt::format("{:.1f}", old_words),
                   fmt::format("{:.1f}", new_words)});
        bars.push_back(new_words);
        return std::pair(old_words, new_words);
    };
    const auto text = row("the text", *before), swapped = row("swapped", *after),
               stale = row("stale: the text's still", *before), mix = row("shuffled values", *shuffled.snapshot()),
               none = row("no entries", *nothing.snapshot());
    fmt::print("\n{}\n", table.str());
    const double high = chance + 15; // a few facts more than chance
    checks.expect(fmt::format("the text's base, never seen, is followed ({:.1f} %)", text.first), text.first > 95);
    checks.expect(fmt::format("the swapped base is followed ({:.1f} %)", swapped.second), swapped.second > 95);
    checks.expect(fmt::format("... and the old one no more ({:.1f} %)", swapped.first), swapped.first < high);
    checks.expect(fmt::format("a stale base gives the old words ({:.1f} % new)", stale.second), stale.second < high);
    checks.expect(fmt::format("shuffled values are at chance ({:.1f} %)", mix.second), mix.second < high);
    checks.expect(fmt::format("no entries are at chance ({:.1f} %)", none.second), none.second < high);

    // (b) One entry says something else.
    const std::size_t edited = draw() % facts.first;
    Assignment wanted = other;
    while (wanted[edited] == other[edited]) wanted[edited] = facts.values[draw() % facts.values.size()];
    const DocumentRows document = facts.documents(wanted, edited, edited + 1);
    const Answers was = reader.ask(*after, mine);
    {
        const torch::NoGradGuard no_grad;
        const auto encoded = model->encoder()->refresh(nn::document_ids(document.view()));
        base.replace(static_cast<index_t>(edited), nn::as_rows(encoded.key)[0], nn::as_rows(encoded.value)[0],
                     document.view()[0]);
    }
    const auto changed = base.snapshot();
    const Answers is = reader.ask(*changed, mine);
    std::size_t other_words = 0, untouched = 0, equal = 0;
    for (std::size_t i = 0; i < mine.size(); ++i) {
        const auto fired = [&](const Answers& a, const KnowledgeSnapshot& s) {
            const auto rows = a.hits.ids(static_cast<index_t>(i));
            return std::any_of(rows.begin(), rows.end(),
                               [&](index_t r) { return s.id(r) == static_cast<index_t>(edited); });
        };
        if (i != edited && is.words[i] != was.words[i]) ++other_words;
        if (fired(was, *after) || fired(is, *changed)) continue;
        ++untouched;
        const auto n = static_cast<index_t>(i);
        equal += at::equal(was.logits[n], is.logits[n]);
    }
    fmt::print("\nedit: \"{}\": {} -> {}; asked, the model says {} -> {}\n",
               facts.text_of(after->document(static_cast<index_t>(edited))),
               facts.words[static_cast<std::size_t>(other[edited])],
               facts.words[static_cast<std::size_t>(wanted[edited])],
               facts.words[static_cast<std::size_t>(was.words[edited])],
               facts.words[static_cast<std::size_t>(is.words[edited])]);
    checks.expect("the edited fact is answered by its new word", is.words[edited] == wanted[edited]);
    checks.expect(fmt::format("no other answer changes ({} do)", other_words), other_words == 0);
    checks.expect(
        fmt::format("where the entry did not fire nothing changes at all ({} of {} bit for bit)", equal, untouched),
        equal == untouched && untouched > 0);

    // (c) Another domain: phrases and words that training never saw.
    Assignment both = wanted;
    std::copy(truth.begin() + static_cast<std::ptrdiff_t>(facts.first), truth.end(),
              both.begin() + static_cast<std::ptrdiff_t>(facts.first));
    const double without = reader.share(*changed, both, others), mine_before = reader.share(*changed, both, mine);
    reader.encode(base, both, facts.first, facts.all.size());
    const auto joined = base.snapshot();
    const double with = reader.share(*joined, both, others), mine_after = reader.share(*joined, both, mine);
    Table domains({"", facts.names[0] + " %", facts.names[1] + " %"});
    domains.add({"base of " + facts.names[0], fmt::format("{:.1f}", mine_before), fmt::format("{:.1f}", without)});
    domains.add({"and of " + facts.names[1], fmt::format("{:.1f}", mine_after), fmt::format("{:.1f}", with)});
    fmt::print("\n{}\n", domains.str());
    checks.expect(fmt::format("without its documents {} is at chance ({:.1f} %)", facts.names[1], without),
                  without < high);
    checks.expect(fmt::format("its documents are read ({:.1f} %)", with), with > without + 30);
    checks.expect(fmt::format("the first domain keeps its answers ({:.1f} -> {:.1f} %)", mine_before, mine_after),
                  mine_after > mine_before - 5);

    // Which entries fired, for a question of each domain.
    const std::vector<std::size_t> some = {0, facts.first};
    const Answers shown = reader.ask(*joined, some);
    Attribution attribution;
    attribution.add(0, 1, shown.hits, *joined);
    fmt::print("\n");
    for (const Fired& f : attribution.fired()) {
        const std::size_t question = some[static_cast<std::size_t>(f.sequence)];
        if (f.rank == 0)
            fmt::print("\"{}\", without its word: the model says \"{}\"\n",
                       facts.text_of(facts.documents(both, question, question + 1).view()[0]),
                       facts.words[static_cast<std::size_t>(shown.words[static_cast<std::size_t>(f.sequence)])]);
        fmt::print("  {:7.2f}  entry {:3} of {}: {}\n", f.score, f.id,
                   joined->sources()[static_cast<std::size_t>(f.source)].name, facts.text_of(joined->document(f.row)));
    }

    atomic_write(set.folder + "/learning.svg", LineChart{.title = "Masked words answered as a base never seen says",
                                                         .x_label = "step",
                                                         .y_label = "percent",
                                                         .series = {curve}}
                                                   .svg());
    BarChart chart{.title = "Answers as the new base has them",
                   .y_label = "percent",
                   .groups = {"the text", "swapped", "stale", "shuffled", "no entries"}};
    chart.series.push_back({"memory", {}, bars});
    atomic_write(set.folder + "/swap.svg", chart.svg());
    fmt::print("\nmodel and plots: {}\n", set.folder);
    return checks.passed ? 0 : 1;
}

int main(int argc, char** argv) {
    Settings set;
    CLI::App app("PlugLM: a masked language model that reads a knowledge base, which is swapped, edited and extended");
    app.add_option("folder", set.folder, "where the model and the plots go")->capture_default_str();
    app.add_option("--text", set.text, "two folders of sources to take phrases from; default: installed headers");
    app.add_option("--seed", set.seed)->capture_default_str();
    app.add_option("--steps", set.steps)->capture_default_str();
    app.add_option("--rate", set.rate, "learning rate")->capture_default_str();
    app.add_option("--entries", set.entries, "that a sequence recalls")->capture_default_str();
    app.add_option("--facts", set.facts, "of each domain")->capture_default_str();
    app.add_option("--words", set.words, "that are exchanged")->capture_default_str();
    app.add_flag("--quick", set.quick, "a minute less: too few steps to learn anything");
    CLI11_PARSE(app, argc, argv);
    if (set.quick) set.steps = std::min<index_t>(set.steps, 20);
    at::set_num_threads(1);
    try {
        return run(set);
    } catch (const Error& error) {
        fmt::print(stderr, "{}\n", error.what());
        return 2;
    }
}
