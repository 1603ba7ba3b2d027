"""Evaluated runs whose truth is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pivotune.checkpoint import FORMAT
from pivotune.evaluation.compare import CellName
from pivotune.evaluation.results import BenchmarkInfo, Evaluation, ItemResult, ItemWriter, Key, write_evaluation

INFOS = {
    "likelihood.xnli": BenchmarkInfo(protocol="likelihood", metric="accuracy", chance=1 / 3),
    "likelihood.xcopa": BenchmarkInfo(protocol="likelihood", metric="accuracy", chance=1 / 2),
    "generation.xquad": BenchmarkInfo(protocol="generation", metric="f1", chance=0.0),
    "generation.cc_xnli": BenchmarkInfo(protocol="generation", metric="accuracy", chance=1 / 3),
    "generation.cc_xlsum": BenchmarkInfo(protocol="generation", metric="rouge_l"),
}


def difficulty(cell: CellName, items: int) -> np.ndarray:
    """Of each item, the same for every run."""
    return np.random.default_rng(sum(map(ord, "".join(cell)))).normal(size=items)


def write_run(
    folder: Path,
    skill: Mapping[tuple[str, str], float] | Callable[[str, str], float],
    *,
    benchmarks: Mapping[str, tuple[str, ...]] | None = None,
    seed: int | None = None,
    draw: int = 0,
    items: int = 400,
    connection: str = "none",
    config: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
    keep: Callable[[int], bool] = lambda k: True,
) -> Path:
    """An evaluated run folder. `skill` of (benchmark, language): the share of right answers, as a log odds."""
    given = skill if callable(skill) else lambda benchmark, language: skill.get((benchmark, language), 0.0)
    benchmarks = benchmarks or {"likelihood.xnli": ("en", "zh", "vi"), "generation.xquad": ("en", "zh", "vi")}
    folder.mkdir(parents=True, exist_ok=True)
    recorded = {"format": FORMAT, "objectives": {}, "tensors": [], "base_model": "base", **(info or {})}
    (folder / "pivotune.json").write_text(json.dumps(recorded), encoding="utf-8")
    model = {"base_model": "base", "objectives": list(recorded["objectives"]), "seed": seed}
    write_evaluation(
        folder / "evaluation",
        Evaluation(
            run=str(folder),
            model=model,
            connection=connection,
            config={"limit": None, **(config or {})},
            versions={"pivotune": "0.1.0"},
            benchmarks={name: INFOS[name] for name in benchmarks},
        ),
    )
    chance = np.random.default_rng(1000 + draw)
    for name, languages in benchmarks.items():
        protocol, _, benchmark = name.partition(".")
        for language in languages:
            odds = given(benchmark, language) - difficulty(CellName(protocol, benchmark, language), items)
            right = chance.logistic(size=items) < odds
            graded = INFOS[name].metric != "accuracy"
            made = [
                ItemResult(
                    id=f"q{k}",
                    score=round(float(one * chance.uniform(0.4, 1.0)), 3) if graded else float(one),
                    prediction="some answer" if protocol == "generation" else None,
                    choice=None if graded else int(one),
                    gold=None if graded else 1,
                    in_language=None if protocol == "likelihood" or k % 5 == 0 else bool(chance.random() < 0.9),
                )
                for k, one in enumerate(right)
                if keep(k)
            ]
            with ItemWriter(folder / "evaluation", Key(protocol, benchmark, language, connection)) as writer:
                writer.append(*made)
    return folder


def gain(benchmark: str, language: str) -> float:
    """Better at xnli in Chinese, worse in English, else the same."""
    return {("xnli", "zh"): 1.0, ("xnli", "en"): -1.0}.get((benchmark, language), 0.0)


def write_log(run: Path, terms: Mapping[str, float]) -> None:
    log: list[dict[str, Any]] = [
        {"loss": 3.0 / k, "grad_norm": 1.0, "learning_rate": 1e-5, "step": 10 * k, "epoch": k / 3}
        | {name: value / k for name, value in terms.items()}
        for k in (1, 2, 3)
    ]
    log.append({"train_runtime": 5400.0, "train_samples_per_second": 12.5, "train_loss": 2.0, "step": 30})
    (run / "training_log.json").write_text(json.dumps(log))
