"""Is what `pivotune evaluate` says what lm-evaluation-harness says? Both commands on one model, item by item.

    python -m benchmarks.harness_equality DATA_DIR [--benchmarks xnli,xcopa,xstorycloze]
        [--languages zh,vi,ar,sw,en] [--limit 20] [--batch_size 1] [--model MODEL] [--output DIR]

The harness runs in a process of its own, `python -m lm_eval run --model hf ...`, with nothing of Pivotune in it,
offline, and with its own tasks, unchanged. It is started in DIR/hub, where each data set has a folder of its name on
the hub, which the `datasets` library prefers to the hub. The rows there come from the publishers' files, and not
through the readers that are to be checked. XStoryCloze is the exception: its files hold a story whole, so the four
sentences that the harness joins by spaces are four pieces of the reader's story.

XQuAD is not checked by default: the harness's task imports `transformers.data.metrics`, which transformers 5.20
removed. To check it, install the harness, transformers 5.19 and the same torch in another environment, and name that:

    --benchmarks xquad --harness "OTHER_ENVIRONMENT/bin/python -m lm_eval"
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.timing import where
from pivotune.evaluation.benchmarks import BENCHMARKS, load
from pivotune.evaluation.benchmarks.files import Folder, read_json, read_jsonl, read_lines
from pivotune.evaluation.results import ItemResult, Key, read_items
from pivotune.lab.base import base_path
from pivotune.options import names_in

Row = dict[str, Any]
Sample = dict[str, Any]
Part = tuple[str, str]  # benchmark and language

HARNESS = (sys.executable, "-m", "lm_eval")
NEW_TOKENS = 256  # what the harness generates where a task names no number, as those of XQuAD


@dataclass
class Agreement:
    """How many items of a benchmark in a language are equal.

    Attributes:
        items: compared.
        options: ranked in all of them; 0 for generated answers.
        equal: options of the same log-likelihood, bit for bit; items with the same prompt and text where generated.
        difference: the greatest between two log-likelihoods of an option, in nats.
        chosen: items with the same option chosen; 0 for generated answers.
        scored: items with the same score: accuracy, or F1 and exact match.
    """

    items: int = 0
    options: int = 0
    equal: int = 0
    difference: float = 0.0
    chosen: int = 0
    scored: int = 0


# The publishers' files as the hub's rows -----------------------------------------------------------------------------


def _xnli(folder: Folder, language: str) -> Iterator[Row]:
    labels = ["entailment", "neutral", "contradiction"]
    for number, (_, line) in enumerate(read_lines(folder.find(f"xnli_dev/dev-{language}.tsv")), start=1):
        premise, hypothesis, label = line.split("\t")
        yield {"id": str(number), "premise": premise, "hypothesis": hypothesis, "label": labels.index(label)}


def _xcopa(folder: Folder, language: str) -> Iterator[Row]:
    for _, row in read_jsonl(folder.find(f"xcopa/val-{language}.jsonl"), dict):
        yield {"id": str(row["idx"]), **row}


def _xstorycloze(folder: Folder, language: str) -> Iterator[Row]:
    for item in load("xstorycloze", language, folder.root, english=False):
        pieces = item.context.split(" ", 3)
        assert item.options is not None and item.gold is not None
        if len(pieces) == 4:  # one Chinese story has no four
            yield {
                "id": item.id,
                **{f"input_sentence_{number}": piece for number, piece in enumerate(pieces, start=1)},
                **{f"sentence_quiz{number}": option for number, option in enumerate(item.options, start=1)},
                "answer_right_ending": item.gold + 1,
            }


def _xquad(folder: Folder, language: str) -> Iterator[Row]:
    for article in read_json(folder.find(f"xquad/xquad.{language}.json"), dict)["data"]:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                texts = [answer["text"] for answer in asked["answers"]]
                starts = [answer["answer_start"] for answer in asked["answers"]]
                # The hub's rows lack the white space at their ends.
                yield {
                    "id": asked["id"],
                    "context": paragraph["context"].strip(),
                    "question": asked["question"].strip(),
                    "answers": {"text": texts, "answer_start": starts},
                }


ROWS: dict[str, Callable[[Folder, str], Iterator[Row]]] = {
    "xnli": _xnli,
    "xcopa": _xcopa,
    "xstorycloze": _xstorycloze,
    "xquad": _xquad,
}


def task_name(benchmark: str, language: str) -> str:
    """What the harness calls it."""
    return "copa" if (benchmark, language) == ("xcopa", "en") else f"{benchmark}_{language}"


def write_hub(data_dir: Path, parts: Sequence[Part], folder: Path) -> None:
    """Write the data sets of these parts as folders that are named as the data sets are on the hub.

    Every split holds the same rows: the one that the harness scores, and those that it only looks for.
    """
    configs: dict[Path, list[str]] = {}
    for benchmark, language in parts:
        hub = BENCHMARKS[benchmark].hub
        assert hub is not None
        path, config, _ = hub.of(language)
        data = folder / path / f"{config}.jsonl"
        data.parent.mkdir(parents=True, exist_ok=True)
        rows = ROWS[benchmark](Folder(data_dir, BENCHMARKS[benchmark].source), language)
        data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        configs.setdefault(data.parent, []).append(config)
    splits = ("train", "validation", "test", "eval")
    for place, names in configs.items():
        card = [
            {"config_name": name, "data_files": [{"split": split, "path": f"{name}.jsonl"} for split in splits]}
            for name in names
        ]
        # JSON is YAML too.
        (place / "README.md").write_text(f"---\n{json.dumps({'configs': card})}\n---\n", encoding="utf-8")


# The two commands ----------------------------------------------------------------------------------------------------


def run_both(
    model: str | Path,
    data_dir: Path,
    benchmarks: Sequence[str],
    languages: Sequence[str],
    folder: Path,
    *,
    limit: int,
    batch_size: int = 1,
    harness: Sequence[str] = HARNESS,
) -> dict[Part, Agreement]:
    """Ask the first `limit` items of each benchmark and language by both commands, in float32, and compare.

    Everything that is written comes into `folder`; it and `data_dir` are absolute.
    """
    parts = [(name, code) for name in benchmarks for code in languages if code in BENCHMARKS[name].languages]
    # In float32, where other batches change nothing but the last digits.
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(model).save_pretrained(folder / "model")
    write_hub(data_dir, parts, folder / "hub")
    common = ["--limit", str(limit), "--batch_size", str(batch_size)]
    theirs = [
        *[*harness, "run", "--model", "hf", "--model_args", f"pretrained={folder / 'model'},dtype=float32"],
        *["--tasks", ",".join(task_name(*part) for part in parts), "--device", "cpu", *common],
        *["--log_samples", "--output_path", str(folder / "harness")],
    ]
    ours = [
        *[sys.executable, "-m", "pivotune", "evaluate", str(folder / "model"), "--data_dir", str(data_dir)],
        *["--benchmarks", ",".join(benchmarks), "--languages", ",".join(languages), *common],
        *["--max_new_tokens", str(NEW_TOKENS), "--output", str(folder / "pivotune")],
    ]
    for command in (theirs, ours):
        _run(command, folder / "hub")
    return {
        part: compare(
            read_samples(folder / "harness", task_name(*part)),
            read_items(folder / "pivotune/items" / Key(BENCHMARKS[part[0]].protocol, *part, "none").filename)[0],
            {item.id: item.prompt for item in load(*part, data_dir, english=False)},
        )
        for part in parts
    }


def _run(command: Sequence[str], folder: Path) -> None:
    """Run it in `folder`, offline, on the CPU."""
    print(f"cd {folder} && {shlex.join(command)}", flush=True)
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "cache"),
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{done.stdout}\n{done.stderr}\nThe command ended with {done.returncode}.")


# The comparison ------------------------------------------------------------------------------------------------------


def read_samples(folder: Path, task: str) -> dict[str, Sample]:
    """What the harness logged of a task, by the id of its rows."""
    (path,) = folder.rglob(f"samples_{task}_*.jsonl")
    samples = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
    return {sample["doc"]["id"]: sample for sample in samples}


def compare(theirs: dict[str, Sample], ours: Sequence[ItemResult], prompts: dict[str, str | None]) -> Agreement:
    """The harness's samples against the results of the same items, and the prompts of those that were generated for."""
    assert sorted(theirs) == sorted(one.id for one in ours), "other items"
    found = Agreement(items=len(ours))
    for one in ours:
        sample = theirs[one.id]
        if one.loglikelihoods is None:
            prompt = sample["arguments"]["gen_args_0"]["arg_0"]
            found.equal += (prompt, sample["resps"][0][0].strip()) == (prompts[one.id], one.prediction)
            found.scored += all(sample[name] == value for name, value in one.scores.items())
            continue
        log_p = [float(option[0]) for option in sample["filtered_resps"]]
        pairs = list(zip(log_p, (value for value in one.loglikelihoods if value is not None), strict=True))
        found.options += len(pairs)
        found.equal += sum(a == b for a, b in pairs)
        found.difference = max(found.difference, *(abs(a - b) for a, b in pairs))
        found.chosen += log_p.index(max(log_p)) == one.choice
        found.scored += sample["acc"] == one.score
    return found


def table(found: dict[Part, Agreement]) -> str:
    """One line for each part."""
    lines = [f"{'':16}{'equal':>20}{'greatest difference':>22}{'same choice':>14}{'same score':>13}"]
    for part, one in found.items():
        equal = f"{one.equal}/{one.options} options" if one.options else f"{one.equal}/{one.items} texts"
        difference = f"{one.difference:.1e} nats" if one.options else ""
        chosen = f"{one.chosen}/{one.items}" if one.options else ""
        scored = f"{one.scored}/{one.items}"
        lines.append(f"{'.'.join(part):16}{equal:>20}{difference:>22}{chosen:>14}{scored:>13}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--benchmarks", default="xnli,xcopa,xstorycloze")
    parser.add_argument("--languages", default="zh,vi,ar,sw,en")
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--model", default=base_path())
    parser.add_argument("--harness", default=shlex.join(HARNESS))
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    folder = (args.output or Path(tempfile.mkdtemp())).absolute()
    found = run_both(
        args.model,
        args.data_dir.absolute(),
        names_in(args.benchmarks),
        names_in(args.languages),
        folder,
        limit=args.limit,
        batch_size=args.batch_size,
        harness=shlex.split(args.harness),
    )
    (path,) = (folder / "harness").rglob("results_*.json")
    results = json.loads(path.read_text("utf-8"))
    versions = f"lm_eval {results['lm_eval_version']}, transformers {results['transformers_version']}"
    print(f"{where()}\nthe harness: {versions}; first {args.limit} items, batch {args.batch_size}\n{table(found)}")


if __name__ == "__main__":
    main()
