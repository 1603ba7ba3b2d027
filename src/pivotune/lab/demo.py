"""`pivotune demo`: the whole story on this machine, in a few minutes and without a download.

The lab's base model knows its facts in English and a minority of them in each other language. Each method teaches it
more facts in each language; then it is asked, in that language, for facts that it has met in English only. What it
answers right it must have carried over from English. A second table looks inside: how well the
English question and answer can be read from the supervised layers, on the same facts.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from babel import Locale
from scipy.stats import binomtest
from transformers.utils import logging

from pivotune.anatomy import Anatomy
from pivotune.config import DataConfig, ModelConfig, RunConfig, TrainingOptions
from pivotune.connection import Mode
from pivotune.data import ParallelExample
from pivotune.errors import check_choice
from pivotune.generation import generate_texts, load
from pivotune.lab.base import base_path
from pivotune.lab.templates import LANGUAGES
from pivotune.lab.world import World
from pivotune.lens.calibration import SupervisionMeasure
from pivotune.lens.plots import new_figure, save
from pivotune.lens.reading import PairStream, run_measure
from pivotune.methods import DeepSupervisionConfig
from pivotune.tables import table
from pivotune.training import train

NAMES = {language: str(Locale(language).english_name) for language in LANGUAGES}
CONVERSION_LAYER, THINKING_LAYER = 2, 4  # of the base's 8 layers


def _deep_supervision(signal: Any) -> dict[str, Any]:
    config = DeepSupervisionConfig(signal, signal, CONVERSION_LAYER, THINKING_LAYER)
    return {"method": "deep_supervision", "deep_supervision": config}


RUNS: dict[str, dict[str, Any]] = {
    "TFT": {"method": "sft"},
    "deep supervision, logits": _deep_supervision("logits"),
    "deep supervision, feature": _deep_supervision("feature"),
    "CC-Tuning": {"method": "cc_tuning"},
}


@dataclass
class Score:
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


def demo(output: str = "runs/demo", languages: str = "zh,vi,ar,sw", epochs: float = 3.0, seed: int = 0) -> None:
    """Fine-tune the lab's base model with every method, and print and plot what each of them changes.

    Args:
        output: folder for the data, the runs, results.json and the plot.
        languages: which to fine-tune, separated by commas.
        epochs: passes over the training questions.
        seed: of the training runs.
    """
    chosen = [language.strip() for language in languages.split(",")]
    for language in chosen:
        check_choice("languages", language, LANGUAGES[1:])
    started = time.monotonic()
    folder = Path(output)
    world = World.build()
    files = _write_training_data(world, chosen, folder / "data")
    questions = {language: list(_questions(world, language)) for language in [*chosen, "en"]}

    logging.disable_progress_bar()  # of loading and saving; training keeps its own
    print(f"Fine-tuning on facts new to each language; asking for {len(questions['en'])} that it met in English only.")
    results = {"base model": _evaluate(base_path(), questions, None)}
    inside = {"base model": _look_inside(base_path(), questions)}
    for name, options in RUNS.items():
        print(f"\n{name}: fine-tuning ...")
        run_folder = folder / name.replace(", ", "_").replace(" ", "_")
        shutil.rmtree(run_folder, ignore_errors=True)  # of an earlier demo
        run = train(_config(run_folder, files, epochs, seed, options))
        modes: list[tuple[str, Mode | None]] = [(name, None)]
        if options["method"] == "cc_tuning":
            modes = [(f"{name}, matrix", "matrix"), (f"{name}, real English", "english")]
        for label, mode in modes:
            results[label] = _evaluate(run, questions, mode)
        inside[name] = _look_inside(run, questions)

    heads = {language: NAMES[language] for language in questions}
    scores = {name: {heads[language]: str(score) for language, score in row.items()} for name, row in results.items()}
    print(f"\nExact match in percent [95 % interval] on facts met in English only:\n\n{_table(scores)}")
    print(
        "\nEnglish: the same facts asked in English. 'CC-Tuning, real English' is given the English translation of\n"
        "each question, which a user does not have: it shows what the Transform Matrix would gain if it lost nothing."
    )
    states = {name: {what: f"{value:.2f}" for what, value in row.items()} for name, row in inside.items()}
    print(
        f"\nInside, on the same questions in the other languages (without a connection), i = {CONVERSION_LAYER}, "
        f"j = {THINKING_LAYER}:\n\n{_table(states)}\n\n"
        "Nats per English token that the output head reads at layer i (the question) and j (the answer): less is\n"
        "better. Cosine of the question to its English counterpart, at layer i, and at j to the English last layer."
    )
    saved = {
        name: {language: {"right": s.right, "n": s.n, "interval": s.interval} for language, s in scores.items()}
        for name, scores in results.items()
    }
    content = {"seed": seed, "epochs": epochs, "scores": saved, "inside": inside}
    (folder / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    tables = [_table(scores, markdown=True), _table(states, markdown=True)]
    (folder / "tables.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    _plot(results, folder / "demo")
    seconds = time.monotonic() - started
    print(f"\n{seconds:.0f} seconds. Picture: {folder / 'demo.png'}. Numbers: {folder / 'results.json'}.")


def _write_training_data(world: World, languages: Iterable[str], folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for language in languages:
        path = folder / f"train.{language}.jsonl"
        rows = world.examples("training", language)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        files.append(str(path))
    return files


def _config(folder: Path, files: list[str], epochs: float, seed: int, options: dict[str, Any]) -> RunConfig:
    return RunConfig(
        output=str(folder),
        model=ModelConfig(str(base_path())),
        data=DataConfig(list(files), style="plain", max_length=128),
        training=TrainingOptions(
            learning_rate=3e-4,
            warmup_steps=0.05,
            per_device_train_batch_size=32,
            num_train_epochs=epochs,
            seed=seed,
            logging_steps=20,
            save_strategy="no",
            report_to="none",
            disable_tqdm=not sys.stderr.isatty(),
        ),
        **options,
    )


def _questions(world: World, language: str) -> Iterable[ParallelExample]:
    for row in world.examples("heldout", language):
        yield ParallelExample.from_dict(row, where=f"lab:{row['id']}")


def _evaluate(path: Path, questions: dict[str, list[ParallelExample]], mode: Mode | None) -> dict[str, Score]:
    model, tokenizer = load(path, mode)
    scores = {}
    for language, asked in questions.items():
        answers = generate_texts(
            model, tokenizer, asked, style="plain", connection=mode, batch_size=64, max_new_tokens=24
        )
        right = sum(a == q.text.answer.strip() for a, q in zip(answers, asked, strict=True))
        scores[language] = Score(right, len(asked))
    return scores


def _look_inside(path: Path, questions: dict[str, list[ParallelExample]]) -> dict[str, float]:
    """The supervised quantities of a model, averaged over the questions that are not English."""
    model, tokenizer = load(path, "none")
    asked = [question for language, some in questions.items() if language != "en" for question in some]
    anatomy = Anatomy(model)
    means = run_measure(anatomy, SupervisionMeasure(anatomy), PairStream(tokenizer, "plain", 64, 128), asked)
    at = {name: table.mean.tolist() for name, table in means.items()}
    return {
        "question, nats at i": at["question_nats"][CONVERSION_LAYER - 1],
        "answer, nats at j": at["answer_nats"][THINKING_LAYER - 1],
        "cosine at i": at["question_cosine"][CONVERSION_LAYER - 1],
        "cosine at j": at["answer_cosine"][THINKING_LAYER - 1],
    }


def _table(cells: dict[str, dict[str, str]], markdown: bool = False) -> str:
    heads = list(next(iter(cells.values())))
    return table(["", *heads], [[name, *(row[h] for h in heads)] for name, row in cells.items()], markdown=markdown)


def _plot(results: dict[str, dict[str, Score]], path: Path) -> None:
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
