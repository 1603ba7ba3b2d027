"""Adapters on quantised bases, and the other kinds of adapters: trained, resumed, opened, asked and merged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from pivotune import quantization
from pivotune.checkpoint import INFO, load_run, open_model
from pivotune.config import LoraOptions
from pivotune.errors import PivotuneError
from pivotune.export import export
from pivotune.generation import generate_texts, load
from pivotune.quantization import dequantised, is_quantised, load_options, on_device
from pivotune.training import train
from tests.runs import METHODS, configuration, log, rows, same, write_base, write_rows

pytest.importorskip("bitsandbytes", reason="needs the extra pivotune[quantization]")

KINDS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "nf4": ("nf4", {}),
    "int8": ("int8", {}),
    "dora": (None, {"use_dora": True, "use_rslora": True}),
    "modules_to_save": (None, {"modules_to_save": ["norm", "lm_head"]}),
    "nf4_dora": ("nf4", {"use_dora": True, "use_rslora": True, "modules_to_save": ["norm"]}),
}


ROUNDED = 0.1
"""LLM.int8 rounds the activations too, in every product."""


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """How far logits are from each other, over how long they are."""
    return float((a.float() - b.float()).norm() / a.float().norm())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), hidden_size=64, intermediate_size=128)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "train.jsonl", rows(16))


def made(kind: str, base: Path, data: Path, output: Path, method: str = "both", **training: Any) -> Any:
    """A run on this kind of base, with this kind of adapters."""
    quantised, lora = KINDS[kind]
    config = configuration(base, data, output, method, **training)
    return replace(
        config,
        model=replace(config.model, quantization=quantised),
        lora=LoraOptions(r=4, alpha=8, dropout=0.0, **lora),
    )


@pytest.mark.filterwarnings("ignore:MatMul8bitLt", "ignore:Merge lora module", "ignore:.*is_gradient_checkpointing")
@pytest.mark.parametrize("kind", KINDS)
def test_trained_resumed_opened_and_merged(kind: str, base: Path, data: Path, tmp_path: Path) -> None:
    saving: dict[str, Any] = dict(max_steps=3, save_strategy="steps", save_steps=2)
    run = train(made(kind, base, data, tmp_path / "run", **saving))
    losses = [one["loss"] for one in log(run) if "loss" in one]
    assert losses[-1] < losses[0]
    (tmp_path / "part").mkdir()
    shutil.copytree(run / "checkpoint-2", tmp_path / "part" / "checkpoint-2")
    same(run, train(made(kind, base, data, tmp_path / "part", resume_from_checkpoint=True, **saving)))

    opened = load_run(run)
    assert is_quantised(opened.model) is (KINDS[kind][0] is not None)
    assert opened.info["quantization"] == KINDS[kind][0]
    names = set(load_file(run / "adapter_model.safetensors"))
    assert any("lora_magnitude" in name for name in names) is ("dora" in kind)
    assert any(name.endswith("model.norm.weight") for name in names) is (kind in ("modules_to_save", "nf4_dora"))

    merged = export(str(run), output=str(tmp_path / "merged"))
    plain = AutoModelForCausalLM.from_pretrained(merged)
    assert not is_quantised(plain) and not hasattr(plain.config, "quantization_config")
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        theirs, ours = plain(input_ids=ids).logits, opened.model(input_ids=ids).logits
        by_hand = load_run(run, dequantise=True).model(input_ids=ids).logits
    torch.testing.assert_close(theirs, by_hand, rtol=1e-4, atol=1e-4)  # merged is as good as beside it
    assert apart(ours, theirs) < (ROUNDED if kind == "int8" else 1e-5)
    assert (theirs - AutoModelForCausalLM.from_pretrained(base)(input_ids=ids).logits).abs().max() > 0.01
    model, tokenizer = load(run)
    assert len(generate_texts(model, tokenizer, ["保持健康"], max_new_tokens=3)) == 1


@pytest.mark.filterwarnings("ignore:MatMul8bitLt", "ignore:.*is_gradient_checkpointing")
@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "both"])
def test_every_method(method: str, kind: str, base: Path, data: Path, tmp_path: Path) -> None:
    run = train(made(kind, base, data, tmp_path / "run", method, gradient_checkpointing=True))
    assert load_run(run).info["objectives"].keys() == set(METHODS[method])


def test_an_evaluation_leaves_a_packed_base_as_it_is(base: Path) -> None:
    packed = open_model(base, **load_options("nf4", torch.float32)).eval()
    before = {name: value.clone() for name, value in packed.state_dict().items()}
    with torch.no_grad():
        packed(input_ids=torch.arange(3, 23)[None])
    assert all(torch.equal(value, before[name]) for name, value in packed.state_dict().items())


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_dequantised_model_is_the_quantised_one(kind: Any, base: Path) -> None:
    packed = open_model(base, **load_options(kind, torch.float32))
    whole = AutoModelForCausalLM.from_pretrained(base)
    assert is_quantised(packed) and not is_quantised(whole)
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        expected, exact = packed(input_ids=ids).logits, whole(input_ids=ids).logits
        plain = dequantised(packed)
        found = plain(input_ids=ids).logits
    assert all(type(one) is nn.Linear for one in plain.modules() if "Linear" in type(one).__name__)
    assert apart(expected, found) < (ROUNDED if kind == "int8" else 1e-5)
    assert apart(exact, found) > 1e-3  # it is rounded all the same
    assert not is_quantised(plain) and not hasattr(plain.config, "quantization_config")


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
        ({"missing": True}, r"model\.quantization: nf4: needs the package bitsandbytes: pip install"),
    ],
)
def test_what_is_refused(
    changes: dict[str, Any], message: str, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = made("nf4", base, data, tmp_path / "run")
    config = replace(config, lora=changes.get("lora", config.lora))
    config.model.quantization = changes.get("quantization", "nf4")
    config.training.fsdp, config.training.deepspeed = changes.get("fsdp"), changes.get("deepspeed")
    if changes.get("missing"):
        monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PivotuneError, match=message):
        quantization.check(config)


def test_a_base_that_is_quantised_already(base: Path, data: Path, tmp_path: Path) -> None:
    """It takes adapters, and is not quantised again."""
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    packed = AutoModelForCausalLM.from_pretrained(base, quantization_config=four)
    packed.save_pretrained(tmp_path / "packed")
    for file in base.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "packed")
    config = made("nf4", tmp_path / "packed", data, tmp_path / "run")
    with pytest.raises(PivotuneError, match=r"are quantised \(bitsandbytes\) and cannot be quantised again"):
        train(config)
    config.model.quantization = None
    run = train(config)
    assert is_quantised(load_run(run).model)
    with pytest.raises(PivotuneError, match=r"are quantised \(bitsandbytes\) and cannot be trained themselves"):
        train(replace(config, output=str(tmp_path / "full"), lora=LoraOptions()))


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
