"""Do deep supervision and CC-Tuning help? The lab's grids, from training to docs/results, one command each.

    python -m experiments.lab learning_rate    # a rate for each method, on development facts -> learning_rates.json
    python -m experiments.lab headline         # every method, five seeds, at equal steps and at equal FLOPs
    python -m experiments.lab layers           # deep supervision at all pairs of layers, and the rule's choice
    python -m experiments.lab ablations        # the options that the papers leave open, one at a time

    --rows "TFT; logits" --items 20 --epochs 0.2 --seeds 1 --learning-rate 3e-4    try it: nothing is recorded

A grid that is interrupted goes on where it stopped. Each cell is deterministic: the same seeds give the same table.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

# Before torch counts the cores: a cell computes on one thread, in this process and in those that it starts.
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from transformers.utils.logging import disable_progress_bar

from experiments import results
from experiments.cells import environment, read_result, result_file
from experiments.lab import tables
from experiments.lab.cell import Cell, Lab, work
from experiments.lab.rows import (
    ABLATIONS,
    BASE,
    HEADLINE,
    LEARNING_RATES,
    METHODS,
    TFT,
    TUNING_SEEDS,
    GridSetting,
    by_name,
    layer_pairs,
    reference_of,
)
from experiments.lab.tasks import TASKS
from pivotune.errors import PivotuneError, check_choice
from pivotune.lab.base import base_path
from pivotune.lab.settings import EPOCHS
from pivotune.options import names_in

SEEDS = {"learning_rate": 2, "headline": 5, "layers": 3, "ablations": 3}
"""The grids, and how many seeds each has by default."""
RATES = Path(__file__).with_name("learning_rates.json")

# For the estimate before the first cell has finished; measured on one core of a small cloud machine.
FLOPS_PER_SECOND, SECONDS_PER_ANSWER, SECONDS_PER_CELL = 4.0e10, 0.005, 10.0


@dataclass(frozen=True)
class GridPlan:
    """The cells of a grid, each with its key."""

    cells: dict[str, Cell]
    lab: Lab
    folder: Path

    @classmethod
    def of(cls, cells: Sequence[Cell], lab: Lab, folder: Path) -> GridPlan:
        return cls({lab.key(cell): cell for cell in cells}, lab, folder)

    def open(self) -> dict[str, Cell]:
        """Those without a result."""
        return {key: cell for key, cell in self.cells.items() if not result_file(self.folder, key).is_file()}

    def results(self, cells: Sequence[Cell]) -> list[dict[str, Any]]:
        """Of these cells, in their order; those without one are left out."""
        found = [read_result(self.folder, self.lab.key(cell)) for cell in cells]
        return [one for one in found if one is not None]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    torch.set_num_threads(1)
    disable_progress_bar()
    lab = Lab(str(Path(options.base).resolve()), options.task, options.languages)
    grid = _GRIDS[options.grid](lab, options)
    plan = GridPlan.of(grid.cells, lab, Path(options.folder))
    plan.folder.mkdir(parents=True, exist_ok=True)
    missing = plan.open()
    seconds = sum(_seconds(lab, cell) for cell in missing.values()) / options.workers
    print(
        f"{options.grid}: {len(plan.cells)} cells, {len(plan.cells) - len(missing)} of them done; about "
        f"{_duration(seconds)} on {options.workers} worker{'s' * (options.workers > 1)}."
    )
    if options.dry_run:
        for key, cell in plan.cells.items():
            print(f"{'open' if key in missing else 'done'}  {key}  {cell}, {lab.steps(cell)} steps")
        return 0
    failed = run_all(plan, options.workers, options.limit_cells, options.keep)
    left = plan.open()
    # A learning rate that breaks the training is a result too; of a score there must be every seed.
    refused = {key for key, error in failed.items() if isinstance(error, PivotuneError)}
    if left and not (options.grid == "learning_rate" and refused.issuperset(left)):
        print(f"{len(left)} cells are open; the table is made when all are done. Run the same command again.")
        return 1 if failed else 0
    every = plan.results(list(plan.cells.values()))
    section = f"{tables.provenance(options.command, every, options.split)}\n\n{grid.render(plan)}"
    print(f"\n{section}")
    if options.results:
        page = results.record(Path(options.results), _page(options), _section_name(options), section)
        print(f"\nWritten: {page}")
    return 0


def run_all(plan: GridPlan, workers: int, limit: int | None = None, keep: bool = False) -> dict[str, BaseException]:
    """Run the open cells, at most `limit` of them; returns the errors of those that failed."""
    todo = dict(list(plan.open().items())[:limit])
    if not todo:
        return {}
    where, started = environment(), time.monotonic()
    failed: dict[str, BaseException] = {}
    lab = (plan.lab.base, plan.lab.task_name, plan.lab.languages)
    weights = {key: _seconds(plan.lab, cell) for key, cell in todo.items()}
    done = 0.0
    # Processes of their own, begun afresh: no state goes from one cell to the next but what a worker has read.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(_work, lab, cell, plan.folder, where, keep): key for key, cell in todo.items()}
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                key = futures[future]
                done += weights[key]
                elapsed = time.monotonic() - started
                left = elapsed * (sum(weights.values()) - done) / done
                outcome = ""
                if error := future.exception():
                    failed[key] = error
                    outcome = f" FAILED: {error} (see {plan.folder / key}.log)"
                print(f"[{number}/{len(todo)}] {todo[key]}{outcome}; {_duration(left)} left", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def _work(lab: tuple[str, str, tuple[str, ...]], cell: Cell, folder: Path, where: dict[str, Any], keep: bool) -> str:
    return work(_lab(*lab), cell, folder, where, keep)


@lru_cache(maxsize=1)
def _lab(base: str, task: str, languages: tuple[str, ...]) -> Lab:
    """A worker reads base and task once."""
    return Lab(base, task, languages)


def _seconds(lab: Lab, cell: Cell) -> float:
    """A guess at what a cell takes on one core."""
    asked = sum(len(records) for split in cell.splits for records in lab.questions(split, cell.items).values())
    modes = 3 if cell.setting.cc_tuning is not None else 1
    training = lab.flops(cell) / FLOPS_PER_SECOND if cell.setting.trained else 0.0
    return training + asked * modes * SECONDS_PER_ANSWER + SECONDS_PER_CELL * (1 if cell.inside else 0.5)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


# The grids -----------------------------------------------------------------------------------------------------------


class Grid:
    """Cells, and what is written about them."""

    def __init__(self, lab: Lab, options: argparse.Namespace):
        self.lab, self.options = lab, options
        self.cells: list[Cell] = []

    def render(self, plan: GridPlan) -> str:
        raise NotImplementedError

    def wanted(self, settings: Sequence[GridSetting]) -> list[GridSetting]:
        """The rows asked for, with numbers for layers."""
        rows = self.options.rows
        if rows:
            for name in rows:
                check_choice("rows", name, [setting.name for setting in settings])
        chosen = [setting for setting in settings if not rows or setting.name in rows]
        return [setting.at_layers(self.lab.layers) for setting in chosen]

    def add(self, setting: GridSetting, seeds: Sequence[int] | None = None, **changed: Any) -> list[Cell]:
        """One cell per seed, in the grid and returned; a rate that is not given is the one chosen for the method."""
        if "learning_rate" not in changed:
            changed["learning_rate"] = self._rate(setting)
        options = self.options
        defaults = {"budget": "steps", "epochs": options.epochs, "splits": (options.split,), "items": options.items}
        made = [
            Cell(setting=setting, seed=seed, **(defaults | changed))
            for seed in (range(options.seeds) if seeds is None else seeds)
        ]
        self.cells += made
        return made

    def _rate(self, setting: GridSetting) -> float:
        if not setting.trained:
            return 0.0
        if self.options.learning_rate is not None:
            return float(self.options.learning_rate)
        return chosen_rate(setting, self.lab, RATES)


class LearningRate(Grid):
    """Every method at every rate, on development facts."""

    def __init__(self, lab: Lab, options: argparse.Namespace):
        super().__init__(lab, options)
        seeds = range(TUNING_SEEDS, TUNING_SEEDS + options.seeds)
        self.tried = [
            (setting, {rate: self.add(setting, seeds, learning_rate=rate, inside=False) for rate in LEARNING_RATES})
            for setting in self.wanted(METHODS)
        ]

    def render(self, plan: GridPlan) -> str:
        scores = {
            setting.name: {
                rate: self._score(setting, plan.results(cells), len(cells)) for rate, cells in of_rate.items()
            }
            for setting, of_rate in self.tried
        }
        chosen = {name: _best_rate(name, of_rate) for name, of_rate in scores.items()}
        if not (self.options.shorter or self.options.learning_rate):
            self._keep(chosen, scores)
        return tables.learning_rates(scores, chosen, self.lab.task.name)

    def _keep(self, chosen: Mapping[str, float], scores: Mapping[str, Mapping[float, float | None]]) -> None:
        """Into the file; other rows' rates stay, if they were chosen on this base and these data."""
        content = json.loads(RATES.read_text(encoding="utf-8")) if RATES.is_file() else {}
        before: dict[str, Any] = content.get(_subject(self.lab), {})
        if before.get("data") != self.lab.fingerprint:
            before = {"chosen": {}, "development_scores": {}}
        development = {name: {f"{rate:g}": score for rate, score in row.items()} for name, row in scores.items()}
        content[_subject(self.lab)] = {
            "command": self.options.command,
            "data": self.lab.fingerprint,
            "chosen": before["chosen"] | dict(chosen),
            "development_scores": before["development_scores"] | development,
        }
        RATES.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def _score(self, setting: GridSetting, found: list[dict[str, Any]], seeds: int) -> float | None:
        """Of one rate on development facts; None where a seed failed."""
        if len(found) < seeds:
            return None
        row = tables.rows_of(setting, found)[0]
        return float(row.answers(self.options.split, tables.ALL, self.lab.languages).mean())


def _best_rate(name: str, scores: Mapping[float, float | None]) -> float:
    """Of equal scores the smaller rate: it changes the model less."""
    worked = [(score, -rate) for rate, score in scores.items() if score is not None]
    if not worked:
        raise PivotuneError(f"{name}: every learning rate failed; see the logs of its cells.")
    return -max(worked)[1]


class Headline(Grid):
    """All rows at equal steps; the methods at equal FLOPs too."""

    def __init__(self, lab: Lab, options: argparse.Namespace):
        super().__init__(lab, options)
        wanted = self.wanted(HEADLINE)
        if TFT.name not in [setting.name for setting in wanted]:
            wanted.insert(0, TFT)
        self.base = self.add(BASE, seeds=[0])
        self.steps = [(setting, self.add(setting)) for setting in wanted]
        methods = {setting.name for setting in METHODS} - {TFT.name}
        self.flops = [(setting, self.add(setting, budget="flops")) for setting in wanted if setting.name in methods]

    def render(self, plan: GridPlan) -> str:
        by_budget = {
            name: [(setting, plan.results(cells)) for setting, cells in made]
            for name, made in (("steps", self.steps), ("flops", self.flops))
        }
        (base,) = plan.results(self.base)
        return tables.headline(by_budget, base, self.lab.languages, self.options.split, self.lab.gold, self.lab.task)


class Layers(Grid):
    """One method of deep supervision at all pairs of layers, on development and held-out facts."""

    def __init__(self, lab: Lab, options: argparse.Namespace):
        super().__init__(lab, options)
        setting = by_name(options.of)
        if setting.deep_supervision is None or setting.cc_tuning is not None:
            raise PivotuneError(f"of: got {options.of!r}, which supervises no layer alone. Choose another row.")
        pairs = layer_pairs(setting, lab.num_layers)
        self.settings = {pair: row for pair, row in pairs.items() if not options.rows or row.name in options.rows}
        self.settings.setdefault(lab.layers, setting.at_layers(lab.layers))
        splits = ("development", "heldout")
        self.pairs = {pair: self.add(row, splits=splits, inside=False) for pair, row in self.settings.items()}

    def render(self, plan: GridPlan) -> str:
        rows = {
            pair: tables.Row(self.settings[pair].name, self.settings[pair], "none", plan.results(cells))
            for pair, cells in self.pairs.items()
        }
        figure = Path(self.options.folder) / f"layers {self.options.of}".replace(" ", "_").replace(",", "")
        text = tables.layers(rows, self.lab.choice, self.lab.languages, figure)
        print(f"Figure: {figure}.png")
        return f"Row: {self.options.of}.\n\n{text}"


class Ablations(Grid):
    """Every open option, and the rows that they change."""

    def __init__(self, lab: Lab, options: argparse.Namespace):
        super().__init__(lab, options)
        self.changed = [(setting, self.add(setting)) for setting in self.wanted(ABLATIONS)]
        names = dict.fromkeys(reference_of(setting).name for setting, _ in self.changed)
        self.references = {name: self.add(by_name(name).at_layers(lab.layers)) for name in names}

    def render(self, plan: GridPlan) -> str:
        return tables.ablations(
            [(setting, plan.results(cells)) for setting, cells in self.changed],
            {name: plan.results(cells) for name, cells in self.references.items()},
            self.lab.languages,
            self.options.split,
            self.lab.task,
        )


_GRIDS: Mapping[str, type[Grid]] = {
    "learning_rate": LearningRate,
    "headline": Headline,
    "layers": Layers,
    "ablations": Ablations,
}


def chosen_rate(setting: GridSetting, lab: Lab, path: Path) -> float:
    """The learning rate of a row's method, from the grid that chose it.

    Raises:
        PivotuneError: there is none, or it was chosen on another base or other data.
    """
    fix = "Run `python -m experiments.lab learning_rate`, or give --learning-rate."
    by_subject = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    content = by_subject.get(_subject(lab))
    if content is None:
        raise PivotuneError(f"learning rate: {path.name} has none for {_subject(lab)}. {fix}")
    if content["data"] != lab.fingerprint:
        raise PivotuneError(f"learning rate: {path.name} was made with another base model or other data. {fix}")
    if setting.tuned_as not in content["chosen"]:
        raise PivotuneError(f"learning rate: {path.name} has none for {setting.tuned_as!r}. {fix}")
    return float(content["chosen"][setting.tuned_as])


def _subject(lab: Lab) -> str:
    return f"{lab.task_name}: {', '.join(lab.languages)}"


# The command line ----------------------------------------------------------------------------------------------------


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="python -m experiments.lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", choices=list(_GRIDS))
    parser.add_argument("--seeds", type=int, help="how many; by default 5 for headline, 3, and 2 for learning_rate")
    parser.add_argument("--workers", type=int, default=2, help="processes, each on one thread")
    parser.add_argument(
        "--split", choices=("heldout", "development"), help="development for learning_rate, else heldout"
    )
    parser.add_argument("--task", choices=list(TASKS), default="facts")
    parser.add_argument("--base", default=str(base_path()), help="folder of the base model")
    parser.add_argument("--languages", help="separated by commas; all of the task by default")
    parser.add_argument("--epochs", type=float, default=EPOCHS, help="TFT's passes over its questions")
    parser.add_argument("--learning-rate", type=float, help="for all rows, instead of the chosen ones")
    parser.add_argument("--of", default="feature", help="layers: the row whose layers are varied")
    parser.add_argument("--rows", help="only these rows, separated by semicolons")
    parser.add_argument("--items", type=int, help="questions per language, at most")
    parser.add_argument("--limit-cells", type=int, help="run so many of the open cells, then stop")
    parser.add_argument("--dry-run", action="store_true", help="list the cells and the time they may take")
    parser.add_argument("--keep", action="store_true", help="keep the trained models")
    parser.add_argument("--folder", default="runs/experiments", help="where the results of cells are kept")
    parser.add_argument("--results", help="the summary to record beside; RESULTS.md, unless options make it a trial")
    options = parser.parse_args(given)
    options.seeds = SEEDS[options.grid] if options.seeds is None else options.seeds
    options.split = options.split or ("development" if options.grid == "learning_rate" else "heldout")
    options.rows = names_in(options.rows or "", ";")
    options.languages = tuple(names_in(options.languages or "") or TASKS[options.task].languages)
    for language in options.languages:
        check_choice("languages", language, TASKS[options.task].languages)
    for name in ("seeds", "workers"):
        if getattr(options, name) < 1:
            raise PivotuneError(f"{name}: got {getattr(options, name)}; give at least 1.")
    options.shorter = bool(options.items or options.epochs != EPOCHS)
    options.trial = bool(options.rows or options.shorter or options.learning_rate)
    if options.results is None and not options.trial:
        options.results = "RESULTS.md"
    options.command = shlex.join(["python", "-m", "experiments.lab", *given])
    return options


def _page(options: argparse.Namespace) -> str:
    """The page of the grid's section, in docs/results."""
    of_facts = {"learning_rate": "methods", "headline": "methods", "layers": "layers", "ablations": "options"}
    return of_facts[options.grid] if options.task == "facts" else str(options.task)


def _section_name(options: argparse.Namespace) -> str:
    """A section for each grid, and further ones for parts of the languages, other tasks and other rows of layers."""
    name = options.grid if options.grid != "layers" else f"layers of {options.of}"
    languages = TASKS[options.task].languages
    return " ".join(
        [
            *([] if options.task == "facts" else [options.task]),
            name,
            *([] if options.languages == languages else [",".join(options.languages)]),
        ]
    )
