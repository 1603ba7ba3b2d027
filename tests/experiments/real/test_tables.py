"""The tables of real models, from cells whose truth is planted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.real import tables
from experiments.real.settings import SETTINGS
from pivotune.plotting import save

ITEMS = 60


def cell(
    setting: str, extra: float = 0.0, seed: int = 0, rate: float = 5e-5, modes: tuple[str, ...] = ("none",)
) -> Any:
    """A cell whose answers cost `extra` nats per token more than those of TFT."""
    draw = np.random.default_rng(7)  # the same items for all
    tokens = draw.integers(3, 12, ITEMS)
    luck = 0.02 * np.random.default_rng(seed).normal(size=ITEMS)
    nats = tokens * (2.0 + 0.5 * draw.normal(size=ITEMS) + extra + luck + (0.5 if setting == "base" else 0.0))
    scored = {"nats": nats.tolist(), "first": (nats / tokens).tolist(), "tokens": tokens.tolist()}
    mexa = {"run": {"mean": [0.1, 0.7, 0.3], "low": [0.0] * 3, "high": [1.0] * 3}}
    return {
        "setting": setting,
        "model": "gemma",
        "language": "vi",
        "rate": rate,
        "seed": seed,
        "pairs": 800,
        "device": "cpu",
        "dev": scored,
        "test": {mode: scored for mode in modes},
        "english": scored,
        "mexa": {"tables": {"last_token/mexa": mexa}},
        "log": [{"loss": 2.0, "grad_norm": 20.0}] * (0 if setting == "base" else 4),
        "seconds": {"training": 600, "measuring": 60},
    }


def test_a_planted_difference_is_told() -> None:
    cells = [cell("base"), *(cell("tft", seed=seed) for seed in range(3))]
    cells += [cell("contrast", extra=-0.1, seed=seed) for seed in range(3)]
    cells += [cell("cc_scale", seed=seed, modes=("none", "matrix")) for seed in range(3)]
    ((key, rows),) = tables.groups(cells).items()
    assert key == ("gemma", "vi", 800)
    assert [(row.setting, row.mode) for row in rows] == [
        ("base", "none"),
        ("tft", "none"),
        ("contrast", "none"),
        ("cc_scale", "none"),
        ("cc_scale", "matrix"),
    ]
    found = tables.gaps(rows, "test")
    better = found[SETTINGS["contrast"].about]
    assert better.interval.low < -0.1 < better.interval.high < 0 and better.p < 0.05 and str(better).endswith("*")
    same = found[SETTINGS["cc_scale"].about + " [no connection]"]
    assert same.interval.mean == 0 and same.p == 1
    text = tables.text(rows, *key)
    about = SETTINGS["contrast"].about
    (line,) = [one for one in text.splitlines() if one.startswith(f"| {about} ") and "-0.1" in one]
    assert str(better) in line
    assert "### Gemma-3-270M, Vietnamese, 800 pairs" in text and "| 70 " in text


def test_scores_are_per_token() -> None:
    (row,) = tables.rows_of([cell("tft")])
    scored = row.cells[0]["test"]["none"]
    assert row.answers("test").mean() == pytest.approx(sum(scored["nats"]) / sum(scored["tokens"]))


def test_the_best_rate_on_development_pairs_is_taken() -> None:
    one_seed = [cell("tft", seed=seed) for seed in range(3)] + [cell("contrast", extra=-0.1, seed=1)]
    (gap,) = tables.gaps(tables.rows_of(one_seed), "test").values()  # against TFT of that seed
    assert gap.interval.mean == pytest.approx(-0.1, abs=0.02)
    cells = [cell("tft", 0.2, seed=0, rate=1e-4), cell("tft", 0.0, seed=0, rate=5e-5)]
    cells += [cell("tft", seed=seed, rate=5e-5) for seed in (1, 2)]
    (row,) = tables.rows_of(cells)
    assert row.rates == [5e-5, 1e-4] and [one["rate"] for one in row.cells] == [5e-5] * 3


def test_drawn(tmp_path: Path) -> None:
    cells = [cell("base"), cell("tft"), cell("contrast", -0.1)]
    assert all(path.stat().st_size > 5000 for path in save(tables.drawn(tables.groups(cells)), tmp_path / "plot"))
    assert tables.gaps(tables.rows_of([cell("base")]), "test") == {}
