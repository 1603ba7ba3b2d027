"""Every template is filled, in every language, and English reads naturally."""

from pivotune.lab.templates import LANGUAGES, QUESTIONS, RELATIONS, STATEMENTS
from pivotune.lab.world import mixed_statement
from tests.lab.test_world import fact


def test_every_template_is_filled_and_distinct(world):
    for language in LANGUAGES:
        for relation in RELATIONS:
            assert len(set(STATEMENTS[language][relation])) == len(set(QUESTIONS[language][relation])) == 3
            f = next(f for f in world.split("all", language) if f.relation == relation)
            for k in range(3):
                statement, question = world.statement(f, language, k), world.question(f, language, k)
                assert f.subject_names[language] in statement
                assert f.subject_names[language] in question
                assert f.value_names[language] in statement
                assert f.value_names[language] not in question
                assert "{" not in statement + question


def test_english_reads_naturally(world):
    assert world.question(fact(world, "NL.currency"), "en") == "What is the currency of the Netherlands?"
    assert world.statement(fact(world, "BS.region"), "en") == "On the map, the Bahamas lies in the Caribbean."
    assert world.prompt(fact(world, "FR.currency"), "zh") == "问题：法国的货币是什么？\n答案："
    assert mixed_statement(fact(world, "NL.currency"), "en", "en", "zh").startswith("The currency of the Netherlands ")
    assert mixed_statement(fact(world, "NL.currency"), "zh", "en", "en") == "Netherlands的货币是Euro。"
