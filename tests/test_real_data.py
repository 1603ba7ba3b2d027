"""Real input from the command line: 2,000 Alpaca pairs through every method, and the released CC-Tuning prompts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pivotune.cli import main
from pivotune.lab.base import base_path
from tests.data.alpaca import alpaca_rows, write_jsonl

LAYERS = ["--deep_supervision.conversion_layer", "1", "--deep_supervision.thinking_layer", "2"]
FEATURE = ["--deep_supervision.language_conversion", "feature", "--deep_supervision.english_thinking", "feature"]
RUNS = {
    "sft": [],
    "logits, teacher-forced": LAYERS,
    "logits, position-wise": [*LAYERS, "--deep_supervision.reading", "position_wise"],
    "feature": [*LAYERS, *FEATURE],
    "cc_tuning": ["--cc_tuning"],
    "both": ["--cc_tuning", *LAYERS],
}


STEPS = {"random": 50, "lab": 15}  # of the greater model, each costs eight times as much


@pytest.fixture(scope="module")
def pairs(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """1,000 en-zh and 1,000 en-vi pairs; the few broken rows of the translations are left for on_bad: skip.

    The lab's base takes the last 60 of either: a Transform Matrix is fitted on every pair that there is.
    """
    instruct, folder = shared_data / "instruct", tmp_path_factory.mktemp("pairs")
    rows = {language: alpaca_rows(language, 1000, instruct) for language in ("zh", "vi")}
    some = {"random": 1000, "lab": 60}
    return {
        model: write_jsonl(rows["zh"][-count:] + rows["vi"][-count:], folder / f"{model}.jsonl")
        for model, count in some.items()
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random Llama with the lab's tokenizer, and the lab's base model."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = AutoTokenizer.from_pretrained(base_path())
    settings = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4)
    config = AutoConfig.for_model("llama", vocab_size=len(tokenizer), tie_word_embeddings=False, **settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"random": folder, "lab": base_path()}


def arguments(model: Path, data: Path, output: Path, method: list[str], steps: int) -> list[str]:
    options = {
        "model.path": model,
        "data.train": data,
        "data.max_length": 160,
        "data.on_bad": "skip",
        "data.overlong": "skip",
        "output": output,
        "training.max_steps": steps,
        "training.logging_steps": max(1, steps // 5),
        "training.per_device_train_batch_size": 8,
        "training.learning_rate": 1e-3,
        "training.lr_scheduler_type": "constant",
        "training.save_strategy": "no",
        "training.disable_tqdm": "true",
    }
    return ["train", *method, *(str(part) for name, value in options.items() for part in (f"--{name}", value))]


@pytest.mark.parametrize("method", RUNS)
@pytest.mark.parametrize("model", ["random", "lab"])
def test_every_method_lowers_its_losses(
    model: str,
    method: str,
    models: dict[str, Path],
    pairs: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(arguments(models[model], pairs[model], tmp_path / "run", RUNS[method], STEPS[model]))
    printed = capsys.readouterr().out
    assert "kept" in printed and "skipped" in printed  # what was left out is said
    log = json.loads((tmp_path / "run" / "training_log.json").read_text())
    steps = [entry for entry in log if "lm" in entry]
    terms = {"lm"} | ({"language_conversion", "english_thinking"} & set(steps[0]))
    assert len(terms) == (1 if method in ("sft", "cc_tuning") else 3)
    for term in terms:
        values = [entry[term] for entry in steps]
        assert all(map(math.isfinite, values))
        assert min(values[-2:]) < values[0], (term, values)
    info = json.loads((tmp_path / "run" / "pivotune.json").read_text())
    if method in ("cc_tuning", "both"):
        assert math.isfinite(info["found"]["cc_tuning"]["transform_matrix"]["r2"])


def test_released_prompts_are_answered_in_batches(
    models: dict[str, Path], pairs: dict[str, Path], shared_data: Path, tmp_path: Path
) -> None:
    main(arguments(models["lab"], pairs["lab"], tmp_path / "run", RUNS["cc_tuning"], 2))
    for language in ("zh", "ar", "sw"):
        lines = (shared_data / "bench/cctuning/XNLI/split_sample" / f"{language}.json").read_text("utf-8").splitlines()
        prompts = tmp_path / f"{language}.json"
        prompts.write_text("\n".join(lines[:24]), encoding="utf-8")
        answers = tmp_path / f"{language}.answers.jsonl"
        asked = ["generate", str(tmp_path / "run"), "--prompts_file", str(prompts), "--output", str(answers)]
        main([*asked, "--batch_size", "8", "--max_new_tokens", "4"])
        rows = [json.loads(line) for line in answers.read_text("utf-8").splitlines()]
        assert [row["prompt"] for row in rows] == [json.loads(line)["instruction"] for line in lines[:24]]
