"""Whole runs in miniature, for the tests of training: a random Llama, a tokenizer, parallel rows, configurations."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from pivotune.config import DataConfig, LoraOptions, ModelConfig, RunConfig, TrainingOptions
from pivotune.data import ParallelCollator, read_examples, tokenize_examples
from pivotune.method import Method
from pivotune.objectives import CCTuningConfig, DeepSupervisionConfig
from pivotune.trainer import PivotuneTrainer
from tests.data.tiny_tokenizers import BOS, byte_level

METHODS: dict[str, list[str]] = {
    "sft": [],
    "deep_supervision": ["deep_supervision"],
    "cc_tuning": ["cc_tuning"],
    "both": ["deep_supervision", "cc_tuning"],
}
"""The objectives of the runs that tests are made with."""
LAYERS = DeepSupervisionConfig(conversion_layer=1, thinking_layer=2)
FEATURE = replace(LAYERS, language_conversion="feature", english_thinking="feature", stop_gradient=False)
QUIETLY: dict[str, Any] = dict(logging_steps=100, max_steps=3, per_device_train_batch_size=4)
"""Nothing is logged before the end."""
WORDS = ["保持", "健康", "的", "三个", "提示", "饮食", "要", "均衡", "定期", "运动", "充足", "睡眠"]
ENGLISH = ["give", "three", "tips", "for", "staying", "healthy", "eat", "well", "sleep", "enough", "move"]


def write_base(folder: Path, layers: int = 3, **options: Any) -> Path:
    """A random Llama and its tokenizer, as `from_pretrained` takes them."""
    tokenizer = byte_level(template=f"{BOS} $A")
    tokenizer.pad_token = tokenizer.eos_token
    settings = dict(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.25,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**(settings | options))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows(count: int, english: float = 0.75, seed: int = 0) -> list[dict[str, Any]]:
    """Chinese rows of different lengths; a share of them has an English counterpart."""
    draw = random.Random(seed)

    def text(words: list[str], joint: str) -> str:
        return joint.join(draw.choices(words, k=draw.randint(2, 6)))

    made: list[dict[str, Any]] = []
    for number in range(count):
        row: dict[str, Any] = {"id": str(number), "language": "zh"}
        row |= {"prompt": text(WORDS, ""), "completion": text(WORDS, "")}
        if number < english * count:
            row["english"] = {"prompt": text(ENGLISH, " "), "completion": text(ENGLISH, " ")}
        made.append(row)
    draw.shuffle(made)
    return made


def write_rows(path: Path, made: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")
    return path


def options(**changed: Any) -> TrainingOptions:
    """Two steps of eight examples, on the CPU, quietly."""
    settings: dict[str, Any] = dict(
        max_steps=2,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        warmup_steps=0,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    return TrainingOptions(**(settings | changed))


def configuration(
    base: Path,
    data: Path,
    output: Path,
    method: str = "sft",
    *,
    lora: int = 0,
    held_out: Path | None = None,
    deep_supervision: DeepSupervisionConfig | None = None,
    cc_tuning: CCTuningConfig | None = None,
    **training: Any,
) -> RunConfig:
    """A run of `method` (of METHODS) on the miniature model; `lora` is the rank of the adapters."""
    objectives = {"deep_supervision": deep_supervision or LAYERS, "cc_tuning": cc_tuning or CCTuningConfig()}
    return RunConfig(
        output=str(output),
        model=ModelConfig(str(base)),
        data=DataConfig(str(data), None if held_out is None else str(held_out)),
        objectives=[objectives[name] for name in METHODS[method]],
        lora=LoraOptions(r=lora),
        training=options(**training),
    )


# What came of it -------------------------------------------------------------------------------------------------


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.name}: {name}": value
        for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.tensors")])
        for name, value in load_file(path).items()
    }


def same(left: Path, right: Path, tolerance: float = 0.0) -> None:
    """Whether two runs ended with the same tensors, the Decision Maker and the Transform Matrix among them."""
    ours, theirs = weights(left), weights(right)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(
            value, theirs[name], rtol=0, atol=tolerance * (50 if "transform" in name else 1), msg=name
        )


def log(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "training_log.json").read_text())


def without_noise(scores: torch.Tensor, tau: float, hard: bool, dim: int) -> torch.Tensor:
    """The Gumbel-softmax without its noise, which no batching can repeat."""
    soft = (scores / tau).softmax(dim)
    pick = torch.zeros_like(soft).scatter(dim, soft.argmax(dim, keepdim=True), 1.0)
    return pick - soft.detach() + soft


def nothing_in(folder: Path) -> None:
    """Or it is not there."""
    assert not [*folder.rglob("*")]


def by_itself(method: Method, base: Path, data: Path, folder: Path, **changed: Any) -> PivotuneTrainer:
    """A trainer in a script of the user's, whose output is `folder/alone`."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    dataset, _ = tokenize_examples(read_examples(data)[0], tokenizer)
    return PivotuneTrainer(
        method,
        options(output_dir=str(folder / "alone"), **changed),
        train_dataset=dataset,
        eval_dataset=dataset,
        data_collator=ParallelCollator.for_tokenizer(tokenizer),
    )


def base_weights(base: Path) -> dict[str, torch.Tensor]:
    return load_file(base / "model.safetensors")
