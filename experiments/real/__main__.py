"""What the methods bring to a real pretrained model. The commands:

python -m experiments.real short       # what `make real` does
python -m experiments.real models      # fetch, convert and cut the models
python -m experiments.real cells       # train and measure: one cell for each setting, language, rate and seed
python -m experiments.real patching    # what an English question could lend, at the best
python -m experiments.real tables      # write docs/results/real.md and its plot from the cells
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import product
from pathlib import Path

from experiments.real import models, pairs, tables
from experiments.real.patching import run_patching
from experiments.real.settings import SETTINGS
from experiments.real.short import short
from experiments.real.trial import RATES, Trial, model_folder, run_trial
from pivotune.errors import PivotuneError


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.real", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("short", "models", "cells", "patching", "tables"))
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
    if asked.command == "tables":
        return tables.publish(sys.argv[1:])
    pairs.check(asked.data)
    if asked.command == "short":
        return short(asked.work, asked.data)
    for name in asked.models:
        print(f"{name}: {model_folder(name, asked.work, asked.data)}", flush=True)
    if asked.command == "models":
        return
    given = product(asked.seeds, asked.models, asked.settings, asked.languages, asked.rates)
    named = [Trial(setting, model, language, rate, seed, asked.pairs) for seed, model, setting, language, rate in given]
    trials = list({one.name: one for one in named}.values())  # one base for all rates
    if asked.command == "patching":
        for trial in trials:
            run_patching(trial, asked.work, asked.data)
        print(tables.patching())
        return
    remaining = [one for one in trials if not one.done()]
    began = time.perf_counter()
    for number, trial in enumerate(remaining):
        if trial.done():  # another process was faster
            continue
        found = run_trial(trial, asked.work, asked.data, keep=asked.keep)
        test = found["test"]["none"]
        left = (time.perf_counter() - began) / (number + 1) * (len(remaining) - number - 1) / 60
        nats = sum(test["nats"]) / sum(test["tokens"])
        print(
            f"{number + 1} of {len(remaining)}: {trial.name}: {nats:.3f} nats per token; {left:.0f} minutes left",
            flush=True,
        )


if __name__ == "__main__":
    try:
        main()
    except PivotuneError as error:
        sys.exit(f"error: {error}")
