"""One cell of a grid: train one model, ask it everything, look inside, keep the numbers and not the model.

A cell is known by a hash of all that its numbers depend on: base weights, examples, options, steps, seed. Its result is
one file named by that hash, written whole or not at all. So an interrupted grid goes on where it stopped, and nothing
is reused after the base, the data or a setting has changed. Changes of the code are not part of the hash: each result
names its commit, and a table says which ones it rests on.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
import traceback
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from experiments.cells import content_hash, write_result
from experiments.lab.cost import Cost, Size, affordable, cost, steps_of, total
from experiments.lab.examine import examine
from experiments.lab.rows import TFT, Budget, GridSetting, Recipe
from experiments.lab.tasks import TASKS, Task, training_records
from pivotune.checkpoint import load_run
from pivotune.data import tokenize_examples
from pivotune.lab.settings import ANSWER_TOKENS, INSIDE_PAIRS, MAX_LENGTH, STYLE, TRAINING
from pivotune.lab.trial import Record, choose, item, parallel, spread, train_row
from pivotune.lens import Layers

FORMAT = 1  # of a result; raise it where old results must not be read any more


@dataclass(frozen=True)
class Cell:
    """One model to train and to test.

    Attributes:
        setting: its layers are numbers.
        learning_rate, seed, budget: of the training.
        epochs: TFT's passes over the target questions, which the budget follows from.
        splits: that are asked for: development, heldout or both.
        items: how many of them per language, at most; all where None.
        inside: whether to look inside too.
    """

    setting: GridSetting
    learning_rate: float
    seed: int
    budget: Budget
    epochs: float
    splits: tuple[str, ...]
    items: int | None = None
    inside: bool = True

    def __str__(self) -> str:
        budget = ", equal FLOPs" if self.budget == "flops" else ""
        return f"{self.setting.name}{budget}, rate {self.learning_rate:g}, seed {self.seed}"


@dataclass(frozen=True)
class Lab:
    """A base model, a task and the languages to improve."""

    base: str
    task_name: str
    languages: tuple[str, ...]

    @cached_property
    def task(self) -> Task:
        return TASKS[self.task_name]()

    @cached_property
    def base_hash(self) -> str:
        """Of every file that decides what the base model answers."""
        digest = hashlib.sha256()
        for path in sorted(Path(self.base).iterdir()):
            if path.suffix in (".safetensors", ".json") and path.name != "provenance.json":
                digest.update(path.name.encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """Of the base, and of every example that is trained on or asked for."""
        records = [
            [split, language, list(self.task.examples(split, language))]
            for split in ("training", "development", "heldout")
            for language in (*self.languages, "en")
        ]
        return content_hash([FORMAT, self.base_hash, records])

    def key(self, cell: Cell) -> str:
        """The name of a cell's result."""
        trained = cell.setting.trained
        content = {
            "fingerprint": self.fingerprint,
            "setting": {name: value for name, value in cell.setting.content().items() if name != "passes"},
            "training": [dict(TRAINING), MAX_LENGTH, cell.learning_rate, cell.seed, self.steps(cell)]
            if trained
            else [],
            "test": [cell.splits, cell.items, ANSWER_TOKENS, STYLE, INSIDE_PAIRS if cell.inside else 0],
        }
        return content_hash(content)[:24]

    # Data ----------------------------------------------------------------------------------------------------------

    def training_records(self, recipe: Recipe, seed: int) -> list[Record]:
        return training_records(self.task, self.languages, recipe, seed)

    def questions(self, split: str, items: int | None) -> dict[str, list[Record]]:
        """What is asked, by language: the target languages and English."""
        return {
            language: spread(list(self.task.examples(split, language)), items) for language in (*self.languages, "en")
        }

    @cached_property
    def gold(self) -> dict[str, dict[str, tuple[str, str]]]:
        """Language -> item -> the right answer in it and in English, of all splits."""
        return {
            language: {
                item(record): (record["completion"].strip(), record["english"]["completion"].strip())
                for split in ("training", "development", "heldout")
                for record in self.task.examples(split, language)
            }
            for language in self.languages
        }

    # Budgets -------------------------------------------------------------------------------------------------------

    def steps(self, cell: Cell) -> int:
        """Optimiser steps that the cell's budget allows."""
        if not cell.setting.trained:
            return 0
        plain, examples = self._cost(TFT)
        steps = steps_of(examples, self._batch_size, cell.epochs)
        if cell.budget == "steps":
            return steps_of(examples, self._batch_size, cell.epochs * cell.setting.passes)
        own, own_examples = self._cost(cell.setting)
        return affordable(own, total(plain, steps, examples, self._batch_size), own_examples, self._batch_size)

    def flops(self, cell: Cell) -> float:
        """Of the cell's training."""
        own, examples = self._cost(cell.setting)
        return total(own, self.steps(cell), examples, self._batch_size)

    def flops_per_step(self, setting: GridSetting) -> float:
        own, examples = self._cost(setting)
        return total(Cost(own.epoch, 0.0), 1, examples, self._batch_size)

    _batch_size = TRAINING["per_device_train_batch_size"]

    def _cost(self, setting: GridSetting) -> tuple[Cost, int]:
        """Of one pass over the training data, and how many examples that is."""
        name = content_hash(setting.content())
        if name not in self._costs:
            # Shuffling moves English texts between examples, which changes no sum: one seed stands for all.
            if setting.recipe not in self._tokenised:
                examples = parallel(self.training_records(setting.recipe, 0))
                rows, _ = tokenize_examples(examples, self._opened[1], STYLE, MAX_LENGTH)
                self._tokenised[setting.recipe] = rows.to_list()
            rows = self._tokenised[setting.recipe]
            self._costs[name] = cost(setting, rows, self._size), len(rows)
        return self._costs[name]

    @cached_property
    def _costs(self) -> dict[str, tuple[Cost, int]]:
        return {}

    @cached_property
    def _tokenised(self) -> dict[str, list[dict[str, Any]]]:
        return {}

    @cached_property
    def _size(self) -> Size:
        return Size.of(self._opened[0])

    @property
    def num_layers(self) -> int:
        return self._size.layers

    @cached_property
    def _opened(self) -> tuple[Any, Any]:
        run = load_run(self.base, dtype=torch.float32, device="cpu")
        return run.model, run.tokenizer

    @cached_property
    def choice(self) -> Layers:
        """What the paper's rule chooses from: looked at once, on the base, from the training questions."""
        return choose(*self._opened, self.training_records("target", 0))

    @property
    def layers(self) -> tuple[int, int]:
        choice = self.choice.rules["entropy"]
        return choice.conversion_layer, choice.thinking_layer


# Running -------------------------------------------------------------------------------------------------------------


def work(lab: Lab, cell: Cell, folder: Path, where: dict[str, Any], keep: bool = False) -> str:
    """Run a cell in this process and write its result; what it prints goes into a log that only a failure leaves.

    Returns:
        The cell's key.
    """
    torch.set_num_threads(1)  # the same sums in the same order on every machine
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    key = lab.key(cell)
    place = folder / "work" / key
    shutil.rmtree(place, ignore_errors=True)  # of a run that was interrupted
    place.mkdir(parents=True)
    log = folder / f"{key}.log"
    with log.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            result = run(lab, cell, place)
        except Exception:
            traceback.print_exc()
            raise
    write_result(folder, key, {"key": key, "cell": describe(lab, cell), **where, **result})
    log.unlink()
    if not keep:
        shutil.rmtree(place)
    return key


def describe(lab: Lab, cell: Cell) -> dict[str, Any]:
    """A cell in words and numbers, for its result."""
    return {
        "setting": cell.setting.name,
        "options": cell.setting.content(),
        "learning_rate": cell.learning_rate,
        "seed": cell.seed,
        "budget": cell.budget,
        "epochs": cell.epochs,
        "splits": list(cell.splits),
        "items": cell.items,
        "languages": list(lab.languages),
        "task": lab.task_name,
        "base": lab.base_hash,
        "data": lab.fingerprint,
    }


def run(lab: Lab, cell: Cell, place: Path) -> dict[str, Any]:
    """Train and test in an empty folder."""
    started, model_folder = time.perf_counter(), Path(lab.base)
    training_seconds = 0.0
    if cell.setting.trained:
        before = time.process_time()
        model_folder = trained(lab, cell, place)
        training_seconds = time.process_time() - before
    questions = {split: lab.questions(split, cell.items) for split in cell.splits}
    found = examine(model_folder, questions, questions[cell.splits[-1]] if cell.inside else None)
    return {
        "steps": lab.steps(cell),
        "flops": lab.flops(cell),
        "flops_per_step": lab.flops_per_step(cell.setting),
        **found,
        "training_cpu_seconds": round(training_seconds, 2),
        "seconds": round(time.perf_counter() - started, 2),
    }


def trained(lab: Lab, cell: Cell, place: Path) -> Path:
    """Train in a folder; returns that of the run."""
    return train_row(
        cell.setting,
        lab.base,
        lab.training_records(cell.setting.recipe, cell.seed),
        place,
        learning_rate=cell.learning_rate,
        max_steps=lab.steps(cell),
        seed=cell.seed,
        disable_tqdm=True,
    )
