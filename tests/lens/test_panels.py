"""Parts of the lens's plots by themselves: gaps, marks, names and legends."""

from __future__ import annotations

import numpy as np
import pytest

from pivotune.lens import panels


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (3, (1, 3)), (4, (2, 2)), (5, (2, 3)), (7, (3, 3))])
def test_panels_fill_rows_and_unused_ones_are_hidden(count: int, shape: tuple[int, int]) -> None:
    _, axes = panels.grid(count)
    assert axes.shape == shape
    assert [one.get_visible() for one in axes.flat] == [k < count for k in range(axes.size)]


def test_a_curve_leaves_out_what_is_not_known() -> None:
    _, axes = panels.grid(1)
    columns = {"mean": [0.1, None, 0.3], "low": [0.0, None, 0.2], "high": [0.2, None, 0.4]}
    panels.curve(axes[0, 0], columns, panels.BLUE, "run", 100)
    panels.curve(axes[0, 0], None, panels.BLUE, "run")
    (line,) = axes[0, 0].lines
    np.testing.assert_allclose(np.array(line.get_data()), [[1, 3], [10, 30]])
    assert len(axes[0, 0].collections) == 1
    panels.curve(axes[0, 0], {"mean": [1.0]}, panels.BLUE, "baseline")
    assert len(axes[0, 0].collections) == 1  # without an interval no band


@pytest.mark.parametrize(
    ("layers", "marks"),
    [
        ({"conversion": 2, "thinking": 5}, {2: "i", 5: "j"}),
        ({"conversion": 2, "thinking": 2}, {2: "i = j"}),
        ({"conversion": None, "thinking": 5}, {5: "j"}),
        (None, {}),
    ],
)
def test_marks_of_the_two_layers(layers: dict | None, marks: dict[int, str]) -> None:
    assert panels.marks({"layers": layers}) == marks


def test_names_are_shortened_and_no_formulas() -> None:
    report = {"run": "a" * 30 + "b" * 30, "baseline": "costs_$5"}
    assert panels.name(report, "run") == "a" * 19 + "…" + "b" * 20
    assert panels.name(report, "baseline") == r"costs_\$5"
    assert panels.name({"run": None}, "run") == "run"


def test_a_legend_has_as_many_columns_as_fit() -> None:
    for words, columns in (("x", 4), ("a label that is rather long, as labels go, and longer", 1)):
        figure, _ = panels.grid(1)
        panels.legend(figure, [panels.line(f"{words} {k}", panels.BLUE) for k in range(4)])
        assert figure.legends[0]._ncols == columns


def test_tables_of_a_measure() -> None:
    of = {"entropy": {"tables": {"target": 1, "english": 2}}}
    report = {"languages": {"zh": of, "vi": {}, "ar": {"entropy": {"tables": {"target": 3}}}}}
    assert list(panels.with_tables(report, "entropy")) == ["zh", "ar"]
    assert list(panels.with_tables(report, "entropy", ["english"])) == ["zh"]
    assert panels.with_tables(report, "similarity") == {}
