"""What the lens measures of CC-Tuning: the layers that are picked, and how well the matrix stands in for English.

Shapes in names: N examples, L layers, d hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pivotune.errors import PivotuneError
from pivotune.lens import panels
from pivotune.lens.activations import PairActivations
from pivotune.lens.panels import BLUE, GREEN, ORANGE
from pivotune.objectives.cc_tuning.connection import LinearConnection
from pivotune.objectives.cc_tuning.transform_matrix import RunningR2
from pivotune.plotting import GREY
from pivotune.uncertainty import Tables


class ConnectionMeasure:
    """What CC-Tuning's connection (Ye et al. 2025) does: the layers that it picks, and how well the matrix stands in.

    Tables; picks are those of inference, without noise. With soft selection all layers are mixed, and the pick is the
    one of the largest share.

        picks_english  (N, L) bool, one True per row: the layer picked from the activations of the real English question
        picks_matrix   (N, L) bool: the layer picked from the question's own activations, mapped by the Transform Matrix
        agreement      (N, 1) bool: both are the same

    The last two, and what belongs to them in the summary, only with a Transform Matrix.

    Args:
        connection: of the very model that is read.
    """

    needs_feed_forward = True

    def __init__(self, connection: LinearConnection):
        self.connection = connection
        L, d = connection.anatomy.num_layers, connection.anatomy.hidden_size
        device = connection.decision_maker.weight.device
        self._copied, self._mapped = (RunningR2(L, d, device) for _ in range(2))
        self._together_LL = torch.zeros(L, L, dtype=torch.long)  # pairs by pick: from English, from the matrix

    @torch.no_grad()
    def add(self, activations: PairActivations) -> Tables:
        """As `Measure.add`.

        Raises:
            PivotuneError: the activations were read without `feed_forward=True`.
        """
        english_NLd, own_NLd = activations.english.feed_forward, activations.target.feed_forward
        if english_NLd is None or own_NLd is None:
            raise PivotuneError("calibration: the connection reads feed-forward outputs; call read(feed_forward=True).")
        last_N = activations.target.input_ids.gather(1, activations.target.last[:, None])[:, 0]
        self._copied.add(own_NLd.transpose(0, 1), english_NLd.transpose(0, 1))
        by_english_N = self.connection.shares(english_NLd, last_N).argmax(dim=-1).cpu()
        tables = {"picks_english": self._one_hot(by_english_N)}
        if self.connection.transform_matrix is None:
            return tables
        mapped_NLd = self.connection.transform(own_NLd)
        self._mapped.add(mapped_NLd.transpose(0, 1), english_NLd.transpose(0, 1))
        by_matrix_N = self.connection.shares(mapped_NLd, last_N).argmax(dim=-1).cpu()
        self._together_LL.index_put_((by_english_N, by_matrix_N), torch.ones_like(by_english_N), accumulate=True)
        return tables | {
            "picks_matrix": self._one_hot(by_matrix_N),
            "agreement": (by_english_N == by_matrix_N)[:, None],
        }

    def finish(self) -> Tables:
        return {}

    def summary(self) -> dict[str, Any]:
        """What is no mean over examples.

        Returns:
            pairs: how many were read.
            r2, r2_per_layer: R^2 of the mapped activations, 1 - (squared error) / (squared distance of the English ones
                from their mean over the pairs of this language), over all layers and per layer. 0 is what that mean
                would score; a matrix fitted on several languages may fall below it in one of them. None for a single
                pair. Layers of large activations rule the R^2 over all.
            r2_of_copy, r2_of_copy_per_layer: the same of the question's own activations, unmapped: what there would be
                without a matrix.
            chance_agreement: how often the two picks would agree if they were made independently of each other, as
                often each layer as they are.
            kappa: Cohen's (1960), the share of the agreement that is possible beyond chance. None where chance alone
                gives 1: both pick one and the same layer always.
        """
        found: dict[str, Any] = {
            "pairs": self._copied.count,
            "r2_of_copy": self._copied.overall(),
            "r2_of_copy_per_layer": self._copied.per_group(),
        }
        if self.connection.transform_matrix is None:
            return found
        chance, kappa = _kappa(self._together_LL)
        return found | {
            "r2": self._mapped.overall(),
            "r2_per_layer": self._mapped.per_group(),
            "chance_agreement": chance,
            "kappa": kappa,
        }

    def _one_hot(self, pick_N: Tensor) -> Tensor:
        return F.one_hot(pick_N, self.connection.anatomy.num_layers).bool()


def _kappa(together_LL: Tensor) -> tuple[float | None, float | None]:
    """Chance agreement and Cohen's kappa of a table of counts; in whole numbers, so that a chance of 1 is exactly 1."""
    count = int(together_LL.sum())
    if not count:
        return None, None
    by_chance, agreed = int(together_LL.sum(dim=1) @ together_LL.sum(dim=0)), int(together_LL.trace())
    possible = count**2 - by_chance
    return by_chance / count**2, (agreed * count - by_chance) / possible if possible else None


def connection_figure(report: Mapping[str, Any], path_without_suffix: str | Path) -> list[Path]:
    """A row per language, for CC-Tuning: which layers the Decision Maker picks, and R^2 of the Transform Matrix."""
    names = {"picks_english": ("picked from real English", BLUE), "picks_matrix": ("picked from the matrix", ORANGE)}
    r2 = {
        "run": ("$R^2$ of the matrix", GREEN),
        "copy": ("$R^2$ without it: the question's own", GREY),
    }
    found = panels.with_tables(report, "cc_tuning", names)
    if not found:
        return []
    figure, grid = panels.rows(len(found), 2)
    for row, (code, tables) in zip(grid, found.items(), strict=True):
        summary = report["languages"][code]["cc_tuning"]["summary"].get("run") or {}
        drawn = [name for name in names if (tables.get(name) or {}).get("run")]
        for k, name in enumerate(drawn):
            panels.bars(row[0], tables[name]["run"], names[name][1], k, len(drawn))
        row[0].set_ylim(bottom=0)
        row[0].set_ylabel("share of the picks, %\n(whiskers: 95 % interval)")
        for name, key in (("copy", "r2_of_copy_per_layer"), ("run", "r2_per_layer")):
            panels.curve(row[1], {"mean": summary[key]} if summary.get(key) else None, r2[name][1], "run")
        far = row[1].get_ylim()[0] < -1.05  # so far below 0 there is nothing more to tell
        row[1].set_ylim(bottom=-1.05 if far else None, top=1.05)
        row[1].axhline(0, color="black", linewidth=0.6)
        row[1].set_ylabel("$R^2$ (cut off at −1)" if far else "$R^2$")
        row[1].set_title(_agreement(tables, summary), fontsize=8, loc="left")
        for axes in row:
            panels.layer_axis(axes, report, marked=False)
        panels.headed(row[0], report, code)
    panels.outer_labels(grid, grid.size)
    return panels.finished(
        figure,
        report,
        "CC-Tuning's connection",
        r2.values(),
        path_without_suffix,
        bars=list(names.values()),
        marked=False,
    )


def _agreement(tables: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """The Decision Maker's agreement with itself and the matrix's R^2 over all layers, as a line."""
    parts = []
    if agreement := (tables.get("agreement") or {}).get("run"):
        share, low, high = (panels.numbers(agreement[name], 100)[0] for name in ("mean", "low", "high"))
        parts.append(f"same pick: {share:.0f} % [{low:.0f}, {high:.0f}]")
    if summary.get("kappa") is not None:
        parts.append(f"κ {summary['kappa']:.2f}")
    if summary.get("r2") is not None:
        parts.append(f"$R^2$ of all layers {summary['r2']:.2f}")
    return ", ".join(parts)


def connection_lines(found: Mapping[str, Any]) -> list[str]:
    """What is picked, and how well the matrix stands in, in words."""
    lines = [""]
    for name, what in (("picks_english", "real English"), ("picks_matrix", "the Transform Matrix")):
        if name in found["tables"]:
            shares = enumerate(found["tables"][name]["run"]["mean"], start=1)
            most = sorted(shares, key=lambda pick: -pick[1])[:3]
            picks = ", ".join(f"layer {layer} ({100 * share:.0f} %)" for layer, share in most if share)
            lines.append(f"The Decision Maker picks, from {what}: {picks}.")
    if "agreement" in found["tables"]:
        agreement, summary = found["tables"]["agreement"]["run"], found["summary"]["run"]
        share, low, high = (100 * agreement[name][0] for name in ("mean", "low", "high"))
        r2 = "unknown" if summary["r2"] is None else f"{summary['r2']:.2f}"
        lines.append(f"They agree on {share:.0f} % [{low:.0f}, {high:.0f}] of the prompts. R^2 of the matrix: {r2}.")
    return lines
