"""One cell: train one setting on one language with one seed, and measure what came of it.

A cell is one small JSON file under `experiments/real/cells`, written whole or not at all, with the commit that made
it. The measure is nats per answer: `-log P(answer | prompt)`, summed over the answer's tokens and its end, for each
held-out example in the target language and in English; the first token apart, because most of what a short training
teaches is the format.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.cells import environment
from experiments.real import models, pairs
from experiments.real.settings import SETTINGS
from pivotune.anatomy import Anatomy
from pivotune.checkpoint import INFO, Run, load_run, open_tokenizer
from pivotune.config import DataConfig, ModelConfig, RunConfig, TrainingOptions
from pivotune.data import Batch, ParallelCollator, ParallelExample, tokenize_examples
from pivotune.files import write_text
from pivotune.lab.workers import Report, counting
from pivotune.lens.report import inspect
from pivotune.losses import IGNORE, chunked_token_nats
from pivotune.training import train

CELLS = Path(__file__).with_name("cells")
RATES = (1e-5, 2e-5, 5e-5)
BATCH = 16
MAX_LENGTH = 384
FORMAT = 1
ENGLISH = 200
"""Test questions that are asked in English too."""
SECONDS_PER_STEP, SECONDS_PER_EXAMPLE = 14.0, 0.25  # on one core of a small cloud machine, of plain fine-tuning


@dataclass(frozen=True)
class Trial:
    """What is trained.

    Attributes:
        setting: of `settings.SETTINGS`.
        model: of `models.MODELS`.
        language: vi or zh.
        pairs: how many examples are trained on, once each.
    """

    setting: str
    model: str
    language: str
    rate: float = 5e-5
    seed: int = 0
    pairs: int = 800

    @property
    def name(self) -> str:
        """Of its cell and its run folder."""
        if self.setting == "base":
            return f"{self.model}-{self.language}-base"
        return f"{self.model}-{self.language}-{self.setting}-{self.rate:g}-{self.pairs}-{self.seed}"

    def cell(self, folder: Path = CELLS) -> Path:
        return folder / f"{self.name}.json"

    def done(self, folder: Path = CELLS) -> bool:
        path = self.cell(folder)
        return path.exists() and json.loads(path.read_text())["format"] == FORMAT


def model_folder(name: str, work: Path, data: Path) -> Path:
    """The model with its vocabulary cut to the pairs."""
    whole = models.converted(name, work / "models")
    small = work / "models" / f"{name}-cut"
    if not small.exists():
        texts = pairs.texts(open_tokenizer(whole), data)
        unchecked = small.with_name(f"{small.name}.unchecked")
        models.check_cut(whole, models.cut(whole, texts, unchecked), texts)
        unchecked.rename(small)
    return small


def trained(trial: Trial, work: Path, data: Path = pairs.DATA) -> Path:
    """The folder of the finished run, trained where it is not there yet; of the base, the model's."""
    setting, base = SETTINGS[trial.setting], model_folder(trial.model, work, data)
    if trial.setting == "base":
        return base
    folder = work / "runs" / trial.name
    if (folder / INFO).exists():
        return folder
    rows = pairs.training_rows(
        trial.language, trial.pairs, trial.seed, data, replay=setting.replay, shuffled=setting.shuffled
    )
    file = work / "data" / f"{trial.name}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    train(
        RunConfig(
            output=str(folder),
            model=ModelConfig(str(base)),
            data=DataConfig(str(file), style=pairs.STYLE, max_length=MAX_LENGTH),
            objectives=setting.objectives(trial.model),
            training=TrainingOptions(
                learning_rate=trial.rate,
                num_train_epochs=1,
                per_device_train_batch_size=BATCH,
                warmup_steps=0.1,
                logging_steps=1,
                save_strategy="no",
                seed=trial.seed,
                bf16=False,
                use_cpu=not torch.cuda.is_available(),
                disable_tqdm=True,
            ),
        )
    )
    return folder


def run_trial(
    trial: Trial,
    work: Path,
    data: Path = pairs.DATA,
    *,
    cells: Path = CELLS,
    keep: bool = False,
    report: Report = lambda doing, seconds: None,
) -> dict[str, Any]:
    """Train and measure; the cell's content, which is also written.

    Args:
        cells: the folder of the cell.
        keep: the run's folder, which is removed otherwise.
        report: is told of each step and each measurement, see `seconds_of`.
    """
    began = time.perf_counter()
    setting, log = SETTINGS[trial.setting], []
    with counting(math.ceil(trial.pairs / BATCH), report, SECONDS_PER_STEP):
        folder = trained(trial, work, data)
    if trial.setting != "base":
        log = [entry for entry in json.loads((folder / "training_log.json").read_text()) if "loss" in entry]
    measured = time.perf_counter()
    run = load_run(folder)

    def scored(split: str, language: str, count: int | None = None, mode: str = "none") -> dict[str, list[float]]:
        asked = examples(split, language, data, count)
        report(f"asked, {split}", SECONDS_PER_EXAMPLE * len(asked))
        return numbers(answer_nats(run, asked, mode))

    content = {
        "format": FORMAT,
        **dataclasses.asdict(trial),
        "objectives": [dataclasses.asdict(one) for one in setting.objectives(trial.model)],
        **environment(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "dev": scored("dev", trial.language),
        "test": {mode: scored("test", trial.language, mode=mode) for mode in _modes(run)},
        "english": scored("test", "en", ENGLISH),
        "mexa": _mexa(run, examples("dev", trial.language, data)),
        "log": [{key: _short(value) for key, value in entry.items()} for entry in log],
        "seconds": {"training": round(measured - began), "measuring": round(time.perf_counter() - measured)},
    }
    cells.mkdir(parents=True, exist_ok=True)
    write_text(trial.cell(cells), json.dumps(content, separators=(",", ":")) + "\n")
    if trial.setting != "base" and not keep:
        shutil.rmtree(folder)
    return content


def examples(split: str, language: str, data: Path, count: int | None = None) -> list[ParallelExample]:
    return [ParallelExample.from_dict(row, row["id"]) for row in pairs.rows(split, language, data, count)]


def _modes(run: Run) -> tuple[str, ...]:
    connection = run.connection()
    return ("none",) if connection is None else ("none", *(one for one in connection.modes if one != "none"))


def numbers(answers: Iterable[torch.Tensor]) -> dict[str, list[float]]:
    """Of each answer, (T,) nats of its tokens: their sum, those of the first one, and how many there are."""
    nats, first, tokens = [], [], []
    for one in answers:
        nats.append(_short(one.sum().item()))
        first.append(_short(one[0].item()))
        tokens.append(len(one))
    return {"nats": nats, "first": first, "tokens": tokens}


@torch.no_grad()
def answer_nats(
    run: Run, asked: Sequence[ParallelExample], mode: str = "none", size: int = 16
) -> Iterator[torch.Tensor]:
    """Nats of the tokens of each answer, (T,) each, in the order of the examples.

    Args:
        mode: of the run's connection: none, matrix, or english, where the English prompt is read too.
    """
    anatomy = Anatomy(run.model)
    connection = None if mode == "none" else run.connection()
    found: dict[int, torch.Tensor] = {}
    for chosen, batch in batches(run, asked, size):
        token_T = torch.arange(batch["input_ids"].shape[1], device=batch["input_ids"].device)
        prompt = token_T < batch["prompt_length"][:, None]
        with ExitStack() as stack:
            if connection is not None:
                english = (batch["english_input_ids"], batch["english_attention_mask"]) if mode == "english" else ()
                lent = connection.lend(batch["input_ids"], prompt.long(), *english)
                stack.enter_context(connection.at(list(lent), batch["prompt_length"] - 1))
            found.update(zip(chosen, batch_nats(anatomy, batch), strict=True))
    yield from (found[number] for number in range(len(found)))


def batches(run: Run, asked: Sequence[ParallelExample], size: int) -> Iterator[tuple[list[int], Batch]]:
    """Which examples they are, and the batch on the model's device; those of like length together."""
    dataset, _ = tokenize_examples(asked, run.tokenizer, pairs.STYLE, MAX_LENGTH)
    lengths = [len(ids) for ids in dataset["input_ids"]]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    collator = ParallelCollator.for_tokenizer(run.tokenizer)
    device = next(run.model.parameters()).device
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        batch = collator([dataset[number] for number in chosen])
        yield chosen, {name: value.to(device) for name, value in batch.items()}


def batch_nats(anatomy: Anatomy, batch: Batch) -> list[torch.Tensor]:
    """Nats of the tokens of each answer, (T,) each."""
    states = anatomy.decoder(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).last_hidden_state
    labels = batch["labels"][:, 1:]
    nats = chunked_token_nats(
        states[:, :-1][labels != IGNORE], labels[labels != IGNORE], anatomy.logits, vocab_size=anatomy.vocab_size
    ).cpu()
    return list(nats.split((labels != IGNORE).sum(dim=1).tolist()))


def _mexa(run: Run, asked: Sequence[ParallelExample]) -> Any:
    report = inspect(run, asked, measures=["similarity"], style=pairs.STYLE, batch_size=16, max_length=MAX_LENGTH)
    (found,) = report["languages"].values()
    return found["similarity"]


def _short(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value
