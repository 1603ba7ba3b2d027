"""What training cost, and how the terms of the loss went: training_log.json of the run folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pivotune.errors import PivotuneError
from pivotune.evaluation.compare.comparison import Comparison
from pivotune.evaluation.compare.plots import Curves, term_plots
from pivotune.evaluation.page import Figures, Part, Section, Table, TableCell
from pivotune.files import read_json

Log = Sequence[Mapping[str, Any]]

_NO_TERMS = {"loss", "grad_norm", "learning_rate", "epoch", "step"}


def training_sections(comparison: Comparison, plots: Path) -> list[Section]:
    """One section, or none where no run has a log."""
    logs = _logs(comparison)
    if not logs:
        return []
    curves = {name: [_curves(log) for log in runs] for name, runs in logs.items()}
    terms = list(dict.fromkeys(term for runs in curves.values() for one in runs for term in one))
    rows = [
        [*_cost(name, runs), *(_first_and_last(term, curves[name]) for term in terms)] for name, runs in logs.items()
    ]
    heads = ["run", "steps", "time", "examples/s", *terms]
    caption = "Training: its cost, and each term of the loss at the first and the last logged step"
    parts: list[Part] = [Table(heads, rows, caption)]
    if pictures := term_plots(comparison, curves, terms, plots):
        parts.append(Figures(pictures))
    return [Section("Training", parts)]


def _logs(comparison: Comparison) -> dict[str, list[Log]]:
    """Of each entry's runs. A run under two connections was trained once."""
    logs: dict[str, list[Log]] = {}
    seen: set[Path] = set()
    for entry in comparison.entries:
        for member in entry.members:
            path = None if member.run is None else member.run / "training_log.json"
            if path is not None and path.is_file() and path.resolve() not in seen:
                seen.add(path.resolve())
                logs.setdefault(entry.name, []).append(_log(path))
    return logs


def _log(path: Path) -> Log:
    content = read_json(path)
    if not isinstance(content, list) or not all(isinstance(one, dict) for one in content):
        raise PivotuneError(f"{path}: is no training log: a list of objects is expected.")
    for number, entry in enumerate(content, start=1):
        for name in ("step", "loss", "train_runtime", "train_samples_per_second"):
            if not isinstance(value := entry.get(name), int | float | None):
                raise PivotuneError(f"{path}: {name} of entry {number} is {value!r}, not a number.")
    return content


def _curves(log: Log) -> Curves:
    found: dict[str, list[tuple[float, float]]] = {}
    for one in log:
        for name, value in one.items() if "loss" in one and one.get("step") is not None else ():
            if (name == "loss" or name not in _NO_TERMS) and isinstance(value, int | float):
                found.setdefault(name, []).append((one["step"], float(value)))
    return found


def _cost(name: str, logs: Sequence[Log]) -> list[TableCell]:
    """The name, and the means over seeds of steps, time and speed."""
    seconds = [sum(one.get("train_runtime") or 0.0 for one in log) for log in logs]
    steps = [max((one.get("step") or 0 for one in log), default=0) for log in logs]
    speed = [one["train_samples_per_second"] for log in logs for one in log if one.get("train_samples_per_second")]
    return [
        TableCell(name, f"mean of {len(logs)} seeds" if len(logs) > 1 else ""),
        TableCell(f"{np.mean(steps):,.0f}"),
        TableCell(_duration(float(np.mean(seconds)))),
        TableCell(f"{np.mean(speed):.1f}" if speed else "–"),
    ]


def _first_and_last(term: str, curves: Sequence[Curves]) -> TableCell:
    """Means over seeds."""
    having = [one[term] for one in curves if term in one]
    if not having:
        return TableCell("–")
    first, last = (np.mean([curve[k][1] for curve in having]) for k in (0, -1))
    return TableCell(f"{first:.3g} → {last:.3g}")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
