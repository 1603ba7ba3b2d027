"""The commands of `experiments.real`."""

from __future__ import annotations

import argparse
import json
import time
from itertools import product
from pathlib import Path

from experiments.real import models, pairs
from experiments.real.patching import path_of, report, run_patching
from experiments.real.settings import SETTINGS
from experiments.real.trial import RATES, Trial, model_folder, run_trial


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.real", description=__doc__)
    parser.add_argument("command", choices=("models", "cells", "patching"))
    parser.add_argument("--models", nargs="+", default=["gemma"], choices=models.MODELS)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--languages", nargs="+", default=["vi", "zh"], choices=("vi", "zh"))
    parser.add_argument("--rates", nargs="+", type=float, default=[RATES[-1]])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--pairs", type=int, default=800, help="examples to train on, at most 2000")
    parser.add_argument("--keep", action="store_true", help="keep the folders of the runs")
    parser.add_argument("--work", type=Path, default=Path("runs/real"), help="models and runs; not to be committed")
    parser.add_argument("--data", type=Path, default=pairs.DATA, help="folder of alpaca_{en,zh,vi}.jsonl.gz")
    asked = parser.parse_args()
    for name in asked.models:
        print(f"{name}: {model_folder(name, asked.work, asked.data)}", flush=True)
    if asked.command == "models":
        return
    trials = [
        Trial(setting, model, language, rate, seed, asked.pairs)
        for seed, model, setting, language, rate in product(
            asked.seeds, asked.models, asked.settings, asked.languages, asked.rates
        )
    ]
    if asked.command == "patching":
        wanted = list({one.path: one for one in trials}.values())
        made = [path_of(one) for one in wanted]
        print(
            report(
                [
                    json.loads(path.read_text()) if path.exists() else run_patching(one, asked.work, asked.data)
                    for one, path in zip(wanted, made, strict=True)
                ]
            )
        )
        return
    remaining = list({one.path: one for one in trials if not one.done()}.values())  # one base for all rates
    began = time.perf_counter()
    for number, trial in enumerate(remaining):
        if trial.done():  # another process was faster
            continue
        found = run_trial(trial, asked.work, asked.data, keep=asked.keep)
        test = found["test"]["none"]
        left = (time.perf_counter() - began) / (number + 1) * (len(remaining) - number - 1) / 60
        nats = sum(test["nats"]) / sum(test["tokens"])
        print(
            f"{number + 1} of {len(remaining)}: {trial.path.stem}: {nats:.3f} nats per token; {left:.0f} minutes left",
            flush=True,
        )


if __name__ == "__main__":
    main()
