"""A paper's own summary tables: its published figures, and beside them the same benchmarks and languages as found here.

What a paper publishes by language is a table for each benchmark; averages over languages are one table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pivotune.evaluation.benchmarks import BENCHMARKS, Preset, Published
from pivotune.evaluation.labels import benchmark_title, metric_name, percent
from pivotune.evaluation.page import Table, TableCell
from pivotune.plotting import language_name

Scores = Mapping[str, Mapping[tuple[str, str], float]]
"""By run and (benchmark, language), 0 to 1."""


def source(preset: Preset) -> str:
    """Where the figures are from, and what to make of them."""
    return f"{preset.paper}. {preset.note} Models, data and prompts differ from ours: a look side by side, not a test."


def published_tables(preset: Preset, protocol: str, scores: Scores) -> list[tuple[str, Table]]:
    """Tables with their titles, of the preset's benchmarks that are asked under `protocol` and were evaluated.

    A mean is over all of the paper's languages. Where one is missing, there is none: it would be another average.
    """
    tables, averages = [], []
    for benchmark in preset.benchmarks:
        own = {run: _of(found, benchmark, preset) for run, found in scores.items()}
        own = {run: found for run, found in own.items() if found}
        if BENCHMARKS[benchmark].protocol != protocol or not own:
            continue
        figures = [one for one in preset.published if one.benchmark == benchmark]
        if any(one.language is None for one in figures):
            averages.append(_averages(benchmark, preset, figures, [own.get(run, {}) for run in scores]))
        else:
            tables.append((benchmark_title(benchmark), _by_language(benchmark, preset, figures, own)))
    if averages:
        heads = ["benchmark", "published", *(f"{run}, here" for run in scores)]
        tables.append(("Means over the paper's languages", Table(heads, averages, "all in %")))
    return tables


def _of(found: Mapping[tuple[str, str], float], benchmark: str, preset: Preset) -> dict[str, float]:
    """By language."""
    codes = preset.languages[benchmark]
    return {code: found[benchmark, code] for code in codes if (benchmark, code) in found}


def _by_language(
    benchmark: str, preset: Preset, figures: Sequence[Published], own: Mapping[str, Mapping[str, float]]
) -> Table:
    codes = preset.languages[benchmark]
    by_source: dict[tuple[str, str], dict[str | None, float]] = {}
    for one in figures:
        by_source.setdefault((one.method, one.model), {})[one.language] = one.value
    rows = []
    for (method, model), values in by_source.items():
        shown = [_figure(values[code]) if code in values else "–" for code in codes]
        mean = _figure(float(np.mean(list(values.values())))) if "–" not in shown else "–"
        rows.append([TableCell(f"{method}, {model}", "published"), *map(TableCell, shown), TableCell(mean)])
    for run, found in own.items():
        shown = [percent(found[code]) if code in found else "–" for code in codes]
        rows.append([TableCell(run, "here"), *map(TableCell, shown), _mean(found, len(codes))])
    names = [language_name(code, own=False) for code in codes]
    return Table(["", *names, "mean"], rows, f"{metric_name(BENCHMARKS[benchmark].metric)}, %")


def _averages(
    benchmark: str, preset: Preset, figures: Sequence[Published], own: Sequence[Mapping[str, float]]
) -> list[TableCell]:
    what = metric_name(BENCHMARKS[benchmark].metric)
    shown = "; ".join(f"{_figure(one.value)} ({one.method})" for one in figures)
    return [
        TableCell(benchmark, what),
        TableCell(shown),
        *(_mean(found, len(preset.languages[benchmark])) for found in own),
    ]


def _mean(found: Mapping[str, float], languages: int) -> TableCell:
    if len(found) < languages:
        return TableCell("–", f"{len(found)} of {languages} languages")
    return TableCell(percent(float(np.mean(list(found.values())))))


def _figure(value: float) -> str:
    """With the digits that were published."""
    return f"{value:.2f}".removesuffix("0")
