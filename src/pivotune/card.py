"""The model card of a run, and of what is exported from it: data, method, results, citation."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pivotune.objectives import OBJECTIVES

NO_CONNECTION = (
    "**The cross-lingual connection of the run is not part of this model**: it answers as the run does with "
    "`--connection none`."
)


def card(info: Mapping[str, Any], how: str, *, library: str = "transformers", results: str = "") -> str:
    """A model card as the hub reads it: a YAML head, then Markdown.

    Args:
        info: the run's `pivotune.json`.
        how: how to open the folder.
        library: that opens it: transformers or peft.
        results: a table of scores, in Markdown.
    """
    trained = [OBJECTIVES[name] for name in info.get("objectives", {})]
    title = " and ".join(one.title for one in trained) or "Plain fine-tuning"
    # JSON is YAML: a name that YAML would read as something else stays a string.
    head: dict[str, Any] = {"library_name": library, "pipeline_tag": "text-generation", "tags": ["pivotune"]}
    if (base := info.get("base_model")) is not None:
        head["base_model"] = base
    if languages := info.get("rows"):
        head["language"] = list(languages)
    lines = ["---", *(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in head.items()), "---", ""]
    lines += [f"# {title}, by Pivotune", "", how, ""]
    if training := _training(info):
        lines += ["## Training", "", *training, ""]
    if results:
        lines += ["## Results", "", results.strip(), ""]
    if citations := [one.citation for one in trained if one.citation]:
        lines += ["## Citation", "", "```bibtex", "\n\n".join(citations), "```", ""]
    return "\n".join(lines)


def of_run(info: Mapping[str, Any], record: str) -> str:
    """The card of a run folder, whose record is the file of this name."""
    if any(OBJECTIVES[name].connects for name in info["objectives"]):
        how = (
            "**Opened with plain transformers or PEFT, the cross-lingual connection of this model is OFF**: it "
            "answers, but not the way it was trained to. With Pivotune the connection is on:"
        )
    else:
        how = "An ordinary model folder: `AutoModelForCausalLM.from_pretrained` opens it. Or, with Pivotune:"
    how += f"\n\n    pivotune generate THIS_FOLDER 'a question'\n\nOptions and versions: `{record}`."
    return card(info, how, library="peft" if info.get("adapter") else "transformers")


def _training(info: Mapping[str, Any]) -> list[str]:
    data, training = info.get("data", {}), info.get("training", {})
    rows, pairs = info.get("rows") or {}, info.get("pairs") or {}
    shown = []
    if files := data.get("train"):
        names = [Path(str(one)).name for one in ([files] if isinstance(files, str | os.PathLike) else files)]
        shown.append(f"* data: {', '.join(f'`{name}`' for name in names)}")
    if rows:
        counts = (f"{code} {count} ({pairs.get(code, 0)} with an English counterpart)" for code, count in rows.items())
        shown.append(f"* examples: {', '.join(counts)}")
    for name, options in info.get("objectives", {}).items():
        shown.append(f"* {name}: {_listed(options)}")
    if lora := info.get("lora"):
        shown.append(f"* LoRA: {_listed(lora)}")
    if info.get("steps"):
        steps = f"{info['steps']} steps of {info.get('examples_per_step')} examples"
        shown.append(f"* {steps}, learning rate {training.get('learning_rate')}, seed {training.get('seed')}")
    if versions := info.get("versions"):
        shown.append(f"* {', '.join(f'{name} {version}' for name, version in versions.items() if version)}")
    return shown


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items() if value is not None)
