"""What `pivotune evaluate` says of its results: scores with intervals, tables, the papers' figures beside.

Scores are shares between 0 and 1 in the report and per cent in the tables. The two protocols never share a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pivotune import uncertainty
from pivotune.evaluation.benchmarks import PRESETS, Benchmark
from pivotune.evaluation.labels import metric_name
from pivotune.evaluation.published import published_tables, source
from pivotune.evaluation.results import ItemResult
from pivotune.tables import table

PROTOCOLS = ("likelihood", "generation")


@dataclass(frozen=True)
class Scored:
    """The results of one benchmark in one language.

    Attributes:
        benchmark: the benchmark.
        language: the language.
        results: of its items, in their order.
        chance: the expected score of a guess, 0 to 1.
        without_english: items left out, because real English was to be connected and they have none.
    """

    benchmark: Benchmark
    language: str
    results: tuple[ItemResult, ...]
    chance: float
    without_english: int = 0


def report(
    cells: Sequence[Scored], *, run: str, connection: str, style: str | None = None, preset: str | None = None
) -> dict[str, Any]:
    """Scores and counts, as in scores.json.

    Under each protocol: `cells`, one for each benchmark and language; `benchmarks`, the means over languages, and
    `languages`, the means over benchmarks. Intervals are those of `pivotune.uncertainty`: 95 %, over items.
    Of a cell's answers, `ambiguous` chose several options, `unreadable` none, and `empty` ones, which are among the
    unreadable where there are options, have no text.

    Args:
        cells: of any protocols. Those without a result are left out.
        run, connection, style: what was evaluated; the style is that of generated answers' prompts.
        preset: the paper whose figures to put beside.
    """
    cells = [cell for cell in cells if cell.results]
    found: dict[str, Any] = {"run": run, "connection": connection, "style": style, "preset": preset, "protocols": {}}
    for protocol in PROTOCOLS:
        own = [cell for cell in cells if cell.benchmark.protocol == protocol]
        if not own:
            continue
        by_benchmark: dict[str, list[Scored]] = {}
        by_language: dict[str, list[Scored]] = {}
        for cell in own:
            by_benchmark.setdefault(cell.benchmark.name, []).append(cell)
            by_language.setdefault(cell.language, []).append(cell)
        found["protocols"][protocol] = {
            "cells": [_cell(cell) for cell in own],
            "benchmarks": [
                {"benchmark": name, "languages": [one.language for one in some], **_score([_block(some)])}
                for name, some in by_benchmark.items()
            ],
            "languages": [
                {
                    "language": language,
                    "benchmarks": [one.benchmark.name for one in some],
                    **_score([_block([one]) for one in some]),
                }
                for language, some in by_language.items()
            ],
        }
    return found


def _cell(cell: Scored) -> dict[str, Any]:
    results = cell.results
    unread = sum(one.choice is None and one.gold is not None and not one.ambiguous for one in results)
    told = [one.in_language for one in results if one.in_language is not None]
    return {
        "benchmark": cell.benchmark.name,
        "language": cell.language,
        "metric": cell.benchmark.metric,
        **_score([_block([cell])]),
        "items": len(results),
        "chance": round(cell.chance, 6),
        "in_language": sum(told),
        "in_another_language": len(told) - sum(told),
        "ambiguous": sum(one.ambiguous for one in results),
        "unreadable": unread,
        "empty": sum(one.prediction == "" for one in results),
        "without_english": cell.without_english,
    }


def _block(cells: Sequence[Scored]) -> np.ndarray:
    """(1, C, F) scores; languages share their items, so that an interval of their mean draws an item in all of them."""
    return uncertainty.block(
        [([one.id for one in cell.results], np.array([one.score for one in cell.results])) for cell in cells]
    )


def _score(blocks: list[np.ndarray]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in uncertainty.interval(blocks)._asdict().items()}


# Showing it ----------------------------------------------------------------------------------------------------------


def text(found: Mapping[str, Any], *, markdown: bool = False) -> str:
    """The report as tables."""
    head = "## " if markdown else ""
    lines = [f"# {found['run']}: evaluation" if markdown else f"{found['run']}, connection: {found['connection']}"]
    if markdown:
        lines += ["", f"Connection: {found['connection']}."]
    lines += ["", "Scores in per cent, with 95 % intervals over items."]
    for protocol, scores in found["protocols"].items():
        style = f", prompts in style {found['style']}" if protocol == "generation" else ""
        lines += ["", f"{head}{protocol.capitalize()}{style}", ""]
        rows = _generated_rows if protocol == "generation" else _ranked_rows
        lines.append(table(*rows(scores), markdown=markdown))
        left_out = sum(cell["without_english"] for cell in scores["cells"])
        if left_out:
            lines += ["", f"Left out, because they have no English counterpart to connect: {left_out} items."]
        if len(scores["languages"]) > 1 and len(scores["benchmarks"]) > 1:
            means = [
                [one["language"], _shown(one), ", ".join(one["benchmarks"])]
                for one in sorted(scores["languages"], key=lambda one: one["language"])
            ]
            lines += ["", f"{head}{protocol.capitalize()}: means over benchmarks, by language", ""]
            lines.append(table(["language", "mean", "of"], means, markdown=markdown))
        if found["preset"]:
            lines += _published(found, protocol, markdown, head)
    return "\n".join(lines)


def _ranked_rows(scores: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    heads = ["benchmark", "language", "metric", "score", "items", "chance"]
    rows = [_common(cell) for cell in scores["cells"]]
    if any(cell["unreadable"] for cell in scores["cells"]):  # a model whose log-likelihoods are not numbers
        heads.append("not numbers")
        rows = [[*row, str(cell["unreadable"])] for row, cell in zip(rows, scores["cells"], strict=True)]
    return heads, _with_means(rows, scores)


def _generated_rows(scores: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    heads = ["benchmark", "language", "metric", "score", "items", "chance"]
    heads += ["in language", "ambiguous", "unreadable", "empty"]
    rows = []
    for cell in scores["cells"]:
        told = cell["in_language"] + cell["in_another_language"]
        share = f"{100 * cell['in_language'] / told:.0f} % of {told}" if told else "-"
        counts = [str(cell[name]) if cell["chance"] else "-" for name in ("ambiguous", "unreadable")]
        rows.append([*_common(cell), share, *counts, str(cell["empty"])])
    return heads, _with_means(rows, scores)


def _common(cell: Mapping[str, Any]) -> list[str]:
    chance = f"{100 * cell['chance']:.1f}" if cell["chance"] else "-"
    return [
        cell["benchmark"],
        cell["language"],
        metric_name(cell["metric"]),
        _shown(cell),
        str(cell["items"]),
        chance,
    ]


def _with_means(rows: list[list[str]], scores: Mapping[str, Any]) -> list[list[str]]:
    """The rows, and behind those of a benchmark in several languages the mean over these."""
    with_means = []
    for one in scores["benchmarks"]:
        own = [row for row in rows if row[0] == one["benchmark"]]
        with_means += own
        if len(own) > 1:
            items = str(sum(int(row[4]) for row in own))
            mean = [one["benchmark"], f"mean of {len(own)}", own[0][2], _shown(one), items]
            with_means.append(mean + [""] * (len(own[0]) - len(mean)))
    return with_means


def _shown(one: Mapping[str, float]) -> str:
    return f"{100 * one['mean']:.1f} [{100 * one['low']:.1f}, {100 * one['high']:.1f}]"


def _published(found: Mapping[str, Any], protocol: str, markdown: bool, head: str) -> list[str]:
    """The paper's own summary tables, with these scores beside its figures."""
    preset = PRESETS[found["preset"]]
    scores = {(one["benchmark"], one["language"]): one["mean"] for one in found["protocols"][protocol]["cells"]}
    tables = published_tables(preset, protocol, {found["run"]: scores})
    if not tables:
        return []
    lines = ["", f"{head}{protocol.capitalize()}: beside the published figures", "", source(preset)]
    for title, one in tables:
        rows = [[cell.words for cell in row] for row in one.rows]
        lines += ["", f"{title}: {one.caption}", "", table(one.heads, rows, markdown=markdown)]
    return lines
