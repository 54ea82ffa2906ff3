// SPDX-License-Identifier: MIT
#include <catch.hpp>
#include <mnemo/text/answer_metrics.hpp>

using namespace mnemo;
using Words = std::vector<std::string>;

TEST_CASE("answers: SQuAD's normalisation, exact match and F1") {
    CHECK(normalized_answer("  The  Eiffel-Tower, (a)\tAnt! ") == "eiffeltower ant");
    const Words golds = {"the Denver Broncos", "Broncos"};
    CHECK(score_answer("Denver Broncos!", golds).exact == 1);
    const AnswerScore partly = score_answer("Carolina Broncos", golds);
    CHECK(partly.exact == 0);
    CHECK(partly.f1 == Approx(2.0 / 3));                                      // against "Broncos": 1 of 2 and 1 of 1
    CHECK(score_answer("Paris Paris", Words{"Paris"}).f1 == Approx(2.0 / 3)); // a word counts as often as it is there
    CHECK(score_answer("", {}).f1 == 1);
    CHECK(score_answer("x", {}).exact == 0);
    CHECK(score_answer("the", Words{"x"}).f1 == 0);
}

TEST_CASE("answers: BioASQ's ranked scores look at five") {
    const Words golds = {"TP53", "p53"};
    CHECK(score_ranked(Words{"p53", "x"}, golds).strict == 1);
    const RankedScore third = score_ranked(Words{"x", "y", "The TP53"}, golds);
    CHECK((third.strict == 0 && third.lenient == 1));
    CHECK(third.reciprocal_rank == Approx(1.0 / 3));
    CHECK(score_ranked(Words{"1", "2", "3", "4", "5", "p53"}, golds).lenient == 0);
}

TEST_CASE("answers: entities as seqeval reads them") {
    const auto of = [](const Words& tags) { return entities_of(tags); };
    CHECK(of({"B-PER", "I-PER", "O", "B-LOC"}) == std::vector<Entity>{{"PER", 0, 1}, {"LOC", 3, 3}});
    CHECK(of({"O", "I-PER", "I-LOC"}) == std::vector<Entity>{{"PER", 1, 1}, {"LOC", 2, 2}}); // no B, another type
    CHECK(of({"B-PER", "B-PER"}) == std::vector<Entity>{{"PER", 0, 0}, {"PER", 1, 1}});
    CHECK(of({"O", "O"}).empty());
    EntityScore score;
    score.add(Words{"B-PER", "I-PER", "O", "B-LOC"}, Words{"B-PER", "O", "O", "B-LOC"});
    CHECK(score.precision() == Approx(0.5));
    score.add(Words{"B-ORG", "O"}, Words{"O", "O"});
    CHECK(score.recall() == Approx(1.0 / 3));
    CHECK(score.f1() == Approx(0.4));
    CHECK_THROWS_AS(score.add(Words{"O"}, Words{}), Error);
}

TEST_CASE("answers: spans lie in the context, end after they start and are not too long") {
    const std::vector<float> start = {9, 1, 5, 0, 3}, end = {9, 0, 2, 6, 1};
    const std::vector<std::uint8_t> allowed = {0, 1, 1, 1, 1};
    const auto spans = best_spans(start, end, allowed, 20, 2);
    REQUIRE(!spans.empty());
    CHECK((spans[0].first == 2 && spans[0].last == 3 && spans[0].score == 11));
    for (const AnswerSpan& s : spans) CHECK((s.first > 0 && s.last >= s.first && s.last - s.first < 2));
    CHECK(best_spans(start, end, allowed, 1, 30).empty()); // the only candidates are outside
    CHECK_THROWS_AS(best_spans(start, end, {}, 1, 30), Error);
}
