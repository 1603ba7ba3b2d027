"""Plots of a comparison, each as PNG and SVG."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pivotune.evaluation.compare.comparison import Comparison, Found
from pivotune.evaluation.labels import benchmark_title, metric_name
from pivotune.plotting import COLORS, GREY, LEFT_TO_RIGHT, language_name, new_figure, save
from pivotune.uncertainty import Interval, Score

Curves = Mapping[str, Sequence[tuple[float, float]]]
"""By term, (step, value) at each logging step."""

_MARKERS = "osD^vP<>X"


def _looks(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """Colour and marker of each entry."""
    return {
        entry.name: (COLORS[k % len(COLORS)], _MARKERS[k % len(_MARKERS)]) for k, entry in enumerate(comparison.entries)
    }


def score_plots(
    comparison: Comparison, protocol: str, benchmark: str, found: Mapping[str, Mapping[str, Found]], plots: Path
) -> list[tuple[Path, str]]:
    """Scores of each language and, with a baseline, differences from it. Filled markers are significant."""
    metric, chance = comparison.metrics[protocol, benchmark]
    title = f"{benchmark_title(benchmark)}, {protocol}"
    scores = {
        code: {name: (Interval(*_three(one.score)), True) for name, one in row.items()} for code, row in found.items()
    }
    stem = f"{file_name(protocol)}.{file_name(benchmark)}"
    label = f"{metric_name(metric)}, %"
    path = _dots(comparison, scores, title, label, plots / f"scores.{stem}", chance or None, "chance")
    pictures = [(path, f"Scores on {title}, by language, with 95 % intervals")]
    if comparison.others:
        apart = {
            code: {name: (one.difference, one.change != "") for name, one in row.items() if one.difference is not None}
            for code, row in found.items()
        }
        label = f"difference from {_short_name(comparison.baseline.name)}, points\n(filled: significant)"
        path = _dots(comparison, apart, title, label, plots / f"differences.{stem}", 0.0, None)
        pictures.insert(0, (path, f"Differences on {title}, by language, with 95 % intervals; filled: significant"))
    return pictures


def _three(found: Score) -> tuple[float, float, float]:
    return found.mean, found.low, found.high


def _dots(
    comparison: Comparison,
    rows: Mapping[str, Mapping[str, tuple[Interval, bool]]],
    title: str,
    label: str,
    path: Path,
    line: float | None,
    line_label: str | None,
) -> Path:
    """A row for each language, in it a dot with its interval for each entry."""
    from matplotlib.lines import Line2D

    looks = {name: look for name, look in _looks(comparison).items() if any(name in row for row in rows.values())}
    names = list(looks)
    height = len(rows) * (0.22 + 0.15 * max(len(names), 1)) + 1.2 + 0.17 * len(names)
    figure, axes = new_figure(5.0, height)
    for k, row in enumerate(rows.values()):
        for name, (found, filled) in row.items():
            mean, low, high = (100 * value for value in found)
            color, marker = looks[name]
            at = k + (names.index(name) - (len(names) - 1) / 2) * 0.8 / max(len(names), 1)
            axes.plot([low, high], [at, at], color=color, linewidth=1.4)
            axes.plot([mean], [at], marker, color=color, markersize=6, markerfacecolor=color if filled else "white")
    if line is not None:
        axes.axvline(100 * line, color=GREY, linewidth=1, linestyle=":" if line_label else "-", zorder=0)
    axes.set_yticks(range(len(rows)), [LEFT_TO_RIGHT + language_name(code) for code in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(label)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.suptitle(title, fontsize=11)
    handles = [Line2D([], [], color=c, marker=m, markersize=6, label=_short_name(n)) for n, (c, m) in looks.items()]
    if line_label and line:
        handles.append(Line2D([], [], color=GREY, linestyle=":", label=line_label))
    figure.legend(handles=handles, loc="outside lower left", ncols=1, frameon=False, fontsize=9)
    return _svg(save(figure, path))


def term_plots(
    comparison: Comparison, curves: Mapping[str, Sequence[Curves]], terms: Iterable[str], plots: Path
) -> list[tuple[Path, str]]:
    """A plot for each term, a curve for each run, the seeds of a run in one colour.

    Args:
        comparison: for the colours.
        curves: by entry, those of each of its runs.
        terms: what to draw.
        plots: folder of the pictures.
    """
    from matplotlib.lines import Line2D

    looks = _looks(comparison)
    pictures = []
    for term in terms:
        drawn = {name: [one[term] for one in runs if term in one] for name, runs in curves.items()}
        if term == "pairs" or not any(len(curve) > 1 for runs in drawn.values() for curve in runs):
            continue
        figure, axes = new_figure(5.0, 2.9 + 0.17 * len(drawn))
        for name, runs in drawn.items():
            for curve in runs:
                steps, values = zip(*curve, strict=True)
                axes.plot(steps, values, color=looks[name][0], linewidth=1.4, marker=looks[name][1], markersize=3)
        axes.set_xlabel("step")
        axes.set_ylabel(term.replace("$", r"\$"))
        axes.grid(color="#dddddd", linewidth=0.6)
        figure.suptitle(f"Training: {term}".replace("$", r"\$"), fontsize=11)
        handles = [
            Line2D([], [], color=looks[n][0], marker=looks[n][1], label=_short_name(n)) for n in drawn if drawn[n]
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=1, frameon=False, fontsize=9)
        pictures.append((_svg(save(figure, plots / f"training.{file_name(term)}")), f"Training curves of {term}"))
    return pictures


def _svg(paths: Sequence[Path]) -> Path:
    return next(path for path in paths if path.suffix == ".svg")


def _short_name(name: str, longest: int = 34) -> str:
    """For a legend: no formula, and its middle left out where it is long."""
    name = name if len(name) <= longest else f"{name[: longest // 2 - 1]}…{name[-longest // 2 :]}"
    return name.replace("$", r"\$")


def file_name(name: str) -> str:
    """Of letters, digits and a few signs."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "run"
