"""Adapters on quantised bases, and the other kinds of adapters: trained, resumed, opened, asked and merged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Gemma3Config, Gemma3ForConditionalGeneration

from pivotune import quantization
from pivotune.checkpoint import INFO, load_run, open_model, open_tokenizer
from pivotune.config import LoraOptions
from pivotune.errors import PivotuneError
from pivotune.evaluation.runner import evaluate
from pivotune.export import export
from pivotune.generation import generate_texts, load
from pivotune.lens.report import lens
from pivotune.objectives import DeepSupervisionConfig
from pivotune.quantization import dequantised, is_quantised, load_options, on_device
from pivotune.training import check_model, train
from tests.evaluation.benchmarks.made_up import folder
from tests.families import FAMILIES, tiny
from tests.runs import FEATURE, configuration, log, rows, same, write_base, write_rows
from tests.test_distributed import LAUNCH, ROOT

pytest.importorskip("bitsandbytes", reason="needs the extra pivotune[quantization]")

__all__ = ["folder"]

KINDS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "nf4": ("nf4", {}),
    "int8": ("int8", {}),
    "dora": (None, {"use_dora": True, "use_rslora": True}),
    "modules_to_save": (None, {"modules_to_save": ["norm", "lm_head"]}),
    "nf4_dora": ("nf4", {"use_dora": True, "use_rslora": True, "modules_to_save": ["norm"]}),
    "int8_dora": ("int8", {"use_dora": True, "modules_to_save": ["embed_tokens", "lm_head"]}),
}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {}),
    "logits": ("deep_supervision", {}),
    "feature": ("deep_supervision", {"deep_supervision": FEATURE}),
    "cc_tuning": ("cc_tuning", {}),
    "both": ("both", {}),
}
"""What is trained on such a base."""
LONG = [name if name == "both" else pytest.param(name, marks=pytest.mark.slow) for name in WAYS]
ASKED: dict[str, Any] = dict(benchmarks="xcopa,cc_xnli", languages="en", max_new_tokens=2)
"""One benchmark by likelihood, one by generation."""
IDS = torch.arange(3, 23)[None]
FOUR = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
PACKED = {"nf4": FOUR, "int8": BitsAndBytesConfig(load_in_8bit=True)}


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """How far logits are from each other, over how long they are."""
    return float((a.float() - b.float()).norm() / a.float().norm())


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """As in training, without its dropout: to answer, LLM.int8 would round the activations too, in every product."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model(input_ids=IDS).logits.float()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(
        tmp_path_factory.mktemp("base"), hidden_size=64, intermediate_size=128, max_position_embeddings=1024
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "train.jsonl", rows(16))


def made(
    kind: str, base: Path, data: Path, output: Path, way: str = "both", dtype: Any = "float32", **more: Any
) -> Any:
    """A run on this kind of base, with this kind of adapters."""
    (quantised, lora), (method, options) = KINDS[kind], WAYS[way]
    config = configuration(base, data, output, method, **options, **more)
    return replace(
        config,
        model=replace(config.model, quantization=quantised, dtype=dtype),
        lora=LoraOptions(r=4, alpha=8, dropout=0.0, **lora),
    )


def packed(kind: str, base: Path, folder: Path) -> Path:
    """A folder of a base that is stored quantised, by other programs."""
    AutoModelForCausalLM.from_pretrained(base, quantization_config=PACKED[kind]).save_pretrained(folder)
    for file in base.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "way", [name if name == "both" else pytest.param(name, marks=pytest.mark.slow) for name in WAYS]
)
def test_trained_resumed_opened_and_merged(way: str, kind: str, base: Path, data: Path, tmp_path: Path) -> None:
    saving: dict[str, Any] = dict(
        max_steps=3, save_strategy="steps", save_steps=2, gradient_checkpointing=way != "both"
    )
    run = train(made(kind, base, data, tmp_path / "run", way, **saving))
    losses = [one["loss"] for one in log(run) if "loss" in one]
    assert losses[-1] < losses[0]
    (tmp_path / "part").mkdir()
    shutil.copytree(run / "checkpoint-2", tmp_path / "part" / "checkpoint-2")
    same(run, train(made(kind, base, data, tmp_path / "part", way, resume_from_checkpoint=True, **saving)))

    quantised, lora = KINDS[kind]
    opened = load_run(run)
    assert is_quantised(opened.model) is (quantised is not None)
    assert opened.info["quantization"] == quantised
    names = {name.removeprefix("base_model.model."): one for name, one in _adapter(run).items()}
    assert any("lora_magnitude" in name for name in names) is ("dora" in kind)
    before = load_file(base / "model.safetensors")
    in_full = {name for name in names if "lora_" not in name}
    assert {name.split(".")[-2] for name in in_full if "layernorm" not in name} == {*lora.get("modules_to_save", [])}
    assert not any(torch.equal(names[name], before[name]) for name in in_full)  # and they have been trained

    merged = export(str(run), output=str(tmp_path / "merged"))
    plain = AutoModelForCausalLM.from_pretrained(merged)
    assert not is_quantised(plain) and not hasattr(plain.config, "quantization_config")
    theirs = logits(plain)
    assert apart(logits(opened.model), theirs) < 1e-5
    beside, _ = load(run, connection="none" if "cc_tuning" in opened.info["objectives"] else None, dequantise=True)
    assert not is_quantised(beside) and apart(logits(beside), theirs) < 1e-5
    assert (theirs - logits(AutoModelForCausalLM.from_pretrained(base))).abs().max() > 0.01
    model, tokenizer = load(run)
    assert len(generate_texts(model, tokenizer, ["保持健康"], max_new_tokens=3)) == 1


def _adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter_model.safetensors")


# Of what precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_base_is_that_of_the_training_in_whatever_type_it_is_opened(
    kind: Any, dtype: str, base: Path, data: Path, tmp_path: Path
) -> None:
    """Quantised from weights of another type it would have other values: rounding before is not rounding after."""
    saving: dict[str, Any] = dict(max_steps=3, save_strategy="steps", save_steps=2)
    run = train(made(kind, base, data, tmp_path / "run", "logits", dtype, **saving))
    (tmp_path / "part").mkdir()
    shutil.copytree(run / "checkpoint-2", tmp_path / "part" / "checkpoint-2")
    same(run, train(made(kind, base, data, tmp_path / "part", "logits", dtype, resume_from_checkpoint=True, **saving)))

    trained_on = dequantised(open_model(base, **load_options(kind, dtype))).model.layers[0].mlp.up_proj.weight
    other = dequantised(open_model(base, **load_options(kind, "float32"))).model.layers[0].mlp.up_proj.weight
    assert torch.equal(trained_on, other) is ((kind, dtype) == ("int8", "float16"))  # 8 bits are made of float16
    for wanted in (torch.float32, dtype):
        opened = load_run(run, dtype=wanted, dequantise=True).model.get_base_model()
        found = opened.model.layers[0].mlp.up_proj.base_layer.weight
        assert torch.equal(found, trained_on.to(found.dtype)) and str(found.dtype).endswith(str(wanted).split(".")[-1])
    # In the type of the training, the ordinary weights are what its products were made with.
    quantised, ordinary = load_run(run).model, load_run(run, dequantise=True).model
    assert is_quantised(quantised) and not is_quantised(ordinary)
    with quantised.disable_adapter(), ordinary.disable_adapter():
        assert apart(logits(quantised), logits(ordinary)) < 1e-6
    merged = AutoModelForCausalLM.from_pretrained(export(str(run), output=str(tmp_path / "whole"), dtype="float32"))
    exact = load_run(run, dtype=torch.float32, dequantise=True).model
    assert apart(logits(exact), logits(merged)) < 1e-5
    wide = load_run(run, dtype=torch.float32).model
    assert is_quantised(wide) and wide.get_base_model().lm_head.weight.dtype is torch.float32
    assert apart(logits(wide), logits(merged)) < 0.02  # where 4 bits are dequantised without being rounded to the type
    export(str(run), output=str(tmp_path / "own"))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "own").dtype is getattr(torch, dtype)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_automatic_is_the_stored_type(kind: str, base: Path, data: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    for file in base.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "half")
    run = train(made(kind, tmp_path / "half", data, tmp_path / "run", "sft", "auto"))
    opened = load_run(run)
    assert opened.info["dtype"] == "bfloat16" and opened.model.dtype is torch.bfloat16


# The packed weights themselves ------------------------------------------------------------------------------------


def test_an_evaluation_leaves_a_packed_base_as_it_is(base: Path) -> None:
    packed = open_model(base, **load_options("nf4", torch.float32)).eval()
    before = {name: value.clone() for name, value in packed.state_dict().items()}
    with torch.no_grad():
        packed(input_ids=torch.arange(3, 23)[None])
    assert all(torch.equal(value, before[name]) for name, value in packed.state_dict().items())


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_dequantised_model_is_the_quantised_one(family: str, kind: Any, tmp_path: Path) -> None:
    whole = tiny(family, dtype=torch.float32, hidden_size=64, intermediate_size=128)
    whole.save_pretrained(tmp_path)
    quantised = open_model(tmp_path, **load_options(kind, torch.float32))
    assert is_quantised(quantised) and not is_quantised(whole)
    assert [one for one in quantised.modules() if type(one) is nn.Linear] == [quantised.get_output_embeddings()]
    expected = logits(quantised)
    plain = dequantised(quantised)
    assert all(type(one) is nn.Linear for one in plain.modules() if "Linear" in type(one).__name__)
    assert apart(expected, logits(plain)) < 1e-5
    assert apart(logits(whole), logits(plain)) > 1e-3  # it is rounded all the same
    assert not is_quantised(plain) and not hasattr(plain.config, "quantization_config")


def test_the_log_is_not_flooded(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    """bitsandbytes warns in every product of every layer."""
    with torch.no_grad():
        open_model(base, **load_options("int8", torch.float32)).eval()(input_ids=IDS)
    assert "MatMul8bitLt" not in caplog.text


def test_a_method_that_cannot_be_undone(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(base, **load_options("nf4", torch.float32))
    monkeypatch.setattr(type(model.hf_quantizer), "_dequantize", lambda *args, **kwargs: _not_implemented())
    with pytest.raises(PivotuneError, match=r"are quantised \(bitsandbytes\), and transformers cannot dequantise them"):
        dequantised(model)


def _not_implemented() -> None:
    raise NotImplementedError


def test_a_module_comes_back_to_where_it_was() -> None:
    layer = nn.Linear(2, 2)
    moved: list[Any] = []
    layer.to = lambda device: moved.append(device) or layer  # type: ignore[method-assign, assignment]
    with on_device(layer, "cuda:7") as there:
        assert there is layer and moved == ["cuda:7"]
    assert moved == ["cuda:7", torch.device("cpu")]
    with pytest.raises(ValueError), on_device(nn.Linear(2, 2), "cpu"):
        raise ValueError
    packed = nn.Linear(2, 2)
    packed.is_quantized = True
    with on_device(packed, "cuda:7") as there:
        assert there.weight.device.type == "cpu"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": LoraOptions()}, r"model\.quantization: nf4: quantised weights cannot be trained.*lora\.r: 16"),
        ({"fsdp": True}, r"model\.quantization: nf4: cannot be sharded by training\.fsdp"),
        ({"deepspeed": "ds.json"}, r"model\.quantization: nf4: cannot be sharded by training\.deepspeed"),
        ({"quantization": "nf8"}, r"model\.quantization: got 'nf8'; choose one of 'nf4', 'int8'"),
        (
            {"path": "model.Q4.gguf"},
            r"model\.quantization: nf4: a GGUF file .* cannot be quantised .* Save it as",
        ),
        ({"missing": True}, r"model\.quantization: nf4: needs the package bitsandbytes: pip install"),
    ],
)
def test_what_is_refused(
    changes: dict[str, Any], message: str, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = made("nf4", base, data, tmp_path / "run")
    config = replace(config, lora=changes.get("lora", config.lora))
    config.model.quantization = changes.get("quantization", "nf4")
    config.model.path = changes.get("path", config.model.path)
    config.training.fsdp, config.training.deepspeed = changes.get("fsdp"), changes.get("deepspeed")
    if changes.get("missing"):
        monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PivotuneError, match=message):
        quantization.check(config)


# Bases that are quantised already ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_base_that_is_quantised_already(kind: str, base: Path, data: Path, folder: Path, tmp_path: Path) -> None:
    """It takes adapters, is asked, measured and merged like any other, and is not quantised again."""
    stored = packed(kind, base, tmp_path / "packed")
    config = made(kind, stored, data, tmp_path / "run")
    with pytest.raises(PivotuneError, match=r"are quantised \(bitsandbytes\) and cannot be quantised again"):
        train(config)
    config.model.quantization = None
    config.lora.modules_to_save = ["up_proj"]
    with pytest.raises(PivotuneError, match=r"lora\.modules_to_save: up_proj is quantised, and packed weights"):
        train(config)
    config.lora.modules_to_save = None
    config.training.fsdp = True
    with pytest.raises(PivotuneError, match=r"model\.path: .*packed: cannot be sharded by training\.fsdp, because its"):
        check_model(config)
    config.training.fsdp = None
    run = train(config)
    with pytest.raises(PivotuneError, match=r"are quantised \(bitsandbytes\) and cannot be trained themselves"):
        train(replace(config, output=str(tmp_path / "full"), lora=LoraOptions()))

    opened = load_run(run)
    assert is_quantised(opened.model) and opened.info["quantization"] is None
    merged = AutoModelForCausalLM.from_pretrained(export(str(run), output=str(tmp_path / "merged")))
    assert not is_quantised(merged) and apart(logits(opened.model), logits(merged)) < 1e-5
    for model in (run, stored):
        asked = evaluate(str(model), data_dir=str(folder), output=str(tmp_path / f"asked-{model.name}"), **ASKED)
        assert asked["protocols"].keys() == {"likelihood", "generation"}
        lens(str(model), data=str(data), output=str(tmp_path / f"lens-{model.name}"), measures="entropy")


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised_runs_are_measured(kind: str, base: Path, data: Path, folder: Path, tmp_path: Path) -> None:
    """With layers, a reader and weights that are found before the training, on the quantised base."""
    config = made(kind, base, data, tmp_path / "run", "logits", held_out=data)
    found: Any = dict(reader="tuned_lens", conversion_weight="auto", thinking_weight="auto")
    run = train(replace(config, objectives=[DeepSupervisionConfig(**found)]))
    assert is_quantised(load_run(run).model)
    asked = evaluate(str(run), data_dir=str(folder), **ASKED)
    assert asked["protocols"].keys() == {"likelihood", "generation"}
    lens(str(run), data=str(data), output=str(tmp_path / "lens"))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_text_part_of_a_model_for_pictures(kind: str, base: Path, data: Path, tmp_path: Path) -> None:
    tokenizer = open_tokenizer(base)
    sizes: dict[str, Any] = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2)
    text = dict(vocab_size=len(tokenizer), intermediate_size=128, num_key_value_heads=1, head_dim=32, **sizes)
    text |= dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=0)
    vision = dict(intermediate_size=64, image_size=28, patch_size=14, **sizes)
    both = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    Gemma3ForConditionalGeneration(both).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    run = train(made(kind, tmp_path / "base", data, tmp_path / "run", "cc_tuning", learning_rate=1e-3))
    opened = load_run(run)
    assert is_quantised(opened.model)
    merged = AutoModelForCausalLM.from_pretrained(export(str(run), output=str(tmp_path / "merged")))
    assert merged.config.model_type == "gemma3_text" and apart(logits(opened.model), logits(merged)) < 1e-5


@pytest.mark.slow
def test_two_ranks_train_as_one(base: Path, data: Path, tmp_path: Path) -> None:
    """Each process holds the quantised base."""
    settings: dict[str, Any] = dict(optim="sgd", learning_rate=0.1)
    alone = train(made("nf4", base, data, tmp_path / "alone", "logits", per_device_train_batch_size=8, **settings))
    sections: dict[str, Any] = {
        "output": str(tmp_path / "two"),
        "model": {"path": str(base), "quantization": "nf4"},
        "data": {"train": str(data)},
        "lora": {"r": 4, "alpha": 8, "dropout": 0.0},
        "deep_supervision": {"conversion_layer": 1, "thinking_layer": 2},
        "training": settings | {"max_steps": 2, "warmup_steps": 0, "per_device_train_batch_size": 4, "use_cpu": True},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(sections))
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    command = [sys.executable, *LAUNCH, "-m", "pivotune", "train", str(tmp_path / "run.yaml")]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    same(alone, tmp_path / "two", tolerance=1e-6)


# Modules that are trained in full -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_packed_modules_cannot_be_trained_in_full(kind: str, base: Path, tmp_path: Path) -> None:
    """And that is said before data are read."""
    config = made(kind, base, tmp_path / "none.jsonl", tmp_path / "run")
    config.lora.modules_to_save = ["lm_head", "q_proj"]
    with pytest.raises(PivotuneError, match=rf"modules_to_save: q_proj is quantised \(model\.quantization: {kind}\)"):
        train(config)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"modules_to_save": ["nrom"]}, r"lora\.modules_to_save: no layer is named 'nrom'; the model has .*norm"),
        ({"modules_to_save": ["lm_head"]}, r"lora\.modules_to_save: names lm_head, but this model's input embeddings"),
        ({"target_modules": ["norm"]}, r"lora\.target_modules: no layer is named 'norm'"),
    ],
)
def test_modules_that_cannot_be_named(lora: dict[str, Any], message: str, data: Path, tmp_path: Path) -> None:
    tied = write_base(tmp_path / "tied", tie_word_embeddings=True)
    config = replace(configuration(tied, data, tmp_path / "run"), lora=LoraOptions(r=4, **lora))
    with pytest.raises(PivotuneError, match=message):
        train(config)


def test_another_kind_cannot_be_resumed(base: Path, data: Path, tmp_path: Path) -> None:
    run = train(made("nf4", base, data, tmp_path / "run", "sft", save_strategy="steps", save_steps=1))
    more: dict[str, Any] = dict(save_strategy="steps", save_steps=1, max_steps=3, resume_from_checkpoint=True)
    with pytest.raises(PivotuneError, match=r'model\.quantization: got "int8", was "nf4"'):
        train(made("int8", base, data, run, "sft", **more))
    assert json.loads((run / INFO).read_text())["quantization"] == "nf4"
