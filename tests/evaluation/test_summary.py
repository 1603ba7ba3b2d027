"""What pivotune evaluate says of its results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pivotune.evaluation.benchmarks import BENCHMARKS, benchmark_of
from pivotune.evaluation.results import ItemResult
from pivotune.evaluation.summary import Scored, report, text


def cell(name: str, language: str, scores: Sequence[float], **fields: Any) -> Scored:
    results = tuple(ItemResult(id=str(n), score=score, **fields) for n, score in enumerate(scores))
    return Scored(benchmark_of(name), language, results, chance=BENCHMARKS[name].chance or 0.0)


def test_empty_answers_are_counted() -> None:
    for name, ambiguous, unreadable in (("mkqa", "-", "-"), ("cc_xnli", "0", "3")):
        silent = cell(name, "zh", [0, 0], prediction="", gold=0 if name == "cc_xnli" else None)
        spoken = cell(name, "zh", [0], prediction="a", gold=0 if name == "cc_xnli" else None)
        found = report([replace(silent, results=silent.results + spoken.results)], run="r", connection="none")
        assert found["protocols"]["generation"]["cells"][0]["empty"] == 2
        (line,) = [line for line in text(found).splitlines() if line.startswith(name)]
        assert line.split()[-3:] == [ambiguous, unreadable, "2"]


def test_protocols_never_share_a_table() -> None:
    cells = [
        cell("xnli", "vi", [1, 0, 0, 1]),
        cell("xnli", "zh", [1, 1, 1, 1]),
        cell("xcopa", "vi", [0, 0, 1, 1]),
        cell("xquad", "vi", [0.5, 0.25], in_language=True),
        cell("cc_xnli", "zh", [1, 0], gold=1, in_language=False),
    ]
    found = report(cells, run="r", connection="none", style="plain", preset="dft")
    ranked, generated = found["protocols"]["likelihood"], found["protocols"]["generation"]
    assert {one["benchmark"] for one in ranked["cells"]} == {"xnli", "xcopa"}
    assert {one["benchmark"] for one in generated["cells"]} == {"xquad", "cc_xnli"}
    assert [(one["benchmark"], one["mean"]) for one in ranked["benchmarks"]] == [("xnli", 0.75), ("xcopa", 0.5)]
    assert [(one["language"], one["mean"]) for one in ranked["languages"]] == [("vi", 0.5), ("zh", 1.0)]
    first = ranked["cells"][0]
    assert first["low"] < first["mean"] == 0.5 < first["high"] and first["items"] == 4
    assert generated["cells"][1]["unreadable"] == 2 and generated["cells"][1]["in_another_language"] == 2
    shown = text(found)
    above, below = shown.split("\nGeneration, prompts in style plain\n")
    assert "xquad" not in above and "xcopa" not in below
    assert "TFT, LLaMA-2-7B" in above and "44.1" in above and "2503.01275" in above
    assert "xnli" in text(found, markdown=True) and "| xnli " in text(found, markdown=True)
    cc = text(report(cells[4:], run="r", connection="none", preset="cc"))
    assert "53.06 (best average)" in cc and "2506.00875" in cc
