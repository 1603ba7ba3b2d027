"""Parts of the lens's plots: panels per language, curves with bands per layer, marks, legends.

Lines are means over examples, bands their 95 % intervals. The run is solid, the model that it is compared with dashed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pivotune.plotting import COLORS, GREY, LEFT_TO_RIGHT, language_name, new_panels, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Report = Mapping[str, Any]

BLUE, VERMILION, GREEN, PINK, ORANGE, SKY = COLORS
LINES: dict[str, dict[str, Any]] = {
    "baseline": {
        "linestyle": (0, (4, 2)),
        "linewidth": 1.2,
        "marker": "o",
        "markersize": 2,
        "markerfacecolor": "white",
    },
    "run": {"linestyle": "-", "linewidth": 1.6, "marker": "o", "markersize": 2.5},
}
BANDS = {"baseline": 0.12, "run": 0.22}
MARKERS = "os^Dv<>P*X"
LONGEST_NAME = 40


def with_tables(report: Report, measure: str, names: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
    """By language, the tables of a measure, where there is one of `names` (of any, where None)."""
    names = None if names is None else set(names)
    found = {code: of_code.get(measure, {}).get("tables", {}) for code, of_code in report["languages"].items()}
    return {code: tables for code, tables in found.items() if (tables if names is None else names & tables.keys())}


def grid(panels: int) -> tuple[Figure, np.ndarray]:
    """One panel per language, in rows of up to three, on one vertical scale; unused ones are hidden."""
    columns = 2 if panels == 4 else min(panels, 3)
    rows = math.ceil(panels / columns)
    figure, axes = new_panels(rows, columns, max(4.0 * columns, 6.4), 2.7 * rows + 1.3, sharey=True)
    for unused in list(axes.flat)[panels:]:
        unused.set_visible(False)
    return figure, axes


def rows(languages: int, columns: int) -> tuple[Figure, np.ndarray]:
    return new_panels(languages, columns, 4.0 * columns, 2.5 * languages + 1.3)


def numbers(values: Sequence[float | None], factor: float = 1.0) -> np.ndarray:
    return np.array([math.nan if value is None else value * factor for value in values])


def curves(axes: Axes, table: Mapping[str, Any] | None, color: str, factor: float = 1.0) -> None:
    """The table's mean of each layer and its interval, of both models, the run on top."""
    for role in LINES:
        curve(axes, (table or {}).get(role), color, role, factor)


def curve(axes: Axes, columns: Mapping[str, Any] | None, color: str, role: str, factor: float = 1.0) -> None:
    if not columns:
        return
    mean = numbers(columns["mean"], factor)
    layer, known = np.arange(1, len(mean) + 1), np.isfinite(mean)
    axes.plot(layer[known], mean[known], color=color, **LINES[role])
    if "low" in columns:
        low, high = numbers(columns["low"], factor), numbers(columns["high"], factor)
        axes.fill_between(layer, low, high, color=color, alpha=BANDS[role], linewidth=0)


def bars(axes: Axes, columns: Mapping[str, Any], color: str, k: int, of: int) -> None:
    """Shares in percent as the k-th of so many bars at each layer, with their intervals."""
    mean, low, high = (numbers(columns[name], 100) for name in ("mean", "low", "high"))
    width = 0.8 / of
    at = np.arange(1, len(mean) + 1) + (k - (of - 1) / 2) * width
    axes.bar(at, mean, width, color=color)
    seen = mean > 0  # of a layer that is never picked, the interval would only hide the others
    errors = np.maximum([mean - low, high - mean], 0)[:, seen]
    axes.errorbar(at[seen], mean[seen], yerr=errors, fmt="none", ecolor="black", elinewidth=0.8, capsize=1.5)


def marks(report: Report) -> dict[int, str]:
    """What the conversion and the thinking layer are called in the plots, by layer."""
    layers = report.get("layers") or {}
    marks: dict[int, str] = {}
    for name, layer in (("i", layers.get("conversion")), ("j", layers.get("thinking"))):
        if layer is not None:
            marks[layer] = f"{marks[layer]} = {name}" if layer in marks else name
    return marks


def layer_axis(axes: Axes, report: Report, *, marked: bool = True) -> None:
    from matplotlib.ticker import MaxNLocator

    if count := (report.get("layers") or {}).get("count"):
        axes.set_xlim(0.5, count + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 4, 5, 10], integer=True, min_n_ticks=1))
    for layer, name in marks(report).items() if marked else ():
        axes.axvline(layer, color=GREY, linestyle=":", linewidth=1, zorder=0)
        look: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 9, "fontstyle": "italic"}
        axes.annotate(name, (layer, 1), (0, 2), axes.get_xaxis_transform(), textcoords="offset points", **look)


def headed(axes: Axes, report: Report, code: str) -> None:
    """The language above a panel; the marks i and j lie between."""
    count = report["languages"][code].get("examples")
    pairs = "" if count is None else f" ({count} pairs)"
    title = f"{LEFT_TO_RIGHT}{language_name(code)}{pairs}"
    axes.set_title(title, fontsize=min(10, 450 / len(title)), loc="left", pad=17)


def outer_labels(panels: np.ndarray, used: int, y_label: str = "") -> None:
    """ "layer" below the lowest panel of each column, and `y_label` beside the first one of each row."""
    columns = panels.shape[1]
    for k, axes in enumerate(list(panels.flat)[:used]):
        if k + columns >= used:
            axes.set_xlabel("layer")
        if y_label and k % columns == 0:
            axes.set_ylabel(y_label)


def name(report: Report, role: str) -> str:
    """The name of a model, its middle left out where it is long."""
    name = str(report.get(role) or role)
    half = LONGEST_NAME // 2
    name = name if len(name) <= LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"
    return name.replace("$", r"\$")  # no formula


def finished(
    figure: Figure,
    report: Report,
    title: str,
    looks: Iterable[tuple[str, ...]],
    path_without_suffix: str | Path,
    *,
    bars: Sequence[tuple[str, str]] = (),
    marked: bool = True,
) -> list[Path]:
    """Title and legend, and the two files. `looks`: label, colour and, perhaps, line style of each curve."""
    from matplotlib.patches import Patch

    compared = bool(report.get("baseline"))
    handles: list[Any] = [Patch(color=color, label=label) for label, color in bars]
    for label, color, *style in looks:
        handles.append(line(label, color, linestyle=style[0] if style else "-", linewidth=1 if style else 2.5))
    if compared and not bars:
        handles += [line(name(report, role), "black", **LINES[role]) for role in ("run", "baseline")]
    if not bars:
        handles.append(Patch(color=GREY, alpha=0.3, linewidth=0, label="95 % interval"))
    if marked and (named := marks(report)):
        handles.append(line(f"{', '.join(named.values())}: conversion, thinking layer", GREY, linestyle=":"))
    figure.suptitle(title if compared and not bars else f"{title} ({name(report, 'run')})", fontsize=11)
    legend(figure, handles)
    return save(figure, path_without_suffix)


def legend(figure: Figure, handles: list[Any]) -> None:
    """Below everything, in as many columns as the width has room for."""
    longest = max(len(handle.get_label()) for handle in handles)
    columns = max(1, min(len(handles), int(figure.get_figwidth() / (0.075 * longest + 0.55))))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def line(label: str, color: str, **look: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, label=label, **look)


def dot(label: str, color: str, marker: str, size: float = 6) -> Any:
    return line(label, color, linestyle="none", marker=marker, markersize=size, markeredgewidth=0)
