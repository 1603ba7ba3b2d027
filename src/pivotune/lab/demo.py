"""`pivotune demo`: the whole story on this machine, in a few minutes and without a download.

The lab's base model knows its facts in English and a minority of them in each other language. Each method teaches it
more facts in each language; then it is asked, in that language, for facts that it has met in English only. What it
answers right it must have carried over from English. A second table looks inside: how well the
English question and answer can be read from the supervised layers, on the same facts.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from babel import Locale
from scipy.stats import binomtest
from transformers.utils import logging

from pivotune.anatomy import Anatomy
from pivotune.checkpoint import Run
from pivotune.errors import PivotuneError, check_choice, check_number, check_seed
from pivotune.files import make_folder, write_text
from pivotune.lab.base import base_path, load_base
from pivotune.lab.settings import (
    BASE,
    CC,
    EPOCHS,
    FEATURE,
    INSIDE_PAIRS,
    LOGITS,
    MAX_LENGTH,
    STYLE,
    TFT,
    TRAINING,
    Setting,
)
from pivotune.lab.templates import LANGUAGES
from pivotune.lab.trial import Record, ask, choose, open_row, parallel, spread, train_row
from pivotune.lab.workers import Job, Report, computing_on, counting, side_by_side, threads
from pivotune.lab.world import World, calling_codes
from pivotune.lens.activations import PairStream, run_measure
from pivotune.objectives.deep_supervision.measure import SupervisionMeasure
from pivotune.options import names_in
from pivotune.plotting import new_figure, save
from pivotune.tables import table

NAMES = {language: str(Locale(language).english_name) for language in LANGUAGES}

ROWS = {"TFT": 1e-4, "logits": 1e-4, "feature": 5e-5, "CC": 2e-4}
"""The rows, and the learning rates that development facts have chosen for them (docs/results/methods.md)."""
SETTINGS = {setting.name: setting for setting in (TFT, LOGITS, FEATURE, CC)}

TITLES = {
    "TFT": "TFT",
    "logits": "deep supervision, logits",
    "feature": "deep supervision, feature",
    "CC": "CC-Tuning",
}
ASKED = {"none": "", "matrix": ", matrix", "english": ", real English"}

SECONDS = {"base model": 0.0, "TFT": 0.4, "logits": 0.73, "feature": 0.54, "CC": 0.86}
"""Of a step's training, on one core of a small cloud machine: what the time left is guessed from until it is known."""
SECONDS_ASKED, SECONDS_LOOKED = 2.0, 1.5  # in each language


MARK = "pivotune.demo"
"""Lies in the folder of a demo."""


@dataclass
class Share:
    """How many of n answers were exactly right, with the 95 % Wilson interval of their share."""

    right: int
    n: int

    @property
    def percent(self) -> float:
        return 100 * self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        low, high = binomtest(self.right, self.n).proportion_ci(method="wilson")
        return 100 * float(low), 100 * float(high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.percent:5.1f} [{low:4.1f}, {high:4.1f}]"


def demo(
    output: str = "runs/demo", languages: str | list[str] = "zh,vi,ar,sw", epochs: float = EPOCHS, seed: int = 0
) -> None:
    """Fine-tune the lab's base model with every method, and print and plot what each of them changes.

    Args:
        output: folder for the data, the runs, results.json and the plot.
        languages: which to fine-tune, separated by commas.
        epochs: passes over the training questions.
        seed: of the training runs.
    """
    chosen = list(dict.fromkeys(names_in(languages)))
    for language in chosen or [""]:
        check_choice("languages", language, LANGUAGES[1:])
    check_number("epochs", epochs, 0, exclusive=True)
    check_seed("seed", seed)
    calling_codes()  # a missing package is said before the folder is made
    _claim(Path(output))
    started = time.monotonic()
    logging.disable_progress_bar()  # of loading and saving
    folder, world, base = Path(output), World.build(), load_base()
    training = _training(world, chosen)
    asked = len(list(world.examples("heldout", "en")))
    print(f"Fine-tuning on facts new to each language; asking for {asked} that it met in English only.")
    print("Choosing the layers to supervise, from the base model ...", flush=True)
    with computing_on(threads()):
        choice = choose(*base, training).rules["entropy"]
    layers = choice.conversion_layer, choice.thinking_layer
    print(f"Layers to supervise: {layers[0]} and {layers[1]}.", flush=True)

    rows = [BASE, *(SETTINGS[name].at_layers(layers) for name in ROWS)]
    steps = math.ceil(epochs * math.ceil(len(training) / TRAINING["per_device_train_batch_size"]))
    jobs = [
        Job(
            _title(row),
            _row,
            (row, folder, chosen, layers, steps, epochs, seed),
            seconds=SECONDS[row.name] * steps + len(chosen) * (len(_modes(row)) * SECONDS_ASKED + SECONDS_LOOKED),
        )
        for row in rows
    ]
    found = side_by_side(jobs, folder / "logs", what="models")
    scores = {name: of_languages for row_scores, _ in found for name, of_languages in row_scores.items()}
    inside = {job.name: row_inside for job, (_, row_inside) in zip(jobs, found, strict=True)}
    _report(folder, scores, inside, layers, {"seed": seed, "epochs": epochs})
    seconds = time.monotonic() - started
    print(f"\n{seconds:.0f} seconds. Picture: {folder / 'demo.png'}. Numbers: {folder / 'results.json'}.")


def _claim(folder: Path) -> None:
    """Mark the folder as a demo's; the next one may then replace what is in it."""
    if folder.exists() and not folder.is_dir():
        raise PivotuneError(f"output: {folder} is a file; name a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise PivotuneError(
            f"output: {folder} holds files that are not of a demo, which would replace them. Name a new folder."
        )
    make_folder(folder)
    write_text(folder / MARK, "")


def _title(row: Setting) -> str:
    return TITLES.get(row.name, row.name)


def _training(world: World, languages: Sequence[str]) -> list[Record]:
    return [record for language in languages for record in world.examples("training", language)]


def _modes(row: Setting) -> tuple[str, ...]:
    """How a row is asked."""
    return ("none",) if row.cc_tuning is None else ("matrix", "english")


# One row, in a process of its own ------------------------------------------------------------------------------------


def _row(
    report: Report,
    row: Setting,
    folder: Path,
    languages: Sequence[str],
    layers: tuple[int, int],
    steps: int,
    epochs: float,
    seed: int,
) -> tuple[dict[str, dict[str, Share]], dict[str, float]]:
    """Train it, ask it, look inside: what it adds to either table."""
    logging.disable_progress_bar()
    world, title, model_folder = World.build(), _title(row), base_path()
    if row.trained:
        with counting(steps, report, SECONDS[row.name]):
            place = folder / title.replace(", ", "_").replace(" ", "_")
            model_folder = _train(row, _training(world, languages), place, epochs, seed)
    run, _ = open_row(model_folder)
    questions = {language: list(world.examples("heldout", language)) for language in (*languages, "en")}

    def score(language: str, mode: str) -> Share:
        report(f"asked in {NAMES[language]}", SECONDS_ASKED)
        right = ask(run.model, run.tokenizer, {language: questions[language]}, mode)[language]["right"]
        return Share(sum(right), len(right))

    english = score("en", "none")  # a question in English is never connected
    scores = {
        title + ASKED[mode]: {language: score(language, mode) for language in languages} | {"en": english}
        for mode in _modes(row)
    }
    looked = []
    for language in languages:
        report("looked into", SECONDS_LOOKED)
        looked.append(_supervised(run, questions[language], layers))
    return scores, {what: mean(one[what] for one in looked) for what in looked[0]}


def _train(setting: Setting, records: list[Record], folder: Path, epochs: float, seed: int) -> Path:
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier demo
    return train_row(
        setting,
        base_path(),
        records,
        folder,
        learning_rate=ROWS[setting.name],
        num_train_epochs=epochs,
        seed=seed,
        disable_tqdm=True,
    )


def _supervised(run: Run, records: Sequence[Record], layers: tuple[int, int]) -> dict[str, float]:
    """What deep supervision supervises, on pairs of one language."""
    anatomy = Anatomy(run.model)
    measure = SupervisionMeasure(anatomy, layers=sorted(set(layers)))
    stream = PairStream(run.tokenizer, STYLE, batch_size=32, max_length=MAX_LENGTH)
    means = run_measure(anatomy, measure, stream, parallel(spread(records, INSIDE_PAIRS)))
    columns = {
        "question, nats at i": ("question_nats", 0),
        "answer, nats at j": ("answer_nats", -1),
        "cosine at i": ("question_cosine", 0),
        "cosine at j": ("answer_cosine", -1),
    }
    return {what: round(float(means[name].mean[column]), 6) for what, (name, column) in columns.items()}


# Showing it ----------------------------------------------------------------------------------------------------------


def _report(
    folder: Path,
    scores: dict[str, dict[str, Share]],
    inside: dict[str, dict[str, float]],
    layers: tuple[int, int],
    run: dict[str, Any],
) -> None:
    """Print both tables; write them, their numbers and the picture."""
    answers = {name: {NAMES[language]: str(score) for language, score in row.items()} for name, row in scores.items()}
    states = {name: {what: f"{value:.2f}" for what, value in row.items()} for name, row in inside.items()}
    print(
        f"\nExact match in percent [95 % interval] on facts met in English only:\n\n{_table(answers)}\n\n"
        "English: the same facts asked in English. 'CC-Tuning, real English' is given the English translation of\n"
        "each question, which a user does not have: it shows what the Transform Matrix would gain if it lost nothing.\n"
        f"\nInside, on some of these questions in the other languages (without a connection), i = {layers[0]}, "
        f"j = {layers[1]}:\n\n{_table(states)}\n\n"
        "Nats per English token that the output head reads at layer i (the question) and j (the answer): less is\n"
        "better. Cosine of the question to its English counterpart, at layer i, and at j to the English last layer."
    )
    saved = {
        name: {language: {"right": s.right, "n": s.n, "interval": s.interval} for language, s in row.items()}
        for name, row in scores.items()
    }
    content = {**run, "layers": layers, "scores": saved, "inside": inside}
    write_text(folder / "results.json", json.dumps(content, indent=1) + "\n")
    tables = [_table(answers, markdown=True), _table(states, markdown=True)]
    write_text(folder / "tables.md", "\n\n".join(tables) + "\n")
    _plot(scores, folder / "demo")


def _table(cells: dict[str, dict[str, str]], markdown: bool = False) -> str:
    heads = list(next(iter(cells.values())))
    return table(["", *heads], [[name, *(row[h] for h in heads)] for name, row in cells.items()], markdown=markdown)


def _plot(results: dict[str, dict[str, Share]], path: Path) -> None:
    languages = list(next(iter(results.values())))
    figure, axes = new_figure(10, 4.5)
    width = 0.8 / len(results)
    for k, (name, scores) in enumerate(results.items()):
        at = [x + (k - (len(results) - 1) / 2) * width for x in range(len(languages))]
        shares = [scores[language].percent for language in languages]
        bounds = [scores[language].interval for language in languages]
        errors = [
            [s - low for s, (low, _) in zip(shares, bounds, strict=True)],
            [high - s for s, (_, high) in zip(shares, bounds, strict=True)],
        ]
        axes.bar(at, shares, width, yerr=errors, capsize=2, label=name, color=f"C{k}", error_kw={"lw": 1})
    axes.set_xticks(range(len(languages)), [NAMES[language] for language in languages])
    axes.set_ylabel("exact match, %")
    axes.set_ylim(0, 104)
    axes.set_title("Facts met in English only, asked in each language (bars: 95 % intervals)")
    axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.08), frameon=False)
    save(figure, path)
