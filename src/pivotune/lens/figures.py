"""The plots of a lens report: each a function from the report (docs/lens.md) to one PNG and one SVG.

Lines are means over examples, bands their 95 % intervals. The run is solid, the model that it is compared with dashed.
What a report does not hold is left out; a plot with nothing in it is not written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pivotune.lens import panels
from pivotune.lens.panels import BLUE, GREEN, ORANGE, PINK, SKY, VERMILION, Report
from pivotune.objectives import OBJECTIVES
from pivotune.plotting import COLORS, GREY, LEFT_TO_RIGHT, language_name, new_panels, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plots() -> list[str]:
    """The names of all plots, without their endings."""
    own = ["entropy", "language", "language_after_blank", "similarity_mean", "similarity_last_token"]
    of_objectives = [name for objective in OBJECTIVES.values() for name in objective.lens_plots]
    return [*own, *of_objectives, "projection_pca", "projection_tsne"]


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
    for objective in OBJECTIVES.values():
        files += objective.figures(report, folder)
    for method in ("pca", "tsne"):
        files += projection(report, folder / f"projection_{method}", method)
    return files


def entropy(report: Report, path_without_suffix: str | Path) -> list[Path]:
    """A panel per language: entropy of the lens on its questions and on their English counterparts, in nats."""
    names = {"target": ("questions in the target language", BLUE), "english": ("the same in English", VERMILION)}
    found = panels.with_tables(report, "entropy", names)
    if not found:
        return []
    figure, grid = panels.grid(len(found))
    for axes, (code, tables) in zip(grid.flat, found.items(), strict=False):
        for name, (_, color) in names.items():
            panels.curves(axes, tables.get(name), color)
        axes.set_ylim(bottom=0)
        panels.layer_axis(axes, report)
        panels.headed(axes, report, code)
    panels.outer_labels(grid, len(found), "entropy, nats")
    return panels.finished(figure, report, "Entropy of the logit lens", names.values(), path_without_suffix)


def language(report: Report, path_without_suffix: str | Path, measure: str = "language") -> list[Path]:
    """A panel per language: the probability of tokens that begin the English answer, the answer in the target
    language, in further ones, in several of them, or none."""
    looks = {
        "english": ("English", VERMILION),
        "target": ("target language", BLUE),
        "shared": ("begins several of them", PINK),
        "rest": ("none of them", GREY),
    }
    found = panels.with_tables(report, measure)
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
    figure, grid = panels.grid(len(found))
    for axes, (code, tables) in zip(grid.flat, found.items(), strict=False):
        for name, (_, color) in looks.items():
            panels.curves(axes, tables.get(name), color, 100)
        axes.set_ylim(-2, 102)
        panels.layer_axis(axes, report)
        panels.headed(axes, report, code)
    panels.outer_labels(grid, len(found), "probability, %")
    what = "Language of the answer's first token"
    what += ", behind its blank" if measure == "language_after_blank" else ""
    return panels.finished(figure, report, what, dict.fromkeys(looks.values()), path_without_suffix)


def similarity(report: Report, path_without_suffix: str | Path, pooling: str = "mean") -> list[Path]:
    """A row per language: cosines of translations and of others; retrieval both ways and MEXA; linear CKA."""
    cosines = {"parallel": ("translations", BLUE), "non_parallel": ("other pairs", VERMILION)}
    shares = {
        "retrieval_to_english": ("retrieval, to English", GREEN),
        "retrieval_from_english": ("retrieval, from English", ORANGE),
        "mexa": ("MEXA", PINK),
    }
    cka = {"cka": ("linear CKA", "black")}
    found = panels.with_tables(report, "similarity", (f"{pooling}/{name}" for name in (*cosines, *shares)))
    if not found:
        return []
    figure, grid = panels.rows(len(found), 3)
    for row, (code, tables) in zip(grid, found.items(), strict=True):
        for axes, names, factor in ((row[0], cosines, 1), (row[1], shares, 100)):
            for name, (_, color) in names.items():
                panels.curves(axes, tables.get(f"{pooling}/{name}"), color, factor)
        summary = report["languages"][code]["similarity"]["summary"]
        for role in panels.LINES:
            values = ((summary.get(role) or {}).get("cka") or {}).get(pooling)
            panels.curve(row[2], {"mean": values} if values else None, "black", role)
        if pool := (summary.get("run") or {}).get("pool"):
            row[1].axhline(100 / pool, color=GREY, linewidth=0.8, linestyle=":")
        row[1].set_ylim(-2, 102)
        row[2].set_ylim(-0.02, 1.02)
        for axes, label in zip(row, ("cosine", "share of pairs, %", "linear CKA"), strict=True):
            axes.set_ylabel(label)
            panels.layer_axis(axes, report)
        panels.headed(row[0], report, code)
    panels.outer_labels(grid, grid.size)
    question = {"mean": "mean over the question's tokens", "last_token": "the question's last token"}[pooling]
    looks = [*cosines.values(), *shares.values(), *cka.values(), ("retrieval by chance", GREY, ":")]
    return panels.finished(
        figure, report, f"Questions and their English translations: {question}", looks, path_without_suffix
    )


def projection(report: Report, path_without_suffix: str | Path, method: str = "pca") -> list[Path]:
    """A row for each model and a column for each layer: questions by language, joined to their translations."""
    shown = report.get("projection") or {}
    models = [role for role in ("run", "baseline") if _projected(shown.get(role), method)]
    if not models:
        return []
    layers = sorted({int(layer) for role in models for layer in shown[role]["layers"]})
    languages = sorted({code for role in models for code in shown[role]["language"]})
    looks = {code: (COLORS[k % len(COLORS)], panels.MARKERS[k // len(COLORS) % 10]) for k, code in enumerate(languages)}
    size = 3.3
    figure, grid = new_panels(len(models), len(layers), max(size * len(layers), 5.5), size * len(models) + 1.1)
    for row, role in zip(grid, models, strict=True):
        for axes, layer in zip(row, layers, strict=True):
            found = (shown[role]["layers"].get(str(layer)) or {}).get(method)
            if found:
                _points(axes, found, shown[role]["language"], looks)
            _plane(axes, found, method)
            mark = panels.marks(report).get(layer)
            axes.set_title(f"{panels.name(report, role)}\nlayer {layer}{f' ({mark})' if mark else ''}", fontsize=9)
    handles = [panels.dot(LEFT_TO_RIGHT + language_name(code), *look) for code, look in looks.items()]
    handles.append(panels.dot("English", "black", ".", 5))
    pooling = {"mean": "mean over tokens", "last_token": "last token"}.get(shown[models[0]]["pooling"], "")
    title = {"pca": "Principal components", "tsne": "t-SNE"}[method]
    figure.suptitle(f"{title} of parallel questions, {pooling}", fontsize=11)
    panels.legend(figure, [*handles, panels.line("a question and its translation", GREY, linewidth=0.8)])
    return save(figure, path_without_suffix)


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
