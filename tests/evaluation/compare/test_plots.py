"""Plots of a comparison: what is drawn where, in which colour, and the files' names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from pivotune.evaluation.compare import Comparison, collect
from pivotune.evaluation.compare import plots as module
from pivotune.evaluation.compare.plots import file_name, score_plots, term_plots


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """By name, what would have been written."""
    found: dict[str, Figure] = {}

    def keep(figure: Figure, path: Path) -> list[Path]:
        found[path.name] = figure
        return [path.with_name(f"{path.name}.png"), path.with_name(f"{path.name}.svg")]

    monkeypatch.setattr(module, "save", keep)
    return found


def test_scores_and_differences_are_those_of_the_comparison(
    two: tuple[str, str], tmp_path: Path, drawn: dict[str, Figure]
) -> None:
    comparison = Comparison(collect(two))
    cells = comparison.results["likelihood"].cells
    found = {cell.language: row for cell, row in cells.items() if cell.benchmark == "xnli"}
    pictures = score_plots(comparison, "likelihood", "xnli", found, tmp_path)
    assert [path.name for path, _ in pictures] == ["differences.likelihood.xnli.svg", "scores.likelihood.xnli.svg"]
    assert all("95 % intervals" in words for _, words in pictures)
    (axes,) = drawn["scores.likelihood.xnli"].axes
    dots = sorted(float(one.get_xdata()[0]) for one in axes.lines if len(one.get_xdata()) == 1)
    np.testing.assert_allclose(dots, sorted(100 * one.score.mean for row in found.values() for one in row.values()))
    (chance,) = [one for one in axes.lines if one.get_linestyle() == ":"]
    assert chance.get_xdata()[0] == pytest.approx(100 / 3)
    (axes,) = drawn["differences.likelihood.xnli"].axes
    filled = [one.get_markerfacecolor() != "white" for one in axes.lines if len(one.get_xdata()) == 1]
    assert sorted(filled) == sorted(row["better"].change != "" for row in found.values()) and any(filled)


def test_a_plot_for_each_term_that_has_a_curve(two: tuple[str, str], tmp_path: Path, drawn: dict[str, Figure]) -> None:
    comparison = Comparison(collect(two))
    curves = {
        "base": [{"lm": [(1.0, 3.0), (2.0, 2.0)], "pairs": [(1.0, 1.0), (2.0, 1.0)]}],
        "better": [{"lm": [(1.0, 3.0), (2.0, 1.0)], "once": [(1.0, 1.0)]}, {"lm": [(1.0, 3.5), (2.0, 1.5)]}],
    }
    pictures = term_plots(comparison, curves, ["lm", "pairs", "once", "never"], tmp_path)
    assert [path.name for path, _ in pictures] == ["training.lm.svg"]
    (axes,) = drawn["training.lm"].axes
    colors = [to_hex(one.get_color()) for one in axes.lines]
    assert len(colors) == 3 and colors[1] == colors[2] != colors[0]  # the seeds of a run look alike
    assert [float(one.get_ydata()[-1]) for one in axes.lines] == [2.0, 1.0, 1.5]


def test_names_of_files() -> None:
    assert file_name("a b/c:d") == "a_b_c_d" and file_name("../..") == "run" and file_name("中文") == "中文"
