"""The plots of a lens report: each a function from the report (docs/lens.md) to one PNG and one SVG.

Lines are means over examples, bands their 95 % intervals. The run is solid, the model that it is compared with dashed.
What a report does not hold is left out; a plot with nothing in it is not written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pivotune.lens.plots import COLORS, GREY, LEFT_TO_RIGHT, language_name, new_panels, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Report = Mapping[str, Any]

BLUE, VERMILION, GREEN, PINK, ORANGE, SKY = COLORS
_LINES: dict[str, dict[str, Any]] = {
    "against": {"linestyle": (0, (4, 2)), "linewidth": 1.2, "marker": "o", "markersize": 2, "markerfacecolor": "white"},
    "run": {"linestyle": "-", "linewidth": 1.6, "marker": "o", "markersize": 2.5},
}
_BANDS = {"against": 0.12, "run": 0.22}
_MARKERS = "os^Dv<>P*X"
_LONGEST_NAME = 40

PLOTS = (
    *("entropy", "language", "language_after_blank", "similarity_mean", "similarity_last_token", "supervision"),
    *("connection", "projection_pca", "projection_tsne"),
)
"""The names of all plots, without their endings."""


def draw(report: Report, folder: str | Path) -> list[Path]:
    """All plots that the report has something for, into `folder`; returns the files."""
    folder = Path(folder)
    files = [
        *entropy(report, folder / "entropy"),
        *language(report, folder / "language"),
        *language(report, folder / "language_after_blank", "language_after_blank"),
    ]
    for pooling in ("mean", "last_token"):
        files += similarity(report, folder / f"similarity_{pooling}", pooling)
    files += supervision(report, folder / "supervision")
    files += connection(report, folder / "connection")
    for method in ("pca", "tsne"):
        files += projection(report, folder / f"projection_{method}", method)
    return files


def entropy(report: Report, path_without_suffix: str | Path) -> list[Path]:
    """A panel per language: entropy of the lens on its questions and on their English counterparts, in nats."""
    names = {"target": ("questions in the target language", BLUE), "english": ("the same in English", VERMILION)}
    found = _with_tables(report, "entropy", names)
    if not found:
        return []
    figure, panels = _grid(len(found))
    for axes, (code, tables) in zip(panels.flat, found.items(), strict=False):
        for name, (_, color) in names.items():
            _curves(axes, tables.get(name), color)
        axes.set_ylim(bottom=0)
        _layer_axis(axes, report)
        _headed(axes, report, code)
    _outer_labels(panels, len(found), "entropy, nats")
    return _finished(figure, report, "Entropy of the logit lens", names.values(), path_without_suffix)


def language(report: Report, path_without_suffix: str | Path, measure: str = "language") -> list[Path]:
    """A panel per language: the probability of tokens that begin the English answer, the answer in the target
    language, in further ones, in several of them, or none."""
    looks = {
        "english": ("English", VERMILION),
        "target": ("target language", BLUE),
        "shared": ("begins several of them", PINK),
        "rest": ("none of them", GREY),
    }
    found = _with_tables(report, measure)
    if not found:
        return []
    further = sorted({name for tables in found.values() for name in tables} - looks.keys())
    shades = (GREEN, ORANGE, SKY)
    if len(further) <= len(shades):
        looks |= {
            name: (LEFT_TO_RIGHT + language_name(name), color) for name, color in zip(further, shades, strict=False)
        }
    else:
        looks |= {name: ("each of the other languages", SKY) for name in further}
    figure, panels = _grid(len(found))
    for axes, (code, tables) in zip(panels.flat, found.items(), strict=False):
        for name, (_, color) in looks.items():
            _curves(axes, tables.get(name), color, 100)
        axes.set_ylim(-2, 102)
        _layer_axis(axes, report)
        _headed(axes, report, code)
    _outer_labels(panels, len(found), "probability, %")
    what = "Language of the answer's first token"
    what += ", behind its blank" if measure == "language_after_blank" else ""
    return _finished(figure, report, what, dict.fromkeys(looks.values()), path_without_suffix)


def similarity(report: Report, path_without_suffix: str | Path, pooling: str = "mean") -> list[Path]:
    """A row per language: cosines of translations and of others; retrieval both ways and MEXA; linear CKA."""
    cosines = {"parallel": ("translations", BLUE), "non_parallel": ("other pairs", VERMILION)}
    shares = {
        "retrieval_to_english": ("retrieval, to English", GREEN),
        "retrieval_from_english": ("retrieval, from English", ORANGE),
        "mexa": ("MEXA", PINK),
    }
    cka = {"cka": ("linear CKA", "black")}
    found = _with_tables(report, "similarity", (f"{pooling}/{name}" for name in (*cosines, *shares)))
    if not found:
        return []
    figure, panels = _rows(len(found), 3)
    for row, (code, tables) in zip(panels, found.items(), strict=True):
        for axes, names, factor in ((row[0], cosines, 1), (row[1], shares, 100)):
            for name, (_, color) in names.items():
                _curves(axes, tables.get(f"{pooling}/{name}"), color, factor)
        summary = report["languages"][code]["similarity"]["summary"]
        for role in _LINES:
            values = ((summary.get(role) or {}).get("cka") or {}).get(pooling)
            _curve(row[2], {"mean": values} if values else None, "black", role)
        if pool := (summary.get("run") or {}).get("pool"):
            row[1].axhline(100 / pool, color=GREY, linewidth=0.8, linestyle=":")
        row[1].set_ylim(-2, 102)
        row[2].set_ylim(-0.02, 1.02)
        for axes, label in zip(row, ("cosine", "share of pairs, %", "linear CKA"), strict=True):
            axes.set_ylabel(label)
            _layer_axis(axes, report)
        _headed(row[0], report, code)
    _outer_labels(panels, panels.size)
    question = {"mean": "mean over the question's tokens", "last_token": "the question's last token"}[pooling]
    looks = [*cosines.values(), *shares.values(), *cka.values(), ("retrieval by chance", GREY, ":")]
    return _finished(
        figure, report, f"Questions and their English translations: {question}", looks, path_without_suffix
    )


def supervision(report: Report, path_without_suffix: str | Path) -> list[Path]:
    """A row per language, for what deep supervision trains: nats per English token, and cosines to English."""
    names = {"question": ("English question", BLUE), "answer": ("English answer", VERMILION)}
    found = _with_tables(report, "deep_supervision")
    if not found:
        return []
    figure, panels = _rows(len(found), 2)
    for row, (code, tables) in zip(panels, found.items(), strict=True):
        for axes, unit, label in ((row[0], "nats", "nats per English token"), (row[1], "cosine", "cosine to English")):
            for name, (_, color) in names.items():
                _curves(axes, tables.get(f"{name}_{unit}"), color)
            axes.set_ylabel(label)
            _layer_axis(axes, report)
        row[0].set_ylim(bottom=0)
        _headed(row[0], report, code)
    _outer_labels(panels, panels.size)
    return _finished(figure, report, "What deep supervision trains", names.values(), path_without_suffix)


def connection(report: Report, path_without_suffix: str | Path) -> list[Path]:
    """A row per language, for CC-Tuning: which layers the Decision Maker picks, and R^2 of the Transform Matrix."""
    names = {"picks_english": ("picked from real English", BLUE), "picks_matrix": ("picked from the matrix", ORANGE)}
    r2 = {
        "run": ("$R^2$ of the matrix", GREEN),
        "copy": ("$R^2$ without it: the question's own", GREY),
    }
    found = _with_tables(report, "cc_tuning", names)
    if not found:
        return []
    figure, panels = _rows(len(found), 2)
    for row, (code, tables) in zip(panels, found.items(), strict=True):
        summary = report["languages"][code]["cc_tuning"]["summary"].get("run") or {}
        drawn = [name for name in names if (tables.get(name) or {}).get("run")]
        for k, name in enumerate(drawn):
            _bars(row[0], tables[name]["run"], names[name][1], k, len(drawn))
        row[0].set_ylim(bottom=0)
        row[0].set_ylabel("share of the picks, %\n(whiskers: 95 % interval)")
        for name, key in (("copy", "r2_of_copy_per_layer"), ("run", "r2_per_layer")):
            _curve(row[1], {"mean": summary[key]} if summary.get(key) else None, r2[name][1], "run")
        far = row[1].get_ylim()[0] < -1.05  # so far below 0 there is nothing more to tell
        row[1].set_ylim(bottom=-1.05 if far else None, top=1.05)
        row[1].axhline(0, color="black", linewidth=0.6)
        row[1].set_ylabel("$R^2$ (cut off at −1)" if far else "$R^2$")
        row[1].set_title(_agreement(tables, summary), fontsize=8, loc="left")
        for axes in row:
            _layer_axis(axes, report, marked=False)
        _headed(row[0], report, code)
    _outer_labels(panels, panels.size)
    return _finished(
        figure,
        report,
        "CC-Tuning's connection",
        r2.values(),
        path_without_suffix,
        bars=list(names.values()),
        marked=False,
    )


def projection(report: Report, path_without_suffix: str | Path, method: str = "pca") -> list[Path]:
    """A row for each model and a column for each layer: questions by language, joined to their translations."""
    shown = report.get("projection") or {}
    models = [role for role in ("run", "against") if _projected(shown.get(role), method)]
    if not models:
        return []
    layers = sorted({int(layer) for role in models for layer in shown[role]["layers"]})
    languages = sorted({code for role in models for code in shown[role]["language"]})
    looks = {code: (COLORS[k % len(COLORS)], _MARKERS[k // len(COLORS) % 10]) for k, code in enumerate(languages)}
    size = 3.3
    figure, panels = new_panels(len(models), len(layers), max(size * len(layers), 5.5), size * len(models) + 1.1)
    for row, role in zip(panels, models, strict=True):
        for axes, layer in zip(row, layers, strict=True):
            found = (shown[role]["layers"].get(str(layer)) or {}).get(method)
            if found:
                _points(axes, found, shown[role]["language"], looks)
            _plane(axes, found, method)
            mark = _marks(report).get(layer)
            axes.set_title(f"{_name(report, role)}\nlayer {layer}{f' ({mark})' if mark else ''}", fontsize=9)
    handles = [_dot(LEFT_TO_RIGHT + language_name(code), *look) for code, look in looks.items()]
    handles.append(_dot("English", "black", ".", 5))
    pooling = {"mean": "mean over tokens", "last_token": "last token"}.get(shown[models[0]]["pooling"], "")
    title = {"pca": "Principal components", "tsne": "t-SNE"}[method]
    figure.suptitle(f"{title} of parallel questions, {pooling}", fontsize=11)
    _legend(figure, [*handles, _line("a question and its translation", GREY, linewidth=0.8)])
    return save(figure, path_without_suffix)


# Parts ---------------------------------------------------------------------------------------------------------------


def _with_tables(report: Report, measure: str, names: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
    """By language, the tables of a measure, where there is one of `names` (of any, where None)."""
    names = None if names is None else set(names)
    found = {code: of_code.get(measure, {}).get("tables", {}) for code, of_code in report["languages"].items()}
    return {code: tables for code, tables in found.items() if (tables if names is None else names & tables.keys())}


def _grid(panels: int) -> tuple[Figure, np.ndarray]:
    """One panel per language, in rows of up to three, on one vertical scale; unused ones are hidden."""
    columns = 2 if panels == 4 else min(panels, 3)
    rows = math.ceil(panels / columns)
    figure, axes = new_panels(rows, columns, max(4.0 * columns, 6.4), 2.7 * rows + 1.3, sharey=True)
    for unused in list(axes.flat)[panels:]:
        unused.set_visible(False)
    return figure, axes


def _rows(languages: int, columns: int) -> tuple[Figure, np.ndarray]:
    return new_panels(languages, columns, 4.0 * columns, 2.5 * languages + 1.3)


def _numbers(values: Sequence[float | None], factor: float = 1.0) -> np.ndarray:
    return np.array([math.nan if value is None else value * factor for value in values])


def _curves(axes: Axes, table: Mapping[str, Any] | None, color: str, factor: float = 1.0) -> None:
    """The table's mean of each layer and its interval, of both models, the run on top."""
    for role in _LINES:
        _curve(axes, (table or {}).get(role), color, role, factor)


def _curve(axes: Axes, columns: Mapping[str, Any] | None, color: str, role: str, factor: float = 1.0) -> None:
    if not columns:
        return
    mean = _numbers(columns["mean"], factor)
    layer, known = np.arange(1, len(mean) + 1), np.isfinite(mean)
    axes.plot(layer[known], mean[known], color=color, **_LINES[role])
    if "low" in columns:
        low, high = _numbers(columns["low"], factor), _numbers(columns["high"], factor)
        axes.fill_between(layer, low, high, color=color, alpha=_BANDS[role], linewidth=0)


def _bars(axes: Axes, columns: Mapping[str, Any], color: str, k: int, of: int) -> None:
    """Shares in percent as the k-th of so many bars at each layer, with their intervals."""
    mean, low, high = (_numbers(columns[name], 100) for name in ("mean", "low", "high"))
    width = 0.8 / of
    at = np.arange(1, len(mean) + 1) + (k - (of - 1) / 2) * width
    axes.bar(at, mean, width, color=color)
    seen = mean > 0  # of a layer that is never picked, the interval would only hide the others
    errors = np.maximum([mean - low, high - mean], 0)[:, seen]
    axes.errorbar(at[seen], mean[seen], yerr=errors, fmt="none", ecolor="black", elinewidth=0.8, capsize=1.5)


def _agreement(tables: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """The Decision Maker's agreement with itself and the matrix's R^2 over all layers, as a line."""
    parts = []
    if agreement := (tables.get("agreement") or {}).get("run"):
        share, low, high = (_numbers(agreement[name], 100)[0] for name in ("mean", "low", "high"))
        parts.append(f"same pick: {share:.0f} % [{low:.0f}, {high:.0f}]")
    if summary.get("kappa") is not None:
        parts.append(f"κ {summary['kappa']:.2f}")
    if summary.get("r2") is not None:
        parts.append(f"$R^2$ of all layers {summary['r2']:.2f}")
    return ", ".join(parts)


def _projected(summary: Mapping[str, Any] | None, method: str) -> bool:
    return any(layer.get(method) for layer in ((summary or {}).get("layers") or {}).values())


def _points(axes: Axes, found: Mapping[str, Any], languages: Sequence[str], looks: Mapping[str, Any]) -> None:
    from matplotlib.collections import LineCollection

    target_N2, english_N2 = np.array(found["target"]), np.array(found["english"])
    crowd = min(1.0, (150 / len(target_N2)) ** 0.5)  # smaller where there are many
    joined = LineCollection(list(np.stack([target_N2, english_N2], axis=1)), colors=GREY, linewidths=0.5, zorder=1)
    joined.set_alpha(0.15 + 0.25 * crowd)
    axes.add_collection(joined)
    axes.scatter(english_N2[:, 0], english_N2[:, 1], s=3 + 7 * crowd, color="black", linewidths=0, alpha=0.7, zorder=3)
    of_N = np.array(languages)
    for code, (color, marker) in looks.items():
        x_n, y_n = target_N2[of_N == code].T
        axes.scatter(x_n, y_n, s=8 + 14 * crowd, color=color, marker=marker, linewidths=0, alpha=0.8, zorder=2)
    axes.autoscale_view()


def _plane(axes: Axes, found: Mapping[str, Any] | None, method: str) -> None:
    """Axes of a projection. Its scales are the model's own, so only the distances within a panel can be compared."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["top", "right"]].set_visible(True)
    for spine in axes.spines.values():
        spine.set_color(GREY)
    if found is None:
        axes.text(0.5, 0.5, "too few pairs", ha="center", va="center", transform=axes.transAxes, color=GREY)
        return
    axes.set_aspect("equal", adjustable="datalim")
    labels = ["t-SNE 1", "t-SNE 2"]
    if method == "pca":
        shares = enumerate(found["explained_variance"], start=1)
        labels = [f"component {k} ({100 * share:.0f} % of variance)" for k, share in shares]
    axes.set_xlabel(labels[0], fontsize=8)
    axes.set_ylabel(labels[1], fontsize=8)


def _marks(report: Report) -> dict[int, str]:
    """What the conversion and the thinking layer are called in the plots, by layer."""
    layers = report.get("layers") or {}
    marks: dict[int, str] = {}
    for name, layer in (("i", layers.get("conversion")), ("j", layers.get("thinking"))):
        if layer is not None:
            marks[layer] = f"{marks[layer]} = {name}" if layer in marks else name
    return marks


def _layer_axis(axes: Axes, report: Report, *, marked: bool = True) -> None:
    from matplotlib.ticker import MaxNLocator

    if count := (report.get("layers") or {}).get("count"):
        axes.set_xlim(0.5, count + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 4, 5, 10], integer=True, min_n_ticks=1))
    for layer, name in _marks(report).items() if marked else ():
        axes.axvline(layer, color=GREY, linestyle=":", linewidth=1, zorder=0)
        look: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 9, "fontstyle": "italic"}
        axes.annotate(name, (layer, 1), (0, 2), axes.get_xaxis_transform(), textcoords="offset points", **look)


def _headed(axes: Axes, report: Report, code: str) -> None:
    """The language above a panel; the marks i and j lie between."""
    count = report["languages"][code].get("examples")
    pairs = "" if count is None else f" ({count} pairs)"
    title = f"{LEFT_TO_RIGHT}{language_name(code)}{pairs}"
    axes.set_title(title, fontsize=min(10, 450 / len(title)), loc="left", pad=17)


def _outer_labels(panels: np.ndarray, used: int, y_label: str = "") -> None:
    """ "layer" below the lowest panel of each column, and `y_label` beside the first one of each row."""
    columns = panels.shape[1]
    for k, axes in enumerate(list(panels.flat)[:used]):
        if k + columns >= used:
            axes.set_xlabel("layer")
        if y_label and k % columns == 0:
            axes.set_ylabel(y_label)


def _name(report: Report, role: str) -> str:
    """The name of a model, its middle left out where it is long."""
    name = str(report.get(role) or role)
    half = _LONGEST_NAME // 2
    name = name if len(name) <= _LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"
    return name.replace("$", r"\$")  # no formula


def _finished(
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

    compared = bool(report.get("against"))
    handles: list[Any] = [Patch(color=color, label=label) for label, color in bars]
    for label, color, *style in looks:
        handles.append(_line(label, color, linestyle=style[0] if style else "-", linewidth=1 if style else 2.5))
    if compared and not bars:
        handles += [_line(_name(report, role), "black", **_LINES[role]) for role in ("run", "against")]
    if not bars:
        handles.append(Patch(color=GREY, alpha=0.3, linewidth=0, label="95 % interval"))
    if marked and (marks := _marks(report)):
        handles.append(_line(f"{', '.join(marks.values())}: conversion, thinking layer", GREY, linestyle=":"))
    figure.suptitle(title if compared and not bars else f"{title} ({_name(report, 'run')})", fontsize=11)
    _legend(figure, handles)
    return save(figure, path_without_suffix)


def _legend(figure: Figure, handles: list[Any]) -> None:
    """Below everything, in as many columns as the width has room for."""
    longest = max(len(handle.get_label()) for handle in handles)
    columns = max(1, min(len(handles), int(figure.get_figwidth() / (0.075 * longest + 0.55))))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def _line(label: str, color: str, **look: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, label=label, **look)


def _dot(label: str, color: str, marker: str, size: float = 6) -> Any:
    return _line(label, color, linestyle="none", marker=marker, markersize=size, markeredgewidth=0)
