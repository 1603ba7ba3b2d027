"""xnli"""

from __future__ import annotations

from pathlib import Path

from pivotune.evaluation.benchmarks import Item, harness_task, load


def test_fields(folder: Path) -> None:
    assert load("xnli", "vi", folder, english=False)[1] == Item(
        id="2",
        benchmark="xnli",
        language="vi",
        context="vi premise 1",
        question="vi hypothesis 1",
        options=("entailment", "neutral", "contradiction"),
        gold=2,
        answers=("contradiction",),
    )


def test_fields_of_cc(folder: Path) -> None:
    assert load("cc_xnli", "ar", folder, english=False)[1].options == ("Entail", "Neutral", "Contradict")


def test_the_row_for_the_harness(folder: Path) -> None:
    task = harness_task(load("xnli", "vi", folder))
    assert (task.name, list(task.rows)) == ("xnli_vi", ["validation"])
    assert task.rows["validation"][0] == {
        "id": "1",
        "language": "vi",
        "premise": "vi premise 0",
        "hypothesis": "vi hypothesis 0",
        "label": 1,
    }
