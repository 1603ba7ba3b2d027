"""`make real`: a real pretrained model in some twenty minutes, plain fine-tuning beside the recommended setting.

Gemma-3-270M is fetched, converted and cut to the vocabulary of the data; then each row is trained and measured in a
process of its own, one for each core. What is finished stays: after an interruption the same command goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.real import models, tables
from experiments.real.pairs import SIZES
from experiments.real.settings import RECOMMENDED
from experiments.real.trial import BATCH, ENGLISH, SECONDS_PER_EXAMPLE, SECONDS_PER_STEP, Trial, model_folder, run_trial
from pivotune.files import write_text
from pivotune.lab.workers import Job, Report, side_by_side
from pivotune.plotting import save

PAIRS = 400
RATE = 5e-5
MEASURED = SIZES["dev"] + SIZES["test"] + ENGLISH
"""Examples that a row is measured on."""


def short(work: Path, data: Path, language: str = "vi", name: str = "gemma") -> None:
    """Print the table, and write it and the plot into `work`."""
    cells = work / "short"
    print(f"{models.MODELS[name].terms}", flush=True)
    print("Fetching and converting the model, where it is not there yet; about two minutes ...", flush=True)
    model_folder(name, work, data)
    trials = [Trial(setting, name, language, RATE, 0, PAIRS) for setting in ("base", "tft", RECOMMENDED)]
    remaining = [trial for trial in trials if not trial.done(cells)]
    if remaining:
        steps = math.ceil(PAIRS / BATCH)
        jobs = [
            Job(
                trial.name,
                _run,
                (trial, work, data, cells),
                MEASURED * SECONDS_PER_EXAMPLE + steps * SECONDS_PER_STEP * (trial.setting != "base"),
            )
            for trial in remaining
        ]
        side_by_side(jobs, work / "logs", "rows")
    of_group = tables.groups(tables.read_cells(cells))
    text = "\n\n".join(tables.text(rows, *key) for key, rows in of_group.items())
    write_text(work / "real.md", f"{text}\n")
    plot = save(tables.drawn(of_group), work / "real")[0]
    print(f"\n{text}\n\nTable: {work / 'real.md'}. Plot: {plot}.")


def _run(report: Report, trial: Trial, work: Path, data: Path, cells: Path) -> Mapping[str, Any]:
    return run_trial(trial, work, data, cells=cells, report=report)
