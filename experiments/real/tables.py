"""What the cells say: a table for each model and language, a plot, and a section of docs/results/real.md.

Everything is compared with plain fine-tuning (TFT) at the same number of examples: paired over items and, where both
have as many, seeds. A score is nats per token of the held-out answers, so less is better.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments import pages, results
from experiments.real.settings import SETTINGS
from experiments.real.trial import CELLS
from pivotune import uncertainty
from pivotune.plotting import COLORS, GREY, language_name, new_figure
from pivotune.tables import table
from pivotune.uncertainty import Interval

MODELS = {"gemma": "Gemma-3-270M", "smol": "SmolLM2-135M-Instruct"}
MODES = {"none": "", "matrix": " [matrix]", "english": " [real English]"}
LEVEL = 0.05

Cell = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One setting, asked in one way.

    Attributes:
        setting: its name in `SETTINGS`.
        mode: of the connection.
        cells: of its best learning rate, one per seed.
        rates: those that were tried.
    """

    setting: str
    mode: str
    cells: Sequence[Cell]
    rates: Sequence[float]

    @property
    def label(self) -> str:
        shown = MODES[self.mode]
        if not shown and len(self.cells[0]["test"]) > 1:
            shown = " [no connection]"
        return SETTINGS[self.setting].about + shown

    def answers(self, what: str) -> np.ndarray:
        """(S, F): nats of the answers of the `test` or the `english` split, over the mean number of their tokens, so
        that the mean is that of all tokens; or, of `first`, those of each test answer's first token."""
        if what == "first":
            return np.array([cell["test"][self.mode]["first"] for cell in self.cells])
        found = [cell["test"][self.mode] if what == "test" else cell["english"] for cell in self.cells]
        return np.array([np.array(one["nats"]) / np.mean(one["tokens"]) for one in found])


def read_cells(folder: Path = CELLS, holding: str = "test") -> list[Cell]:
    """All cells of a folder that hold this: "test" of trials, "nats" of activation patching."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return [one for one in found if holding in one]


def rows_of(cells: Iterable[Cell]) -> list[Row]:
    """The rows of one model, language and number of pairs, in the order of `SETTINGS`.

    Of several learning rates the one with the least nats on development pairs is taken, by the seeds that all have.
    """
    of_setting: dict[str, dict[float, dict[int, Cell]]] = defaultdict(lambda: defaultdict(dict))
    for cell in cells:
        of_setting[cell["setting"]][cell["rate"]][cell["seed"]] = cell
    rows = []
    for name in SETTINGS:
        if name not in of_setting:
            continue
        of_rate = of_setting[name]
        shared = set.intersection(*(set(of_seed) for of_seed in of_rate.values()))
        best = min(of_rate, key=lambda rate: mean(_dev(of_rate[rate][seed]) for seed in shared or of_rate[rate]))
        chosen = [of_rate[best][seed] for seed in sorted(of_rate[best])]
        rows += [Row(name, mode, chosen, sorted(of_rate)) for mode in chosen[0]["test"]]
    return rows


def _dev(cell: Cell) -> float:
    return sum(cell["dev"]["nats"]) / sum(cell["dev"]["tokens"])


def groups(cells: Iterable[Cell]) -> dict[tuple[str, str, int], list[Row]]:
    """(model, language, pairs) -> rows. The base belongs to each number of pairs."""
    found: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        found[cell["model"], cell["language"]].append(cell)
    return {
        (model, language, count): rows_of(one for one in some if one["setting"] == "base" or one["pairs"] == count)
        for (model, language), some in sorted(found.items())
        for count in sorted({one["pairs"] for one in some if one["setting"] != "base"})
    }


@dataclass(frozen=True)
class Gap:
    """A difference from TFT, and its p value, corrected by Holm over the rows."""

    interval: Interval
    p: float

    def __str__(self) -> str:
        average, low, high = (f"{value:+.3f}" for value in self.interval)
        return f"{average} [{low}, {high}]{'*' if self.p < LEVEL else ''}"


def gaps(rows: Sequence[Row], what: str) -> dict[str, Gap]:
    """By label, the difference of each row from TFT."""
    plain = next((row for row in rows if row.setting == "tft"), None)
    if plain is None:
        return {}
    others = [row for row in rows if row.setting not in ("base", "tft")]
    both = [(row.answers(what), _of_the_same_seeds(plain, row).answers(what)) for row in others]
    found = [uncertainty.difference(*pair) for pair in both]
    tests = [uncertainty.paired_test(*pair).p for pair in both]
    return {row.label: Gap(one, p) for row, one, p in zip(others, found, uncertainty.holm(tests), strict=True)}


def _of_the_same_seeds(plain: Row, row: Row) -> Row:
    """TFT with the seeds of the row, where it has all of them: the same examples in the same order."""
    by_seed = {cell["seed"]: cell for cell in plain.cells}
    seeds = [cell["seed"] for cell in row.cells]
    return replace(plain, cells=[by_seed[seed] for seed in seeds]) if set(seeds) <= set(by_seed) else plain


def text(rows: Sequence[Row], model: str, language: str, pairs: int) -> str:
    """The tables of one model and language."""
    of = {what: gaps(rows, what) for what in ("test", "first", "english")}
    body = []
    for row in rows:
        shown = [f"{row.answers(what).mean():.3f}" for what in of]
        differences = [str(of[what].get(row.label, "")) for what in of]
        body.append([row.label, *(part for pair in zip(shown, differences, strict=True) for part in pair)])
    heads = ["", "answers", "minus TFT", "first token", "minus TFT", "English", "minus TFT"]
    about = [
        [
            row.label,
            "" if row.setting == "base" else f"{row.cells[0]['rate']:g} of {', '.join(f'{r:g}' for r in row.rates)}",
            str(len(row.cells)),
            *_mexa(row.cells),
            *(_logged(row.cells, name) for name in ("grad_norm", "loss")),
            f"{mean(cell['seconds']['training'] for cell in row.cells) / 60:.0f}",
        ]
        for row in rows
        if row.mode == "none"
    ]
    title = f"{MODELS[model]}, {language_name(language, own=False)}, {pairs} pairs"
    return "\n\n".join(
        [
            f"### {title}",
            f"Nats per token of the answers to {rows[0].answers('test').shape[1]} held-out questions, of their first "
            f"tokens, and of {rows[0].answers('english').shape[1]} English answers. Differences with their 95 % "
            "intervals over items and seeds, against TFT of the same seeds; * p < 0.05, corrected by Holm over the "
            "rows: with one seed it speaks of these models.",
            table(heads, body, markdown=True),
            f"How they were trained ({title}). Learning rate: the best on development pairs of those tried. MEXA, last "
            "token: at its highest layer. Gradient norm and loss: medians of the last half of the steps.",
            table(
                ["", "learning rate", "seeds", "MEXA, %", "layer", "gradient norm", "loss", "minutes"],
                about,
                markdown=True,
            ),
        ]
    )


def _mexa(cells: Sequence[Cell]) -> list[str]:
    of_layer = np.mean([cell["mexa"]["tables"]["last_token/mexa"]["run"]["mean"] for cell in cells], axis=0)
    return [f"{100 * of_layer.max():.0f}", str(1 + int(of_layer.argmax()))]


def _logged(cells: Sequence[Cell], name: str) -> str:
    values = [step[name] for cell in cells for step in cell["log"][len(cell["log"]) // 2 :] if name in step]
    return f"{median(values):.3g}" if values else ""


def drawn(of_group: Mapping[tuple[str, str, int], Sequence[Row]]) -> Figure:
    """Differences from TFT, a colour for each model and language; hollow where the questions are in English."""
    shown = {key: (gaps(rows, "test"), gaps(rows, "english")) for key, rows in of_group.items()}
    labels = list(dict.fromkeys(label for found, _ in shown.values() for label in found))
    figure, axes = new_figure(9, 1.2 + 0.4 * len(labels))
    axes.axvline(0, color=GREY, linewidth=1)
    series = [
        (f"{MODELS[model]}, {language_name(language, own=False)}{', asked in English' if k else ''}", found[k])
        for (model, language, _), found in shown.items()
        for k in (0, 1)
        if found[k]
    ]
    for number, (name, found) in enumerate(series):
        shift = 0.6 * ((number + 0.5) / len(series) - 0.5)
        given = [(labels.index(label) + shift, gap.interval) for label, gap in found.items()]
        axes.errorbar(
            [one.mean for _, one in given],
            [y for y, _ in given],
            xerr=np.array([[one.mean - one.low, one.high - one.mean] for _, one in given]).T,
            fmt="s" if number % 2 else "o",
            markersize=4,
            markerfacecolor="white" if number % 2 else None,
            color=COLORS[number // 2 % len(COLORS)],
            capsize=2,
            linewidth=1,
            label=name,
        )
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=0.01)
    axes.set_xlabel("nats per token minus those of TFT (less is better)")
    axes.legend(frameon=False, fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


def patching() -> str:
    """Of `experiments.real.patching`: differences in nats, with 95 % intervals over examples; less is better."""
    parts = []
    for one in read_cells(holding="nats"):
        nats = {name: {key: np.array(value, float) for key, value in of.items()} for name, of in one["nats"].items()}
        scale = {"nats": nats["alone"]["tokens"].mean(), "first": 1.0}

        def apart(name: str, what: str, nats: Any = nats, scale: Any = scale) -> str:
            gap = uncertainty.difference(*(nats[which][what][None] / scale[what] for which in (name, "alone")))
            return str(Gap(gap, 1.0))

        rows = [["both questions in the prompt", apart("context", "nats"), apart("context", "first"), "", ""]]
        rows += [
            [f"behind layer {n}", *(apart(f"{name} {n}", what) for name in ("lent", "shuffled") for what in scale)]
            for n in one["layers"]
        ]
        alone = {what: nats["alone"][what].mean() / scale[what] for what in scale}
        setting = SETTINGS[one["setting"]].about
        parts += [
            f"### {MODELS[one['model']]}, {setting}, {language_name(one['language'], own=False)}",
            f"Without English: {alone['nats']:.3f} nats per token, {alone['first']:.3f} for the first one. Differences "
            f"over {len(nats['alone']['nats'])} held-out questions:",
            table(["", "its own English", "first token", "another question's", "first token"], rows, markdown=True),
        ]
    return "\n\n".join(parts)


def publish(given: Sequence[str]) -> None:
    """Print what all cells say; write it to docs/results/real.md, and the plot beside it."""
    cells = read_cells()
    of_group = groups(cells)
    hours = sum(sum(cell["seconds"].values()) for cell in cells) / 3600
    about = [f"{len(cells)} cells, {hours:.1f} hours in all, on {', '.join(sorted({c['device'] for c in cells}))}"]
    trained = [cell for cell in cells if "versions" in cell]
    body = "\n\n".join(text(rows, *key) for key, rows in of_group.items())
    folder = results.ROOT / "docs" / "results"
    for name, results_of, notes, content in (
        ("real", trained, about, body),
        ("real patching", read_cells(holding="nats"), [], patching()),
    ):
        section = f"{pages.head('real', given, results_of, notes)}\n\n{content}"
        print(f"\n{section}")
        pages.write_section(folder / "real.md", name, section)
    results.write_svg(drawn(of_group), folder / "real.svg")
