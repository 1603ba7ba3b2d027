"""The tables of the grids: what is said follows from the numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from experiments.lab.rows import TFT, by_name
from experiments.lab.tables import Row, headline, learning_rates


def simulated(name: str, share: float, nats: float, seeds: int = 5) -> list[dict[str, Any]]:
    """Results of a row that answers this share of 200 items, in two languages; English always."""
    draw = np.random.default_rng(sum(map(ord, name)))
    items = [f"item {k}" for k in range(200)]
    out = []
    for seed in range(seeds):
        answers = {}
        for language in ("zh", "vi", "en"):
            right = (draw.random(200) < (1 if language == "en" else share)).astype(int).tolist()
            given = [f"item {k} {language}" if one else f"answer {k}" for k, one in enumerate(right)]
            answers[language] = {"items": items, "right": right, "given": given}
        jitter = nats + 0.01 * draw.normal()
        columns = ("question_nats", "answer_nats", "question_cosine", "answer_cosine")
        columns += ("question_cosine_last", "answer_cosine_last")
        out.append(
            {
                "cell": {"learning_rate": 1e-3, "seed": seed},
                "answers": {"heldout": {"none": answers}},
                "inside": {language: {column: [jitter] * 8 for column in columns} for language in ("zh", "vi")},
                "terms": {term: {"first": 3.0, "last": 1.0} for term in ("language_conversion", "english_thinking")},
                "steps": 100,
                "flops_per_step": 2.0,
                "training_cpu_seconds": 10.0,
            }
        )
    return out


GOLD = {
    language: {f"item {k}": (f"item {k} {language}", f"answer {k}") for k in range(200)} for language in ("zh", "vi")
}


class Halves:
    name = "facts"

    def kind(self, item: str) -> str:
        return "even" if int(item.split()[1]) % 2 == 0 else "odd"


@pytest.fixture(scope="module")
def text() -> str:
    rows = {"TFT": (0.4, 3.0), "logits": (0.7, 2.0), "feature": (0.4, 3.0), "logits, shuffled": (0.4, 3.0)}
    steps = [
        ((by_name(name) if name != "TFT" else TFT).at_layers((1, 4)), simulated(name, *how))
        for name, how in rows.items()
    ]
    return headline(
        {"steps": steps, "flops": steps[1:2]},
        simulated("base", 0.2, 4.0, 1)[0],
        ["zh", "vi"],
        "heldout",
        GOLD,
        Halves(),
    )


def test_the_headline_finds_what_was_planted(text: str) -> None:
    assert "Gain in all languages: logits. Lose in all languages: none." in text
    assert "Gain in English: none. Lose in English: none." in text
    assert "logits, shuffled: no gain." in text
    lines = {line.split("|")[1].strip(): line for line in text.split("### Did")[1].split("\n") if line.startswith("|")}
    assert "LC yes: -1.0" in lines["logits"] and "ET yes: -1.0" in lines["logits"]
    assert "LC no" in lines["feature"] and "LC 3.00 -> 1.00" in lines["feature"]


def test_kinds_of_questions_are_told_apart(text: str) -> None:
    part = text.split("### By kind of question, equal steps")[1].split("###")[0]
    lines = {line.split("|")[1].strip(): line for line in part.split("\n") if line.startswith("|")}
    assert "even" in lines[""] and "odd" in lines[""]
    assert lines["logits"].count("*") == 2 and "*" not in lines["feature"]
    steps = simulated("TFT", 0.4, 3.0)
    row = Row("x", TFT, "none", steps)
    even, odd = (row.of_kind("heldout", ["zh", "vi"], lambda n, p=p: int(n.split()[1]) % 2 == p) for p in (0, 1))
    assert (even.mean() + odd.mean()) / 2 == pytest.approx(row.answers("heldout", "all languages", ["zh", "vi"]).mean())


def test_answers_are_told_apart() -> None:
    given = ["eins", "two", "eins", "vier", ""]
    found = {"items": list("abcde"), "right": [1, 0, 0, 0, 0], "given": given}
    row = Row("x", TFT, "none", [{"answers": {"heldout": {"none": {"de": found}}}}])
    english = {"a": "one", "b": "two", "c": "three", "d": "four", "e": "five"}
    own = {"a": "eins", "b": "zwei", "c": "drei", "d": "fier", "e": "five"}
    gold = {"de": {name: (own[name], english[name]) for name in own}}
    assert list(row.kinds("heldout", ["de"], gold).values()) == pytest.approx([0.2, 0.2, 0.2, 0.4])


def test_one_seed_is_not_judged() -> None:
    steps = [(one.at_layers((1, 4)), simulated(one.name, 0.4, 3.0, 1)) for one in (TFT, by_name("logits"))]
    text = headline(
        {"steps": steps, "flops": []}, simulated("base", 0.2, 4.0, 1)[0], ["zh", "vi"], "heldout", GOLD, Halves()
    )
    assert "are not judged" in text and "one seed" in text and "nan" not in text


def test_the_headline_is_in_order(text: str) -> None:
    rows = [
        "### Exact match",
        "### Against TFT, equal steps",
        "### Against TFT, equal FLOPs",
        "### Cost",
        "### What",
        "### Did",
    ]
    assert [text.index(head) for head in rows] == sorted(text.index(head) for head in rows)
    assert "| base model " in text and "nan" not in text


def test_learning_rates_at_an_end_of_the_list_are_pointed_out() -> None:
    scores: dict[str, dict[float, float | None]] = {
        "a": {1e-4: 0.1, 2e-4: 0.3, 4e-4: 0.2},
        "b": {1e-4: 0.4, 2e-4: 0.3, 4e-4: None},
    }
    text = learning_rates(scores, {"a": 2e-4, "b": 1e-4})
    assert "**30.0**" in text and "failed" in text
    assert "may lie beyond: b." in text
