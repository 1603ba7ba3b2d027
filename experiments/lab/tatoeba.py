"""Does deep supervision bring real sentences closer to their English translations? Tatoeba, before and after.

    python -m experiments.lab.tatoeba --data FOLDER [--seeds 3]

Models are trained as in the lab's grids, on the lab's questions; then each layer's states of Tatoeba's sentence pairs,
which no run has been trained on, are compared with those of the base model, pair by pair. FOLDER holds files as Tatoeba
publishes them for the challenge, tatoeba.LLL-eng.LLL and tatoeba.LLL-eng.eng, line by line parallel.

The lab's base has read templates about countries and nothing else: Tatoeba's words are strange to it. This asks whether
what deep supervision does to the lab's questions reaches beyond them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from transformers.utils import logging

from experiments import results
from experiments.cells import environment
from experiments.lab.cell import Cell, Lab, trained
from experiments.lab.grids import RATES, chosen_rate
from experiments.lab.rows import TFT, by_name
from pivotune import uncertainty
from pivotune.anatomy import Anatomy
from pivotune.checkpoint import load_run
from pivotune.data import ParallelExample, Text
from pivotune.errors import PivotuneError
from pivotune.lab.base import base_path
from pivotune.lab.settings import EPOCHS, MAX_LENGTH, STYLE
from pivotune.lens.activations import Measure, PairStream, read
from pivotune.lens.similarity import SimilarityMeasure
from pivotune.objectives.deep_supervision.measure import SupervisionMeasure
from pivotune.plotting import language_name
from pivotune.tables import table
from pivotune.taps import evaluating

CODES = {"zh": "cmn", "vi": "vie", "ar": "ara", "sw": "swh"}  # ISO 639-3, as the files are named
ROWS = (TFT, by_name("logits"), by_name("feature"), by_name("feature, last token"))
POOL = 100  # sentences that retrieval chooses from: every language has this many pairs

# name, table of a measure, factor, digits
COLUMNS = (
    ("MEXA, mean, %", "mean/mexa", 100.0, 1),
    ("MEXA, last token, %", "last_token/mexa", 100.0, 1),
    ("cosine gap, mean", "gap", 1.0, 3),
    ("nats per English token", "question_nats", 1.0, 2),
)

Tables = Mapping[str, np.ndarray]
"""By name, (F, L): one row per pair."""


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="python -m experiments.lab.tatoeba",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the sentence pairs")
    parser.add_argument("--seeds", type=int, default=3, help="training runs of each method")
    parser.add_argument("--learning-rate", type=float, help="for all methods, instead of the chosen ones")
    parser.add_argument("--pairs", type=int, default=500, help="per language, at most")
    parser.add_argument("--base", default=str(base_path()), help="folder of the base model")
    parser.add_argument("--folder", type=Path, default=Path("runs/tatoeba"), help="where results are kept")
    parser.add_argument("--results", type=Path, help="RESULTS.md: record the section beside it")
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    lab = Lab(str(Path(options.base).resolve()), "facts", tuple(CODES))
    pairs = {language: sentence_pairs(options.data, language)[: options.pairs] for language in CODES}
    before = measured(lab, None, pairs, options.folder)
    after: dict[str, list[dict[str, Tables]]] = {}
    for row in ROWS:
        setting = row.at_layers(lab.layers)
        rate = options.learning_rate or chosen_rate(setting, lab, RATES)
        for seed in range(options.seeds):
            print(f"{row.name}, seed {seed}", flush=True)
            cell = Cell(setting, rate, seed, "steps", EPOCHS, ("heldout",))
            after.setdefault(row.name, []).append(measured(lab, cell, pairs, options.folder))
    counts = ", ".join(f"{language} {len(next(iter(tables.values())))}" for language, tables in before.items())
    about = [
        f"base model {lab.base_hash[:12]}",
        f"seeds: {options.seeds} of each method; pairs: {counts}; retrieval among {POOL}",
    ]
    results.publish("lab.tatoeba", given, [environment()], about, render(before, after, lab.layers), options.results)
    return 0


def sentence_pairs(folder: Path, language: str) -> list[ParallelExample]:
    """The pairs of one language, each sentence once: of doubles retrieval could not tell which is meant.

    Raises:
        PivotuneError: a file is not there, or the two have not as many lines.
    """
    code = CODES[language]
    paths = [folder / f"tatoeba.{code}-eng.{side}" for side in (code, "eng")]
    for path in paths:
        if not path.is_file():
            raise PivotuneError(f"data: {path} does not exist.")
    own, english = (path.read_text(encoding="utf-8").splitlines() for path in paths)
    if len(own) != len(english):
        raise PivotuneError(f"data: {paths[0]} has {len(own)} lines and {paths[1]} has {len(english)}.")
    seen: set[str] = set()
    pairs = []
    for number, (sentence, translation) in enumerate(zip(own, english, strict=True), start=1):
        if sentence.strip() and translation.strip() and not {sentence, translation} & seen:
            seen |= {sentence, translation}
            text, counterpart = Text(prompt=sentence), Text(prompt=translation)
            pairs.append(ParallelExample(str(number), language, text, counterpart, f"{paths[0].name}:{number}"))
    return pairs


def measured(
    lab: Lab, cell: Cell | None, pairs: Mapping[str, Sequence[ParallelExample]], folder: Path
) -> dict[str, Tables]:
    """By language, what the measures say of every pair; kept in a file, so that a rerun goes on where it stopped."""
    subject = [lab.fingerprint] if cell is None else [lab.key(cell)]
    texts = [[one.text.question, one.english.question] for some in pairs.values() for one in some if one.english]
    key = hashlib.sha256(json.dumps([subject, texts, POOL, STYLE], ensure_ascii=False).encode()).hexdigest()[:24]
    path = folder / f"{key}.npz"
    if not path.is_file():
        place = folder / f"{key}.work"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        model = lab.base if cell is None else str(trained(lab, cell, place))
        found = {language: _tables(model, some) for language, some in pairs.items()}
        flat = {f"{language}|{name}": rows for language, tables in found.items() for name, rows in tables.items()}
        np.savez(place / "result.npz", **flat)  # type: ignore[arg-type]
        (place / "result.npz").replace(path)
        shutil.rmtree(place)
    by_language: dict[str, dict[str, np.ndarray]] = {language: {} for language in pairs}
    with np.load(path) as saved:
        for entry in saved.files:
            language, _, name = entry.partition("|")
            by_language[language][name] = saved[entry]
    return dict(by_language)


def _tables(path: str, pairs: Sequence[ParallelExample]) -> dict[str, np.ndarray]:
    run = load_run(path, dtype=torch.float32, device="cpu")
    anatomy = Anatomy(run.model)
    measures: list[Measure] = [SimilarityMeasure(anatomy, block=POOL, cka_layers=()), SupervisionMeasure(anatomy)]
    rows: dict[str, list[np.ndarray]] = {}
    with evaluating(run.model):
        for _, chosen, batch in PairStream(run.tokenizer, STYLE, 32, MAX_LENGTH).batches(pairs):
            reading = read(anatomy, chosen, batch)
            for measure in measures:
                _take_in(rows, measure.add(reading))
        for measure in measures:
            _take_in(rows, measure.finish())
    tables = {name: np.concatenate(parts) for name, parts in rows.items()}
    tables["gap"] = tables["mean/parallel"] - tables["mean/non_parallel"]
    return {name: tables[name] for _, name, _, _ in COLUMNS}


def _take_in(rows: dict[str, list[np.ndarray]], tables: Mapping[str, torch.Tensor]) -> None:
    for name, found in tables.items():
        rows.setdefault(name, []).append(found.double().cpu().numpy())


def render(
    before: Mapping[str, Tables], after: Mapping[str, Sequence[Mapping[str, Tables]]], layers: tuple[int, int]
) -> str:
    """A table per language: the base, and each method's difference from it, at the supervised layers."""
    at = [(f"layer {layer} ({name})", layer - 1) for name, layer in zip("ij", layers, strict=True)]
    wanted = [
        (f"{head}, {where}", name, layer, factor, digits)
        for head, name, factor, digits in COLUMNS
        for where, layer in at
        if name != "question_nats" or (where, layer) == at[0]  # the question is supervised at i
    ]
    parts = [
        "Base model: mean [95 % interval over pairs]. Methods: difference from the base model [95 % interval over "
        "seeds and pairs]; * where it leaves out 0. Cosine gap: of translations minus of other pairs. Nats: of the "
        "English sentence, read by the output head from the layer behind the sentence; less is better."
    ]
    for language, tables in before.items():
        body = [
            [
                "base model",
                *(_shown(uncertainty.interval(tables[n][None, :, k]), f, d) for _, n, k, f, d in wanted),
            ]
        ]
        for method, runs in after.items():
            cells = []
            for _, name, layer, factor, digits in wanted:
                ours = np.stack([run[language][name][:, layer] for run in runs])
                difference = uncertainty.difference(ours, tables[name][None, :, layer])
                star = "*" if difference.low > 0 or difference.high < 0 else ""
                cells.append(_shown(difference, factor, digits, sign="+") + star)
            body.append([method, *cells])
        parts += [f"### {language_name(language)}", table(["", *(head for head, *_ in wanted)], body, markdown=True)]
    return "\n\n".join(parts)


def _shown(one: uncertainty.Interval, factor: float, digits: int, sign: str = "") -> str:
    mean, low, high = (f"{factor * value:{sign}.{digits}f}" for value in one)
    return f"{mean} [{low}, {high}]"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PivotuneError as error:
        sys.exit(f"error: {error}")
